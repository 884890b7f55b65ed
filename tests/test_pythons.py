"""The oldest Python that a supported host has, and other versions on this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gate import ROOT

# Of the program and the standard library alone, as these seldom have lxml and PyYAML.
_ROUND_TRIP = """
import sys
sys.path.insert(0, sys.argv[1])
from vfio_console_hook import cli, hook
from vfio_console_hook.actions.kinds import MODULES, action_of_kind
from vfio_console_hook.claims.step import Step, fits
examples = ("text", True, 1, 1.5, ("text",), (1,), (1, None))
kinds = [action_of_kind(one) for names in MODULES.values() for one in names]
for kind in kinds:
    fields = getattr(kind, "__annotations__", {})
    action = kind(**{name: next(e for e in examples if fits(f, e)) for name, f in fields.items()})
    step = Step("stage", "0000:01:00.0", "why", action, action)
    again = Step.from_json(step.to_json())
    assert (again, hash(again), repr(again)) == (step, hash(step), repr(step))
    assert again.undo.shell() and again.undo.past()
print(len(kinds), "kinds")
"""


def installed(minor: int) -> str | None:
    """A python3.MINOR: the system's, or one that pyenv has built."""
    built = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))
    found = [*map(str, built), shutil.which(f"python3.{minor}")]
    return next((one for one in found if one and _runs(one)), None)


def _runs(python: str) -> bool:
    """Whether this runs Python; a command of pyenv may only print the versions it has built."""
    return subprocess.run([python, "-I", "-c", ""], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("minor", range(9, 16))
def test_each_step_can_be_read_back_from_a_claim(minor: int) -> None:
    python = installed(minor)
    if python is None:
        pytest.skip(f"python3.{minor} is not installed")

    done = subprocess.run(
        [python, "-I", "-c", _ROUND_TRIP, str(ROOT)], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[0]) > 10  # kinds of actions
