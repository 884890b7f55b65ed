"""FakeHost predicts the snapshots that the lab made on real kernels.

tests/lab/predicted.py says how, and which scenarios are left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import matrix, predicted
from tests.lab.scenarios import SCENARIOS, Scenario, named
from tests.snapshots import FOLDER

CELLS = tuple(cell.scenario() for cell in matrix.MATRIX)


def path(scenario: Scenario, phase: str = "") -> Path:
    name = f"{scenario.name}{f'-{phase}' if phase else ''}.tree"
    return FOLDER / "matrix" / name if scenario in CELLS else FOLDER / f"lab-{name}"


ALL = (*SCENARIOS, *CELLS)
STARTED = tuple(one for one in ALL if predicted.starts(one))
REFUSED = tuple(one for one in ALL if predicted.refuses(one))


def text(scenario: Scenario, phase: str = "") -> str:
    return path(scenario, phase).read_text(encoding="utf-8")


def snapshots_of(scenario: Scenario) -> dict[str, str]:
    """The snapshot after each phase."""
    return {phase: text(scenario, phase) for phase in predicted.PHASES}


def test_every_phase_of_every_scenario_has_a_snapshot() -> None:
    """tests/lab/run leaves them with its results, as machine-WHEN.tree."""
    wanted = [path(one, phase) for one in STARTED for phase in ("", *predicted.PHASES)]
    wanted += [path(one) for one in REFUSED]

    assert [one.name for one in wanted if not one.exists()] == []


@pytest.mark.parametrize("scenario", STARTED, ids=lambda scenario: scenario.name)
def test_the_machine_is_as_in_the_lab_after_each_phase(scenario: Scenario, tmp_path: Path) -> None:
    wrong = predicted.differences(
        scenario, text(scenario), snapshots_of(scenario), tmp_path / "machines"
    )

    assert wrong == {}


@pytest.mark.parametrize("scenario", REFUSED, ids=lambda scenario: scenario.name)
def test_a_refusal_leaves_the_machine_as_in_the_lab(scenario: Scenario, tmp_path: Path) -> None:
    wrong = predicted.refusal(scenario, text(scenario), tmp_path / "machines")

    assert wrong == ""


def test_a_difference_is_found(tmp_path: Path) -> None:
    scenario = named("efifb-6.12")
    swapped = {"during": text(scenario, "after"), "after": text(scenario, "during")}

    wrong = predicted.differences(scenario, text(scenario), swapped, tmp_path / "machines")

    assert [*wrong] == ["during", "after"]
    assert "vfio-pci" in wrong["during"]
