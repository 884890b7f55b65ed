"""Firmware framebuffers as platform devices, and their drivers.

Linux drivers/firmware/sysfb.c (arch/x86/kernel/sysfb.c in 5.10), efifb.c,
vesafb.c, simplefb.c, vga16fb.c and drivers/gpu/drm/{tiny,sysfb}/.

Two drivers share each name ("efi-framebuffer" is efifb or efidrm), so which one
this kernel has is kept in fake/sysfb/DEVICE, with what else no attribute shows:

    efifb 0xc0000000 4096000 0xc0000000 4096000

the driver, start and size of the framebuffer, start and size of what the driver
reserves (0 0 for nothing).
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from vfio_console_hook.machine.firmware import screen_memory

from . import fbdev, resources
from .tree import Tree

BUS = "sys/bus/platform"
STATE = "fake/sysfb"
DISABLED = "fake/sysfb_disabled"
_DEVICE = re.compile(r"(efi|vesa|simple|vga|coreboot)-framebuffer\.\d+")
# What sysfb_init registers where there is no picture; no driver takes it.
_EMPTY = re.compile(r"(platform|ega)-framebuffer\.\d+")
_OWN = ("BOOTFB", *resources.COREBOOT_NAMES)
_VGA_PORTS = (0x3C0, 0x3DF)


@dataclass(frozen=True)
class Driver:
    """A driver of firmware framebuffers. title is what /proc/fb shows."""

    name: str
    title: str
    drm: bool


_DRIVERS = {
    driver.name: driver
    for driver in (
        Driver("efifb", "EFI VGA", drm=False),
        Driver("vesafb", "VESA VGA", drm=False),
        Driver("simplefb", "simple", drm=False),
        Driver("vga16fb", "VGA16 VGA", drm=False),
        Driver("efidrm", "efidrmdrmfb", drm=True),
        Driver("vesadrm", "vesadrmdrmfb", drm=True),
        Driver("simpledrm", "simpledrmdrmfb", drm=True),
        Driver("corebootdrm", "corebootdrmdrmf", drm=True),
    )
}
_FBDEV_OF = {
    "efi": "efifb", "vesa": "vesafb", "simple": "simplefb", "vga": "vga16fb",
    "coreboot": "corebootdrm",
}  # fmt: skip


@dataclass(frozen=True)
class Platform:
    """A firmware framebuffer: struct screen_info and what its driver makes of it."""

    device: str
    driver: Driver
    start: int
    size: int
    reserved_start: int
    reserved_size: int

    @property
    def reservation(self) -> tuple[int, int, str]:
        return self.reserved_start, self.reserved_start + self.reserved_size - 1, self.driver.name

    def overlaps(self, first: int, last: int) -> bool:
        return self.size > 0 and self.start <= last and first < self.start + self.size


class Refused(OSError):
    """The errno of a write to bind or unbind."""


def learn(tree: Tree) -> None:
    """Write down, before anything changes, what only the present state shows."""
    for name in tree.list(f"{BUS}/devices"):
        if _DEVICE.fullmatch(name) and not tree.exists(f"{STATE}/{name}"):
            tree.put(f"{STATE}/{name}", _look(tree, name))


def _look(tree: Tree, name: str) -> str:
    device = tree.real(f"{BUS}/devices/{name}") or ""
    fbs = fbdev.framebuffers(tree, device)
    title = tree.read(f"{device}/graphics/{fbs[0]}/name") if fbs else None
    reservations = [r for r in resources.regions(tree, resources.IOMEM) if r.name in _DRIVERS]
    by_title = next((d.name for d in _DRIVERS.values() if d.title == title), None)
    kind = name.split("-", 1)[0]
    by_reservation = next((r.name for r in reservations if r.name.startswith(kind)), None)
    bound_drm = bool(tree.list(f"{device}/drm"))
    driver = by_title or by_reservation or (f"{kind}drm" if bound_drm else _FBDEV_OF[kind])
    reservation = next((r for r in reservations if r.name == driver), None)
    own = next((r for name in _OWN for r in resources.named(tree, name)), None)
    memory = tree.framebuffer_memory(fbs[0]) if fbs else None
    screen = screen_memory(tree)
    start, size = 0, 0
    if memory is not None and memory[0]:
        start, size = memory
    elif reservation or own:
        region = reservation or own
        assert region is not None
        start, size = region.first, region.last - region.first + 1
    elif screen is not None:
        start, size = screen.first, screen.last - screen.first + 1
    reserved = (
        (reservation.first, reservation.last - reservation.first + 1) if reservation else (0, 0)
    )
    if not reservation and start and tree.link_name(f"{device}/driver") is None:
        reserved = (start, size)
    return f"{driver} {start:#x} {size} {reserved[0]:#x} {reserved[1]}"


def platform(tree: Tree, device: str) -> Platform:
    """Raises LookupError for a device that is no firmware framebuffer."""
    text = tree.read(f"{STATE}/{device}")
    if text is None:
        raise LookupError(device)
    driver, *numbers = text.split()
    return Platform(device, _DRIVERS[driver], *(int(number, 0) for number in numbers))


def platforms(tree: Tree) -> list[Platform]:
    """Those that are still registered."""
    names = [name for name in tree.list(STATE) if tree.readlink(f"{BUS}/devices/{name}")]
    return [platform(tree, name) for name in names]


def bound_driver(tree: Tree, device: str) -> str | None:
    return tree.link_name(f"{BUS}/devices/{device}/driver")


# -- bind and unbind in sysfs (drivers/base/bus.c, bind_store and unbind_store)


def write_bind(tree: Tree, driver: str, device: str) -> None:
    """Raises Refused with the kernel's errno, or KernelFault."""
    # 5.10: driver_attach's result is thrown away, so it is always ENODEV.
    old = tree.release() < (5, 11, 0)
    if tree.readlink(f"{BUS}/devices/{device}") is None or not device.startswith(driver + "."):
        raise Refused(errno.ENODEV, driver)
    path = tree.real(f"{BUS}/devices/{device}")
    if path is None:
        raise Refused(errno.ENODEV if old else errno.ENOENT, driver)  # driver_sysfs_add
    if bound_driver(tree, device) is not None:
        raise Refused(errno.ENODEV if old else errno.EBUSY, driver)
    probe(tree, platform(tree, device), path, driver)


def probe(tree: Tree, found: Platform, path: str, driver: str) -> None:
    """The driver's probe()."""
    freed = tree.exists("fake/owner_removed") and tree.release() < (6, 9, 0)
    if freed and found.driver.name == "efifb":
        # efifb_fixup_resources kept pointers into the PCI device of before, in whose BAR it draws.
        raise tree.fault("general protection fault in efifb_probe: the PCI device was freed")
    tree.link(f"{path}/driver", f"{BUS}/drivers/{driver}")
    _reserve(tree, found)
    if found.driver.drm:
        # DRM_MODE_CONNECTOR_Unknown in simpledrm, efidrm and vesadrm
        fbdev.add_card(tree, path, connectors=("Unknown-1",))
    # FBINFO_HIDE_SMEM_START: DRM hides where its memory is.
    start = 0 if found.driver.drm else found.start
    fbdev.register(tree, path, found.driver.title, (start, found.size))
    if not _decodes(tree, found):
        tree.log(f"{found.device} draws into memory that nothing answers to")


def _decodes(tree: Tree, found: Platform) -> bool:
    from . import pci  # pci knows this module too

    owner = pci.owner_of(tree, found.start)
    return owner is None or pci.decodes_memory(tree, owner)


def _reserve(tree: Tree, found: Platform) -> None:
    # A driver whose memory is taken warns and goes on (efifb_probe: "cannot
    # reserve video memory at 0x%lx").
    first, last, name = found.reservation
    if found.reserved_size and not resources.request(tree, first, last, name):
        tree.log(f"{name}: cannot reserve video memory at {first:#x}")
    if name == "vesafb":
        resources.request(tree, *_VGA_PORTS, name, resources.IOPORTS)


def write_unbind(tree: Tree, driver: str, device: str) -> None:
    """Raises Refused with the kernel's errno, or KernelFault."""
    path = tree.real(f"{BUS}/devices/{device}")
    if path is None or bound_driver(tree, device) != driver:
        raise Refused(errno.ENODEV, driver)
    found = platform(tree, device)
    if not fbdev.framebuffers(tree, path) and not tree.list(f"{path}/drm"):
        # A native driver has unregistered the framebuffer below it: efifb_remove
        # does it again (seen on 5.10: kernel BUG at mm/slub.c:305).
        raise tree.fault(f"kernel BUG at mm/slub.c: {found.driver.name} is removed twice")
    _remove(tree, found, path)


def _remove(tree: Tree, found: Platform, path: str) -> None:
    """The driver's remove()."""
    fbs = fbdev.framebuffers(tree, path)
    held = any(fbdev.holding(tree, f"dev/{fb}") for fb in fbs)
    if held and not found.driver.drm and tree.release() < (5, 17, 9):
        # framebuffer_release() in .remove: the holder's close uses freed memory.
        name = found.driver.name
        raise tree.fault(f"general protection fault in {name}_destroy at the last close")
    tree.remove(f"{path}/driver")
    fbdev.remove_cards(tree, path)
    drop_framebuffers(tree, found, path)
    if found.driver.name == "vesafb" and resources.named(tree, "vesafb", resources.IOPORTS):
        resources.release(tree, *_VGA_PORTS, "vesafb", resources.IOPORTS)


def drop_framebuffers(tree: Tree, found: Platform, path: str) -> None:
    """The framebuffers of a firmware driver unregistered, and what it reserved given back.

    An fbdev driver does that at the last close, a DRM driver at once (devm).
    """
    nodes = [f"dev/{fb}" for fb in fbdev.framebuffers(tree, path)]
    for node in nodes:
        fbdev.unregister(tree, path, node[len("dev/") :])
    first, last, name = found.reservation
    if not resources.named(tree, name):
        return
    if found.driver.drm or not nodes:
        resources.release(tree, first, last, name)
    else:
        fbdev.destroy_at_last_close(tree, nodes[0], first, last, name)


# -- what other drivers do to them


def unregister(tree: Tree, device: str) -> None:
    """platform_device_unregister(): it never comes back before a reboot."""
    path = tree.real(f"{BUS}/devices/{device}")
    found = platform(tree, device)
    if path is not None:
        if bound_driver(tree, device) is not None:
            _remove(tree, found, path)
        tree.remove(path)
    tree.remove(f"{BUS}/devices/{device}")
    tree.remove(f"{STATE}/{device}")
    if device.startswith(("simple-", "coreboot-")):
        # platform_device_del releases the device's own resource, and only now.
        for name in _OWN:
            for region in resources.named(tree, name):
                resources.release_with_children(tree, region.first, region.last, name)


def disable(tree: Tree) -> None:
    """The unregistering half of sysfb_disable(); sysfb_init is an initcall, so it is final."""
    tree.put(DISABLED, "")
    for found in platforms(tree):
        # "pd" is the device that sysfb_init has registered; coreboot's is not.
        if not _is_coreboots(tree, found.device):
            unregister(tree, found.device)
    for name in tree.list(f"{BUS}/devices"):
        if _EMPTY.fullmatch(name):
            tree.remove(tree.where(f"{BUS}/devices/{name}"))
            tree.remove(f"{BUS}/devices/{name}")


def _is_coreboots(tree: Tree, device: str) -> bool:
    entries = (tree.read(f"fake/coreboot/{entry}") or "" for entry in tree.list("fake/coreboot"))
    return any(text.split()[0] == device for text in entries)


def detach_overlapping(tree: Tree, first: int, last: int) -> None:
    """aperture_detach_devices(): the devices of the firmware drivers bound at this moment."""
    for found in platforms(tree):
        if bound_driver(tree, found.device) and found.overlaps(first, last):
            unregister(tree, found.device)


def unregister_overlapping_framebuffers(tree: Tree, first: int, last: int) -> None:
    """do_remove_conflicting_framebuffers() before 5.18: device and driver stay, dead.

    simpledrm's device goes even so (drm_aperture_detach_firmware, 5.14).
    """
    for found in platforms(tree):
        if not (bound_driver(tree, found.device) and found.overlaps(first, last)):
            continue
        path = tree.where(f"{BUS}/devices/{found.device}")
        if found.driver.drm:
            unregister(tree, found.device)
        else:
            drop_framebuffers(tree, found, path)
