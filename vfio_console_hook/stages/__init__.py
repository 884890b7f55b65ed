"""The stages: each looks at one family of console drivers and yields the steps to take.

A stage is a module with NAME and plan(host, gpu, leaving), which only reads.
Prepare applies the steps in the order of STAGES, each stage for all GPUs of the
VM before the next one; release undoes them in reverse.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import console, kernel
from ..console import Framebuffer
from ..gpu import VGA, Gpu, find
from ..host import Host
from ..settings import CONSOLE_STAGES, Config
from ..step import Step
from ..values import dataclass


@dataclass(frozen=True)
class Leaving:
    """What leaves the host with one VM, and what the stages decide by.

    unmanaged are the addresses that libvirt will not detach by itself
    (managed='no'). taken are GPUs that other VMs hold. kernel_removes is whether
    vfio-pci of this kernel removes console drivers, for class 0300. bind_vfio is
    whether nobody else binds the GPUs to vfio-pci. others are the addresses of what
    goes to the VM beside its GPUs.
    """

    gpus: tuple[Gpu, ...]
    unmanaged: frozenset[str]
    taken: frozenset[str]
    config: Config
    kernel_removes: bool
    bind_vfio: bool = False
    others: tuple[str, ...] = ()

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
        gone = {name for one in find(host, present) for name in one.framebuffers}
        return [fb for fb in there if fb.name not in gone]

    def kernel_removes_from(self, gpu: Gpu) -> bool:
        """Whether vfio-pci will remove this GPU's console drivers (Linux vfio_pci_is_vga)."""
        return self.kernel_removes and gpu.pci_class == VGA


def leaving(
    host: Host,
    gpus: tuple[Gpu, ...],
    config: Config,
    *,
    unmanaged: frozenset[str],
    taken: frozenset[str],
    bind_vfio: bool,
    others: tuple[str, ...] = (),
) -> Leaving:
    """What the stages need to know of these GPUs. Raises HostError."""
    removes = kernel.removes_consoles(host)
    return Leaving(gpus, unmanaged, taken, config, removes, bind_vfio, others)


def plan(host: Host, leaving: Leaving) -> tuple[Step, ...]:
    """The steps that prepare takes, in order; nothing is changed.

    Raises RefusedError when the VM must not have one of the GPUs, HostError when
    the machine cannot be read.
    """
    return tuple(_steps(host, leaving))


def _steps(host: Host, leaving: Leaving) -> Iterator[Step]:
    # Imported here because the stage modules need Leaving from this one.
    from . import (
        detach,
        drm_aperture,
        fbcon,
        fbdev,
        handover,
        native,
        others,
        services,
        sound,
        vgacon,
    )

    # Services hold the GPU, so they go first: who still holds it then is looked for
    # afterwards. Then what must not happen, before anything else is changed. fbcon
    # comes before the framebuffers go, while consoles can still be moved. From there
    # the order is that of Linux commit d17378062079: DRM aperture drivers, fbdev
    # drivers, vgacon. Sound goes before the GPU and comes back after it, because its
    # driver works together with that of the GPU (Linux drm_audio_component).
    gpus = tuple(gpu for gpu in leaving.gpus if not gpu.virtual)
    for stage in (
        services, native, others, fbcon, drm_aperture, fbdev, vgacon, sound, detach, handover,
    ):  # fmt: skip
        if stage.NAME not in CONSOLE_STAGES or stage.NAME in leaving.config.stages:
            # The last one loses its driver first, and so gets it back last: otherwise cards
            # and framebuffers would come back with each other's numbers.
            for gpu in gpus[::-1] if stage in (detach, handover) else gpus:
                yield from stage.plan(host, gpu, leaving)
