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

from ..errors import CutOffError, StuckError, error_of, understood
from . import processes, streams
from .host import Host
from .processes import Process

KILL_GRACE_S = 2.0
"""How long killed processes may take to be gone."""

# Even a look at console state can block for ever, when a driver holds the console lock.
_LOOK_S = 30.0


Supervisor = Callable[[Callable[[], None]], None]
"""Lets work be done in its own way: Deadline.run in another process, or call."""


def call(work: Callable[[], None]) -> None:
    """The Supervisor that watches over nothing."""
    work()


class Deadline:
    """The time for one event of a VM, counted from now, killing included.

    stop is a descriptor; what can be read from it cuts the work off before that.
    """

    def __init__(self, host: Host, timeout_s: float, stop: int | None = None) -> None:
        self._host = host
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s
        self._stop = stop

    def run(self, work: Callable[[], None]) -> None:
        """Run work in what is left of the time; raises what worker.run raises."""
        run(work, self._left_s, self._stop)

    def run_but_spare(self, work: Callable[[], None]) -> None:
        """The same, but leave a quarter of the whole for undoing what it did."""
        timeout_s = max(self._left_s - self._timeout_s / 4, 0.0)

        def within() -> None:
            # A wait in there ends before the worker is killed: it knows which process it waits for.
            self._host.give_up_after(timeout_s - self._grace_s)
            work()

        run(within, timeout_s, self._stop)

    @property
    def _left_s(self) -> float:
        return max(self._end - time.monotonic() - self._grace_s, 0.0)

    @property
    def _grace_s(self) -> float:
        return min(KILL_GRACE_S, self._timeout_s / 10)


def run(work: Callable[[], str | None], timeout_s: float, stop: int | None = None) -> str:
    """Run work in a child process for at most timeout_s; the text that it returns.

    stop is as for Deadline: the bytes that cut the work off are read.

    The child leads a session of its own, so that the programs it started can be
    found and killed with it. Raises what the work raised, of the same class;
    CutOffError when it did not end by itself; StuckError when it, or a program it
    started, cannot be killed.
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
        answer = _read_all(reader, time.monotonic() + timeout_s, stop)
    finally:
        os.close(reader)
    if answer is None:
        _kill(pid)
        if stopped(stop):
            os.read(stop or 0, 4096)
            raise CutOffError("stopped on request")
        raise CutOffError(
            f"timed out after {round(timeout_s, 1):g} s",
            hint="increase `timeout_s`, or look into `journalctl -k`",
        )
    os.waitpid(pid, 0)
    try:
        result = json.loads(answer)
    except ValueError as error:  # nothing, or the first part of a long answer
        raise CutOffError(
            "the worker process died before it was done", hint="look into `journalctl -k`"
        ) from error
    if "error" in result:
        raise error_of(result["error"])
    return str(result["text"])


def look(work: Callable[[], str | None]) -> str:
    """Run work that only looks, for a person who waits; raises what run() raises."""
    return run(work, _LOOK_S)


def detach(work: Callable[[], None]) -> None:
    """Let a process do work that nothing waits for; what it raises is lost.

    It leads a session of its own, and init is its parent.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)  # which ends at once
        return
    try:
        if os.fork() == 0:
            os.setsid()
            streams.lead_nowhere(0, 1, 2)  # libvirt waits for the end of them
            work()
    finally:
        os._exit(0)


def _child(work: Callable[[], str | None], writer: int) -> None:
    # libvirt waits for the end of our stdout and stderr, not for our exit
    # (virCommandProcessIO): a child that is stuck must not hold them.
    streams.lead_nowhere(0, 1, 2)
    try:
        result: dict[str, object] = {"text": work() or ""}
    except Exception as error:
        result = {"error": understood(error).to_json()}
    content = json.dumps(result).encode()
    while content:
        content = content[os.write(writer, content) :]


def stopped(stop: int | None) -> bool:
    """Whether there is something to read from a descriptor that stops the work."""
    return stop is not None and bool(select.select([stop], [], [], 0)[0])


def _read_all(reader: int, deadline: float, stop: int | None) -> bytes | None:
    """What the child wrote until it closed the pipe; None when it is cut off first."""
    answer = b""
    sources = [reader] if stop is None else [reader, stop]
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or reader not in select.select(sources, [], [], left)[0] or stopped(stop):
            return None
        part = os.read(reader, 65536)
        if not part:
            return answer
        answer += part


def _kill(child: int) -> None:
    """Kill a child of ours and what it started. Raises StuckError when the kernel keeps one."""
    host = Host()
    # Not waited for before the end, the child keeps its number, and its session's.
    ended = False

    def left() -> tuple[Process, ...]:
        nonlocal ended
        ended = ended or _has_ended(child)
        return processes.in_session(host, child)

    _kill_all(host, left, lambda: ended, f"process {child}")
    os.waitpid(child, 0)


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def left_of(host: Host, worker: tuple[int, int]) -> tuple[Process, ...]:
    """What still runs of a worker (pid, start in ticks) whose hook has died: it, its programs."""
    if not worker[1]:
        return ()
    itself = processes.find(host, worker[0])
    alive = (itself,) if itself is not None and itself.started == worker[1] else ()
    return (*alive, *processes.programs_of(host, worker))


def stop(host: Host, worker: tuple[int, int]) -> None:
    """Kill what is left of a worker. Raises StuckError for what the kernel does not let go of."""
    _kill_all(host, lambda: left_of(host, worker), lambda: True, "")


def _kill_all(
    host: Host, left: Callable[[], tuple[Process, ...]], ended: Callable[[], bool], leader: str
) -> None:
    """Kill the processes that left() finds until it finds none, and ended() too."""
    deadline = time.monotonic() + KILL_GRACE_S
    while (found := left()) or not ended():
        for process in found:
            processes.kill(host, process)
        if time.monotonic() >= deadline:
            raise StuckError(
                f"the kernel is stuck ({processes.stuck_in(host, found[0]) if found else leader})",
                hint="save your work and reboot the host; the GPU is in an unknown state",
            )
        time.sleep(0.02)
