"""DRM cards and their connectors, and which of them carry a framebuffer.

Only kernels without fb devices need this (console.py): there a framebuffer can be seen by
nothing but the card that it is made for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import firmware
from .console import Framebuffer, pci_ancestor
from .host import Host

_CARD = re.compile(r"card(\d+)")
_CLASS = "sys/class/drm"
_PLATFORM = "sys/bus/platform/devices"
# The client that cards get, "fbdev" or "log" (Linux drivers/gpu/drm/clients/drm_client_setup.c).
_CLIENT = "sys/module/drm_client_lib/parameters/active"
# nvidia-drm is the only known driver that can show pictures without a framebuffer for fbcon.
_NVIDIA_FBDEV = "sys/module/nvidia_drm/parameters/fbdev"
PARAMETERS = (_CLIENT, _NVIDIA_FBDEV)
"""The parameters of modules that decide whether a card has a framebuffer."""


@dataclass(frozen=True)
class Connector:
    """A connector of a card. status is "connected", "disconnected" or "unknown"."""

    name: str
    status: str
    enabled: bool


@dataclass(frozen=True)
class Card:
    """A DRM card: its driver, the PCI device that it is on, and its connectors."""

    name: str
    driver: str
    pci: str | None
    connectors: tuple[Connector, ...]

    @property
    def lit(self) -> bool:
        """Whether a picture is shown on one of its connectors."""
        return any(one.enabled for one in self.connectors)

    @property
    def has_monitor(self) -> bool:
        """Whether fbdev emulation has found a monitor to make a framebuffer for.

        Linux drm_client_modeset.c, drm_client_connectors_enabled: if none is connected, those
        of unknown status count. What is lit had one.
        """
        return self.lit or any(one.status != "disconnected" for one in self.connectors)


def cards(host: Host) -> tuple[Card, ...]:
    """The DRM cards by number; those that only compute have no connectors."""
    names = host.list(_CLASS)
    numbers = sorted(int(match[1]) for match in map(_CARD.fullmatch, names) if match)
    return tuple(_card(host, f"card{number}", names) for number in numbers)


def _card(host: Host, name: str, names: tuple[str, ...]) -> Card:
    folder = f"{_CLASS}/{name}"
    return Card(
        name=name,
        driver=host.link_name(f"{folder}/device/driver") or "",
        pci=pci_ancestor(host, folder),
        connectors=tuple(
            Connector(
                one,
                host.read(f"{_CLASS}/{one}/status") or "unknown",
                host.read(f"{_CLASS}/{one}/enabled") == "enabled",
            )
            for one in names
            # A writeback connector has no monitor.
            if one.startswith(f"{name}-") and "-Writeback-" not in one
        ),
    )


def framebuffers(host: Host) -> tuple[Framebuffer, ...]:
    """The framebuffers that this kernel does not show: those of firmware drivers, then of cards.

    Their names are those of the platform device or the card; their numbers are not known.
    """
    found = [_of_firmware(host, name) for name in _fbdev_devices(host)]
    if (host.read(_CLIENT) or "fbdev") == "fbdev":
        found += [
            Framebuffer(card.name, None, card.driver, card.pci)
            for card in cards(host)
            if card.has_monitor and _has_emulation(host, card)
        ]
    return tuple(found)


def _fbdev_devices(host: Host) -> tuple[str, ...]:
    """The firmware devices on which an fbdev driver draws; DRM drivers have a card there."""
    return tuple(
        name
        for name in firmware.devices(host)
        if host.exists(f"{_PLATFORM}/{name}/driver") and not host.list(f"{_PLATFORM}/{name}/drm")
    )


def _of_firmware(host: Host, name: str) -> Framebuffer:
    above = pci_ancestor(host, f"{_PLATFORM}/{name}")
    return Framebuffer(name, None, firmware.fbdev_driver(name), above)


def _has_emulation(host: Host, card: Card) -> bool:
    if card.driver != "nvidia":
        return True
    return host.read(_NVIDIA_FBDEV) == "Y"


def lit(host: Host, address: str) -> bool:
    """Whether a monitor on a PCI device shows a picture."""
    return any(card.lit for card in cards(host) if card.pci == address)
