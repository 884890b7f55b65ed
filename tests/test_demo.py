"""The demo, which many users run first: it must succeed, and fit 80 columns."""

from __future__ import annotations

import subprocess
import sys

from tests.gate import ROOT


def test_the_demo_succeeds_and_fits_80_columns() -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.demo"], cwd=ROOT, capture_output=True, text=True
    )

    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in lines if len(line) > 80] == []
    assert lines[-1] == "Nothing of this computer was touched."
