"""Firmware DRM drivers: simpledrm (Linux 5.14), ofdrm (6.2), efidrm and vesadrm (6.16).

While the VM runs, the person loses what the firmware driver shows. The drivers free
the memory as soon as they are unbound, even if a program has a node open. What
simpledrm draws on may still be reserved by BOOTFB: see firmware/bootfb.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from . import firmware
from .handover import Handover

NAME = "drm_aperture"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The unbinds of the GPU's firmware DRM drivers. Raises RefusedError for BOOTFB."""
    yield from firmware.plan(host, gpu, handover, NAME, drm=True)
