"""Unbinding the driver of each sound function that goes to the VM with the GPU.

The remove of snd_hda_intel and other drivers (Linux sound/pci/hda), of every release,
blocks until the last program has closed the sound card, and no signal ends that
(sound/core/init.c, snd_card_free). libvirt would block as well, with its locks held and
without a timeout, and virsh would hang for every VM. So the unbind is done here, in a
process with a timeout. While the VM runs, the person loses the sound of that card's
monitors.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.native import ReturnNative, UnbindNative
from ..claims.step import Step
from ..machine import kernel, nodes
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.pci import is_sound, is_vfio, slot
from .handover import Handover

NAME = "sound"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The unbind of each sound function that leaves with the GPU."""
    for address in handover.siblings:
        if _owner(handover, address) is not gpu or address in handover.unmanaged:
            continue
        driver = host.link_name(f"sys/bus/pci/devices/{address}/driver")
        if is_sound(host, address) and driver is not None and not is_vfio(host, address):
            yield _unbind(host, gpu, address, driver, handover)


def _owner(handover: Handover, address: str) -> Gpu:
    """The GPU with which a function leaves: Intel's Arc have their sound in another slot."""
    gpus = handover.gpus
    return next((one for one in gpus if slot(one.address) == slot(address)), gpus[0])


def _unbind(host: Host, gpu: Gpu, address: str, driver: str, handover: Handover) -> Step:
    cards = tuple(f"dev/snd/{name}" for name in nodes.sound_nodes(host, (address,)))
    # Sound servers close a card that disappears. So one that cannot be inspected (SELinux)
    # counts no more than it does for the GPU itself.
    strict = kernel.release(host) < (6, 0)
    return Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"unbinding {driver} blocks while a program has its sound card open; done here because"
        " libvirt has no timeout for it",
        do=UnbindNative(address, driver, handover.config.holders.wait_s, strict, cards),
        undo=ReturnNative(address, driver, False, False),
    )
