"""Output while a command runs, and what Ctrl-C leaves behind."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from ..errors import HookError
from ..log import Log, printable
from ..machine import console, streams, worker
from ..machine.host import Host


def say(line: str) -> None:
    """Print a line at once; go on if stdout cannot be written to any more."""
    try:
        print(printable(line), flush=True)
    except OSError:
        streams.give_up_stdout()


def ask(question: str) -> bool:
    """Whether a person answers a question with yes."""
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say_consoles(host: Host) -> None:
    """Print where the host's consoles are now."""
    where = worker.look(lambda: console.current_display(host))
    say(f"the host's consoles: {where}")


@contextlib.contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """End the command on Ctrl-C with advice: what the state is, or what to run.

    The worker process that talks to the kernel does not get the Ctrl-C (worker.py);
    the claim lists what it did.
    """
    try:
        yield
    except KeyboardInterrupt:
        try:
            text = advice()
        except HookError:
            text = "see `vfio-console-hook status`"
        raise KeyboardInterrupt(text) from None


class ProgressLog(Log):
    """A log that also prints each step on the terminal when it has been done.

    The worker logs the steps, and its stdout is closed. So this keeps a duplicate of the
    descriptor of stdout.
    """

    def __init__(self, host: Host, vm: str, level: str = "info") -> None:
        super().__init__(host, vm, level)
        sys.stdout.flush()
        self._stream = os.fdopen(os.dup(1), "w")

    def debug(self, text: str) -> None:
        # Each step is logged at this level when it is done; info repeats all of them at the
        # end. The stage and the shell line, which follow (events), are not printed.
        self._print(text.partition(", for ")[0])
        super().debug(text)

    def warning(self, text: str) -> None:
        self._print(text)
        super().warning(text)

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"  {printable(text)}", file=self._stream, flush=True)
