"""How a scenario ended, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .observation import Observation
from .scenarios import Scenario


class Outcome(Enum):
    """How a scenario ended."""

    PASS = "pass"
    FAIL = "FAIL"
    LOST = "lost"


@dataclass
class Result:
    """The outcome of a scenario with its reasons, and what was observed, in kinds that do."""

    scenario: Scenario
    outcome: Outcome
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    observation: Observation | None = None
