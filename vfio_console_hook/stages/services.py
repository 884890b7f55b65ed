"""Services that use the GPU: stopped before it leaves, and started again when it is back.

A display manager has the GPU open as long as it runs, and so have the daemons of
GPU makers. Which ones do on this host, only the administrator knows; what a service
does with the GPU is not asked, so all that are listed and run are stopped, once for
the VM and before anything else.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..config.settings import Service
from ..errors import RefusedError
from ..machine.gpu import Gpu
from ..machine.host import Host
from .handover import Handover

NAME = "services"

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from ..machine.systemd import Unit

# Whoever lists one of these would wait for it while it waits for the hook.
_CALLERS = ("libvirtd.service", "virtqemud.service")


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """A step for each service that runs, in the order of the configuration.

    Raises RefusedError for a unit where systemd does not run the host, HostError
    when it cannot be told how the services are.
    """
    services = handover.config.services
    first = next(one for one in handover.gpus if not one.virtual)
    if not services or gpu.address != first.address:
        return
    # What is left of the deadline is for the holders, the consoles, and the way back.
    wait_s = handover.config.timeout_s / 2
    units = _units(host, services)
    seen: set[str] = set()
    for service in services:
        if service.stop:
            yield from _by_command(host, gpu, service, wait_s)
        elif units[service.name].name not in seen:
            unit = units[service.name]
            seen.add(unit.name)
            yield from _by_systemd(host, gpu, service, unit, wait_s)


def started_again(steps: tuple[Step, ...]) -> tuple[str, ...]:
    """The names of what these steps of prepare let release start, in its order."""
    undos = [step.undo for step in reversed(steps) if step.stage == NAME and step.undo]
    if not undos:
        return ()
    from ..actions.services import StartByCommand, StartUnits

    names: list[str] = []
    for undo in undos:
        names += undo.units if isinstance(undo, StartUnits) else ()
        names += [undo.name] if isinstance(undo, StartByCommand) else ()
    return tuple(names)


def _units(host: Host, services: tuple[Service, ...]) -> dict[str, Unit]:
    """How the services that are units of systemd are, by the names in the configuration."""
    from ..machine import systemd  # only VMs with services need it

    names = [service.name for service in services if not service.stop]
    if names and not systemd.booted(host):
        raise RefusedError(
            f"the service {names[0]} cannot be stopped: systemd does not run this host",
            hint="give the commands for it, as default.yaml shows under `services`",
        )
    return dict(zip(names, systemd.units(host, names)))


def _by_systemd(
    host: Host, gpu: Gpu, service: Service, unit: Unit, wait_s: float
) -> Iterator[Step]:
    from ..actions.services import StartUnits, StopUnits
    from ..machine import systemd

    shown = unit.name
    if unit.name not in (service.name, f"{service.name}.service"):
        shown += f" ({service.name})"  # an alias, such as display-manager
    if not unit.startable:
        why = _why_left_alone(host, unit, shown)
        if why:
            yield Step(stage=NAME, gpu=gpu.address, why=why, do=None, undo=None)
        return
    if not unit.running:
        return
    together = systemd.stopped_with(host, unit)
    for name in _CALLERS:
        if name in together:
            raise RefusedError(
                f"{shown} cannot be stopped for a VM: {name} would go down, which starts the VM",
                hint="take it out of `services`",
            )
    others = [name for name in together if name != unit.name]
    state = "is about to start" if unit.active == "inactive" else "runs"
    bound = f" with {' and '.join(others)}" if others else ""
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"{shown} {state}: it is stopped{bound}, and starts again after the VM",
        do=StopUnits(together, wait_s),
        undo=StartUnits(together),
    )


def _why_left_alone(host: Host, unit: Unit, shown: str) -> str:
    from ..machine import systemd

    if unit.running:
        state = "gone" if unit.loaded == "not-found" else unit.loaded
        return f"{shown} runs and is left alone: its unit is {state}, so it would not start again"
    if unit.loaded != "not-found":
        return ""
    near = systemd.similar_unit(host, unit.name)
    return f"there is no unit {unit.name}" + (f", did you mean {near}?" if near else "")


def _by_command(host: Host, gpu: Gpu, service: Service, wait_s: float) -> Iterator[Step]:
    from ..actions.services import StartByCommand, StopByCommand, runs

    if runs(host, service.active):
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{service.name} runs: it is stopped, and starts again after the VM",
            do=StopByCommand(service.name, service.active, service.stop, wait_s),
            undo=StartByCommand(service.name, service.active, service.start),
        )
