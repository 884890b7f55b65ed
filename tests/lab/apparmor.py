"""libvirtd confined by the AppArmor profile of its Debian package.

The profile lets a hook execute programs in /usr/bin, unconfined. So the gate, a
shell script, runs in libvirtd's profile, and its Python is unconfined: otherwise it
could neither read other processes' descriptors nor stop units.
"""

from __future__ import annotations

from . import service
from .background import Background, watch
from .trial import Trial

PROFILE = "libvirtd (enforce)"
# Slow enough to inspect the hook in the meantime.
SERVICE_STOPS_IN_S = 2


class AppArmor(Trial):
    """Under the profile: a VM is refused for a holder, a service is stopped and started."""

    def run(self) -> None:
        """Check that the profile is enforced, then have the VM refused, started and destroyed."""
        if not self.set_up() or not self.confined():
            return
        service.start(self.machine, SERVICE_STOPS_IN_S)
        holder = self.scenario.holder
        assert holder
        holder.begin(self.machine)
        self.check_profiles("held")
        self.refused_start(1)
        holder.end(self.machine)
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)
        self.check_denied()

    def confined(self) -> bool:
        """Whether AppArmor confines libvirtd."""
        self.machine.run(
            "aa-status; cat /sys/kernel/security/lsm; virsh capabilities | grep -A4 sec"
        )
        profile = self.machine.run("cat /proc/$(cat /run/libvirtd.pid)/attr/current").stdout.strip()
        return self.demand(profile == PROFILE, f"libvirtd runs in the profile {profile!r}")

    def check_profiles(self, name: str) -> None:
        """The gate runs in libvirtd's profile, its Python is unconfined."""
        starting = Background(self.machine, "virsh start gpu", "starting")
        hook = watch(self.machine, "prepare")
        if not self.demand(hook is not None, f"{name}: the hook was not seen"):
            return
        gate = self.machine.run(f"ps -o ppid= {hook}").stdout.strip()
        seen = {
            kind: self.machine.run(f"cat /proc/{pid}/attr/current").stdout.strip()
            for kind, pid in (("gate", gate), ("program", hook))
        }
        self.machine.run(f"ps -o pid,ppid,label:40,args {gate} {hook}")
        wanted = {"gate": PROFILE, "program": "unconfined"}
        self.demand(seen == wanted, f"{name}: the profiles are {seen}")
        started = starting.wait(180)
        self.demand(not started.ok, f"{name}: the VM started")

    def check_running(self, name: str) -> None:
        """The VM has the GPU, its QEMU is confined too, and the service is stopped."""
        super().check_running(name)
        profile = self.machine.run("cat /proc/$(cat /run/libvirt/qemu/gpu.pid)/attr/current").stdout
        self.demand(profile.startswith("libvirt-"), f"{name}: QEMU's profile is {profile!r}")
        self.demand(not service.is_active(self.machine), f"{name}: the service runs beside the VM")

    def check_claims(self, name: str) -> None:
        """There is no claim, and the service runs again."""
        super().check_claims(name)
        self.demand(service.is_active(self.machine), f"{name}: the service does not run")

    def check_denied(self) -> None:
        """AppArmor denied the hook nothing."""
        log = self.machine.run("dmesg | grep -i 'apparmor=.DENIED'").stdout
        lines = [line for line in log.splitlines() if 'profile="libvirtd"' in line]
        self.demand(not lines, f"AppArmor: {'; '.join(lines)}")
