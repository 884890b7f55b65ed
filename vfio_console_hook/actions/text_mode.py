"""Stopping the text that the kernel draws on a virtual terminal."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import StepError
from ..machine.host import Host
from ..machine.host.consoles import KDSETMODE, VT_LOCKSWITCH, VT_UNLOCKSWITCH
from .action import Action


@dataclass(frozen=True, eq=False, repr=False)
class QuietText(Action):
    """Stop the kernel from drawing text on the foreground terminal and from switching away from it.

    quiet false allows both again. On kernels whose vfio-pci does not remove vgacon there is
    no other way to keep it off a card that leaves (Linux vt_ioctl.c: KDSETMODE, VT_LOCKSWITCH).
    """

    tty: str
    quiet: bool
    kind = "quiet-text"

    def apply(self, host: Host) -> None:
        host.lock_consoles(self.quiet)
        host.set_text_mode(self.tty, not self.quiet)
        if host.text_mode(self.tty) == self.quiet:
            verb = "stop" if self.quiet else "allow"
            raise StepError(f"cannot {verb} text on /dev/{self.tty}")

    def shell(self) -> str:
        mode = "KD_GRAPHICS" if self.quiet else "KD_TEXT"
        switch = "VT_LOCKSWITCH" if self.quiet else "VT_UNLOCKSWITCH"
        number = VT_LOCKSWITCH if self.quiet else VT_UNLOCKSWITCH
        return (
            "python3 -c 'import fcntl, os; t = os.open(\"/dev/"
            f'{self.tty}", os.O_RDWR | os.O_NOCTTY); '
            f"fcntl.ioctl(t, {KDSETMODE:#x}, {int(self.quiet)}); "
            f"fcntl.ioctl(t, {number:#x}, 0)'  # {mode}, {switch}"
        )

    def past(self) -> str:
        return f"{'stopped' if self.quiet else 'allowed'} text on /dev/{self.tty}"
