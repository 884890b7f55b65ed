"""Looking for the holders of a GPU, beside a bare loop of readlink over the same descriptors.

A big host is made up of processes that sleep, with files that they inherit. Both
sides are measured in this process, in turns, by the processor time that they take.
"""

from __future__ import annotations

import gc
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.bench.compare import Row
from tests.bench.growth import Growth, Point
from vfio_console_hook.machine import holders
from vfio_console_hook.machine.host import Host

DESCRIPTORS = 50
"""How many files each process has open."""
BAR = 1.3
# No process has these open, but one must be there, so that it has a number.
NODES = ("dev/fb99", "dev/dri/card99", "dev/dri/renderD227", "dev/i2c-99", "dev/kmsg")
_STANDARD = 3


class Some(Host):
    """This machine, as if it had no other processes than these."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__()
        self._names = tuple(str(pid) for pid in pids)

    def list(self, path: str) -> tuple[str, ...]:
        return self._names if path == "proc" else super().list(path)


def rows(directory: Path, rounds: int, counts: Sequence[int]) -> tuple[Row | Growth, ...]:
    """Looks at ever more processes, and only reading the links of their descriptors.

    That loop is given the names of all links; finding them is in our time alone, as
    are the mappings.
    """
    sides: list[Callable[[], None]] = []
    with _sleepers(directory, max(counts)) as pids:
        for count in counts:
            some = pids[:count]
            links = [f"/proc/{pid}/fd/{fd}" for pid in some for fd in os.listdir(f"/proc/{pid}/fd")]
            if len(links) != count * DESCRIPTORS:
                raise RuntimeError(f"{len(links)} descriptors in {count} processes")
            sides += [partial(_look, Some(some)), partial(_read, links)]
        times = _turns(sides, rounds)
    points = tuple(Point(*one) for one in zip(counts, times[::2], times[1::2]))
    what = f"holders: {counts[-1]} processes, {len(links)} descriptors"
    return (
        Row(what, "cpu", points[-1].ours_s, points[-1].floor_s, BAR),
        Growth(f"holders, {DESCRIPTORS} files each process", points),
    )


def _look(host: Host) -> None:
    if holders.holders_of(host, NODES):
        raise RuntimeError("a process holds what does not exist")


def _read(links: Sequence[str]) -> None:
    for link in links:
        os.readlink(link)


def _turns(sides: Sequence[Callable[[], None]], rounds: int) -> tuple[float, ...]:
    """The median CPU time of each side, in seconds, after one round that is not counted."""
    times: list[list[float]] = [[] for _ in sides]
    order = list(range(len(sides)))
    for _ in range(rounds + 1):
        for index in order:
            gc.collect()
            begin = time.process_time()
            sides[index]()
            times[index].append(time.process_time() - begin)
        order.reverse()
    return tuple(statistics.median(side[1:]) for side in times)


@contextmanager
def _sleepers(directory: Path, count: int) -> Iterator[list[int]]:
    """Processes that sleep, with files open that they inherited from this one."""
    files: list[int] = []
    pids: list[int] = []
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions: list[tuple[int, ...]] = [
        (os.POSIX_SPAWN_DUP2, null, number) for number in range(_STANDARD)
    ]
    # What this process has got itself is not for them.
    actions += [(os.POSIX_SPAWN_CLOSE, number) for number in _inherited()]
    try:
        for number in range(DESCRIPTORS - _STANDARD):
            files.append(os.open(directory / f"open{number}", os.O_RDWR | os.O_CREAT))
            os.set_inheritable(files[-1], True)
        for _ in range(count):
            sleep = ("/bin/sleep", "infinity")
            pids.append(os.posix_spawn(sleep[0], sleep, {}, file_actions=actions))
        for pid in pids:
            # A fork of ours has our mappings, and a program that is just being loaded
            # has its libraries open.
            while len(os.listdir(f"/proc/{pid}/fd")) != DESCRIPTORS or not _sleeps(pid):
                time.sleep(0.01)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        for handle in (*files, null):
            os.close(handle)


def _inherited() -> list[int]:
    """The descriptors, beyond the standard ones, that a program started here would get."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= _STANDARD]
    # One of them was that of the directory.
    there = [number for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")]
    return [number for number in there if os.get_inheritable(number)]


def _sleeps(pid: int) -> bool:
    """Whether it is a sleep that has come to its sleeping."""
    name, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")
    return name.endswith("(sleep") and rest.split()[0] == "S"
