"""The GPU's own driver, and everything that forbids to hand the GPU over.

libvirt takes a native driver off a managed device itself, after prepare. The
write blocks for as long as the driver's remove does, with locks of libvirt held,
so this stage refuses what is known to hang or to break, and waits until nobody
uses the GPU. It runs before any other stage and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import kernel
from ..actions import AwaitClosed
from ..errors import RefusedError
from ..firmware import CLAIM_NAMES
from ..gpu import Gpu, blocking_nodes
from ..host import Host
from ..step import Step
from . import Leaving

NAME = "native"


def plan(host: Host, gpu: Gpu, leaving: Leaving) -> Iterator[Step]:
    """A wait for those who use the GPU.

    Raises RefusedError when libvirt could not detach it, or must not.
    """
    _refuse_unmanaged(gpu, leaving)
    _refuse_no_remove(host, gpu)
    _refuse_unknown_claims(gpu)
    nodes = blocking_nodes(gpu)
    if nodes:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{' and '.join('/' + node for node in nodes)} must be closed before it leaves",
            # Linux 5.x frees the framebuffer below an open /dev/fbN (fixed in
            # 5.17.9, "fbdev: efifb: Cleanup fb_info in .fb_destroy rather than
            # .remove"); no symbol shows it, so there what cannot be seen counts.
            do=AwaitClosed(
                gpu.address, nodes, leaving.config.holders.wait_s, kernel.release(host) < (6, 0)
            ),
            undo=None,
        )


def _refuse_unmanaged(gpu: Gpu, leaving: Leaving) -> None:
    if gpu.address not in leaving.unmanaged or gpu.vfio:
        return
    what = f"is bound to {gpu.driver}" if gpu.driver else "has no driver"
    raise RefusedError(
        f"{gpu.address} {what} and is managed='no', so libvirt will not give it to vfio-pci",
        hint="write managed='yes' in the <hostdev>, or bind it to vfio-pci yourself",
    )


def _refuse_no_remove(host: Host, gpu: Gpu) -> None:
    # radeon lost its .remove in v6.12-or-before (radeon_drv.c): the driver link
    # goes, but card, interrupt and framebuffer stay behind on freed memory.
    if gpu.driver == "radeon" and kernel.has_symbol(host, "radeon_pci_remove") is False:
        raise RefusedError(
            f"{gpu.address} is driven by radeon, which cannot be unbound in this kernel",
            hint="keep radeon off it from boot on, with vfio-pci.ids= or driver_override",
        )


def _refuse_unknown_claims(gpu: Gpu) -> None:
    if gpu.native:
        return  # its driver's own claims go with it; start looks again
    for claim in gpu.foreign_claims:
        if claim.name not in CLAIM_NAMES:
            raise RefusedError(
                f"{claim.name} claims {claim.range} in BAR {claim.bar} of {gpu.address},"
                " and this program does not know how to take it away",
                hint="find out what it is in /proc/iomem and remove it before the VM starts",
            )
