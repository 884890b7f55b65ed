"""Firmware fbdev drivers: efifb, vesafb, simplefb, and vga16fb on the boot VGA device.

While the VM runs, the person loses what the firmware driver shows. The driver
keeps the memory until the last /dev/fbN is closed (Linux fbmem.c, put_fb_info),
and Linux 5.10 faults when one is open at the unbind, so native.py waits first.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from .firmware import bootfb, sysfb
from .handover import Handover

NAME = "fbdev"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The firmware fbdev drivers of one GPU unbound. Raises RefusedError for BOOTFB."""
    if not host.exists("sys/class/graphics"):
        return
    for device in gpu.firmware:
        if not device.drm:
            take = bootfb.plan if device.owns_memory else sysfb.plan
            yield from take(host, gpu, device, handover, NAME)
