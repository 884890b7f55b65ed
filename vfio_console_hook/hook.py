"""What libvirt runs, through the gate, on each event of a VM.

Called as `hook NAME OPERATION SUBOPERATION EXTRA`. In prepare the domain XML is on
stdin; every later event needs the claim and the machine, nothing else: neither XML nor
configuration, lxml nor PyYAML.

Nothing is ever printed on stdout, which is libvirt's. On failure one sentence
goes to stderr, the reason first: virsh shows it (and libvirt 7.0 cuts it off
after some 800 bytes).
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from .claims import history, ownership
from .claims.claim import Claim
from .claims.directory import Claims
from .errors import BugError, HookError, StuckError, cut, understood
from .events import undo
from .log import LONGEST, Log, printable
from .machine import streams, worker
from .machine.host import Host

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from collections.abc import Callable

    from .config.settings import Config
    from .events.assignment import Assignment

IDENT = "vfio-console-hook"
# Their failures are announced: the VM does not start, or not all comes back.
_ANNOUNCED = ("prepare", "start", "release")


class _Event:
    """One event of a VM, and what is known of it so far."""

    def __init__(self, host: Host, name: str, phase: str) -> None:
        self.host = host
        self.name = name
        self.phase = phase
        self.uuid = ""
        self.gpus: tuple[str, ...] = ()
        self.level = "info"
        self.announce: tuple[str, ...] = ("login", "session")
        self.on_refusal = "none"
        self.began = time.monotonic()

    @property
    def log(self) -> Log:
        return Log(
            self.host, self.name, self.level, phase=self.phase, uuid=self.uuid, gpus=self.gpus
        )

    def configured(self, settings: Config | Claim) -> None:
        """Take over what the configuration says of this VM's events, which a claim keeps."""
        self.level = settings.log_level
        self.announce, self.on_refusal = settings.announce, settings.on_refusal

    def remember(self, error: HookError | None = None, places: tuple[str, ...] = ()) -> None:
        """Write down for `status` how the event ended; error is how it failed.

        places are where it is shown to people who are not here.
        """
        took_s = time.monotonic() - self.began
        unseen = history.remember(
            self.host, self.name, self.uuid, self.phase, took_s=took_s, error=error, places=places
        )
        if unseen:
            self.log.warning(unseen)

    def log_failure(self, error: HookError) -> None:
        log = self.log
        log.error(str(error))
        for line in error.trace.splitlines() if isinstance(error, BugError) else ():
            log.error(line)

    def announce_failure(self, error: HookError) -> None:
        """Write a failure down, show it to people who are not here, and run their command."""
        announced = self.phase in _ANNOUNCED
        self.remember(error, self.announce if announced else ())
        if announced and self.on_refusal != "none":
            from .events import on_refusal  # only where a VM is refused

            on_refusal.run(self.on_refusal, self.log, error)


def main(argv: list[str], xml: bytes | None = None, host: Host | None = None) -> int:
    """Handle one event; the exit status for libvirt, 0 or 1.

    argv are the words after the program's name. xml and host replace stdin and the
    running machine in tests.
    """
    handle = _EVENTS.get(" ".join(argv[1:3]))
    if handle is None:
        return 0
    streams.complete()
    event = _Event(host or Host(), argv[0], argv[1])
    try:
        handle(event, xml)
    except Exception as error:
        known = understood(error)
        _print(known)
        event.log_failure(known)
        event.announce_failure(known)
        return 1
    return 0


def _print(error: HookError) -> None:
    # Names of VMs and processes may be in it: neither begins a line or steers a terminal.
    line = f"{IDENT}: {printable(cut(error.text, LONGEST))}"
    line += f"\nhint: {printable(cut(error.hint, LONGEST))}" if error.hint else ""
    try:
        sys.stderr.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
        sys.stderr.flush()
    except OSError:
        pass  # libvirtd has ended, and the log has the same


# -- prepare


def _prepare(event: _Event, xml: bytes | None) -> None:
    if not event.host.privileged:
        _warn_of_session(event, xml)
        return
    from .config import load
    from .events import prepare

    host = event.host
    try:
        assignment = _assignment(event, xml)
        if not (assignment.gpus or Claims(host).find(event.uuid)):
            return
        config = load.configuration(host, event.name, event.uuid)
    except HookError:
        _forget_earlier_run(event)
        raise
    event.configured(config)
    deadline = worker.Deadline(host, config.timeout_s)
    try:
        prepare.prepare_within(deadline, host, assignment, config, event.log)
    except StuckError as error:
        # on_failure is about GPUs that are not free, not about a kernel that is stuck.
        raise _with_line(event, error) from error
    except HookError as error:
        # Nor about a host that is not as it was: libvirt calls release then, which tries again.
        if Claims(host).find(event.uuid) is not None:
            raise
        _start_all_the_same(event, error, config.on_failure)
        return
    event.remember()


def _forget_earlier_run(event: _Event) -> None:
    """Write down that libvirt knows nothing of the run of a claim that is there before prepare.

    It has re-attached nothing, and calls release next, as if this prepare had made the claim.
    """
    try:
        left = Claims(event.host).named(event.name)
        if left is not None:
            ownership.acquire(event.host, left.uuid, "release", forgotten=True)
    except HookError as error:
        event.log.error(f"an earlier run was not released: {error}")


def _assignment(event: _Event, xml: bytes | None) -> Assignment:
    from . import domain
    from .events.assignment import assignment_of

    vm = domain.parse(sys.stdin.buffer.read() if xml is None else xml)
    event.uuid = vm.uuid
    if event.host.privileged:
        Claims(event.host).take_name(event.name, vm.uuid)
    # The gate knows the VM by the name that libvirt gives it, which XML may not keep: a
    # carriage return is a newline there.
    assignment = assignment_of(event.host, replace(vm, name=event.name))
    event.gpus = assignment.gpus
    return assignment


def _warn_of_session(event: _Event, xml: bytes | None) -> None:
    """Do nothing for a VM of qemu:///session, whose hook has no right to; log that once."""
    try:
        gpus = _assignment(event, xml).gpus
    except Exception:
        return  # what cannot be read, for whatever reason, is not for us either
    if gpus:
        event.log.warning(
            "a VM of qemu:///session: only as root the hook can free its GPU from the console,"
            " so nothing is done; define the VM in qemu:///system"
        )


def _start_all_the_same(event: _Event, error: HookError, on_failure: str) -> None:
    """Report an error and no more, if the configuration lets the VM start all the same."""
    if on_failure == "abort":
        raise error
    event.log_failure(error)
    event.remember(error)
    event.log.warning("the VM starts all the same, as configured by on_failure")


def _with_line(event: _Event, error: StuckError) -> HookError:
    line = undo.last_change(event.host, event.uuid)
    return error.adding(f" since `{line}`" if line else "")


# -- what follows it


def _start(event: _Event, xml: bytes | None) -> None:
    from .events.start import start

    _with_claim(event, start)


def _started(event: _Event, xml: bytes | None) -> None:
    from .events.start import started

    _with_claim(event, started)


def _stopped(event: _Event, xml: bytes | None) -> None:
    from .events.stopped import stopped

    _with_claim(event, stopped)


def _release(event: _Event, xml: bytes | None) -> None:
    from .events.release import release

    _with_claim(event, release)


def _with_claim(event: _Event, act: Callable[[Claim, Log, worker.Supervisor], None]) -> None:
    """Act on an event that only concerns a VM that holds something."""
    if not event.host.privileged:
        return
    held = Claims(event.host).named(event.name)
    if held is None:
        return
    event.uuid, event.gpus = held.uuid, held.gpus
    event.configured(held)
    deadline = worker.Deadline(event.host, held.timeout_s)
    try:
        # A VM that libvirt's daemon, started anew, has found running has started before.
        phase = "started" if event.phase == "reconnect" else event.phase
        claim = ownership.acquire(event.host, held.uuid, phase)
        if claim is None:
            return
        act(claim, event.log, deadline.run)
    except StuckError as error:
        raise _with_line(event, error) from error
    except HookError as error:
        if event.phase != "start":
            raise
        _start_all_the_same(event, error, held.on_failure)
        return
    event.remember()


_EVENTS = {
    "prepare begin": _prepare,
    "start begin": _start,
    "started begin": _started,
    "reconnect begin": _started,
    "stopped end": _stopped,
    "release end": _release,
}
