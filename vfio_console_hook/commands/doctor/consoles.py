"""What the running kernel does with the consoles on a GPU, and what of it comes back."""

from __future__ import annotations

from collections.abc import Iterator

from ... import domain
from ...claims.directory import Claims
from ...config import load
from ...domain import Domain
from ...errors import ConfigError, HookError, RefusedError
from ...events.assignment import assignment_of
from ...events.outlook import outlook
from ...events.prepare import look_ahead
from ...machine import console, gpu, kernel
from ...machine.firmware import BOOTFB
from ...machine.gpu import VGA, Gpu
from ...machine.host import Host
from .finding import (
    FAIL,
    NOT_RECORDED,
    PASS,
    WARN,
    Check,
    Finding,
    Given,
    Subject,
    gpus_among,
    unrecorded,
)

_VTCONSOLES = "sys/class/vtconsole"
_LOCKDOWN = "sys/kernel/security/lockdown"
# Stands for the VM of a GPU that no VM has.
_NOBODY = "00000000-0000-0000-0000-000000000000"


def console_removal(subject: Subject) -> Iterator[Finding]:
    """What vfio-pci of this kernel removes by itself when it takes each GPU."""
    host = subject.host
    removes = kernel.removes_consoles(host)
    addresses = _addresses(subject)
    if not addresses:
        yield Finding(WARN, "GPUs", "this host has none")
    for address in addresses:
        pci_class = gpu.display_class(host, address) or 0
        title = f"console drivers on {address}"
        if not removes:
            text = "this kernel removes none by itself; this hook does"
        elif pci_class != VGA:
            text = f"its class is {pci_class:04x}, so this kernel removes none; this hook does"
        else:
            text = "vfio-pci of this kernel removes them for good; this hook comes before it"
        yield Finding(PASS, title, text)


def _addresses(subject: Subject) -> tuple[str, ...]:
    """The GPUs to look at, each once."""
    return tuple(dict.fromkeys(given.address for given in subject.given()))


def bootfb(subject: Subject) -> Iterator[Finding]:
    """Whether the firmware's framebuffer holds memory of a GPU beyond any driver."""
    host = subject.host
    for one in gpu.gpus_among(host, _addresses(subject)):
        title = f"BOOTFB in {one.address}"
        reservation = next(
            (reservation for reservation in one.reservations if reservation.name == BOOTFB), None
        )
        if reservation is None:
            yield Finding(PASS, title, "none")
            continue
        where = f"{reservation.range} in BAR {reservation.bar}"
        if _frees_bootfb(host, one):
            yield Finding(PASS, title, f"{where}, which vfio-pci of this kernel frees")
        else:
            text = f"{where}, which this kernel does not free for vfio-pci"
            yield Finding(WARN, title, text, "`bootfb` in the configuration says what to do then")


def _frees_bootfb(host: Host, one: Gpu) -> bool:
    seen = any(device.driver or device.parent for device in one.firmware if device.owns_memory)
    return one.native or (seen and one.pci_class == VGA and kernel.removes_consoles(host))


def kernel_lockdown(subject: Subject) -> Iterator[Finding]:
    """Whether the kernel lets us save a firmware console from vfio-pci (stages/sysfb.py)."""
    host = subject.host
    state = host.read(_LOCKDOWN)
    if state is None and unrecorded(host, _LOCKDOWN):
        yield Finding(WARN, "kernel lockdown", NOT_RECORDED)
        return
    if not kernel.locked_down(host):
        yield Finding(PASS, "kernel lockdown", "none")
        return
    mode = (state or "").partition("[")[2].partition("]")[0]
    if not kernel.removes_consoles(host):
        text = f"{mode}, which does no harm: vfio-pci of this kernel removes no console"
        yield Finding(PASS, "kernel lockdown", text)
    else:
        text = f"{mode}: a firmware console that vfio-pci removes cannot be saved"
        advice = (
            "it comes with Secure Boot; read below what comes back, and have SSH or a serial"
            " console at hand"
        )
        yield Finding(WARN, "kernel lockdown", text, advice)


def console_drivers(subject: Subject) -> Iterator[Finding]:
    """Whether another console driver is left when the last framebuffer goes (stages/native.py)."""
    host = subject.host
    found = console.vtconsoles(host)
    names = " and ".join(one.driver for one in found)
    if not found:
        text = NOT_RECORDED if unrecorded(host, _VTCONSOLES) else "none: no text on any screen"
        yield Finding(WARN if text == NOT_RECORDED else PASS, "console drivers", text)
    elif [one.driver for one in found] != [console.FBCON]:
        yield Finding(
            PASS, "console drivers", f"{names}; drawing now: {console.current_display(host)}"
        )
    else:
        text = (
            "fbcon is the only one: when the last framebuffer goes, the kernel crashes at the next"
            " text it draws, so this hook refuses to take that"
        )
        advice = "reboot, and start the VM before any other that takes the boot GPU"
        yield Finding(_level_of_last(host, subject), "console drivers", text, advice)


def _level_of_last(host: Host, subject: Subject) -> str:
    """FAIL when every framebuffer goes to a VM."""
    mine = {given.address for given in subject.given() if given.domain}
    framebuffers = {name for one in gpu.gpus_among(host, tuple(mine)) for name in one.framebuffers}
    return FAIL if framebuffers >= {fb.name for fb in console.framebuffers(host)} else WARN


def console_after(subject: Subject) -> Iterator[Finding]:
    """What release can give back on this kernel, for each VM with a GPU."""
    host = subject.host
    with_gpus = [one for one in subject.domains if subject.gpus_of(one)]
    for one in with_gpus or [_taker(given) for given in subject.given()]:
        yield _judge_return(host, one, bad=FAIL if with_gpus else WARN)


def _taker(given: Given) -> Domain:
    """A VM that would get this GPU."""
    hostdev = domain.Hostdev(given.address, True, "hostdev", 0)
    return Domain(given.address, _NOBODY, (hostdev,))


def _judge_return(host: Host, one: Domain, bad: str) -> Finding:
    title = f"console after {one.name}" if one.uuid != _NOBODY else f"console on {one.name}"
    held = _held(host, one)
    if held:
        return Finding(PASS, title, f"{held}; `vfio-console-hook status` shows what comes back")
    try:
        settings = load.configuration(host, one.name, "" if one.uuid == _NOBODY else one.uuid)
        if not settings.enabled:
            return Finding(PASS, title, "`enabled: false`: this hook leaves its GPUs alone")
        handover, steps = look_ahead(host, assignment_of(host, one), settings)
    except ConfigError:
        return Finding(WARN, title, "not looked at, because of mistakes in its configuration")
    except RefusedError as error:
        start = "the VM would not start" if one.uuid != _NOBODY else "no VM could start with it"
        return Finding(bad, title, f"{start}: {error.text}", error.hint)
    except HookError as error:
        return Finding(WARN, title, f"cannot tell: {error.text}", error.hint)
    text = outlook(handover, steps)
    if any(step.loses for step in steps):
        return Finding(WARN, title, text, "have SSH or a serial console at hand when you start it")
    return Finding(PASS, title, text)


def _held(host: Host, one: Domain) -> str:
    """Who has GPUs of this VM now, so that nothing can be foretold: a clause, or ""."""
    boot = kernel.boot_id(host)
    mine = set(gpus_among(host, tuple(hostdev.address for hostdev in one.hostdevs)))
    for claim in Claims(host).readable():
        if claim.boot == boot and mine & set(claim.gpus):
            who = "a person" if claim.by_hand else claim.name
            return f"{who} has {' and '.join(sorted(mine & set(claim.gpus)))} now"
    return ""


CHECKS: tuple[Check, ...] = (
    console_removal, bootfb, kernel_lockdown, console_drivers, console_after,
)  # fmt: skip
