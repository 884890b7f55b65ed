"""One QEMU as the host under test, and the connection to the agent inside.

The machine has an emulated IOMMU, so vfio-pci works in it, and emulated GPUs,
each behind its own root port and therefore in an IOMMU group of its own. It
runs without KVM: OVMF crashes under KVM on some nested hosts.
"""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import u_boot
from .architectures import AMD64, ARM64, Architecture
from .kernels import Built
from .pictures import Picture, read_ppm

BOOT_S = 420
LIFE_S = 1500
PORT = "vfio-lab"

KERNEL_LINE = (
    "console=tty0 {of_architecture} panic=-1"
    # Hang detectors use wall-clock time, of which an emulated CPU gets little.
    " nowatchdog"
    # Off unless a scenario needs it; a later apparmor=1 overrides this.
    " apparmor=0"
)
# libvirtd probing nested KVM can hang an emulated CPU for minutes.
NEVER_LOADED = ("kvm", "kvm_amd", "kvm_intel")
NATIVE_DRIVERS = ("bochs", "bochs_drm")


class LostMachine(Exception):
    """The machine died or went silent; ready is whether the agent had answered before."""

    def __init__(self, text: str, *, ready: bool) -> None:
        super().__init__(text)
        self.ready = ready


@dataclass(frozen=True)
class Gpu:
    """An emulated GPU: device is QEMU's name for it.

    "VGA" has class 0300, "bochs-display" has 0380. vesafb needs it on the root
    bus: behind a root port SeaBIOS leaves it in text mode. sound: it has a sound
    function, as graphics cards have for HDMI. usb: it has a USB controller too, as
    cards with a USB-C socket do.
    """

    device: str = "VGA"
    on_root_bus: bool = False
    sound: bool = False
    usb: bool = False


@dataclass(frozen=True)
class Hardware:
    """What QEMU emulates, and the words for the kernel line."""

    gpus: tuple[Gpu, ...]
    firmware: Path | None  # the directory with OVMF, or U-Boot; None means SeaBIOS
    kernel_line: str = ""
    blacklist_native: bool = True
    accelerator: str = "tcg,thread=multi"
    architecture: Architecture = AMD64
    memory_mib: int = 2048


@dataclass(frozen=True)
class Answer:
    """The exit status and output of a command in the machine."""

    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether it ended with status 0."""
        return self.status == 0


def kernel_line(hardware: Hardware) -> str:
    """The whole kernel line of a machine."""
    never = NEVER_LOADED + (NATIVE_DRIVERS if hardware.blacklist_native else ())
    always = KERNEL_LINE.format(of_architecture=hardware.architecture.kernel_line)
    words = (always, f"modprobe.blacklist={','.join(never)}", hardware.kernel_line)
    return " ".join(word for word in words if word)


def qemu_arguments(hardware: Hardware, built: Built, program: Path, directory: Path) -> list[str]:
    """QEMU's command line without the serial console, the agent's port and QMP."""
    # One CPU: with two, QEMU's emulation sometimes executes the breakpoint of the kernel's
    # code patching (Oops: int3), and machines take longer.
    argv = [hardware.architecture.emulator, "-accel", hardware.accelerator, "-smp", "1"]
    argv += ["-m", str(hardware.memory_mib), *hardware.architecture.board]
    argv += ["-nodefaults", "-no-reboot", "-display", "none"]
    for number, gpu in enumerate(hardware.gpus):
        place = f"bus=pcie.0,addr={5 + number:#x}"
        if not gpu.on_root_bus:
            argv += ["-device", f"pcie-root-port,id=rp{number},chassis={number + 1},{place}"]
            place = f"bus=rp{number}"
        functions = ",addr=0.0,multifunction=on" if gpu.sound or gpu.usb else ""
        argv += ["-device", f"{gpu.device},id=gpu{number},{place}{functions}"]
        if gpu.sound:
            argv += ["-device", f"ich9-intel-hda,id=sound{number},{place},addr=0.1"]
            argv += ["-audiodev", f"none,id=audio{number}"]
            codec = f"hda-output,bus=sound{number}.0,audiodev=audio{number}"
            argv += ["-device", codec]
        if gpu.usb:
            argv += ["-device", f"qemu-xhci,id=usb{number},{place},addr=0.2"]
    disks = [str(disk) for disk in (built.root, built.modules, program)]
    if hardware.architecture is ARM64:
        argv += ["-bios", str(hardware.firmware)]
        boot = (directory / "boot", built.image, built.initrd, kernel_line(hardware))
        disks.append(u_boot.disk(*boot))
    else:
        argv += ["-kernel", str(built.image), "-initrd", str(built.initrd)]
        argv += ["-append", kernel_line(hardware)]
        argv += _pc_firmware(hardware, directory)
    for number, disk in enumerate(disks):
        drive = f"file={disk},format=raw,if=none,readonly=on,id=disk{number}"
        place = f"bus=pcie.0,addr={0x10 + number:#x}"
        argv += ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{number},{place}"]
    return argv


def _pc_firmware(hardware: Hardware, directory: Path) -> list[str]:
    if not hardware.firmware:
        return []
    variables = directory / "ovmf-vars.fd"
    shutil.copy(hardware.firmware / "OVMF_VARS_4M.fd", variables)
    code = hardware.firmware / "OVMF_CODE_4M.fd"
    argv = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
    return [*argv, "-drive", f"if=pflash,unit=1,format=raw,file={variables}"]


def interactive(hardware: Hardware, built: Built, program: Path) -> int:
    """A root shell on the serial console of a machine; QEMU's exit status."""
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        argv = qemu_arguments(hardware, built, program, Path(directory))
        return subprocess.call([*argv, "-serial", "mon:stdio"])


class Machine:
    """A running machine; as a context manager it never leaves a QEMU behind.

    Every method raises LostMachine when the machine no longer answers.
    """

    def __init__(self, hardware: Hardware, built: Built, program: Path, directory: Path) -> None:
        self.directory = directory
        self.ready = False
        self.run_by = ""
        self._transcript = (directory / "transcript.txt").open("a")
        # Socket paths can have 107 bytes at most, so not in the directory of the results.
        self._sockets = Path(tempfile.mkdtemp(prefix="lab-"))
        self._deadline = time.monotonic() + LIFE_S
        argv = qemu_arguments(hardware, built, program, directory)
        argv += ["-serial", f"file:{directory / 'serial.log'}"]
        argv += ["-device", "virtio-serial-pci,bus=pcie.0,addr=0x18"]
        argv += ["-chardev", f"socket,id=lab,path={self._sockets}/lab,server=on,wait=off"]
        argv += ["-device", f"virtserialport,chardev=lab,name={PORT}"]
        argv += ["-qmp", f"unix:{self._sockets}/qmp,server=on,wait=off"]
        # When the lab is killed, its machines die with it.
        argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        with (directory / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wire = self._connect("lab")
            self._qmp = self._connect("qmp")
            self._pending = {self._wire: b"", self._qmp: b""}
            self._receive(self._qmp, 30)
            self._ask(self._qmp, {"execute": "qmp_capabilities"}, 30)
            self._receive(self._wire, BOOT_S)
            self.ready = True
        except BaseException:
            self.close()
            raise

    def run(self, command: str, timeout_s: float = 60) -> Answer:
        """Run a sh command in the machine; its answer, with status 124 after a timeout.

        run_by is a command that runs it, such as "runcon LABEL".
        """
        whole = f"{self.run_by} sh -c {shlex.quote(command)}" if self.run_by else command
        request = {"run": whole, "timeout": timeout_s}
        reply = self._ask(self._wire, request, timeout_s + 120)
        answer = Answer(int(str(reply["status"])), str(reply["stdout"]), str(reply["stderr"]))
        text = f"$ {command}\n{answer.stdout}{answer.stderr}[{answer.status}]\n"
        self._transcript.write(text)
        self._transcript.flush()
        return answer

    def put(self, path: str, content: bytes) -> None:
        """Write a file in the machine, with the directories it needs."""
        data = base64.b64encode(content).decode()
        self._ask(self._wire, {"put": path, "data": data}, 120)

    def get(self, path: str) -> bytes | None:
        """The content of a file in the machine; None if it cannot be read."""
        data = self._ask(self._wire, {"get": path}, 120).get("data")
        return base64.b64decode(str(data)) if data is not None else None

    def screendump(self, gpu: int) -> Picture:
        """The picture that a monitor on that GPU (by number) shows now."""
        path = self._sockets / "screen.ppm"
        arguments = {"filename": str(path), "device": f"gpu{gpu}"}
        self._ask(self._qmp, {"execute": "screendump", "arguments": arguments}, 60)
        return read_ppm(path)

    def live_longer(self, seconds: float) -> None:
        """Extend the deadline of this machine."""
        self._deadline += seconds

    def note(self, text: str) -> None:
        """Write a heading into the transcript."""
        self._transcript.write(f"\n=== {text}\n")
        self._transcript.flush()

    def close(self) -> None:
        """Power the machine off, by force if it does not obey."""
        try:
            if self.ready and self._qemu.poll() is None:
                self._wire.sendall(b'{"run": "echo o > /proc/sysrq-trigger", "timeout": 5}\n')
                self._qemu.wait(15)
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            self._qemu.kill()
            self._qemu.wait()
            self._transcript.close()
            shutil.rmtree(self._sockets, ignore_errors=True)
            (self.directory / "ovmf-vars.fd").unlink(missing_ok=True)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _connect(self, name: str) -> socket.socket:
        wire = socket.socket(socket.AF_UNIX)
        for _ in range(100):
            try:
                wire.connect(str(self._sockets / name))
                return wire
            except OSError:
                if self._qemu.poll() is not None:
                    break
                time.sleep(0.1)
        raise LostMachine("QEMU did not start, see qemu.log", ready=False)

    def _ask(
        self, wire: socket.socket, request: dict[str, object], timeout_s: float
    ) -> dict[str, object]:
        try:
            wire.sendall(json.dumps(request).encode() + b"\n")
        except OSError as e:
            raise LostMachine(f"the connection to the machine broke: {e}", ready=self.ready) from e
        while True:
            reply = self._receive(wire, timeout_s)
            if "event" not in reply:
                return reply

    def _receive(self, wire: socket.socket, timeout_s: float) -> dict[str, object]:
        until = min(time.monotonic() + timeout_s, self._deadline)
        while b"\n" not in self._pending[wire]:
            wire.settimeout(max(until - time.monotonic(), 0.01))
            try:
                data = wire.recv(1 << 20)
            except socket.timeout as e:
                text = f"the machine was silent for {timeout_s:.0f} s"
                raise LostMachine(text, ready=self.ready) from e
            except OSError as e:
                raise LostMachine(
                    f"the connection to the machine broke: {e}", ready=self.ready
                ) from e
            if not data:
                raise LostMachine("the machine closed the connection", ready=self.ready)
            self._pending[wire] += data
        line, _, self._pending[wire] = self._pending[wire].partition(b"\n")
        reply: dict[str, object] = json.loads(line)
        return reply
