"""Fuzzing of all that the program reads, with coverage where atheris is installed.

tests/trust/fuzz has the targets. What was found once lies in tests/trust/corpus/TARGET, one file
for each cause, and is tried first; what is found now is left in build/fuzz, to be
copied there.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.gate import ROOT
from tests.trust.check import Check, Effort, Outcome, in_memory

CORPUS = ROOT / "tests/trust/corpus"
FOUND = ROOT / "build/fuzz"
# Inputs for each target: what some ten seconds of one core are enough for.
RUNS = {"xml": 5000, "yaml": 2000, "claim": 500, "sysfs": 400, "argv": 500, "tree": 250}
_MARKS = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+)")


@dataclass(frozen=True)
class Tried:
    """What came of one target: inputs, edges of the program that they reached, findings."""

    name: str
    inputs: int
    edges: int
    findings: tuple[str, ...]


def fuzz(name: str, directory: Path, *words: str) -> Tried:
    """Run one target in a process of its own."""
    findings = directory / f"found-{name}"
    within = directory / f"work-{name}"
    within.mkdir()
    argv = [sys.executable, "-m", "tests.trust.fuzz", name, "--findings", str(findings)]
    argv += ["--within", str(within), *words]
    done = subprocess.run(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    )
    shutil.rmtree(within, ignore_errors=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("finding: ")]
    marks = _MARKS.search(done.stdout)
    blind = re.search(r"^tried: (\d+)$", done.stdout, re.MULTILINE)
    inputs = int(marks[1]) if marks else int(blind[1]) if blind else 0
    if done.returncode or not inputs:
        found.append(f"ended with {done.returncode}: {done.stdout.strip()[-400:]!r}")
    _keep(findings)
    return Tried(name, inputs, int(marks[2]) if marks else 0, tuple(found))


def _keep(findings: Path) -> None:
    """Leave what was found where it can be looked at when the check has ended."""
    for file in findings.iterdir() if findings.is_dir() else ():
        place = FOUND / findings.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)


def corpus(name: str) -> list[str]:
    """The files with what was found in a target before."""
    folder = CORPUS / name
    return sorted(map(str, folder.iterdir())) if folder.is_dir() else []


def _run(effort: Effort) -> Outcome:
    with in_memory(effort.directory) as directory:
        return _judged(effort, directory)


def _judged(effort: Effort, directory: Path) -> Outcome:
    seconds = int(effort.minutes * 60 / len(RUNS))
    failures = []
    tried = []
    for name, runs in RUNS.items():
        known = corpus(name)
        if known:
            again = fuzz(name, directory, "--replay", *known)
            failures += [f"{name}, again: {one}" for one in again.findings]
            if again.inputs != len(known):
                failures.append(f"{name}: {again.inputs} of {len(known)} known inputs were tried")
        limit = ["--runs", str(runs)] if effort.quick else ["--runs=0", f"--seconds={seconds}"]
        one = fuzz(name, directory, *limit)
        tried.append(one)
        failures += [f"{name}: {found}" for found in one.findings]
        if one.inputs < (runs if effort.quick else 1):
            failures.append(f"{name}: only {one.inputs} inputs were tried")
    seeing = bool(importlib.util.find_spec("atheris"))
    how = "with coverage" if seeing else "without coverage: there is no atheris here"
    parts = ", ".join(
        f"{one.name} {one.inputs:,}" + (f" ({one.edges} edges)" if seeing else "") for one in tried
    )
    return Outcome(sum(one.inputs for one in tried), tuple(failures), f"{how}: {parts}")


CHECK = Check(
    "fuzzing",
    "whatever it reads, it does its work or prints one sentence",
    _run,
)
