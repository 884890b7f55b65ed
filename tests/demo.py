"""The main job from beginning to end, on a machine from a snapshot in a temporary directory.

    python -m tests.demo        (or ./install.sh --demo)

The gate (hooks/qemu) and the program are the real ones, called as libvirtd calls
them: the same arguments, the XML on stdin, the same environment. Only the machine
is simulated, by a snapshot that reacts to writes as Linux does (tests/fakehost),
and so are libvirt's own part and QEMU. Needs neither root nor a GPU nor libvirt, and
changes nothing outside the directory. Exits with 1 if a step had another result.

Where Python lacks lxml or PyYAML the demo makes a virtual environment in the clone, which
needs a network.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from tests import snapshots
from tests.fakehost import FakeHost, FakeLibvirt, close_device, open_device, snapshot
from tests.gate import ROOT, write_gate
from tests.libvirt_xml import domain_xml
from vfio_console_hook import cli
from vfio_console_hook.log import SNAPSHOT_LOG
from vfio_console_hook.machine import console, gpu, pci

VM = "win11"
WIDTH = 80
MACHINE = "lab-efifb-6.12"
REFUSED_MACHINE = "simpledrm-0380-6.12"

# Replaces hooks/launch.py of the installation: it runs the program on a simulated
# machine.
_PROGRAM = """\
import sys
sys.path.insert(0, {repository!r})
from tests.fakehost import FakeHost
from vfio_console_hook.hook import main
sys.exit(main(sys.argv[1:], host=FakeHost({machine!r})))
"""
_KINDS = {0x0300: "VGA controller", 0x0302: "3D controller", 0x0380: "display controller"}


@dataclass(frozen=True)
class Stage:
    """A machine, and the gate that is installed on it."""

    host: FakeHost
    gate: Path
    address: str

    def event(self, operation: str, suboperation: str, extra: str = "-") -> tuple[int, str]:
        """Run the hook as libvirtd does; return its exit status and its stderr."""
        done = subprocess.run(
            [str(self.gate), VM, operation, suboperation, extra],
            input=domain_xml(self.address, name=VM, event=operation),
            env={"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"},
            cwd="/",
            capture_output=True,
        )
        if done.stdout:
            raise SystemExit(f"the hook printed on stdout, which is libvirt's: {done.stdout!r}")
        return done.returncode, done.stderr.decode()


def set_up(folder: Path, name: str) -> Stage:
    """A new machine from a snapshot, in a directory below folder, with the hook installed."""
    machine = folder / name
    snapshots.unpack_into(name, machine)
    host = FakeHost(str(machine))
    host.load_module("vfio-pci")
    program = folder / f"{name}.py"
    program.write_text(_PROGRAM.format(repository=str(ROOT), machine=str(machine)))
    gate = write_gate(
        folder / f"{name}.gate",
        python=sys.executable,
        program=str(program),
        run_dir=host.path("run/vfio-console-hook"),
    )
    displays = [a for a in host.list("sys/bus/pci/devices") if pci.display_class(host, a)]
    return Stage(host, gate, displays[0])


# -- drawing


def title(text: str) -> None:
    print(f"\n-- {text} {'-' * (WIDTH - len(text) - 4)}")


def say(text: str, indent: str = "   ") -> None:
    print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent))


def print_fact(text: str, *, mark: str) -> None:
    """Print one fact behind a mark: "$" for a command, ">" for the output of the program."""
    print(
        textwrap.fill(
            text, WIDTH, initial_indent=f" {mark} ", subsequent_indent="     ",
            break_on_hyphens=False, break_long_words=False,
        )
    )  # fmt: skip


def draw(stage: Stage, monitor: str) -> None:
    """The GPU, who claims its memory, where the consoles are, and the monitor on it."""
    host = stage.host
    one = gpu.gpus_among(host, (stage.address,))[0]
    kind = _KINDS.get(one.pci_class, "display device")
    driver = f"driven by {one.driver}" if one.driver else "no driver of its own"
    print(f"   GPU {one.address}  {kind} (class {one.pci_class:04x}), {driver}")
    for bar in one.bars:
        size = bar.range.last - bar.range.first + 1
        inside = [reservation for reservation in one.reservations if reservation.bar == bar.number]
        whose = "" if inside else "free"
        print(f"     BAR {bar.number}  {bar.range!s:<22}{_human(size):>8}  {whose}".rstrip())
        for reservation in inside:
            print(f"            {reservation.range!s:<22}          {reservation.name}")
    for device in one.firmware:
        state = f"bound to {device.driver}" if device.driver else "bound to no driver"
        print(f"     {device.name}, {state}")
    for vtconsole in console.vtconsoles(host):
        mark = "*" if vtconsole.bound else " "
        print(f"   {mark} {vtconsole.name}  {vtconsole.driver}")
    print(f"   the host's consoles: {console.current_display(host)}")
    print(f"   +{'-' * 30}+\n   | {monitor:<28} |  the monitor on this GPU\n   +{'-' * 30}+")


def _human(size: int) -> str:
    units = ("B", "KiB", "MiB", "GiB")
    power = min((size.bit_length() - 1) // 10, 3)
    return f"{size >> (10 * power)} {units[power]}"


def monitor(host: FakeHost) -> str:
    """The content of the monitor that is connected to the host."""
    drawn = console.FBCON in {one.driver for one in console.vtconsoles(host) if one.bound}
    return "debian login: _" if drawn and console.framebuffers(host) else ""


class Story:
    """Runs the events one after another and prints what each of them did."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.failures: list[str] = []

    def expect(self, fact: bool, text: str) -> None:
        if not fact:
            self.failures.append(text)
            print(f" ! {text}")

    def _log(self) -> list[str]:
        return (self.stage.host.read(SNAPSHOT_LOG) or "").splitlines()

    def plan(self) -> None:
        """Print the steps of `vfio-console-hook plan`, without the GPU above them."""
        xml = Path(self.stage.host.path("run/win11.xml"))
        xml.parent.mkdir(exist_ok=True)
        xml.write_bytes(domain_xml(self.stage.address, name=VM))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = cli.main(["--root", self.stage.host.root, "plan", "--xml", str(xml)])
        self.expect(status == 0, "plan failed")
        print(f" $ virsh dumpxml {VM} | vfio-console-hook plan --xml -")
        for line in printed.getvalue().partition("\n\n")[2].splitlines():
            print(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent=" " * 8,
                                break_on_hyphens=False, break_long_words=False))  # fmt: skip

    def event(self, operation: str, suboperation: str, extra: str = "-") -> tuple[int, str]:
        """Run the hook and print its log; return its exit status and stderr."""
        before = len(self._log())
        began = time.monotonic()
        status, stderr = self.stage.event(operation, suboperation, extra)
        took_ms = (time.monotonic() - began) * 1000
        print(f" $ /etc/libvirt/hooks/qemu {VM} {operation} {suboperation} {extra}")
        # After a failure the log has the same text as stderr.
        for line in [] if stderr else self._log()[before:]:
            print_fact(line.partition(f" {VM}: ")[2] or line, mark=">")
        for line in stderr.splitlines():
            print_fact(line, mark="!")
        print(f"     exit status {status}, {took_ms:.0f} ms")
        return status, stderr


def without_bus_mastering(config: str) -> str:
    """The header of config space, in hex, with that bit of COMMAND off."""
    header = bytearray.fromhex(config)
    header[4] &= ~0x04
    return header.hex()


def the_main_job(folder: Path) -> list[str]:
    """Run prepare, start, started, stopped and release; return the failures."""
    stage = set_up(folder, MACHINE)
    host, address = stage.host, stage.address
    story = Story(stage)
    libvirt = FakeLibvirt(host)
    before = snapshot(host)
    config = f"{host.real(f'sys/bus/pci/devices/{address}')}/config"
    release = host.read("proc/sys/kernel/osrelease")

    title("before: the firmware's console is on the GPU")
    say(
        f"A recorded machine, Linux {release}. The hook is the real one; libvirt, QEMU and the"
        f" kernel are played. The VM {VM} has this GPU as <hostdev managed='yes'>."
    )
    draw(stage, monitor(host))
    reserved = gpu.gpus_among(host, (address,))[0].foreign_reservations
    story.expect(bool(reserved), "nothing is in the GPU's way")
    say(f"QEMU could not map BAR 0 now, because {reserved[0].name} has a part of it.")

    title("what prepare would do, and why")
    story.plan()

    title(f"virsh start {VM}: before libvirt detaches the GPU")
    story.expect(story.event("prepare", "begin")[0] == 0, "prepare failed")

    title("libvirt detaches the GPU, vfio-pci binds it, QEMU is about to start")
    libvirt.detach(address)
    story.expect(story.event("start", "begin")[0] == 0, "start failed")
    blocked = open_device(host, address)
    refused = [line for line in host.log if "can't reserve" in line]
    say(f"QEMU opens the GPU: BARs it cannot map: {blocked or 'none'}; kernel lines \"can't"
        f" reserve\": {len(refused)}")  # fmt: skip
    story.expect(not blocked and not refused, "a BAR could not be mapped")
    story.expect(story.event("started", "begin")[0] == 0, "started failed")

    title("during: the VM has the GPU")
    draw(stage, "the VM's picture")

    title(f"virsh shutdown {VM}: libvirt gives the GPU back, then asks us")
    close_device(host, address)
    story.expect(story.event("stopped", "end")[0] == 0, "stopped failed")
    libvirt.reattach(address)
    story.expect(story.event("release", "end", "shutdown")[0] == 0, "release failed")

    title("after: the console is back")
    draw(stage, monitor(host))
    after = snapshot(host)
    # The kernel cleared it (pci_disable_device); the GPU's next driver sets it again.
    before[config] = without_bus_mastering(before[config])
    changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    say(
        f"{len(before)} files and links compared with those before, but for the GPU's bus"
        f" mastering, which the kernel ends with the VM: {len(changed)} differ."
    )
    for path in changed:
        story.expect(False, f"/{path} is not as before")
    story.expect(host.fault is None, f"the kernel would have crashed: {host.fault}")
    return story.failures


def a_refusal(folder: Path) -> list[str]:
    """Refuse a GPU that this kernel cannot free, and change nothing; return the failures."""
    stage = set_up(folder, REFUSED_MACHINE)
    story = Story(stage)
    before = snapshot(stage.host)

    title("another machine: simpledrm and BOOTFB on a GPU of class 0380")
    draw(stage, monitor(stage.host))
    say("Unbinding the driver would leave BOOTFB, and QEMU could not map BAR 0. So:")
    status, _ = story.event("prepare", "begin")
    story.expect(status == 1, "prepare did not refuse")
    say("virsh shows that sentence, the VM does not start, the monitor still shows the console.")
    story.expect(snapshot(stage.host) == before, "the machine is not as before")
    return story.failures


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="vfio-console-hook-demo-") as folder:
        failures = the_main_job(Path(folder)) + a_refusal(Path(folder))
    print()
    if failures:
        print(f"The demo failed: {'; '.join(failures)}")
        return 1
    print("Nothing of this computer was touched.")
    return 0


def python_with_libraries(host: str, venv: Path) -> str:
    """The host's Python, or that of a virtual environment, if the host's lacks lxml or PyYAML.

    Raises SystemExit if the environment has to be made and cannot be.
    """
    if _has_libraries(host):
        return host
    python = str(venv / "bin/python")
    if not _has_libraries(python):
        print(f"making a virtual environment in {venv}", flush=True)
        _make(host, "-m", "venv", "--clear", str(venv))
        _make(python, "-m", "pip", "install", "--quiet", "lxml", "PyYAML")
    return python


def _has_libraries(python: str) -> bool:
    if not Path(python).exists():
        return False
    done = subprocess.run([python, "-c", "import lxml.etree, yaml"], capture_output=True)
    return done.returncode == 0


def _make(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise SystemExit(
            f"cannot make a virtual environment with lxml and PyYAML: {last}\n"
            "hint: install lxml and PyYAML by hand, or run install.sh --demo as root"
        )


if __name__ == "__main__":
    able = python_with_libraries(sys.executable, ROOT / ".venv")
    if able != sys.executable:
        os.execv(able, [able, "-B", "-m", "tests.demo"])
    sys.exit(main())
