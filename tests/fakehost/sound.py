"""The driver of a sound function and its cards: Linux sound/hda/, sound/pci/hda/hda_intel.c.

Only what it had when it went is there again when it comes back, for no machine shows
which cards a function without driver would have.
"""

from __future__ import annotations

import os

from vfio_console_hook.machine.memory import memory_bars

from . import processes, resources
from .tree import Tree

DRIVER = "snd_hda_intel"
_CARDS = "sys/class/sound"
_CLAIM = "ICH HD audio"  # azx_first_init()
# What watches for cards that go, and closes them. In the lab a mixer that only reads did not.
_WATCHING = ("wireplumber", "pipewire", "pulseaudio")


class StillOpen(Exception):
    """snd_card_free() waits for the last close."""


def remove(tree: Tree, address: str, path: str) -> None:
    """azx_remove(); sound/core/init.c: snd_card_disconnect(), then snd_card_free(); azx_free()."""
    for node in tree.list(_CARDS):
        # A recording has the link and not where it leads.
        target = os.path.normpath(f"{_CARDS}/{tree.readlink(f'{_CARDS}/{node}')}")
        if target.startswith(f"{path}/sound/"):
            tree.put(f"fake/sound/{address}/{node}", target)
            tree.remove(f"{_CARDS}/{node}")
            processes.forget_node(tree, f"dev/snd/{node}")
    gone = [f"/dev/snd/{node} (deleted)" for node in tree.list(f"fake/sound/{address}")]
    left = [one for shown in gone for one in processes.having_open(tree, shown)]
    for _, link in (one for one in left if _closes(tree, one[0])):
        tree.remove(link)
    if not all(_closes(tree, pid) for pid, _ in left):
        raise StillOpen
    tree.remove(f"{path}/sound")
    for bar in memory_bars(tree, address):
        if any(one.first == bar.range.first for one in resources.named(tree, _CLAIM)):
            resources.release(tree, bar.range.first, bar.range.last, _CLAIM)
            tree.put(f"fake/claimed/{address}", str(bar.number))


def _closes(tree: Tree, pid: int) -> bool:
    """Whether a process closes a card that has gone, and is not stopped itself."""
    watches = tree.read(f"proc/{pid}/comm") in _WATCHING
    return watches and not tree.exists(f"fake/deaf/{pid}")


def probe(tree: Tree, address: str) -> None:
    """azx_probe() and azx_probe_continue()."""
    for node in tree.list(f"fake/sound/{address}"):
        target = tree.read(f"fake/sound/{address}/{node}") or ""
        tree.link(f"{_CARDS}/{node}", target)
    reserved = tree.read(f"fake/claimed/{address}")
    for bar in memory_bars(tree, address):
        if reserved == str(bar.number):
            resources.request(tree, bar.range.first, bar.range.last, _CLAIM)
