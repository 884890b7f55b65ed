"""The GPU's own driver taken off, and what must come back with it.

libvirt unbinds the driver of a managed device itself, without a deadline and with
its locks held (virpci.c, virPCIDeviceUnbind). Drivers whose remove can hang are
taken off here instead, in a process that is watched. The GPU is left without a
driver: what prepare bound to vfio-pci, libvirt would not give back.

While the VM runs, the person loses what the driver shows and computes; with
nvidia's modules unloaded, that is all that they do. On release libvirt probes, and
what it does not look at is looked at here, before anything else is given back.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..errors import RefusedError
from ..machine import kernel
from ..machine.gpu import Gpu
from ..machine.host import Host
from . import fbcon
from .handover import Handover

NAME = "native"
_PCI = "sys/bus/pci/devices"

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from ..actions import native as actions
    from ..machine.drivers import Driver


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """What takes the driver off, if libvirt had better not, and what sees to its return."""
    if not gpu.native:
        return
    # Only for a GPU that a driver of the host drives.
    from ..machine import drivers

    driver = drivers.driver_named(gpu.driver)
    if driver.unload:
        yield from _off_modules(host, gpu, driver, handover)
    elif driver.may_hang or driver.while_open != drivers.UNPLUGS:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{driver.name} may hang while it lets go; here that has a deadline, in libvirt"
            " it has none"
            if driver.may_hang
            else f"{driver.name} must not be open while it lets go; here that is looked at just"
            " before",
            do=_unbind(gpu, driver, handover),
            undo=_return(host, gpu),
        )
    else:
        who = "the handover to vfio-pci" if handover.bind_vfio else "libvirt"
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{who} takes {driver.name} off it, release sees to it that it comes back",
            do=None,
            undo=_return(host, gpu),
        )


def _unbind(gpu: Gpu, driver: Driver, handover: Handover) -> actions.UnbindNative:
    from ..actions.native import UnbindNative
    from ..machine import drivers

    return UnbindNative(
        gpu.address,
        driver.name,
        handover.config.holders.wait_s,
        driver.while_open != drivers.UNPLUGS,
    )


def _return(host: Host, gpu: Gpu, *, reserved: bool = False) -> actions.ReturnNative:
    from ..actions.native import ReturnNative, has_node

    return ReturnNative(
        gpu.address,
        gpu.driver or "",
        has_node(host, gpu.address, "drm", "card"),
        has_node(host, gpu.address, "graphics", "fb"),
        reserved,
    )


def _off_modules(host: Host, gpu: Gpu, driver: Driver, handover: Handover) -> Iterator[Step]:
    """A driver that is unloaded rather than unbound, unless it has a GPU that stays.

    Every GPU is reserved before its modules go, and they go with the last of them.
    Raises RefusedError.
    """
    from ..actions.modules import LoadModules, Reserve
    from ..machine import modules

    going = tuple(one for one in handover.gpus if one.driver == driver.name and not one.virtual)
    staying = _others_of(host, driver, going)
    order = modules.unload_order(host, _module_of(host, gpu, driver))
    reserved = _reservable(host, (gpu,))
    alone = bool(staying) or not order
    if alone:
        _refuse_shown(host, gpu, driver)
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"{driver.name} must not get it back before libvirt takes it"
        if reserved
        else f"{driver.name} must come back to it, its driver_override is the administrator's",
        do=Reserve(gpu.address) if reserved else None,
        undo=_return(host, gpu, reserved=bool(reserved)),
    )
    if alone:
        why = f"drives {staying[0]} too, which stays" if staying else "is no module"
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{driver.name} {why}, so it is only taken off this GPU; it would hang if anything"
            " had it open",
            do=_unbind(gpu, driver, handover),
            # Another VM may have taken what stays now, and unloaded the modules.
            undo=LoadModules((gpu.address,), reserved, order[::-1]),
        )
    elif gpu is going[0]:
        yield from _unload(host, going, order, handover)


def _refuse_shown(host: Host, gpu: Gpu, driver: Driver) -> None:
    from ..actions.native import has_node

    if has_node(host, gpu.address, "drm", "card") and (
        kernel.has_symbol(host, driver.remove_shown) is False
    ):
        raise RefusedError(
            f"this release of {driver.name} hangs when it is taken off {gpu.address} alone, which"
            " has a DRM node",
            hint=f"let no other GPU stay on {driver.name}, or load its DRM module with modeset=0",
        )


def _unload(
    host: Host, going: tuple[Gpu, ...], order: tuple[str, ...], handover: Handover
) -> Iterator[Step]:
    from ..actions.consoles import ShowConsoles
    from ..actions.modules import FreeFramebuffers, LoadModules, UnloadModules

    framebuffers = tuple(name for one in going for name in one.framebuffers)
    if framebuffers and not _consoles_move(host, handover):
        yield Step(
            stage=NAME,
            gpu=going[0].address,
            # nvidia-drm with fbdev=1, the default since 570; people found its module in
            # use for as long as fbcon was bound.
            why=f"{order[0]} is in use while a console is on {' or '.join(framebuffers)}",
            do=FreeFramebuffers(framebuffers),
            undo=ShowConsoles(10),
        )
    yield Step(
        stage=NAME,
        gpu=going[0].address,
        why=f"an unbind of {going[0].driver} waits for ever while anything uses it; unloading it"
        " fails at once instead",
        do=UnloadModules(tuple(one.address for one in going), order),
        undo=LoadModules(
            tuple(one.address for one in going), _reservable(host, going), order[::-1]
        ),
    )


def _consoles_move(host: Host, handover: Handover) -> bool:
    """Whether the stage fbcon has moved the consoles away by then."""
    config = handover.config
    wanted = fbcon.NAME in config.stages and config.keep_console != "never"
    return wanted and bool(fbcon.staying_framebuffers(host, handover))


def _others_of(host: Host, driver: Driver, going: tuple[Gpu, ...]) -> list[str]:
    """The devices that have the driver and stay on the host."""
    mine = {one.address for one in going}
    return [
        address
        for address in host.list(_PCI)
        if address not in mine and host.link_name(f"{_PCI}/{address}/driver") == driver.name
    ]


def _module_of(host: Host, gpu: Gpu, driver: Driver) -> str:
    return host.link_name(f"{_PCI}/{gpu.address}/driver/module") or driver.name


def _reservable(host: Host, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """Those whose driver_override is not the administrator's own.

    A vfio-pci on a GPU that another driver has is a left-over, and would keep the
    driver from coming back; libvirt clears it too.
    """
    from ..actions.native import VFIO, override_of

    return tuple(one.address for one in gpus if override_of(host, one.address) in ("", VFIO))
