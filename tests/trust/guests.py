"""An event of a VM in a process of its own, and what libvirt would see of it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fakehost import FakeHost
from tests.gate import ROOT
from tests.libvirt_xml import domain_xml
from vfio_console_hook import hook
from vfio_console_hook.recorded import unpack

GPU = "0000:01:00.0"
NAME = "win11"
_HANGS_S = 30


@dataclass(frozen=True)
class Told:
    """How the process ended, as waitpid() has it, and what it wrote to stderr."""

    status: int
    stderr: str

    def wrong(self, status: int, why: str = "", operation: str = "") -> str:
        """What is wrong with it: another status, no single sentence, or one without why."""
        lines = self.stderr.splitlines()
        if self.status == -signal.SIGALRM:
            return "it hangs"
        if self.status != status:
            return f"{operation} ended with {self.status}, not {status}: {self.stderr!r}"
        if status == 0 and lines:
            return f"it says {self.stderr!r}"
        if status and (len(lines) not in (1, 2) or not lines[0].startswith("vfio-console-hook: ")):
            return f"no sentence: {self.stderr!r}"
        if not all(line.isprintable() for line in self.stderr.rstrip("\n").split("\n")):
            return f"it steers the terminal: {self.stderr!r}"
        if "internal error" in self.stderr:
            return f"a bug: {self.stderr!r}"
        return "" if why in self.stderr else f"it does not say {why!r}: {self.stderr!r}"


def fresh(machine: str, directory: Path) -> FakeHost:
    """A machine whose vfio-pci is loaded, in a new directory below this one."""
    root = directory / "machine"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    unpack((ROOT / f"tests/machines/{machine}.tree").read_text(encoding="utf-8"), str(root))
    FakeHost(str(root)).load_module("vfio-pci")
    return FakeHost(str(root))


def event(
    host: FakeHost,
    operation: str,
    name: str = NAME,
    xml: bytes | None = None,
    first: Callable[[], object] = int,
) -> Told:
    """Let libvirt call the hook for a VM with one GPU; first is done in the same process."""
    given = xml if xml is not None else domain_xml(GPU, name=name, event=operation)
    sub = "end" if operation in ("release", "stopped") else "begin"

    def work() -> int:
        first()
        return hook.main([name, operation, sub, "-"], given, type(host)(host.root))

    return in_a_child(work, Path(host.root).parent / "stderr")


def in_a_child(work: Callable[[], int], stderr: Path, stdout: Path | None = None) -> Told:
    """What came of work in a process of its own, which is ended when it hangs."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.alarm(_HANGS_S)
            for number, path in ((2, stderr), (1, stdout or Path(os.devnull))):
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(handle, number)
            status = work()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Told(status, stderr.read_text(encoding="utf-8", errors="surrogateescape"))
