"""The stages in the order in which prepare takes their steps."""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..config.settings import CONSOLE_STAGES
from ..machine.host import Host
from . import (
    collateral,
    drm_aperture,
    fbcon,
    fbdev,
    native,
    preflight,
    services,
    sound,
    vfio,
    vgacon,
)
from .handover import Handover

# Services first: they hold the GPU, and preflight looks for what still holds it once
# they are stopped. preflight and collateral refuse, so they come before any other
# change. fbcon comes while the framebuffers are there and consoles can be moved. From
# there the order is that of Linux commit d17378062079: DRM aperture drivers, fbdev
# drivers, vgacon. Sound goes before the GPU and comes back after it, because its driver
# works together with that of the GPU (Linux drm_audio_component).
STAGES = (
    services, preflight, collateral, fbcon, drm_aperture, fbdev, vgacon, sound, native, vfio,
)  # fmt: skip


def plan(host: Host, handover: Handover) -> tuple[Step, ...]:
    """The steps that prepare takes, in order; nothing is changed.

    Raises RefusedError when one of the GPUs must not go to the VM, HostError when
    the machine cannot be read.
    """
    return tuple(_steps(host, handover))


def _steps(host: Host, handover: Handover) -> Iterator[Step]:
    gpus = tuple(gpu for gpu in handover.gpus if not gpu.virtual)
    for stage in STAGES:
        if stage.NAME not in CONSOLE_STAGES or stage.NAME in handover.config.stages:
            # The last GPU loses its driver first, and so gets it back last: a card gets the
            # lowest free number, so otherwise two of them would swap their numbers.
            for gpu in gpus[::-1] if stage in (native, vfio) else gpus:
                yield from stage.plan(host, gpu, handover)
