"""Runs commands in turns and measures the cost of each.

Each command is started as libvirt starts a hook: no shell, the XML through a pipe on
stdin, which it may leave unread (virCommandProcessIO), stdout and stderr redirected, and
an environment of LC_ALL and PATH.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.gate import ENVIRONMENT


@dataclass(frozen=True)
class Cost:
    """The time of one run, or of the runs of one round together, in seconds."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


@dataclass(frozen=True)
class Run:
    """One command and its stdin."""

    argv: tuple[str, ...]
    stdin: bytes = b""


def cost(run: Run) -> Cost:
    """The cost of one run: wall time, and user and system time with its children's.

    Raises RuntimeError when the command does not end with 0: a command that
    fails early would seem cheap.
    """
    reader, writer = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, reader, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    begin = time.perf_counter()
    pid = os.posix_spawn(
        run.argv[0], run.argv, ENVIRONMENT, file_actions=actions, setsigdef=[signal.SIGPIPE]
    )
    os.close(reader)
    _feed(writer, run.stdin)
    _, status, usage = os.wait4(pid, 0)
    wall_s = time.perf_counter() - begin
    if status != 0:
        raise RuntimeError(f"{' '.join(run.argv)} ended with wait status {status}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime)


def _feed(writer: int, content: bytes) -> None:
    """Write content to the pipe until the reader closes it, then close it too."""
    left = memoryview(content)
    try:
        while left:
            left = left[os.write(writer, left) :]
    except BrokenPipeError:
        pass
    finally:
        os.close(writer)


def interleaved(sides: Sequence[Sequence[Run]], rounds: int) -> tuple[Cost, ...]:
    """The median cost of each side, whose runs are added up in each round.

    The sides take turns in every round, in reverse order in every second one, so that a
    machine that becomes slower or faster favours none.
    """
    costs: list[list[Cost]] = [[] for _ in sides]
    order = list(range(len(sides)))
    for _ in range(rounds):
        for index in order:
            total = Cost(0.0, 0.0)
            for run in sides[index]:
                total += cost(run)
            costs[index].append(total)
        order.reverse()
    return tuple(
        Cost(
            statistics.median(each.wall_s for each in side),
            statistics.median(each.cpu_s for each in side),
        )
        for side in costs
    )
