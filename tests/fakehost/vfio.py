"""What vfio's nodes answer: containers, groups, iommufd, and the devices that a program opens.

Linux drivers/vfio/{container,group,device_cdev,iommufd}.c, drivers/vfio/pci/vfio_pci_core.c,
drivers/iommu/iommufd/main.c. What is open is known to the process that has opened it; what
that does to a device lies in the tree:

    fake/vfio/opened/ADDRESS   the process of this test that has the device open
    dev/iommu                  the kernel has no containers, but iommufd and a node a device
    fake/vfio/sparse/ADDRESS   "0 0x0+0x1000,0x2000+0x1000": of BAR 0 this may be mapped
    fake/vfio/no_remapping     the IOMMU has no interrupt remapping
    fake/after_reset/ADDRESS   what becomes of a device that is reset, in the words of after_vm

A process that has a device open is one of the machine's (userspace.hold shows how), with a
number that no process of a test has.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from vfio_console_hook.machine.memory import Bar

from . import fbdev, pci, processes
from .tree import Tree

CONTAINER, IOMMUFD, CDEVS = "dev/vfio/vfio", "dev/iommu", "dev/vfio/devices"
_OPENED = "fake/vfio/opened"
_PAGE = 0x1000
_FIRST_HANDLE = 1 << 20
_BAR_SHIFT = 40  # VFIO_PCI_OFFSET_SHIFT
_TYPE1, _TYPE1V2 = 1, 3
_REGION = struct.Struct("=IIIIQQ")


@dataclass
class _Open:
    """An open file; what it may be asked depends on what it is."""

    kind: str
    name: str = ""
    container: int = 0
    iommu: bool = False
    mapped: set[int] = field(default_factory=set)


@dataclass
class Mapped:
    """An area of a BAR that is mapped."""

    end: Callable[[], None]

    def close(self) -> None:
        self.end()


def own_number(tree: Tree) -> int:
    """The number that this process of a test has on the machine.

    None that a real one has, but for one that is on the machine as it is (FakeHost.detach).
    """
    own = os.getpid()
    return own if tree.exists(f"fake/real/{own}") else (1 << 23) + own


def settle(tree: Tree) -> None:
    """The kernel closes what a process that was killed had open (exit_files)."""
    for address in tree.list(_OPENED):
        pid = int(tree.read(f"{_OPENED}/{address}") or 0)
        if not processes.runs(pid):
            pci.close_device(tree, address)
            tree.remove(f"{_OPENED}/{address}")
            processes.end(tree, (1 << 23) + pid)


class OpenNodes:
    """The nodes that one process of a test has open."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._open: dict[int, _Open] = {}
        self._next = _FIRST_HANDLE

    def _new(self, opened: _Open) -> int:
        self._next += 1
        self._open[self._next] = opened
        return self._next

    def open(self, path: str) -> int:
        """The node's open function. Raises OSError."""
        tree = self._tree
        # No recorded machine shows these: static nodes of vfio and iommufd (modules.devname).
        if path == CONTAINER and not tree.exists(IOMMUFD):
            return self._new(_Open(path))
        if path == IOMMUFD and tree.exists(IOMMUFD):
            return self._new(_Open(path))
        if path.startswith(CDEVS):
            return self._open_cdev(path)
        if not tree.exists(path) or tree.exists(IOMMUFD):
            raise OSError(errno.ENOENT, path)
        # vfio_group_fops_open(): "Do we need multiple instances of the group open? Seems not."
        if fbdev.holding(tree, path):
            raise OSError(errno.EBUSY, path)
        handle = self._new(_Open("group", path.rpartition("/")[2]))
        self._hold(path, handle)
        return handle

    def _open_cdev(self, path: str) -> int:
        """vfio_device_fops_cdev_open(): any number of times; only one of them can be bound."""
        number = path.rpartition("/")[2]
        for address in self._tree.list(f"{pci.BUS}/devices"):
            found = self._tree.exists(f"{pci.BUS}/devices/{address}/vfio-dev/{number}")
            if found and self._tree.exists(IOMMUFD):
                handle = self._new(_Open("cdev", address))
                self._hold(path, handle)
                return handle
        raise OSError(errno.ENOENT, path)

    def _hold(self, path: str, handle: int) -> None:
        pid = own_number(self._tree)
        processes.make(self._tree, pid, "python3", "0::/")
        processes.open_file(self._tree, pid, path, f"/{path}", handle)

    def close(self, handle: int) -> None:
        """The last close; mappings hold the device's file (vm_area_struct.vm_file)."""
        one = self._open[handle]
        if one.mapped:
            one.kind = "closed"
            return
        del self._open[handle]
        if one.kind in ("device", "closed"):
            pci.close_device(self._tree, one.name)
            self._tree.remove(f"{_OPENED}/{one.name}")
        if self._tree.exists(f"proc/{own_number(self._tree)}"):
            processes.close_file(self._tree, own_number(self._tree), handle)

    # -- ioctls

    def ask(self, handle: int, request: int, argument: bytearray | int) -> int:
        """The ioctl function of what is open. Raises OSError."""
        one = self._open[handle]
        answer = _IOCTLS.get((one.kind, request))
        if answer is None:
            raise OSError(errno.ENOTTY, one.kind)
        return answer(self, one, argument)

    def check_extension(self, _: _Open, argument: bytearray | int) -> int:
        """vfio_ioctl_check_extension()."""
        return int(argument in (_TYPE1, _TYPE1V2))

    def set_iommu(self, container: _Open, argument: bytearray | int) -> int:
        """vfio_ioctl_set_iommu(): not before a group has come; vfio_iommu_type1_attach_group()."""
        handle = next(key for key, one in self._open.items() if one is container)
        groups = [one for one in self._open.values() if one.container == handle]
        if not groups or container.iommu or argument not in (_TYPE1, _TYPE1V2):
            raise OSError(errno.EINVAL, "container")
        if self._tree.exists("fake/vfio/no_remapping"):
            raise OSError(errno.EPERM, "No interrupt remapping support")
        container.iommu = True
        return 0

    def get_status(self, group: _Open, argument: bytearray | int) -> int:
        """vfio_group_ioctl_get_status()."""
        assert isinstance(argument, bytearray)
        if struct.unpack_from("=I", argument)[0] < 8:
            raise OSError(errno.EINVAL, "argsz")
        flags = 1 if self._viable(group) else 0
        struct.pack_into("=I", argument, 4, flags | (2 if group.container else 0))
        return 0

    def _viable(self, group: _Open) -> bool:
        for address in self._of_group(group.name):
            try:
                pci.check_group(self._tree, address)
            except pci.NotViableError:
                return False
        return True

    def _of_group(self, number: str) -> list[str]:
        """The devices of a group that vfio has."""
        return [
            one for one in self._tree.list(f"{pci.BUS}/devices")
            if self._tree.link_name(f"{pci.BUS}/devices/{one}/iommu_group") == number
            and pci.is_vfio_driver(pci.bound_driver(self._tree, one))
        ]  # fmt: skip

    def set_container(self, group: _Open, argument: bytearray | int) -> int:
        """vfio_group_ioctl_set_container(), vfio_container_attach_group()."""
        assert isinstance(argument, bytearray)
        (handle,) = struct.unpack("=i", argument)
        found = self._open.get(handle)
        if found is None or found.kind != CONTAINER:
            raise OSError(errno.EBADFD, "container")
        if group.container:
            raise OSError(errno.EINVAL, "container")
        if not self._viable(group):
            raise OSError(errno.EPERM, "iommu_group_claim_dma_owner")
        group.container = handle
        return 0

    def get_device(self, group: _Open, argument: bytearray | int) -> int:
        """vfio_group_ioctl_get_device_fd(), vfio_df_group_open()."""
        assert isinstance(argument, bytearray)
        address = bytes(argument).partition(b"\0")[0].decode()
        if address not in self._of_group(group.name):
            raise OSError(errno.ENODEV, address)
        container = self._open.get(group.container)
        if container is None or not container.iommu:
            raise OSError(errno.EINVAL, "container")
        self._enable(address)
        return self._new(_Open("device", address))

    def _enable(self, address: str) -> None:
        pci.enable_for_program(self._tree, address)
        self._tree.put(f"{_OPENED}/{address}", str(os.getpid()))

    def bind(self, cdev: _Open, argument: bytearray | int) -> int:
        """vfio_df_ioctl_bind_iommufd(): the device is opened now (vfio_df_open)."""
        assert isinstance(argument, bytearray)
        handle = struct.unpack("=IIiI", argument)[2]
        if handle not in self._open or self._open[handle].kind != IOMMUFD:
            raise OSError(errno.EBADFD, "iommufd")
        try:
            pci.check_group(self._tree, cdev.name)
        except pci.NotViableError as error:
            raise OSError(errno.EPERM, "iommu_device_claim_dma_owner") from error
        if self._tree.exists(f"{_OPENED}/{cdev.name}"):
            raise OSError(errno.EINVAL, "device->open_count")  # vfio_df_device_first_open
        self._enable(cdev.name)
        cdev.kind = "device"
        return 0

    def attach(self, device: _Open, argument: bytearray | int) -> int:
        """vfio_df_ioctl_attach_pt()."""
        assert isinstance(argument, bytearray)
        if struct.unpack_from("=III", argument)[2] != 1:
            raise OSError(errno.ENOENT, "pt_id")
        return 0

    def allocate(self, _: _Open, argument: bytearray | int) -> int:
        """iommufd_ioas_alloc_ioctl()."""
        assert isinstance(argument, bytearray)
        struct.pack_into("=I", argument, 8, 1)
        return 0

    # -- devices

    def get_info(self, device: _Open, argument: bytearray | int) -> int:
        """vfio_pci_ioctl_get_info(): FLAGS_PCI, and FLAGS_RESET if the reset at the open worked."""
        assert isinstance(argument, bytearray)
        works = bool(pci.reset_methods(self._tree, device.name))
        struct.pack_into("=III", argument, 4, 2 | works, 9, 5)
        return 0

    def get_region(self, device: _Open, argument: bytearray | int) -> int:
        """vfio_pci_ioctl_get_region_info()."""
        assert isinstance(argument, bytearray)
        room, _, index, _, _, _ = _REGION.unpack_from(argument)
        if room < _REGION.size:
            raise OSError(errno.EINVAL, "argsz")
        bar = self._bar(device.name, index)
        size = bar.range.last - bar.range.first + 1 if bar else 0
        flags = (3 if bar else 0) | (4 if bar and _may_be_mapped(bar) else 0)
        areas = self._sparse(device.name, index) if flags & 4 else []
        if areas:
            flags |= 8
            # struct vfio_region_info_cap_sparse_mmap behind a header with its id.
            capability = struct.pack("=HHIII", 1, 1, 0, len(areas), 0)
            capability += b"".join(struct.pack("=QQ", *area) for area in areas)
            needed = _REGION.size + len(capability)
            if room >= needed:
                argument[_REGION.size : needed] = capability
            at = _REGION.size if room >= needed else 0
            _REGION.pack_into(argument, 0, needed, flags, index, at, size, index << _BAR_SHIFT)
        else:
            _REGION.pack_into(argument, 0, room, flags, index, 0, size, index << _BAR_SHIFT)
        return 0

    def _bar(self, address: str, index: int) -> Bar | None:
        return next((one for one in pci.bars(self._tree, address) if one.number == index), None)

    def _sparse(self, address: str, index: int) -> list[tuple[int, int]]:
        for line in (self._tree.read(f"fake/vfio/sparse/{address}") or "").splitlines():
            number, _, areas = line.partition(" ")
            if int(number) == index:
                words = (area.split("+") for area in areas.split(","))
                return [(int(offset, 16), int(size, 16)) for offset, size in words]
        return []

    def reset(self, device: _Open, _: bytearray | int) -> int:
        """vfio_pci_ioctl_reset(): pci_try_reset_function(), if the one at the open worked."""
        if not pci.reset_methods(self._tree, device.name):
            raise OSError(errno.EINVAL, "reset_works")
        pci.reset(self._tree, device.name)
        return 0

    def get_hot_reset_info(self, device: _Open, argument: bytearray | int) -> int:
        """vfio_pci_ioctl_get_pci_hot_reset_info()."""
        assert isinstance(argument, bytearray)
        found = self._on_bus(device.name)
        room = struct.unpack_from("=I", argument)[0]
        by_iommufd = self._tree.exists(IOMMUFD)
        # VFIO_PCI_HOT_RESET_FLAG_DEV_ID, _DEV_ID_OWNED
        owned = all(pci.is_vfio_driver(pci.bound_driver(self._tree, one)) for one in found)
        flags = (1 | (2 if owned else 0)) if by_iommufd else 0
        struct.pack_into("=II", argument, 4, flags, len(found))
        if room < 12 + 8 * len(found):
            raise OSError(errno.ENOSPC, "argsz")
        for number, address in enumerate(found):
            domain, bus, slot, function = (int(word, 16) for word in re.split("[:.]", address))
            group = self._tree.link_name(f"{pci.BUS}/devices/{address}/iommu_group")
            place = (0 if by_iommufd else int(group or 0), domain, bus, slot << 3 | function)
            struct.pack_into("=IHBB", argument, 12 + 8 * number, *place)
        return 0

    def hot_reset(self, device: _Open, argument: bytearray | int) -> int:
        """vfio_pci_dev_set_hot_reset(): all on the bus are vfio's, in groups that were shown."""
        assert isinstance(argument, bytearray)
        found = self._on_bus(device.name)
        _, flags, count = struct.unpack_from("=III", argument)
        by_iommufd = self._tree.exists(IOMMUFD)
        if flags or bool(count) == by_iommufd or count > len(found):
            raise OSError(errno.EINVAL, "count")
        shown = {self._open[one].name for one in struct.unpack_from(f"={count}i", argument, 12)}
        for address in found:
            group = self._tree.link_name(f"{pci.BUS}/devices/{address}/iommu_group")
            vfio = pci.is_vfio_driver(pci.bound_driver(self._tree, address))
            if not vfio or (not by_iommufd and group not in shown):
                raise OSError(errno.EINVAL, address)
        for address in found:
            pci.reset(self._tree, address)
        return 0

    def _on_bus(self, address: str) -> list[str]:
        """pci_walk_bus(); pci_probe_reset_bus(): not of the root bus. Raises OSError."""
        found = pci.on_bus(self._tree, address)
        if not found:
            raise OSError(errno.ENODEV, address)
        return found

    # -- mmap

    def map(self, handle: int, offset: int, size: int) -> Mapped:
        """vfio_pci_core_mmap(). Raises OSError."""
        device = self._open[handle]
        bar = self._bar(device.name, offset >> _BAR_SHIFT)
        first = offset & ((1 << _BAR_SHIFT) - 1)
        if bar is None or not _may_be_mapped(bar):
            raise OSError(errno.EINVAL, "bar_mmap_supported")
        whole = max(bar.range.last - bar.range.first + 1, _PAGE)
        if first + size > whole or first % _PAGE:
            raise OSError(errno.EINVAL, "phys_len")
        if not pci.reserve_bar(self._tree, device.name, bar):
            raise OSError(errno.EBUSY, "pci_request_selected_regions")
        self._next += 1
        number = self._next
        device.mapped.add(number)

        def end() -> None:
            device.mapped.discard(number)
            if device.kind == "closed" and not device.mapped:
                self.close(handle)

        return Mapped(end)


def _may_be_mapped(bar: Bar) -> bool:
    """vfio_pci_probe_mmaps(): a page at least, or the beginning of one."""
    return bar.range.last - bar.range.first + 1 >= _PAGE or bar.range.first % _PAGE == 0


_IOCTLS: dict[tuple[str, int], Callable[[OpenNodes, _Open, bytearray | int], int]] = {
    (CONTAINER, 0x3B64): lambda *_: 0,  # VFIO_GET_API_VERSION
    (CONTAINER, 0x3B65): OpenNodes.check_extension,
    (CONTAINER, 0x3B66): OpenNodes.set_iommu,
    ("group", 0x3B67): OpenNodes.get_status,
    ("group", 0x3B68): OpenNodes.set_container,
    ("group", 0x3B6A): OpenNodes.get_device,
    (IOMMUFD, 0x3B81): OpenNodes.allocate,
    ("cdev", 0x3B76): OpenNodes.bind,
    ("device", 0x3B77): OpenNodes.attach,
    ("device", 0x3B6B): OpenNodes.get_info,
    ("device", 0x3B6C): OpenNodes.get_region,
    ("device", 0x3B6F): OpenNodes.reset,
    ("device", 0x3B70): OpenNodes.get_hot_reset_info,
    ("device", 0x3B71): OpenNodes.hot_reset,
}
