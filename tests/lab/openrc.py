"""OpenRC runs the host, with sysvinit's init, elogind and busybox's syslogd; systemd is not there.

The VM's configuration has only the name of a service, which is an init script. libvirtd has a
script of sysvinit's, as Debian gives it, and nothing starts it again when it was killed: then a
person does, and libvirt's own hook of the daemon has to run recover. The log is in syslog.
"""

from __future__ import annotations

from collections.abc import Callable

from . import service
from .background import Background
from .killed import SERVICE_STOPS_IN_S, Killed
from .rehearsal import DIARY, REHEARSE, runner
from .trial import HOOK_LOG, PROGRAM

SCRIPT = f"""\
#!/sbin/openrc-run
description="A service that has to stop before the VM gets the GPU"
pidfile=/run/{service.UNIT}.pid
start() {{
    start-stop-daemon --start --background --make-pidfile --pidfile $pidfile \
        --exec /usr/bin/sleep -- infinity
}}
stop() {{
    sleep {SERVICE_STOPS_IN_S}
    start-stop-daemon --stop --pidfile $pidfile --exec /usr/bin/sleep
}}
"""
HOOK = "/etc/libvirt/hooks/daemon"
# What doctor must say.
RUNS = f"PASS recover hook: {HOOK} runs when libvirt's daemon starts"
# What recover says in syslog.
SKIPPED, RECOVERED = "gpu: skipped: ", "gpu: released 0000:"


class OpenRC(Killed):
    """Two cycles, kills of libvirtd and of a rehearsal, and the removal of the program."""

    service_runs = f"rc-service {service.UNIT} status"
    service_starts = f"rc-service {service.UNIT} start"

    def run(self) -> None:
        """The cycles and the kills, then the removal."""
        super().run()
        removed = self.machine.run(f"cd {PROGRAM} && sh install.sh --uninstall", 120)
        left = self.machine.run("ls -A /etc/libvirt/hooks").stdout.split()
        self.demand(removed.ok and not left, f"install.sh --uninstall left {left}")

    def start_service(self) -> None:
        """Install and start the service, and look at the host."""
        self.machine.put(f"/etc/init.d/{service.UNIT}", SCRIPT.encode())
        self.machine.run(f"chmod 755 /etc/init.d/{service.UNIT}; {self.service_starts}; rc-status")
        systemd = self.machine.run("ls -d /run/systemd/system; pgrep -a systemd").stdout
        self.demand("/run/systemd/system" not in systemd, "systemd runs the machine")
        self.demand(HOOK in self.printed_by_install, f"no {HOOK}: {self.printed_by_install}")
        doctor = " ".join(self.machine.run("vfio-console-hook doctor", 120).stdout.split())
        self.demand(RUNS in doctor, f"no {RUNS!r} in doctor: {doctor}")

    def kills(self) -> tuple[Callable[[str], None], ...]:
        """The second cycle, and the kills."""
        return (
            self.cycle_again,
            self.daemon_killed_while_the_vm_runs,
            self.everything_killed_in_prepare,
            self.rehearsal_killed,
        )

    def cycle_again(self, name: str) -> None:
        """Nothing is killed."""
        self.cycle(2)

    def meanwhile(self, name: str, number: int) -> None:
        """The service is stopped while the VM runs."""
        stopped = not self.machine.run(self.service_runs).ok
        self.demand(stopped, f"{name}: the service runs beside the VM")

    def daemon_killed_while_the_vm_runs(self, name: str) -> None:
        """recover runs when the daemon has been started again, and leaves the VM alone."""
        super().daemon_killed_while_the_vm_runs(name)
        log = self.machine.run(HOOK_LOG).stdout
        self.demand(SKIPPED in log, f"{name}: no {SKIPPED!r} in the log")

    def everything_killed_in_prepare(self, name: str) -> None:
        """Neither the hook nor the daemon is left; recover says in syslog what it released."""
        super().everything_killed_in_prepare(name)
        log = self.machine.run(HOOK_LOG).stdout
        self.demand(RECOVERED in log, f"{name}: no {RECOVERED!r} in the log")

    def rehearsal_killed(self, name: str) -> None:
        """The watchdog, a process here, gives back what the runner had."""
        running = Background(self.machine, REHEARSE, "rehearsing")
        tries = "n=$((n + 1)); [ $n -lt 240 ] || exit 1; sleep 0.5"
        opened = f"n=0; until grep -qs '\"opened\"' {DIARY}/*; do {tries}; done"
        self.demand(self.machine.run(opened, 180).ok, f"{name}: nothing was opened")
        self.machine.run(f"kill -KILL {runner(self.machine)}")
        answer = running.wait(180)
        said = "cut short: its process was killed"
        self.demand(said in answer.stdout, f"{name}: no {said!r}: {answer.stdout}")

    def wait_for_daemon(self, name: str) -> None:
        """Start the daemon as a person does, and wait until it answers."""
        self.machine.run(f"rc-service {self.daemon} start; rc-service {self.daemon} status", 60)
        super().wait_for_daemon(name)
