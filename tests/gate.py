"""The real hooks/qemu with other paths in its head, for tests, the demo and the bench.

The gate runs as root, so no environment variable changes its paths. This module
writes a copy with other paths, and a program that the copy starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "hooks/qemu"
LAUNCHER = ROOT / "hooks/launch.py"

PYTHON = "/usr/bin/python3"
PROGRAM = "/usr/lib/vfio-console-hook/hook"
RUN_DIR = "/run/vfio-console-hook"
PCI = "/sys/bus/pci/devices"

ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
"""What a hook finds in its environment, as libvirtd hands it on."""

# What of hooks/launch.py another machine needs in another way.
_LAUNCHED = (
    ("os.path.realpath(here)", "{root!r}"),
    ("import vfio_console_hook  #", "import tests, vfio_console_hook  #"),
    ("from vfio_console_hook.hook import main", "from {module} import {function} as main"),
    ("main(sys.argv[1:])", "main({machine!r}, sys.argv[1:])"),
)


def write_gate(
    target: Path,
    *,
    python: str = PYTHON,
    program: str = PROGRAM,
    run_dir: str = RUN_DIR,
    pci: str = PCI,
) -> Path:
    """Writes an executable copy of the gate to target, with these paths; returns target.

    Raises ValueError when hooks/qemu is not what this function knows.
    """
    text = SOURCE.read_text(encoding="utf-8")
    for name, installed, wanted in (
        ("PYTHON", PYTHON, python),
        ("PROGRAM", PROGRAM, program),
        ("RUN_DIR", RUN_DIR, run_dir),
        ("PCI", PCI, pci),
    ):
        line = f"\n{name}={installed}\n"
        if text.count(line) != 1:
            raise ValueError(f"hooks/qemu has no single line {name}={installed}")
        quoted = wanted.replace("'", "'\\''")
        text = text.replace(line, f"\n{name}='{quoted}'\n")
    target.write_text(text, encoding="utf-8")
    target.chmod(0o755)
    return target


def write_program(target: Path, handler: str, machine: str) -> Path:
    """Writes hooks/launch.py to target, changed to handle events of another machine.

    handler is the dotted name of a function that takes the machine's directory and the
    words of the event, and gives back the exit status. Returns target. Raises ValueError
    when hooks/launch.py is not what this function knows.
    """
    module, _, function = handler.rpartition(".")
    values = {"root": str(ROOT), "module": module, "function": function, "machine": machine}
    text = LAUNCHER.read_text(encoding="utf-8")
    for code, wanted in _LAUNCHED:
        if text.count(code) != 1:
            raise ValueError(f"hooks/launch.py has no single {code}")
        text = text.replace(code, wanted.format(**values))
    target.write_text(text, encoding="utf-8")
    return target


def gate_over(root: str, directory: Path, *, python: str = sys.executable) -> Path:
    """The gate in a directory, with the real program on the fake machine below root."""
    directory.mkdir(exist_ok=True)
    program = directory / "program"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.fakehost import FakeHost\n"
        "from vfio_console_hook import hook\n"
        f"sys.exit(hook.main(sys.argv[1:], None, FakeHost({root!r})))\n",
        encoding="utf-8",
    )
    run_dir = root + RUN_DIR
    return write_gate(
        directory / "qemu",
        python=python,
        program=str(program),
        run_dir=run_dir,
    )
