"""Actions: the changes of the machine that a step may consist of.

Each is a value with apply(), which looks again after it acted: the kernel often
accepts a write and does nothing (Linux vt.c, store_bind) or less than was asked.
"""

from __future__ import annotations

from collections.abc import Iterator

from .action import Action
from .consoles import LeaveFramebuffers, MapConsoles, QuietText, ShowConsoles
from .device import BindNative, FindAgain, Rescan
from .firmware import Decode, Rebind, Unbind
from .holders import AwaitClosed

KINDS: dict[str, type[Action]] = {
    action.kind: action
    for action in (
        AwaitClosed, BindNative, Decode, FindAgain, LeaveFramebuffers, MapConsoles, QuietText,
        Rebind, Rescan, ShowConsoles, Unbind,
    )
}  # fmt: skip
"""The actions that many machines need, by their names in the record."""


def of_kind(name: str) -> type[Action]:
    """The action of that name in the record. Raises KeyError."""
    for actions in _others() if name not in KINDS else ():
        KINDS.update((action.kind, action) for action in actions)
        if name in KINDS:
            break
    return KINDS[name]


def _others() -> Iterator[tuple[type[Action], ...]]:
    """Those that fewer machines need, loaded one after the other: a class costs the hook 0.5 ms."""
    from . import native

    yield native.ACTIONS
    from . import services

    yield services.ACTIONS
    from . import modules

    yield modules.ACTIONS
    from . import vfio

    yield vfio.ACTIONS


__all__ = [
    "KINDS", "Action", "AwaitClosed", "BindNative", "Decode", "FindAgain", "LeaveFramebuffers",
    "MapConsoles", "QuietText", "Rebind", "Rescan", "ShowConsoles", "Unbind", "of_kind",
]  # fmt: skip
