"""Only root gets anything done: planted files, strange names, hostile environments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.trust import configuration, environment, names, planted
from tests.trust.check import Check, Effort, Outcome

# What is tried at least; fewer means that something was not tried at all.
_LEAST = {"planted": 80, "configured": 30, "names": 100, "variables": 60}
_TRIES: dict[str, Callable[[bool, Path], Iterator[tuple[str, str]]]] = {
    "planted": planted.tried,
    "configured": configuration.tried,
    "names": names.tried,
    "variables": environment.tried,
}


def _run(effort: Effort) -> Outcome:
    counted = dict.fromkeys(_TRIES, 0)
    failures = []
    for kind, tried in _TRIES.items():
        place = Path(effort.directory, kind)
        place.mkdir()
        for case, wrong in tried(effort.quick, place):
            counted[kind] += 1
            failures += [f"{case}: {wrong}"] if wrong else []
        if counted[kind] < _LEAST[kind]:
            failures.append(f"only {counted[kind]} cases of {kind} were tried")
    figures = (
        f"{counted['planted']} planted files, {counted['configured']} configurations,"
        f" {counted['names']} uses of names, {counted['variables']} variables"
    )
    return Outcome(sum(counted.values()), tuple(failures), figures)


CHECK = Check(
    "access",
    "only root can make it do anything: not others by files, links, names or the environment",
    _run,
)
