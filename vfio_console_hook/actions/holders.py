"""Waiting for the processes that hold a GPU, and ending those that may be ended."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, RefusedError
from ..machine import nodes
from ..machine.gpu import gpus_among
from ..machine.holders import Holder, Search, listed, pauses
from ..machine.host import Host
from . import holder_kill
from .action import Action


@dataclass(frozen=True)
class AwaitClosed(Action):
    """Wait until no process has the nodes of a VM's GPUs open; refuse the VM if one still has.

    gpu is the first GPU of the VM, beside are the others. nodes are those of the
    drivers, such as "dev/fb0"; none means those that exist when the step is taken.
    strict: a process that cannot be inspected counts as a holder. terminate: commands
    and units of processes that are ended if they still hold a node after wait_s, with
    grace_s between SIGTERM and SIGKILL. If one of the holders is not listed there, no
    process is ended.
    """

    gpu: str
    nodes: tuple[str, ...]
    wait_s: float
    strict: bool
    terminate: tuple[str, ...] = ()
    grace_s: float = 0.0
    beside: tuple[str, ...] = ()
    kind = "await-closed"

    def apply(self, host: Host) -> str:
        search = Search(
            host, self.nodes or nodes.nodes_to_close(host, gpus_among(host, self._gpus))
        )
        found = self._wait(host, search)
        held = self._counted(found)
        ended = ""
        if held and self.terminate:
            held, ended = self._end(host, search)
        if held:
            raise self._refusal(host, held, ended)
        unknown = [one.name for one in found if one.unknown]
        remark = f"could not inspect {listed(unknown)}" if unknown else ""
        return "; ".join(filter(None, [ended, remark]))

    @property
    def _gpus(self) -> tuple[str, ...]:
        return (self.gpu, *self.beside)

    def _counted(self, found: list[Holder]) -> list[Holder]:
        """Those of the processes that keep the VM from starting."""
        return [one for one in found if self.strict or not one.unknown]

    def _wait(self, host: Host, search: Search) -> list[Holder]:
        """The processes that hold the nodes after wait_s, or as soon as none of them counts."""
        found = search.holders()
        ending_s = self.grace_s + holder_kill.KILL_S if self.terminate else 0.0
        for pause_s in pauses(host, host.time_for(self.wait_s, ending_s)):
            held = [one.pid for one in self._counted(found)]
            if not held:
                break
            _wait_for_an_end(host, held, pause_s)
            # Looking at all processes takes a while: as long as one of these still holds
            # a node, it does not matter which others do.
            found = self._counted(search.among(held)) or search.holders()
        return found

    def _end(self, host: Host, search: Search) -> tuple[list[Holder], str]:
        """End the holders if all may be ended; those that are left, and which were ended."""
        held = self._counted(search.holders())
        protected = self._protected(host, held)
        if protected:
            return protected, ""
        grace_s = host.time_for(self.grace_s, holder_kill.KILL_S)
        ended = holder_kill.end(host, search, held, grace_s)
        remark = f"ended {listed(one.name for one in ended)}" if ended else ""
        return self._counted(search.holders()), remark

    def _protected(self, host: Host, held: list[Holder]) -> list[Holder]:
        return [one for one in held if not holder_kill.may_be_ended(host, one, self.terminate)]

    def _refusal(self, host: Host, held: list[Holder], ended: str) -> RefusedError:
        # Only for a VM that is refused: it loads the reader of the configuration.
        from . import holder_hint

        be = "is" if len(self._gpus) == 1 else "are"
        if all(one.unknown for one in held):
            be = "may be"
        before = f" ({ended})" if ended else ""
        return RefusedError(
            f"{' and '.join(self._gpus)} {be} in use by {listed(held)}{before}",
            hint=holder_hint.hint(host, held),
        )

    def blocked(self, host: Host, found: list[Holder]) -> RefusedError | None:
        """The refusal if these processes never close the nodes; None if the VM starts then."""
        held = self._counted(found)
        if self.terminate:
            held = self._protected(host, held)
        return self._refusal(host, held, "") if held else None

    def shell(self) -> str:
        paths = " or ".join(f"/{node}" for node in self.nodes) or "its nodes"
        return f"# wait up to {self.wait_s:g} s until no process has {paths} open"

    def past(self) -> str:
        paths = " and ".join(f"/{node}" for node in self.nodes) or "its nodes"
        return f"waited until {paths} {'was' if len(self.nodes) == 1 else 'were'} closed"


def _wait_for_an_end(host: Host, pids: list[int], timeout_s: float) -> None:
    """Wait until one of the processes ends, at most timeout_s."""
    handles: list[int] = []
    try:
        for pid in pids:
            handle = host.open_process(pid)
            if handle is None:
                return  # it has ended already
            handles.append(handle)
        host.wait_for_end(handles, timeout_s)
    except HostError:
        host.wait_for_end((), timeout_s)
    finally:
        for handle in handles:
            host.close_process(handle)
