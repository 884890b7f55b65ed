"""Work in a process of its own, and what libvirt would see of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Exit:
    """How a process ended (minus the signal that killed it), and what it left on stderr.

    hung: it was killed because it did not end.
    """

    status: int
    stderr: str
    hung: bool = False

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    def failed(self, what: str) -> str:
        """What to say of it where only success is right; "" for that."""
        return f"{what}: {self}" if self.status else ""

    def wrong(self, status: int | None = None, why: str = "", operation: str = "") -> str:
        """Why libvirt must not get this; "" for 0 and nothing, and for 1 and a sentence.

        status: only that one is right, and why must be in the sentence. Otherwise a process
        that was killed is right, too.
        """
        if self.hung:
            return "it hangs"
        if status is None and self.killed:
            return ""
        if self.status not in ((0, 1) if status is None else (status,)):
            expected = "" if status is None else f", not {status}"
            return f"{operation} ended with {self.status}{expected}: {self.stderr[-400:]!r}".strip()
        if self.status == 0:
            return f"it succeeds, and says {self.stderr!r}" if self.stderr.splitlines() else ""
        return self._no_sentence() or (
            "" if why in self.stderr else f"it does not say {why!r}: {self.stderr!r}"
        )

    def _no_sentence(self) -> str:
        lines = self.stderr.splitlines()
        if len(lines) not in (1, 2) or not lines[0].startswith("vfio-console-hook: "):
            return f"no sentence: {self.stderr[-400:]!r}"
        if not all(line.isprintable() for line in self.stderr.rstrip("\n").split("\n")):
            return f"it steers the terminal: {self.stderr!r}"
        return f"a bug: {self.stderr!r}" if "internal error" in self.stderr else ""


def in_a_process(work: Callable[[], int], stderr: Path, stdout: Path | None = None) -> Exit:
    """Do work in a fork, and wait until that and all that it forked has ended.

    What it prints goes to stdout, or if there is none, to stderr as well.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the fork would write it again
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(reader)
            for number, path in ((1, stdout or stderr), (2, stderr)):
                _open_as(number, path)
            status = work()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(2, f"{type(error).__name__}: {error}".encode(errors="replace"))
        finally:
            os._exit(status)
    os.close(writer)
    try:
        # No process has the other end open any more, or it takes too long.
        hung = not select.select([reader], [], [], _PATIENCE_S)[0]
    finally:
        os.close(reader)
    if hung:
        os.kill(pid, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Exit(ended, stderr.read_text(encoding="utf-8", errors="surrogateescape"), hung)


def _open_as(number: int, path: Path) -> None:
    """Make path, which is emptied, the file of that descriptor; it may be that of others too."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(handle, number)
    os.close(handle)
