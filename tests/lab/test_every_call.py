"""The tracer of every_call.py with a program that creates files; no machine is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..measured import MEASURED
from .guest import tracer

# Three processes, one after the other: each writes a file, the first removes one.
PROGRAM = """
import os, subprocess, sys
directory = sys.argv[1]
subprocess.run(["/bin/sh", "-c", f"echo 1 >{directory}/a"])
child = os.fork()
if child == 0:
    open(f"{directory}/b", "w").close()
    os._exit(0)
os.waitpid(child, 0)
open(f"{directory}/a").read()
os.remove(f"{directory}/a")
open(f"{directory}/c", "w").close()
"""


def left(directory: Path, after: int, *, all_processes: bool) -> tuple[bool, set[str]]:
    """Whether the program was killed, and the files that it has left."""
    directory.mkdir()
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM, str(directory)]
    run = tracer.run(argv, b"", after=after, all_processes=all_processes)
    return run.killed, {path.name for path in directory.iterdir()}


def test_each_call_that_changes_something_is_seen_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM, str(tmp_path)]

    run = tracer.run(argv, b"", after=0, all_processes=True)

    assert (run.status, run.stderr) == (0, "")
    calls = [call.partition(": ")[2].replace(str(tmp_path), "") for call in run.calls]
    assert calls == ["openat /a", "write /a '1\\n'", "openat /b", "unlink /a", "openat /c"]


def test_all_of_it_is_killed_right_after_each_of_them(tmp_path: Path) -> None:
    seen = [left(tmp_path / str(after), after, all_processes=True) for after in range(1, 7)]

    assert seen == [
        (True, {"a"}),
        (True, {"a"}),
        (True, {"a", "b"}),
        (True, {"b"}),
        (True, {"b", "c"}),
        (False, {"b", "c"}),
    ]


def test_or_only_the_process_that_made_the_call(tmp_path: Path) -> None:
    assert left(tmp_path / "sh", 1, all_processes=False) == (True, {"b", "c"})
    assert left(tmp_path / "itself", 4, all_processes=False) == (True, {"b"})


@pytest.mark.skipif(MEASURED, reason="coverage writes when a process ends")
def test_a_program_that_cannot_be_run_ends_with_70(tmp_path: Path) -> None:
    run = tracer.run([str(tmp_path / "missing")], b"", after=1, all_processes=True)

    assert (run.status >> 8, run.killed, run.calls) == (70, False, [])
