"""Runs a scenario, and runs it again if its machine was lost before the scenario began."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from . import kernel_log
from .machine import LostMachine, Machine
from .result import Outcome, Result
from .scenarios import Scenario
from .trial import Trial

ATTEMPTS = 3


def run(
    scenario: Scenario, kind: type[Trial], boot: Callable[[], Machine], directory: Path
) -> Result:
    """Run a scenario. A machine that is lost before it is ready is booted again.

    kind has the steps of the scenario, boot starts a machine. Files go to directory.
    """
    began = time.monotonic()
    result = Result(scenario, Outcome.LOST)
    for attempt in range(1, ATTEMPTS + 1):
        result.failures.clear()
        try:
            with boot() as machine:
                trial = kind(scenario, machine, directory, result)
                try:
                    trial.run()
                finally:
                    trial.keep_logs()
            result.outcome = Outcome.FAIL if result.failures else Outcome.PASS
            break
        except LostMachine as e:
            result.notes.append(f"attempt {attempt}: {e}")
            serial = (directory / "serial.log").read_text(errors="replace")
            fault = kernel_log.fault(serial) if e.ready else None
            if fault:
                result.outcome = Outcome.FAIL
                result.failures.append(f"the kernel died: {fault}")
            if e.ready:
                break
            (directory / "serial.log").rename(directory / f"serial-lost-{attempt}.log")
    result.seconds = time.monotonic() - began
    return result
