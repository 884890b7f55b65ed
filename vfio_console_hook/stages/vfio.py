"""Binding what was taken to vfio-pci, or to a variant of it, for `take --vfio` without libvirt.

libvirt binds a managed device itself, and re-attaches only what it has bound, so this
stage does nothing for a VM of libvirt's. Until `give`, the host cannot use the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.vfio import BindVfio, UnbindVfio
from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.pci import is_vfio
from ..machine.vfio_driver import driver_for
from . import fbcon_nodeless
from .handover import Handover

NAME = "vfio"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The binds to vfio-pci, the last steps of all.

    The card's other functions come first, so that they get their drivers back last.
    """
    if not handover.bind_vfio:
        return
    if gpu is handover.gpus[-1]:  # the first one to leave (order.py)
        for address in handover.siblings:
            yield from _bind(host, address, gpu)
    yield from _bind(host, gpu.address, gpu)
    if gpu is handover.gpus[0]:
        yield from fbcon_nodeless.return_step(host, handover)


def _bind(host: Host, address: str, gpu: Gpu) -> Iterator[Step]:
    if is_vfio(host, address):
        return
    driver = driver_for(host, address)
    what = "it" if address == gpu.address else address
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"without libvirt {what} has to be bound to {driver} here",
        do=BindVfio(address, driver),
        undo=UnbindVfio(address, driver),
    )
