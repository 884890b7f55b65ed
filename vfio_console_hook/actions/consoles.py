"""Changes of where the host's consoles are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine import console
from ..machine.host import Host
from ..machine.host.consoles import CONSOLES, KDSETMODE, VT_LOCKSWITCH, VT_UNLOCKSWITCH
from .action import Action


@dataclass(frozen=True)
class MapConsoles(Action):
    """Map consoles to framebuffers; indices[n - 1] is the framebuffer of console n.

    None leaves a console where it is. fb is the framebuffer whose node is used for it.
    wait_s: how long the framebuffers may take to appear.
    """

    fb: str
    indices: tuple[int | None, ...]
    wait_s: float = 0
    kind = "map-consoles"

    def apply(self, host: Host) -> None:
        wanted = set(self.indices) - {None}
        host.wait(lambda: wanted <= _indices(host), self.wait_s)
        mapped = self._map(host)
        present = _indices(host)
        if wanted & (present - mapped):  # one appeared after the first mapping
            self._map(host)
        now = host.console_map(self.fb)
        if now is None:
            raise LostError(f"cannot map the consoles through /dev/{self.fb}: it is gone")
        for number, index, want in zip(CONSOLES, now, self.indices):
            # A console on another framebuffer is visible too: another VM's hook has moved it.
            if want in present and index not in present:
                raise StepError(f"console {number} is not on fb{want} after mapping it")
        if not wanted <= present:
            raise LostError(f"the consoles stay on {self.fb}: the framebuffer they were on is gone")

    def _map(self, host: Host) -> set[int]:
        """Map the consoles whose framebuffer exists; the numbers of all that exist."""
        present = _indices(host)
        for number, index in zip(CONSOLES, self.indices):
            if index not in present:
                continue
            try:
                host.map_console(self.fb, number, index)
            except HostError as error:
                # Another VM may have taken its GPU since it was listed.
                if index in _indices(host) and host.exists(f"dev/{self.fb}"):
                    raise
                raise LostError(
                    f"cannot move the consoles to fb{index}: it has just disappeared"
                ) from error
        return present

    def shell(self) -> str:
        wanted = [index for index in self.indices if index is not None]
        if len(set(wanted)) == 1:
            return f"for n in $(seq 63); do con2fbmap $n {wanted[0]}; done"
        return "; ".join(
            f"con2fbmap {number} {index}"
            for number, index in zip(CONSOLES, self.indices)
            if index is not None
        )

    def past(self) -> str:
        targets = sorted({index for index in self.indices if index is not None})
        return f"moved the consoles to {' and '.join(f'fb{index}' for index in targets)}"


@dataclass(frozen=True)
class ShowConsoles(Action):
    """Make fbcon draw the consoles on some framebuffer again.

    wait_s: how long a framebuffer may take to appear. fb: the preferred one, for
    consoles that are on none.
    """

    wait_s: float = 5
    fb: str = ""
    kind = "show-consoles"

    def apply(self, host: Host) -> None:
        if not host.wait(lambda: bool(console.framebuffers(host)), self.wait_s):
            raise _no_framebuffer()
        if host.wait(lambda: _fbcon_bound(host), 1):
            return
        # Writing 1 to fbcon's `bind` only takes consoles from an (S) driver (vt_bind);
        # mapping one takes them from any driver (fbcon.c, set_con2fb_map), but does
        # nothing where con2fb_map already has that framebuffer. So try both.
        for vtconsole in console.vtconsoles(host):
            if vtconsole.driver == console.FBCON:
                host.write(vtconsole.bind_path, "1")
        present = console.framebuffers(host)
        if not present:  # its GPU has just been pulled out
            raise _no_framebuffer()
        fb = next((one for one in present if one.name == self.fb), present[0])
        if not _fbcon_bound(host) and host.exists(f"dev/{fb.name}"):
            host.map_console(fb.name, 1, fb.index)
        if not _fbcon_bound(host):
            # No (S) driver, and con2fb_map[] already has the only possible framebuffer.
            raise LostError(
                f"cannot move the consoles to {fb.name} now: this kernel moves them back only when"
                " a framebuffer appears",
                hint="set `keep_console: auto`, which moves the consoles before the GPU leaves",
            )

    def shell(self) -> str:
        return (
            "for v in /sys/class/vtconsole/*; do"
            " grep -q 'frame buffer' $v/name && echo 1 > $v/bind; done"
        )

    def past(self) -> str:
        return "moved the consoles back to a framebuffer"


def _indices(host: Host) -> set[int]:
    return {fb.index for fb in console.framebuffers(host)}


def _no_framebuffer() -> LostError:
    return LostError(
        "the host's console will not come back before a reboot: no framebuffer is left",
        hint="load the native driver of a GPU that stays on the host",
    )


def _fbcon_bound(host: Host) -> bool:
    return any(one.bound and one.driver == console.FBCON for one in console.vtconsoles(host))


@dataclass(frozen=True)
class LeaveFramebuffers(Action):
    """Unbind fbcon, so that the consoles fall to the next driver: to vgacon, if there is one."""

    kind = "leave-framebuffers"

    def apply(self, host: Host) -> None:
        for vtconsole in console.vtconsoles(host):
            if vtconsole.driver == console.FBCON:
                host.write(vtconsole.bind_path, "0")
        if _fbcon_bound(host):
            raise StepError("fbcon is still bound to the consoles after unbinding it")

    def shell(self) -> str:
        return ShowConsoles().shell().replace("echo 1", "echo 0")

    def past(self) -> str:
        return "unbound fbcon from the consoles"


@dataclass(frozen=True)
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
