"""The GPU's sound function taken off its driver, if it goes to the VM too.

snd_hda_intel and its likes (Linux sound/pci/hda) wait in their remove until the last
program has closed the sound card, beyond any signal (sound/core/init.c,
snd_card_free). libvirt would wait with them, with its locks held and without a
deadline; virsh then hangs for every VM. So it is done here, in a process that is
watched. While the VM runs, the person loses the sound of that card's monitors.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..machine import kernel
from ..machine.gpu import Gpu, is_vfio, slot
from ..machine.host import Host
from .handover import Handover

NAME = "sound"
_AUDIO = "0x0403"  # PCI_CLASS_MULTIMEDIA_HD_AUDIO


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The driver off each sound function in the GPU's slot that leaves with it."""
    for address in handover.siblings:
        device = f"sys/bus/pci/devices/{address}"
        driver = host.link_name(f"{device}/driver")
        if slot(address) != slot(gpu.address) or address in handover.unmanaged:
            continue
        is_sound = (host.read(f"{device}/class") or "").startswith(_AUDIO)
        if is_sound and driver is not None and not is_vfio(host, address):
            yield _unbind(host, gpu, address, driver, handover)


def _unbind(host: Host, gpu: Gpu, address: str, driver: str, handover: Handover) -> Step:
    from ..actions.native import ReturnNative, UnbindNative
    from ..machine import nodes  # only for a GPU with sound

    cards = tuple(f"dev/snd/{name}" for name in nodes.sound_nodes(host, (address,)))
    # Sound servers let go of a card that disappears. So where nobody may look into
    # them (SELinux), that counts no more than it does for the GPU itself.
    strict = kernel.release(host) < (6, 0)
    return Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"{driver} waits without end while its sound is open; here that has a deadline, in"
        " libvirt it has none",
        do=UnbindNative(address, driver, handover.config.holders.wait_s, strict, cards),
        undo=ReturnNative(address, driver, False, False),
    )
