"""A whole card is taken and given back by hand: `take` binds it to vfio-pci, not libvirt.

Its GPU, sound and USB are in one IOMMU group, of which the kernel itself is asked whether QEMU
could open it (VFIO_GROUP_GET_STATUS).
"""

from __future__ import annotations

from .trial import Trial

# struct vfio_group_status: argsz and flags, of which 1 is VFIO_GROUP_FLAGS_VIABLE.
_VIABLE = """python3 - <<'END'
import fcntl, os, struct
group = os.path.basename(os.readlink("/sys/bus/pci/devices/{gpu}/iommu_group"))
status = bytearray(struct.pack("II", 8, 0))
with open(f"/dev/vfio/{{group}}", "r+b", buffering=0) as file:
    fcntl.ioctl(file, 0x3B67, status)
print(struct.unpack("II", status)[1] & 1)
END"""


class ByHand(Trial):
    """take --vfio, then a VM that must not start, recover, and give."""

    def run(self) -> None:
        """Take and give once in each cycle of the scenario."""
        if not self.set_up():
            return
        for number in range(1, self.scenario.cycles + 1):
            self.machine.note(f"by hand {number}")
            self.mark(f"by hand {number}")
            self.take_and_give(f"hand{number}")
            self.check_console(f"hand{number}", number)
            self.check_kernel(f"hand{number}")
            self.check_claims(f"hand{number}")

    def take_and_give(self, name: str) -> None:
        """Take the card, try to start the VM and to recover, give the card back."""
        (gpu,) = self.leaving
        before = self.drivers(gpu.address)
        native = ["", "snd_hda_intel", "xhci_hcd"]
        self.demand(before == native, f"{name}: the card is on {before}, not on {native}")
        take = self.machine.run(f"vfio-console-hook take --vfio {gpu.address}", 120)
        self.demand(take.ok, f"{name}: take: {take.stderr}")
        bound = self.drivers(gpu.address)
        self.demand(bound == ["vfio-pci"] * 3, f"{name}: taken, the card is on {bound}")
        viable = self.machine.run(_VIABLE.format(gpu=gpu.address))
        self.demand(viable.stdout.strip() == "1", f"{name}: the group is not viable: {viable}")
        reserved = self.machine.run("cat /proc/iomem").stdout
        self.demand("efifb" not in reserved, f"{name}: taken, efifb still reserves memory")
        self.machine.run("vfio-console-hook status")
        error = self.start() or ""
        self.demand("was taken by hand" in error, f"{name}: virsh start: {error}")
        recover = self.machine.run("vfio-console-hook recover", 60)
        self.demand("taken by hand" in recover.stdout, f"{name}: recover: {recover.stdout}")
        self.demand(self.drivers(gpu.address) == bound, f"{name}: recover released it")
        # Any function of the card names it.
        give = self.machine.run(f"vfio-console-hook give {gpu.address[:-1]}1", 120)
        self.demand(give.ok, f"{name}: give: {give.stderr}")
        after = self.drivers(gpu.address)
        self.demand(after == before, f"{name}: given back, the card is on {after}")

    def drivers(self, gpu: str) -> list[str]:
        """The drivers of the card's functions, by function number; "" for none."""
        found = self.machine.run(
            f"for d in /sys/bus/pci/devices/{gpu[:-1]}*; do"
            " echo \"$(basename \"$(readlink $d/driver)\")\"; done"
        )
        return found.stdout.splitlines()
