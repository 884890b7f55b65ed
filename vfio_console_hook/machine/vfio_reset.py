"""Functions that vfio has opened are reset, as QEMU does before the guest runs.

Sources: QEMU hw/vfio/pci.c (vfio_pci_compute_needs_reset, vfio_pci_reset) and
hw/vfio/container.c (vfio_legacy_pci_hot_reset), hw/vfio/iommufd.c (iommufd_cdev_pci_hot_reset);
Linux drivers/vfio/pci/vfio_pci_core.c (vfio_pci_ioctl_reset, vfio_pci_ioctl_pci_hot_reset).

QEMU also clears COMMAND before (vfio_pci_pre_reset); pci_dev_save_and_disable() does so anyway.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import HostError
from . import iommu
from .host import Host
from .pci import is_virtual

FUNCTION, BUS = "function", "bus"

_GET_INFO, _RESET = 0x3B6B, 0x3B6F
_GET_HOT_RESET_INFO, _HOT_RESET = 0x3B70, 0x3B71
_RESET_WORKS = 0x1
# struct vfio_pci_hot_reset_info: argsz, flags, count; then the devices, each with the group or,
# with iommufd, the device's number there, and segment, bus, devfn.
_HEADER = struct.Struct("=III")
_DEPENDENT = struct.Struct("=IHBB")
_BY_IOMMUFD, _ALL_OURS = 0x1, 0x2

# Linux include/uapi/linux/pci_regs.h
_CAPABILITY_LIST, _CAP_PM, _CAP_EXPRESS, _CAP_AF = 0x34, 0x01, 0x10, 0x13
_NO_SOFT_RESET, _EXPRESS_FLR, _AF_FLR_AND_TP = 0x8, 1 << 28, 0x3


@dataclass(frozen=True)
class Reset:
    """What became of a function that was to be reset.

    by is "function", or "bus" with all that is on it (a hot reset), or "" for none. methods are
    the kernel's for the function, in their order, of which it takes the first that works; ""
    where it shows none. answers: its config space can be read afterwards.
    """

    address: str
    by: str
    methods: str
    answers: bool
    why: str = ""

    def __str__(self) -> str:
        first = self.methods.partition(" ")[0]
        how = {FUNCTION: f"by {first}" if first else "by itself", BUS: "with its whole bus"}
        done = f"reset {how[self.by]}" if self.by else f"not reset: {self.why}"
        return f"{done}; it {'answers' if self.answers else 'does not answer any more'}"


def as_qemu(
    host: Host, devices: Sequence[tuple[str, int]], groups: Mapping[str, int]
) -> tuple[Reset, ...]:
    """Reset the open functions (address, handle); groups are the handles of theirs, by number.

    Raises HostError if one has gone meanwhile.
    """
    found = [_Function(host, address, handle) for address, handle in devices]
    # vfio_reset_handler(): together with what shares the bus, those for which that is better.
    for one in found:
        if one.wants_bus and not one.by:
            affected = one.reset_bus(found, groups, together=True)
            for other in found:
                other.by = BUS if other.address in affected else other.by
    # Then vfio_pci_reset() of each.
    for one in found:
        one.reset(found, groups)
    return tuple(Reset(one.address, one.by, one.methods, one.answers, one.why) for one in found)


class _Function:
    """A function on its way through QEMU's decisions."""

    def __init__(self, host: Host, address: str, handle: int) -> None:
        self.host = host
        self.address = address
        self._handle = handle
        self._device = f"sys/bus/pci/devices/{address}"
        self.methods = host.read(f"{self._device}/reset_method") or ""
        self.by = ""
        self.why = ""
        self._works = self._can_be_reset()
        self._flr, self._by_power = self._own_ways()

    @property
    def wants_bus(self) -> bool:
        """Whether QEMU prefers to reset the bus (vfio_pci_compute_needs_reset)."""
        return not self._works or (not self._flr and self._by_power)

    def reset(self, ours: Sequence[_Function], groups: Mapping[str, int]) -> None:
        """What vfio_pci_reset() tries, one after the other."""
        if self._works and (self._flr or not self._by_power):
            self._reset_alone()
        if not self.by and self.reset_bus(ours, groups, together=False):
            self.by = BUS
        if not self.by and self._works and self._by_power:
            self._reset_alone()

    def _reset_alone(self) -> None:
        try:
            self.host.ask_node(self._handle, _RESET, 0, self.address)
            self.by, self.why = FUNCTION, ""
        except HostError as error:
            self.why = _reason(error)

    def reset_bus(
        self, ours: Sequence[_Function], groups: Mapping[str, int], *, together: bool
    ) -> tuple[str, ...]:
        """Reset all that is on the bus; what that was, nothing if it was not done.

        together: only if that is more than one of ours; otherwise only if it is no other one.
        """
        try:
            flags, affected = self._on_bus()
            others = [one for one in affected if one != self.address]
            if any(one.address in others for one in ours) != together:
                return ()
            concerned = {one: iommu.group_of(self.host, one) or "" for one in affected}
            strangers = [one for one in others if concerned[one] not in groups]
            if strangers if not flags & _BY_IOMMUFD else not flags & _ALL_OURS:
                self.why = f"{' and '.join(strangers)} on its bus would be reset too"
                return ()
            handles = [groups[one] for one in groups if one in concerned.values()]
            argument = _HEADER.pack(_HEADER.size + 4 * len(handles), 0, len(handles))
            argument += struct.pack(f"={len(handles)}i", *handles)
            self._ask_for_bus(bytearray(argument), others)
        except HostError as error:
            self.why = _reason(error)
            return ()
        self.why = ""
        return tuple(affected)

    def _ask_for_bus(self, argument: bytearray, others: Sequence[str]) -> None:
        try:
            self.host.ask_node(self._handle, _HOT_RESET, argument, self.address)
        except HostError as error:
            if error.errno != errno.EINVAL:
                raise
            # vfio_pci_dev_set_resettable(): vfio has not all that is on the bus.
            names = " and ".join(others)
            raise HostError(f"vfio does not have {names}, which is on its bus too") from error

    def _on_bus(self) -> tuple[int, list[str]]:
        """The flags and the addresses of all that a reset of the bus concerns."""
        raw = bytearray(_HEADER.pack(_HEADER.size, 0, 0))
        try:
            self.host.ask_node(self._handle, _GET_HOT_RESET_INFO, raw, self.address)
        except HostError as error:
            if error.errno != errno.ENOSPC:
                raise
        count = _HEADER.unpack_from(raw)[2]
        size = _HEADER.size + count * _DEPENDENT.size
        raw = bytearray(_HEADER.pack(size, 0, 0)).ljust(size, b"\0")
        self.host.ask_node(self._handle, _GET_HOT_RESET_INFO, raw, self.address)
        _, flags, count = _HEADER.unpack_from(raw)
        return flags, [*_addresses(raw, count)]

    def _can_be_reset(self) -> bool:
        # struct vfio_device_info: argsz, flags, num_regions, num_irqs.
        info = bytearray(struct.pack("=IIII", 16, 0, 0, 0))
        self.host.ask_node(self._handle, _GET_INFO, info, self.address)
        return bool(struct.unpack("=IIII", info)[1] & _RESET_WORKS)

    def _own_ways(self) -> tuple[bool, bool]:
        """Whether it can reset itself (FLR), and by going to sleep and waking up.

        Source: QEMU vfio_check_pcie_flr, vfio_check_af_flr, vfio_check_pm_reset.
        """
        config = self.host.peek(f"{self._device}/config", 0, 256)
        flr = by_power = False
        for kind, at in _capabilities(config):
            if kind == _CAP_EXPRESS:
                flr |= bool(int.from_bytes(config[at + 4 : at + 8], "little") & _EXPRESS_FLR)
            elif kind == _CAP_AF:
                flr |= config[at + 3] & _AF_FLR_AND_TP == _AF_FLR_AND_TP
            elif kind == _CAP_PM:
                by_power |= not config[at + 4] & _NO_SOFT_RESET
        return flr, by_power

    @property
    def answers(self) -> bool:
        """Whether its config space can be read.

        Not through vfio, which shows vendor and device from memory (vfio_pci_config.c,
        init_pci_cap_basic_perm: ALL_VIRT). A virtual function has ones there, and a class.
        """
        at = 8 if is_virtual(self.host, self.address) else 0
        read = self.host.peek(f"{self._device}/config", at, 4)
        vendor = int(self.host.read(f"{self._device}/vendor") or "0", 16)
        return read != b"\xff" * 4 and (at > 0 or int.from_bytes(read[:2], "little") == vendor)


def _capabilities(config: bytes) -> Iterator[tuple[int, int]]:
    """(id, offset) of each PCI capability; none where only the header was recorded."""
    at, seen = (config[_CAPABILITY_LIST] & ~3) if len(config) > _CAPABILITY_LIST else 0, set()
    while at and at not in seen and at + 8 <= len(config):
        seen.add(at)
        yield config[at], at
        at = config[at + 1] & ~3


def _addresses(raw: bytearray, count: int) -> Iterator[str]:
    for number in range(count):
        place = _HEADER.size + number * _DEPENDENT.size
        _, segment, bus, devfn = _DEPENDENT.unpack_from(raw, place)
        yield f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"


def _reason(error: HostError) -> str:
    if error.errno in (errno.EINVAL, errno.ENOTTY, errno.ENODEV):
        return "the kernel has no way to reset it"
    return error.text
