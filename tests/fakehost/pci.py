"""PCI devices and their drivers: vfio-pci and native ones.

Linux drivers/pci/, drivers/vfio/pci/, drivers/video/aperture.c, drivers/pci/vgaarb.c.

fake/native/ADDRESS is which driver of the host matches a device, in words:

    driver=bochs-drm module=bochs fb=bochs-drmdrmfb bars=0,2 render=no connectors=Virtual-1

master=yes is for a driver that calls pci_set_master(); irq=N is for nvidia (nvidia.py).
Only what driver= says is needed; a driver without fb= has neither framebuffer nor card, but
for card=yes: an accelerator has a card, and nothing to show, nor has nvidia with fbdev=0. It
is loaded when sys/bus/pci/drivers/DRIVER exists.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass

from vfio_console_hook.errors import HostError
from vfio_console_hook.machine.memory import Bar, memory_bars
from vfio_console_hook.machine.snapshot import answer_path

from . import fbdev, modules, nvidia, resources, sound, sysfb, vt
from .tree import Tree

BUS = "sys/bus/pci"
_GROUPS = "sys/kernel/iommu_groups"
_MEDIATED = "sys/bus/mdev/devices"
VFIO = "vfio-pci"
_CLASS_VGA = 0x0300
_MEM, _ROM_SHADOW, _MEM_64 = 0x200, 0x2, 0x100000
_ROM = 6
_COMMAND, _COMMAND_IO, _COMMAND_MEMORY, _COMMAND_MASTER = 4, 0x1, 0x2, 0x4
_COMMAND_NO_INTX = 0x400
_BARS = 0x10
_4G = 1 << 32
_VMWGFX = "vmwgfx"
_VMWARE_SVGA = ("0x0405", "0x0406")
Refused = sysfb.Refused


@dataclass(frozen=True)
class Native:
    """A driver of the host for one device."""

    driver: str
    module: str
    fb: str
    bars: tuple[int, ...]
    render: bool
    connectors: tuple[str, ...]
    card: bool
    master: bool


def native(tree: Tree, address: str) -> Native | None:
    text = tree.read(f"fake/native/{address}")
    if text is None:
        return None
    words = {key: value for key, _, value in (word.partition("=") for word in text.split())}
    return Native(
        driver=words["driver"],
        module=words.get("module", words["driver"].replace("-", "_")),
        fb=words.get("fb", ""),
        bars=tuple(int(number) for number in words.get("bars", "").split(",") if number),
        render=words.get("render") == "yes",
        connectors=tuple(name for name in words.get("connectors", "").split(",") if name),
        card=bool(words.get("fb")) or words.get("card") == "yes",
        master=words.get("master") == "yes",
    )


def device_path(tree: Tree, address: str) -> str:
    """The real path of a device in sysfs. Raises LookupError when it is not on the bus."""
    return tree.where(f"{BUS}/devices/{address}")


def bound_driver(tree: Tree, address: str) -> str | None:
    return tree.link_name(f"{BUS}/devices/{address}/driver")


def bars(tree: Tree, address: str) -> tuple[Bar, ...]:
    return memory_bars(tree, address)


def owner_of(tree: Tree, start: int) -> str | None:
    """screen_info_pci_dev(): the display device in whose BAR the framebuffer lies now."""
    for address in tree.list(f"{BUS}/devices"):
        text = tree.read(f"{BUS}/devices/{address}/class") or "0"
        ranges = [bar.range for bar in bars(tree, address)] if int(text, 16) >> 16 == 0x03 else []
        if any(range_.first <= start <= range_.last for range_ in ranges):
            return address
    return None


def learn(tree: Tree) -> None:
    """Write down, before anything changes, whose the firmware's framebuffer is.

    `power_state` of a device that was never used is "unknown" or D0. Which, and when,
    changes within a stable series, and no program acts on it: here it is D0. Linux 6.12.107 says
    "unknown" before a VM and after it, 6.12.117 before it (6.12.111 took "PCI: Stop setting
    cached power state to 'unknown' on unbind", which is about pci_device_remove), 7.2 never
    (pci_pm_init powers up devices without a power management capability too, from v6.16).
    """
    for address in tree.list(f"{BUS}/devices"):
        if tree.read(f"{BUS}/devices/{address}/power_state") == "unknown":
            _set_power_state(tree, address, "D0")
    if not tree.exists("fake/owner"):
        owners = [owner_of(tree, found.start) for found in sysfb.platforms(tree)]
        tree.put("fake/owner", next((owner for owner in owners if owner), ""))


# -- the command register


def command(tree: Tree, address: str) -> int:
    content = tree.read_bytes(f"{BUS}/devices/{address}/config") or b""
    # A machine without config space counts as switched on.
    return int.from_bytes(content[_COMMAND : _COMMAND + 2] or b"\3\0", "little")


def decodes_memory(tree: Tree, address: str) -> bool:
    return bool(command(tree, address) & _COMMAND_MEMORY)


def _set_command(tree: Tree, address: str, *, on: int = 0, off: int = 0) -> None:
    config = f"{BUS}/devices/{address}/config"
    if tree.exists(config):
        value = command(tree, address) & ~off | on
        tree.poke(config, _COMMAND, value.to_bytes(2, "little"))


def _count(tree: Tree, address: str, by: int) -> int:
    """Add to pci_dev.enable_cnt, which `enable` shows, and give it back."""
    path = f"{BUS}/devices/{address}/enable"
    count = int(tree.read(path) or 0) + by
    if tree.exists(path):
        tree.put(path, str(count))
    return count


def _set_power_state(tree: Tree, address: str, state: str) -> None:
    path = f"{BUS}/devices/{address}/power_state"  # there is none in 5.10
    if tree.exists(path):
        tree.put(path, state)


def enable(tree: Tree, address: str) -> None:
    """pci_enable_device(): D0, memory decode, and I/O where there is an I/O BAR."""
    _count(tree, address, 1)
    _set_power_state(tree, address, "D0")
    ports = any(flags & 0x100 for flags in _flags(tree, address)[:6])
    _set_command(tree, address, on=_COMMAND_MEMORY | (_COMMAND_IO if ports else 0))


def disable(tree: Tree, address: str) -> None:
    """pci_disable_device(): the last one ends bus mastering, and only that."""
    if _count(tree, address, -1) == 0:
        _set_command(tree, address, off=_COMMAND_MASTER)


def write_enable(tree: Tree, address: str, text: str) -> None:
    """enable_store() of drivers/pci/pci-sysfs.c; decoding is never switched off by it."""
    if int(text):
        enable(tree, address)
    elif int(tree.read(f"{BUS}/devices/{address}/enable") or 0):
        disable(tree, address)
    else:
        raise Refused(errno.EIO, address)


def _flags(tree: Tree, address: str) -> list[int]:
    text = tree.read(f"{BUS}/devices/{address}/resource") or ""
    return [int(line.split()[2], 16) for line in text.splitlines()]


def check_config_write(tree: Tree) -> None:
    """pci_write_config(): LOCKDOWN_PCI_ACCESS. Raises Refused."""
    state = tree.read("sys/kernel/security/lockdown")
    if state is not None and "[none]" not in state:
        raise Refused(errno.EPERM, "lockdown")


def config_written(tree: Tree, address: str) -> None:
    """Config space was written: is the firmware's picture still there?"""
    if decodes_memory(tree, address):
        return
    for found in sysfb.platforms(tree):
        if sysfb.bound_driver(tree, found.device) and owner_of(tree, found.start) == address:
            tree.log(f"{found.device} draws into memory that nothing answers to")


# -- drivers (drivers/base/bus.c, drivers/pci/pci-driver.c)


def write_override(tree: Tree, address: str, text: str) -> None:
    """driver_override_store(): an empty line takes it back, and it reads "(null)" then."""
    tree.put(f"{device_path(tree, address)}/driver_override", text.strip() or "(null)")


def write_probe(tree: Tree, address: str) -> None:
    """drivers_probe_store(): the first loaded driver that matches a driverless device."""
    if not tree.exists(f"{BUS}/devices/{address}"):
        raise Refused(errno.ENODEV, address)
    if bound_driver(tree, address) is None:
        override = _override(tree, address)
        matching = native(tree, address)
        wanted = override or (matching.driver if matching else None)
        if wanted and tree.exists(f"{BUS}/drivers/{wanted}"):
            _probe(tree, address, wanted)


def write_bind(tree: Tree, driver: str, address: str) -> None:
    matching = native(tree, address)
    matches = driver in (_override(tree, address), matching.driver if matching else None)
    if not tree.exists(f"{BUS}/devices/{address}") or not matches:
        raise Refused(errno.ENODEV, driver)
    if bound_driver(tree, address) is not None:
        raise Refused(errno.ENODEV if tree.release() < (5, 11, 0) else errno.EBUSY, driver)
    _probe(tree, address, driver)


def _override(tree: Tree, address: str) -> str | None:
    text = tree.read(f"{BUS}/devices/{address}/driver_override")
    return text if text not in (None, "", "(null)") else None


def group_to_join(tree: Tree, address: str) -> str | None:
    """The IOMMU group that pci_dma_configure() puts a device into before its first probe.

    Up to 6.14 of_iommu_configure() runs only then, and pci_device_group() takes the group of the
    port above: ports are found before pci_request_acs(), so they have no ACS. Without one it is
    a new group. So it was seen on arm64 with a device tree.
    """
    path = device_path(tree, address)
    units = tree.list("sys/class/iommu")
    at_once = tree.release() >= (6, 15, 0) or any(one.startswith(("dmar", "ivhd")) for one in units)
    if not units or at_once or tree.exists(f"{path}/iommu_group"):
        return None
    above = tree.link_name(f"{path.rpartition('/')[0]}/iommu_group")
    numbers = {*tree.list(_GROUPS)}
    return above or next(str(one) for one in range(len(numbers) + 1) if str(one) not in numbers)


def _configure_dma(tree: Tree, address: str) -> None:
    group = group_to_join(tree, address)
    if group is not None:
        path = device_path(tree, address)
        tree.link(f"{path}/iommu_group", f"{_GROUPS}/{group}")
        # The list of a group's devices is in no snapshot: those that were in it have the link.
        for one in tree.list(f"{BUS}/devices"):
            there = device_path(tree, one)
            if tree.link_name(f"{there}/iommu_group") == group:
                tree.link(f"{_GROUPS}/{group}/devices/{one}", there)


def _probe(tree: Tree, address: str, driver: str) -> None:
    _configure_dma(tree, address)
    matching = native(tree, address)
    if not is_vfio_driver(driver) and _probe_fails(tree, address, driver):
        return
    if is_vfio_driver(driver):
        if _has_functions(tree, address):
            tree.log(f"{driver} {address}: Cannot bind to PF with SR-IOV enabled")
            return
        _vfio_probe(tree, address)
    elif matching is not None and matching.driver == driver:
        _native_probe(tree, address, matching)
    elif driver == _VMWGFX:
        _vmw_probe(tree, address)
        return
    else:
        # pci_match_device() lets any driver probe what is overridden for it; what this one
        # does with a device that it does not know was not read.
        return
    tree.link(f"{device_path(tree, address)}/driver", f"{BUS}/drivers/{driver}")


# -- what a guest leaves behind
#
# fake/after_vm/ADDRESS has words for what becomes of a device once a guest has used it:
#
#     silent          it does not answer any more: its link is down, or it cannot leave D3cold
#     probe=-22       the native driver's probe fails with that error, although it answers
#     unplugged       the native driver finds no monitor
#     healed=reset    until it is reset
#
# fake/broken/ADDRESS has the same words, once it is so.


def _broken(tree: Tree, address: str) -> dict[str, str]:
    words = (tree.read(f"fake/broken/{address}") or "").split()
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _break(tree: Tree, address: str, when: str = "after_vm") -> None:
    """The guest has ended, or the device was reset."""
    words = tree.read(f"fake/{when}/{address}")
    if words is None:
        return
    tree.put(f"fake/broken/{address}", words)
    if "silent" in words.split():
        # pci_power_up(): PCI_POSSIBLE_ERROR(pmcsr), so current_state = PCI_D3cold.
        _set_power_state(tree, address, "D3cold")
        config = f"{BUS}/devices/{address}/config"
        content = tree.read_bytes(config) or b""
        tree.put(f"fake/asleep/{address}", content.hex())
        tree.poke(config, 0, b"\xff" * len(content))


def _probe_fails(tree: Tree, address: str, driver: str) -> bool:
    """local_pci_probe() wakes the device first; call_driver_probe() logs how the probe failed."""
    broken = _broken(tree, address)
    if "silent" in broken:
        why = "Unable to change power state from D3cold to D0, device inaccessible"
        tree.log(f"{driver} {address}: {why}")
    if "silent" in broken or "probe" in broken:
        error = broken.get("probe", "-19")
        tree.log(f"{driver} {address}: probe with driver {driver} failed with error {error}")
        return True
    return False


def write_reset(tree: Tree, address: str, text: str) -> None:
    """reset_store() (pci-sysfs.c), pci_reset_function(): it wakes the device before."""
    if text != "1":
        raise Refused(errno.EINVAL, text)
    reset(tree, address)


def reset(tree: Tree, address: str) -> None:
    """__pci_reset_function_locked() between pci_dev_save_and_disable() and pci_dev_restore().

    A device that does not come back is not ready in time (pci_dev_wait: ENOTTY).
    fake/after_reset/ADDRESS says in the words of after_vm what becomes of one that does.
    """
    broken = _broken(tree, address)
    if broken.get("healed") == "reset":
        tree.remove(f"fake/broken/{address}")
        # pci_dev_restore() writes back what was saved.
        saved = tree.read(f"fake/asleep/{address}")
        if saved:
            tree.poke(f"{BUS}/devices/{address}/config", 0, bytes.fromhex(saved))
            tree.remove(f"fake/asleep/{address}")
        _set_power_state(tree, address, "D0")
    elif "silent" in broken:
        raise Refused(errno.ENOTTY, address)
    _break(tree, address, "after_reset")


def reset_methods(tree: Tree, address: str) -> str:
    """The methods that work of those that reset_method_show() shows, in their order.

    It shows those that worked when the function was found; "bus" is then still there if other
    functions were found after it, but pci_parent_bus_reset() fails for them (ENOTTY). Where the
    file was not recorded, only that method is known.
    """
    shown = tree.read(f"{BUS}/devices/{address}/reset_method") or "bus"
    alone = on_bus(tree, address) == [address]
    return " ".join(one for one in shown.split() if alone or one != "bus")


def on_bus(tree: Tree, address: str) -> list[str]:
    """What a reset of the bus concerns; nothing on the root bus (pci_probe_reset_bus)."""
    if not re.search(r":..\.[0-7]/[^/]*$", device_path(tree, address)):
        return []
    return [one for one in tree.list(f"{BUS}/devices") if one[:8] == address[:8]]


def _vmw_probe(tree: Tree, address: str) -> None:
    """vmw_probe() (drivers/gpu/drm/vmwgfx/vmwgfx_drv.c) of a device that is no SVGA device.

    pci_match_device() gives pci_device_id_any for it, which vmw_setup_pci_resources()
    rejects with EINVAL, before it has mapped or written anything. What came before are the
    aperture helper, pcim_enable_device() and pci_set_master(); the last two are taken back
    (devres), and memory decoding stays on, as after every pci_disable_device().
    """
    if tree.read(f"{BUS}/devices/{address}/device") in _VMWARE_SVGA:
        raise NotImplementedError(f"{address} is an SVGA device, which vmwgfx would drive")
    _take_from_firmware(tree, address)
    enable(tree, address)
    _set_command(tree, address, on=_COMMAND_MASTER)
    disable(tree, address)
    tree.log(f"vmwgfx {address}: probe with driver vmwgfx failed with error -22")


def write_unbind(tree: Tree, driver: str, address: str) -> None:
    if bound_driver(tree, address) != driver:
        raise Refused(errno.ENODEV, driver)
    detach_driver(tree, address)


def detach_driver(tree: Tree, address: str) -> None:
    """device_release_driver()."""
    path = device_path(tree, address)
    driver = bound_driver(tree, address)
    if is_vfio_driver(driver):
        tree.remove(f"{path}/vfio-dev")
        group = tree.link_name(f"{path}/iommu_group")
        tree.remove(f"dev/vfio/{group}")
        tree.remove_if_empty("dev/vfio")
    elif driver is not None:
        for mediated in tree.list(_MEDIATED):
            # mdev_unregister_parent(), vfio_unregister_group_dev(): until its VM has ended
            if f"/{address}/" in (tree.readlink(f"{_MEDIATED}/{mediated}") or ""):
                raise tree.fault(f"the removal of {mediated} below {address} never returns")
        if driver == "nvidia":
            nvidia.remove(tree, address)
        if driver == sound.DRIVER:
            sound.remove(tree, address, path)
            _leave_msi(tree, address)
        _hide(tree, path)
        regions = _REGIONS.get(driver, driver)
        for bar in bars(tree, address):
            if any(r.first == bar.range.first for r in resources.named(tree, regions)):
                resources.release(tree, bar.range.first, bar.range.last, regions)
        if int(tree.read(f"{path}/enable") or 0) and not _leaves_enabled(tree, driver):
            disable(tree, address)
    tree.remove(f"{path}/driver")


# Drivers whose regions have another name: vp_modern_probe() and vp_modern_remove()
# (drivers/virtio/virtio_pci_modern_dev.c).
_REGIONS = {"virtio-pci": "virtio-pci-modern"}


def _leaves_enabled(tree: Tree, driver: str) -> bool:
    """Whether a driver never calls pci_disable_device(): one count more with every unbinding.

    bochs_pci_probe() calls pci_enable_device() in 5.10, and bochs_pci_remove() nothing to
    match; in 6.1 it is pcim_enable_device().
    """
    return driver == "bochs-drm" and tree.release() < (6, 1, 0)


def _leave_msi(tree: Tree, address: str) -> None:
    """pci_disable_msi(): pci_intx_for_msi() lets the device pull its line again."""
    if command(tree, address) & _COMMAND_NO_INTX:
        _set_command(tree, address, off=_COMMAND_NO_INTX)
        tree.put(f"fake/msi/{address}", "")


def _enter_msi(tree: Tree, address: str) -> None:
    """pci_set_master() and pci_enable_msi(), of a device that had it before."""
    if tree.exists(f"fake/msi/{address}"):
        _set_command(tree, address, on=_COMMAND_MASTER | _COMMAND_NO_INTX)


# -- vfio-pci


def _vfio_probe(tree: Tree, address: str) -> None:
    """vfio_pci_core_register_device() (vfio_pci_probe in 5.10)."""
    if _vfio_is_vga(tree, address) and tree.has_symbol("aperture_remove_conflicting_pci_devices"):
        # Linux commit d17378062079 ("vfio/pci: Remove console drivers") (in v6.0)
        remove_conflicting_devices(tree, address)
    # "We're not ready to enable the device yet, but we do want to be able to get to D3."
    # The latter it does not without a power management capability (pci_set_power_state).
    _set_power_state(tree, address, "D0")
    path = device_path(tree, address)
    if tree.release() >= (6, 1, 0):
        number = next(n for n in range(256) if not _vfio_number_taken(tree, n))
        tree.make_directory(f"{path}/vfio-dev/vfio{number}")
        tree.link(f"{path}/vfio-dev/vfio{number}/device", path)
    group = tree.link_name(f"{path}/iommu_group")
    if group is not None:
        tree.put(f"dev/vfio/{group}", "")


def _has_functions(tree: Tree, address: str) -> bool:
    """pci_num_vf(), of which vfio_pci_core_register_device() wants none (EBUSY).

    Some drivers switch them off in their remove (xe_pci_remove); nvidia leaves them alone.
    """
    return any(name.startswith("virtfn") for name in tree.list(f"{BUS}/devices/{address}"))


def _vfio_number_taken(tree: Tree, number: int) -> bool:
    devices = tree.list(f"{BUS}/devices")
    return any(tree.exists(f"{BUS}/devices/{one}/vfio-dev/vfio{number}") for one in devices)


def _vfio_is_vga(tree: Tree, address: str) -> bool:
    """vfio_pci_is_vga(): 0380 and 0302 are not."""
    return int(tree.read(f"{BUS}/devices/{address}/class") or "0", 16) >> 8 == _CLASS_VGA


class NotViableError(Exception):
    """QEMU hw/vfio/container.c, vfio_group_get: "group N is not viable"."""


def check_group(tree: Tree, address: str) -> None:
    """VFIO_GROUP_GET_STATUS: whether vfio lets QEMU have the group. Raises NotViableError.

    Up to 5.18 vfio_group_viable() asks vfio_dev_viable() for each device: one without driver, one
    whose driver is pci-stub (vfio_driver_allowed), one whose header is no endpoint's, or one
    that vfio itself has (drivers/vfio/vfio.c). Later iommu_group_claim_dma_owner() fails
    while a driver without driver_managed_dma is bound to any of them: pcieport, pci-stub and
    vfio's have that (drivers/iommu/iommu.c, drivers/pci/pci-driver.c).
    """
    group = tree.link_name(f"{BUS}/devices/{address}/iommu_group")
    if group is None:
        raise NotViableError(f"no iommu_group found for {address}")
    for other in tree.list(f"{BUS}/devices"):
        path = f"{BUS}/devices/{other}"
        if tree.link_name(f"{path}/iommu_group") != group:
            continue
        driver = bound_driver(tree, other)
        if driver in (None, "pci-stub", "pcieport") or is_vfio_driver(driver):
            continue
        bridge = (tree.read(f"{path}/class") or "").startswith("0x0604")
        if not (bridge and tree.release() < (5, 19, 0)):
            raise NotViableError(f"group {group} is not viable: {other} is on {driver}")


def is_vfio_driver(driver: str | None) -> bool:
    """Whether a driver registers its devices with vfio (vfio_pci_core_register_device)."""
    return driver is not None and (driver == VFIO or driver.endswith("_vfio_pci"))


def open_device(tree: Tree, address: str) -> list[int]:
    """The BARs that a VM which opens the device and maps all of them cannot have."""
    enable_for_program(tree, address)
    return [bar.number for bar in bars(tree, address) if not reserve_bar(tree, address, bar)]


def enable_for_program(tree: Tree, address: str) -> None:
    """vfio_pci_core_enable() (vfio_pci_enable in 5.10), at the first open.

    Up to 7.0 each BAR is requested when it is mapped, from 7.1 on all of them now
    (vfio_pci_core_map_bars).
    """
    if not is_vfio_driver(bound_driver(tree, address)):
        raise LookupError(f"{address} is not on vfio-pci")
    # What it saves has no bus mastering.
    _set_command(tree, address, off=_COMMAND_MASTER)
    enable(tree, address)
    header = tree.read_bytes(f"{BUS}/devices/{address}/config") or b""
    tree.put(f"fake/saved/{address}", header[:64].hex())
    if tree.release() >= (7, 1, 0):
        for bar in bars(tree, address):
            reserve_bar(tree, address, bar)


def reserve_bar(tree: Tree, address: str, bar: Bar) -> bool:
    """Whether vfio has a BAR now; it may have it already (barmap). __pci_request_region()."""
    name = _reservation_of_vfio(tree)
    if any(one.first == bar.range.first for one in resources.named(tree, name)):
        return True
    if resources.request(tree, bar.range.first, bar.range.last, name):
        return True
    where = _show(tree, address, bar)
    line = f"vfio-pci {address}: BAR {bar.number}: can't reserve {where}"
    # From 7.1 on barmap keeps the error of the open (IOMEM_ERR_PTR), which mmap gives back.
    if tree.release() < (7, 1, 0) or line not in (tree.read("fake/dmesg") or "").splitlines():
        tree.log(line)
    return False


def _show(tree: Tree, address: str, bar: Bar) -> str:
    """The kernel's %pR (lib/vsprintf.c, resource_string)."""
    flags = _flags(tree, address)[bar.number]
    words = " 64bit" * bool(flags & 0x100000) + " pref" * bool(flags & 0x2000)
    return f"[mem {bar.range.first:#010x}-{bar.range.last:#010x}{words}]"


def _reservation_of_vfio(tree: Tree) -> str:
    """The name of a mapped BAR in /proc/iomem.

    Up to 6.18 vfio_pci_core_mmap() requests it itself, as "vfio-pci"; in 6.19 and 7.0 it calls
    vfio_pci_core_setup_barmap() for that, and from 7.1 on vfio_pci_core_map_bars() has done
    it: both write "vfio" (read in Debian's modules from 6.12.117 to 7.3.4).
    """
    return VFIO if tree.release() < (6, 19, 0) else "vfio"


def close_device(tree: Tree, address: str) -> None:
    """vfio_pci_core_disable(): what the guest wrote to config space is taken back."""
    name = _reservation_of_vfio(tree)
    for bar in bars(tree, address):
        if any(r.first == bar.range.first for r in resources.named(tree, name)):
            resources.release(tree, bar.range.first, bar.range.last, name)
    saved = tree.read(f"fake/saved/{address}")
    if saved is None:
        return
    tree.remove(f"fake/saved/{address}")
    disable(tree, address)
    if saved:
        tree.poke(f"{BUS}/devices/{address}/config", 0, bytes.fromhex(saved))
    _break(tree, address)


# -- removing console drivers


def remove_conflicting_devices(tree: Tree, address: str) -> None:
    """aperture_remove_conflicting_pci_devices()."""
    if _sysfb_selected(tree, address):
        sysfb.disable(tree)
    for bar in bars(tree, address):
        sysfb.detach_overlapping(tree, bar.range.first, bar.range.last)
    # 6.1.50 took "video/aperture: Only kick vgacon when the pdev is decoding vga" and
    # "Move vga handling to pci function" without 6.5's vga_default_device(), which
    # vga_remove_vgacon() asks for itself.
    primary_only = (6, 1, 50) <= tree.release() < (6, 2, 0)
    if is_default_vga(tree, address) and (not primary_only or _rom_shadowed(tree, address)):
        remove_legacy_vga(tree, address)


def _sysfb_selected(tree: Tree, address: str) -> bool:
    """Whether a driver of this device makes sysfb_disable() unregister the firmware's framebuffer.

    aperture_remove_conflicting_pci_devices(), by release:

    any, 6.0.3 to 6.1.46 and 6.2 to 6.4: "video/aperture: Disable and unregister sysfb devices
    via aperture helpers" (5e0137612430); native drivers, and 6.0.0 to 6.0.2, by way of fbmem.c's
    remove_conflicting_framebuffers() ("fbdev: Disable sysfb device registration when removing
    conflicting FBs", ee7a69aa38d8, in 5.18.13).
    shadowed, 6.1.47 and later 6.1.y: "Only remove sysfb on the default vga pci device"
    (5ae3716cfdcd) on top of an older `primary`, the ROM's IORESOURCE_ROM_SHADOW.
    default, 6.5 to 6.10.7: the same commit, and `primary` is pdev == vga_default_device().
    owner, 6.10.8 on: "optionally match the device in sysfb_disable()" (b49420d6a1ae); an
    owner that does not decode memory is neither the device nor none (sysfb_parent_dev gives an
    error, drivers/firmware/sysfb.c).

    A vendor's kernel has one of these words in fake/sysfb_rule.
    """
    rule = tree.read("fake/sysfb_rule") or _sysfb_rule(tree)
    if rule == "shadowed":
        return _rom_shadowed(tree, address)
    if rule == "default":
        return is_default_vga(tree, address)
    if rule != "owner":
        return rule == "any"
    owners = [owner_of(tree, found.start) for found in sysfb.platforms(tree)]
    owner = next((one for one in owners if one), None)
    return owner is None or (owner == address and decodes_memory(tree, owner))


def _sysfb_rule(tree: Tree) -> str:
    release = tree.release()
    if release >= (6, 10, 8):
        return "owner"
    if release >= (6, 5, 0):
        return "default"
    if (6, 1, 47) <= release < (6, 2, 0):
        return "shadowed"
    disables = tree.has_symbol("sysfb_disable") and release >= (5, 18, 13)
    return "any" if disables or release >= (6, 0, 3) else "none"


def is_default_vga(tree: Tree, address: str) -> bool:
    """pdev == vga_default_device(), which boot_vga shows; only class 0300 can be it."""
    return _vfio_is_vga(tree, address) and tree.read(f"{BUS}/devices/{address}/boot_vga") == "1"


def _rom_shadowed(tree: Tree, address: str) -> bool:
    """IORESOURCE_ROM_SHADOW of the expansion ROM, which follows the six BARs."""
    return bool(_flags(tree, address)[6] & _ROM_SHADOW)


_VGA_MEMORY = (0xA0000, 0xBFFFF)


def remove_legacy_vga(tree: Tree, address: str) -> None:
    """__aperture_remove_legacy_vga_devices(), for the default VGA device: it never comes back."""
    sysfb.detach_overlapping(tree, *_VGA_MEMORY)
    # vga_remove_vgacon()
    tree.log(f"vfio-pci {address}: vgaarb: deactivate vga console")
    if vt.is_bound(tree, vt.VGACON):
        vt.take_over(tree, vt.DUMMY)
    vt.unregister(tree, vt.VGACON)


# -- native drivers


def _native_probe(tree: Tree, address: str, found: Native) -> None:
    enable(tree, address)
    if found.fb:
        _take_from_firmware(tree, address)
    if found.master:
        _set_command(tree, address, on=_COMMAND_MASTER)
    path = device_path(tree, address)
    for bar in bars(tree, address):
        if bar.number not in found.bars:
            continue
        if not resources.request(tree, bar.range.first, bar.range.last, found.driver):
            where = _show(tree, address, bar)
            tree.log(f"{found.driver} {address}: BAR {bar.number}: can't reserve {where}")
    if found.driver == "nvidia":
        nvidia.probe(tree, address)
    if found.driver == sound.DRIVER:
        sound.probe(tree, address)
        _enter_msi(tree, address)
    if modules.can_show(tree, found.driver):
        _show_picture(tree, path, found)


def _show_picture(tree: Tree, path: str, found: Native) -> None:
    """drm_dev_register() and the framebuffer of its first client (drm_fbdev_client_hotplug).

    Without a monitor that waits for one (drm_fb_helper.c, deferred_setup).
    """
    dark = "unplugged" in _broken(tree, os.path.basename(path))
    if found.card:
        fbdev.add_card(
            tree, path, render=found.render, connectors=found.connectors, unplugged=dark
        )
    if found.fb and not dark:
        fbdev.register(tree, path, found.fb, (0, 4096000))


def _hide(tree: Tree, path: str) -> None:
    """drm_dev_unplug(), or drm_dev_unregister()."""
    for fb in fbdev.framebuffers(tree, path):
        fbdev.unregister(tree, path, fb)
    fbdev.remove_cards(tree, path)


def _take_from_firmware(tree: Tree, address: str) -> None:
    """(drm_)aperture_remove_conflicting_pci_framebuffers(), called by DRM drivers."""
    if tree.release() >= (5, 18, 13):
        remove_conflicting_devices(tree, address)
        return
    for bar in bars(tree, address):
        sysfb.unregister_overlapping_framebuffers(tree, bar.range.first, bar.range.last)
    if is_default_vga(tree, address):
        remove_legacy_vga(tree, address)


def load_module(tree: Tree, module: str) -> None:
    """What modprobe does: its driver is registered and takes all driverless devices."""
    known = modules.known(tree).get(module)
    if known is not None:
        if modules.loaded(tree, module):
            return
        _check_command_line(tree, module)
        for needed in known.needs:
            load_module(tree, needed)
        modules.add(tree, module)
    _register_drivers(tree, module)
    if known is None:
        return
    for address in _devices_of(tree, known.shows):
        found = native(tree, address)
        if found is not None:
            _show_picture(tree, device_path(tree, address), found)
    if not known.alone and not any(_devices_of(tree, one) for one in _drivers_of(tree, module)):
        # nvidia_init_module() (nv.c): "No NVIDIA devices probed."
        unload_module(tree, module)
        raise Refused(errno.ENODEV, module)


def _check_command_line(tree: Tree, module: str) -> None:
    """blacklisted() (kernel/module/main.c), and drm_firmware_drivers_only(). Raises Refused."""
    words = (tree.read("proc/cmdline") or "").split()
    never = [name for word in words for name in word.partition("module_blacklist=")[2].split(",")]
    if module in never:
        raise Refused(errno.EPERM, module)
    if module == _VMWGFX and "nomodeset" in words:
        # drm_pci_register_driver() (include/drm/drm_module.h)
        raise Refused(errno.ENODEV, module)


def unload_module(tree: Tree, module: str) -> None:
    """delete_module(): the exit function takes its drivers off all devices."""
    for address in _devices_of(tree, modules.known(tree)[module].shows):
        _hide(tree, device_path(tree, address))
    for driver in _drivers_of(tree, module):
        for address in _devices_of(tree, driver):
            detach_driver(tree, address)  # pci_unregister_driver
        tree.remove(f"{BUS}/drivers/{driver}")
    if module == "nvidia":
        nvidia.leave(tree)
    modules.drop(tree, module)


def _devices_of(tree: Tree, driver: str) -> list[str]:
    every = tree.list(f"{BUS}/devices")
    return [address for address in every if driver and bound_driver(tree, address) == driver]


def _drivers_of(tree: Tree, module: str) -> list[str]:
    every = tree.list(f"{BUS}/drivers")
    return [one for one in every if tree.link_name(f"{BUS}/drivers/{one}/module") == module]


def _register_drivers(tree: Tree, module: str) -> None:
    """The module's init function calls pci_register_driver()."""
    waiting = [(one, native(tree, one)) for one in tree.list("fake/native")]
    drivers = {found.driver for _, found in waiting if found and found.module == module}
    if module in ("vfio-pci", "vfio_pci"):
        drivers, module = {VFIO}, "vfio_pci"
    if module == _VMWGFX or module in _variants(tree):
        drivers = {module}
    for driver in drivers:
        _add_driver(tree, driver, module)
    for address, found in waiting:
        matches = found is not None and found.driver in drivers
        allowed = _override(tree, address) in (None, found.driver if found else None)
        if matches and tree.exists(f"{BUS}/devices/{address}") and allowed:
            write_probe(tree, address)
    # driver_attach() asks for every device, and pci_match_device() finds that a
    # driver_override of this name matches whatever the device is.
    for address in tree.list(f"{BUS}/devices"):
        if _override(tree, address) in drivers and bound_driver(tree, address) is None:
            write_probe(tree, address)


def _add_driver(tree: Tree, driver: str, module: str) -> None:
    """bus_add_driver() and module_add_driver() (drivers/base/module.c)."""
    if tree.readlink(f"{BUS}/drivers/{driver}/module") is None:
        tree.link(f"{BUS}/drivers/{driver}/module", f"sys/module/{module}")
        # The program does not ask for those of fake/modules, and snapshots lack them.
        if driver != VFIO and module not in modules.known(tree):
            tree.link(f"sys/module/{module}/drivers/pci:{driver}", f"{BUS}/drivers/{driver}")
    for door in ("bind", "unbind"):
        if not tree.exists(f"{BUS}/drivers/{driver}/{door}"):
            tree.put(f"{BUS}/drivers/{driver}/{door}", "")


def modprobe(tree: Tree, arguments: tuple[str, ...]) -> str:
    """/sbin/modprobe with these arguments; its output. Raises HostError when it fails.

    As kmod 30: --resolve-alias names a blacklisted module all the same, and -b
    does not load it, without a word and with status 0. fake/upgraded names modules whose files
    are gone.
    """
    blacklist = (tree.read("fake/blacklist") or "").split()
    commands = [line for line in (tree.read("fake/install") or "").splitlines() if line]
    if arguments == ("--showconfig",):
        lines = [f"blacklist {module}" for module in blacklist]
        lines += [f"options {line}" for line in (tree.read("fake/options") or "").splitlines()]
        return "\n".join(lines + [f"install {line}" for line in commands])
    wanted = arguments[-1]
    if arguments[0] == "-r":
        _rmmod(tree, wanted)
        return ""
    matching = {
        found.module
        for address in tree.list("fake/native")
        if (found := native(tree, address))
        and wanted in (found.module, tree.read(f"{BUS}/devices/{address}/modalias"))
    }
    if wanted in (VFIO, "vfio_pci") and _has_vfio(tree):
        matching = {"vfio_pci"}
    # Or the modprobe of the recorded machine has found that one.
    recorded = tree.read(answer_path(("/sbin/modprobe", "--resolve-alias", wanted)))
    if wanted in modules.known(tree) or wanted in _variants(tree) or recorded == wanted:
        matching = {wanted}
    if not matching or wanted in (tree.read("fake/upgraded") or "").split():
        release = tree.read("proc/sys/kernel/osrelease")
        why = f"FATAL: Module {wanted} not found in directory /lib/modules/{release}"
        raise modules.failed(arguments, why)
    if "--resolve-alias" in arguments:
        return "\n".join(sorted(matching))
    for module in matching:
        if "-b" not in arguments or module not in blacklist:
            _insmod(tree, arguments, module)
    return ""


def _has_vfio(tree: Tree) -> bool:
    """Whether the module is in the list of the running kernel's modules, where there is one."""
    folder = "lib/modules"
    listed = tree.read(f"{folder}/{tree.read('proc/sys/kernel/osrelease')}/modules.dep")
    return not tree.exists(folder) or "/vfio-pci.ko" in (listed or "")


def _variants(tree: Tree) -> set[str]:
    """The modules that depmod lists for PCI_DRIVER_OVERRIDE_DEVICE_VFIO()."""
    release = tree.read("proc/sys/kernel/osrelease")
    text = tree.read(f"lib/modules/{release}/modules.alias") or ""
    lines = [line.split() for line in text.splitlines() if line.startswith("alias vfio_pci:")]
    return {module for _, _, module in lines} - {"vfio_pci"}


def _insmod(tree: Tree, arguments: tuple[str, ...], module: str) -> None:
    """kmod_module_probe_insert_module(); fake/install has the install commands, one a line."""
    for line in (tree.read("fake/install") or "").splitlines():
        if line.split()[0] == module:
            why = f"ERROR: Error running install command '{line.split(None, 1)[1]}' for module"
            raise modules.failed(arguments, f"{why} {module}: retcode 1")
    try:
        load_module(tree, module)
    except Refused as error:
        why = f"ERROR: could not insert '{module}': {os.strerror(error.errno or 0)}"
        raise modules.failed(arguments, why) from error


def _rmmod(tree: Tree, module: str) -> None:
    """rmmod_do_module() of kmod's modprobe: then also what nothing needs any more."""
    if not modules.loaded(tree, module):
        return
    if modules.references(tree, module):
        raise modules.failed(("-r", module), f"FATAL: Module {module} is in use.")
    unload_module(tree, module)
    for needed in modules.known(tree)[module].needs:
        if modules.loaded(tree, needed) and not modules.references(tree, needed):
            _rmmod(tree, needed)


def rmmod(tree: Tree, module: str) -> str:
    """/sbin/rmmod, for this module alone (kmod, check_module_inuse). Raises HostError."""
    why = ""
    users = " ".join(tree.list(f"sys/module/{module}/holders"))
    if not modules.loaded(tree, module):
        why = f"Module {module} is not currently loaded"
    elif modules.references(tree, module):
        why = f"Module {module} is in use{f' by: {users}' if users else ''}"
    if why:
        raise HostError(f"/sbin/rmmod {module} failed: rmmod: ERROR: {why}")
    unload_module(tree, module)
    return ""


# -- remove and rescan


def write_remove(tree: Tree, address: str) -> None:
    """remove_store(): the BARs leave the resource tree with all that is below them."""
    path = device_path(tree, address)
    detach_driver(tree, address)
    for _, first, last, _ in _assignable(tree, address):
        # pci_destroy_dev, pci_free_resources
        resources.release_with_children(tree, first, last, address)
    if address == tree.read("fake/owner"):
        tree.put("fake/owner_removed", "")
    tree.put(f"fake/removed/{address}/path", path)
    tree.move(path, f"fake/removed/{address}/device")
    tree.remove(f"{BUS}/devices/{address}")


def write_rescan(tree: Tree) -> None:
    """pci_rescan_bus(): what was removed is found again, as new."""
    for address in tree.list("fake/removed"):
        path = tree.read(f"fake/removed/{address}/path") or ""
        tree.move(f"fake/removed/{address}/device", path)
        tree.remove(f"fake/removed/{address}")
        for name in tree.list(path):
            if re.fullmatch(r"graphics|drm|vfio-dev|.*-framebuffer\.\d+", name):
                tree.remove(f"{path}/{name}")
        tree.link(f"{BUS}/devices/{address}", path)
        if tree.exists(f"{path}/driver_override"):
            tree.put(f"{path}/driver_override", "(null)")
        if tree.exists(f"{path}/enable"):
            tree.put(f"{path}/enable", "0")
        _assign(tree, address, path)
        write_probe(tree, address)


def _assignable(tree: Tree, address: str) -> list[tuple[int, int, int, int]]:
    """(line of `resource`, first, last, flags) of the memory BARs and of a real ROM."""
    lines = (tree.read(f"{BUS}/devices/{address}/resource") or "").splitlines()
    found = []
    for number, line in enumerate(lines[: _ROM + 1]):
        first, last, flags = (int(word, 16) for word in line.split())
        shadow = number == _ROM and flags & _ROM_SHADOW
        if flags & _MEM and last > first and not shadow:
            found.append((number, first, last, flags))
    return found


def _assign(tree: Tree, address: str, path: str) -> None:
    """pci_assign_unassigned_bus_resources(): every BAR gets a place in the windows of its bus.

    The one with the largest alignment is first (pdev_sort_resources), and each gets
    the lowest free place. So on the root bus, where others come first, BARs move; the
    only device behind a bridge gets the whole window, and may be where it was.
    """
    lines = (tree.read(f"{path}/resource") or "").splitlines()
    largest_first = sorted(_assignable(tree, address), key=lambda one: one[1] - one[2])
    for number, old, last, flags in largest_first:
        size = last - old + 1
        first = _free_place(tree, f"PCI Bus {address[:7]}", size, bool(flags & _MEM_64))
        resources.request(tree, first, first + size - 1, address)
        lines[number] = f"{first:#018x} {first + size - 1:#018x} {flags:#018x}"
        if number < _ROM:
            # pci_std_update_resource; a ROM that is off is not written.
            _write_bar(tree, address, number, first, wide=bool(flags & _MEM_64))
    tree.put(f"{path}/resource", "\n".join(lines))


def _free_place(tree: Tree, bus: str, size: int, wide: bool) -> int:
    """pci_bus_alloc_resource(): 64 bit BARs above 4 GiB if there is room, others below."""
    windows = [one for one in resources.named(tree, bus) if wide or one.last < _4G]
    for window in sorted(windows, key=lambda one: one.first < _4G):
        first = -(-window.first // size) * size
        while first + size - 1 <= window.last:
            taken = resources.in_the_way(tree, first, first + size - 1)
            if taken is None:
                return first
            first = -(-(taken.last + 1) // size) * size
    raise LookupError(f"no place for {size:#x} bytes in {bus}")


def _write_bar(tree: Tree, address: str, number: int, first: int, *, wide: bool) -> None:
    config = f"{BUS}/devices/{address}/config"
    if not tree.exists(config):
        return
    offset = _BARS + 4 * number
    kind = tree.peek(config, offset, 1)[0] & 0xF
    tree.poke(config, offset, (first | kind).to_bytes(8, "little")[: 8 if wide else 4])


def address_of(path: str) -> str:
    """The PCI address of the device that an attribute belongs to."""
    return os.path.basename(os.path.dirname(path))
