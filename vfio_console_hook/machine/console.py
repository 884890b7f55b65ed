"""The host's consoles: console drivers (vtconsoles) and framebuffers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .host import Host

FBCON = "frame buffer device"
VGACON = "VGA+"
_FRAMEBUFFER = re.compile(r"fb(\d+)")


@dataclass(frozen=True)
class Vtconsole:
    """A registered console driver (Linux drivers/tty/vt/vt.c, struct con_driver).

    static: "(S)", the one registered at boot. Writing 1 to the `bind` of another one takes
    only consoles that the static one has (vt_bind). The number in the name has no meaning.
    """

    name: str
    driver: str
    static: bool
    bound: bool

    @property
    def bind_path(self) -> str:
        return f"sys/class/vtconsole/{self.name}/bind"


@dataclass(frozen=True)
class Framebuffer:
    """fbN: its number, the name that its driver gave it, and its PCI device."""

    name: str
    index: int
    title: str
    pci: str | None


def vtconsoles(host: Host) -> tuple[Vtconsole, ...]:
    """The registered console drivers."""
    found = []
    for name in host.list("sys/class/vtconsole"):
        title = host.read(f"sys/class/vtconsole/{name}/name") or ""
        kind, _, driver = title.partition(" ")
        bound = host.read(f"sys/class/vtconsole/{name}/bind") == "1"
        found.append(Vtconsole(name, driver, kind == "(S)", bound))
    return tuple(found)


def framebuffers(host: Host) -> tuple[Framebuffer, ...]:
    """The registered framebuffers, by number."""
    names = map(_FRAMEBUFFER.fullmatch, host.list("sys/class/graphics"))
    found = [
        Framebuffer(
            name=match[0],
            index=int(match[1]),
            title=host.read(f"sys/class/graphics/{match[0]}/name") or "",
            pci=pci_ancestor(host, f"sys/class/graphics/{match[0]}"),
        )
        for match in names
        if match
    ]
    return tuple(sorted(found, key=lambda fb: fb.index))


def pci_ancestor(host: Host, path: str) -> str | None:
    """The address of the nearest PCI device above a device in sysfs, or None.

    A framebuffer of virtio-gpu is below virtioN below the PCI device, a firmware one below
    its platform device, so the parent alone is not enough.
    """
    from .firmware import PCI_ADDRESS

    parts = (host.real(path) or "").split("/")
    return next((part for part in reversed(parts) if PCI_ADDRESS.fullmatch(part)), None)


def current_display(host: Host) -> str:
    """What draws the host's consoles now, as a phrase such as "VGA+"."""
    bound = [vtconsole.driver for vtconsole in vtconsoles(host) if vtconsole.bound]
    if FBCON in bound:
        fbs = ", ".join(f"{fb.name} ({fb.title})" for fb in framebuffers(host))
        return f"framebuffer console on {fbs or 'no framebuffer'}"
    return " and ".join(bound) or "no console driver"
