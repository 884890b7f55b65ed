"""What the stages drm_aperture and fbdev share: a module for each owner of the memory.

Nothing here is a stage of its own. May import what stages may.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...claims.step import Step
from ...machine.gpu import Gpu
from ...machine.host import Host
from ..handover import Handover
from . import bootfb, sysfb


def plan(host: Host, gpu: Gpu, handover: Handover, stage: str, *, drm: bool) -> Iterator[Step]:
    """What frees the memory of the GPU's firmware devices, with a DRM driver or an fbdev one.

    Raises RefusedError where nothing that the configuration allows would.
    """
    for device in gpu.firmware:
        if device.drm == drm:
            owner = bootfb if device.owns_memory else sysfb
            yield from owner.plan(host, gpu, device, handover, stage)
