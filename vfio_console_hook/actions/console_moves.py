"""Moving the host's consoles: to another framebuffer, or off all of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine import console, gpu
from ..machine.host import Host
from ..machine.host.consoles import CONSOLES
from .action import Action
from .consoles import ShowConsoles, bind_unnoticed, fbcon_bound, note_bind


@dataclass(frozen=True, eq=False, repr=False)
class MapConsoles(Action):
    """Map consoles to framebuffers; indices[n - 1] is the framebuffer of console n.

    None leaves a console where it is. fb is the framebuffer whose node is used for it, if it is
    there. wait_s: how long the framebuffers may take to appear.
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
        now = host.console_map(_node(host, self.fb))
        if now is None:
            raise LostError("cannot map the consoles: no framebuffer is left")
        for number, index, want in zip(CONSOLES, now, self.indices):
            # A console on another framebuffer is visible too: another VM's hook has moved it.
            if want in present and index not in present:
                raise StepError(f"console {number} is not on fb{want} after mapping it")
        if not wanted <= present:
            stay = _places(host, now)
            raise LostError(f"the consoles stay on {stay}: the framebuffer they were on is gone")

    def _map(self, host: Host) -> set[int | None]:
        """Map the consoles whose framebuffer exists; the numbers of all that exist."""
        present = _indices(host)
        node = _node(host, self.fb)
        for number, index in zip(CONSOLES, self.indices):
            if index is None or index not in present:
                continue
            try:
                host.map_console(node, number, index)
            except HostError as error:
                # Another VM may have taken its GPU since it was listed.
                if index in _indices(host) and host.exists(f"dev/{node}"):
                    raise
                raise LostError(
                    f"cannot move the consoles to fb{index}: it has just disappeared"
                ) from error
        return present

    def shell(self) -> str:
        wanted = [index for index in self.indices if index is not None]
        if len(set(self.indices)) == 1:
            return f"for n in $(seq 63); do con2fbmap $n {wanted[0]}; done"
        return "; ".join(
            f"con2fbmap {number} {index}"
            for number, index in zip(CONSOLES, self.indices)
            if index is not None
        )

    def past(self) -> str:
        targets = sorted({index for index in self.indices if index is not None})
        return f"moved the consoles to {' and '.join(f'fb{index}' for index in targets)}"


@dataclass(frozen=True, eq=False, repr=False)
class ReturnConsoles(Action):
    """Map consoles back to the framebuffer of a GPU, whatever its number is now.

    A framebuffer gets the lowest free number, so after several VMs it is seldom that of before.
    home is the GPU; while another VM has it nothing is lost, as the consoles are shown elsewhere.
    to is the GPU to which they were moved, "" if that is not known: those that are on another one
    now stay there, because somebody has moved them. wait_s: how long the framebuffer may take to
    appear.
    """

    home: str
    to: str
    consoles: tuple[int, ...]
    wait_s: float = 0
    kind = "return-consoles"

    def apply(self, host: Host) -> None:
        host.wait(lambda: bool(self._numbers_of(host, self.home)), self.wait_s)
        own = self._numbers_of(host, self.home)
        now = host.console_map(_node(host, "")) or ()
        if not own:
            stay = _places(host, now)
            raise LostError(f"the consoles stay on {stay}: {self.home} has no framebuffer")
        left = self._numbers_of(host, self.to) if self.to else []
        present = _indices(host)
        elsewhere = present - {*left} if left else set()
        wanted = (
            own[0] if number in self.consoles and at not in elsewhere else at
            for number, at in zip(CONSOLES, now)
        )
        indices = tuple(one if one in present else None for one in wanted)
        anew = bind_unnoticed(host) and len(console.vtconsoles(host)) > 1
        if anew:
            LeaveFramebuffers().apply(host)  # then the first console takes all of them over
        MapConsoles(f"fb{own[0]}", indices).apply(host)
        if anew:
            note_bind(host, noticed=True)

    def _numbers_of(self, host: Host, address: str) -> list[int]:
        names = gpu.framebuffers_of(host, (address,))
        found = (fb for fb in console.framebuffers(host) if fb.name in names)
        return [fb.index for fb in found if fb.index is not None]

    def shell(self) -> str:
        numbers = " ".join(map(str, self.consoles))
        these = "$(seq 63)" if len(self.consoles) == len(CONSOLES) else numbers
        index = f"$(ls /sys/bus/pci/devices/{self.home}/graphics | tr -d fb)"
        return f"for n in {these}; do con2fbmap $n {index}; done"

    def past(self) -> str:
        return f"moved the consoles back to {self.home}"


def _indices(host: Host) -> set[int | None]:
    return {fb.index for fb in console.framebuffers(host)}


def _node(host: Host, preferred: str) -> str:
    """The framebuffer through whose node the kernel is asked; any will do (Linux fb_chrdev.c)."""
    present = [one.name for one in console.framebuffers(host)]
    found = (one for one in (preferred, *present) if one and host.exists(f"dev/{one}"))
    return next(found, preferred)


def _places(host: Host, now: tuple[int | None, ...]) -> str:
    """The framebuffers that the consoles are on."""
    present = _indices(host)
    return " and ".join(sorted({f"fb{one}" for one in now if one in present})) or "none"


@dataclass(frozen=True, eq=False, repr=False)
class LeaveFramebuffers(Action):
    """Unbind fbcon, so that the consoles fall to the next driver: to vgacon, if there is one.

    until_release: they stay there; otherwise start shows them on a framebuffer that stays.
    """

    until_release: bool = False
    kind = "leave-framebuffers"

    def apply(self, host: Host) -> None:
        for vtconsole in console.vtconsoles(host):
            if vtconsole.driver == console.FBCON:
                host.write(vtconsole.bind_path, "0")
        if fbcon_bound(host):
            raise StepError("fbcon is still bound to the consoles after unbinding it")

    def shell(self) -> str:
        return ShowConsoles().shell().replace("echo 1", "echo 0")

    def past(self) -> str:
        return "unbound fbcon from the consoles"
