"""One run of a scenario: what is done to the machine, and what is demanded of it.

A text is written on the host's console and its monitor is photographed; libvirt
starts the VM; QEMU must have mapped the GPU's memory; libvirt destroys the VM;
the same text is written again and the picture must be the same again, while
another text in between must have changed it, so a frozen picture cannot pass.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from .machine import LostMachine, Machine
from .pictures import Picture
from .scenarios import After, Scenario

ATTEMPTS = 3
PROGRAM = "/root/vfio-console-hook"
DOMAIN_FILE = "/root/gpu.xml"
CONFIG_FILE = "/etc/vfio-console-hook/vms/gpu.yaml"
# For the person who reads the transcript.
LOOK = "cat /proc/fb; cd /sys/class/vtconsole; grep -H . */name */bind; cat /proc/iomem"
CLAIMS = "/run/vfio-console-hook/claims"

# The text stays inside this many pixels in every font and mode the lab meets.
CORNER = (48 * 8, 8 * 16)
LIT_AT_LEAST = 0.02
LIVE_AT_LEAST = 0.02
SAME_AT_MOST = 0.005
BACK_WITHIN_S = 25

KERNEL_FAULT = re.compile(
    r"WARNING: |BUG: |kernel BUG|Oops|general protection|Call Trace|refcount_t:"
    r"|Trying to free nonexistent|blocked for more than|Kernel panic"
)
BLOCKED_BAR = "can't reserve"
NO_MAPPING = "Failed to mmap"

TEXT = (
    "This is the console of the host.",
    "You read it before a VM has the GPU,",
    "and again when the VM is gone.",
    "0123456789 abcdefghijklmnopqrstuvwxyz",
    "################ HOST ###############",
)
OTHER_TEXT = (
    "Another text, so that a console that",
    "lives can be told from a picture that",
    "is only left over.",
    "================ %%%% ===============",
    "ZYXWVUTSRQPONMLKJIHGFEDCBA 9876543210",
)

HOLDER = b"""#!/usr/bin/python3
# Keeps the framebuffer open. The name of this file is the name of the process.
import time
framebuffer = open("/dev/fb0")
time.sleep(100000)
"""


class Outcome(Enum):
    """How a scenario ended."""

    PASS = "pass"
    FAIL = "FAIL"
    LOST = "lost"


@dataclass
class Result:
    """The outcome of a scenario with its reasons."""

    scenario: Scenario
    outcome: Outcome
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class GuestGpu:
    """A GPU as the kernel in the machine sees it."""

    address: str
    bar0_first: int
    bar0_bytes: int


def run(
    scenario: Scenario, kind: type[Trial], boot: Callable[[], Machine], directory: Path
) -> Result:
    """Run a scenario; a machine that is lost before it was ready is booted again.

    kind is what is done on the machine; boot gives one that has just started.
    Files go to directory.
    """
    began = time.monotonic()
    result = Result(scenario, Outcome.LOST)
    for attempt in range(1, ATTEMPTS + 1):
        result.failures.clear()
        try:
            with boot() as machine:
                trial = kind(scenario, machine, directory, result)
                try:
                    trial.run()
                finally:
                    trial.keep_logs()
            result.outcome = Outcome.FAIL if result.failures else Outcome.PASS
            break
        except LostMachine as e:
            result.notes.append(f"attempt {attempt}: {e}")
            fault = _fault_in(directory / "serial.log") if e.ready else None
            if fault:
                result.outcome = Outcome.FAIL
                result.failures.append(f"the kernel died: {fault}")
            if e.ready:
                break
            (directory / "serial.log").rename(directory / f"serial-lost-{attempt}.log")
    result.seconds = time.monotonic() - began
    return result


def _fault_in(serial_log: Path) -> str | None:
    for line in serial_log.read_text(errors="replace").splitlines():
        if KERNEL_FAULT.search(line):
            return line.strip()
    return None


class Trial:
    """A scenario on a machine that is up; what goes wrong is collected in its result."""

    def __init__(
        self, scenario: Scenario, machine: Machine, directory: Path, result: Result
    ) -> None:
        self.scenario = scenario
        self.machine = machine
        self.directory = directory
        self.result = result
        self.gpus: tuple[GuestGpu, ...] = ()
        self.reference: Picture | None = None

    def run(self) -> None:
        """Set up, try what must be refused, then start and destroy the VM."""
        if not self.set_up():
            return
        scenario = self.scenario
        if scenario.holder:
            self.machine.put("/root/fb-holder", HOLDER)
            self.machine.run("chmod +x /root/fb-holder")
            self.machine.run("setsid /root/fb-holder >/dev/null 2>&1 & echo $! >/run/fb-holder.pid")
        if scenario.refused:
            for number in range(1, scenario.cycles + 1):
                self.refused_start(number)
        if scenario.holder:
            self.machine.run("kill $(cat /run/fb-holder.pid); sleep 1")
        if scenario.holder or not scenario.refused:
            for number in range(1, scenario.cycles + 1):
                self.cycle(number)

    @property
    def leaving(self) -> tuple[GuestGpu, ...]:
        """The GPUs that the VM gets."""
        return self.gpus[: len(self.gpus) - self.scenario.stays]

    # What every run begins with

    def set_up(self) -> bool:
        """Install the program, define the VM, find the console. False: no use to go on."""
        self.machine.note("set up")
        ready = "until virsh -q list >/dev/null 2>&1; do sleep 1; done"
        if not self.demand(self.machine.run(ready, 180).ok, "libvirtd did not come up"):
            return False
        # From here on the pictured console belongs to us.
        self.machine.run("dmesg -n 1; udevadm settle -t 60")
        self.gpus = self.find_gpus()
        expected = len(self.scenario.gpus)
        if not self.demand(len(self.gpus) == expected, f"the machine has not {expected} GPUs"):
            return False
        if self.scenario.hook and not self.install():
            return False
        self.machine.put(DOMAIN_FILE, domain_xml(self.leaving).encode())
        define = self.machine.run(f"virsh define {DOMAIN_FILE}")
        if not self.demand(define.ok, f"virsh define: {define.stderr.strip()}"):
            return False
        return self.find_console()

    def find_gpus(self) -> tuple[GuestGpu, ...]:
        """The display devices in the machine, by address."""
        listing = self.machine.run(
            "cd /sys/bus/pci/devices && for d in *; do"
            ' case $(cat $d/class) in 0x03*) echo "$d $(head -n1 $d/resource)";; esac; done'
        )
        gpus = []
        for line in listing.stdout.splitlines():
            address, *words = line.split()
            first, last, _flags = (int(word, 16) for word in words)
            gpus.append(GuestGpu(address, first, last - first + 1))
        return tuple(gpus)

    def install(self) -> bool:
        """Run install.sh and write the VM's configuration."""
        answer = self.machine.run(f"cd {PROGRAM} && sh install.sh", 240)
        said = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
        if not self.demand(answer.ok, f"install.sh: {' '.join(said)}"):
            return False
        if self.scenario.config:
            self.machine.put(CONFIG_FILE, self.scenario.config.encode())
        return True

    def find_console(self) -> bool:
        """Check which driver draws the console, and that the first GPU's monitor shows it."""
        self.machine.run(LOOK)
        framebuffer = self.machine.run("cat /proc/fb 2>/dev/null").stdout.partition(" ")[2]
        console = self.scenario.console
        found = not framebuffer if console == "text" else framebuffer.startswith(console)
        if not self.demand(found, f"the console is {framebuffer.strip() or 'text'}, not {console}"):
            return False
        one = self.photograph("", TEXT)[self.scenario.monitor]
        other = self.photograph("", OTHER_TEXT)[self.scenario.monitor]
        self.reference = one
        return self.demand(
            one.lit() >= LIT_AT_LEAST and one.difference(other) >= LIVE_AT_LEAST,
            "the monitor does not show the console",
        )

    # A start that must be refused

    def refused_start(self, number: int) -> None:
        """Start the VM in vain; the host must not notice."""
        self.machine.note(f"refused start {number}")
        self.mark(f"refused start {number}")
        self.write(TEXT)
        name = f"refused{number}"
        before = self.pictures(f"{name}-before")[self.scenario.monitor]
        state = self.host_state()
        plan = self.plan(name)
        error = self.start()
        after = self.pictures(f"{name}-after")[self.scenario.monitor]

        self.demand(error is not None, f"{name}: the VM started")
        text = error or ""
        self.demand(
            bool(re.search(self.scenario.refused, text)),
            f"{name}: the error does not say /{self.scenario.refused}/: {text}",
        )
        self.check_told(name, plan, text)
        self.demand(before.difference(after) <= SAME_AT_MOST, f"{name}: the picture changed")
        self.demand(self.host_state() == state, f"{name}: the host's state changed")
        live = self.photograph(f"{name}-other", OTHER_TEXT)[self.scenario.monitor]
        self.demand(before.difference(live) >= LIVE_AT_LEAST, f"{name}: the console is frozen")
        self.check_kernel(name)
        self.check_claims(name)

    def host_state(self) -> str:
        """Drivers, framebuffers and claims of the GPUs, to be compared with a later look."""
        drivers = " ".join(f"/sys/bus/pci/devices/{gpu.address}/driver" for gpu in self.gpus)
        return self.machine.run(
            f"readlink {drivers}; cat /proc/fb; grep -H . /sys/class/vtconsole/*/*;"
            " ls -l /sys/bus/platform/devices | sed 's/.* root root//' | cut -c 20-;"
            " grep -iE 'fb|drm|vga|vfio' /proc/iomem"
        ).stdout

    # A start that must work

    def cycle(self, number: int) -> None:
        """Start and destroy the VM once, with all checks."""
        self.machine.note(f"cycle {number}")
        self.mark(f"cycle {number}")
        name = f"cycle{number}"
        self.photograph(f"{name}-before", TEXT)
        plan = self.plan(name)
        if number == 1:
            self.record("before")
        error = self.start()
        if self.demand(error is None, f"{name}: virsh start: {error}"):
            time.sleep(5)
            self.check_running(name)
            self.pictures(f"{name}-during")
            if self.scenario.stays:
                self.check_other_monitor(name)
            if number == 1:
                self.record("during")
            destroy = self.machine.run("virsh destroy gpu", 180)
            self.demand(destroy.ok, f"{name}: virsh destroy: {destroy.stderr.strip()}")
        self.check_console(name, number)
        self.check_kernel(name)
        if self.scenario.hook:
            self.check_claims(name)
            if number == 1:
                self.check_told(name, plan, error or "")
                self.record("after")

    def start(self) -> str | None:
        """Start the VM; what virsh complained about, or None."""
        answer = self.machine.run("virsh start gpu", 240)
        return None if answer.ok else answer.stderr.strip()

    def check_running(self, name: str) -> None:
        """The VM runs, and QEMU has mapped BAR 0 of each GPU, or none of them."""
        state = self.machine.run("virsh domstate gpu").stdout.strip()
        self.demand(state == "running", f"{name}: the VM is {state!r}, not running")
        maps = self.machine.run(
            "cat /proc/$(cat /run/libvirt/qemu/gpu.pid)/maps | grep vfio; cat /proc/iomem"
        ).stdout
        mapped = len(mapped_bars(maps, self.leaving))
        wanted = len(self.leaving) if self.scenario.mapped else 0
        self.demand(mapped == wanted, f"{name}: {mapped} GPUs have BAR 0 mapped, not {wanted}")

    def check_other_monitor(self, name: str) -> None:
        """The GPU that stays shows the console, which is alive; not so without the hook."""
        self.machine.run(LOOK)
        other = self.photograph(f"{name}-meanwhile-other", OTHER_TEXT)[-1]
        text = self.photograph(f"{name}-meanwhile", TEXT)[-1]
        alive = other.difference(text) >= LIVE_AT_LEAST
        state = "alive" if alive else "dead"
        self.demand(
            alive is self.scenario.hook, f"{name}: the console on the GPU that stays is {state}"
        )

    def check_console(self, name: str, number: int) -> None:
        """The console is back and alive, or dead where it was said that it would be."""
        deadline = time.monotonic() + BACK_WITHIN_S
        while True:
            other = self.photograph(f"{name}-other", OTHER_TEXT)[self.scenario.monitor]
            after = self.photograph(f"{name}-after", TEXT)[self.scenario.monitor]
            alive = other.difference(after) >= LIVE_AT_LEAST
            if alive or self.scenario.after is not After.BACK or time.monotonic() > deadline:
                break
            time.sleep(2)
        self.machine.run(LOOK)
        if self.scenario.after is After.EITHER:
            self.result.notes.append(f"{name}: the console is {'back' if alive else 'gone'}")
        elif self.scenario.after is After.GONE:
            self.demand(not alive, f"{name}: the console came back although it was said to be gone")
        else:
            self.demand(alive, f"{name}: the console is dead")
            assert self.reference is not None
            same = after.lit() >= LIT_AT_LEAST
            same = same and self.reference.difference(after) <= SAME_AT_MOST
            self.demand(not alive or same, f"{name}: the console does not look as before")

    # What is looked at in both

    def check_kernel(self, name: str) -> None:
        """No fault in the kernel log, and a blocked BAR only where one is expected."""
        log = self.machine.run("dmesg").stdout
        log = log[max(log.rfind("lab: begin"), 0) :]
        for line in log.splitlines():
            if KERNEL_FAULT.search(line):
                self.demand(False, f"{name}: kernel: {line}")
                break
        qemu = self.machine.run("cat /var/log/libvirt/qemu/gpu.log").stdout
        blocked = BLOCKED_BAR in log
        unmapped = NO_MAPPING in qemu
        if self.scenario.hook:
            self.demand(not blocked, f"{name}: the kernel says {BLOCKED_BAR!r}")
            self.demand(not unmapped, f"{name}: QEMU says {NO_MAPPING!r}")
        elif not self.scenario.mapped:
            self.demand(
                blocked, f"{name}: without the hook the kernel does not say {BLOCKED_BAR!r}"
            )

    def check_claims(self, name: str) -> None:
        """Nothing is held for a VM that does not run."""
        self.machine.run("vfio-console-hook status; ls -lR /run/vfio-console-hook")
        left = self.machine.run(f"ls -A {CLAIMS} 2>/dev/null").stdout.split()
        self.demand(not left, f"{name}: claims are left: {' '.join(left)}")

    def check_told(self, name: str, plan: str, error: str) -> None:
        """The person was told what the scenario says."""
        log = self.machine.run("journalctl -o cat -t vfio-console-hook").stdout
        places = {"plan": plan, "log": log, "error": error}
        for place, pattern in self.scenario.told:
            found = re.search(pattern, places[place])
            self.demand(bool(found), f"{name}: the {place} does not say /{pattern}/")

    def plan(self, name: str) -> str:
        """What the program would do, as it says; kept beside the pictures."""
        if not self.scenario.hook:
            return ""
        answer = self.machine.run(f"vfio-console-hook plan --xml {DOMAIN_FILE}", 120)
        (self.directory / f"{name}-plan.txt").write_text(answer.stdout + answer.stderr)
        return answer.stdout + answer.stderr

    def record(self, when: str) -> None:
        """Keep the machine as the program records it, for tests without a kernel."""
        if not self.scenario.hook:
            return
        path = f"/root/machine-{when}.tree"
        answer = self.machine.run(f"vfio-console-hook record {path}", 180)
        content = self.machine.get(path) if answer.ok else None
        if content is None:
            self.result.notes.append(f"no recording {when}")
        else:
            (self.directory / f"machine-{when}.tree").write_bytes(content)

    def demand(self, holds: bool, otherwise: str) -> bool:
        """Note a failure unless it holds; whether it does."""
        if not holds:
            self.result.failures.append(otherwise)
            self.machine.note(f"FAILURE: {otherwise}")
        return holds

    def mark(self, text: str) -> None:
        """Where later looks into the kernel log begin."""
        self.machine.run(f"echo 'lab: begin {text}' > /dev/kmsg")

    # The monitor

    def photograph(self, name: str, text: tuple[str, ...]) -> list[Picture]:
        """Write a text on the host's console, then take the pictures."""
        self.write(text)
        return self.pictures(name)

    def write(self, text: tuple[str, ...]) -> None:
        """Clear the host's first console, hide its cursor, write the text."""
        content = "\033c\033[?25l\033[2J\033[H" + "\r\n".join(text)
        self.machine.put("/run/lab-text", content.encode())
        self.machine.run("timeout 20 cat /run/lab-text > /dev/tty1; sleep 1")

    def pictures(self, name: str) -> list[Picture]:
        """The corner with the text of each GPU's monitor; the whole is kept as PNG."""
        corners = []
        for number in range(len(self.scenario.gpus)):
            picture = self.machine.screendump(number)
            if name:
                suffix = f"-gpu{number}" if len(self.scenario.gpus) > 1 else ""
                picture.write_png(self.directory / f"{name}{suffix}.png")
            corners.append(picture.corner(*CORNER))
        return corners

    def keep_logs(self) -> None:
        """Copy the machine's own logs to the results, as far as it still answers."""
        logs = {
            "dmesg.txt": "dmesg",
            "journal.txt": "journalctl -b --no-hostname",
            "hook-log.txt": "journalctl -t vfio-console-hook --no-hostname",
            "vm-qemu.log": "cat /var/log/libvirt/qemu/gpu.log",
        }
        try:
            for name, command in logs.items():
                (self.directory / name).write_text(self.machine.run(command).stdout)
        except LostMachine:
            self.result.notes.append("the machine's own logs were lost with it")


def domain_xml(gpus: tuple[GuestGpu, ...]) -> str:
    """A VM of 64 MiB without a disk that owns the GPUs."""
    hostdevs = ""
    for gpu in gpus:
        domain, bus, slot, function = re.split("[:.]", gpu.address)
        hostdevs += (
            "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
            f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
            "</source></hostdev>\n"
        )
    return f"""<domain type='qemu'>
<name>gpu</name>
<uuid>6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a01</uuid>
<memory unit='MiB'>64</memory>
<vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<on_poweroff>destroy</on_poweroff>
<devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='usb' model='none'/>
<memballoon model='none'/>
<video><model type='none'/></video>
{hostdevs}</devices>
</domain>
"""


def mapped_bars(maps: str, gpus: tuple[GuestGpu, ...]) -> list[str]:
    """Those lines of /proc/PID/maps that map the whole BAR 0 of a GPU through vfio.

    The offset of BAR 0 is 0 (region n begins at n << 40), but 5.10 rewrites it
    to the bus address (Linux drivers/vfio/pci/vfio_pci.c, vfio_pci_mmap, vm_pgoff).
    """
    bars = {(gpu.bar0_bytes, offset) for gpu in gpus for offset in (0, gpu.bar0_first)}
    found = []
    for line in maps.splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) .*vfio", line)
        if not match:
            continue
        first, last, offset = (int(word, 16) for word in match.groups())
        if (last - first, offset) in bars:
            found.append(line)
    return found
