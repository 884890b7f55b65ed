"""Moving the host's consoles: to another framebuffer, or off all of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine import console
from ..machine.host import Host
from ..machine.host.consoles import CONSOLES
from .action import Action
from .consoles import ShowConsoles, fbcon_bound


@dataclass(frozen=True)
class MapConsoles(Action):
    """Map consoles to framebuffers; indices[n - 1] is the framebuffer of console n.

    None leaves a console where it is. fb is the framebuffer that they go to or come back from.
    Those that have to come back, and that somebody has moved on to another one meanwhile, stay
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
        now = host.console_map(self._node(host))
        if now is None:
            raise LostError("cannot map the consoles: no framebuffer is left")
        for number, index, want in zip(CONSOLES, now, self.indices):
            # A console on another framebuffer is visible too: another VM's hook has moved it.
            if want in present and index not in present:
                raise StepError(f"console {number} is not on fb{want} after mapping it")
        if not wanted <= present:
            places = " and ".join(sorted({f"fb{one}" for one in now if one in present}))
            raise LostError(f"the consoles stay on {places}: the framebuffer they were on is gone")

    def _node(self, host: Host) -> str:
        """The framebuffer through whose node the kernel is asked; any will do (Linux fbmem.c)."""
        present = [one.name for one in console.framebuffers(host)]
        found = (one for one in (self.fb, *present) if host.exists(f"dev/{one}"))
        return next(found, self.fb)

    def _map(self, host: Host) -> set[int | None]:
        """Map the consoles whose framebuffer exists; the numbers of all that exist."""
        present = _indices(host)
        node = self._node(host)
        now = host.console_map(node) or self.indices
        comes_back = self.fb in {f"fb{one}" for one in present - set(self.indices)}
        elsewhere = {one for one in present if comes_back and f"fb{one}" != self.fb}
        for number, at, index in zip(CONSOLES, now, self.indices):
            if index is None or index not in present or at in elsewhere:
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


def _indices(host: Host) -> set[int | None]:
    return {fb.index for fb in console.framebuffers(host)}


@dataclass(frozen=True)
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
