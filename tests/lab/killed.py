"""The hook, libvirt's daemon or both are killed at several points of a VM's life.

prepare waits at two known points: for a service that stops slowly, and for a process that
has the GPU open. After each kill, `recover` or the next start of the same VM must leave
no claim, the service running, the console back and alive, and a VM that can start.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from . import service
from .background import Background, watch
from .trial import CLAIMS, HOOK_LOG, LOOK, Trial

SERVICE_STOPS_IN_S = 6
RECOVER = "vfio-console-hook-recover.service"
NOT_RELEASED = "an earlier run was not released"
# This file is created once the VM runs.
RUNS = "/run/lab-runs"
# What the claim contains at these points; services is the first stage.
STOPPING, WAITING = '"stage": "services"', '"stage": "preflight"'


class Killed(Trial):
    """Kills, each followed by recover or a new start, and by checks of the whole machine."""

    daemon = "libvirtd"
    """The daemon that has QEMU's VMs."""
    service_runs = f"systemctl is-active {service.UNIT}"
    service_starts = f"systemctl start {service.UNIT}"
    """Commands for the service: whether it runs, and to start it."""

    def run(self) -> None:
        """Set up, run one whole cycle, then kill at each point.

        Each kill begins with a VM's start, which shows that the one before left nothing.
        """
        if not self.set_up():
            return
        self.start_service()
        self.cycle(1)
        for kill in self.kills():
            name = kill.__name__.replace("_", "-")
            self.machine.note(name)
            self.mark(name)
            self.write(())
            kill(name)
            self.check_all(name)

    def kills(self) -> tuple[Callable[[str], None], ...]:
        """The kills, in this order; each gets its own name."""
        return (
            self.hook_killed_while_a_service_stops,
            self.hook_killed_while_waiting_for_a_holder,
            self.supervisor_killed_while_waiting_for_a_holder,
            self.worker_killed_while_waiting_for_a_holder,
            self.daemon_killed_in_prepare,
            self.everything_killed_in_prepare,
            self.everything_killed_in_prepare_then_started_again,
            self.daemon_killed_while_the_vm_runs,
            self.vm_killed_while_the_daemon_is_down,
            self.hook_killed_in_release,
            self.hook_killed_in_the_middle_of_release,
            self.recover_while_a_vm_starts_and_runs,
        )

    # prepare

    def hook_killed_while_a_service_stops(self, name: str) -> None:
        """The first step has begun and is not done."""
        starting = self.starting()
        self.watch(name, "prepare", STOPPING, "hook")
        self.demand(not starting.wait(180).ok, f"{name}: the VM started")

    def hook_killed_while_waiting_for_a_holder(self, name: str) -> None:
        """The first step is done."""
        self.killed_while_waiting(name, "hook")

    def supervisor_killed_while_waiting_for_a_holder(self, name: str) -> None:
        """To libvirt the hook has failed, while its worker still runs."""
        self.killed_while_waiting(name, "supervisor")

    def worker_killed_while_waiting_for_a_holder(self, name: str) -> None:
        """The supervisor undoes the worker's steps."""
        self.killed_while_waiting(name, "worker")

    def killed_while_waiting(self, name: str, victim: str) -> None:
        """Processes of the hook are killed while it waits for a process that has the GPU open."""
        self.hold()
        starting = self.starting()
        self.watch(name, "prepare", WAITING, victim)
        self.demand(not starting.wait(180).ok, f"{name}: the VM started")
        self.let_go()

    def daemon_killed_in_prepare(self, name: str) -> None:
        """The hook goes on, and the daemon never calls it for the end of the VM."""
        self.hold()
        starting = self.starting()
        hook = self.watch(name, "prepare", WAITING, "daemon")
        self.demand(not starting.wait(180).ok, f"{name}: the VM started")
        # recover must undo nothing while the hook is still running.
        self.machine.run("vfio-console-hook recover", 60)
        self.let_go()
        if hook:
            gone = f"while [ -e /proc/{hook} ]; do sleep 0.5; done"
            self.demand(self.machine.run(gone, 90).ok, f"{name}: the hook did not end")
        self.wait_for_daemon(name)

    def everything_killed_in_prepare(self, name: str) -> None:
        """Neither the hook nor the daemon is left: what runs after its start releases all."""
        self.kill_everything(name)
        left = f'n=0; while [ -n "$(ls -A {CLAIMS})" ]; do n=$((n + 1)); [ $n -lt 120 ] || exit 1;'
        gone = self.machine.run(f"{left} sleep 0.5; done", 120).ok
        self.machine.run(f"systemctl status {RECOVER}; journalctl -o cat -u {RECOVER}; {HOOK_LOG}")
        self.demand(gone, f"{name}: the claim was not released after the daemon's restart")

    def everything_killed_in_prepare_then_started_again(self, name: str) -> None:
        """Without that unit, the next start releases what the killed one left behind."""
        self.machine.run(f"systemctl mask --runtime {RECOVER}")
        self.kill_everything(name)
        if self.started(name):
            self.check_running(name)
            self.machine.run("virsh destroy gpu", 180)
        self.machine.run(f"systemctl unmask --runtime {RECOVER}")
        log = self.machine.run(HOOK_LOG).stdout
        self.demand(NOT_RELEASED in log, f"{name}: no {NOT_RELEASED!r} in the log")

    def kill_everything(self, name: str) -> None:
        """Kill the hook and the daemon, which after its restart does not know of the VM's start."""
        self.killed_while_waiting(name, "everything")
        self.wait_for_daemon(name)

    # the running VM

    def daemon_killed_while_the_vm_runs(self, name: str) -> None:
        """After its restart the daemon finds the VM still running."""
        if not self.started(name):
            return
        pid = self.pid_of_qemu()
        self.machine.run(f"kill -KILL $(cat /run/{self.daemon}.pid); sleep 1")
        self.wait_for_daemon(name)
        self.check_running(name)
        self.demand(self.pid_of_qemu() == pid, f"{name}: it is another QEMU")
        self.machine.run("vfio-console-hook recover", 60)
        self.check_running(f"{name} after recover")
        self.machine.run("virsh destroy gpu", 180)

    def vm_killed_while_the_daemon_is_down(self, name: str) -> None:
        """The daemon notices when it starts, and calls the hook then."""
        if not self.started(name):
            return
        sockets = " ".join(f"{self.daemon}{kind}.socket" for kind in ("", "-ro", "-admin"))
        self.machine.run(f"systemctl stop {self.daemon}.service {sockets}", 90)
        self.machine.run(f"kill -KILL {self.pid_of_qemu()}; sleep 1")
        self.machine.run("vfio-console-hook status")
        self.machine.run(f"systemctl start {self.daemon}", 120)
        self.wait_for_daemon(name)

    # release

    def hook_killed_in_release(self, name: str) -> None:
        """No step is undone yet."""
        self.killed_in_release(name, "")

    def hook_killed_in_the_middle_of_release(self, name: str) -> None:
        """Only the newest step is undone."""
        self.killed_in_release(name, '{"undone": ')

    def killed_in_release(self, name: str, claim: str) -> None:
        """The VM ends, and its claim is not released completely."""
        if not self.started(name):
            return
        ending = Background(self.machine, "virsh destroy gpu", "ending")
        self.watch(name, "release", claim, "hook")
        ended = ending.wait(180)
        self.demand(ended.ok, f"{name}: virsh destroy: {ended.stdout}")

    # recover

    def recover_while_a_vm_starts_and_runs(self, name: str) -> None:
        """recover skips a VM that is starting or running."""
        self.hold()
        starting = self.starting()
        self.watch(name, "prepare", WAITING, "none")
        before = self.machine.run("cat /run/vfio-console-hook/claims/*").stdout
        answer = self.machine.run("vfio-console-hook recover", 60)
        after = self.machine.run("cat /run/vfio-console-hook/claims/*").stdout
        self.demand(before == after != "", f"{name}: recover changed a claim: {answer.stdout}")
        # In a loop, so that one falls between the hook's end and QEMU's start.
        again = f"until [ -e {RUNS} ]; do vfio-console-hook recover; done"
        recovering = Background(self.machine, again, "recovering")
        self.let_go()
        answer = starting.wait(180)
        self.machine.run(f"touch {RUNS}")
        skips = recovering.wait(60).stdout.count("skipped")
        self.result.notes.append(f"{name}: skipped {skips} times")
        if self.demand(answer.ok, f"{name}: virsh start: {answer.stdout}"):
            time.sleep(5)
            self.check_running(name)
            self.machine.run("vfio-console-hook recover", 60)
            self.check_running(f"{name} after recover")
        self.machine.run("virsh destroy gpu", 180)

    def start_service(self) -> None:
        """Install and start the service that the VM's start stops."""
        service.start(self.machine, SERVICE_STOPS_IN_S)

    # For all kills

    def check_all(self, name: str) -> None:
        """After recover nothing of the VM is left on the host."""
        answer = self.machine.run("vfio-console-hook recover", 90)
        self.demand(answer.ok, f"{name}: recover: {answer.stdout} {answer.stderr}")
        self.check_console(name, 0)
        self.check_kernel(name)
        self.check_claims(name)
        running = self.machine.run("virsh -q list --name").stdout.strip()
        self.demand(not running, f"{name}: {running} runs")

    def check_claims(self, name: str) -> None:
        """There is no claim, and the service runs again."""
        super().check_claims(name)
        tries = "n=$((n + 1)); [ $n -lt 60 ] || exit 1; sleep 0.5"
        back = self.machine.run(f"n=0; until {self.service_runs}; do {tries}; done", 60).ok
        if not self.demand(back, f"{name}: the service does not run"):
            self.machine.run(self.service_starts)  # the next kill needs it

    def watch(self, name: str, event: str, claim: str, victim: str) -> int | None:
        """Wait for a point and kill the processes of a victim there; the process of the hook."""
        hook = watch(self.machine, event, claim=claim, kill=victim)
        self.demand(hook is not None, f"{name}: the hook did not reach that point")
        if hook:
            self.machine.note(f"killed: {victim}")
        return hook

    def starting(self) -> Background:
        """Start the VM in the background."""
        return Background(self.machine, "virsh start gpu", "starting")

    def started(self, name: str) -> bool:
        """Start the VM; whether it runs."""
        error = self.start()
        time.sleep(3)
        return self.demand(error is None, f"{name}: virsh start: {error}")

    def hold(self) -> None:
        """Start a process that opens the framebuffer."""
        assert self.scenario.holder
        self.scenario.holder.begin(self.machine)

    def let_go(self) -> None:
        """End that process."""
        assert self.scenario.holder
        self.scenario.holder.end(self.machine)

    def pid_of_qemu(self) -> str:
        """The process id of the VM's QEMU."""
        return self.machine.run("cat /run/libvirt/qemu/gpu.pid").stdout.strip()

    def wait_for_daemon(self, name: str) -> None:
        """Wait until the daemon answers; systemd restarts it after a SIGKILL."""
        answers = "until timeout 10 virsh -q list --all; do sleep 1; done"
        self.demand(self.machine.run(answers, 120).ok, f"{name}: {self.daemon} does not answer")
        self.machine.run(LOOK)
