"""The search for holders of a GPU, compared to a loop of readlink over the same descriptors.

Sleeping processes with inherited files imitate a large host. Both sides are measured in
this process, in turns, by their processor time.
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
# No process has these open, but one must exist, so that it has a device number.
NODES = ("dev/fb99", "dev/dri/card99", "dev/dri/renderD227", "dev/i2c-99", "dev/kmsg")
_STANDARD = 3


class Some(Host):
    """This machine with only some of its processes."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__()
        self._names = tuple(str(pid) for pid in pids)

    def list(self, path: str) -> tuple[str, ...]:
        return self._names if path == "proc" else super().list(path)


def rows(directory: Path, rounds: int, counts: Sequence[int]) -> tuple[Row | Growth, ...]:
    """The search in growing numbers of processes, compared to reading the links only.

    That loop gets the names of all links; only our side has to list them and to read the
    mappings.
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
        raise RuntimeError("found a holder of a node that does not exist")


def _read(links: Sequence[str]) -> None:
    for link in links:
        os.readlink(link)


def _turns(sides: Sequence[Callable[[], None]], rounds: int) -> tuple[float, ...]:
    """The median CPU time of each side, in seconds, without the first round."""
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
    """Sleeping processes with open files that they have inherited from this process."""
    files: list[int] = []
    pids: list[int] = []
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions: list[tuple[int, ...]] = [
        (os.POSIX_SPAWN_DUP2, null, number) for number in range(_STANDARD)
    ]
    # They must not inherit the descriptors that this process has inherited.
    actions += [(os.POSIX_SPAWN_CLOSE, number) for number in _inherited()]
    try:
        for number in range(DESCRIPTORS - _STANDARD):
            files.append(os.open(directory / f"open{number}", os.O_RDWR | os.O_CREAT))
            os.set_inheritable(files[-1], True)
        for _ in range(count):
            sleep = ("/bin/sleep", "infinity")
            pids.append(os.posix_spawn(sleep[0], sleep, {}, file_actions=actions))
        for pid in pids:
            # Before exec the process has our mappings, and while it is loaded it has
            # libraries open.
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
    """The descriptors, except the standard ones, that a program started here would inherit."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= _STANDARD]
    # One of them was the listed directory itself.
    there = [number for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")]
    return [number for number in there if os.get_inheritable(number)]


def _sleeps(pid: int) -> bool:
    """Whether a process has become sleep(1) and is asleep."""
    name, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")
    return name.endswith("(sleep") and rest.split()[0] == "S"
