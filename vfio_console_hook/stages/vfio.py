"""The GPU on vfio-pci, where a person asked for it: on a host without libvirt.

libvirt binds a managed device itself, and gives back only what it has bound, so
this stage does nothing for a VM of libvirt's.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.vfio import BindVfio, UnbindVfio
from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from .handover import Handover

NAME = "vfio"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The GPU bound to vfio-pci, as the last step."""
    if handover.bind_vfio and not gpu.vfio:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="vfio-pci is to have it, and no libvirt binds it",
            do=BindVfio(gpu.address),
            undo=UnbindVfio(gpu.address),
        )
