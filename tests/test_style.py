"""What holds for every file: linters, and which module may do and import what."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gate import ROOT

PACKAGE = ROOT / "vfio_console_hook"
MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON_FILES = (
    "vfio_console_hook", "tests", "hooks/launch.py", "hooks/command.py",
    "config/proxmox-hookscript.py", "config/packaging/build.py",
)  # fmt: skip
SHELL_FILES = (
    "hooks/qemu", "hooks/daemon", "install.sh", ".ci/run",
    "tests/set-up", "tests/run", "tests/lab/run", "tests/trust/run", "tests/bench/run",
    "tests/packages/run", "tests/pythons/run",
    "tests/lab/guest/generic-hook.sh",
)  # fmt: skip

# Read by other scripts.
SHELL_PARTS = ("hooks/setup.sh", "config/packaging/package.sh")

# ruff reads no setup.cfg, so its options are here.
RUFF = ("--isolated", "--line-length=100", "--target-version=py39")
RUFF_RULES = "--select=A,B,C4,C90,E,F,I,PIE,PLE,PLW,RET,RUF,S,SIM,T10,UP,W"
# RUF001 to RUF003 reject characters that the kernel and users write; the others are taste.
RUFF_IGNORE = "--ignore=RUF001,RUF002,RUF003,RUF005,PLW1510,PLW2901,SIM105,SIM300,SIM905"

# Tests may do what these rules of flake8-bandit (S) warn of, such as assert and run programs.
RUFF_IN_TESTS = "--per-file-ignores=" + ",".join(
    f"tests/**:{rule}" for rule in ("S101", "S103", "S105", "S108", "S603", "S606", "S607")
)
EXCLUDES = re.compile(
    r"# (?:noqa: [A-Z0-9]+(?:, ?[A-Z0-9]+)*|type: ignore\[[a-z-]+\]|pragma: no \w+)"
)

# Loading these would cost more than the rest of the hook together, or needs a package
# that is not there on every host: they are imported where they are used.
NEVER_BY_THE_HOOK = {
    "argparse", "asyncio", "configparser", "ctypes", "email", "http",
    "libvirt", "logging", "lxml", "multiprocessing", "shutil", "ssl", "subprocess", "tempfile",
    "unittest", "urllib", "yaml",
}  # fmt: skip

# The rooms, from top to bottom: each imports from those below it only.
ROOMS = (
    "hook", "cli", "commands", "events", "stages", "claims", "actions", "config", "domain",
    "largexml", "log", "machine", "errors", "value",
)  # fmt: skip

# The doors to the machine, and the modules that have a key.
DOORS = {
    "open": {
        "machine/host/files.py",
        "machine/host/consoles.py",
        "machine/host/nodes.py",
        "machine/host/processes.py",
        "machine/host/programs.py",
        "machine/runfiles.py",
        "machine/snapshot.py",
        "machine/worker.py",
        "machine/streams.py",
        "claims/claim.py",
        "claims/directory.py",
        "claims/history.py",
        "config/load.py",
        "log.py",
        "commands/check_config.py",
        "commands/files.py",
    },
    "process": {
        "machine/host/processes.py", "machine/host/programs.py", "machine/worker.py",
    },
    "subprocess": {"machine/host/programs.py"},
    "fcntl": {"machine/host/consoles.py", "machine/host/nodes.py", "claims/directory.py"},
    "socket": set(),
    "_socket": {"log.py"},
    "ctypes": set(),
    "libvirt": {"machine/libvirtd.py"},
    "mmap": {"machine/host/nodes.py"},
    "shutil": {"machine/snapshot.py"},
    "tempfile": {"cli.py", "machine/snapshot.py"},
}
# What of `os` starts or ends processes, and what looks at or changes files.
OS_PROCESSES = {"fork", "execv", "execve", "execvp", "posix_spawn", "kill", "killpg", "system"}
OS_FILES = {
    "open", "read", "write", "pread", "pwrite", "listdir", "scandir", "walk", "stat", "lstat",
    "readlink", "unlink", "remove", "rename", "replace", "mkdir", "makedirs", "rmdir", "symlink",
    "link", "chmod", "chown", "truncate", "fsync", "access",
}  # fmt: skip
PATH_FILES = {"read_text", "read_bytes", "write_text", "write_bytes"}


def tool(name: str) -> str:
    """The path of a linter; the test is skipped without it, or fails if REQUIRE_TOOLS is set."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is not None:
        return found
    if os.environ.get("REQUIRE_TOOLS"):
        pytest.fail(f"{name} is not installed")
    pytest.skip(f"{name} is not installed")


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def name_of(module: Path) -> str:
    return str(module.relative_to(PACKAGE))


def test_mypy_has_no_objection() -> None:
    check(tool("mypy"), "--strict", *PYTHON_FILES)


def test_ruff_has_no_objection() -> None:
    rules = (RUFF_RULES, RUFF_IGNORE, RUFF_IN_TESTS)
    check(tool("ruff"), "check", "--no-cache", *RUFF, *rules, *PYTHON_FILES)


def test_every_line_that_is_left_out_says_why() -> None:
    """Of a linter or the coverage."""
    left_out = [
        f"{path.relative_to(ROOT)}: {line}"
        for folder in ("vfio_console_hook", "tests", "hooks")
        for path in ROOT.glob(f"{folder}/**/*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if (found := EXCLUDES.search(line))
        and not re.match(r"  (\(.+\)|# .+)$", line[found.end() :])
    ]

    assert left_out == []


def test_shellcheck_has_no_objection() -> None:
    check(tool("shellcheck"), "--external-sources", *SHELL_FILES, *SHELL_PARTS)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
@pytest.mark.parametrize("name", (*SHELL_FILES, *SHELL_PARTS))
def test_every_shell_can_read_every_script(shell: str, name: str) -> None:
    check(tool(shell), *(["sh"] if shell == "busybox" else []), "-n", name)


@pytest.mark.parametrize("name", SHELL_FILES)
def test_scripts_are_executable_posix_sh(name: str) -> None:
    path = ROOT / name

    assert (path.read_bytes().split(b"\n")[0], path.stat().st_mode & 0o111) == (b"#!/bin/sh", 0o111)


def test_the_hook_loads_nothing_that_costs_time_before_it_is_needed() -> None:
    program = "import sys, vfio_console_hook.hook; print(*sys.modules, sep='\\n')"

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    loaded = {line.partition(".")[0] for line in done.stdout.splitlines()}
    assert loaded & NEVER_BY_THE_HOOK == set()


_OWN_COMPARISON = """
import dataclasses, sys
import vfio_console_hook.config.load, vfio_console_hook.events.prepare, vfio_console_hook.hook
from vfio_console_hook.actions.kinds import MODULES, action_of_kind
ours = [one for name, one in sys.modules.items() if name.startswith("vfio_console_hook.")]
found = {one for module in ours for one in vars(module).values() if dataclasses.is_dataclass(one)}
found |= {action_of_kind(kind) for kinds in MODULES.values() for kind in kinds}
for one in found:
    if isinstance(one, type) and {"__eq__", "__hash__", "__repr__"} & vars(one).keys():
        print(one.__name__)
"""


def test_what_events_load_has_no_comparison_of_its_own() -> None:
    """dataclass would compile it each time (value.py)."""
    done = subprocess.run(
        [sys.executable, "-c", _OWN_COMPARISON], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    assert done.stdout.split() == []


def door_called(function: ast.expr) -> str | None:
    """The door that a call of this function opens, if it opens one."""
    called = ast.unparse(function)
    owner, _, name = called.rpartition(".")
    if owner == "os" and name in OS_PROCESSES:
        return "process"
    if called == "open" or (owner == "os" and name in OS_FILES):
        return "open"
    # Host has methods of the same names, and these are what every module should use.
    return "open" if name in PATH_FILES and not owner.endswith("host") else None


def doors_used(module: Path) -> Iterator[tuple[str, int]]:
    """Each door that a module uses, with the line."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno
        elif isinstance(node, ast.Call) and (door := door_called(node.func)):
            yield door, node.lineno


def test_only_those_with_a_key_open_a_door_to_the_machine() -> None:
    used = [
        f"{name_of(module)}:{line} uses {door}"
        for module in MODULES
        for door, line in doors_used(module)
        if name_of(module) not in DOORS.get(door, {name_of(module)})
    ]

    assert used == []


def imported(module: Path, *, late: bool = True) -> Iterator[str]:
    """The modules and rooms of the package that a module imports, as dotted names.

    late: also inside functions, and for type checkers only.
    """
    package = module.relative_to(PACKAGE).parent.parts
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += tuple(node.module.split(".")) if node.module else ()
            yield from (".".join((*base, alias.name)) for alias in node.names)


def test_a_room_imports_only_from_those_below_it() -> None:
    upwards = []
    for module in MODULES:
        room = module.relative_to(PACKAGE).with_suffix("").parts[0]
        if room != "__init__":
            # A room may import from itself; hook and cli are no rooms for others to come into.
            below = {*ROOMS[max(ROOMS.index(room), 2) :], room, "__version__"}
            names = (name for name in imported(module) if name.split(".")[0] not in below)
            upwards += [f"{name_of(module)} imports {name}" for name in names]

    assert upwards == []


def test_modules_do_not_import_each_other_when_they_are_loaded() -> None:
    names = {".".join(one.relative_to(PACKAGE).with_suffix("").parts): one for one in MODULES}
    above = {}
    for name, module in names.items():
        found = (
            target
            for one in imported(module, late=False)
            for target in (one, one.rpartition(".")[0])
        )
        above[name] = {*found} & names.keys() - {name}

    while free := {name for name, imports in above.items() if not imports & above.keys()}:
        above = {name: imports for name, imports in above.items() if name not in free}

    assert above == {}, "these import each other"


def test_the_hook_never_loads_what_only_people_need() -> None:
    assert [name for name in imported(PACKAGE / "hook.py") if re.match("commands|cli", name)] == []
