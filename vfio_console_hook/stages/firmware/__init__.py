"""What the stages drm_aperture and fbdev share: a module for each owner of the memory.

Nothing here is a stage of its own. May import what stages may.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...actions.firmware import CONSOLES_BACK
from ...claims.step import Step
from ...machine.gpu import Gpu
from ...machine.host import Host
from ..handover import Handover
from . import sysfb


def plan(host: Host, gpu: Gpu, handover: Handover, stage: str, *, drm: bool) -> Iterator[Step]:
    """What frees the memory of the GPU's firmware devices, with a DRM driver or an fbdev one.

    Raises RefusedError where nothing that the configuration allows would.
    """
    comes_back = False
    for device in gpu.firmware:
        if device.drm != drm:
            continue
        if device.coreboots:
            from . import coreboot  # loaded only for machines that have it

            steps = coreboot.plan(host, gpu, device, handover, stage)
        elif device.owns_memory:
            from . import bootfb  # takes 4 ms to load

            steps = bootfb.plan(host, gpu, device, handover, stage)
        else:
            steps = sysfb.plan(host, gpu, device, handover, stage)
        for step in steps:
            yield step
            back = step.undo is not None and step.undo.kind in CONSOLES_BACK
            comes_back = comes_back or (back and not step.loses)
    if comes_back and gpu.native:
        from .. import native  # loaded only for GPUs with a native driver

        yield from native.stand_back(host, gpu, handover, stage)
