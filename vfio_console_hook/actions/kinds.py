"""The actions by the names that a claim has for them."""

from __future__ import annotations

from importlib import import_module

from .action import Action

MODULES = {
    "consoles": ("leave-framebuffers", "map-consoles", "quiet-text", "show-consoles"),
    "device": ("bind-native", "find-again", "rescan"),
    "firmware": ("decode", "rebind", "unbind"),
    "holders": ("await-closed",),
    "modules": ("free-framebuffers", "load-modules", "reserve", "unload-modules", "unreserve"),
    "native": ("return-native", "unbind-native"),
    "services": ("start-by-command", "start-units", "stop-by-command", "stop-units"),
    "vfio": ("bind-vfio", "unbind-vfio"),
}
"""Which module of this package has the actions of which kinds."""


def of_kind(kind: str) -> type[Action]:
    """The action of that name. Raises KeyError."""
    for name, kinds in MODULES.items():
        if kind in kinds:
            # Loaded when a claim holds one: each class takes half a millisecond to make.
            module = import_module(f"{__package__}.{name}")
            found = (one for one in vars(module).values() if getattr(one, "kind", "") == kind)
            action: type[Action] = next(found)
            return action
    raise KeyError(kind)
