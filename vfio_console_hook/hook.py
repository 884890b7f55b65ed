"""What libvirt runs, through the gate, on each event of a VM.

Called as `hook NAME OPERATION SUBOPERATION EXTRA` with the domain XML on stdin.
Nothing is ever printed on stdout, which is libvirt's. On failure one sentence
goes to stderr, the reason first: virsh shows it (and libvirt 7.0 cuts it off
after some 800 bytes).
"""

from __future__ import annotations

import sys

from . import worker
from .errors import BugError, HookError, StuckError
from .host import Host

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Config
    from .events import Supervisor
    from .log import Log

IDENT = "vfio-console-hook"


def main(argv: list[str], xml: bytes | None = None, host: Host | None = None) -> int:
    """Handle one event; the exit status for libvirt, 0 or 1.

    argv are the words after the program's name. xml and host stand in for stdin
    and the running machine in tests.
    """
    handle = _EVENTS.get(" ".join(argv[1:3]))
    if handle is None:
        return 0
    host = host or Host()
    try:
        handle(host, argv[0], sys.stdin.buffer.read() if xml is None else xml)
    except Exception as error:
        told = error if isinstance(error, HookError) else BugError.of(error)
        _tell(told)
        _report(host, argv[0], argv[1], told)
        return 1
    return 0


def _tell(error: HookError) -> None:
    line = f"{IDENT}: {error.text}" + (f"\nhint: {error.hint}" if error.hint else "")
    sys.stderr.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
    sys.stderr.flush()


def _report(host: Host, name: str, event: str, error: HookError) -> None:
    """Write a failure to the log and to the status file."""
    from . import journal
    from .log import Log

    log = Log(host, name)
    log.error(f"{event}: {error}")
    for line in error.trace.splitlines() if isinstance(error, BugError) else ():
        log.error(line)
    journal.write_status(host, log.vm, event, error.text)


def _prepare(host: Host, name: str, xml: bytes) -> None:
    from . import config, domain, events, gpu, journal
    from .log import Log

    parsed = domain.parse(xml)
    held = journal.Journal(host).find(parsed.uuid) is not None
    addresses = [hostdev.address for hostdev in parsed.hostdevs]
    displays = [one for one in addresses if gpu.display_class(host, one) is not None]
    if not (displays or held):
        return
    settings = config.load(host, name, parsed.uuid)
    log = Log(host, name, settings.log_level)
    deadline = worker.Deadline(settings.timeout_s)
    try:
        try:
            events.prepare(host, parsed, settings, log, deadline.run_but_spare)
        except worker.CutOffError as error:
            line = events.asked_for(host, parsed.uuid)
            error.text += f", at `{line}`" if line else ""
            _undo_cut_off(host, parsed.uuid, log, deadline)
            raise
    except StuckError as error:
        # on_failure is about GPUs that are not free, not about a kernel that is stuck.
        raise _told_stuck(host, parsed.uuid, error) from error
    except HookError as error:
        if settings.on_failure == "abort":
            raise
        _report(host, name, "prepare", error)
        log.warning("the VM starts all the same, as configured by on_failure")
        return
    journal.write_status(host, log.vm, "prepare", "")


def _told_stuck(host: Host, uuid: str, error: StuckError) -> StuckError:
    from . import events

    line = events.asked_for(host, uuid)
    return StuckError(error.text + (f" since `{line}`" if line else ""), error.hint)


def _undo_cut_off(host: Host, uuid: str, log: Log, deadline: worker.Deadline) -> None:
    """Undo what a prepare did that was cut off in the middle."""
    from . import events

    try:
        events.release(host, uuid, log, deadline.run)
    except HookError as second:
        log.error(f"what was done could not be undone: {second}")
        if isinstance(second, StuckError):
            raise


def _start(host: Host, name: str, xml: bytes) -> None:
    from . import events

    _with_claim(host, name, xml, "start", events.start)


def _check(host: Host, name: str, xml: bytes) -> None:
    from . import events

    _with_claim(host, name, xml, "started", events.check)


def _release(host: Host, name: str, xml: bytes) -> None:
    from . import events

    _with_claim(host, name, xml, "release", events.release)


def _with_claim(
    host: Host, name: str, xml: bytes, event: str, act: Callable[[Host, str, Log, Supervisor], None]
) -> None:
    """Act on an event that only concerns a VM that holds something."""
    from . import domain, journal
    from .log import Log

    uuid = domain.parse(xml).uuid
    if journal.Journal(host).find(uuid) is None:
        return
    settings = _settings(host, name, uuid)
    log = Log(host, name, settings.log_level)
    try:
        act(host, uuid, log, worker.Deadline(settings.timeout_s).run)
    except StuckError as error:
        raise _told_stuck(host, uuid, error) from error
    journal.write_status(host, log.vm, event, "")


def _settings(host: Host, name: str, uuid: str) -> Config:
    """The VM's configuration; the defaults if somebody broke it while the VM ran."""
    from . import config
    from .log import Log

    try:
        return config.load(host, name, uuid)
    except HookError as error:
        Log(host, name).warning(f"going on with the default configuration: {error}")
        return config.Config()


_EVENTS = {
    "prepare begin": _prepare,
    "start begin": _start,
    "started begin": _check,
    "reconnect begin": _check,
    "release end": _release,
}
