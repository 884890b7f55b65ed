"""What leaves the host with one VM, and what the stages decide by."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.settings import Config
from ..machine.console import DUMMY, FBCON, VGACON, Framebuffer, Vtconsole
from ..machine.firmware import FirmwareDevice
from ..machine.gpu import Gpu, framebuffers_of
from ..machine.host import Host
from ..machine.removal import Removal, Removed
from ..value import Value


@dataclass(frozen=True, eq=False, repr=False)
class Handover(Value):
    """The GPUs that go to one VM, and what the stages decide by.

    unmanaged are the addresses that libvirt does not detach itself (managed='no').
    taken are GPUs that other VMs hold. removal is what vfio-pci of this kernel removes
    by itself. bind_vfio is whether the GPUs have to be bound to vfio-pci here, because
    libvirt does not do it; by_hand, whether a person takes the GPUs; rehearsal, whether that
    is for a short time, as if it was a VM. siblings are the addresses of the other devices
    that go to the VM. file is where the VM's own settings go. vtconsoles and framebuffers are
    those of the whole host.
    """

    gpus: tuple[Gpu, ...]
    unmanaged: frozenset[str]
    taken: frozenset[str]
    config: Config
    removal: Removal
    bind_vfio: bool = False
    by_hand: bool = False
    rehearsal: bool = False
    siblings: tuple[str, ...] = ()
    file: str = ""
    vtconsoles: tuple[Vtconsole, ...] = ()
    framebuffers: tuple[Framebuffer, ...] = ()

    @property
    def addresses(self) -> frozenset[str]:
        return frozenset(gpu.address for gpu in self.gpus)

    def stays_on_vfio(self, gpu: Gpu) -> bool:
        """Whether a GPU is on vfio-pci before and after; `give` takes it off."""
        return gpu.vfio and (self.rehearsal or not self.by_hand)

    @property
    def fbcon_draws(self) -> bool:
        """Whether the host's consoles are on framebuffers."""
        return any(one.bound and one.driver == FBCON for one in self.vtconsoles)

    @property
    def waits_for_text(self) -> bool:
        """Whether fbcon has not taken the consoles over yet (console.waits_for_text())."""
        names = {one.driver for one in self.vtconsoles}
        return names == {DUMMY} and bool(self.framebuffers)

    def text_goes(self, host: Host) -> bool:
        """Whether vfio-pci removes vgacon with one of these GPUs, or may do so."""
        return any(self.removal.of_text(host, one) for one in self.gpus)

    def fbcon_can_return(self, host: Host) -> bool:
        """Whether writing 1 to fbcon's `bind` will move the consoles to a framebuffer.

        It takes them from the (S) driver only (Linux vt.c, vt_bind).
        """
        goes = self.text_goes(host)
        return any(one.static and not (one.driver == VGACON and goes) for one in self.vtconsoles)

    def staying_framebuffers(self, host: Host) -> list[Framebuffer]:
        """The framebuffers of neither this VM's GPUs nor those that other VMs hold, by number."""
        own = {name for gpu in self.gpus for name in gpu.framebuffers}
        found = [fb for fb in self.framebuffers if fb.name not in own]
        if not found:
            return []
        # The hooks of other VMs may be running now.
        theirs = framebuffers_of(host, self.taken)
        return [fb for fb in found if fb.name not in theirs]

    def removed(
        self, host: Host, device: FirmwareDevice, *, bound: bool, undecoded: str = ""
    ) -> Removed:
        """Whether a firmware device of these GPUs is gone once vfio-pci is bound to all of them.

        bound: it has a driver by then. undecoded is a GPU whose memory decoding is off by then.
        """
        return max(
            (
                self.removal.of_device(
                    host, one, device, bound=bound, decodes=one.address != undecoded
                )
                for one in self.gpus
                if not one.vfio
            ),
            default=Removed.NO,
        )
