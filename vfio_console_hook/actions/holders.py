"""The wait for the processes that hold a GPU; holder_wait.py has what is done."""

from __future__ import annotations

from dataclasses import dataclass

from ..machine.host import Host
from .action import Action

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from ..errors import RefusedError
    from ..machine.holder import Holder


@dataclass(frozen=True, eq=False, repr=False)
class AwaitClosed(Action):
    """Wait until no process has the nodes of a VM's GPUs open; refuse the VM if one still has.

    gpu is the first GPU of the VM, beside are the others. nodes are those of the
    drivers, such as "dev/fb0"; none means those that exist when the step is taken.
    strict: a process that cannot be inspected counts as a holder. terminate: commands
    and units of processes that are ended if they still hold a node after wait_s, with
    grace_s between SIGTERM and SIGKILL. If one of the holders is not listed there, no
    process is ended. desktop: a display manager was stopped before, so what is left of its
    sessions may be ended, too. file is where the VM's settings go, for a hint.
    """

    gpu: str
    nodes: tuple[str, ...]
    wait_s: float
    strict: bool
    terminate: tuple[str, ...] = ()
    grace_s: float = 0.0
    beside: tuple[str, ...] = ()
    file: str = ""
    desktop: bool = False
    kind = "await-closed"

    def apply(self, host: Host) -> str:
        # Takes 2 ms to load, and a release has to know only that there was a wait.
        from . import holder_wait

        return holder_wait.close(host, self)

    def blocked(self, host: Host, found: list[Holder]) -> RefusedError | None:
        """The refusal if these processes never close the nodes; None if the VM starts then."""
        from . import holder_wait

        return holder_wait.refusal_for(host, self, found)

    @property
    def gpus(self) -> tuple[str, ...]:
        return (self.gpu, *self.beside)

    def shell(self) -> str:
        paths = " or ".join(f"/{node}" for node in self.nodes) or "its nodes"
        return f"# wait up to {self.wait_s:g} s until no process has {paths} open"

    def past(self) -> str:
        paths = " and ".join(f"/{node}" for node in self.nodes) or "its nodes"
        return f"waited until {paths} {'was' if len(self.nodes) == 1 else 'were'} closed"
