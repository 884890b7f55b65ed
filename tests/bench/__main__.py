"""python -m tests.bench: the cost of the hook and of the programs it is compared to.

    --quick               fewer rounds and sizes, for every change
    --rounds N            how often each side of the gate runs (default 200, quick 60)

Prints a Markdown table. A row over its bar is measured again, up to two times, and the best
counts: other load on the machine can only add to it. Exits with 1 if the best is over the bar.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Union

from tests.bench import axes, crowds, events, holders
from tests.bench.compare import Row, gate_rows
from tests.bench.growth import Growth

Measured = Union[Row, Growth]
Measurement = Callable[[Path], Sequence[Measured]]

TRIES = 3
HEAD = """\
| what | measure | ours | theirs | ratio | bar |
|---|---|---:|---:|---:|---:|"""


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure, smallest first."""

    xml_kib: tuple[int, ...]
    hostdevs: tuple[int, ...]
    iomem_lines: tuple[int, ...]
    claims: tuple[int, ...]
    processes: tuple[int, ...]


FULL = Sizes(
    xml_kib=(2, 8, 16, 32, 64, 256, 1024, 4096, 10240),
    hostdevs=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    iomem_lines=(60, 625, 1250, 2500, 5000, 10000, 20000),
    claims=(1, 16, 62, 125, 250, 500, 1000),
    processes=(125, 312, 625, 1250, 2500, 5000),
)
QUICK = Sizes(
    xml_kib=(2, 16, 64, 1024, 2048, 4096),
    hostdevs=(1, 32, 64, 128, 256),
    iomem_lines=(60, 2500, 5000, 10000, 20000),
    claims=(1, 125, 250, 500, 1000),
    processes=(125, 500, 1000, 2000),
)


def measurements(rounds: int, quick: bool) -> Iterator[Measurement]:
    """The measurements; each needs a directory of its own."""
    # A Python takes twenty times as long as a shell.
    yield partial(gate_rows, rounds=rounds)
    yield partial(events.rows, rounds=max(rounds // 10, 5))
    sizes = QUICK if quick else FULL
    for filling in (axes.DISKS, axes.USB):
        most = max(rounds // 4, 20)
        yield partial(axes.gate, rounds=most, sizes_kib=sizes.xml_kib, filling=filling)
    few = 3 if quick else 7
    for filling in (axes.DISKS, axes.METADATA):
        yield _alone(partial(axes.xml, rounds=few, sizes_kib=sizes.xml_kib, filling=filling))
    yield _alone(partial(axes.hostdevs, rounds=few, counts=sizes.hostdevs))
    for crowding, counts in ((axes.IOMEM, sizes.iomem_lines), (axes.CLAIMS, sizes.claims)):
        yield _alone(partial(axes.crowded, rounds=few, counts=counts, crowding=crowding))
    yield partial(holders.rows, rounds=few, counts=sizes.processes)
    yield partial(crowds.rows, quick=quick)


def _alone(measure: Callable[[Path], Growth]) -> Measurement:
    return lambda directory: (measure(directory),)


def steadied(measure: Measurement) -> list[Measured]:
    """The rows of a measurement, repeated while one of them is over its bar; the best of each."""
    best: list[Measured] = []
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory() as directory:
            found = measure(Path(directory))
        best = [min(pair, key=_value) for pair in zip(best, found)] if best else list(found)
        if not any(over(row) for row in best):
            break
    return best


def _value(row: Measured) -> float:
    return row.value


def over(row: Measured) -> bool:
    """Whether a row is over its bar."""
    return row.value > row.bar


def line(row: Measured) -> str:
    """A row of the table: times in milliseconds, growth as the power of size."""
    power = "n^" if isinstance(row, Growth) else ""
    times = (f"{seconds * 1000:.2f} ms" for seconds in (row.ours_s, row.theirs_s))
    bars = (f"{power}{figure:.2f}" for figure in (row.value, row.bar))
    verdict = " (over)" if over(row) else ""
    return f"| {' | '.join((row.what, row.measure, *times, *bars))}{verdict} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a row is over its bar."""
    options = _parse(arguments)
    rounds = options.rounds or (60 if options.quick else 200)
    print(HEAD)
    failed = False
    for measure in measurements(rounds, options.quick):
        found = steadied(measure)
        print("\n".join(map(line, found)), flush=True)
        failed |= any(map(over, found))
    return int(failed)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
