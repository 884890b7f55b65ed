"""The actions, by the names under which a claim stores them."""

from __future__ import annotations

from .action import Action
from .consoles import LeaveFramebuffers, MapConsoles, QuietText, ShowConsoles
from .device import BindNative, FindAgain, Rescan
from .firmware import Decode, Rebind, Unbind
from .holders import AwaitClosed
from .modules import FreeFramebuffers, LoadModules, Reserve, UnloadModules, Unreserve
from .native import ReturnNative, UnbindNative
from .services import StartByCommand, StartUnits, StopByCommand, StopUnits
from .vfio import BindVfio, UnbindVfio

_ACTIONS: tuple[type[Action], ...] = (
    AwaitClosed, BindNative, BindVfio, Decode, FindAgain, FreeFramebuffers, LeaveFramebuffers,
    LoadModules, MapConsoles, QuietText, Rebind, Rescan, Reserve, ReturnNative, ShowConsoles,
    StartByCommand, StartUnits, StopByCommand, StopUnits, Unbind, UnbindNative, UnbindVfio,
    UnloadModules, Unreserve,
)  # fmt: skip
BY_KIND = {action.kind: action for action in _ACTIONS}
