"""A driver that does not come back after the VM: it stays visible until a person mends it.

While the VM runs, the module of the GPU's own driver is unloaded and blacklisted, so that
libvirt's probe after the VM finds no driver, and neither does release.
"""

from __future__ import annotations

from .trial import Trial

_MODULE = "bochs"
_STATUS = "vfio-console-hook status"
_METRICS = "vfio-console-hook status --prometheus | grep ^vfio_console_hook_losses"
_DOCTOR = "vfio-console-hook doctor -q"
_LOST = "did not come back to"


class Loss(Trial):
    """Lose the driver, look, mend it by hand, look again; the second loss is also dismissed."""

    def run(self) -> None:
        """Lose and mend once in each cycle of the scenario."""
        if not self.set_up():
            return
        for number in range(1, self.scenario.cycles + 1):
            name = f"loss{number}"
            self.machine.note(name)
            self.mark(name)
            self.check_quiet(f"{name}, before")
            self.lose(name)
            self.check_visible(name)
            self.check_plan(name)
            if number > 1:
                dismissed = self.machine.run("vfio-console-hook dismiss gpu")
                self.demand(dismissed.ok, f"{name}: dismiss: {dismissed.stderr}")
                self.check_quiet(f"{name}, dismissed")
            self.mend(name)
            self.check_quiet(f"{name}, mended")
            self.check_console(name, number)
            self.check_kernel(name)
            self.check_claims(name)

    def lose(self, name: str) -> None:
        """Start the VM, take the driver's module away, and destroy the VM."""
        error = self.start()
        self.demand(error is None, f"{name}: virsh start: {error}")
        self.check_running(name)
        gone = self.machine.run(
            f"echo blacklist {_MODULE} > /etc/modprobe.d/lab.conf; modprobe -r {_MODULE}"
        )
        self.demand(gone.ok, f"{name}: modprobe -r: {gone.stderr}")
        destroy = self.machine.run("virsh destroy gpu", 180)
        self.demand(destroy.ok, f"{name}: virsh destroy: {destroy.stderr.strip()}")

    def mend(self, name: str) -> None:
        """Do by hand what release could not."""
        back = self.machine.run(f"rm /etc/modprobe.d/lab.conf; modprobe {_MODULE}; sleep 5")
        self.demand(back.ok, f"{name}: modprobe: {back.stderr}")

    def check_visible(self, name: str) -> None:
        """status, its exit status, the metrics, doctor and the log show the loss."""
        status = self.machine.run(_STATUS)
        self.demand(status.status == 1, f"{name}: status ended with {status.status}")
        self.demand("lost after gpu" in status.stdout, f"{name}: status: {status.stdout}")
        self.demand(self.machine.run(_METRICS).ok, f"{name}: no metric of a loss")
        doctor = self.machine.run(_DOCTOR, 120)
        self.demand("lost after gpu" in doctor.stdout, f"{name}: doctor: {doctor.stdout}")
        log = self.machine.run("journalctl -o cat -t vfio-console-hook").stdout
        self.demand(_LOST in log, f"{name}: the log does not have the loss")

    def check_plan(self, name: str) -> None:
        """The next plan shows the loss, and does not promise the driver."""
        plan = self.plan(name)
        self.demand("lost after an earlier VM" in plan, f"{name}: plan: {plan}")
        self.demand("the console comes back with" not in plan, f"{name}: plan promises: {plan}")

    def check_quiet(self, name: str) -> None:
        """Nothing is lost, as status, its exit status, the metrics and doctor see it."""
        status = self.machine.run(_STATUS)
        quiet = status.ok and "lost after" not in status.stdout
        self.demand(quiet, f"{name}: status [{status.status}]: {status.stdout}")
        self.demand(not self.machine.run(_METRICS).ok, f"{name}: a metric of a loss")
        doctor = self.machine.run(_DOCTOR, 120)
        # Nor is there a refusal that is left over.
        self.demand("What VMs hold" not in doctor.stdout, f"{name}: doctor: {doctor.stdout}")
