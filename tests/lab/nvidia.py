"""NVIDIA's driver with what runs beside it: the nodes that programs make, and a daemon.

The modules are stand-ins (stand-ins/nvidia.h says what was read where). Everything is
done here that the driver's packages do: nvidia-modprobe makes the nodes,
nvidia-persistenced keeps the GPUs open.
"""

from __future__ import annotations

import re

from .background import Background
from .scenarios import STAYING
from .trial import CONFIG_FILE, Trial

DAEMON = "nvidia-persistenced"
LONGER_S = 1200
# One processor runs Python beside a kernel thread that never sleeps.
ANSWERS_S = 90
MODULES = ("nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm")
# The stand-in's own: a user of each GPU that is not there.
LEAK = "/sys/module/nvidia/parameters/leak"
STUCK = re.compile(
    r"the kernel is stuck \(process (\d+)[^)]*\) since"
    r" `echo 0000:01:00\.0 > /sys/bus/pci/devices/0000:01:00\.0/driver/unbind`"
)
IRQS = "/sys/bus/pci/devices/0000:01:00.0/msi_irqs"
# For people who read the transcript.
LOOK_AT_DRIVER = (
    "lsmod | grep nvidia; ls -l /dev/nvidia* /dev/dri; fuser -v /dev/nvidia* /dev/dri/*;"
    " grep -H . /proc/driver/nvidia/gpus/*/information"
)
_NODES = b"""#!/bin/sh
# What nvidia-modprobe does: the kernel makes no nodes of this driver.
modprobe nvidia_uvm
node() { [ -e "/dev/$1" ] || mknod -m 666 "/dev/$1" c "$2" "$3"; }
node nvidiactl 195 255
node nvidia-modeset 195 254
node nvidia-uvm "$(sed -n 's/ nvidia-uvm$//p' /proc/devices)" 0
for minor in $(sed -n 's/^Device Minor:[^0-9]*//p' /proc/driver/nvidia/gpus/*/information); do
    node "nvidia$minor" 195 "$minor"
done
"""
_PERSISTENCED = b"""#!/usr/bin/python3 -IS
# Keeps all GPUs open, as the daemon does.
import glob, time
files = [open(name) for name in glob.glob("/dev/nvidia[0-9]*") + ["/dev/nvidiactl"]]
time.sleep(100000)
"""
_UNIT = f"""\
[Unit]
Description=NVIDIA Persistence Daemon
[Service]
ExecStartPre=/usr/local/sbin/nvidia-nodes
ExecStart=/usr/local/sbin/{DAEMON}
""".encode()
# Without the daemon the mode is a flag of the driver, which the last close leaves alone.
_SMI = b"""#!/bin/sh
# nvidia-smi -pm 0 or 1, with or without -i ADDRESS: opens the GPU, sets the mode, closes it.
for mode; do :; done
exec </dev/nvidia0 || exit 9
echo "$mode" >/sys/module/nvidia/parameters/persistent
"""


class Nvidia(Trial):
    """The nodes are there and all modules are loaded; the VM unloads them, and they are back."""

    def set_up(self) -> bool:
        """Install what the driver's packages install, then set up as any trial."""
        files = {
            "/usr/local/sbin/nvidia-nodes": _NODES,
            f"/usr/local/sbin/{DAEMON}": _PERSISTENCED,
            "/usr/bin/nvidia-smi": _SMI,
            f"/etc/systemd/system/{DAEMON}.service": _UNIT,
        }
        for path, content in files.items():
            self.machine.put(path, content)
        self.machine.run(f"chmod +x {' '.join(list(files)[:3])}; udevadm settle -t 60")
        nodes = self.machine.run(f"nvidia-nodes; {LOOK_AT_DRIVER}")
        there = self.demand("/dev/nvidia-uvm" in nodes.stdout, f"no nodes: {nodes.stderr}")
        return there and super().set_up()

    def loaded(self) -> tuple[str, ...]:
        """Which of the modules are loaded."""
        found = self.machine.run("sed -n 's/^\\(nvidia[^ ]*\\).*/\\1/p' /proc/modules").stdout
        return tuple(sorted(found.split()))

    def check_running(self, name: str) -> None:
        """The VM has the GPU, and none of the modules is loaded."""
        super().check_running(name)
        self.demand(not self.loaded(), f"{name}: {self.loaded()} beside the VM")

    def check_console(self, name: str, number: int) -> None:
        """The console is back, and so are all modules."""
        super().check_console(name, number)
        self.machine.run(LOOK_AT_DRIVER)
        self.demand(self.loaded() == MODULES, f"{name}: only {self.loaded()} are loaded")


class NvidiaDaemon(Nvidia):
    """A daemon keeps the GPU open: the VM is refused, then starts with the daemon stopped."""

    def run(self) -> None:
        """Let the VM be refused beside the daemon, then configure, start and destroy it."""
        if not self.set_up():
            return
        self.machine.run(f"systemctl daemon-reload; systemctl start {DAEMON}")
        pid = self.daemon()
        self.demand(bool(pid), "the daemon does not run")
        self.refused(pid)
        self.machine.put(CONFIG_FILE, self.scenario.config.encode())
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)

    def configure(self) -> None:
        """Write nothing yet: first the VM must be refused."""

    def daemon(self) -> str:
        """The process that has the first GPU open, once one has."""
        return self.machine.run(
            "n=0; until pid=$(fuser /dev/nvidia0 2>/dev/null); do"
            " [ $((n += 1)) -lt 60 ] || exit 1; sleep 0.5; done; echo $pid"
        ).stdout.strip()

    def refused(self, pid: str) -> None:
        """Start the VM in vain: the error names the daemon and its unit."""
        name = "refused"
        self.machine.note(name)
        self.mark(name)
        self.plan(name)
        error = self.start() or "nothing, the VM started"
        # The kernel keeps 15 bytes of a name (TASK_COMM_LEN).
        named = f"{DAEMON[:15]} ({pid}) [{DAEMON}.service]"
        self.demand(named in error, f"{name}: no {named!r} in the error: {error}")
        self.demand(self.daemon() == pid, f"{name}: the daemon is another one now")
        self.check_console(name, 0)
        self.check_kernel(name)
        self.check_claims(name)

    def check_running(self, name: str) -> None:
        """The VM has the GPU, and the daemon has ended."""
        super().check_running(name)
        active = self.machine.run(f"systemctl is-active {DAEMON}").stdout.strip()
        self.demand(active == "inactive", f"{name}: the daemon is {active}")

    def check_console(self, name: str, number: int) -> None:
        """The console and the modules are back, and the daemon has the GPU open again."""
        super().check_console(name, number)
        self.demand(bool(self.daemon()), f"{name}: the daemon does not have the GPU open")


class NvidiaCounted(Nvidia):
    """GPUs that stay started although nothing has them open.

    In persistence mode without the daemon, which is switched off for the VM; because the
    driver counts a user that is not there: that VM is refused before the host hangs; and because
    it starts them itself, which is no reason to refuse a VM.
    """

    def run(self) -> None:
        """Set the mode and run the VM, let a count leak and start it in vain, then mend that."""
        if not self.set_up():
            return
        self.machine.run("nvidia-smi -pm 1")
        self.cycle(1)
        log = self.machine.run("journalctl -b -t vfio-console-hook -o cat").stdout
        self.demand("persistence mode was switched off" in log, "the mode was not switched off")
        self.machine.run(f"echo 1 > {LEAK}")
        for number in (1, 2):
            self.refused_start(number)
            self.machine.run(LOOK_AT_DRIVER)
            self.demand(self.loaded() == MODULES, f"refused{number}: only {self.loaded()} loaded")
            others = self.machine.run("timeout 15 virsh -q list --all")
            self.demand(others.ok, f"refused{number}: libvirtd does not answer")
        self.machine.run(f"echo 0 > {LEAK}")
        self.machine.put("/etc/modprobe.d/probe.conf", b"options nvidia NVreg_GpuInitOnProbe=1\n")
        self.cycle(2)  # the option counts from now on
        started = self.machine.run(f"rmmod nvidia_drm && ls {IRQS}; modprobe nvidia_drm").stdout
        self.demand(bool(started.strip()), "the GPU is not started although nothing has it open")
        self.cycle(3)


class NvidiaTwo(Nvidia):
    """One of two GPUs leaves; the other keeps its driver, its modules, and who has it open.

    Its unbind never returns if the count of the one that leaves, which cannot be read here, has
    leaked: then the hook ends in time and names the process, libvirtd and the other GPU go on,
    and nothing is tried again.
    """

    def run(self) -> None:
        """Open the GPU that stays, run the VM, then let the unbind hang, mend that and run it."""
        self.machine.live_longer(LONGER_S)
        if not self.set_up():
            return
        for holder in STAYING:
            holder.begin(self.machine)
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)
        self.machine.note("stuck")
        self.machine.run(f"echo 1 > {LEAK}")
        pid = self.start_in_vain("first start", STUCK)
        for command in ("virsh -q list --all", "vfio-console-hook status", "ls -l /proc/driver"):
            answer = self.machine.run(f"timeout {ANSWERS_S} {command}", ANSWERS_S + 30)
            self.demand(answer.status != 124, f"{command} does not come back")
        self.check_other_monitor("stuck")
        self.check_staying("stuck")
        again = self.start_in_vain("second start", STUCK)
        self.demand(pid == again, f"process {again} is stuck, and not {pid}: it was tried again")
        recover = self.machine.run("vfio-console-hook recover", 90)
        self.demand(f"process {pid}" in recover.stdout, f"recover prints {recover.stdout}")
        self.machine.run(f"ps -o pid,stat,wchan:30,cputime,args {pid}; top -bn1 | head -9; dmesg")
        self.machine.run(f"echo 0 > {LEAK}; sleep 5")
        recover = self.machine.run("vfio-console-hook recover", 90)
        self.demand(recover.ok, f"recover afterwards: {recover.stdout}")
        self.check_console("recovered", 0)
        self.check_claims("recovered")
        self.cycle(self.scenario.cycles + 1)

    def check_running(self, name: str) -> None:
        """The VM has its GPU, and nothing of the other one has changed."""
        Trial.check_running(self, name)
        self.check_staying(name)

    def check_console(self, name: str, number: int) -> None:
        """The console is back, and nothing of the other GPU has changed."""
        super().check_console(name, number)
        self.check_staying(name)

    def check_staying(self, name: str) -> None:
        """The modules are loaded, and the processes still have the other GPU open."""
        self.machine.run(LOOK_AT_DRIVER)
        self.demand(self.loaded() == MODULES, f"{name}: only {self.loaded()} are loaded")
        for holder in STAYING:
            left = holder.left(self.machine)
            self.demand(left == holder.count, f"{name}: {left} of {holder.name} are left")


class NvidiaControl(Nvidia):
    """Without the hook libvirt unbinds the driver beside the daemon, and hangs with all it has."""

    def run(self) -> None:
        """Start the VM beside the daemon, then end the daemon."""
        if not self.set_up():
            return
        self.machine.run(f"systemctl daemon-reload; systemctl start {DAEMON}; sleep 3")
        starting = Background(self.machine, "virsh start gpu", "starting")
        self.demand(starting.wait(30).status == 124, "without the hook virsh start comes back")
        others = self.machine.run("timeout 15 virsh -q list --all")
        self.demand(others.status == 124, "virsh list answers meanwhile")
        self.machine.run(
            "cat /proc/$(cat /run/libvirtd.pid)/task/*/stack;"
            f" ps -eLo pid,tid,stat,wchan:30,comm | grep -E 'libvirt|rpc-|{DAEMON}'; dmesg | tail"
        )
        self.machine.run(f"systemctl stop {DAEMON}; sleep 3")
        ended = starting.wait(60)
        self.result.notes.append(f"without the daemon: {ended.status} {ended.stdout.strip()}")
        self.machine.run("virsh destroy gpu; dmesg | tail", 180)
