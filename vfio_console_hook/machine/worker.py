"""A deadline for work that talks to the kernel.

A read of console state or an unbind can block for ever. The work runs in a child
process; this one waits for it, and never for a child that the kernel does not
let go of (state D), because libvirtd waits for us with the VM locked.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable

from ..errors import BugError, HookError, StuckError
from . import processes, streams
from .host import Host

KILL_GRACE_S = 2.0
"""How long killed processes may take to be gone."""

# Even a look at console state can block for ever, when a driver holds the console lock.
_LOOK_S = 30.0


class CutOffError(HookError):
    """The work did not come to its end; it no longer runs."""


class Deadline:
    """The time for one event of a VM, counted from now, killing included."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def run(self, work: Callable[[], None]) -> None:
        """Run work in what is left of the time; raises what worker.run raises."""
        run(work, max(self._end - time.monotonic() - self._grace_s, 0.0))

    def run_but_spare(self, work: Callable[[], None]) -> None:
        """The same, but leave a quarter of the whole for undoing what it did."""
        spared_s = self._timeout_s / 4
        run(work, max(self._end - time.monotonic() - spared_s - self._grace_s, 0.0))

    @property
    def _grace_s(self) -> float:
        return min(KILL_GRACE_S, self._timeout_s / 10)


def run(work: Callable[[], str | None], timeout_s: float) -> str:
    """Run work in a child process for at most timeout_s; the text that it returns.

    The child leads a session of its own, so that the programs it started can be
    found and killed with it. Raises HookError with what the work raised, text and
    hint; CutOffError when it did not end by itself; StuckError when it, or a
    program it started, cannot be killed.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(reader)
            _child(work, writer)
        finally:
            # Whatever happens, the child must never return into the supervisor's
            # code; and the interpreter's ending could wait for what we cannot stop.
            os._exit(0)
    os.close(writer)
    try:
        answer = _read_all(reader, time.monotonic() + timeout_s)
    finally:
        os.close(reader)
    if answer is None:
        _kill(pid)
        raise CutOffError(
            "not done in time, and given up",
            hint="raise `timeout_s`, or look into `journalctl -k`",
        )
    os.waitpid(pid, 0)
    if not answer:
        raise CutOffError(
            "the worker process died before it was done", hint="look into `journalctl -k`"
        )
    return _outcome(json.loads(answer))


def look(work: Callable[[], str | None]) -> str:
    """Run work that only looks, for a person who waits; raises what run() raises."""
    return run(work, _LOOK_S)


def _child(work: Callable[[], str | None], writer: int) -> None:
    # libvirt waits for the end of our stdout and stderr, not for our exit
    # (virCommandProcessIO): a child that is stuck must not hold them.
    streams.lead_nowhere(0, 1, 2)
    try:
        result = {"text": work() or ""}
    except HookError as error:
        kind = "stuck" if isinstance(error, StuckError) else ""
        result = {"error": error.text, "hint": error.hint, "kind": kind}
    except Exception as error:
        bug = BugError.of(error)
        result = {"error": bug.text, "hint": bug.hint, "trace": bug.trace}
    content = json.dumps(result).encode()
    while content:
        content = content[os.write(writer, content) :]


def _outcome(result: dict[str, str]) -> str:
    """What the work returned; raises what it raised."""
    if "trace" in result:
        raise BugError(result["error"], result["hint"], trace=result["trace"])
    if "error" in result:
        kind = StuckError if result["kind"] == "stuck" else HookError
        raise kind(result["error"], result["hint"])
    return result["text"]


def _read_all(reader: int, deadline: float) -> bytes | None:
    """What the child wrote until it closed the pipe; None when the deadline passes first."""
    answer = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return None
        part = os.read(reader, 65536)
        if not part:
            return answer
        answer += part


def _kill(pid: int) -> None:
    """Kill the child and what it started. Raises StuckError when the kernel keeps one of them."""
    host = Host()
    host.kill(pid)
    stop_session(host, pid, lambda: bool(os.waitpid(pid, os.WNOHANG)[0]))


def stop_session(host: Host, session: int, reap: Callable[[], bool] = lambda: True) -> None:
    """Kill every process of a session and see them gone. Raises StuckError for one that stays.

    reap says whether the leader has been waited for, if it is a child of ours.
    """
    deadline = time.monotonic() + KILL_GRACE_S
    reaped = False
    while True:
        reaped = reaped or reap()
        left = processes.in_session(host, session)
        if reaped and not left:
            return
        for process in left:
            host.kill(process.pid)
        if time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    where = processes.stuck_in(host, left[0]) if left else f"process {session}"
    raise StuckError(
        f"the kernel is stuck ({where})",
        hint="save your work and reboot the host; the GPU is in an unknown state",
    )
