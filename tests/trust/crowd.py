"""VMs by the hundred on a host with sixteen GPUs, and libvirt's threads that start them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.building import MEM64, G, M, Machine, Pci, render
from tests.fakehost import FakeLibvirt
from tests.gate import ENVIRONMENT, write_gate, write_program
from tests.hosts import AMD, VGA, firmware_on
from tests.libvirt_xml import domain_xml
from tests.natives import AMDGPU
from tests.trust.shared import WAITS, SharedHost
from vfio_console_hook.config.load import DIRECTORY
from vfio_console_hook.machine.runfiles import RUN
from vfio_console_hook.machine.snapshot import unpack

GPUS = 16
LIBVIRT_THREADS = 20
"""max_workers of libvirtd.conf, as it comes."""

TIMEOUT_S = 600
"""How long an event may take: the most that can be configured, as any machine may be slow."""

_BEGINNING = (("prepare", "begin"), ("start", "begin"), ("started", "begin"))
_END = (("stopped", "end"), ("release", "end"))


def address(number: int) -> str:
    """The GPU of the VM of that number, counted from 1."""
    return f"0000:{number:02x}:00.0"


def sixteen_gpus() -> Machine:
    """Sixteen cards: the first shows the firmware's picture, amdgpu has the others."""
    gpus = tuple(
        Pci(
            address(number), VGA, (AMD, 0x744C),
            bars=((0, (64 + number) * G, 256 * M, MEM64),), bridge=f"0000:00:{number:02x}.0",
            group=number, boot_vga=number == 1, shadow=number == 1, bound=number > 1,
            native=AMDGPU if number > 1 else "",
        )
        for number in range(1, GPUS + 1)
    )  # fmt: skip
    firmware = firmware_on(gpus[0], "efifb", "6.12")
    return Machine("sixteen-gpus", ("Invented: a host for many VMs.",), "6.12", gpus, (firmware,))


@dataclass(frozen=True)
class Vm:
    """A VM; gpu is "" for one without a host device."""

    name: str
    uuid: str
    gpu: str

    @classmethod
    def of(cls, number: int, gpu: str | None = None) -> Vm:
        """The VM of that number; the first have a GPU each, unless gpu says which."""
        own = address(number) if number <= GPUS else ""
        uuid = f"00000000-0000-4000-8000-{number:012x}"
        return cls(f"vm{number}", uuid, own if gpu is None else gpu)


@dataclass
class Tally:
    """What came of events: the processor time of all, and what libvirt was shown."""

    cpu_s: float = 0.0
    events: int = 0
    refusals: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.cpu_s += other.cpu_s
        self.events += other.events
        self.refusals.update(other.refusals)


class Crowd:
    """The machine, and what libvirt does to VMs on it, in many threads."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "machine"
        self.root.mkdir()
        unpack(render(sixteen_gpus()), str(self.root))
        self.host.load_module("vfio-pci")
        self.host.tree.put(f"{DIRECTORY}/default.yaml", f"timeout_s: {TIMEOUT_S}")
        self._directory = directory
        program = write_program(directory / "program", "tests.trust.shared.main", str(self.root))
        self.gate = write_gate(
            directory / "qemu", program=str(program), run_dir=str(self.root / RUN)
        )
        self._libvirt = {vm.gpu: FakeLibvirt(self.host) for vm in map(Vm.of, range(1, GPUS + 1))}

    @property
    def host(self) -> SharedHost:
        return SharedHost(str(self.root))

    def all(self, act: Callable[[Vm], Tally], vms: Iterable[Vm], threads: int) -> Tally:
        """Do the same to VMs, so many at a time."""
        total = Tally()
        with ThreadPoolExecutor(threads) as pool:
            for tally in pool.map(act, vms):
                total.add(tally)
        return total

    def start(self, vm: Vm) -> Tally:
        """libvirt starts a VM; it goes no further when a hook refuses."""
        tally = Tally()
        for operation, suboperation in _BEGINNING:
            self.event(vm, operation, suboperation, tally)
            if tally.refusals:
                break
            if operation == "prepare" and vm.gpu:
                self._libvirt[vm.gpu].detach(vm.gpu)
        return tally

    def stop(self, vm: Vm) -> Tally:
        """The VM has ended."""
        tally = Tally()
        for operation, suboperation in _END:
            if operation == "release" and vm.gpu:
                self._libvirt[vm.gpu].reattach(vm.gpu)
            self.event(vm, operation, suboperation, tally)
        return tally

    def alone(self, vm: Vm) -> Tally:
        """A VM starts and ends, and no other one does."""
        tally = self.start(vm)
        tally.add(self.stop(vm))
        return tally

    def event(self, vm: Vm, operation: str, suboperation: str, tally: Tally) -> None:
        """libvirt calls the hook, which is the gate; what came of it is added to tally."""
        gpus = (vm.gpu,) if vm.gpu else ()
        reader, writer = os.pipe()
        os.write(writer, domain_xml(*gpus, name=vm.name, uuid=vm.uuid, event=operation))
        os.close(writer)
        argv = (str(self.gate), vm.name, operation, suboperation, "-")
        with tempfile.TemporaryFile(dir=self._directory) as stderr:
            actions = [
                (os.POSIX_SPAWN_DUP2, reader, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, stderr.fileno(), 2),
            ]
            pid = os.posix_spawn(argv[0], argv, ENVIRONMENT, file_actions=actions)
            os.close(reader)
            _, status, usage = os.wait4(pid, 0)
            stderr.seek(0)
            text = stderr.read().decode(errors="replace")
        tally.events += 1
        tally.cpu_s += usage.ru_utime + usage.ru_stime
        if status or text:
            tally.refusals[vm.name] = f"{operation}: {os.waitstatus_to_exitcode(status)} {text}"

    def longest_wait_s(self) -> float:
        """The longest that a hook has waited for the lock of the claims since the last time."""
        waits = self.root / WAITS
        found = [float(line) for line in waits.read_text().split()] if waits.exists() else [0.0]
        waits.unlink(missing_ok=True)
        return max(found)

    def left_running(self) -> list[str]:
        """The processes that still run on this machine, by their command lines."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                command = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
            except OSError:
                continue
            if str(self._directory).encode() in command:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def await_none(self, timeout_s: float = 5.0) -> list[str]:
        """The processes that still run after a while: none, if all is well."""
        end = time.monotonic() + timeout_s
        while (left := self.left_running()) and time.monotonic() < end:
            time.sleep(0.05)
        return left
