"""The result of a scenario."""

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
    """The outcome of a scenario with its reasons; a cell of the matrix has an observation."""

    scenario: Scenario
    outcome: Outcome
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    observation: Observation | None = None
