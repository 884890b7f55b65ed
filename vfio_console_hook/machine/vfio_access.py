"""PCI functions that are opened and mapped through vfio as QEMU does it, without a VM.

So a rehearsal sees what a VM would meet: a group that is not viable, a BAR of which something
else has a part reserved. Nothing reads or writes the memory that is mapped here.

Sources: QEMU hw/vfio/container.c (vfio_get_group, vfio_connect_container, vfio_get_device),
hw/vfio/iommufd.c (iommufd_cdev_connect_and_bind), hw/vfio/region.c (vfio_region_setup,
vfio_region_mmap); Linux include/uapi/linux/vfio.h and iommufd.h for the structures.

The kernel already resets a function when it is opened and when it is closed, if it has a way to
(vfio_pci_core_enable, vfio_pci_core_disable). Either may hang, so all this belongs into a worker
with a deadline; what the worker leaves open is closed by the kernel when it ends.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import HostError
from . import iomem, iommu, vfio, vfio_reset
from .host import Host
from .memory import Bar, Range, memory_bars
from .pci import is_vfio
from .vfio_reset import Reset

CONTAINER, IOMMUFD = "dev/vfio/vfio", "dev/iommu"

_GET_API_VERSION, _CHECK_EXTENSION, _SET_IOMMU = 0x3B64, 0x3B65, 0x3B66
_GROUP_GET_STATUS, _GROUP_SET_CONTAINER, _GROUP_GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B6A
_DEVICE_GET_REGION_INFO = 0x3B6C
_BIND_IOMMUFD, _ATTACH_IOMMUFD_PT, _IOAS_ALLOC = 0x3B76, 0x3B77, 0x3B81

_API_VERSION = 0
_TYPE1, _TYPE1V2 = 1, 3
_VIABLE = 0x1
_MAPPABLE, _HAS_CAPABILITIES = 0x4, 0x8
_SPARSE = 1
# struct vfio_region_info: argsz, flags, index, cap_offset, size, offset.
_REGION = struct.Struct("=IIIIQQ")
# struct vfio_info_cap_header: id, version, next.
_CAPABILITY = struct.Struct("=HHI")


@dataclass(frozen=True)
class Region:
    """A memory BAR of a function, and whether QEMU would have it mapped.

    why is "" for one that is mapped, and for one that vfio maps for no program because it
    shares a page with something else: QEMU asks for its registers one by one, and works.
    """

    address: str
    bar: int
    range: Range
    mapped: bool
    why: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a function could not be opened at all, and what to do."""

    address: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Opened:
    """What QEMU would have got of some functions; resets only if they were wanted."""

    regions: tuple[Region, ...] = ()
    failures: tuple[Failure, ...] = ()
    resets: tuple[Reset, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether a VM would have got all of it."""
        return not self.failures and not any(region.why for region in self.regions)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process; opened_of() makes it again."""
        return asdict(self)


def opened_of(value: dict[str, Any]) -> Opened:
    """What to_json() wrote."""
    regions = ({**one, "range": Range(**one["range"])} for one in value["regions"])
    return Opened(
        tuple(Region(**one) for one in regions),
        tuple(Failure(**one) for one in value["failures"]),
        tuple(Reset(**one) for one in value["resets"]),
    )


@contextmanager
def opened(
    host: Host, addresses: Sequence[str], reset: bool = False, iommufd: bool = False
) -> Iterator[Opened]:
    """The functions opened and their BARs mapped, until the context ends.

    reset: they are reset once, as QEMU does before the guest runs. iommufd: as a VM with
    <driver iommufd='yes'/> opens them; otherwise so only where the kernel has no containers.
    What does not work is part of the result.
    """
    with ExitStack() as kept:
        ways: list[_Containers | _Iommufd] = []
        devices: list[tuple[str, int]] = []
        regions: list[Region] = []
        failures: list[Failure] = []
        for address in addresses:
            try:
                group = _group_of(host, address)
                if not ways:
                    ways.append(_way(host, kept, addresses, iommufd))
                handle = ways[0].open(address, group)
                devices.append((address, handle))
                regions += _map_all(host, kept, address, handle)
            except HostError as error:
                failures.append(Failure(address, error.text, error.hint))
        groups = ways[0].groups if ways else {}
        resets = vfio_reset.as_qemu(host, devices, groups) if reset else ()
        yield Opened(tuple(regions), tuple(failures), resets)


def _group_of(host: Host, address: str) -> str:
    """The IOMMU group of a function that vfio has. Raises HostError."""
    group = iommu.group_of(host, address)
    if group is None:
        why, hint = iommu.why_none(host, address)
        raise HostError(f"{why}: {address} is in no IOMMU group", hint)
    if not is_vfio(host, address):
        driver = host.link_name(f"sys/bus/pci/devices/{address}/driver")
        raise HostError(f"{address} is on {driver or 'no driver'}, not on vfio-pci")
    return group


def _way(
    host: Host, kept: ExitStack, addresses: Sequence[str], iommufd: bool
) -> _Containers | _Iommufd:
    """Containers, or iommufd where it is wanted or there are none. Raises HostError."""
    if iommufd:
        return _Iommufd(host, kept, addresses)
    try:
        return _Containers(host, kept, addresses)
    except HostError as error:
        if error.errno != errno.ENOENT or not host.exists(IOMMUFD):
            raise
        return _Iommufd(host, kept, addresses)


class _Way:
    """What both ways to a device have in common."""

    def __init__(self, host: Host, kept: ExitStack, addresses: Sequence[str]) -> None:
        self.host = host
        self._kept = kept
        self._addresses = tuple(addresses)

    def _keep(self, handle: int) -> int:
        self._kept.callback(self.host.close_node, handle)
        return handle

    def _open(self, path: str) -> int:
        """Open a node, which is kept open. Raises HostError with what to do."""
        try:
            return self._keep(self.host.open_node(path))
        except HostError as error:
            hint = {
                errno.ENOENT: "see `ls -lR /dev/vfio`; a container needs the node of the host",
                errno.EACCES: "run it as root, outside of any container",
                errno.EPERM: "run it as root, outside of any container",
            }.get(error.errno, "")
            raise HostError(error.text, hint, path=error.path, errno=error.errno) from error

    def _not_viable(self, address: str, group: str) -> HostError:
        others = iommu.blocking(self.host, group, self._addresses)
        by = f": {iommu.described(self.host, others)} would have to leave too" if others else ""
        hint = iommu.how_to_separate(self.host, address, others) if others else ""
        return HostError(f"the IOMMU group {group} of {address} is not viable{by}", hint)

    def _in_use(self, address: str, node: str) -> HostError:
        users = vfio.users_of_group(self.host, address)
        by = f" by {' and '.join(holder.name for holder in users)}" if users else ""
        return HostError(f"/{node} is in use{by}", "shut down the VM that has it", path=node)


class _Containers(_Way):
    """A container with the groups of all functions (VFIO_GROUP and VFIO_CONTAINER)."""

    def __init__(self, host: Host, kept: ExitStack, addresses: Sequence[str]) -> None:
        super().__init__(host, kept, addresses)
        self.groups: dict[str, int] = {}
        """The open groups by their numbers; a reset of the bus has to show them."""
        self._container = self._open(CONTAINER)
        version = host.ask_node(self._container, _GET_API_VERSION, 0, f"/{CONTAINER}")
        if version != _API_VERSION:
            raise HostError(f"/{CONTAINER} has version {version}, which QEMU does not know")

    def open(self, address: str, number: str) -> int:
        """A handle of a function in the group of that number. Raises HostError."""
        node = f"dev/vfio/{number}"
        if number not in self.groups:
            self.groups[number] = self._open_group(address, number, node)
        name = bytearray(address.encode() + b"\0")
        try:
            return self._keep(
                self.host.ask_node(self.groups[number], _GROUP_GET_DEVICE_FD, name, f"/{node}")
            )
        except HostError as error:
            # Where iommufd takes the place of the container only this asks for the whole group.
            if error.errno in (errno.EPERM, errno.EBUSY) and self._is_shared(number):
                raise self._not_viable(address, number) from error
            raise

    def _is_shared(self, number: str) -> bool:
        return bool(iommu.blocking(self.host, number, self._addresses))

    def _open_group(self, address: str, number: str, node: str) -> int:
        """A group in the container. Raises HostError."""
        try:
            group = self._open(node)
        except HostError as error:
            raise self._in_use(address, node) if error.errno == errno.EBUSY else error from error
        status = bytearray(struct.pack("=II", 8, 0))
        self.host.ask_node(group, _GROUP_GET_STATUS, status, f"/{node}")
        if not struct.unpack("=II", status)[1] & _VIABLE:
            raise self._not_viable(address, number)
        argument = bytearray(struct.pack("=i", self._container))
        self.host.ask_node(group, _GROUP_SET_CONTAINER, argument, f"/{node}")
        if not self.groups:
            self._set_iommu(self._container)
        return group

    def _set_iommu(self, container: int) -> None:
        """Let the container use the IOMMU. Raises HostError."""
        kinds = (_TYPE1V2, _TYPE1)
        kind = next((one for one in kinds if self._has(container, one)), None)
        if kind is None:
            raise HostError(
                f"/{CONTAINER} has no IOMMU that QEMU can use", "modprobe vfio_iommu_type1"
            )
        try:
            self.host.ask_node(container, _SET_IOMMU, kind, f"/{CONTAINER}")
        except HostError as error:
            if error.errno != errno.EPERM:
                raise
            # vfio_iommu_type1_attach_group(): "No interrupt remapping support".
            raise HostError(
                "the IOMMU does not isolate the interrupts of devices, so vfio gives none away",
                "enable interrupt remapping (x2APIC) in the firmware setup; see `journalctl -k`",
            ) from error

    def _has(self, container: int, kind: int) -> bool:
        return self.host.ask_node(container, _CHECK_EXTENSION, kind, f"/{CONTAINER}") > 0


class _Iommufd(_Way):
    """The function's own node, bound to an iommufd (VFIO_DEVICE_CDEV and IOMMUFD)."""

    def __init__(self, host: Host, kept: ExitStack, addresses: Sequence[str]) -> None:
        super().__init__(host, kept, addresses)
        self.groups: dict[str, int] = {}
        """None: the kernel knows by the iommufd which devices are ours."""
        self._iommufd = self._open(IOMMUFD)
        # struct iommu_ioas_alloc: size, flags, out_ioas_id.
        pages = bytearray(struct.pack("=III", 12, 0, 0))
        host.ask_node(self._iommufd, _IOAS_ALLOC, pages, f"/{IOMMUFD}")
        self._pages = struct.unpack("=III", pages)[2]

    def open(self, address: str, group: str) -> int:
        """A handle of a function in the group of that number. Raises HostError."""
        names = self.host.list(f"sys/bus/pci/devices/{address}/vfio-dev")
        if not names:
            raise HostError(
                f"{address} has no node of its own for iommufd",
                "the kernel needs CONFIG_VFIO_DEVICE_CDEV; without iommufd QEMU uses the group",
            )
        node = f"dev/vfio/devices/{names[0]}"
        handle = self._open(node)
        # struct vfio_device_bind_iommufd: argsz, flags, iommufd, out_devid.
        bind = bytearray(struct.pack("=IIiI", 16, 0, self._iommufd, 0))
        try:
            self.host.ask_node(handle, _BIND_IOMMUFD, bind, f"/{node}")
        except HostError as error:
            if error.errno in (errno.EPERM, errno.EBUSY):
                others = iommu.blocking(self.host, group, self._addresses)
                raise (
                    self._not_viable(address, group) if others else self._in_use(address, node)
                ) from error
            raise
        # struct vfio_device_attach_iommufd_pt: argsz, flags, pt_id. QEMU attaches a page table
        # of its own, which the kernel makes from these pages for one that does not.
        attach = bytearray(struct.pack("=III", 12, 0, self._pages))
        self.host.ask_node(handle, _ATTACH_IOMMUFD_PT, attach, f"/{node}")
        return handle


# -- BARs


def _map_all(host: Host, kept: ExitStack, address: str, handle: int) -> Iterator[Region]:
    """Map each memory BAR of a function, as far as that is possible."""
    for bar in memory_bars(host, address):
        try:
            mapped = _map(host, kept, address, handle, bar)
            yield Region(address, bar.number, bar.range, mapped)
        except HostError as error:
            yield Region(address, bar.number, bar.range, False, _why(host, address, bar, error))


def _map(host: Host, kept: ExitStack, address: str, handle: int, bar: Bar) -> bool:
    """Map a BAR, or the parts of it that may be; False if vfio maps none. Raises HostError."""
    name = f"BAR {bar.number} of {address}"
    start, areas = _areas(host, handle, bar.number, name)
    for offset, size in areas:
        kept.callback(host.map_node(handle, start + offset, size, name).close)
    return bool(areas)


def _areas(host: Host, handle: int, bar: int, name: str) -> tuple[int, list[tuple[int, int]]]:
    """Where the region of a BAR begins in the node, and (offset, size) of what may be mapped."""
    raw = bytearray(_REGION.pack(_REGION.size, 0, bar, 0, 0, 0))
    host.ask_node(handle, _DEVICE_GET_REGION_INFO, raw, name)
    needed = _REGION.unpack_from(raw)[0]
    if needed > _REGION.size:  # there are capabilities, and room for them is wanted
        raw = bytearray(_REGION.pack(needed, 0, bar, 0, 0, 0)).ljust(needed, b"\0")
        host.ask_node(handle, _DEVICE_GET_REGION_INFO, raw, name)
    _, flags, _, capabilities, size, start = _REGION.unpack_from(raw)
    if not size or not flags & _MAPPABLE:
        return start, []
    sparse = _sparse_areas(raw, capabilities) if flags & _HAS_CAPABILITIES else None
    return start, [(0, size)] if sparse is None else sparse


def _sparse_areas(raw: bytearray, at: int) -> list[tuple[int, int]] | None:
    """The areas of the capability that says that not all of a region may be mapped, if any."""
    while at:
        kind, _, following = _CAPABILITY.unpack_from(raw, at)
        if kind == _SPARSE:
            # struct vfio_region_info_cap_sparse_mmap: header, nr_areas, reserved, areas.
            at += _CAPABILITY.size
            (count,) = struct.unpack_from("=I", raw, at)
            areas = (struct.unpack_from("=QQ", raw, at + 8 + 16 * one) for one in range(count))
            return [(offset, size) for offset, size in areas if size]
        at = following
    return None


def _why(host: Host, address: str, bar: Bar, error: HostError) -> str:
    """Why a BAR could not be mapped, by what /proc/iomem shows in it."""
    try:
        reserved = iomem.reservations(iomem.reserved_ranges(host), address, (bar,))
    except HostError:
        reserved = ()
    owners = [f"{one.name} reserves {one.range}" for one in reserved if not one.vfio]
    return " and ".join(owners) if owners else error.text
