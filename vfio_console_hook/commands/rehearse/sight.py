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
    GPUs, connectors theirs with their status. framebuffers are those of the whole host, and
    firmwares those among them that the firmware's drivers draw on. dark: no console is shown.
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
    firmwares = {name for one in everywhere for fw in one.firmware for name in fw.framebuffers}
    framebuffers = console.framebuffers(host)
    own = {one.address for one in gpus}
    return Sight(
        drivers=tuple(f"{one} on {_driver(host, one)}" for one in addresses),
        nodes=tuple(name for one in gpus for name in one.cards),
        connectors=tuple(
            f"{one.name} {one.status}"
            for card in drm.cards(host)
            if card.pci in own
            for one in card.connectors
        ),
        framebuffers=tuple(f"{fb.name} ({fb.title})" for fb in framebuffers),
        firmwares=tuple(f"{fb.name} ({fb.title})" for fb in framebuffers if fb.name in firmwares),
        console=console.current_display(host),
        dark=console.dark(host),
    )


def _driver(host: Host, address: str) -> str:
    return host.link_name(f"sys/bus/pci/devices/{address}/driver") or "no driver"
