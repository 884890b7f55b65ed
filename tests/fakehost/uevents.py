"""What is written to the `uevent` of a card, and what compositors and logind do about it.

Linux lib/kobject_uevent.c, kobject_synth_uevent. What the programs do was seen in the lab,
with Debian 13. fake/dropped/PID holds the cards that a compositor opens again when told.
"""

from __future__ import annotations

import errno
import re

from . import processes
from .tree import Tree

CARD = r"sys/devices/(?:.*)/drm/(card\d+)/uevent"
_ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")
_OBEY = ("kwin_wayland", ".kwin_wayland-w", "Xwayland")  # the second on NixOS; the third follows
# mutter 48 ended, with the whole session.
_DIE = ("gnome-shell", "mutter")


def write(tree: Tree, card: str, word: str) -> None:
    """Raises OSError with the kernel's errno for what is no action."""
    action = re.split(r"\s", word, maxsplit=1)[0]
    if action not in _ACTIONS:
        raise OSError(errno.EINVAL, "")
    if action == "remove":
        _removed(tree, f"/dev/dri/{card}")
    elif action == "add":
        _added(tree, f"/dev/dri/{card}")


def _removed(tree: Tree, shown: str) -> None:
    for pid, link in processes.having_open(tree, shown):
        command = tree.read(f"proc/{pid}/comm") or ""
        if tree.exists(f"fake/deaf/{pid}"):
            continue
        if command in _DIE:
            processes.end(tree, pid)
        elif command in _OBEY:
            tree.remove(link)
            tree.put(f"fake/dropped/{pid}", shown)
        elif processes.keeps(tree, pid):
            tree.remove(link)


def _added(tree: Tree, shown: str) -> None:
    """KWin opens a card that it does not have (src/backends/drm/drm_backend.cpp)."""
    for name in tree.list("fake/dropped"):
        if tree.exists(f"proc/{name}/stat"):
            processes.open_file(tree, int(name), shown[1:], shown)
        tree.remove(f"fake/dropped/{name}")
