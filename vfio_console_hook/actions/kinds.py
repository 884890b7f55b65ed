"""The actions, by the names under which a claim stores them."""

from __future__ import annotations

import sys

from .action import Action

MODULES = {
    "aperture": ("end-probe", "probe-aperture"),
    "cards": ("drop-card", "return-card"),
    "console_moves": ("leave-framebuffers", "map-consoles", "return-consoles"),
    "consoles": ("show-consoles",),
    "coreboot": ("register-coreboot", "unregister-coreboot"),
    "device": ("bind-native", "find-again", "load-native", "rescan"),
    "firmware": ("decode", "rebind", "unbind"),
    "holders": ("await-closed",),
    "look": ("look-for",),
    "modules": ("free-framebuffers", "load-modules", "reserve", "unload-modules", "unreserve"),
    "native": ("return-native", "unbind-native"),
    "services": ("start-by-command", "start-units", "stop-by-command", "stop-units"),
    "text_mode": ("quiet-text",),
    "user_managers": ("start-managers",),
    "vfio": ("bind-vfio", "unbind-vfio"),
}
"""The kinds of actions, by the module of this room that has them."""


def action_of_kind(kind: str) -> type[Action]:
    """The class of the actions of that kind. Raises KeyError."""
    for name, kinds in MODULES.items():
        if kind in kinds:
            # All of them take 4 ms to load, a tenth of a release; most claims hold three.
            # importlib would take 0.5 ms more.
            __import__(f"{__package__}.{name}")
            module = sys.modules[f"{__package__}.{name}"]
            found = (one for one in vars(module).values() if getattr(one, "kind", "") == kind)
            action: type[Action] = next(found)
            return action
    raise KeyError(kind)
