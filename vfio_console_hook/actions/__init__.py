"""Actions: the changes of the machine that a step may consist of.

Each is a value with apply(), which looks again after it acted: the kernel often
accepts a write and does nothing (Linux vt.c, store_bind) or less than was asked.
"""

from __future__ import annotations

from .action import Action
from .consoles import LeaveFramebuffers, MapConsoles, QuietText, ShowConsoles
from .device import AwaitClosed, BindNative, Rescan
from .firmware import Decode, Rebind, Unbind

KINDS: dict[str, type[Action]] = {
    action.kind: action
    for action in (
        AwaitClosed, BindNative, Decode, LeaveFramebuffers, MapConsoles, QuietText, Rebind, Rescan,
        ShowConsoles, Unbind,
    )
}  # fmt: skip
"""Every action by its name in the record."""

__all__ = [
    "KINDS", "Action", "AwaitClosed", "BindNative", "Decode", "LeaveFramebuffers", "MapConsoles",
    "QuietText", "Rebind", "Rescan", "ShowConsoles", "Unbind",
]  # fmt: skip
