"""Checks of the consoles on a GPU: what the kernel does with them, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator

from ...claims.directory import Claims
from ...config import load
from ...domain import Domain
from ...errors import ConfigError, HookError, RefusedError
from ...events.assignment import assignment_of
from ...events.outlook import after_vm
from ...events.prepare import look_ahead
from ...machine import console, gpu, kernel, pci, removal
from ...machine.gpu import Gpu
from ...machine.host import Host
from ...machine.iomem import BOOTFB
from ...machine.pci import VGA
from ...machine.removal import Removed
from ...stages.firmware import bootfb as bootfb_stage
from .finding import (
    FAIL,
    WARN,
    Finding,
    check,
    could_not_check,
    need_recorded,
    passed,
    warning,
)
from .system import NO_VM, System, gpus_among

_VTCONSOLES = "sys/class/vtconsole"
_LOCKDOWN = "sys/kernel/security/lockdown"


@check("GPUs")
def console_removal(system: System) -> Iterator[Finding]:
    """What vfio-pci of this kernel removes itself when it binds each GPU."""
    host = system.host
    removes = not removal.of_kernel(host).never
    addresses = system.gpus()
    if not addresses:
        yield warning("this host has none")
    for address in addresses:
        pci_class = pci.display_class(host, address)
        if pci_class is None:
            continue  # no console is ever on an accelerator
        if not removes:
            text = "this kernel removes none itself; this hook does"
        elif pci_class != VGA:
            text = f"its class is {pci_class:04x}, so this kernel removes none; this hook does"
        else:
            text = "this hook acts before vfio-pci of this kernel removes them for good"
        yield passed(text, of=f"console drivers on {address}")


@check("BOOTFB")
def bootfb(system: System) -> Iterator[Finding]:
    """Whether the firmware's framebuffer reserves memory of a GPU without any driver."""
    host = system.host
    for one in gpu.gpus_among(host, system.gpus()):
        if not one.displays:
            continue
        title = f"BOOTFB in {one.address}"
        ranges = [
            f"{reservation.range} in BAR {reservation.bar}"
            for reservation in one.reservations
            if reservation.name == BOOTFB and not reservation.around
        ]
        if not ranges:
            yield passed("it reserves no memory of this GPU", of=title)
        elif _frees_bootfb(host, one):
            yield passed(f"{ranges[0]}, which vfio-pci of this kernel frees", of=title)
        elif _aperture_frees(host, one):
            yield passed(f"{ranges[0]}, which `bootfb: aperture` frees", of=title)
        else:
            text = f"{ranges[0]}, which this kernel does not free for vfio-pci"
            yield warning(text, "see `bootfb` in the configuration", of=title)


def _frees_bootfb(host: Host, one: Gpu) -> bool:
    rule = removal.of_kernel(host)
    return any(
        rule.of_device(host, one, device, bound=device.driver is not None) is Removed.YES
        for device in one.firmware
        if device.owns_memory
    )


def _aperture_frees(host: Host, one: Gpu) -> bool:
    return any(
        device.owns_memory and not bootfb_stage.why_no_aperture(host, one, device)
        for device in one.firmware
    )


@check("kernel lockdown")
def kernel_lockdown(system: System) -> Iterator[Finding]:
    """Whether the kernel lets us save a firmware console from vfio-pci."""
    host = system.host
    state = host.read(_LOCKDOWN)
    if state is None:
        need_recorded(host, _LOCKDOWN)
    if not kernel.locked_down(host):
        yield passed("the kernel is not locked down")
        return
    mode = (state or "").partition("[")[2].partition("]")[0]
    rule = removal.of_kernel(host)
    if rule.never:
        yield passed(f"{mode}, which is harmless: vfio-pci of this kernel removes no console")
        return
    if not rule.knows_owners:
        yield passed(f"{mode}, which changes nothing: this hook writes no config space here")
        return
    yield warning(
        f"{mode}, so a firmware console that vfio-pci removes cannot be saved",
        "lockdown comes with Secure Boot; see below what comes back, and keep SSH or a serial"
        " console at hand",
    )


@check("console drivers")
def console_drivers(system: System) -> Iterator[Finding]:
    """Whether another console driver is left when the last framebuffer goes."""
    host = system.host
    names = [one.driver for one in console.vtconsoles(host)]
    if not names:
        need_recorded(host, _VTCONSOLES)
        yield passed("there is none, so the kernel shows text on no screen")
    elif names != [console.FBCON]:
        yield passed(f"{' and '.join(names)}; drawing now: {console.current_display(host)}")
        yield from _without_devices(host)
    else:
        yield Finding(
            FAIL if _all_framebuffers_go(system) else WARN,
            "",
            "fbcon is the only one; without any framebuffer, the kernel crashes when it next draws"
            " text, so this hook refuses to take the last one",
            "reboot, and start this VM before any other that takes the boot GPU",
        )


def _without_devices(host: Host) -> Iterator[Finding]:
    """What becomes of the consoles on a kernel without fb devices, if a GPU stays."""
    if console.has_fb_devices(host) or len(console.framebuffers(host)) < 2:
        return
    title = "consoles on the GPU that stays"
    if any(one.static for one in console.vtconsoles(host)):
        when = "they are shown there as soon as the other one has left"
        yield passed(f"this kernel has no /dev/fbN, so {when}", of=title)
        return
    yield warning(
        "this kernel has no /dev/fbN and has lost the console driver of the boot, so while a VM has"
        " the GPU with the consoles no monitor shows them",
        "boot with EFI, where the kernel keeps the dummy console; or keep SSH at hand",
        of=title,
    )


def _all_framebuffers_go(system: System) -> bool:
    """Whether every framebuffer is on a GPU of a VM."""
    taken = {one.address for one in system.assignments() if one.vm}
    leaving = {
        name for one in gpu.gpus_among(system.host, tuple(taken)) for name in one.framebuffers
    }
    return leaving >= {fb.name for fb in console.framebuffers(system.host)}


@check("console after a VM")
def console_after(system: System) -> Iterator[Finding]:
    """What release can restore on this kernel, for each VM with a GPU."""
    with_gpus = [one for one in system.domains if system.gpus_of(one)]
    for vm in with_gpus or [system.taker(address) for address in system.gpus()]:
        yield _outlook(system.host, vm)


def _outlook(host: Host, vm: Domain) -> Finding:
    real = vm.uuid != NO_VM
    addresses = tuple(hostdev.address for hostdev in vm.hostdevs)
    # No console is ever on an accelerator, so its driver is what comes back.
    what = "console" if pci.any_display(host, gpus_among(host, addresses)) else "driver"
    title = f"{what} after {vm.name}" if real else f"{what} on {vm.name}"
    holder = _holder_now(host, vm)
    if holder:
        return passed(f"{holder}; see `vfio-console-hook status` for what comes back", of=title)
    try:
        own = vm.uuid if real else ""
        settings = load.configuration(host, vm.name, own, by_hand=vm.by_hand)
        if not settings.enabled:
            return passed("`enabled: false`, so this hook leaves its GPUs alone", of=title)
        handover, steps = look_ahead(host, assignment_of(host, vm), settings)
    except ConfigError:
        return warning("not checked, because its configuration has mistakes", of=title)
    except RefusedError as error:
        start = "the VM would not start" if real else "no VM could start with it"
        start = "it could not be taken" if vm.by_hand else start
        return Finding(FAIL if real else WARN, title, f"{start}: {error.text}", error.hint)
    except HookError as error:
        return could_not_check(title, error)
    text = after_vm(host, handover, steps)
    if any(step.loses for step in steps):
        return warning(text, "keep SSH or a serial console at hand when you start it", of=title)
    return passed(text, of=title)


def _holder_now(host: Host, vm: Domain) -> str:
    """Which VM or person has GPUs of this VM now, as a clause; "" if none has."""
    boot = host.boot_id
    mine = set(gpus_among(host, tuple(hostdev.address for hostdev in vm.hostdevs)))
    for claim in Claims(host).readable():
        if claim.boot == boot and (held := " and ".join(sorted(mine & set(claim.gpus)))):
            return f"{held} was taken by hand" if claim.by_hand else f"{claim.name} has {held} now"
    return ""
