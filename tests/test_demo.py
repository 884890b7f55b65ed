"""The demo, which many users run first: it must succeed, and fit 80 columns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo import python_with_libraries
from tests.gate import ROOT


def test_the_demo_succeeds_and_fits_80_columns() -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.demo"], cwd=ROOT, capture_output=True, text=True
    )

    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in lines if len(line) > 80] == []
    assert lines[-1] == "Nothing of this computer was touched."


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_demo_takes_a_virtual_environment_that_is_there(tmp_path: Path) -> None:
    host = program(tmp_path / "python3", f"echo >>{tmp_path}/asked; exit 1")
    able = program(tmp_path / "venv/bin/python", "exit 0")

    assert python_with_libraries(host, tmp_path / "venv") == able
    assert (tmp_path / "asked").read_text() == "\n"


def test_the_demo_says_why_there_is_no_virtual_environment(tmp_path: Path) -> None:
    host = program(tmp_path / "python3", "echo 'No module named venv' >&2; exit 1")

    with pytest.raises(SystemExit, match="lxml and PyYAML: No module named venv\nhint: "):
        python_with_libraries(host, tmp_path / "venv")
