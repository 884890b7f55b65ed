"""Unbinding the driver of the GPU's sound function, if that goes to the VM too.

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
from ..machine.pci import is_vfio, slot
from .handover import Handover

NAME = "sound"
_AUDIO = "0x0403"  # PCI_CLASS_MULTIMEDIA_HD_AUDIO


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The unbind of each sound function in the GPU's slot that leaves with it."""
    for address in handover.siblings:
        device = f"sys/bus/pci/devices/{address}"
        driver = host.link_name(f"{device}/driver")
        if slot(address) != slot(gpu.address) or address in handover.unmanaged:
            continue
        is_sound = (host.read(f"{device}/class") or "").startswith(_AUDIO)
        if is_sound and driver is not None and not is_vfio(host, address):
            yield _unbind(host, gpu, address, driver, handover)


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
