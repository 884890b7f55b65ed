"""The disk from which U-Boot starts a kernel of arm64 by EFI.

Debian's UEFI firmware for arm64 has no driver for QEMU's PCI cards; U-Boot has one for
bochs-display, and hands its framebuffer to the kernel as any UEFI firmware does. It finds
the script boot.scr on a disk by itself (U-Boot doc/develop/bootstd/script.rst).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

# A loaded file's own disk is where the kernel's EFI stub looks for initrd=.
_SCRIPT = """\
setenv bootargs 'initrd=initrd {line}'
load ${{devtype}} ${{devnum}}:${{distro_bootpart}} ${{kernel_addr_r}} vmlinuz
bootefi ${{kernel_addr_r}}
"""
# U-Boot include/image.h: magic, header's checksum, time, size, load and entry address, data's
# checksum; system, architecture, type, compression; name.
_HEADER = ">7I4B32s"
_MAGIC, _LINUX, _ARM64, _SCRIPT_TYPE, _UNCOMPRESSED = 0x27051956, 5, 22, 6, 0


def disk(directory: Path, kernel: Path, initrd: Path, line: str) -> str:
    """Make the directory that QEMU shows as a FAT disk; QEMU's name of the disk."""
    directory.mkdir()
    (directory / "vmlinuz").symlink_to(kernel)
    (directory / "initrd").symlink_to(initrd)
    (directory / "boot.scr").write_bytes(script(_SCRIPT.format(line=line).encode()))
    return f"fat:{directory}"


def script(text: bytes) -> bytes:
    """A script in the form that U-Boot runs, as mkimage makes it."""
    data = struct.pack(">II", len(text), 0) + text
    return _header(zlib.crc32(_header(0, data)), data) + data


def _header(checksum: int, data: bytes) -> bytes:
    kind = (_LINUX, _ARM64, _SCRIPT_TYPE, _UNCOMPRESSED)
    return struct.pack(
        _HEADER, _MAGIC, checksum, 0, len(data), 0, 0, zlib.crc32(data), *kind, b"lab"
    )
