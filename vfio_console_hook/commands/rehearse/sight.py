"""What can be seen of a card, and of the host's consoles, before and after a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...machine import console, drm
from ...machine.accelerators import gpus_of_host
from ...machine.gpu import gpus_at
from ...machine.host import Host
from .rehearsal import with_tuples


@dataclass(frozen=True)
class Sight:
    """What can be seen, each thing as a text for people.

    drivers are those of each function, "0000:01:00.0 on amdgpu". nodes are the DRM nodes of the
    GPUs, connectors theirs with their status. framebuffers are those of the whole host.
    firmwares are those among all these that are the firmware's drivers'. dark: no console is
    shown.
    """

    drivers: tuple[str, ...]
    nodes: tuple[str, ...]
    connectors: tuple[str, ...]
    framebuffers: tuple[str, ...]
    firmwares: tuple[str, ...]
    console: str
    dark: bool

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Sight:
        """What vars() of one gave, through JSON."""
        return cls(**with_tuples(value))


def sight_of(host: Host, addresses: tuple[str, ...]) -> Sight:
    """What can be seen of these functions now. Raises HostError."""
    gpus = [one for one in gpus_at(host, addresses) if one.displays]
    everywhere = gpus_at(host, gpus_of_host(host))
    firmwares = {
        name
        for one in everywhere
        for device in one.firmware
        for name in (device.name, *device.framebuffers, *device.cards)
    }
    own = {name for one in gpus for name in one.cards}
    nodes = {name: name for one in gpus for name in one.cards}
    connectors = {
        f"{one.name} {one.status}": card.name
        for card in drm.cards(host)
        if card.name in own
        for one in card.connectors
    }
    framebuffers = {f"{fb.name} ({fb.title})": fb.name for fb in console.framebuffers(host)}
    found = {**nodes, **connectors, **framebuffers}
    return Sight(
        drivers=tuple(f"{one} {_driver(host, one)}" for one in addresses),
        nodes=tuple(nodes),
        connectors=tuple(connectors),
        framebuffers=tuple(framebuffers),
        firmwares=tuple(text for text, name in found.items() if name in firmwares),
        console=console.current_display(host),
        dark=console.dark(host),
    )


def _driver(host: Host, address: str) -> str:
    driver = host.link_name(f"sys/bus/pci/devices/{address}/driver")
    return f"on {driver}" if driver else "without a driver"
