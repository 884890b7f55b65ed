"""What leaves the host with one VM, and what the stages decide by."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.settings import Config
from ..machine import console
from ..machine.console import Framebuffer
from ..machine.gpu import VGA, Gpu, gpus_among
from ..machine.host import Host


@dataclass(frozen=True)
class Handover:
    """What leaves the host with one VM, and what the stages decide by.

    unmanaged are the addresses that libvirt will not detach by itself
    (managed='no'). taken are GPUs that other VMs hold. kernel_removes is whether
    vfio-pci of this kernel removes console drivers, for class 0300. bind_vfio is
    whether nobody else binds the GPUs to vfio-pci. siblings are the addresses of
    what goes to the VM beside its GPUs.
    """

    gpus: tuple[Gpu, ...]
    unmanaged: frozenset[str]
    taken: frozenset[str]
    config: Config
    kernel_removes: bool
    bind_vfio: bool = False
    siblings: tuple[str, ...] = ()

    @property
    def addresses(self) -> frozenset[str]:
        return frozenset(gpu.address for gpu in self.gpus)

    def framebuffers(self, host: Host) -> list[Framebuffer]:
        """All but those of GPUs that other VMs hold, whose hooks may run beside this one.

        Before Linux 6.9 a firmware framebuffer does not tell whose it is by its parent.
        """
        there = console.framebuffers(host)
        if not self.taken or not there:
            return list(there)
        present = tuple(a for a in sorted(self.taken) if host.exists(f"sys/bus/pci/devices/{a}"))
        gone = {name for one in gpus_among(host, present) for name in one.framebuffers}
        return [fb for fb in there if fb.name not in gone]

    def kernel_removes_from(self, gpu: Gpu) -> bool:
        """Whether vfio-pci will remove this GPU's console drivers (Linux vfio_pci_is_vga)."""
        return self.kernel_removes and gpu.pci_class == VGA
