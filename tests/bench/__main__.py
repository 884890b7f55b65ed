"""python -m tests.bench: what the hook costs, beside what it is compared to.

    --rounds N            how often each side of the gate runs (default 200)

Exits with 1 when something costs more than it may.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import holders
from tests.bench.compare import Row, gate_rows, prepare_row

HEAD = f"{'what':<44}{'measure':>9}{'ours':>11}{'theirs':>11}{'ratio':>8}{'bar':>6}"


def line(row: Row) -> str:
    """One line of the table: times in milliseconds."""
    verdict = "PASS" if row.ratio <= row.bar else "over"
    return (
        f"{row.what:<44}{row.measure:>9}{row.ours_s * 1000:>8.2f} ms{row.theirs_s * 1000:>8.2f} ms"
        f"{row.ratio:>8.2f}{row.bar:>6.2f}  {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 when a row is over its bar."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as directory:
        rows = gate_rows(Path(directory), options.rounds)
        # A Python takes twenty times as long as a shell.
        rows = (*rows, prepare_row(Path(directory), max(options.rounds // 10, 5)))
        # Each look at that many processes takes a good part of a second.
        rows = (*rows, holders.row(Path(directory), max(options.rounds // 20, 5)))

    print(HEAD)
    for row in rows:
        print(line(row))
    return int(any(row.ratio > row.bar for row in rows))


if __name__ == "__main__":
    sys.exit(main())
