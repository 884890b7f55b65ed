"""What the stages drm_aperture and fbdev share: a module for each owner of the memory.

Nothing here is a stage of its own. May import what stages may.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...claims.step import Step
from ...machine.gpu import Gpu
from ...machine.host import Host
from ..handover import Handover
from . import sysfb


def plan(host: Host, gpu: Gpu, handover: Handover, stage: str, *, drm: bool) -> Iterator[Step]:
    """What frees the memory of the GPU's firmware devices, with a DRM driver or an fbdev one.

    Raises RefusedError where nothing that the configuration allows would.
    """
    for device in gpu.firmware:
        if device.drm != drm:
            continue
        if device.owns_memory:
            from . import bootfb  # takes 4 ms to load

            yield from bootfb.plan(host, gpu, device, handover, stage)
        else:
            yield from sysfb.plan(host, gpu, device, handover, stage)
