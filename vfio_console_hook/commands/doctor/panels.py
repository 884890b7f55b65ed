"""The check of what people look at: whether a laptop's own panel is on a GPU of a VM."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...machine import drm
from .finding import Finding, check, passed, warning
from .system import System

# Connectors that are always inside of the case (Linux drivers/gpu/drm/drm_connector.c,
# drm_connector_enum_list).
_BUILT_IN = re.compile(r"card\d+-((?:eDP|LVDS|DSI)-\d+)")
# The firmware's drivers do not know what they draw on.
_UNKNOWN = re.compile(r"card\d+-Unknown-\d+")


@check("panel")
def panels(system: System) -> Iterator[Finding]:
    """Whether the panel of a laptop goes with a GPU, for each GPU whose connectors show."""
    cards = drm.cards(system.host)
    for gpu in system.assignments():
        connectors = [
            one
            for card in cards
            for one in card.connectors
            if card.pci == gpu.address and not _UNKNOWN.fullmatch(one.name)
        ]
        built_in = [
            match[1]
            for one in connectors
            if one.status != "disconnected" and (match := _BUILT_IN.fullmatch(one.name))
        ]
        title = f"panel on {gpu.title}"
        text = f"the built-in {' and '.join(built_in)} is on it, dark while a VM has the GPU"
        if built_in and gpu.vm:
            advice = "keep SSH or a monitor on another GPU at hand, or give the VM the other GPU"
            yield warning(text, advice, of=title)
        elif connectors:
            yield passed(text if built_in else "no built-in panel is on it", of=title)
