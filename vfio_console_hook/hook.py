"""What libvirt runs, through the gate, on each event of a VM.

Called as `hook NAME OPERATION SUBOPERATION EXTRA` with the domain XML on stdin.
Nothing is ever printed on stdout, which is libvirt's. On failure one sentence
goes to stderr, the reason first: virsh shows it (and libvirt 7.0 cuts it off
after some 800 bytes).
"""

from __future__ import annotations

import sys
import time

from .errors import BugError, HookError, StuckError, cut
from .machine import streams, worker
from .machine.host import Host

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from collections.abc import Callable

    from .config.settings import Config
    from .domain import Domain
    from .events.events import Supervisor
    from .log import Log

IDENT = "vfio-console-hook"


class _Event:
    """One event of a VM, and what is known of it so far."""

    def __init__(self, host: Host, name: str, phase: str) -> None:
        self.host = host
        self.name = name
        self.phase = phase
        self.uuid = ""
        self.gpus: tuple[str, ...] = ()
        self.level = "info"
        self.began = time.monotonic()

    @property
    def log(self) -> Log:
        from .log import Log

        return Log(
            self.host, self.name, self.level, phase=self.phase, uuid=self.uuid, gpus=self.gpus
        )

    def remember(self, error: HookError | None = None) -> None:
        """Leave word of how it ended; error is how it failed."""
        from .claims import history

        took_s = time.monotonic() - self.began
        untold = history.remember(
            self.host, self.name, self.uuid, self.phase, took_s=took_s, error=error
        )
        if untold:
            self.log.warning(f"`vfio-console-hook status` will not know of this: {untold}")

    def report(self, error: HookError) -> None:
        """Write a failure to the log, and leave word of it."""
        log = self.log
        log.error(str(error))
        for line in error.trace.splitlines() if isinstance(error, BugError) else ():
            log.error(line)
        self.remember(error)


def main(argv: list[str], xml: bytes | None = None, host: Host | None = None) -> int:
    """Handle one event; the exit status for libvirt, 0 or 1.

    argv are the words after the program's name. xml and host stand in for stdin
    and the running machine in tests.
    """
    handle = _EVENTS.get(" ".join(argv[1:3]))
    if handle is None:
        return 0
    streams.complete()
    event = _Event(host or Host(), argv[0], argv[1])
    if not event.host.privileged:
        return _stand_aside(event, xml)
    try:
        from . import domain

        vm = domain.parse(_given(xml))
        event.uuid = vm.uuid
        handle(event, vm)
    except Exception as error:
        told = error if isinstance(error, HookError) else BugError.of(error)
        _tell(told)
        event.report(told)
        return 1
    return 0


def _given(xml: bytes | None) -> bytes:
    return sys.stdin.buffer.read() if xml is None else xml


def _tell(error: HookError) -> None:
    from .log import LONGEST, printable

    # Names of VMs and processes may be in it: neither begins a line or steers a terminal.
    line = f"{IDENT}: {printable(cut(error.text, LONGEST))}"
    line += f"\nhint: {printable(cut(error.hint, LONGEST))}" if error.hint else ""
    try:
        sys.stderr.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
        sys.stderr.flush()
    except OSError:
        pass  # libvirtd has ended, and the log tells as much


def _stand_aside(event: _Event, xml: bytes | None) -> int:
    """Do nothing for a VM of qemu:///session, whose hook has no right to; say so once. 0."""
    if event.phase != "prepare":
        return 0
    from . import domain

    try:
        vm = domain.parse(_given(xml))
        event.uuid, event.gpus = vm.uuid, _gpus(event.host, vm)
    except Exception:
        return 0  # what cannot be read, for whatever reason, concerns us even less
    if event.gpus:
        event.log.warning(
            "a VM of qemu:///session: only as root the hook can free its GPU from the console,"
            " so nothing is done; define the VM in qemu:///system"
        )
    return 0


def _gpus(host: Host, vm: Domain) -> tuple[str, ...]:
    from .machine import gpu

    addresses = (hostdev.address for hostdev in vm.hostdevs)
    return tuple(one for one in addresses if gpu.display_class(host, one) is not None)


def _prepare(event: _Event, vm: Domain) -> None:
    from .claims.claim import Claims
    from .config import load
    from .events import events

    host = event.host
    held = Claims(host).find(vm.uuid) is not None
    event.gpus = _gpus(host, vm)
    if not (event.gpus or held):
        return
    settings = load.configuration(host, event.name, vm.uuid)
    event.level = settings.log_level
    deadline = worker.Deadline(settings.timeout_s)
    try:
        events.prepare_within(deadline, host, vm, settings, event.log)
    except StuckError as error:
        # on_failure is about GPUs that are not free, not about a kernel that is stuck.
        raise _told_stuck(event, error) from error
    except HookError as error:
        # Nor about a host that is not as it was: libvirt calls release then, which tries again.
        if settings.on_failure == "abort" or Claims(host).find(vm.uuid) is not None:
            raise
        event.report(error)
        event.log.warning("the VM starts all the same, as configured by on_failure")
        return
    event.remember()


def _told_stuck(event: _Event, error: StuckError) -> StuckError:
    from .events import undo

    line = undo.asked_for(event.host, event.uuid)
    return StuckError(error.text + (f" since `{line}`" if line else ""), error.hint)


def _start(event: _Event, vm: Domain) -> None:
    from .events import events

    _with_claim(event, events.start)


def _check(event: _Event, vm: Domain) -> None:
    from .events import events

    _with_claim(event, events.check)


def _release(event: _Event, vm: Domain) -> None:
    from .events import events

    _with_claim(event, events.release)


def _with_claim(event: _Event, act: Callable[[Host, str, Log, Supervisor], None]) -> None:
    """Act on an event that only concerns a VM that holds something."""
    from .claims.claim import Claims

    claim = Claims(event.host).find(event.uuid)
    if claim is None:
        return
    event.gpus = claim.gpus
    settings = _settings(event)
    event.level = settings.log_level
    try:
        act(event.host, event.uuid, event.log, worker.Deadline(settings.timeout_s).run)
    except StuckError as error:
        raise _told_stuck(event, error) from error
    event.remember()


def _settings(event: _Event) -> Config:
    """The VM's configuration; the defaults if somebody broke it while the VM ran."""
    from .config import load, settings

    try:
        return load.configuration(event.host, event.name, event.uuid)
    except HookError as error:
        event.log.warning(f"going on with the default configuration: {error}")
        return settings.Config()


_EVENTS = {
    "prepare begin": _prepare,
    "start begin": _start,
    "started begin": _check,
    "reconnect begin": _check,
    "release end": _release,
}
