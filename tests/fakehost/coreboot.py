"""The coreboot bus, and its driver of framebuffers.

Linux drivers/firmware/google/framebuffer-coreboot.c and coreboot_table.c. What
framebuffer_probe() registers is in fake/coreboot/ENTRY, ENTRY being the device on the bus:

    simple-framebuffer.0 sys/devices/.../coreboot5/simple-framebuffer.0 0xb0000000 8294400
    Coreboot Framebuffer
    simpledrm 0xb0000000 8294400 0xb0000000 8294400

the platform device, its path, start and size of its own resource; the resource's name; and
the line of fake/sysfb for its driver.
"""

from __future__ import annotations

import errno
import os

from . import resources, sysfb
from .tree import Tree

BUS = "sys/bus/coreboot"
_STATE = "fake/coreboot"


def learn(tree: Tree) -> None:
    """Write down, before anything changes, what is registered for which device on the bus."""
    for entry in tree.list(f"{BUS}/devices"):
        bound = tree.link_name(f"{BUS}/devices/{entry}/driver") == "framebuffer"
        if not bound or tree.exists(f"{_STATE}/{entry}"):
            continue
        for name in resources.COREBOOT_NAMES:
            kind = "coreboot" if name.startswith("coreboot-") else "simple"
            device = f"{kind}-framebuffer.0"
            path = tree.real(f"sys/bus/platform/devices/{device}")
            for region in resources.named(tree, name) if path else ():
                size = region.last - region.first + 1
                state = tree.read(f"{sysfb.STATE}/{device}")
                line = f"{device} {path} {region.first:#x} {size}"
                tree.put(f"{_STATE}/{entry}", f"{line}\n{name}\n{state}")


def write_bind(tree: Tree, driver: str, entry: str) -> None:
    """bind_store(), and framebuffer_probe()."""
    path = tree.real(f"{BUS}/devices/{entry}")
    text = tree.read(f"{_STATE}/{entry}")
    if path is None or text is None:
        raise sysfb.Refused(errno.ENODEV, entry)  # another tag, and so another driver
    if tree.exists(f"{path}/driver"):
        raise sysfb.Refused(errno.EBUSY, entry)
    line, name, state = text.splitlines()
    device, place, start, size = line.split()
    if tree.readlink(f"sys/bus/platform/devices/{device}"):
        raise sysfb.Refused(errno.EEXIST, entry)  # sysfs has the name already
    first = int(start, 0)
    if not resources.request(tree, first, first + int(size) - 1, name):
        raise sysfb.Refused(errno.EBUSY, entry)  # platform_device_add
    tree.link(f"{path}/driver", f"{BUS}/drivers/{driver}")
    tree.make_directory(place)
    tree.link(f"sys/bus/platform/devices/{device}", place)
    tree.link(f"{place}/subsystem", "sys/bus/platform")
    tree.put(f"{place}/driver_override", "(null)")
    kind = device.rpartition(".")[0]
    tree.put(f"{place}/modalias", f"platform:{kind}")
    tree.put(f"{sysfb.STATE}/{device}", state)
    if tree.exists(f"sys/bus/platform/drivers/{kind}"):
        sysfb.probe(tree, sysfb.platform(tree, device), place, kind)


def write_unbind(tree: Tree, driver: str, entry: str) -> None:
    """unbind_store(), and framebuffer_remove() where there is one.

    "firmware: google: framebuffer: Do not unregister platform device" has taken that away.
    """
    path = tree.real(f"{BUS}/devices/{entry}")
    if path is None or tree.link_name(f"{path}/driver") != driver:
        raise sysfb.Refused(errno.ENODEV, entry)
    if tree.has_symbol("framebuffer_remove"):
        device = (tree.read(f"{_STATE}/{entry}") or "").split()[0]
        if not tree.readlink(f"sys/bus/platform/devices/{device}"):
            raise tree.fault(f"use after free: {device} is unregistered twice")
        sysfb.unregister(tree, device)
    tree.remove(os.path.join(path, "driver"))
