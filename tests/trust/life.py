"""The life of a VM as libvirt leads it, each event in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fakehost import (
    FakeHost,
    FakeLibvirt,
    close_device,
    open_device,
    snapshot,
)
from tests.fakehost.pci import BUS
from tests.libvirt_xml import domain_xml
from tests.trust.mortal import Fate, Ledger, Mortal
from tests.trust.subjects import Subject
from vfio_console_hook import cli, hook, recovery
from vfio_console_hook.journal import BY_NAME, CLAIMS

NAME = "win11"
PREPARE, START, RELEASE = "prepare", "start", "release"
_CONNECTOR = re.compile(r"(/card\d+-[A-Za-z-]+-)\d+")
_UNUSED = "/platform-framebuffer.0"
_DETACHED = "fake/detached"  # what libvirt remembers
_PATIENCE_S = 60.0
_COMMAND, _MASTER = 4, 0x4  # Linux include/uapi/linux/pci_regs.h


@dataclass(frozen=True)
class Said:
    """How a process ended (minus the signal that killed it), and what it left on stderr."""

    status: int
    stderr: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    def wrong(self) -> str:
        """Why libvirt must not get this; "" for 0 and nothing, and for 1 and a sentence."""
        lines = self.stderr.splitlines()
        if self.killed or (self.status == 0 and not lines):
            return ""
        if self.status not in (0, 1):
            return f"ended with {self.status}: {self.stderr[-200:]!r}"
        if self.status == 0:
            return f"succeeded, saying {self.stderr!r}"
        if len(lines) not in (1, 2) or not lines[0].startswith("vfio-console-hook: "):
            return f"no sentence: {self.stderr[-200:]!r}"
        return f"a bug: {lines[0]}" if "internal error" in lines[0] else ""


def in_a_process(work: Callable[[], int], output: Path) -> Said:
    """Do work in a fork, and wait until that and all that it forked has ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(reader)
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            # The caller's may hold what it has not written yet.
            sys.stdout = os.fdopen(1, "w", closefd=False)
            status = work()
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)
    os.close(writer)
    try:
        _await_eof(reader, pid)
    finally:
        os.close(reader)
    _, status = os.waitpid(pid, 0)
    return Said(os.waitstatus_to_exitcode(status), output.read_text(errors="replace"))


def _await_eof(reader: int, pid: int) -> None:
    """Until nobody has the other end open. Kills pid when that takes too long."""
    if not select.select([reader], [], [], _PATIENCE_S)[0]:
        os.kill(pid, signal.SIGKILL)


class Machine:
    """A subject's machine in a directory, on which events happen.

    Nothing of it is kept in memory but what libvirt itself remembers.
    """

    def __init__(self, subject: Subject, directory: Path, output: Path) -> None:
        self.subject = subject
        self.directory = directory
        self.output = output

    @property
    def host(self) -> FakeHost:
        return FakeHost(str(self.directory))

    # -- the program

    def event(
        self, operation: str, fate: Fate = Fate(), ledger: Ledger | None = None  # noqa: B008  (it is frozen)
    ) -> Said:
        """One event, by the program itself; only if the gate would call it (hooks/qemu)."""
        names = (self.directory / BY_NAME / one for one in (f"={NAME}", "+unnamed"))
        if operation != PREPARE and not any(map(os.path.lexists, names)):
            return Said(0, "")
        argv = [NAME, operation, "end" if operation == RELEASE else "begin", "-"]
        xml = domain_xml(*self.subject.gpus, event=operation, name=NAME)

        def work() -> int:
            return hook.main(argv, xml, Mortal(str(self.directory), fate, ledger or Ledger()))

        return in_a_process(work, self.output)

    def recover(self) -> Said:
        """vfio-console-hook recover, while no VM runs."""

        def work() -> int:
            told: list[str] = []
            host = Mortal(str(self.directory), Fate(), Ledger())
            settled = recovery.recover(host, told.append, force=False, wait_s=0)
            os.write(2, "\n".join(told).encode())
            return 0 if settled else 1

        return in_a_process(work, self.output)

    def command(self, *words: str) -> Said:
        """vfio-console-hook with these words; what it prints on stdout is in stderr, too."""

        def work() -> int:
            try:
                return cli.main(list(words), Mortal(str(self.directory), Fate(), Ledger()))
            finally:
                sys.stdout.flush()

        return in_a_process(work, self.output)

    # -- what is left

    def claimed(self) -> list[str]:
        """What the record still holds: claims, drafts of them, names."""
        return [
            f"{folder}/{name}"
            for folder in (CLAIMS, BY_NAME)
            for name in FakeHost(str(self.directory)).list(folder)
        ]

    @staticmethod
    def claims(path: str) -> bool:
        """Whether a file of the record is a claim, that keeps a GPU from others."""
        return path.startswith(f"{CLAIMS}/") and not os.path.basename(path).startswith(".")

    def seen(self) -> dict[str, str]:
        """The machine as a person sees it.

        Without what vfio-pci and libvirt leave behind with any program: bus mastering
        switched off (Linux vfio_pci_core.c, vfio_pci_core_disable), and a driver_override
        that names nobody (libvirt virPCIDeviceUnbindFromStub). And without the device on
        which nothing ever draws, which some kernels remove with any GPU (stages/others.py).
        """
        host = self.host
        seen = snapshot(host)
        for address in self.subject.gpus:
            device = host.real(f"sys/bus/pci/devices/{address}") or ""
            config = bytearray(host.read_bytes(f"{device}/config") or b"")
            if config:
                config[_COMMAND] &= ~_MASTER
                seen[f"{device}/config"] = config.hex()
            if seen.get(f"{device}/driver_override", "").strip() in ("", "(null)"):
                seen.pop(f"{device}/driver_override", None)
        return {
            _CONNECTOR.sub(r"\1N", path): _CONNECTOR.sub(r"\1N", what)
            for path, what in seen.items()
            if _UNUSED not in path
        }

    def complete(self) -> bool:
        """Whether all GPUs of the VM are on the PCI bus."""
        return all(self.host.exists(f"{BUS}/devices/{one}") for one in self.subject.gpus)

    @property
    def fault(self) -> str:
        return self.host.fault or ""

    def log(self) -> str:
        return self.host.read("var/log/vfio-console-hook.log") or ""

    # -- libvirt and QEMU

    def detach(self) -> None:
        """libvirt binds the GPUs to vfio-pci, after prepare."""
        libvirt = FakeLibvirt(self.host)
        for address in self.subject.gpus:
            libvirt.detach(address)
        self.host.tree.put(_DETACHED, " ".join(sorted(libvirt._bound_by_us)))

    def run_vm(self) -> list[int]:
        """QEMU has the GPUs open for a while; the BARs that it could not have."""
        host = self.host
        blocked = [bar for address in self.subject.gpus for bar in open_device(host, address)]
        for address in self.subject.gpus:
            close_device(host, address)
        return blocked

    def reattach(self) -> None:
        """libvirt takes the GPUs back, before release."""
        libvirt = FakeLibvirt(self.host)
        libvirt._bound_by_us.update((self.host.read(_DETACHED) or "").split())
        self.host.tree.remove(_DETACHED)
        for address in self.subject.gpus:
            libvirt.reattach(address)
