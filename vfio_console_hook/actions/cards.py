"""Events that let a compositor close a card before its GPU leaves, and open it again.

What is written to a card's `uevent` in sysfs reaches udev and the compositor as if the kernel
had said it (Linux lib/kobject_uevent.c, kobject_synth_uevent). logind and systemd close the
card then (systemd src/login/logind-seat.c), and so does a compositor that obeys; the card
itself is not touched. compositors.py knows which do.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..machine import drm
from ..machine.holders import Search
from ..machine.host import Host
from . import compositors
from .action import Action


@dataclass(frozen=True, eq=False, repr=False)
class DropCard(Action):
    """Send the event of a card that is gone, and wait until these commands have closed it.

    One that has not closed it after wait_s is left to the wait for all holders, which refuses
    the VM.
    """

    gpu: str
    card: str
    commands: tuple[str, ...]
    wait_s: float
    kind = "drop-card"

    def apply(self, host: Host) -> str | None:
        search = Search(host, [f"dev/dri/{self.card}"])
        asked = [one.pid for one in search.holders() if one.command in self.commands]
        if not asked:
            return None
        host.write(f"sys/class/drm/{self.card}/uevent", "remove")
        closed = host.wait(lambda: not search.among(asked), self.wait_s)
        return None if closed else f"it is still open after {self.wait_s:g} s"

    def shell(self) -> str:
        return f"echo remove > /sys/class/drm/{self.card}/uevent"

    def past(self) -> str:
        return f"sent {' and '.join(self.commands)} a remove event of {self.card}"


@dataclass(frozen=True, eq=False, repr=False)
class ReturnCard(Action):
    """Send the event of a card that is there, for these commands.

    The kernel has sent it already if the driver was bound anew, maybe with another number. A
    second one does no harm to them, but might to another compositor that has opened the card.
    """

    gpu: str
    commands: tuple[str, ...]
    kind = "return-card"

    def apply(self, host: Host) -> None:
        for card in drm.cards(host):
            if card.pci == self.gpu:
                found = Search(host, [f"dev/dri/{card.name}"]).holders()
                others = [one.command for one in found if one.command not in self.commands]
                if not any(map(compositors.is_known, others)):
                    host.write(f"sys/class/drm/{card.name}/uevent", "add")

    def shell(self) -> str:
        return f"echo add | tee /sys/bus/pci/devices/{self.gpu}/drm/card*/uevent"

    def past(self) -> str:
        return f"sent {' and '.join(self.commands)} an add event of the card of {self.gpu}"
