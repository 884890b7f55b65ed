"""kmscon: a console in user space, which keeps every card open that it has found.

It opens the cards of its seat when it starts, with any DRM driver, and a framebuffer where there
is no card. In the background it gives up being DRM master, and keeps them open all the same
(kmscon src/uterm_drm_shared.c, uterm_drm_video_init, drop_drm_master). So the units that have a
GPU of the VM open are stopped, as getty need not be, and start again after it; if they draw on
another GPU too, as soon as this one has left. Who is logged in there loses the session. Units
that have only other GPUs open are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.services import StartUnits, StopUnits
from ..claims.step import Step
from ..machine import nodes
from ..machine.gpu import Gpu
from ..machine.holders import Search
from ..machine.host import Host
from ..machine.kmscon import Kmscon, kmscons, phrase
from .handover import Handover

NAME = "kmscon"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """One step for all units of kmscon that have a GPU of the VM open. Raises HostError."""
    gpus = tuple(one for one in handover.gpus if not one.virtual)
    if gpu is not gpus[0]:
        return
    configured = {service.name.removesuffix(".service") for service in handover.config.services}
    leaving = nodes.nodes_to_close(host, gpus, handover.siblings)
    search = Search(host, leaving)
    found = [
        one for one in kmscons(host)
        if one.unit.removesuffix(".service") not in configured and search.among(one.pids)
    ]  # fmt: skip
    if not found:
        return
    units = tuple(one.unit for one in found)
    detached = any(_draws_elsewhere(host, one, leaving) for one in found)
    when = "as soon as the GPU has left" if detached else "after it"
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"{phrase(found)} has the GPU open: stopped for the VM, with the logins"
        f" on it, and started again {when}",
        do=StopUnits(units, handover.config.timeout_s / 4),
        undo=StartUnits(units, detached),
    )


def _draws_elsewhere(host: Host, one: Kmscon, leaving: tuple[str, ...]) -> bool:
    """Whether it has a card or framebuffer open that stays. Raises HostError."""
    files = (name for pid in one.pids for name in host.open_files(pid))
    drawn = (name for name in files if name.startswith(("/dev/dri/card", "/dev/fb")))
    return any(name[1:] not in leaving for name in drawn)
