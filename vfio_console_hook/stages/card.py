"""Unbinding the drivers of the card's other functions, for a card that is taken by hand.

vfio opens an IOMMU group only as a whole, so the USB controller and the USB-C controller of a
graphics card have to leave with its GPU (machine/iommu.py). For a VM of libvirt's they are
assigned to it, and libvirt unbinds them; whoever gets a card that was taken by hand may only
bind the GPU. The remove of xhci_hcd, nvidia-gpu and others, of every release, may wait for what
is below them, so it is done here with a timeout. Until `give` the person loses the card's
USB ports.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.native import ReturnNative, UnbindNative
from ..claims.step import Step
from ..machine import nodes
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.pci import is_sound, is_vfio
from .handover import Handover

NAME = "card"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The unbind of each function that is no sound function; all on behalf of the first GPU."""
    if not handover.by_hand or gpu is not handover.gpus[0]:
        return
    for address in handover.siblings:
        driver = host.link_name(f"sys/bus/pci/devices/{address}/driver")
        if driver is None or is_vfio(host, address) or is_sound(host, address):
            continue
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{address} has to leave with the GPU, and {driver} has it",
            do=UnbindNative(
                address, driver, handover.config.holders.wait_s, False,
                tuple(nodes.i2c_nodes(host, (address,))),
            ),
            undo=ReturnNative(address, driver, False, False),
        )  # fmt: skip
