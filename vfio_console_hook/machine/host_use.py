"""What the host itself uses a PCI device for: then it is never offered to a VM."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .host import Host

_CLASSES = ("sys/block", "sys/class/net", "sys/class/input")
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


def _below(host: Host, folder: str, address: str) -> Iterator[str]:
    """The devices of a class that are below a PCI device in sysfs."""
    for name in host.list(folder):
        if f"/{address}/" in f"{host.real(f'{folder}/{name}') or ''}/":
            yield name


def _disk_use(host: Host, path_name: str) -> str:
    """What a disk is used for, and as what, such as "sda1, which is mounted"; "" if for nothing.

    Source: proc(5) for mountinfo and swaps; /sys/block/X/holders has LVM, RAID and dm-crypt.
    """
    # With multipath a namespace is below no controller, but a hidden path to it is
    # (Linux drivers/nvme/host/multipath.c, nvme_mpath_set_disk_name).
    disk = re.sub(r"^(nvme\d+)c\d+(n\d+)$", r"\1\2", path_name)
    path = f"sys/block/{disk}"
    places = (path, *(f"{path}/{part}" for part in host.list(path) if part.startswith(disk)))
    mounted, swaps, pools = _mounted(host), _swaps(host), _zfs_pools(host)
    for place in places:
        name = place.rpartition("/")[2]
        if name in mounted or host.read(f"{place}/dev") in mounted:
            return f"{name}, which is mounted"
        if name in swaps:
            return f"{name}, which the host swaps to"
        if host.list(f"{place}/holders"):
            return f"{name}, which the host uses"
    if pools:
        return f"{disk}, which may be a part of the ZFS pool {pools[0]}"
    return ""


def _mounted(host: Host) -> set[str]:
    """The numbers and names of the block devices that are mounted.

    A btrfs shows a number that no device has (fs/btrfs/super.c, get_anon_bdev), one of its
    devices as the source, and all of them in /sys/fs/btrfs.
    """
    found = set()
    for line in (host.read("proc/self/mountinfo") or "").splitlines():
        front, _, back = line.partition(" - ")
        found.add(front.split()[2])
        source = (back.split() or ["none", "none"])[1:2]
        for one in source[0].split(":") if source else ():
            if one.startswith("/dev/"):
                found.add((host.real(one[1:]) or one).rpartition("/")[2])
    for filesystem in host.list("sys/fs/btrfs"):
        found.update(host.list(f"sys/fs/btrfs/{filesystem}/devices"))
    return found


def _swaps(host: Host) -> set[str]:
    lines = (host.read("proc/swaps") or "").splitlines()[1:]
    return {line.split()[0].rpartition("/")[2] for line in lines}


def _zfs_pools(host: Host) -> list[str]:
    """The imported pools: nothing in /proc or /sys shows on which disks they are."""
    pools = host.list("proc/spl/kstat/zfs")
    return [one for one in pools if host.exists(f"proc/spl/kstat/zfs/{one}/state")]
