"""Firmware fbdev drivers: efifb, vesafb, simplefb, and vga16fb on the boot VGA device.

They are in every release that this program supports. While the VM runs, the person
loses what the firmware driver shows. The driver keeps the memory until the last
/dev/fbN is closed (Linux fbmem.c, put_fb_info), and Linux 5.10 faults when one is open
at the unbind, so preflight.py waits first.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from . import firmware
from .handover import Handover

NAME = "fbdev"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The unbinds of the GPU's firmware fbdev drivers. Raises RefusedError for BOOTFB."""
    yield from firmware.plan(host, gpu, handover, NAME, drm=False)
