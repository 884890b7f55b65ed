"""python -m tests.bench: what the hook costs, beside what it is compared to.

    --rounds N            how often each side runs (default 200)
    --prepare COMMAND     also measure this command as prepare of a VM with a GPU,
                          with the XML of --xml on stdin
    --xml FILE            the domain XML for --prepare

Exits with 1 when something costs more than it may.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
    parser.add_argument("--prepare", type=shlex.split, default=None, metavar="COMMAND")
    parser.add_argument("--xml", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.prepare and not options.xml:
        parser.error("--prepare needs --xml")

    with tempfile.TemporaryDirectory() as directory:
        rows = gate_rows(Path(directory), options.rounds)
    if options.prepare:
        # A Python takes twenty times as long as a shell.
        rounds = max(options.rounds // 10, 5)
        rows += prepare_row(options.prepare, options.xml.read_bytes(), rounds)

    print(HEAD)
    for row in rows:
        print(line(row))
    return int(any(row.ratio > row.bar for row in rows))


if __name__ == "__main__":
    sys.exit(main())
