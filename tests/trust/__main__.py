"""Tries to break what the program promises, and prints a table of what came of it.

Names are those of checks; without any, all are run. --quick is what is run for every
change, within a few minutes; without it, everything there is to try, for hours if
--minutes says so. Exits with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.gate import ROOT
from tests.trust import access, bombs, claims, crashes, faults, fuzzing, orders, storm
from tests.trust.check import Check, Effort, Outcome

# In the order of the table.
CHECKS = tuple(
    one.CHECK for one in (crashes, faults, claims, orders, storm, bombs, fuzzing, access)
)
_SHOWN = 20  # failures of one check


@dataclass(frozen=True)
class Tried:
    """A check that was run, and for how long."""

    check: Check
    outcome: Outcome
    seconds: float

    @property
    def verdict(self) -> str:
        return "FAIL" if self.outcome.failures or not self.outcome.cases else "PASS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    options = _parse(arguments)
    chosen = [one for one in CHECKS if one.name in options.names or not options.names]
    if options.one:
        return _run_here(chosen[0], options)
    together = [one for one in chosen if not one.alone]
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        tried = [*pool.map(lambda one: _run_apart(one, options), together)]
    tried += [_run_apart(one, options) for one in chosen if one.alone]
    tried.sort(key=lambda one: chosen.index(one.check))
    print(f"\n{table(tried)}", end="", flush=True)
    return int(any(one.verdict == "FAIL" for one in tried))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/trust/run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {one.name:12} {one.promise}" for one in CHECKS),
    )
    names = [one.name for one in CHECKS]
    parser.add_argument("names", nargs="*", metavar="NAME", help="checks; all without")
    parser.add_argument("--quick", action="store_true", help="only what every change is held to")
    parser.add_argument("--minutes", type=float, default=10.0, help="for what could go on for ever")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="checks at a time")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in names:
            parser.error(f"no check {name!r}; there are {', '.join(names)}")
    return options


def _run_here(check: Check, options: argparse.Namespace) -> int:
    """Run one check in this process; what came of it goes to stdout as lines."""
    # Nothing else does: neither what Hypothesis remarks nor what a process of a check says.
    stdout = os.dup(1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as directory:
        outcome = check.run(Effort(options.quick, Path(directory), options.minutes))
    with open(stdout, "w", errors="backslashreplace") as file:
        print(outcome.cases, outcome.figures, *outcome.failures, sep="\n", file=file)
    return 0


def _run_apart(check: Check, options: argparse.Namespace) -> Tried:
    """Run one check in a process of its own: what it breaks, it breaks alone."""
    argv = [sys.executable, "-m", "tests.trust", "--one", check.name]
    argv += [f"--minutes={options.minutes}", *(["--quick"] if options.quick else [])]
    began = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace")
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) < 2:
        outcome = Outcome(0, (f"ended with {done.returncode} before it was done", *lines))
    else:
        outcome = Outcome(int(lines[0]), tuple(lines[2:]), lines[1])
    tried = Tried(check, outcome, time.monotonic() - began)
    print(f"{check.name}: {tried.verdict} ({tried.seconds:.0f} s)", file=sys.stderr, flush=True)
    return tried


def table(tried: Sequence[Tried]) -> str:
    """The table of tests/README.md, and below it what was wrong."""
    text = "| promise | tried | times | broken |\n|---|---|---:|---:|\n"
    for check, outcome in ((one.check, one.outcome) for one in tried):
        broken = len(outcome.failures)
        text += f"| {check.promise} | {outcome.figures} | {outcome.cases:,} | {broken} |\n"
    for check, outcome in ((one.check, one.outcome) for one in tried):
        text += "".join(f"{check.name}: {line}\n" for line in outcome.failures[:_SHOWN])
        if len(outcome.failures) > _SHOWN:
            text += f"{check.name}: and {len(outcome.failures) - _SHOWN} more\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
