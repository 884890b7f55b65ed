"""The stages in the order in which prepare takes their steps."""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..config.settings import CONSOLE_STAGES
from ..machine import console
from ..machine.host import Host
from . import collateral, drm_aperture, fbcon, fbdev, load, preflight, vgacon
from .handover import Handover

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

# Services and kmscon first: they hold the GPU, and preflight looks for what still holds it once
# they are stopped. preflight and collateral refuse, so they come before any other
# change. fbcon comes while the framebuffers are there and consoles can be moved. load only
# has an undo, which comes when the firmware's drivers are back, and before the consoles are
# looked after. Sound goes before the GPU's native driver and comes back after it, because they
# work together (Linux drm_audio_component), and so do the card's other functions. The
# firmware's drivers go last and come back first, as at a boot: a native driver may have left
# one of them alone, and needs the memory decoding that they switch off; and a card or
# framebuffer gets the lowest free number. Their order is that of Linux commit d17378062079: DRM
# aperture drivers, fbdev drivers, vgacon.
NAMES = (
    "services", "kmscon", "preflight", "collateral", "fbcon", "sound", "card", "native", "load",
    "drm_aperture", "fbdev", "vgacon", "vfio",
)  # fmt: skip


def plan(host: Host, handover: Handover) -> tuple[Step, ...]:
    """The steps that prepare takes, in order; nothing is changed.

    Raises RefusedError when one of the GPUs must not go to the VM, HostError when
    the machine cannot be read.
    """
    return tuple(_steps(host, handover))


def _steps(host: Host, handover: Handover) -> Iterator[Step]:
    gpus = tuple(gpu for gpu in handover.gpus if not gpu.virtual)
    for stage in _stages(handover, kmscon_runs=bool(console.kmscon_cgroups(host))):
        if stage.NAME not in CONSOLE_STAGES or stage.NAME in handover.config.stages:
            # The last GPU loses its driver first, and so gets it back last: a card gets the
            # lowest free number, so otherwise two of them would swap their numbers.
            for gpu in gpus[::-1] if stage.NAME in ("native", "vfio") else gpus:
                yield from stage.plan(host, gpu, handover)


def _stages(handover: Handover, *, kmscon_runs: bool) -> Iterator[Any]:
    """The modules of NAMES that have something to do; the others take 1 to 5 ms to load."""
    if handover.config.services:
        from . import services

        yield services
    if kmscon_runs:
        from . import kmscon

        yield kmscon
    yield from (preflight, collateral, fbcon)
    if handover.siblings:
        from . import sound

        yield sound
    if handover.siblings and handover.by_hand:
        from . import card

        yield card
    if any(gpu.native for gpu in handover.gpus):
        from . import native

        yield native
    yield from (load, drm_aperture, fbdev, vgacon)
    if handover.bind_vfio:
        from . import vfio

        yield vfio
