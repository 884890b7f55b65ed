"""virtqemud has QEMU's VMs instead of libvirtd, as Fedora, RHEL, openSUSE and Arch have it.

The machine has both, as after a switch: libvirtd is installed and masked (modular.py). The
VM is started and destroyed; the daemon is killed, restarted and stopped at several points, as
libvirtd is in killed.py; and install.sh, doctor and recover must name the right daemon.
"""

from __future__ import annotations

from collections.abc import Callable

from .killed import Killed

RELOADED = "virtqemud was reloaded and finds the hook"
# What doctor must say, and what it must not.
RUNS = "PASS daemon: virtqemud has been running since"
KNOWN = "PASS hook known to virtqemud: "
OTHER = "libvirtd"
HISTORY = "/run/vfio-console-hook.status"


class Virtqemud(Killed):
    """Kills and restarts of virtqemud, and what the program says of it."""

    daemon = "virtqemud"

    def set_up(self) -> bool:
        """Set up as ever; then only virtqemud may run, and install.sh must have reloaded it."""
        # Debian's virsh looks for libvirtd unless it is told what to connect to.
        self.machine.put("/etc/libvirt/libvirt.conf", b'uri_default = "qemu:///system"\n')
        if not super().set_up():
            return False
        printed = self.printed_by_install
        self.demand(RELOADED in printed, f"install.sh did not reload virtqemud: {printed}")
        self.check_daemons("set up")
        self.check_doctor("set up")
        return True

    def kills(self) -> tuple[Callable[[str], None], ...]:
        """The kills and restarts of the daemon; what kills only the hook is as with libvirtd."""
        return (
            self.daemon_killed_in_prepare,
            self.everything_killed_in_prepare,
            self.daemon_restarted_while_the_vm_runs,
            self.daemon_killed_while_the_vm_runs,
            self.vm_killed_while_the_daemon_is_down,
            self.recover_while_a_vm_starts_and_runs,
        )

    def daemon_restarted_while_the_vm_runs(self, name: str) -> None:
        """It finds the VM again and calls the hook with "reconnect"; the GPU stays with the VM."""
        if not self.started(name):
            return
        pid, daemon = self.pid_of_qemu(), self.pid_of_daemon()
        restart = self.machine.run(f"systemctl restart {self.daemon}", 120)
        self.demand(restart.ok, f"{name}: systemctl restart: {restart.stderr}")
        self.wait_for_daemon(name)
        self.demand(self.pid_of_daemon() != daemon, f"{name}: it is the same daemon")
        self.check_running(name)
        self.demand(self.pid_of_qemu() == pid, f"{name}: it is another QEMU")
        events = self.machine.run(f"cat {HISTORY}/*").stdout
        self.demand('"reconnect"' in events, f"{name}: the hook was not called: {events}")
        self.check_doctor(name)
        self.machine.run("virsh destroy gpu", 180)

    def check_all(self, name: str) -> None:
        """Nothing of the VM is left, and still only virtqemud runs."""
        super().check_all(name)
        self.check_daemons(name)

    def check_daemons(self, name: str) -> None:
        """virtqemud runs or waits on its socket; libvirtd does neither."""
        waits = self.machine.run("systemctl is-active virtqemud.socket").ok
        self.demand(waits, f"{name}: virtqemud.socket is not active")
        other = self.machine.run("pidof libvirtd; systemctl is-active libvirtd.socket").ok
        self.demand(not other, f"{name}: libvirtd is there, too")

    def check_doctor(self, name: str) -> None:
        """doctor names virtqemud, and not libvirtd."""
        printed = self.machine.run("vfio-console-hook doctor", 120).stdout
        text = " ".join(printed.split())
        for wanted in (RUNS, KNOWN):
            self.demand(wanted in text, f"{name}: no {wanted!r} in doctor: {text}")
        self.demand(OTHER not in text, f"{name}: doctor names libvirtd: {text}")

    def pid_of_daemon(self) -> str:
        """The process id of virtqemud."""
        return self.machine.run(f"cat /run/{self.daemon}.pid").stdout.strip()
