"""Firmware DRM drivers: simpledrm (Linux 5.14), ofdrm (6.2), efidrm and vesadrm (6.16).

While the VM runs, the person loses what the firmware driver shows. The drivers
let go of the memory at once when they are unbound, whoever has a node open. What
simpledrm draws on may still be held by BOOTFB: see bootfb.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from .firmware import bootfb, sysfb
from .handover import Handover

NAME = "drm_aperture"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The firmware DRM drivers of one GPU unbound. Raises RefusedError for BOOTFB."""
    if not host.exists("sys/class/drm"):
        return
    for device in gpu.firmware:
        if device.drm:
            take = bootfb.plan if device.owns_memory else sysfb.plan
            yield from take(host, gpu, device, handover, NAME)
