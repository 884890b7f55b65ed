"""The VM that gets the GPUs of the machine under test."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .architectures import AMD64, Architecture


@dataclass(frozen=True)
class GuestGpu:
    """A GPU as seen by the kernel in the machine.

    rom_shadowed: line 7 of `resource` has the flag that the ROM is shadowed at c0000
    (IORESOURCE_ROM_SHADOW), on which Linux 6.0 to 6.10 base what vfio-pci removes.
    """

    address: str
    bar0_first: int
    bar0_bytes: int
    rom_shadowed: bool = False


def read_gpu(address: str, resource: str) -> GuestGpu:
    """A GPU from its address and the content of its `resource`."""
    lines = [[int(word, 16) for word in line.split()] for line in resource.splitlines()]
    first, last, _flags = lines[0]
    return GuestGpu(address, first, last - first + 1, bool(lines[6][2] & 0x2))


VM = "gpu"
UUID = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a01"


def domain_xml(
    gpus: tuple[GuestGpu, ...],
    name: str = VM,
    uuid: str = UUID,
    others: tuple[str, ...] = (),
    architecture: Architecture = AMD64,
) -> str:
    """A VM of 64 MiB without a disk, with the GPUs and the devices at other addresses."""
    hostdevs = ""
    for address in (*(gpu.address for gpu in gpus), *others):
        domain, bus, slot, function = re.split("[:.]", address)
        hostdevs += (
            "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
            f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
            "</source></hostdev>\n"
        )
    return f"""<domain type='qemu'>
<name>{name}</name>
<uuid>{uuid}</uuid>
<memory unit='MiB'>64</memory>
<vcpu>1</vcpu>
<os>{architecture.os}</os>
<on_poweroff>destroy</on_poweroff>
<devices>
<emulator>/usr/bin/{architecture.emulator}</emulator>
<controller type='usb' model='none'/>
<memballoon model='none'/>
<video><model type='none'/></video>
{hostdevs}</devices>
</domain>
"""


def mapped_bars(maps: str, gpus: tuple[GuestGpu, ...]) -> list[str]:
    """The lines of /proc/PID/maps that map the whole BAR 0 of a GPU through vfio.

    The offset of BAR 0 is 0 (region n begins at n << 40), but 5.10 rewrites it
    to the bus address (Linux drivers/vfio/pci/vfio_pci.c, vfio_pci_mmap, vm_pgoff).
    """
    bars = {(gpu.bar0_bytes, offset) for gpu in gpus for offset in (0, gpu.bar0_first)}
    found = []
    for line in maps.splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) .*vfio", line)
        if not match:
            continue
        first, last, offset = (int(word, 16) for word in match.groups())
        if (last - first, offset) in bars:
            found.append(line)
    return found
