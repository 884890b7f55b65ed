"""What would happen if a VM started now: a value that holds everything there is to tell.

It only looks. The steps are those of prepare.look_ahead(), the very list that prepare applies.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ...actions.device import BindNative, Rescan
from ...actions.firmware import Unbind
from ...actions.native import ReturnNative
from ...claims import ownership
from ...claims.claim import Claim
from ...claims.directory import Claims
from ...claims.step import Step
from ...config.settings import Config
from ...domain import Domain, Hostdev
from ...errors import HookError, RefusedError, StuckError
from ...events import prepare, refusals
from ...events.assignment import assignment_of
from ...events.outlook import outlook
from ...machine import console, gpu, kernel
from ...machine.gpu import Gpu
from ...machine.host import Host
from ...machine.memory import Range
from ...stages.handover import Handover
from . import holders as occupants
from .holders import Occupant

START, REFUSE, NOTHING = "start", "refuse", "nothing"

# Linux include/linux/pci_ids.h, in the words of pci.ids.
_KINDS = {
    0x0106: "SATA controller", 0x0108: "NVMe controller", 0x0200: "Ethernet controller",
    0x0280: "network controller", 0x0300: "VGA controller", 0x0302: "3D controller",
    0x0380: "display controller", 0x0401: "audio device", 0x0403: "audio device",
    0x0C03: "USB controller", 0x0C80: "serial bus controller",
}  # fmt: skip
_BASES = {0x01: "storage controller", 0x02: "network controller", 0x03: "display device",
          0x04: "multimedia device", 0x06: "bridge"}  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A PCI device of the host that the XML gives to the VM. gpu is None when it is none."""

    hostdev: Hostdev
    pci_class: int
    gpu: Gpu | None

    @property
    def address(self) -> str:
        return self.hostdev.address

    @property
    def kind(self) -> str:
        """What its class means, such as "VGA controller"."""
        return _KINDS.get(self.pci_class) or _BASES.get(self.pci_class >> 8, "PCI device")

    @property
    def origin(self) -> str:
        """Where the VM gets it, such as "hostdev in line 57 of the XML"."""
        where = f"line {self.hostdev.line} of the XML" if self.hostdev.line else "the XML"
        return f"{self.hostdev.origin} in {where}"

    @property
    def why(self) -> str:
        """Why it counts as a GPU, or as none."""
        return f"{self.origin}: PCI class {self.pci_class:04x}, {self.kind}"


@dataclass(frozen=True)
class Plan:
    """What would happen if the VM started now.

    verdict is START, REFUSE or NOTHING. reason says why not, with one thing to try in
    hint; with START, that the VM would start in spite of it (on_failure: start). note
    is what else is to be known of the VM, such as that it has its GPU already: then
    steps are those that were taken for that. after says what release can give back.
    """

    vm: str
    uuid: str
    devices: tuple[Device, ...]
    consoles: str
    verdict: str
    reason: str = ""
    hint: str = ""
    note: str = ""
    steps: tuple[Step, ...] = ()
    holders: tuple[Occupant, ...] = ()
    after: str = ""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(one.gpu for one in self.devices if one.gpu)

    @property
    def gpus_after(self) -> tuple[Gpu, ...]:
        """The GPUs as QEMU finds them: with nothing in their memory, if the VM would start."""
        freed = self.verdict == START and not self.reason
        return tuple(replace(one, reservations=()) for one in self.gpus) if freed else self.gpus

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, under keys that stay as they are:

            vm, uuid, verdict, reason, hint, note, consoles, after    as above, strings
            gpus      address, class, kind, why, driver or null, vfio, virtual, boot_vga,
                      framebuffers, cards; bars: number, first, last, claims: name, first, last
            others    what goes along and is no GPU: address, class, kind
            holders   pid, command, unit, nodes, becomes
            steps     stage, gpu, why, do, undo, loses

        class is base class and subclass, such as "0300". Memory addresses, both ends
        inclusive, are strings such as "0xc0000000", which no reader rounds. do and undo
        are lines for a shell, or null.
        """
        return {
            "vm": self.vm,
            "uuid": self.uuid,
            "verdict": self.verdict,
            "reason": self.reason,
            "hint": self.hint,
            "note": self.note,
            "gpus": [_gpu_json(one, one.gpu) for one in self.devices if one.gpu],
            "others": [
                {"address": one.address, "class": f"{one.pci_class:04x}", "kind": one.kind}
                for one in self.devices
                if one.gpu is None
            ],
            "consoles": self.consoles,
            "holders": [_holder_json(one) for one in self.holders],
            "steps": [_step_json(one) for one in self.steps],
            "after": self.after,
        }


def _gpu_json(device: Device, one: Gpu) -> dict[str, Any]:
    return {
        "address": one.address,
        "class": f"{one.pci_class:04x}",
        "kind": device.kind,
        "why": device.why,
        "driver": one.driver,
        "vfio": one.vfio,
        "virtual": one.virtual,
        "boot_vga": one.boot_vga,
        "framebuffers": list(one.framebuffers),
        "cards": list(one.cards),
        "bars": [
            {
                "number": bar.number,
                **_range_json(bar.range),
                "claims": [
                    {"name": reservation.name, **_range_json(reservation.range)}
                    for reservation in one.reservations
                    if reservation.bar == bar.number
                ],
            }
            for bar in one.bars
        ],
    }


def _range_json(range_: Range) -> dict[str, str]:
    return {"first": f"{range_.first:#x}", "last": f"{range_.last:#x}"}


def _holder_json(one: Occupant) -> dict[str, Any]:
    return {
        "pid": one.holder.pid,
        "command": one.holder.command,
        "unit": one.holder.unit,
        "nodes": list(one.holder.nodes),
        "becomes": one.becomes,
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "gpu": step.gpu,
        "why": step.why,
        "do": step.do.shell() if step.do else None,
        "undo": step.undo.shell() if step.undo else None,
        "loses": step.loses,
    }


# -- making one


def make(host: Host, domain: Domain, settings: Config, has: Collection[str] = frozenset()) -> Plan:
    """The plan for a VM. has: the devices that it has now, by libvirt's word.

    A refusal is part of it, never raised. Raises HostError when the GPUs cannot even be
    looked at, StuckError.
    """
    devices = _devices(host, domain)
    plain = Plan(domain.name, domain.uuid, devices, console.current_display(host), NOTHING)
    if not plain.gpus:
        return replace(plain, reason=f"{domain.name} has no GPU of this host")
    others = tuple(one.address for one in devices if one.gpu is None)
    found = occupants.now(host, plain.gpus, others)
    plain = replace(plain, holders=tuple(Occupant(one, "") for one in found))
    idle = _why_idle(plain, settings)
    if idle:
        return replace(plain, reason=idle)
    try:
        claim = Claims(host).find(domain.uuid)
        if claim is not None and claim.boot == kernel.boot_id(host):
            return _taken_already(host, plain, claim, settings, has)
        handover, steps = prepare.look_ahead(host, assignment_of(host, domain), settings)
    except StuckError:
        raise
    except HookError as error:
        return _judged(host, domain, settings, plain, error)
    note = _unseen(plain, has)
    whole = replace(plain, steps=steps, note=note, after=outlook(handover, steps))
    holders, blocked = occupants.awaited(host, steps, found)
    refusal = blocked or _left_reserved(handover, steps)
    return _judged(host, domain, settings, replace(whole, holders=holders), refusal)


def _devices(host: Host, domain: Domain) -> tuple[Device, ...]:
    gpus = {
        one.address: one for one in gpu.gpus_among(host, tuple(h.address for h in domain.hostdevs))
    }
    found = []
    for hostdev in domain.hostdevs:
        pci_class = gpu.pci_class_of(host, hostdev.address) or 0
        found.append(Device(hostdev, pci_class, gpus.get(hostdev.address)))
    return tuple(found)


def _why_idle(plain: Plan, settings: Config) -> str:
    """Why prepare does nothing for the VM, whatever its GPUs are like; "" when it does."""
    if all(one.virtual for one in plain.gpus):
        return "a virtual function has no console of the host on it"
    if not settings.enabled:
        return "`enabled: false` leaves its GPUs to libvirt alone, whatever is still on them"
    return ""


def _judged(
    host: Host, domain: Domain, settings: Config, whole: Plan, refusal: HookError | None
) -> Plan:
    """The plan with its verdict: what prepare refuses, and what libvirt would after it."""
    if refusal is None or settings.on_failure == "start":
        libvirts = _libvirt_refuses(host, domain)
        if libvirts is None and refusal is None:
            return replace(whole, verdict=START)
        if libvirts is None and refusal is not None:
            # All is undone then, so nothing is left to give back.
            told = replace(whole, verdict=START, reason=refusal.text, hint=refusal.hint)
            return replace(told, after="")
        refusal = libvirts
    reason, hint = (refusal.text, refusal.hint) if refusal else ("", "")
    return replace(whole, verdict=REFUSE, reason=reason, hint=hint)


def _libvirt_refuses(host: Host, domain: Domain) -> RefusedError | None:
    try:
        refusals.refuse_unassignable(host, assignment_of(host, domain))
    except RefusedError as error:
        return error
    return None


# What frees memory that a firmware driver claims.
_FREEING = (Unbind, Rescan, BindNative)


def _left_reserved(handover: Handover, steps: tuple[Step, ...]) -> HookError | None:
    """What prepare would find at its end in memory that no step frees: a stage was left out."""
    freed = {step.gpu for step in steps if isinstance(step.do, _FREEING)}
    for one in handover.gpus:
        if one.address not in freed and not one.virtual:
            try:
                prepare.check_free(one, handover)
            except HookError as error:
                return error
    return None


# -- a VM that has its GPU now


def _taken_already(
    host: Host, plain: Plan, claim: Claim, settings: Config, has: Collection[str]
) -> Plan:
    """The plan for a VM that holds its GPUs: the steps are those that were taken."""
    steps = tuple(claim.steps)
    gpus = tuple(_as_before(one, steps) for one in plain.gpus)
    after = outlook(Handover(gpus, frozenset(), frozenset(), settings, False), steps)
    return replace(
        plain, verdict=START, steps=steps, after=after, note=_note(host, plain, claim, has)
    )


def _note(host: Host, plain: Plan, claim: Claim, has: Collection[str]) -> str:
    name, gpus = plain.vm, " and ".join(claim.gpus)
    if ownership.at_work(host, claim):
        return f"{name} is just starting or ending: its hook is at work (process {claim.hook[0]})"
    opened = [node for one in plain.holders for node in one.holder.nodes]
    runs = any(node.startswith("/dev/vfio/") for node in opened)
    if runs or not set(claim.gpus).isdisjoint(has):
        return (
            f"{name} runs and has {gpus} now; this is about its next start, with the steps that"
            " were taken for this one"
        )
    return (
        f"{name} still holds {gpus} from an earlier run: its next start gives that back first, as"
        " `vfio-console-hook recover` does, and then takes these steps again"
    )


def _as_before(one: Gpu, steps: tuple[Step, ...]) -> Gpu:
    """A GPU as it was before these steps, as far as its driver goes."""
    for step in steps:
        undo = step.undo
        if isinstance(undo, ReturnNative) and undo.gpu == one.address and undo.driver:
            return replace(one, driver=undo.driver, vfio=False)
    return one


def _unseen(plain: Plan, has: Collection[str]) -> str:
    """That the VM has a GPU without a claim of ours: it was plugged in, or we came later."""
    shared = [one.address for one in plain.gpus if one.vfio and one.address in has]
    if not shared:
        return ""
    return (
        f"{plain.vm} runs and has {' and '.join(shared)} now, but not through this hook; this is"
        " about its next start"
    )
