"""The processes that have the GPUs of a VM open, and what becomes of them when it starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...actions.cards import DropCard
from ...actions.holder_kill import DESKTOP, Entries
from ...actions.holders import AwaitClosed
from ...actions.services import StopByCommand, StopUnits
from ...claims.step import Step
from ...errors import RefusedError
from ...machine import nodes, systemd, vfio
from ...machine.gpu import Gpu
from ...machine.holder import Holder
from ...machine.holders import Search
from ...machine.host import Host


@dataclass(frozen=True)
class PlannedHolder:
    """A process that has a GPU open. becomes is a clause about what becomes of it, or ""."""

    holder: Holder
    becomes: str


def current_holders(host: Host, gpus: Collection[Gpu], siblings: Collection[str]) -> list[Holder]:
    """The processes that have a node of the GPUs open, by process id.

    siblings are the addresses of the other devices of the VM. The QEMU process of a VM that
    has a GPU already is included, with its vfio node.
    """
    wanted = list(nodes.nodes_to_close(host, gpus, siblings))
    for one in gpus:
        wanted += vfio.vfio_nodes(host, one.address) if one.vfio else []
    return Search(host, wanted).holders()


def planned_holders(
    host: Host, steps: tuple[Step, ...], found: list[Holder]
) -> tuple[tuple[PlannedHolder, ...], RefusedError | None]:
    """What becomes of the processes that have a GPU open, and the refusal if they keep it open.

    None instead of a refusal when the wait would succeed.
    """
    wait = next((s.do for s in steps if isinstance(s.do, AwaitClosed) and s.do.nodes), None)
    if wait is None:
        return tuple(PlannedHolder(one, "") for one in found), None
    entries = Entries(host, (DESKTOP,))
    ending = {one.pid: _ending_with(host, one, steps, entries) for one in found}
    refusal = wait.blocked(host, [one for one in found if not ending[one.pid]])
    outcome = f"ended if it is still open after {wait.wait_s:g} s"
    if refusal is not None:
        within = f" within {wait.wait_s:g} s" if wait.wait_s else " first"
        outcome = f"must close it{within}"
        refusal.text += f"; the VM starts if they close it{within}"

    def becomes(one: Holder) -> str:
        if one.sound_server:
            return "closes the sound card when it disappears, or is killed then"
        if one.keeper and not all(other.keeper for other in found):
            return "closes it with the session that has it"
        return "" if one.unknown and not wait.strict else outcome

    return tuple(PlannedHolder(one, ending[one.pid] or becomes(one)) for one in found), refusal


def _ending_with(host: Host, one: Holder, steps: tuple[Step, ...], entries: Entries) -> str:
    """A clause about what is done first, and lets the process close the GPU; or ""."""
    managers = set(systemd.display_managers(host))
    # Not a session at a text console, or by ssh.
    session = one.keeper or entries.matches(one, DESKTOP)
    for step in steps:
        if isinstance(step.do, DropCard):
            # Xwayland has the card from KWin, and closes it with it [lab].
            if one.command in (*step.do.commands, "Xwayland") or one.keeper:
                return f"should close it after the remove event of {step.do.card}"
        elif isinstance(step.do, StopUnits):
            for unit in step.do.units:
                if f"/{unit}/" in f"{one.cgroup}/":
                    return f"stops with {unit}, which is stopped first"
            if session and managers & set(step.do.units):
                return f"should stop with {step.do.units[-1]}, which is stopped first"
        elif isinstance(step.do, StopByCommand) and _is_of(one, step.do.name):
            return f"should stop with {step.do.name}, which is stopped first"
    return ""


def _is_of(one: Holder, service: str) -> bool:
    """Whether a service that commands stop may be that of a process, by its name.

    What else the commands do is not known: they may be for huge pages.
    """
    if service in (one.command, one.unit.rpartition(".")[0]):
        return True
    # Programs of the desktop end with it; OpenRC has each service in a cgroup of its own.
    other = one.cgroup.startswith(("/system.slice/", "/openrc."))
    its_own = one.cgroup.startswith(f"/openrc.{service}")
    return service in systemd.MANAGER_NAMES and (its_own or one.keeper or not other)
