"""Binding the GPU to vfio-pci, for `take --vfio` on a host without libvirt.

libvirt binds a managed device itself, and re-attaches only what it has bound, so this
stage does nothing for a VM of libvirt's. Until `give`, the host cannot use the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.vfio import BindVfio, UnbindVfio
from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from . import fbcon
from .handover import Handover

NAME = "vfio"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The bind to vfio-pci, the last step of all."""
    if handover.bind_vfio and not gpu.vfio:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why="without libvirt it has to be bound to vfio-pci here",
            do=BindVfio(gpu.address),
            undo=UnbindVfio(gpu.address),
        )
    if handover.bind_vfio and gpu is handover.gpus[0]:  # the last one to leave (order.py)
        yield from fbcon.return_step(host, handover)
