"""Looking for the holders of a GPU, beside a bare loop of readlink over the same descriptors.

A big host is made up of processes that sleep, with files that they inherit. Both
sides are measured in this process, in turns, by the CPU time that they take.
"""

from __future__ import annotations

import gc
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.compare import Row
from vfio_console_hook import holders
from vfio_console_hook.host import Host

PROCESSES = 2000
DESCRIPTORS = 100_000
BAR = 1.3
# Nobody has these, but one must be there, so that it has a number.
NODES = ("dev/fb99", "dev/dri/card99", "dev/dri/renderD227", "dev/i2c-99", "dev/kmsg")
_STANDARD = 3


class Some(Host):
    """This machine, as if it had no other processes than these."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__()
        self._names = tuple(str(pid) for pid in pids)

    def list(self, path: str) -> tuple[str, ...]:
        return self._names if path == "proc" else super().list(path)


def row(directory: Path, rounds: int) -> Row:
    """One look at all processes, and only reading the links of their descriptors.

    That loop is given the names of all links; finding them is in our time alone, as
    are the mappings.
    """
    with _sleepers(directory) as pids:
        links = [f"/proc/{pid}/fd/{fd}" for pid in pids for fd in os.listdir(f"/proc/{pid}/fd")]
        if len(links) < DESCRIPTORS:
            raise RuntimeError(f"only {len(links)} descriptors in {len(pids)} processes")
        host = Some(pids)

        def look() -> None:
            if holders.find(host, NODES):
                raise RuntimeError("somebody holds what does not exist")

        ours, theirs = _turns((look, lambda: _read(links)), rounds)
    what = f"holders: {len(pids)} processes, {len(links)} descriptors"
    return Row(what, "cpu", ours, theirs, BAR)


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
def _sleepers(directory: Path) -> Iterator[list[int]]:
    """Processes that sleep, with files open that they inherited from this one."""
    files = []
    pids: list[int] = []
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(_STANDARD)]
    try:
        for number in range(DESCRIPTORS // PROCESSES - _STANDARD):
            files.append(os.open(directory / f"open{number}", os.O_RDWR | os.O_CREAT))
            os.set_inheritable(files[-1], True)
        for _ in range(PROCESSES):
            sleep = ("/bin/sleep", "infinity")
            pids.append(os.posix_spawn(sleep[0], sleep, {}, file_actions=actions))
        # Until each has become a sleep: a fork of ours has our mappings.
        for pid in pids:
            while Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") != "sleep\n":
                time.sleep(0.01)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        for handle in (*files, null):
            os.close(handle)
