"""The GPU's own driver, and everything that forbids to hand the GPU over.

A native driver is taken off after the other stages, by native.py or by libvirt, and
the kernel does not come back as long as the driver's remove does not. So this stage
refuses what is known to hang or to break, and waits until nobody uses the GPU. It
runs before any change of the machine but stopped services, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..errors import RefusedError
from ..machine import console, firmware, kernel
from ..machine.gpu import Gpu, is_vfio
from ..machine.host import Host
from .handover import Handover
from .holders import holders_step

NAME = "preflight"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """A wait for those who use the GPU, and what the kernel takes along with it.

    Raises RefusedError when libvirt could not detach it, or must not.
    """
    _refuse_unmanaged(gpu, handover)
    _refuse_never(host, gpu, handover)
    _refuse_functions(host, gpu)
    _refuse_unknown_reservations(gpu)
    _refuse_last_driver(host, gpu, handover)
    yield from holders_step(host, gpu, handover, NAME)


def _refuse_unmanaged(gpu: Gpu, handover: Handover) -> None:
    if gpu.address not in handover.unmanaged or gpu.vfio:
        return
    what = f"is bound to {gpu.driver}" if gpu.driver else "has no driver"
    raise RefusedError(
        f"{gpu.address} {what} and is managed='no', so libvirt will not give it to vfio-pci",
        hint="write managed='yes' in the <hostdev>, or bind it to vfio-pci yourself",
    )


def _refuse_never(host: Host, gpu: Gpu, handover: Handover) -> None:
    """Refuse a driver that must never be taken off this GPU."""
    if not gpu.native:
        return
    from ..machine import drivers  # only for a GPU that a driver of the host drives

    driver = drivers.driver_named(gpu.driver)
    away = f"keep {driver.name} off it from boot on, with vfio-pci.ids= or driver_override"
    if driver.remove and kernel.has_symbol(host, driver.remove) is False:
        raise RefusedError(
            f"{gpu.address} is driven by {driver.name}, which cannot be unbound in this kernel",
            hint=away,
        )
    if driver.hangs_apu and handover.config.apu != "allow" and drivers.is_apu(host, gpu.address):
        raise RefusedError(
            f"{gpu.address} is part of an AMD processor: to take {driver.name} off it may hang"
            " the host, or power it off",
            hint=f"{away}, or set `apu: allow` to take the risk",
        )


def _refuse_functions(host: Host, gpu: Gpu) -> None:
    """Refuse a GPU with virtual functions on vfio-pci: they go with its driver.

    Removing one waits until its VM has ended (Linux pci/iov.c, sriov_disable;
    vfio_main.c, vfio_unregister_group_dev).
    """
    device = f"sys/bus/pci/devices/{gpu.address}"
    for name in host.list(device) if gpu.native else ():
        function = host.link_name(f"{device}/{name}") if name.startswith("virtfn") else None
        if function and is_vfio(host, function):
            raise RefusedError(
                f"{gpu.address} has the virtual function {function} on vfio-pci, and to take"
                f" {gpu.driver} off it would wait for the VM that uses that",
                hint=f"end that VM and `echo 0 > /{device}/sriov_numvfs`, or give the VM a"
                " virtual function instead",
            )


def _refuse_unknown_reservations(gpu: Gpu) -> None:
    if gpu.native:
        return  # its driver's own reservations go with it; start looks again
    for reservation in gpu.foreign_reservations:
        if reservation.name not in firmware.RESERVATION_NAMES:
            raise RefusedError(
                f"{reservation.name} reserves {reservation.range} in BAR {reservation.bar} of"
                f" {gpu.address},"
                " and this program does not know how to take it away",
                hint="find out what it is in /proc/iomem and remove it before the VM starts",
            )


def _refuse_last_driver(host: Host, gpu: Gpu, handover: Handover) -> None:
    """Refuse when fbcon would be the only console driver and lose its last framebuffer.

    It then keeps the consoles without a framebuffer, and the next text is a NULL
    dereference (Linux fbcon.c, fbcon_cursor; seen on 6.1 and 7.3).
    """
    going = {name for one in handover.gpus for name in one.framebuffers}
    if not gpu.framebuffers or any(fb.name not in going for fb in handover.framebuffers(host)):
        return
    # vfio-pci takes vgacon off the boot VGA, and puts the dummy console in its
    # place only if vgacon is bound then (vgaarb.c, vga_remove_vgacon).
    text_goes = any(one.boot_vga and handover.kernel_removes_from(one) for one in handover.gpus)
    drivers = [
        one.driver
        for one in console.vtconsoles(host)
        if one.bound or one.driver != console.VGACON or not text_goes
    ]
    if drivers == [console.FBCON]:
        raise RefusedError(
            f"{gpu.address} has the host's last framebuffer, and fbcon would be the only console"
            " driver left: the kernel would crash at the next text it draws",
            hint="reboot, and start this VM before any other that takes the boot GPU",
        )
