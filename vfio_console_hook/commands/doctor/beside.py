"""The check of what goes with a GPU: disks, network and keyboards of the host."""

from __future__ import annotations

from collections.abc import Iterator

from ...machine import pci
from ...machine.host_use import file_system_on, host_use
from .finding import Finding, check, failure, passed, warning
from .system import System


@check("devices of the host")
def devices_of_the_host(system: System) -> Iterator[Finding]:
    """Whether a VM with a GPU also gets a device that the host uses now."""
    host = system.host
    found = False
    for vm in system.domains:
        gpus = system.gpus_of(vm)
        for address in (one.address for one in vm.hostdevs if one.address not in gpus):
            use = "" if not gpus or pci.is_vfio(host, address) else host_use(host, address)
            if not use:
                continue
            found = True
            title = f"{address} in VM {vm.name}"
            if file_system_on(host, address):
                advice = "unmount it, or swapoff; or remove the device from the VM"
                yield failure(f"{use} it, so the VM is refused", advice, of=title)
            elif use.startswith("a keyboard"):
                yield passed(f"{use} it, and goes with the VM", of=title)
            else:
                text = f"{use} it, and is gone while the VM runs"
                yield warning(text, "nothing if that is intended", of=title)
    if not found:
        yield passed("no VM with a GPU takes a disk, network or keyboard that the host uses now")
