"""The life of a VM as libvirt leads it, each event in a process of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.fakehost import FakeHost, FakeLibvirt, close_device, open_device, snapshot
from tests.fakehost.pci import BUS
from tests.libvirt_xml import domain_xml
from tests.trust.fault import Fault, Trace
from tests.trust.faulthost import FaultHost
from tests.trust.process import Exit, in_a_process
from tests.trust.subjects import Subject
from vfio_console_hook import cli, hook
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME
from vfio_console_hook.events import recovery
from vfio_console_hook.log import SNAPSHOT_LOG

NAME = "win11"
PREPARE, START, RELEASE = "prepare", "start", "release"
_CONNECTOR = re.compile(r"(/card\d+-[A-Za-z-]+-)\d+")
_UNUSED = "/platform-framebuffer.0"
_DETACHED = "fake/detached"  # what libvirt remembers
_COMMAND, _MASTER = 4, 0x4  # Linux include/uapi/linux/pci_regs.h


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
        self,
        operation: str,
        fault: Fault = Fault(),  # noqa: B008  (it is frozen)
        trace: Trace | None = None,
    ) -> Exit:
        """One event, by the program itself; only if the gate would call it (hooks/qemu)."""
        names = (self.directory / BY_NAME / one for one in (f"={NAME}", "+unnamed"))
        if operation != PREPARE and not any(map(os.path.lexists, names)):
            return Exit(0, "")
        argv = [NAME, operation, "end" if operation in (RELEASE, "stopped") else "begin", "-"]
        xml = domain_xml(*self.subject.gpus, event=operation, name=NAME)

        def work() -> int:
            return hook.main(argv, xml, FaultHost(str(self.directory), fault, trace or Trace()))

        return in_a_process(work, self.output)

    def recover(self) -> Exit:
        """vfio-console-hook recover, while no VM runs."""

        def work() -> int:
            lines: list[str] = []
            host = FaultHost(str(self.directory), Fault(), Trace())
            settled = recovery.recover(host, lines.append, force=False, wait_s=0)
            os.write(2, "\n".join(lines).encode())
            return 0 if settled else 1

        return in_a_process(work, self.output)

    def command(self, *words: str) -> Exit:
        """vfio-console-hook with these words; what it prints on stdout is in stderr, too."""

        def work() -> int:
            return cli.main(list(words), FaultHost(str(self.directory), Fault(), Trace()))

        return in_a_process(work, self.output)

    # -- what is left

    def claimed(self) -> list[str]:
        """What is left in /run: claims, drafts of them, names."""
        return [
            f"{folder}/{name}"
            for folder in (CLAIMS, BY_NAME)
            for name in FakeHost(str(self.directory)).list(folder)
        ]

    @staticmethod
    def is_claim(path: str) -> bool:
        """Whether a file there is a claim, that keeps a GPU from others."""
        return path.startswith(f"{CLAIMS}/") and not os.path.basename(path).startswith(".")

    def seen(self) -> dict[str, str]:
        """The machine as a person sees it.

        Without what vfio-pci and libvirt leave behind with any program: bus mastering
        switched off (Linux vfio_pci_core.c, vfio_pci_core_disable), and a driver_override
        without a name (libvirt virPCIDeviceUnbindFromStub). And without the device on
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
        return self.host.read(SNAPSHOT_LOG) or ""

    # -- libvirt and QEMU

    def detach(self) -> None:
        """libvirt binds the GPUs to vfio-pci, after prepare."""
        libvirt = FakeLibvirt(self.host)
        for address in self.subject.gpus:
            libvirt.detach(address)
        bound = [one for one in self.subject.gpus if libvirt.forget(one)]
        self.host.tree.put(_DETACHED, " ".join(bound))

    def run_vm(self) -> str:
        """QEMU has the GPUs open for a while; which BARs it could not have, "" for none."""
        host = self.host
        blocked = [bar for address in self.subject.gpus for bar in open_device(host, address)]
        for address in self.subject.gpus:
            close_device(host, address)
        return f"QEMU could not have BAR {blocked}" if blocked else ""

    def reattach(self) -> None:
        """libvirt takes the GPUs back, before release and after the event "stopped"."""
        self.event("stopped")
        libvirt = FakeLibvirt(self.host)
        for address in (self.host.read(_DETACHED) or "").split():
            libvirt.adopt(address)
        self.host.tree.remove(_DETACHED)
        for address in self.subject.gpus:
            libvirt.reattach(address)
