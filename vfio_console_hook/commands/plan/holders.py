"""Who has the GPUs of a VM open now, and what would become of them when it starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...actions import advice
from ...actions.holders import AwaitClosed
from ...actions.services import StopByCommand, StopUnits
from ...claims.step import Step
from ...errors import RefusedError
from ...machine import nodes, vfio
from ...machine.gpu import Gpu
from ...machine.holders import Holder, Search
from ...machine.host import Host


@dataclass(frozen=True)
class Occupant:
    """A process that has a GPU open. becomes is a clause on what becomes of it, or ""."""

    holder: Holder
    becomes: str


def now(host: Host, gpus: Collection[Gpu], others: Collection[str]) -> list[Holder]:
    """Those who have anything of the GPUs open that matters, by process id.

    others are the addresses of what else goes to the VM. A VM that has a GPU already is
    among them, by its vfio node.
    """
    wanted = list(nodes.nodes_to_close(host, gpus, others))
    for one in gpus:
        wanted += vfio.vfio_nodes(host, one.address) if one.vfio else []
    return Search(host, wanted).holders()


def awaited(
    host: Host, steps: tuple[Step, ...], found: list[Holder]
) -> tuple[tuple[Occupant, ...], RefusedError | None]:
    """What these steps make of those who have a GPU open, and how the wait for them would end.

    None when it would end well, if nobody else opens the GPU.
    """
    wait = next((s.do for s in steps if isinstance(s.do, AwaitClosed) and s.do.nodes), None)
    if wait is None:
        return tuple(Occupant(one, "") for one in found), None
    leaves = {one.pid: _leaves_with(host, one, steps) for one in found}
    refusal = wait.blocked(host, [one for one in found if not leaves[one.pid]])
    within = f" within {wait.wait_s:g} s" if wait.wait_s else " first"
    stays = f"must let go{within}" if refusal else f"ended if it stays for {wait.wait_s:g} s"
    if refusal is not None:
        refusal.text += f"; it starts if they let go{within}"
    return tuple(
        Occupant(one, leaves[one.pid] or ("" if one.unknown and not wait.strict else stays))
        for one in found
    ), refusal


def _leaves_with(host: Host, one: Holder, steps: tuple[Step, ...]) -> str:
    """The service that is stopped first and takes a process along, as a clause, or ""."""
    managers = set(advice.display_managers(host))
    session = one.cgroup.startswith("/user.slice/") or one.command == "systemd-logind"
    for step in steps:
        if isinstance(step.do, StopUnits):
            for unit in step.do.units:
                if f"/{unit}/" in f"{one.cgroup}/":
                    return f"goes with {unit}, which is stopped first"
            if session and managers & set(step.do.units):
                return f"should end with {step.do.units[-1]}, which is stopped first"
        elif isinstance(step.do, StopByCommand):
            return f"should end with {step.do.name}, which is stopped first"
    return ""
