"""Whatever happens to VMs, in whatever order: stories that Hypothesis makes.

tests/orders says what may happen, and what must hold after each call of the program.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.orders.machines import Setting
from tests.orders.story import Story
from tests.trust.check import Check, Effort, Outcome, in_memory

_QUICK_STORIES, _STORIES, _STEPS = 120, 200, 25
_RACE = "prepare before the other's release"
_EVENTS = ("prepare", "start", "started", "reconnect", "stopped", "release", "migrate", "restore")
# What makes the difference between a story and five events in their order.
_NEEDED = (
    *_EVENTS, "recover", "GPU opened by QEMU", "second VM refused",
    _RACE, "prepare over an earlier run", "libvirt forgot a claim",
    "worker killed", "hook killed", "given back by release", "given back by recover",
    "host rebooted over claims", "taken by hand", "GPU plugged", "GPU unplugged", "node held",
    "defined anew over a claim", "as it was", "listed loss",
)  # fmt: skip


def run(effort: Effort) -> Outcome:
    """A fixed choice of stories; without quick new ones, until the time is up."""
    tally: Counter[str] = Counter()
    machines: set[Setting] = set()
    failures: list[str] = []
    end = time.monotonic() + effort.minutes * 60
    with in_memory(effort.directory) as folder:
        while True:
            number = None if effort.quick else secrets.randbits(32)
            count = _QUICK_STORIES if effort.quick else _STORIES
            failures += _tell(folder, count, number, tally, machines)
            if effort.quick or failures or time.monotonic() >= end:
                break
    missing = [what for what in _NEEDED if not tally[what]]
    if missing and not failures:
        failures.append(f"never happened, so nothing is known of it: {', '.join(missing)}")
    return Outcome(tally["stories"], tuple(failures), _figures(tally, machines))


def _tell(
    folder: Path, count: int, number: int | None, tally: Counter[str], machines: set[Setting]
) -> list[str]:
    """So many stories, chosen by a number, None for always the same; what was wrong in one."""
    story = type("Story", (Story,), {"tally": tally, "seen": machines, "folder": folder})
    chosen = settings(
        max_examples=count,
        stateful_step_count=_STEPS,
        derandomize=number is None,
        database=None,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=tuple(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(number)(story) if number is not None else story,
                                  settings=chosen)  # fmt: skip
    except Exception as error:
        which = "the fixed choice" if number is None else f"seed {number}"
        notes = "\n".join(getattr(error, "__notes__", ()))
        return [f"{type(error).__name__} with {which}: {error}", *notes.splitlines()]
    return []


def _figures(tally: Counter[str], machines: set[Setting]) -> str:
    events = sum(tally[event] for event in _EVENTS)
    return (
        f"{events:,} events of VMs on {len(machines)} machines, {tally['recover']} recoveries,"
        f" {tally['host rebooted']} reboots, {tally['second VM refused']} second VMs refused,"
        f" {tally[_RACE]} that came before the other's release,"
        f" {tally['worker killed'] + tally['hook killed']} hooks killed"
    )


CHECK = Check(
    "orders",
    "with events, crashes, reboots and commands in any order: no GPU has two owners, only what is"
    " the VM's is touched, no running VM is ended, everything comes back but what plan had listed"
    " as lost",
    run,
)
