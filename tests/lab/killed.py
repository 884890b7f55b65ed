"""The hook and libvirtd are killed, in turn, at several points of a VM's life.

prepare is stopped at a known point by what it naturally waits for: a service that
takes its time to stop, then a process that has the GPU open. After each accident
`recover`, or the next start of the same VM, must leave nothing of it behind: no
claim, the service running, the console back and alive, and a VM that starts.
"""

from __future__ import annotations

import time

from .meanwhile import Background, Moment, watch
from .trial import CLAIMS, LOOK, Trial

UNIT = "lab-service"
STOPS_IN_S = 6
UNIT_FILE = f"""\
[Unit]
Description=Stands for what has to stop before the GPU goes
[Service]
ExecStart=/usr/bin/sleep infinity
ExecStop=/usr/bin/sleep {STOPS_IN_S}
"""
RECOVER = "vfio-console-hook-recover.service"
NOT_RELEASED = "an earlier run was not released"
LIBVIRTD = "libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket"
# Made once the VM runs.
RUNS = "/run/lab-runs"
# What the claim says at these points; the stage of services is the first one.
STOPPING, WAITING = '"stage": "services"', '"stage": "preflight"'


class Killed(Trial):
    """Accidents, each followed by recover or a new start, and by a look at everything."""

    def run(self) -> None:
        """Set up, see it work once, then let it be killed at each point.

        That a VM starts after each accident is what the next one begins with.
        """
        if not self.set_up():
            return
        self.machine.put(f"/etc/systemd/system/{UNIT}.service", UNIT_FILE.encode())
        self.machine.run(f"systemctl daemon-reload; systemctl start {UNIT}")
        self.cycle(1)
        for accident in (
            self.hook_killed_while_a_service_stops,
            self.hook_killed_while_waiting_for_a_holder,
            self.supervisor_killed_while_waiting_for_a_holder,
            self.worker_killed_while_waiting_for_a_holder,
            self.libvirtd_killed_in_prepare,
            self.everything_killed_in_prepare,
            self.everything_killed_in_prepare_then_started_again,
            self.libvirtd_killed_while_the_vm_runs,
            self.vm_killed_while_libvirtd_is_down,
            self.hook_killed_in_release,
            self.hook_killed_in_the_middle_of_release,
            self.recover_while_a_vm_starts_and_runs,
        ):
            name = accident.__name__.replace("_", "-")
            self.machine.note(name)
            self.mark(name)
            self.write(())
            accident(name)
            self.check_all(name)

    # prepare

    def hook_killed_while_a_service_stops(self, name: str) -> None:
        """Its first step is begun and not done."""
        starting = self.starting()
        self.watch(name, "prepare", STOPPING, "hook")
        self.demand(not starting.wait(180).ok, f"{name}: the VM started")

    def hook_killed_while_waiting_for_a_holder(self, name: str) -> None:
        """Its first step is done."""
        self.killed_while_waiting(name, "hook")

    def supervisor_killed_while_waiting_for_a_holder(self, name: str) -> None:
        """libvirt thinks that the hook has failed while its worker is still there."""
        self.killed_while_waiting(name, "supervisor")

    def worker_killed_while_waiting_for_a_holder(self, name: str) -> None:
        """The supervisor undoes what its worker has done."""
        self.killed_while_waiting(name, "worker")

    def killed_while_waiting(self, name: str, victim: str) -> None:
        """Something of the hook is killed while it waits for a process that has the GPU open."""
        self.hold()
        starting = self.starting()
        self.watch(name, "prepare", WAITING, victim)
        self.demand(not starting.wait(180).ok, f"{name}: the VM started")
        self.let_go()

    def libvirtd_killed_in_prepare(self, name: str) -> None:
        """The hook goes on without it, and is never told of the end."""
        self.hold()
        starting = self.starting()
        moment = self.watch(name, "prepare", WAITING, "libvirtd")
        self.demand(not starting.wait(180).ok, f"{name}: the VM started")
        # Nothing may be undone below a hook that is at work.
        self.machine.run("vfio-console-hook recover", 60)
        self.let_go()
        if moment:
            gone = f"n=0; while [ -e /proc/{moment.hook[0]} ]; do sleep 0.5; done"
            self.demand(self.machine.run(gone, 90).ok, f"{name}: the hook did not end")
        self.wait_for_libvirtd(name)

    def everything_killed_in_prepare(self, name: str) -> None:
        """Nobody is left who could tell: the unit that starts after libvirtd gives all back."""
        self.kill_everything(name)
        left = f'n=0; while [ -n "$(ls -A {CLAIMS})" ]; do n=$((n + 1)); [ $n -lt 120 ] || exit 1;'
        gone = self.machine.run(f"{left} sleep 0.5; done", 120).ok
        self.machine.run(f"systemctl status {RECOVER}; journalctl -o cat -u {RECOVER}")
        self.demand(gone, f"{name}: nothing was given back when libvirtd had started again")

    def everything_killed_in_prepare_then_started_again(self, name: str) -> None:
        """Without that unit, the next start gives back what the last one left behind."""
        self.machine.run(f"systemctl mask --runtime {RECOVER}")
        self.kill_everything(name)
        if self.started(name):
            self.check_running(name)
            self.machine.run("virsh destroy gpu", 180)
        self.machine.run(f"systemctl unmask --runtime {RECOVER}")
        log = self.machine.run("journalctl -o cat -t vfio-console-hook").stdout
        self.demand(NOT_RELEASED in log, f"{name}: the log does not say {NOT_RELEASED!r}")

    def kill_everything(self, name: str) -> None:
        """The hook and libvirtd, which then knows nothing of the VM's start."""
        self.hold()
        starting = self.starting()
        self.watch(name, "prepare", WAITING, "everything")
        self.demand(not starting.wait(180).ok, f"{name}: the VM started")
        self.let_go()
        self.wait_for_libvirtd(name)

    # the running VM

    def libvirtd_killed_while_the_vm_runs(self, name: str) -> None:
        """The daemon comes back and finds the VM as it was."""
        if not self.started(name):
            return
        pid = self.pid_of_qemu()
        self.machine.run("kill -KILL $(cat /run/libvirtd.pid); sleep 1")
        self.wait_for_libvirtd(name)
        self.check_running(name)
        self.demand(self.pid_of_qemu() == pid, f"{name}: it is another QEMU")
        self.machine.run("vfio-console-hook recover", 60)
        self.check_running(f"{name} after recover")
        self.machine.run("virsh destroy gpu", 180)

    def vm_killed_while_libvirtd_is_down(self, name: str) -> None:
        """The daemon finds out when it starts, and tells the hook then."""
        if not self.started(name):
            return
        self.machine.run(f"systemctl stop {LIBVIRTD}", 90)
        self.machine.run(f"kill -KILL {self.pid_of_qemu()}; sleep 1")
        self.machine.run("vfio-console-hook status")
        self.machine.run("systemctl start libvirtd", 120)
        self.wait_for_libvirtd(name)

    # release

    def hook_killed_in_release(self, name: str) -> None:
        """Nothing is undone yet."""
        self.killed_in_release(name, "")

    def hook_killed_in_the_middle_of_release(self, name: str) -> None:
        """The newest step is undone, older ones are not."""
        self.killed_in_release(name, '{"undone": ')

    def killed_in_release(self, name: str, claim: str) -> None:
        """The VM ends, but what it had is not all given back."""
        if not self.started(name):
            return
        ending = Background(self.machine, "virsh destroy gpu", "ending")
        self.watch(name, "release", claim, "hook")
        ended = ending.wait(180)
        self.demand(ended.ok, f"{name}: virsh destroy: {ended.stdout}")

    # recover

    def recover_while_a_vm_starts_and_runs(self, name: str) -> None:
        """It leaves a VM alone that is on its way or there."""
        self.hold()
        starting = self.starting()
        self.watch(name, "prepare", WAITING, "nobody")
        before = self.machine.run("cat /run/vfio-console-hook/claims/*").stdout
        answer = self.machine.run("vfio-console-hook recover", 60)
        after = self.machine.run("cat /run/vfio-console-hook/claims/*").stdout
        self.demand(before == after != "", f"{name}: recover changed a claim: {answer.stdout}")
        # Again and again, so that some of it falls between the hook's end and QEMU's start.
        again = f"until [ -e {RUNS} ]; do vfio-console-hook recover; done"
        recovering = Background(self.machine, again, "recovering")
        self.let_go()
        answer = starting.wait(180)
        self.machine.run(f"touch {RUNS}")
        self.result.notes.append(f"{name}: {recovering.wait(60).stdout.count('skipped')} times")
        if self.demand(answer.ok, f"{name}: virsh start: {answer.stdout}"):
            time.sleep(5)
            self.check_running(name)
            self.machine.run("vfio-console-hook recover", 60)
            self.check_running(f"{name} after recover")
        self.machine.run("virsh destroy gpu", 180)

    # What all of them need

    def check_all(self, name: str) -> None:
        """After recover the host is as if there had never been a VM."""
        answer = self.machine.run("vfio-console-hook recover", 90)
        self.demand(answer.ok, f"{name}: recover: {answer.stdout} {answer.stderr}")
        self.check_console(name, 0)
        self.check_kernel(name)
        self.check_claims(name)
        running = self.machine.run("virsh -q list --name").stdout.strip()
        self.demand(not running, f"{name}: {running} runs")

    def check_claims(self, name: str) -> None:
        """Nothing is held, and the service runs again."""
        super().check_claims(name)
        active = f"n=0; until systemctl is-active {UNIT}; do n=$((n+1)); [ $n -lt 60 ] || exit 1;"
        back = self.machine.run(f"{active} sleep 0.5; done", 60).ok
        if not self.demand(back, f"{name}: the service does not run"):
            self.machine.run(f"systemctl start {UNIT}")  # the next accident needs it

    def watch(self, name: str, event: str, claim: str, victim: str) -> Moment | None:
        """Wait for a point and kill somebody there."""
        moment = watch(self.machine, event, claim=claim, kill=victim)
        self.demand(moment is not None, f"{name}: the hook did not come to that point")
        if moment:
            self.machine.note(f"killed: {victim}")
        return moment

    def starting(self) -> Background:
        """The VM's start, in the background."""
        return Background(self.machine, "virsh start gpu", "starting")

    def started(self, name: str) -> bool:
        """The VM's start, to its end; whether it runs."""
        error = self.start()
        time.sleep(3)
        return self.demand(error is None, f"{name}: virsh start: {error}")

    def hold(self) -> None:
        """A process opens the framebuffer."""
        assert self.scenario.holder
        self.scenario.holder.begin(self.machine)

    def let_go(self) -> None:
        """It ends."""
        assert self.scenario.holder
        self.scenario.holder.end(self.machine)

    def pid_of_qemu(self) -> str:
        """The VM's process."""
        return self.machine.run("cat /run/libvirt/qemu/gpu.pid").stdout.strip()

    def wait_for_libvirtd(self, name: str) -> None:
        """Until it answers; systemd restarts it by itself after a SIGKILL."""
        answers = "until timeout 10 virsh -q list --all; do sleep 1; done"
        self.demand(self.machine.run(answers, 120).ok, f"{name}: libvirtd does not answer")
        self.machine.run(LOOK)
