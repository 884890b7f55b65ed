"""What a person sees while a command is at work, and what Ctrl-C leaves behind."""

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
    """Print a line at once, for a person who waits; when that person has gone, go on."""
    try:
        print(printable(line), flush=True)
    except OSError:
        streams.give_up_stdout()


def say_consoles(host: Host) -> None:
    """Print where the host's consoles are now."""
    where = worker.look(lambda: console.current_display(host))
    say(f"the host's consoles: {where}")


@contextlib.contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C end the command with a word of advice: how things are, or what to run.

    What talks to the kernel is a process of its own, which Ctrl-C does not reach
    (worker.py); the claim says what it did.
    """
    try:
        yield
    except KeyboardInterrupt:
        try:
            told = advice()
        except HookError:
            told = "see `vfio-console-hook status`"
        raise KeyboardInterrupt(told) from None


class Telling(Log):
    """A log that also tells the person at the terminal each step, when it has been done.

    Steps come from the worker, whose own stdout leads nowhere. So this holds another
    descriptor of the terminal: unlike libvirt, a person who waits may be kept waiting.
    """

    def __init__(self, host: Host, vm: str, level: str = "info") -> None:
        super().__init__(host, vm, level)
        sys.stdout.flush()
        self._stream = os.fdopen(os.dup(1), "w")

    def debug(self, text: str) -> None:
        # Each step is told so when it is done, and info tells all of them at the end. Its
        # stage and shell line, which follow (events), are more than who waits wants.
        self._tell(text.partition(", for ")[0])
        super().debug(text)

    def warning(self, text: str) -> None:
        self._tell(text)
        super().warning(text)

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"  {printable(text)}", file=self._stream, flush=True)
