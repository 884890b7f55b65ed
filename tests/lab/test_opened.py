"""How the areas of vfio devices are read from /proc/PID/maps."""

from __future__ import annotations

from .opened import areas

MAPS = """\
00400000-00420000 r--p 00000000 00:16 699                                /usr/bin/qemu
7efc2d92b000-7efc2d92c000 rw-s 20000000000 00:09 1295                    /dev/vfio/devices/vfio0
7f1f9c92a000-7f1f9d92a000 rw-s 00000000 00:0f 16                         anon_inode:[vfio-device]
7fff05010000-7fff05031000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_what_a_device_has_mapped_counts_by_either_of_its_nodes() -> None:
    assert areas(MAPS) == [(0, 0x1000000, "rw-s"), (0x20000000000, 0x1000, "rw-s")]
