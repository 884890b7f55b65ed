"""The matrix and its tables, without a machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from . import __main__ as command_line
from . import kernel_log, matrix, tables
from .architectures import AMD64
from .kernels import KERNELS
from .observation import Console, Observation, Outlook, broken_promises, outlook_of
from .result import Outcome, Result
from .scenarios import SCENARIOS

GOOD = Observation("6.12.107", "11.3.0", mapped=True, after=Console.VISIBLE, outlook=Outlook.BACK)
GONE = replace(GOOD, after=Console.DEAD, outlook=Outlook.GONE, logged_gone=True)
REFUSED = replace(GOOD, mapped=None, error="no", outlook=Outlook.REFUSED)


@pytest.mark.parametrize(
    ("plan", "outlook"),
    [
        ("", Outlook.NOTHING),
        ("the VM would start\nwhat is gone will not come back before a reboot\n", Outlook.GONE),
        ("the VM would be refused\nit will not come back before a reboot", Outlook.REFUSED),
        ("the VM would start\n", Outlook.BACK),
    ],
)
def test_the_outlook_is_read_from_the_text_of_plan(plan: str, outlook: Outlook) -> None:
    assert outlook_of(plan) is outlook


@pytest.mark.parametrize("kept", [GOOD, GONE, REFUSED, replace(GOOD, meanwhile=Console.VISIBLE)])
def test_an_outcome_that_was_announced_breaks_no_promise(kept: Observation) -> None:
    assert broken_promises(kept) == []


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        (replace(GOOD, mapped=False), "QEMU has not mapped BAR 0"),
        (
            replace(GOOD, after=Console.DEAD, logged_gone=True),
            "gone and the plan did not announce it",
        ),
        (replace(GONE, logged_gone=False), "gone and the log did not announce it"),
        (
            replace(GONE, after=Console.VISIBLE, logged_gone=False),
            "back although the plan announced",
        ),
        (replace(GOOD, logged_gone=True), "back although the log announced"),
        (replace(GOOD, after=Console.DISTORTED), "the console is distorted"),
        (replace(GOOD, after=Console.UNKNOWN), "the console is unknown"),
        (replace(GOOD, meanwhile=Console.DEAD), "the GPU that stays is not visible"),
        (replace(GOOD, outlook=Outlook.REFUSED), "started although plan predicted"),
        (replace(REFUSED, outlook=Outlook.BACK), "did not start, and plan did not predict"),
        (replace(REFUSED, after=Console.DEAD), "refused, but the console is dead"),
        (replace(GOOD, faults=("kernel: Oops",)), "kernel: Oops"),
    ],
)
def test_each_broken_promise_is_a_sentence(seen: Observation, wrong: str) -> None:
    (sentence,) = broken_promises(seen)

    assert wrong in sentence


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (GOOD, "back"),
        (GONE, "gone, announced"),
        (REFUSED, "refused"),
        (replace(GONE, outlook=Outlook.NOTHING), "dead"),
        (replace(REFUSED, outlook=Outlook.NOTHING), "not started"),
    ],
)
def test_an_outcome_is_announced_or_refused_only_with_a_plan(
    seen: Observation, outcome: str
) -> None:
    assert seen.outcome == outcome


# Linux 5.10 when the firmware's device is unbound after a native driver has bound.
DEAD_DEVICE_UNBOUND = """\
[   47.300811] lab: begin the VM
[   49.024043] WARNING: CPU: 0 PID: 371 at drivers/video/fbdev/core/fbmem.c:1711 do_unregister
[   49.024838] Call Trace:
[   49.026517] kernel BUG at mm/slub.c:305!
"""


@pytest.mark.parametrize(
    ("log", "gravest"),
    [
        (DEAD_DEVICE_UNBOUND, "kernel BUG at mm/slub.c:305!"),
        ("[    1.0] [  T371] WARNING: at here\n[    1.1] Call Trace:\n", "WARNING: at here"),
        ("[    1.0] vfio-pci 0000:01:00.0: enabling device\n", None),
    ],
)
def test_of_several_faults_the_gravest_is_found_without_its_time(
    log: str, gravest: str | None
) -> None:
    assert kernel_log.gravest(log) == gravest


def test_every_kernel_of_debian_has_every_configuration_once() -> None:
    scenarios = matrix.scenarios(matrix.MATRIX)

    # The cells are of PCs: they ask for OVMF, and for class 0300.
    debian = {
        kernel.name
        for kernel in KERNELS
        if not kernel.fragments and kernel.architecture is AMD64
    }
    pairs = {(s.kernel, s.gpus, s.native_driver) for s in scenarios}
    assert len(pairs) == len(scenarios) == 4 * len(debian)
    assert {s.kernel for s in scenarios} == debian
    assert {kernel.root for kernel in KERNELS} == {"bullseye", "bookworm", "trixie", "forky"}


def test_the_comparison_differs_from_the_matrix_only_in_the_hook() -> None:
    ours = {(c.kernel, c.configuration): c.scenario() for c in matrix.MATRIX}

    for cell in matrix.AGAINST:
        scenario = cell.scenario()
        same = ours[cell.kernel, cell.configuration]
        assert not scenario.hook
        assert replace(scenario, name=same.name, hook=True, script=False) == same


def test_cells_are_named_differently_from_scenarios_and_each_other() -> None:
    names = [s.name for s in (*SCENARIOS, *matrix.scenarios([*matrix.CELLS.values()]))]

    assert sorted(set(names)) == sorted(names)


def test_ci_runs_a_part_of_the_matrix_and_prints_which(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = command_line.choose(command_line.parse(["--ci"]))

    command_line.print_part(chosen)

    lines = capsys.readouterr().out.splitlines()
    run, left = (set(line.partition(": ")[2].split(", ")) for line in lines)
    assert run == {"forky efifb-0300", "trixie-backports dual"}
    assert len(run) + len(left) == len(matrix.MATRIX)


def left_behind(out: Path, cell: matrix.Cell, seen: Observation | None, outcome: Outcome) -> None:
    """Write the files that the lab leaves of a cell."""
    directory = out / cell.scenario().name
    directory.mkdir()
    tables.keep(Result(cell.scenario(), outcome, seconds=71.4, observation=seen), directory)


def test_the_table_has_the_outcome_of_each_cell_and_which_were_not_run(tmp_path: Path) -> None:
    cells = [cell for cell in matrix.MATRIX if cell.kernel == "6.12"]
    left_behind(tmp_path, cells[0], GOOD, Outcome.PASS)
    left_behind(tmp_path, cells[1], GONE, Outcome.PASS)
    left_behind(tmp_path, cells[2], replace(GOOD, mapped=False), Outcome.FAIL)

    tables.write(tmp_path)

    row = (tmp_path / "matrix.md").read_text().splitlines()[-1]
    assert row == (
        "| 6.12.107 | trixie | 11.3.0 "
        "| back (71 s) | gone, announced (71 s) | FAIL (71 s) | not run |"
    )


def test_a_new_matrix_has_no_cells_of_an_earlier_one(tmp_path: Path) -> None:
    left_behind(tmp_path, matrix.MATRIX[0], GOOD, Outcome.PASS)

    tables.forget(tmp_path)

    assert tables.read(tmp_path, matrix.MATRIX) == []


def test_a_cell_whose_machine_was_lost_has_a_row_too(tmp_path: Path) -> None:
    left_behind(tmp_path, matrix.MATRIX[0], None, Outcome.LOST)

    tables.write(tmp_path)

    (row,) = json.loads((tmp_path / "matrix.json").read_text())
    assert (row["outcome"], row["mapped"], row["after"]) == ("lost", None, "")


def test_the_comparison_has_the_three_side_by_side_and_counts_them(tmp_path: Path) -> None:
    bad = replace(GOOD, mapped=False, after=Console.DEAD, faults=("kernel: a | b",))
    for cell in (*matrix.MATRIX, *matrix.AGAINST):
        if cell.kernel == "6.12" and cell.configuration.name == "native":
            left_behind(tmp_path, cell, GOOD if cell.hook is matrix.OURS else bad, Outcome.PASS)

    tables.write(tmp_path)

    lines = (tmp_path / "against.md").read_text().splitlines()
    assert lines[2] == "| no hook | 0 of 1 | not run | 0 of 1 | 0 of 1 |"
    assert lines[4] == "| vfio-console-hook | 1 of 1 | not run | 1 of 1 | 1 of 1 |"
    native = [line for line in lines if line.startswith("| 6.12.107 | native driver |")]
    assert native == [
        r"| 6.12.107 | native driver | no hook | NO | - | dead | kernel: a \| b |",
        r"| 6.12.107 | native driver | the script of the guides | NO | - | dead | kernel: a \| b |",
        "| 6.12.107 | native driver | vfio-console-hook | yes | - | visible | none |",
    ]
    short = (tmp_path / "against-short.md").read_text().splitlines()
    trouble = r"BAR not mapped; console dead afterwards; kernel: a \| b"
    assert short[2:] == [f"| 6.12.107 | native driver | {trouble} | {trouble} | well |"]
