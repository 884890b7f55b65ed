"""A libvirtd that virsh can ask to start and destroy one VM, with the hook at each event.

Its state lies in the tree, so every process of a test sees it:

    fake/libvirt/NAME        "UUID ADDRESS ADDRESS...": the VM that is defined
    fake/libvirt/down        virsh cannot connect
    fake/libvirt/refuses     why it does not start the VM
    fake/libvirt/slow_s      the start takes so long, and goes on when virsh is killed
    fake/libvirt/starting    such a start is under way, and libvirtd answers nothing about the VM
"""

from __future__ import annotations

import time

from tests import events
from vfio_console_hook.config import load
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, HostError
from vfio_console_hook.log import Log
from vfio_console_hook.machine import processes as processes_of
from vfio_console_hook.machine.libvirtd import Vm

from ..libvirt_xml import domain_xml
from . import pci
from .host import FakeHost
from .userspace import FakeLibvirt, close_device, open_device

QEMU = 6100
_FOLDER = "fake/libvirt"
_STATES = ("down", "refuses", "slow_s", "starting")
_VIRSH = "/usr/bin/virsh"


def define(host: FakeHost, name: str, uuid: str, *addresses: str) -> None:
    """Let libvirt have a VM with these functions."""
    host.tree.put(f"{_FOLDER}/{name}", " ".join((uuid, *addresses)))


class WithLibvirtd(FakeHost):
    """A machine with libvirtd and one VM."""

    patient = True

    def _defined(self, wanted: str) -> tuple[str, str, tuple[str, ...]]:
        for name in self.list(_FOLDER):
            uuid, *addresses = (self.read(f"{_FOLDER}/{name}") or "").split() or [""]
            if wanted in (name, uuid) and name not in _STATES:
                return name, uuid, tuple(addresses)
        raise HostError(f"failed to get domain '{wanted}'")

    def vms(self, uri: str, name: str = "") -> tuple[Vm, ...]:
        found, uuid, addresses = self._defined(name or "win11")
        return (Vm(found, uuid, domain_xml(*addresses, name=found, uuid=uuid).decode(), "", False),)

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0] != _VIRSH:
            return super().run(*command, timeout_s=timeout_s)
        try:
            if self.exists(f"{_FOLDER}/down"):
                raise HostError("error: failed to connect to the hypervisor")
            name, uuid, addresses = self._defined(command[-1])
            act = {"domstate": self._state, "start": self._start, "destroy": self._destroy}
            return act[command[3]](name, uuid, addresses)
        except HookError as error:
            text = f"error: {error.text}"
            raise HostError(f"{' '.join(command)} failed: {text}") from error

    def _runs(self, name: str) -> bool:
        return self.exists(f"run/libvirt/qemu/{name}.pid")

    def _state(self, name: str, uuid: str, addresses: tuple[str, ...]) -> str:
        if self.exists(f"{_FOLDER}/starting"):
            raise HostError("Timed out during operation: cannot acquire state change lock")
        return "running" if self._runs(name) else "shut off"

    def _start(self, name: str, uuid: str, addresses: tuple[str, ...]) -> str:
        """qemuDomainCreate(), which goes on when its client is gone."""
        slow_s = self.read(f"{_FOLDER}/slow_s")
        if slow_s is None:
            return self._start_now(name, uuid, addresses)
        self.tree.put(f"{_FOLDER}/starting", "")

        def later() -> None:
            time.sleep(float(slow_s))
            self._start_now(name, uuid, addresses)
            self.tree.remove(f"{_FOLDER}/starting")

        self.detach(later)
        time.sleep(600)
        return ""

    def _start_now(self, name: str, uuid: str, addresses: tuple[str, ...]) -> str:
        """qemuProcessStart(): the hook, the devices, the hook, QEMU."""
        if self._runs(name):
            raise HostError("Requested operation is not valid: domain is already running")
        if self.exists(f"{_FOLDER}/refuses"):
            raise HostError(self.read(f"{_FOLDER}/refuses") or "")
        log = Log(self, name)
        hostdevs = tuple(Hostdev(one, True, "hostdev", 0) for one in addresses)
        domain = Domain(name, uuid, hostdevs)
        events.prepare(self, domain, load.configuration(self, name, uuid), log)
        for address in addresses:
            FakeLibvirt(self).detach(address)
        events.start(self, uuid, log)
        maps = []
        for address in addresses:
            open_device(self, address, pid=QEMU)
            for bar in pci.bars(self.tree, address):
                size = bar.range.last - bar.range.first + 1
                first = 0x7F0000000000 + bar.range.first
                area = f"{first:x}-{first + size:x} rw-s {bar.number << 40:08x} 00:0e 1100"
                maps.append(f"{area}  anon_inode:[vfio-device]")
        self.tree.put(f"proc/{QEMU}/maps", "\n".join(maps))
        self.tree.put(f"proc/{QEMU}/cmdline", f"qemu\0-name\0guest={name},debug-threads=on\0")
        self.tree.put(f"run/libvirt/qemu/{name}.pid", str(QEMU))
        return f"Domain '{name}' started"

    def _destroy(self, name: str, uuid: str, addresses: tuple[str, ...]) -> str:
        """qemuProcessStop()."""
        if not self._runs(name):
            raise HostError("Requested operation is not valid: domain is not running")
        self.end(name)
        return f"Domain '{name}' destroyed"

    def end(self, name: str) -> None:
        """QEMU has ended, by itself or by a signal, and libvirtd sees that."""
        _, uuid, addresses = self._defined(name)
        log = Log(self, name)
        for address in addresses:
            close_device(self, address, pid=QEMU)
        events.stop(self, uuid, log)
        for address in addresses:
            libvirt = FakeLibvirt(self)
            libvirt.adopt(address)
            libvirt.reattach(address)
        self.tree.remove(f"run/libvirt/qemu/{name}.pid")
        events.release(self, uuid, log)

    def qemu_runs(self) -> bool:
        return processes_of.find(self, QEMU) is not None


