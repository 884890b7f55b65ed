"""The GPU's own driver, and everything that forbids to hand the GPU over.

libvirt takes a native driver off a managed device itself, after prepare. The
write blocks for as long as the driver's remove does, with locks of libvirt held,
so this stage refuses what is known to hang or to break, and waits until nobody
uses the GPU. It runs before any other stage and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import console, firmware, kernel, memory
from ..actions import AwaitClosed
from ..errors import RefusedError
from ..gpu import Gpu, blocking_nodes
from ..host import Host
from ..step import Step
from . import Leaving

NAME = "native"


def plan(host: Host, gpu: Gpu, leaving: Leaving) -> Iterator[Step]:
    """A wait for those who use the GPU, and what the kernel takes along with it.

    Raises RefusedError when libvirt could not detach it, or must not.
    """
    _refuse_unmanaged(gpu, leaving)
    _refuse_no_remove(host, gpu)
    _refuse_unknown_claims(gpu)
    _refuse_last_driver(host, gpu, leaving)
    yield from _others_firmware(host, gpu, leaving)
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
        if claim.name not in firmware.CLAIM_NAMES:
            raise RefusedError(
                f"{claim.name} claims {claim.range} in BAR {claim.bar} of {gpu.address},"
                " and this program does not know how to take it away",
                hint="find out what it is in /proc/iomem and remove it before the VM starts",
            )


def _refuse_last_driver(host: Host, gpu: Gpu, leaving: Leaving) -> None:
    """Refuse when fbcon would be the only console driver and lose its last framebuffer.

    It then keeps the consoles without a framebuffer, and the next text is a NULL
    dereference (Linux fbcon.c, fbcon_cursor; seen on 6.1 and 7.3).
    """
    going = {name for one in leaving.gpus for name in one.framebuffers}
    if not gpu.framebuffers or any(fb.name not in going for fb in console.framebuffers(host)):
        return
    # vfio-pci takes vgacon off the boot VGA, and puts the dummy console in its
    # place only if vgacon is bound then (vgaarb.c, vga_remove_vgacon).
    text_goes = any(one.boot_vga and leaving.kernel_removes_from(one) for one in leaving.gpus)
    left = [
        one.driver
        for one in console.vtconsoles(host)
        if one.bound or one.driver != console.VGACON or not text_goes
    ]
    if left == [console.FBCON]:
        raise RefusedError(
            f"{gpu.address} has the host's last framebuffer, and fbcon would be the only console"
            " driver left: the kernel would crash at the next text it draws",
            hint="reboot, and start this VM before any other that takes the boot GPU",
        )


def _others_firmware(host: Host, gpu: Gpu, leaving: Leaving) -> Iterator[Step]:
    """A word on firmware consoles of other GPUs that vfio-pci removes when it takes this one.

    The kernel cannot tell whose a firmware device without a parent is. Linux 6.0 to
    6.8 then remove it with a GPU whose ROM is shadowed, later ones with any
    (drivers/firmware/sysfb.c, sysfb_disable).
    """
    if gpu.vfio or not leaving.kernel_removes_from(gpu):
        return
    if kernel.release(host) < (6, 9) and not memory.rom_shadowed(host, gpu.address):
        return
    ours = {device.name for one in leaving.gpus for device in one.firmware}
    for name in firmware.devices(host):
        link = f"sys/bus/platform/devices/{name}"
        if name in ours or not host.link_name(f"{link}/driver") or console.pci_ancestor(host, link):
            continue
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"vfio-pci of this kernel removes {name} too, which is not on this GPU",
            do=None,
            undo=None,
            loses=f"the console of another GPU will not come back before a reboot: vfio-pci of"
            f" this kernel removes {name} when it takes {gpu.address}",
        )
