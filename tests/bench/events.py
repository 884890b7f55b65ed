"""The events of a VM with one GPU, and a Python that only imports lxml.etree and yaml.

Each goes through the real gate, which starts Python; only the machine is a recorded one
(pretending.py). With yaml, because a hook whose configuration sets anything loads it.
"""

from __future__ import annotations

import compileall
import shutil
from pathlib import Path

from tests.bench.compare import Row
from tests.bench.measure import Run, cost, interleaved
from tests.gate import ROOT, write_gate
from tests.libvirt_xml import domain_xml
from vfio_console_hook.recorded import unpack

MACHINE = "lab-efifb-6.12"
GPU = "0000:01:00.0"
NAME = "win11"
BAR = 1.3
IMPORTS = ("/usr/bin/python3", "-I", "-c", "import lxml.etree, yaml")
EVENTS = (("prepare", "begin"), ("start", "begin"), ("release", "end"))

# As hooks/launch.py, and as small: a script is compiled in every run.
PROGRAM = """\
import gc, os, sys
gc.disable()
sys.dont_write_bytecode = True
sys.path.insert(0, {repository!r})
from tests.bench.pretending import main
status = main({machine!r}, sys.argv[1:])
sys.stderr.flush()
os._exit(status)
"""


def rows(directory: Path, rounds: int) -> tuple[Row, ...]:
    """prepare, start and release of a VM with the GPU of MACHINE, in processor time."""
    for folder in ("vfio_console_hook", "tests/bench"):
        compileall.compile_dir(ROOT / folder, quiet=1)
    machine = directory / "machine"
    machine.mkdir()
    unpack((ROOT / f"tests/machines/{MACHINE}.tree").read_text(encoding="utf-8"), str(machine))
    runs = tuple(_run(directory, machine, *event) for event in EVENTS)
    cost(runs[0])  # leaves its record, and the answers that are kept for the whole boot
    claimed = directory / "claimed"
    shutil.copytree(machine, claimed, symlinks=True)
    for folder in ("claims", "by-name"):
        for file in (machine / "run/vfio-console-hook" / folder).iterdir():
            file.unlink()
    runs = (runs[0], *(_run(directory, claimed, *event) for event in EVENTS[1:]))
    *ours, theirs = interleaved([*([run] for run in runs), [Run(IMPORTS)]], rounds)
    return tuple(
        Row(f"{operation} with one GPU ({MACHINE})", "cpu", one.cpu_s, theirs.cpu_s, BAR)
        for (operation, _), one in zip(EVENTS, ours)
    )


def _run(directory: Path, machine: Path, operation: str, suboperation: str) -> Run:
    """One event on a machine, as libvirt has it run by the gate."""
    program = directory / f"hook-{operation}"
    program.write_text(PROGRAM.format(repository=str(ROOT), machine=str(machine)), encoding="utf-8")
    gate = write_gate(
        directory / f"gate-{operation}",
        program=str(program),
        run_dir=str(machine / "run/vfio-console-hook"),
    )
    argv = (str(gate), NAME, operation, suboperation, "-")
    return Run(argv, domain_xml(GPU, name=NAME))
