"""What others do to the machine: root, libvirtd, QEMU, and processes that hold a node open."""

from __future__ import annotations

import os

from vfio_console_hook.config.load import DIRECTORY
from vfio_console_hook.errors import HostError

from . import fbdev, pci, processes
from .host import FakeHost
from .pci import NotViableError


class WithVirsh(FakeHost):
    """A machine on which virsh lists these VMs as running; None: libvirt does not answer."""

    running: str | None = ""

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0] != "/usr/bin/virsh":
            return super().run(*command, timeout_s=timeout_s)
        if self.running is None:
            raise HostError("virsh did not end in time")
        return self.running


def configure(host: FakeHost, settings: str, file: str = "default.yaml") -> None:
    """Root writes a file of the configuration, which only root can write."""
    path = f"{DIRECTORY}/{file}"
    host.tree.put(path, settings)
    os.chmod(host.path(path), 0o644)
    while path := os.path.dirname(path):
        os.chmod(host.path(path), 0o755)


def open_device(host: FakeHost, address: str, *, pid: int = 4242) -> list[int]:
    """QEMU opens a device on vfio-pci and maps its BARs; those it cannot have.

    Each of them leaves a line "can't reserve" in host.log. Raises NotViableError if the kernel
    does not let it have the device's IOMMU group.
    """
    group = host.link_name(f"{pci.BUS}/devices/{address}/iommu_group")
    if any(f"proc/{pid}/" not in one for one in fbdev.holding(host.tree, f"dev/vfio/{group}")):
        # vfio_group_fops_open(): for one file at a time
        raise NotViableError(f"failed to open /dev/vfio/{group}: Device or resource busy")
    pci.check_group(host.tree, address)
    hold(host, f"dev/vfio/{host.link_name(f'{pci.BUS}/devices/{address}/iommu_group')}",
         pid=pid, command="qemu-system-x86")  # fmt: skip
    return pci.open_device(host.tree, address)


def close_device(host: FakeHost, address: str, *, pid: int = 4242) -> None:
    """QEMU ends."""
    pci.close_device(host.tree, address)
    let_go(host, pid)


def hold(
    host: FakeHost,
    node: str,
    *,
    pid: int,
    command: str,
    unit: str = "",
    cgroup: str = "",
    shown: str = "",
    mapped: bool = False,
) -> None:
    """Let a process have a node open, such as "dev/fb0", or only mapped.

    unit is one of the system, cgroup a whole path instead. shown is what the kernel
    calls the file, where a mount or a second node for the device has another name.
    """
    path = cgroup or (f"/system.slice/{unit}" if unit else "/")
    processes.make(host.tree, pid, command, f"0::{path}")
    have = processes.map_file if mapped else processes.open_file
    have(host.tree, pid, node, shown or f"/{node}")


def conceal(
    host: FakeHost, *, pid: int, command: str = "x", unit: str = "", parent: int = 1
) -> None:
    """Let there be a process that may not be looked into (kernel/ptrace.c, ptrace_may_access)."""
    path = f"/system.slice/{unit}" if unit else "/"
    processes.make(host.tree, pid, command, f"0::{path}", parent=parent)
    host.tree.put(f"fake/concealed/{pid}", "")


def obey(host: FakeHost, pid: int, by: int, *, after_s: float = 0) -> None:
    """Say which signal ends a process beside SIGKILL, and how long that takes it.

    processes.NEVER: none does, not even SIGKILL.
    """
    host.tree.put(f"fake/obeys/{pid}", f"{int(by)} {after_s}")


def leave(host: FakeHost, pid: int, after_s: float) -> None:
    """Let a process end by itself, so many seconds from now."""
    host.tree.put(f"fake/due/{pid}", str(host.clock() + after_s))


def let_go(host: FakeHost, pid: int) -> None:
    """The process ends; what only it kept alive is freed."""
    processes.end(host.tree, pid)


class LibvirtError(Exception):
    """libvirt does not start the VM."""


class FakeLibvirt:
    """libvirt's own handling of PCI host devices (src/util/virpci.c).

    Nothing is read back after a probe, and nothing is remembered but whether
    libvirt itself has bound a device.
    """

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self._bound_by_us: set[str] = set()

    def detach(self, address: str, *, managed: bool = True) -> None:
        """virPCIDeviceDetach, virPCIDeviceBindToStub. Raises LibvirtError.

        Before that, virHostdevPreparePCIDevices has asked for the group of each device
        (virPCIDeviceAddressGetIOMMUGroupNum). One that comes with the driver is enough:
        seen with 11.3 on arm64.
        """
        device = f"{pci.BUS}/devices/{address}"
        has_none = self.host.exists(device) and not self.host.link_name(f"{device}/iommu_group")
        if has_none and pci.group_to_join(self.host.tree, address) is None:
            raise LibvirtError(f"Unable to find the IOMMU group of {address}")
        if not managed:
            if self.host.link_name(f"{device}/driver") != pci.VFIO:
                raise LibvirtError(
                    f"Unmanaged PCI device {address} must be manually detached from the host"
                )
            return
        if not self.host.exists(f"{pci.BUS}/drivers/{pci.VFIO}"):
            self.host.run("/sbin/modprobe", "-b", pci.VFIO)
        if self.host.link_name(f"{device}/driver") == pci.VFIO:
            return
        self.host.write(f"{device}/driver_override", pci.VFIO)
        self._reprobe(device, address)
        self._bound_by_us.add(address)

    def reattach(self, address: str) -> None:
        """virPCIDeviceReattach, virPCIDeviceUnbindFromStub."""
        if address not in self._bound_by_us:
            return
        self._bound_by_us.remove(address)
        device = f"{pci.BUS}/devices/{address}"
        if not self.host.exists(device):
            return
        self.host.write(f"{device}/driver_override", "\n")
        self._reprobe(device, address)

    def forget(self, address: str) -> bool:
        """libvirtd is killed before the VM has a status file; whether a device stays bound.

        What it had bound has no owner then: a later run finds it on vfio-pci, and leaves it
        there at its end.
        """
        bound = address in self._bound_by_us
        self._bound_by_us.discard(address)
        return bound

    def adopt(self, address: str) -> None:
        """What `virsh nodedev-detach` remembers: the device goes back with reattach()."""
        self._bound_by_us.add(address)

    def _reprobe(self, device: str, address: str) -> None:
        if self.host.exists(f"{device}/driver"):
            self.host.write(f"{device}/driver/unbind", address)
        self.host.write(f"{pci.BUS}/drivers_probe", address)
