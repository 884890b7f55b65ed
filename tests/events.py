"""Each event of a VM as the hook runs it, in this process and without a deadline."""

from __future__ import annotations

from vfio_console_hook.claims import ownership
from vfio_console_hook.claims.step import Step
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import Domain
from vfio_console_hook.events import prepare as preparing
from vfio_console_hook.events import release as releasing
from vfio_console_hook.events import start as starting
from vfio_console_hook.events import stopped as stopping
from vfio_console_hook.events.assignment import assignment_of
from vfio_console_hook.log import Log
from vfio_console_hook.machine import console
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.worker import Supervisor, call
from vfio_console_hook.stages.handover import Handover


def prepare(host: Host, domain: Domain, config: Config, log: Log, run: Supervisor = call) -> None:
    preparing.prepare(host, assignment_of(host, domain), config, log, run)


def look(host: Host, domain: Domain, config: Config) -> tuple[Handover, tuple[Step, ...]]:
    """What prepare would do; nothing is changed."""
    return preparing.look_ahead(host, assignment_of(host, domain), config)


def start(host: Host, uuid: str, log: Log, run: Supervisor = call) -> None:
    claim = ownership.acquire(host, uuid, "start")
    if claim is not None:
        starting.start(claim, log, run)


def check(host: Host, uuid: str, log: Log, run: Supervisor = call) -> None:
    claim = ownership.acquire(host, uuid, "started")
    if claim is not None:
        starting.started(claim, log, run)


def stop(host: Host, uuid: str, log: Log, run: Supervisor = call) -> None:
    if console.has_fb_devices(host):
        return
    claim = ownership.acquire(host, uuid, "stopped")
    if claim is not None:
        stopping.stopped(claim, log, run)


def release(
    host: Host, uuid: str, log: Log, run: Supervisor = call, *, forgotten: bool = False
) -> None:
    claim = ownership.acquire(host, uuid, "release", forgotten=forgotten)
    if claim is not None:
        releasing.release(claim, log, run)
