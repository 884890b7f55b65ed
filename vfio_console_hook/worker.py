"""A deadline for work that talks to the kernel.

A read of console state or an unbind can block for ever. The work runs in a child
process; this one waits for it, and never for a child that the kernel does not
let go of (state D), because libvirtd waits for us with the VM locked.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable

from .errors import BugError, HookError

# How long a killed child may take to be gone. One in state D never is.
_KILL_GRACE_S = 2.0


class CutOffError(HookError):
    """The work did not come to its end. stuck is the process that cannot be killed, or 0."""

    def __init__(self, text: str, hint: str = "", *, stuck: int = 0) -> None:
        super().__init__(text, hint)
        self.stuck = stuck


def run(work: Callable[[], None], timeout_s: float) -> None:
    """Run work in a child process for at most timeout_s.

    Raises HookError with what the work raised, text and hint, or CutOffError.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
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
        raise _kill(pid, timeout_s)
    os.waitpid(pid, 0)
    if not answer:
        raise CutOffError(
            "the worker process died before it was done", hint="look into `journalctl -k`"
        )
    result = json.loads(answer)
    if "trace" in result:
        raise BugError(result["error"], result["hint"], trace=result["trace"])
    if "error" in result:
        raise HookError(result["error"], result["hint"])


def _child(work: Callable[[], None], writer: int) -> None:
    # libvirt waits for the end of our stdout and stderr, not for our exit
    # (virCommandProcessIO): a child that is stuck must not hold them.
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    try:
        work()
        result: dict[str, str] = {}
    except HookError as error:
        result = {"error": error.text, "hint": error.hint}
    except Exception as error:
        bug = BugError.of(error)
        result = {"error": bug.text, "hint": bug.hint, "trace": bug.trace}
    os.write(writer, json.dumps(result).encode())


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


def _kill(pid: int, timeout_s: float) -> CutOffError:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_GRACE_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return CutOffError(
                f"not done within {timeout_s:g} s",
                hint="raise `timeout_s`, or look into `journalctl -k`",
            )
        time.sleep(0.02)
    return CutOffError(
        f"the kernel did not answer within {timeout_s:g} s, and process {pid} is stuck in it",
        hint="save your work and reboot; the VM's GPU is in an unknown state",
        stuck=pid,
    )
