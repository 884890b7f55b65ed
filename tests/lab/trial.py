"""One run of a scenario: its steps on the machine, and its demands.

The trial writes a text to the host's console and takes a picture of its monitor; libvirt
starts the VM; QEMU must have mapped the GPU's memory; libvirt destroys the VM; with the
same text the picture must be the same again, and another text in between must have
changed it, so a frozen picture cannot pass.

The first cycle takes a snapshot of the machine after each phase, and each must be as the
fake machine predicts from the first snapshot (predicted.py). The last cycle measures the
hook's share of the start.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from . import kernel_log, kernels, monitors, phases, predicted, printed, scenarios, share
from .architectures import IDLE
from .machine import LostMachine, Machine
from .monitors import LIT_AT_LEAST, OTHER_TEXT, TEXT
from .pictures import Picture
from .result import Result
from .scenarios import After, Scenario
from .vm import GuestGpu, domain_xml, mapped_bars, read_gpu

PROGRAM = "/root/vfio-console-hook"
DOMAIN_FILE = "/root/gpu.xml"
CONFIG_FILE = "/etc/vfio-console-hook/vms/gpu.yaml"
HOOK = "/etc/libvirt/hooks/qemu"
# For people who read the transcript.
LOOK = "cat /proc/fb; cd /sys/class/vtconsole; grep -H . */name */bind; cat /proc/iomem"
# What draws the console: the name of the first framebuffer. Kernels without fb devices
# (FB_DEVICE=n) have no /proc/fb; there, the firmware's driver by its reservation, or else
# the driver of the first card, with whose name DRM's framebuffers begin (drm_fb_helper.c).
CONSOLE = (
    "if [ -e /proc/fb ]; then sed -n '1s/^[0-9]* //p' /proc/fb;"
    " elif grep -oE 'simpledrm|efifb|efidrm' /proc/iomem; then :;"
    " else cat /sys/kernel/debug/dri/*/name | head -n 1; fi"
)
CLAIMS = "/run/vfio-console-hook/claims"
# The hook's lines in the log: in the file of syslog where systemd does not run the machine.
HOOK_LOG = (
    "if [ -d /run/systemd/system ]; then journalctl -o cat -t vfio-console-hook;"
    r" else sed -n 's/^.* vfio-console-hook\(\[[0-9]*\]\)\?: //p' /var/log/syslog; fi"
)

BACK_WITHIN_S = 25
REFUSED_WITHIN_S = 60
# libvirt 7.0 cuts its message at 1022 bytes, of which about 190 are its own text.
ERROR_BYTES = 800


class Trial:
    """A scenario on a machine that is up; failures are collected in its result."""

    def __init__(
        self, scenario: Scenario, machine: Machine, directory: Path, result: Result
    ) -> None:
        self.scenario = scenario
        self.machine = machine
        self.directory = directory
        self.result = result
        self.gpus: tuple[GuestGpu, ...] = ()
        self.reference: Picture | None = None
        self.snapshots: dict[str, str] = {}
        self.printed_by_install = ""

    hook_path = HOOK
    """The path of our hook."""
    watched = True
    """Whether a script may run in the hook's place, which takes snapshots and times."""

    def run(self) -> None:
        """Set up, start the VM when it must be refused, then start and destroy it."""
        if not self.set_up():
            return
        scenario = self.scenario
        if scenario.holder:
            scenario.holder.begin(self.machine)
        if scenario.refused:
            for number in range(1, scenario.cycles + 1):
                self.refused_start(number)
        if scenario.holder:
            scenario.holder.end(self.machine)
        if scenario.holder or not scenario.refused:
            for number in range(1, scenario.cycles + 1):
                self.cycle(number)

    @property
    def leaving(self) -> tuple[GuestGpu, ...]:
        """The GPUs that the VM gets."""
        return scenarios.leaving(self.scenario, self.gpus)

    # The beginning of every run

    def set_up(self) -> bool:
        """Install the program, define the VM, find the console; whether all that succeeded."""
        self.machine.note("set up")
        ready = "until virsh -q list >/dev/null 2>&1; do sleep 1; done"
        if not self.demand(self.machine.run(ready, 400).ok, "libvirtd did not come up"):
            return False
        # From here on no other text is written to the console in the pictures.
        self.machine.run("dmesg -n 1; udevadm settle -t 60")
        self.gpus = self.find_gpus()
        expected = len(self.scenario.gpus)
        if not self.demand(len(self.gpus) == expected, f"the machine has not {expected} GPUs"):
            return False
        shadowed = [gpu.rom_shadowed for gpu in self.leaving]
        wanted = self.scenario.rom_shadowed
        otherwise = f"whether the ROM of the VM's GPUs is shadowed: {shadowed}, not {wanted}"
        if not self.demand(wanted is None or set(shadowed) == {wanted}, otherwise):
            return False
        if self.scenario.hook and not self.install():
            return False
        architecture = kernels.named(self.scenario.kernel).architecture
        if architecture.idle:
            self.machine.put(IDLE, architecture.idle)
        xml = domain_xml(
            self.leaving, others=self.other_devices(), architecture=architecture
        )
        self.machine.put(DOMAIN_FILE, xml.encode())
        define = self.machine.run(f"virsh define {DOMAIN_FILE}")
        if not self.demand(define.ok, f"virsh define: {define.stderr.strip()}"):
            return False
        return self.find_console()

    def other_devices(self) -> tuple[str, ...]:
        """The addresses of other devices that the VM gets."""
        return ()

    def find_gpus(self) -> tuple[GuestGpu, ...]:
        """The display devices in the machine, in the order of QEMU's command line."""
        # In the order of the root ports, not of the addresses behind them.
        listing = self.machine.run(
            "cd /sys/bus/pci/devices && for d in *; do"
            ' case $(cat $d/class) in 0x03*) echo "$(readlink -f $d)";; esac; done | sort'
        )
        return tuple(
            read_gpu(path.rpartition("/")[2], self.machine.run(f"cat {path}/resource").stdout)
            for path in listing.stdout.split()
        )

    def install(self) -> bool:
        """Run install.sh and write the VM's configuration."""
        answer = self.machine.run(f"cd {PROGRAM} && sh install.sh", 240)
        self.printed_by_install = answer.stdout
        lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
        if not self.demand(answer.ok, f"install.sh: {' '.join(lines)}"):
            return False
        self.configure()
        return True

    def configure(self) -> None:
        """Write the VM's configuration, if the scenario has one."""
        if self.scenario.config:
            self.machine.put(CONFIG_FILE, self.scenario.config.encode())

    def find_console(self) -> bool:
        """Check which driver draws the console, and that the first GPU's monitor shows it."""
        self.machine.run(LOOK)
        drawn_by = self.machine.run(CONSOLE).stdout.strip()
        console = self.scenario.console
        found = not drawn_by if console == "text" else drawn_by.startswith(console)
        if not self.demand(found, f"the console is {drawn_by or 'text'}, not {console}"):
            return False
        one = self.photograph("", TEXT)[self.scenario.monitor]
        other = self.photograph("", OTHER_TEXT)[self.scenario.monitor]
        self.reference = one
        return self.demand(
            one.lit() >= LIT_AT_LEAST and monitors.alive(one, other),
            "the monitor does not show the console",
        )

    # A start that must be refused

    def refused_start(self, number: int) -> None:
        """Start the VM in vain; the host must not change."""
        self.machine.note(f"refused start {number}")
        self.mark(f"refused start {number}")
        self.write(TEXT)
        name = f"refused{number}"
        before = self.pictures(f"{name}-before")[self.scenario.monitor]
        state = self.host_state()
        plan = self.plan(name)
        machine = phases.now(self.machine)
        began = time.monotonic()
        error = self.start()
        seconds = time.monotonic() - began
        after = self.pictures(f"{name}-after")[self.scenario.monitor]

        self.demand(error is not None, f"{name}: the VM started")
        self.result.notes.append(f"{name}: virsh start took {seconds:.0f} s")
        self.demand(seconds <= REFUSED_WITHIN_S, f"{name}: the refusal came late")
        text = error or ""
        self.demand(
            bool(re.search(self.scenario.refused, text)),
            f"{name}: no /{self.scenario.refused}/ in the error: {text}",
        )
        self.check_texts(name, plan, text)
        self.demand(monitors.same(before, after), f"{name}: the picture changed")
        self.demand(self.host_state() == state, f"{name}: the host's state changed")
        self.check_untouched(name, number, machine)
        live = self.photograph(f"{name}-other", OTHER_TEXT)[self.scenario.monitor]
        self.demand(monitors.alive(before, live), f"{name}: the console is frozen")
        if number == 1:
            self.check_error_whole(name, text)
        self.check_kernel(name)
        self.check_claims(name)

    def start_in_vain(self, name: str, stuck: re.Pattern[str]) -> str:
        """Start the VM in vain; the process that is stuck according to virsh's error."""
        began = time.monotonic()
        error = self.start() or ""
        self.result.notes.append(f"{name}: virsh start took {time.monotonic() - began:.0f} s")
        found = stuck.search(error)
        self.demand(found is not None, f"{name}: {error}")
        pid = found[1] if found else ""
        self.machine.run(
            f"cat /proc/{pid or 1}/stat; ps -eLo pid,tid,stat,wchan:30,comm | grep -E ' [DR]';"
            f" ls -l {CLAIMS}"
        )
        return pid

    def check_untouched(self, name: str, number: int, before: str) -> None:
        """The whole machine is as before, and the fake machine refuses the VM too."""
        difference = predicted.difference(before, phases.now(self.machine))
        self.demand(bool(before), f"{name}: no snapshot of the machine")
        self.demand(not difference, f"{name}: the machine changed:\n{difference}")
        predictable = predicted.refuses(self.scenario) and predicted.can(self.scenario)
        if number == 1 and predictable:
            (self.directory / "machine-refused.tree").write_text(before)
            with tempfile.TemporaryDirectory() as directory:
                wrong = predicted.refusal(self.scenario, before, Path(directory) / "machines")
            self.demand(not wrong, f"{name}: {wrong}")

    def check_error_whole(self, name: str, error: str) -> None:
        """virsh shows the whole error of the hook, as printed when it is run by hand."""
        alone = self.machine.run(
            f"virsh dumpxml gpu | LC_ALL=C PATH=/bin:/usr/bin {HOOK} gpu prepare begin -", 120
        )
        self.demand(alone.status == 1, f"{name}: run by hand the hook does not refuse")
        printed_error = " ".join(alone.stderr.split())
        shown = " ".join(error.split())
        whole = bool(printed_error) and printed_error in shown
        self.demand(whole, f"{name}: virsh does not show {printed_error!r}")
        size = len(alone.stderr.encode())
        self.demand(size < ERROR_BYTES, f"{name}: the error has {size} bytes")

    def host_state(self) -> str:
        """Drivers, framebuffers and memory of the GPUs, as a text to compare."""
        drivers = " ".join(f"/sys/bus/pci/devices/{gpu.address}/driver" for gpu in self.gpus)
        return self.machine.run(
            f"readlink {drivers}; cat /proc/fb; ls /sys/class/drm;"
            " grep -H . /sys/class/vtconsole/*/*;"
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
            if self.scenario.recorded:
                self.check_commands("before")
        error = self.start_watched(number)
        if self.demand(error is None, f"{name}: virsh start: {error}"):
            time.sleep(5)
            self.check_running(name)
            self.pictures(f"{name}-during")
            if self.scenario.stays:
                self.check_other_monitor(name)
            if number == 1:
                self.record("during")
            self.meanwhile(name, number)
            destroy = self.machine.run("virsh destroy gpu", 180)
            self.demand(destroy.ok, f"{name}: virsh destroy: {destroy.stderr.strip()}")
        if number == 1:
            self.keep_phases()
        self.check_console(name, number)
        self.check_kernel(name)
        if self.scenario.hook:
            self.check_claims(name)
            if number == 1:
                self.check_texts(name, plan, error or "")
                self.record("after")
                self.check_predicted(name)

    def meanwhile(self, name: str, number: int) -> None:
        """Do more while the VM runs; some kinds override this."""

    def start(self) -> str | None:
        """Start the VM; the error of virsh, or None."""
        answer = self.machine.run("virsh start gpu", 240)
        return None if answer.ok else answer.stderr.strip()

    def start_watched(self, number: int) -> str | None:
        """Start the VM, in the first cycle with snapshots of phases, in the last with times."""
        between = 1 < number < self.scenario.cycles
        if not (self.scenario.hook and self.watched) or between:
            return self.start()
        if number == 1:
            phases.begin(self.machine, self.hook_path)
            return self.start()
        began = share.begin(self.machine, self.hook_path)
        error = self.start()
        note = share.end(self.machine, self.hook_path, began)
        if error is None:
            self.result.notes.append(note)
        return error

    def keep_phase(self, phase: str) -> None:
        """Keep a snapshot of the machine now; faster than record(), which includes more."""
        if self.scenario.hook:
            self.keep_snapshot(phase, phases.now(self.machine))

    def keep_phases(self) -> None:
        """Keep the snapshots since phases.begin()."""
        if not self.scenario.hook or not self.watched:
            return
        for phase, text in phases.end(self.machine, self.hook_path).items():
            self.keep_snapshot(phase, text)

    def check_predicted(self, name: str) -> None:
        """The fake machine predicts each phase."""
        if not predicted.starts(self.scenario):
            return
        if not predicted.can(self.scenario):
            self.result.notes.append("not compared with the fake machine: no PyYAML here")
            return
        before, found = self.snapshots.pop("before", ""), self.snapshots
        missing = [phase for phase in predicted.PHASES if phase not in found]
        if not self.demand(bool(before) and not missing, f"{name}: no snapshots of {missing}"):
            return
        with tempfile.TemporaryDirectory() as directory:
            machines = Path(directory) / "machines"
            wrong = predicted.differences(self.scenario, before, found, machines)
        for phase, difference in wrong.items():
            self.demand(False, f"{name}: the fake is wrong in phase {phase}:\n{difference}")
        self.result.notes.append(f"{len(found) - len(wrong)} of {len(found)} phases as predicted")

    def check_running(self, name: str) -> None:
        """The VM runs, and QEMU has mapped BAR 0 of each GPU, or none of them."""
        self.check_mapped(name, "gpu")

    def check_mapped(self, name: str, vm: str) -> None:
        """A VM runs, and QEMU has mapped BAR 0 of each GPU, or none of them."""
        state = self.machine.run(f"virsh domstate {vm}").stdout.strip()
        self.demand(state == "running", f"{name}: the VM is {state!r}, not running")
        mapped = self.mapped_gpus(vm)
        wanted = len(self.leaving) if self.scenario.mapped else 0
        self.demand(mapped == wanted, f"{name}: {mapped} GPUs have BAR 0 mapped, not {wanted}")

    def mapped_gpus(self, vm: str) -> int:
        """How many GPUs of a VM have BAR 0 mapped by its QEMU."""
        maps = self.machine.run(
            f"cat /proc/$(cat /run/libvirt/qemu/{vm}.pid)/maps | grep vfio; cat /proc/iomem"
        ).stdout
        return len(mapped_bars(maps, self.leaving))

    def check_other_monitor(self, name: str) -> None:
        """The console on the last GPU that stays is alive, or dead if that is expected."""
        self.machine.run(LOOK)
        monitor = self.scenario.stays[-1]
        other = self.photograph(f"{name}-meanwhile-other", OTHER_TEXT)[monitor]
        text = self.photograph(f"{name}-meanwhile", TEXT)[monitor]
        alive = monitors.alive(other, text)
        state = "alive" if alive else "dead"
        self.demand(
            alive is self.scenario.alive_meanwhile,
            f"{name}: the console on the GPU that stays is {state}",
        )

    def check_console(self, name: str, number: int) -> None:
        """The console is back and alive, or dead if that was announced."""
        deadline = time.monotonic() + BACK_WITHIN_S
        while True:
            other = self.photograph(f"{name}-other", OTHER_TEXT)[self.scenario.monitor]
            after = self.photograph(f"{name}-after", TEXT)[self.scenario.monitor]
            alive = monitors.alive(other, after)
            if alive or self.scenario.after is not After.BACK or time.monotonic() > deadline:
                break
            time.sleep(2)
        self.machine.run(LOOK)
        if self.scenario.after is After.EITHER:
            self.result.notes.append(f"{name}: the console is {'back' if alive else 'gone'}")
        elif self.scenario.after is After.GONE:
            self.demand(not alive, f"{name}: the console came back although its loss was announced")
        else:
            self.demand(alive, f"{name}: the console is dead")
            assert self.reference is not None
            same = after.lit() >= LIT_AT_LEAST
            same = same and monitors.same(self.reference, after)
            self.demand(not alive or same, f"{name}: the console does not look as before")

    # Checks of both kinds of start

    def check_kernel(self, name: str) -> None:
        """No fault in the kernel log, and a blocked BAR only where one is expected."""
        log = kernel_log.since_mark(self.machine.run("dmesg").stdout)
        fault = kernel_log.fault(log)
        self.demand(fault is None, f"{name}: kernel: {fault}")
        qemu = self.machine.run("cat /var/log/libvirt/qemu/gpu.log").stdout
        blocked = kernel_log.BLOCKED_BAR in log
        unmapped = kernel_log.NO_MAPPING in qemu
        if self.scenario.hook:
            self.demand(not blocked, f"{name}: {kernel_log.BLOCKED_BAR!r} is in the kernel log")
            self.demand(not unmapped, f"{name}: {kernel_log.NO_MAPPING!r} is in QEMU's log")
        elif not self.scenario.mapped:
            self.demand(blocked, f"{name}: no {kernel_log.BLOCKED_BAR!r} in the kernel log")

    def check_claims(self, name: str) -> None:
        """No claim is left of a VM that is not running."""
        self.machine.run("vfio-console-hook status; ls -lR /run/vfio-console-hook")
        left = self.machine.run(f"ls -A {CLAIMS} 2>/dev/null").stdout.split()
        self.demand(not left, f"{name}: claims are left: {' '.join(left)}")

    def check_texts(self, name: str, plan: str, error: str) -> None:
        """The texts of the scenario are in the plan, the log and the error."""
        log = self.machine.run(HOOK_LOG).stdout
        places = {"plan": plan, "log": log, "error": error}
        for place, pattern in self.scenario.texts:
            found = re.search(pattern, places[place])
            self.demand(bool(found), f"{name}: no /{pattern}/ in the {place}")

    def plan(self, name: str) -> str:
        """The output of `plan`, kept beside the pictures."""
        if not self.scenario.hook:
            return ""
        answer = self.machine.run(f"vfio-console-hook plan --xml {DOMAIN_FILE}", 120)
        (self.directory / f"{name}-plan.txt").write_text(answer.stdout + answer.stderr)
        return answer.stdout + answer.stderr

    def record(self, when: str) -> None:
        """Keep a snapshot by `vfio-console-hook record`, for tests without a kernel."""
        if not self.scenario.hook:
            return
        path = f"/root/machine-{when}.tree"
        answer = self.machine.run(f"vfio-console-hook record {path}", 180)
        content = self.machine.get(path) if answer.ok else None
        if content is None:
            self.result.notes.append(f"no snapshot {when}")
        else:
            self.keep_snapshot(when, content.decode())

    def keep_snapshot(self, phase: str, text: str) -> None:
        """Keep a snapshot of the machine in this phase."""
        self.snapshots[phase] = text
        (self.directory / f"machine-{phase}.tree").write_text(text)

    def check_commands(self, when: str) -> None:
        """Commands print the same about the machine and about its snapshot; kept as texts."""
        for command in printed.COMMANDS:
            of_machine = self.output(command)
            of_snapshot = self.output(f"--root /root/machine-{when}.tree {command}")
            name = command.partition(" ")[0]
            (self.directory / f"machine-{when}-{name}.txt").write_text(of_machine)
            otherwise = f"{command} prints something else about the snapshot {when}: {of_snapshot}"
            self.demand(of_snapshot == of_machine, otherwise)

    def output(self, command: str) -> str:
        """The output of a command, without times, and its exit status."""
        answer = self.machine.run(f"vfio-console-hook {command} 2>&1", 120)
        return f"{printed.without_times(answer.stdout)}[{answer.status}]\n"

    def demand(self, holds: bool, otherwise: str) -> bool:
        """Note a failure unless a condition holds; whether it holds."""
        if not holds:
            self.result.failures.append(otherwise)
            self.machine.note(f"FAILURE: {otherwise}")
        return holds

    def mark(self, text: str) -> None:
        """Write the mark in the kernel log at which check_kernel() begins."""
        self.machine.run(kernel_log.mark_command(text))

    # The monitor

    def photograph(self, name: str, text: tuple[str, ...]) -> list[Picture]:
        """Write a text on the host's console, then take the pictures."""
        self.write(text)
        return self.pictures(name)

    def write(self, text: tuple[str, ...]) -> None:
        """Clear the host's first console, hide its cursor, write the text."""
        self.machine.put("/run/lab-text", monitors.as_written(text))
        self.machine.run("timeout 20 cat /run/lab-text > /dev/tty1; sleep 1")

    def pictures(self, name: str) -> list[Picture]:
        """The corner with the text of each GPU's monitor; whole pictures are kept as PNG."""
        corners = []
        for number in range(len(self.scenario.gpus)):
            picture = self.machine.screendump(number)
            if name:
                suffix = f"-gpu{number}" if len(self.scenario.gpus) > 1 else ""
                picture.write_png(self.directory / f"{name}{suffix}.png")
            corners.append(picture.corner(*monitors.CORNER))
        return corners

    def keep_logs(self) -> None:
        """Copy the machine's own logs to the results, unless the machine is lost."""
        logs = {
            "dmesg.txt": "dmesg",
            "journal.txt": "journalctl -b --no-hostname || cat /var/log/syslog",
            "hook-log.txt": HOOK_LOG,
            "vm-qemu.log": "cat /var/log/libvirt/qemu/gpu.log",
        }
        try:
            for name, command in logs.items():
                (self.directory / name).write_text(self.machine.run(command).stdout)
        except LostMachine:
            self.result.notes.append("the machine's own logs were lost with it")
