"""Services that use the GPU: stopped before it leaves, and started again when it is back.

A display manager has the GPU open while it runs, and so have the daemons of GPU vendors,
with every driver and release. Only the administrator knows which ones do on this host;
it is not checked whether a service uses the GPU. So all that are listed and run are
stopped, once for the VM and before anything else. The person loses them while the VM
runs, and with a display manager the session.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..actions.services import (
    StartByCommand,
    StartUnits,
    StopByCommand,
    StopUnits,
    is_running,
)
from ..claims.step import Step
from ..config.service import DETACHED, Service
from ..errors import RefusedError, nearest
from ..machine import systemd
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.systemd import Unit
from .handover import Handover

NAME = "services"

# Stopping one of these would deadlock: it waits for the hook, which waits for the stop.
CALLERS = ("libvirtd.service", "virtqemud.service")

# OpenRC and sysvinit: each script takes these words, and is what `rc-service NAME` and
# `service NAME` run. `status` exits with 0 while the service runs, for OpenRC
# (sh/openrc-run.sh, _status) and by LSB ("Init Script Actions").
INIT_SCRIPTS = "etc/init.d"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """A step for each service that runs, in the order of the configuration.

    Where systemd does not run the host, a name is that of an init script. Raises RefusedError
    when there is none, HostError when the state of the services cannot be read.
    """
    services = handover.config.services
    first = next(one for one in handover.gpus if not one.virtual)
    if not services or gpu.address != first.address:
        return
    if not systemd.booted(host):
        services = tuple(one if one.stop else by_init_script(host, one) for one in services)
    # The rest of the timeout is for the holders, the consoles, and undoing all of it.
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


def _units(host: Host, services: tuple[Service, ...]) -> dict[str, Unit]:
    """The units of systemd among the services, by the names in the configuration."""
    names = [service.name for service in services if not service.stop]
    return dict(zip(names, systemd.units(host, names)))


def by_init_script(host: Host, service: Service) -> Service:
    """The service with the commands of its init script. Raises RefusedError when it has none."""
    name = service.name.removesuffix(".service")
    if f"{name}.service" in CALLERS:
        raise RefusedError(
            f"{name} cannot be stopped for a VM, as it starts the VM",
            hint="remove it from `services`",
        )
    script = f"{INIT_SCRIPTS}/{name}"
    if "/" in name or not host.exists(script):
        near = nearest(name, sorted(host.list(INIT_SCRIPTS)))
        raise RefusedError(
            f"the service {name} cannot be stopped: this host does not run systemd, and there is"
            f" no /{script}",
            hint=f"did you mean {near}?"
            if near
            else "configure commands for it, see `services` in default.yaml",
        )
    active, stop, start = ((f"/{script}", verb) for verb in ("status", "stop", "start"))
    return replace(service, name=name, active=active, stop=stop, start=start)


def _by_systemd(
    host: Host, gpu: Gpu, service: Service, unit: Unit, wait_s: float
) -> Iterator[Step]:
    shown = unit.name
    if unit.name not in (service.name, f"{service.name}.service"):
        shown += f" ({service.name})"  # an alias, such as display-manager
    if not unit.startable:
        why = _why_not_stopped(host, unit, shown)
        if why:
            yield Step(stage=NAME, gpu=gpu.address, why=why, do=None, undo=None)
        return
    if not unit.running:
        return
    together = systemd.stopped_with(host, unit)
    for name in CALLERS:
        if name in together:
            raise RefusedError(
                f"{shown} cannot be stopped for a VM: {name}, which starts the VM, would stop too",
                hint="remove it from `services`",
            )
    others = [name for name in together if name != unit.name]
    state = "is about to start" if unit.active == "inactive" else "is running"
    bound = f" with {' and '.join(others)}" if others else ""
    detached = service.start_again == DETACHED
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"{shown} {state}: stopped{bound} for the VM, and started again {_when(detached)}",
        do=StopUnits(together, wait_s),
        undo=StartUnits(together, detached),
    )


def _why_not_stopped(host: Host, unit: Unit, shown: str) -> str:
    """Why a unit that systemd would not start again is not stopped; "" if it does not run."""
    if unit.running:
        state = "gone" if unit.loaded == "not-found" else unit.loaded
        return f"{shown} is not stopped: its unit is {state}, so it could not be started again"
    if unit.loaded != "not-found":
        return ""
    near = systemd.similar_unit(host, unit.name)
    return f"there is no unit {unit.name}" + (f", did you mean {near}?" if near else "")


def _by_command(host: Host, gpu: Gpu, service: Service, wait_s: float) -> Iterator[Step]:
    if is_running(host, service.active):
        detached = service.start_again == DETACHED
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{service.name} is running: stopped for the VM, and started again"
            f" {_when(detached)}",
            do=StopByCommand(service.name, service.active, service.stop, wait_s),
            undo=StartByCommand(service.name, service.active, service.start, detached),
        )


def _when(detached: bool) -> str:
    return "as soon as the GPU has left" if detached else "after it"
