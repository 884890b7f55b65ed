"""The driver of a sound function and its cards: Linux sound/hda/, sound/pci/hda/hda_intel.c.

Only what it had when it went is there again when it comes back, for no machine shows
which cards a function without driver would have.
"""

from __future__ import annotations

import os

from vfio_console_hook.machine.memory import memory_bars

from . import resources
from .tree import Tree

DRIVER = "snd_hda_intel"
_CARDS = "sys/class/sound"
_CLAIM = "ICH HD audio"  # azx_first_init()


def remove(tree: Tree, address: str, path: str) -> None:
    """azx_remove(), snd_card_free(), azx_free()."""
    for node in tree.list(_CARDS):
        # A recording has the link and not where it leads.
        target = os.path.normpath(f"{_CARDS}/{tree.readlink(f'{_CARDS}/{node}')}")
        if target.startswith(f"{path}/sound/"):
            tree.put(f"fake/sound/{address}/{node}", target)
            tree.remove(f"{_CARDS}/{node}")
    tree.remove(f"{path}/sound")
    for bar in memory_bars(tree, address):
        if any(one.first == bar.range.first for one in resources.named(tree, _CLAIM)):
            resources.release(tree, bar.range.first, bar.range.last, _CLAIM)
            tree.put(f"fake/claimed/{address}", str(bar.number))


def probe(tree: Tree, address: str) -> None:
    """azx_probe() and azx_probe_continue()."""
    for node in tree.list(f"fake/sound/{address}"):
        target = tree.read(f"fake/sound/{address}/{node}") or ""
        tree.link(f"{_CARDS}/{node}", target)
    reserved = tree.read(f"fake/claimed/{address}")
    for bar in memory_bars(tree, address):
        if reserved == str(bar.number):
            resources.request(tree, bar.range.first, bar.range.last, _CLAIM)
