"""The nodes of a GPU in /dev, and its files in /sys that processes may have open.

An unbind may wait until the last of them is closed, without a timeout, and no signal
ends that wait:

    /dev/i2c-N      i2c_del_adapter waits for the adapter's last user (Linux i2c-core-base.c)
    /dev/snd/*      snd_card_free waits until all are closed (sound/core/init.c)
    /dev/accel/*    a driver may wait for them, or end who has them open (hl_device_fini)
    /dev/nvidia*    nv_pci_remove sleeps until its usage count is 0 (NVIDIA nv-pci.c)
    /dev/meiN       of Intel's cards: without a wait, but before mei_open took a reference (in
                    6.12 it did not) the last close reached freed memory (misc/mei/main.c)
    /dev/fbN        an fbdev driver keeps the memory until the last close (fbmem.c, fb_destroy)

and a process can do nothing with a node whose GPU is gone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from . import console, pci
from .gpu import Gpu
from .host import Host


def nodes_to_close(
    host: Host, gpus: Collection[Gpu], siblings: Collection[str] = ()
) -> tuple[str, ...]:
    """What must be closed before the GPUs leave, such as "dev/fb0" and "dev/dri/card0".

    siblings are the addresses of the other functions that the VM gets: nodes of those in
    the slot of a GPU count, and of all sound cards: Intel's Arc have theirs in another slot.
    A directory, such as
    "sys/class/backlight/acpi_video0", means all files in it.
    """
    leaving = {one.address for one in gpus}
    slots = {pci.slot(address) for address in leaving}
    leaving |= {
        address
        for address in siblings
        if pci.slot(address) in slots or pci.is_sound(host, address)
    }
    found = [node for one in gpus for node in _display_nodes(host, one)]
    found += _accelerator_nodes(host, leaving)
    found += i2c_nodes(host, leaving)
    found += [f"dev/{name}" for name in _class_devices_of(host, "mei", leaving)]
    found += [
        f"sys/class/backlight/{name}" for name in _class_devices_of(host, "backlight", leaving)
    ]
    found += [f"dev/snd/{name}" for name in sound_nodes(host, leaving)]
    drivers = {one.driver for one in gpus}
    if "amdgpu" in drivers and host.exists("dev/kfd"):
        # Each process that opens it gets a part of every GPU (Linux kfd_flat_memory.c,
        # kfd_init_apertures), so another amdgpu on the host does not matter.
        found.append("dev/kfd")
    if "nvidia" in drivers:
        found += _nvidia_nodes(host, [one for one in gpus if one.driver == "nvidia"], siblings)
    return tuple(dict.fromkeys(found))


def sound_nodes(host: Host, addresses: Collection[str]) -> Iterator[str]:
    """The names in /dev/snd of the sound cards that are these PCI functions."""
    # sound/cardN, which holds the others, is no node.
    return (
        name for name in _class_devices_of(host, "sound", addresses) if not name.startswith("card")
    )


def _accelerator_nodes(host: Host, addresses: Collection[str]) -> Iterator[str]:
    """The nodes of drivers that have no DRM card: those of drivers/accel, and habanalabs' own.

    The latter have a class and names of their own up to Linux 6.4 (hl0, hl_controlD0).
    """
    yield from (f"dev/accel/{name}" for name in _class_devices_of(host, "accel", addresses))
    yield from (f"dev/{name}" for name in _class_devices_of(host, "habanalabs", addresses))


def i2c_nodes(host: Host, addresses: Collection[str]) -> Iterator[str]:
    """The nodes of the i2c adapters that are on these PCI functions, such as "dev/i2c-3"."""
    return (f"dev/{name}" for name in _class_devices_of(host, "i2c-dev", addresses))


def _display_nodes(host: Host, one: Gpu) -> Iterator[str]:
    """Its framebuffers and cards; not those of firmware DRM drivers, which can be unbound."""
    unplugged = {
        name for device in one.firmware if device.drm for name in device.framebuffers + device.cards
    }
    if one.framebuffers and console.has_fb_devices(host):
        yield from (f"dev/{name}" for name in one.framebuffers if name not in unplugged)
    yield from (f"dev/dri/{name}" for name in one.cards if name not in unplugged)


def _class_devices_of(host: Host, kind: str, addresses: Collection[str]) -> Iterator[str]:
    """The names in /sys/class/KIND whose nearest PCI device is one of the addresses.

    An i2c adapter may be below the card, or below one of the card's connectors.
    """
    for name in host.list(f"sys/class/{kind}"):
        # Their links hold the whole path (Linux drivers/base/core.c, device_add_class_symlinks).
        if pci.nearest(host.readlink(f"sys/class/{kind}/{name}") or "") in addresses:
            yield name


def _nvidia_nodes(host: Host, gpus: Collection[Gpu], siblings: Collection[str]) -> list[str]:
    """The nodes of NVIDIA's own driver, which has some for each GPU and some for all GPUs.

    The latter count when its last device leaves, because the modules are unloaded then.
    """
    minors = [_nvidia_minor(host, one.address) for one in gpus]
    leaving = {one.address for one in gpus} | set(siblings)
    stays = any(one not in leaving for one in pci.on_module(host, "nvidia"))
    if stays and None not in minors:
        return [f"dev/nvidia{minor}" for minor in minors]
    found = []
    for name in (name for name in host.list("dev") if name.startswith("nvidia")):
        # nvidia-caps is a directory of them.
        below = [f"dev/{name}/{inner}" for inner in host.list(f"dev/{name}")]
        found += below or [f"dev/{name}"]
    return found


def _nvidia_minor(host: Host, address: str) -> str | None:
    """N of the /dev/nvidiaN for a GPU, or None when the driver does not show it.

    Source: NVIDIA open-gpu-kernel-modules, nv-procfs.c, nv_procfs_read_gpu_info.
    """
    text = host.read(f"proc/driver/nvidia/gpus/{address}/information") or ""
    match = re.search(r"^Device Minor:\s*(\d+)$", text, re.MULTILINE)
    return match[1] if match else None
