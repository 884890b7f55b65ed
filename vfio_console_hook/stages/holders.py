"""The wait for those who use the GPUs: a step of the stage native, for all GPUs of a VM at once."""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.holders import AwaitClosed
from ..claims.step import Step
from ..machine import kernel, nodes
from ..machine.gpu import Gpu
from ..machine.host import Host
from .handover import Handover

_MAX_TOLD = 6


def holders_step(host: Host, gpu: Gpu, handover: Handover, stage: str) -> Iterator[Step]:
    """The wait, on behalf of the first GPU: one look at all processes is for all of them."""
    gpus = tuple(one for one in handover.gpus if not one.virtual)
    if gpu is not gpus[0]:
        return
    blocking = nodes.nodes_to_close(host, gpus, handover.siblings)
    if blocking:
        yield Step(
            stage=stage,
            gpu=gpu.address,
            why=f"{_told(blocking)} must be closed before"
            f" {'the GPUs leave' if gpus[1:] else 'the GPU leaves'}",
            # Linux 5.x frees the framebuffer below an open /dev/fbN (fixed in
            # 5.17.9, "fbdev: efifb: Cleanup fb_info in .fb_destroy rather than
            # .remove"); no symbol shows it, so there what cannot be seen counts.
            do=await_closed(gpus, blocking, handover, strict=kernel.release(host) < (6, 0)),
            undo=None,
        )


def await_closed(
    gpus: tuple[Gpu, ...], blocking: tuple[str, ...], handover: Handover, *, strict: bool
) -> AwaitClosed:
    """The wait by the VM's configuration; without nodes for those that there are then."""
    policy = handover.config.holders
    addresses = [one.address for one in gpus]
    return AwaitClosed(
        gpu=addresses[0],
        nodes=blocking,
        wait_s=policy.wait_s,
        strict=strict,
        terminate=policy.terminate,
        grace_s=policy.grace_s,
        beside=tuple(addresses[1:]),
    )


def _told(blocking: tuple[str, ...]) -> str:
    shown = [f"/{node}" for node in blocking]
    if len(shown) > _MAX_TOLD:
        shown = [*shown[:_MAX_TOLD], f"{len(shown) - _MAX_TOLD} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
