"""What the host itself uses a PCI device for: then it is never offered to a VM."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .host import Host

# What may be below a controller of each kind.
_BELOW = (
    (("0x01", "0x0805"), ("sys/block",)),
    (("0x02",), ("sys/class/net",)),
    (("0x0c03",), ("sys/block", "sys/class/net", "sys/class/input")),
)
# The sound of a monitor is an input too: whether one is plugged in.
_NO_INPUT = ("0x03", "0x04")


def host_use(host: Host, address: str) -> str:
    """What the host uses a PCI device for, as a clause before its address; "" if nothing shows.

    A USB controller may have a disk, a network interface and a keyboard below it.
    """
    for disk in _below(host, "sys/block", address):
        use = _disk_use(host, disk)
        if use:
            return f"{use}, is on"
    for interface in _below(host, "sys/class/net", address):
        if host.read(f"sys/class/net/{interface}/operstate") in ("up", "unknown", "dormant"):
            return f"the network interface {interface}, which is up, is on"
    pci_class = host.read(f"sys/bus/pci/devices/{address}/class") or ""
    if not pci_class.startswith(_NO_INPUT) and any(_below(host, "sys/class/input", address)):
        return "a keyboard or mouse is on"
    return ""


def may_be_used(host: Host, address: str) -> bool:
    """Whether it is a controller of disks, network or USB of which nothing shows what is below.

    A snapshot of a machine may lack that.
    """
    pci_class = host.read(f"sys/bus/pci/devices/{address}/class") or ""
    folders = [one for kinds, of in _BELOW if pci_class.startswith(kinds) for one in of]
    return not all(map(host.exists, folders))


def _below(host: Host, folder: str, address: str) -> Iterator[str]:
    """The devices of a class that are below a PCI device in sysfs."""
    for name in host.list(folder):
        if f"/{address}/" in f"{host.real(f'{folder}/{name}') or ''}/":
            yield name


def file_system_on(host: Host, address: str) -> str:
    """Which disk on a PCI device is mounted or swapped to, as a clause before its address.

    "" if none is: other uses may be left over, such as LVM that the host found in a guest's disk.
    """
    for disk in _below(host, "sys/block", address):
        use = _file_system(host, _places(host, disk))
        if use:
            return f"{use}, is on"
    return ""


def _disk_use(host: Host, disk: str) -> str:
    """What a disk is used for, and as what, such as "sda1, which is mounted"; "" if for nothing.

    Source: proc(5) for mountinfo and swaps; /sys/block/X/holders has LVM, RAID and dm-crypt.
    """
    places = _places(host, disk)
    use = _file_system(host, places)
    if use:
        return use
    for place in places:
        if host.list(f"{place}/holders"):
            return f"{_name(place)}, which the host uses"
    # Nothing in /proc or /sys shows on which disks the pools of ZFS are.
    zfs = host.exists("sys/module/zfs")
    return f"{_name(places[0])}, which may be a part of a ZFS pool" if zfs else ""


def _places(host: Host, path_name: str) -> tuple[str, ...]:
    """The directories of a disk and of its partitions."""
    # With multipath a namespace is below no controller, but a hidden path to it is
    # (Linux drivers/nvme/host/multipath.c, nvme_mpath_set_disk_name).
    disk = re.sub(r"^(nvme\d+)c\d+(n\d+)$", r"\1\2", path_name)
    path = f"sys/block/{disk}"
    return (path, *(f"{path}/{part}" for part in host.list(path) if part.startswith(disk)))


def _file_system(host: Host, places: tuple[str, ...]) -> str:
    """Which of these is mounted or swapped to, such as "sda1, which is mounted"; "" for none."""
    mounted, swaps = _mounted(host), _swaps(host)
    for place in places:
        if _name(place) in mounted or host.read(f"{place}/dev") in mounted:
            return f"{_name(place)}, which is mounted"
        if _name(place) in swaps:
            return f"{_name(place)}, which the host swaps to"
    return ""


def _name(place: str) -> str:
    return place.rpartition("/")[2]


def _mounted(host: Host) -> set[str]:
    """The numbers and names of the block devices that are mounted.

    A btrfs shows a number that no device has (fs/btrfs/super.c, get_anon_bdev), one of its
    devices as the source, and all of them in /sys/fs/btrfs.
    """
    found = set()
    for line in (host.read("proc/self/mountinfo") or "").splitlines():
        front, _, back = line.partition(" - ")
        found.update(front.split()[2:3])
        source = (back.split() or ["none", "none"])[1:2]
        for one in source[0].split(":") if source else ():
            if one.startswith("/dev/"):
                found.add((host.real(one[1:]) or one).rpartition("/")[2])
    for filesystem in host.list("sys/fs/btrfs"):
        found.update(host.list(f"sys/fs/btrfs/{filesystem}/devices"))
    return found


def _swaps(host: Host) -> set[str]:
    lines = (host.read("proc/swaps") or "").splitlines()[1:]
    return {line.split()[0].rpartition("/")[2] for line in lines if line.strip()}
