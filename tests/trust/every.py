"""Doing the same on every recorded machine, on all processors."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tests.fakehost import KernelFault
from tests.snapshots import before_vms
from tests.trust.baseline import Baseline, UnsoundError, undisturbed
from tests.trust.check import Check, Effort, Outcome, in_memory
from tests.trust.subjects import Subject, chosen


@dataclass(frozen=True)
class Tried:
    """How many cases were tried, and what was wrong with some of them.

    idle: there is nothing to try on such a machine.
    """

    cases: int
    failures: tuple[str, ...] = ()
    idle: bool = False


class Case(Protocol):
    """Something to try. Of each kind a quick run tries one."""

    @property
    def kind(self) -> tuple[str, ...]: ...


C = TypeVar("C", bound=Case)
Try = Callable[[Baseline, bool, Path], Tried]

_known: set[tuple[str, ...]] = set()


def thinned(subject: Subject, cases: Sequence[C]) -> list[C]:
    """One of each kind that this process has not seen on any machine, and one for this one."""
    own = zlib.crc32(str(subject).encode()) % max(len(cases), 1)
    found = []
    for number, case in enumerate(cases):
        if number == own or case.kind not in _known:
            _known.add(case.kind)
            found.append(case)
    return found


@dataclass(frozen=True)
class OneByOne(Generic[C]):
    """Tries all cases of a baseline, or if quick those thinned().

    attempt gives back what is wrong, "" if nothing is; the directory is the machine's.
    """

    cases: Callable[[Baseline], Iterable[C]]
    attempt: Callable[[Baseline, C, Path], str]

    def __call__(self, baseline: Baseline, quick: bool, directory: Path) -> Tried:
        cases = list(self.cases(baseline))
        found = thinned(baseline.subject, cases) if quick else cases
        failures = []
        for case in found:
            try:
                wrong = self.attempt(baseline, case, directory / "machine")
            except (Exception, KernelFault) as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong:
                failures.append(f"{baseline.subject}: {case}: {wrong}")
        return Tried(len(found), tuple(failures))


def check_everywhere(name: str, promise: str, attempt: Try, *, quick: int, least: int) -> Check:
    """A check that makes an attempt on all machines.

    Fewer cases than least are a failure, and than quick if that is all that is wanted.
    """
    return Check(name, promise, partial(_on_every_machine, attempt, quick, least))


def _on_every_machine(attempt: Try, least_quick: int, least_all: int, effort: Effort) -> Outcome:
    least = least_quick if effort.quick else least_all
    subjects = chosen(effort.directory / "scratch", quick=effort.quick)
    work = partial(_on_one, attempt, effort)
    # In one process the kinds that were seen are known: a quick run needs that.
    jobs = 1 if effort.quick else os.cpu_count() or 1
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        tried = list(pool.map(work, subjects))
    cases = sum(one.cases for one in tried)
    failures = [failure for one in tried for failure in one.failures]
    reached = {subject.machine for subject, one in zip(subjects, tried) if one.cases}
    idle = {subject.machine for subject, one in zip(subjects, tried) if one.idle}
    missed = sorted({*before_vms()} - reached - idle)
    failures += [f"nothing was tried on {', '.join(missed)}"] if missed else []
    failures += [f"only {cases} cases, {least} were expected"] if cases < least else []
    return Outcome(cases, tuple(failures), f"on {len(reached)} machines")


def _on_one(attempt: Try, effort: Effort, subject: Subject) -> Tried:
    with in_memory(effort.directory) as directory:
        try:
            baseline = undisturbed(subject, directory / "baseline")
            tried = attempt(baseline, effort.quick, directory)
        except UnsoundError as error:
            tried = Tried(0, (str(error),))
        except Exception as error:
            tried = Tried(0, (f"{subject}: {type(error).__name__}: {error}",))
    if not effort.quick:
        lines = (f"{subject}: {tried.cases} tried", *tried.failures)
        print(*lines, sep="\n  ", file=sys.stderr, flush=True)
    return tried
