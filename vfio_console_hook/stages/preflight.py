"""Refusing what would hang or break, and waiting until no process uses the GPU.

This stage is for all drivers of all releases. The native driver is unbound after the other
stages, by native.py or by libvirt, and a remove that blocks in the kernel cannot be ended. So
this stage refuses what is known to block. It runs before any change but stopped services. The
person loses nothing by it but what the configuration lets it end: processes that have the GPU
open, and sessions. Managers of users start again if they were for more than the desktop.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..actions.holders import AwaitClosed
from ..claims.step import Step
from ..config.settings import Holders
from ..errors import RefusedError
from ..machine import console, firmware, kernel, nodes, pci
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.pci import is_vfio
from . import fbcon
from .handover import Handover

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from ..actions.user_managers import StartManagers

NAME = "preflight"
_MAX_LISTED = 6
# Longer than logind keeps a user's units after the last session (UserStopDelaySec= is 10 s).
_AFTER_DESKTOP_S = 15.0
# KWin took 1.8 s to close a card, on an emulated machine.
_CLOSES_WITHIN_S = 5.0


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The wait for the processes that use the GPUs, on behalf of the VM's first GPU.

    Raises RefusedError when the GPU cannot be handed over, or must not be.
    """
    _refuse_unsafe_driver(host, gpu, handover)
    _refuse_functions(host, gpu)
    _refuse_mediated(host, gpu)
    _refuse_unknown_reservations(gpu)
    _refuse_last_driver(host, gpu, handover)
    gpus = tuple(one for one in handover.gpus if not one.virtual)
    if gpu is gpus[0]:  # one look at all processes is enough for all GPUs
        yield from _ask_compositors(host, gpus, handover)
        yield from _wait_for_holders(host, gpus, handover)


def _refuse_unsafe_driver(host: Host, gpu: Gpu, handover: Handover) -> None:
    """Refuse a driver that cannot be unbound from this GPU without harm."""
    if not gpu.native:
        return
    from ..machine import drivers  # takes 1 ms to load

    driver = drivers.driver_named(gpu.driver)
    at_boot = f"keep {driver.name} off it from boot on, with vfio-pci.ids= or driver_override"
    if driver.remove and kernel.has_symbol(host, driver.remove) is False:
        raise RefusedError(
            f"{gpu.address} is driven by {driver.name}, which cannot be unbound in this kernel",
            hint=at_boot,
        )
    if driver.hangs_apu and handover.config.apu != "allow" and drivers.is_apu(host, gpu.address):
        raise RefusedError(
            f"{gpu.address} is part of an AMD processor: unbinding {driver.name} from it may hang"
            " the host, or power it off",
            hint=f"{at_boot}, or set `apu: allow` to take the risk",
        )


def _refuse_functions(host: Host, gpu: Gpu) -> None:
    """Refuse a GPU that has virtual functions.

    A driver that removes them with itself (xe_pci_remove) does not bring them back, and blocks
    until the VM that uses one has ended (Linux pci/iov.c, sriov_disable; vfio_main.c,
    vfio_unregister_group_dev). Beside those that one leaves there, as nvidia does, vfio-pci does
    not bind (vfio_pci_core.c, vfio_pci_core_register_device).
    """
    device = f"sys/bus/pci/devices/{gpu.address}"
    links = [name for name in host.list(device) if name.startswith("virtfn")] if gpu.native else []
    functions = [function for name in links if (function := host.link_name(f"{device}/{name}"))]
    used = next((one for one in functions if is_vfio(host, one)), None)
    if used:
        raise RefusedError(
            f"{gpu.address} has the virtual function {used} on vfio-pci, and unbinding"
            f" {gpu.driver} would block until the VM that uses {used} has ended",
            hint=f"shut that VM down and `echo 0 > /{device}/sriov_numvfs`, or assign a"
            " virtual function to this VM instead",
        )
    if functions:
        raise RefusedError(
            f"{gpu.address} has virtual functions, such as {functions[0]}, and cannot go to a VM"
            " beside them",
            hint=f"`echo 0 > /{device}/sriov_numvfs`, or assign a virtual function to this VM"
            " instead",
        )


def _refuse_mediated(host: Host, gpu: Gpu) -> None:
    """Refuse a GPU with mediated devices: Intel's GVT-g, and NVIDIA's vGPU.

    The unbind removes them, and blocks until the VM that uses one has ended (Linux mdev_core.c,
    mdev_unregister_parent; vfio_main.c, vfio_unregister_group_dev).
    """
    devices = "sys/bus/mdev/devices"
    for name in host.list(devices) if gpu.native else ():
        if pci.nearest(host.readlink(f"{devices}/{name}") or "") == gpu.address:
            raise RefusedError(
                f"{gpu.address} has the mediated device {name}, and unbinding {gpu.driver} would"
                " block until the VM that uses it has ended",
                hint=f"shut that VM down and `echo 1 > /{devices}/{name}/remove`",
            )


def _refuse_unknown_reservations(gpu: Gpu) -> None:
    if gpu.native:
        return  # they are its driver's and go with it; the event start looks again
    for reservation in gpu.foreign_reservations:
        if reservation.name not in firmware.RESERVATION_NAMES:
            raise RefusedError(
                f"{reservation.name} reserves {reservation.range} in BAR {reservation.bar} of"
                f" {gpu.address}, and this hook cannot free it",
                hint=f"find out what reserves {reservation.name} in /proc/iomem, and unbind or"
                " unload it before the VM starts",
            )


def _refuse_last_driver(host: Host, gpu: Gpu, handover: Handover) -> None:
    """Refuse when fbcon would be the only console driver and lose its last framebuffer.

    It then keeps the consoles without a framebuffer, and the next text is a NULL
    dereference (Linux fbcon.c, fbcon_cursor; seen on 6.1 and 7.3).
    """
    if not gpu.framebuffers:
        return
    if fbcon.possible_targets(host, handover):
        return
    staying = handover.staying_framebuffers(host)
    # vfio-pci removes vgacon from the boot VGA device, and registers the dummy console
    # only if vgacon is bound then (vgaarb.c, vga_remove_vgacon).
    text_goes = handover.text_goes(host)
    left = [
        one.driver
        for one in handover.vtconsoles
        if one.bound or one.driver != console.VGACON or not text_goes
    ]
    if left == [console.FBCON] and staying:
        from . import fbcon_nodeless  # takes 1.5 ms to load, and most kernels have fb devices

        if not fbcon_nodeless.shown_elsewhere(host, gpu, staying):
            raise RefusedError(
                f"the host's consoles are on {gpu.address}, fbcon is their only driver, and there"
                " is no /dev/fbN to move them through: the kernel would crash at the next text",
                hint="reboot, and start this VM before any other that takes the boot GPU",
            )
        return
    if left == [console.FBCON]:
        raise RefusedError(
            f"{gpu.address} has the host's last framebuffer, and fbcon would be the only console"
            " driver left: the kernel would crash at the next text it draws",
            hint="reboot, and start this VM before any other that takes the boot GPU",
        )


def _ask_compositors(host: Host, gpus: tuple[Gpu, ...], handover: Handover) -> Iterator[Step]:
    """What lets a compositor on another GPU close the cards, if it is one that obeys."""
    leaving = {one.address for one in gpus}
    # Of nvidia it has /dev/nvidia-modeset open too, which users report to stay open.
    asked = [one for one in gpus if one.native and one.driver != "nvidia"]
    shown = [(one, card) for one in asked for card in one.cards if card.startswith("card")]
    if not shown or leaving.issuperset(pci.displays(host)) or _stops_desktop(host, handover):
        return
    # 3 ms, and a look at all processes: only for hosts with another GPU.
    from ..actions import cards, compositors

    for one, card in shown:
        commands = compositors.that_drop(host, card, leaving)
        if commands:
            yield Step(
                stage=NAME,
                gpu=one.address,
                why=f"{' and '.join(commands)}, which has another GPU too, closes {card} after a"
                " remove event, and opens it again after an add event",
                do=cards.DropCard(one.address, card, commands, _CLOSES_WITHIN_S),
                undo=cards.ReturnCard(one.address, commands),
            )


def _wait_for_holders(host: Host, gpus: tuple[Gpu, ...], handover: Handover) -> Iterator[Step]:
    blocking = nodes.nodes_to_close(host, gpus, handover.siblings)
    if blocking:
        leave = "the GPUs leave" if gpus[1:] else "the GPU leaves"
        yield Step(
            stage=NAME,
            gpu=gpus[0].address,
            why=f"{_listed(blocking)} must be closed before {leave}",
            # Linux 5.x frees the framebuffer while /dev/fbN is still open (fixed in 5.17.9,
            # "fbdev: efifb: Cleanup fb_info in .fb_destroy rather than .remove"). No symbol
            # shows the fix, so there a process that cannot be inspected counts.
            do=await_closed(host, gpus, blocking, handover, strict=kernel.release(host) < (6, 0)),
            undo=_start_managers(host, handover),
        )


def _start_managers(host: Host, handover: Handover) -> StartManagers | None:
    """What starts the managers of users again that are stopped if they have the GPU open."""
    if not handover.config.holders.terminate and not _stops_desktop(host, handover):
        return None
    from ..actions import user_managers  # only for VMs that may end a session

    return user_managers.to_start_again(host)


def await_closed(
    host: Host,
    gpus: tuple[Gpu, ...],
    blocking: tuple[str, ...],
    handover: Handover,
    *,
    strict: bool,
) -> AwaitClosed:
    """The wait until these nodes are closed, by the VM's configuration.

    Without nodes it is for those that exist when the wait begins. strict: whether a process
    that cannot be inspected counts.
    """
    policy = handover.config.holders
    wait_s = policy.wait_s
    desktop = _stops_desktop(host, handover)
    if desktop and wait_s == Holders().wait_s:
        wait_s = min(_AFTER_DESKTOP_S, handover.config.timeout_s / 4)
    addresses = [one.address for one in gpus]
    return AwaitClosed(
        gpu=addresses[0],
        nodes=blocking,
        wait_s=wait_s,
        strict=strict,
        terminate=policy.terminate,
        grace_s=policy.grace_s,
        beside=tuple(addresses[1:]),
        file=handover.file,
        desktop=desktop,
    )


def _stops_desktop(host: Host, handover: Handover) -> bool:
    """Whether a display manager is among the services that are stopped first."""
    names = [service.name for service in handover.config.services]
    if not names:
        return False
    from ..machine import systemd  # only for VMs with services

    managers = (systemd.DISPLAY_MANAGER, *systemd.display_managers(host))
    return any(f"{name.removesuffix('.service')}.service" in managers for name in names)


def _listed(blocking: tuple[str, ...]) -> str:
    shown = [f"/{node}" for node in blocking]
    if len(shown) > _MAX_LISTED:
        shown = [*shown[:_MAX_LISTED], f"{len(shown) - _MAX_LISTED} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
