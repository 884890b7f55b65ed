"""The architectures of the machines, by Debian's names: what of QEMU and Debian differs."""

from __future__ import annotations

from dataclasses import dataclass

IDLE = "/var/lib/libvirt/images/idle"
"""Where a VM without firmware has its kernel in the machine."""


@dataclass(frozen=True)
class Architecture:
    """An architecture of Debian.

    emulator is QEMU's program and package Debian's that has it, here and in the machine. board
    is what QEMU emulates; kernel_line are the words that only this architecture needs. os is
    what a VM boots, as in libvirt's XML; idle is the kernel of a VM without firmware.
    """

    debian: str
    emulator: str
    package: str
    board: tuple[str, ...]
    kernel_line: str
    os: str
    idle: bytes = b""


AMD64 = Architecture(
    "amd64",
    "qemu-system-x86_64",
    "qemu-system-x86",
    board=(
        *("-cpu", "max", "-machine", "q35,kernel-irqchip=split"),
        *("-device", "intel-iommu,intremap=on,caching-mode=on"),
    ),
    # A busy machine sometimes panics in check_timer.
    kernel_line="console=ttyS0 intel_iommu=on iommu=pt no_timer_check",
    os="<type arch='x86_64' machine='q35'>hvm</type>",
)
ARM64 = Architecture(
    "arm64",
    "qemu-system-aarch64",
    "qemu-system-arm",
    # "max" is emulated more slowly.
    board=("-cpu", "cortex-a72", "-machine", "virt,iommu=smmuv3,gic-version=3"),
    kernel_line="console=ttyAMA0",
    os=f"<type arch='aarch64' machine='virt'>hvm</type><kernel>{IDLE}</kernel>",
    idle=bytes.fromhex("7f2003d5 ffffff17"),  # wfi, and again
)
