"""Waiting for those who hold a GPU, and ending those that may be ended."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, RefusedError
from ..machine import nodes
from ..machine.gpu import gpus_among
from ..machine.holders import Holder, Search, listed, pauses
from ..machine.host import Host
from .action import Action


@dataclass(frozen=True)
class AwaitClosed(Action):
    """Wait until no process has the nodes of a VM's GPUs open; name those that still do.

    nodes are those of the drivers, such as "dev/fb0"; none means those there are
    when the step is taken. strict: a process that may not be looked into counts too.
    terminate are commands and units of processes that are ended if they are still
    there after wait_s, with grace_s between SIGTERM and SIGKILL; nobody is when
    there is one that may not be. beside are further GPUs of the VM.
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
        search = self._search(host)
        found = self._wait(host, search)
        held = [one for one in found if self._counts(one)]
        ended = ""
        if held:
            held, ended = self._end(host, search, held)
        if held:
            raise self._refusal(host, held, ended)
        unknown = [one.name for one in found if one.unknown]
        return "; ".join(filter(None, [ended, _not_known(unknown) if unknown else ""]))

    def _search(self, host: Host) -> Search:
        return Search(host, self.nodes or nodes.nodes_to_close(host, gpus_among(host, self._gpus)))

    @property
    def _gpus(self) -> tuple[str, ...]:
        return (self.gpu, *self.beside)

    def _counts(self, holder: Holder) -> bool:
        return self.strict or not holder.unknown

    def _wait(self, host: Host, search: Search) -> list[Holder]:
        """Whoever holds the nodes after wait_s, or as soon as nobody does that counts."""
        found = search.holders()
        for pause_s in pauses(host, self.wait_s):
            held = [one.pid for one in found if self._counts(one)]
            if not held:
                break
            _await_end(host, held, pause_s)
            # Looking at all processes takes a while: as long as one of these still
            # holds a node, it does not matter who else does.
            left = [one for one in search.among(held) if self._counts(one)]
            found = left or search.holders()
        return found

    def _end(self, host: Host, search: Search, held: list[Holder]) -> tuple[list[Holder], str]:
        """End them if all may be ended; who holds the nodes afterwards, and who was ended."""
        if not self.terminate:
            return held, ""
        from . import termination

        held = [one for one in search.holders() if self._counts(one)]
        spared = self._spared(host, held)
        if spared:
            return spared, ""
        ended = termination.end(host, search, held, self.grace_s)
        told = f"ended {listed(one.name for one in ended)}" if ended else ""
        return [one for one in search.holders() if self._counts(one)], told

    def _spared(self, host: Host, held: list[Holder]) -> list[Holder]:
        from . import termination

        return [one for one in held if not termination.may_end(host, one, self.terminate)]

    def _refusal(self, host: Host, held: list[Holder], ended: str) -> RefusedError:
        from . import advice

        be = "is" if len(self._gpus) == 1 else "are"
        if all(one.unknown for one in held):
            be = "may be"
        before = f" ({ended})" if ended else ""
        return RefusedError(
            f"{' and '.join(self._gpus)} {be} in use by {listed(held)}{before}",
            hint=advice.hint(host, held),
        )

    def blocked(self, host: Host, found: list[Holder]) -> RefusedError | None:
        """What it would end with if these never let go; None when it would go on."""
        held = [one for one in found if self._counts(one)]
        if self.terminate:
            held = self._spared(host, held)
        return self._refusal(host, held, "") if held else None

    def shell(self) -> str:
        return f"# wait up to {self.wait_s:g} s until nobody has {self._what()} open"

    def _what(self) -> str:
        return " or ".join(f"/{node}" for node in self.nodes) or "its nodes"

    def past(self) -> str:
        return f"nobody has {self._what()} open"


def _not_known(names: list[str]) -> str:
    return f"it is not known of {listed(names)}, which may not be looked into"


def _await_end(host: Host, pids: list[int], timeout_s: float) -> None:
    """Wait until one of the processes ends, or until timeout_s are over."""
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
