"""The gate in /etc without the program in /usr, as after a rollback of an image of /usr."""

from __future__ import annotations

from .sound import Sound
from .vm import domain_xml

PLAIN, PLAIN_UUID = "plain", "5d0a3f5e-63f7-4b9e-8f5e-1f0c6c1f6d11"
HERE = "/usr/lib/vfio-console-hook"
AWAY = f"{HERE}.away"


class NoProgram(Sound):
    """A VM with a GPU is refused, one with another device starts, one that runs can end."""

    def run(self) -> None:
        """Take the program away before a start, and while the VM runs."""
        if not self.set_up():
            return
        path = f"/root/{PLAIN}.xml"
        xml = domain_xml((), PLAIN, PLAIN_UUID, self.other_devices())
        self.machine.put(path, xml.encode())
        self.demand(self.machine.run(f"virsh define {path}").ok, "the plain VM is not defined")
        self.machine.run(f"mv {HERE} {AWAY}")
        self.refused()
        self.passed()
        self.machine.run(f"mv {AWAY} {HERE}")
        self.ended()
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)

    def refused(self) -> None:
        """The VM with the GPU does not start, and the host is as before."""
        state = self.host_state()
        error = self.start() or ""
        said = f"cannot read {HERE}" in error and "nothing was changed" in error
        self.demand(said, f"without the program: {error or 'the VM started'}")
        self.demand(self.host_state() == state, "without the program: the host's state changed")

    def passed(self) -> None:
        """The VM with the sound function starts and ends."""
        gpu = self.gpus[0].address  # in the same group, so it has to be without a driver
        self.machine.run(f"echo {gpu} >/sys/bus/pci/devices/{gpu}/driver/unbind")
        for command in ("start", "destroy"):
            answer = self.machine.run(f"virsh {command} {PLAIN}", 240)
            self.demand(answer.ok, f"without the program: virsh {command} {PLAIN}: {answer.stderr}")
        self.machine.run(f"echo {gpu} >/sys/bus/pci/drivers_probe")
        self.check_console("passed", 0)

    def ended(self) -> None:
        """The program goes while the VM runs: the claim stays, and recover gives all back."""
        error = self.start()
        self.demand(error is None, f"with the program: {error}")
        self.machine.run(f"mv {HERE} {AWAY}")
        ended = self.machine.run("virsh destroy gpu", 240)
        self.demand(ended.ok, f"without the program: virsh destroy: {ended.stderr}")
        self.machine.run(f"mv {AWAY} {HERE}")
        recovered = self.machine.run("vfio-console-hook recover", 120)
        self.demand(recovered.ok, f"recover: {recovered.stdout} {recovered.stderr}")
        self.check_console("ended", 0)
        self.check_claims("ended")
