"""What would happen if a VM started now, as a value.

It changes nothing. The steps are those of prepare.look_ahead(), the same list that prepare applies.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ...actions.aperture import ProbeAperture
from ...actions.coreboot import UnregisterCoreboot
from ...actions.device import BindNative, Rescan
from ...actions.firmware import Unbind
from ...actions.native import ReturnNative
from ...claims import losses, ownership
from ...claims.claim import Claim
from ...claims.directory import Claims
from ...claims.step import Step
from ...config import load
from ...config.settings import Config
from ...domain import Domain, Hostdev
from ...errors import HookError, RefusedError, StuckError
from ...events import prepare, refusals
from ...events.assignment import assignment_of
from ...events.outlook import after_vm, outlook
from ...machine import console, gpu, pci
from ...machine.gpu import Gpu
from ...machine.host import Host
from ...machine.memory import Range
from ...machine.removal import Removal
from ...stages.handover import Handover
from ..command import attributes
from ..doctor import selinux_policy
from .holders import PlannedHolder, current_holders, planned_holders
from .left import LeftFunction, left_functions

START, REFUSE, NOTHING = "start", "refuse", "nothing"

@dataclass(frozen=True)
class Device:
    """A PCI device of the host that the XML assigns to the VM. gpu is None if it is not a GPU."""

    hostdev: Hostdev
    pci_class: int
    gpu: Gpu | None

    @property
    def address(self) -> str:
        return self.hostdev.address

    @property
    def kind(self) -> str:
        """The name of its class, such as "VGA controller"."""
        return pci.kind(self.pci_class)

    @property
    def origin(self) -> str:
        """Where it is assigned, such as "hostdev in line 57 of the XML"."""
        if self.hostdev.origin == "take":
            return "command take"
        where = f"line {self.hostdev.line} of the XML" if self.hostdev.line else "the XML"
        return f"{self.hostdev.origin} in {where}"

    @property
    def why(self) -> str:
        """Why it counts as a GPU, or not."""
        return f"{self.origin}: PCI class {self.pci_class:04x}, {self.kind}"


@dataclass(frozen=True)
class Plan:
    """What would happen if the VM started now.

    verdict is START, REFUSE or NOTHING. reason is why it would not start, and hint one
    thing to try; with START they are what prepare failed with (on_failure: start). note is
    a remark about the VM, such as that it has its GPU already: then steps are those that
    were taken for it. after is what release can restore. by_hand: it is for `take`. unless is
    why libvirt may not run the hook, so that none of this happens, and unless_hint what to do
    about it.
    """

    vm: str
    uuid: str
    devices: tuple[Device, ...]
    consoles: str
    verdict: str
    reason: str = ""
    hint: str = ""
    note: str = ""
    left: tuple[LeftFunction, ...] = ()
    steps: tuple[Step, ...] = ()
    holders: tuple[PlannedHolder, ...] = ()
    after: str = ""
    by_hand: bool = False
    unless: str = ""
    unless_hint: str = ""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(one.gpu for one in self.devices if one.gpu)

    @property
    def gpus_after(self) -> tuple[Gpu, ...]:
        """The GPUs that QEMU gets: with nothing in their memory, if the VM would start."""
        freed = self.verdict == START and not self.reason
        return tuple(replace(one, reservations=()) for one in self.gpus) if freed else self.gpus

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, under keys that must not change:

            vm, uuid, verdict, reason, hint, note, consoles, after, unless    as above, strings
            gpus      address, class, kind, why, driver or null, vfio, virtual, boot_vga,
                      framebuffers, cards; bars: number, first, last, claims: name, first, last
            others    assigned devices that are not GPUs: address, class, kind
            left      functions of their cards that are not assigned: address, class, kind,
                      driver or null, matters (whether QEMU could not open the GPU), why
            holders   pid, command, unit, nodes, becomes
            steps     stage, gpu, why, do, undo, loses

        class is base class and subclass, such as "0300". Memory addresses, both ends
        inclusive, are strings such as "0xc0000000", because readers round large numbers.
        do and undo are shell lines, or null.
        """
        return {
            **attributes(self, "vm", "uuid", "verdict", "reason", "hint", "note"),
            "gpus": [_gpu_json(one, one.gpu) for one in self.devices if one.gpu],
            "others": [
                {"address": one.address, "class": f"{one.pci_class:04x}", "kind": one.kind}
                for one in self.devices
                if one.gpu is None
            ],
            "left": [
                {
                    **attributes(one, "address", "kind", "driver", "matters", "why"),
                    "class": f"{one.pci_class:04x}",
                }
                for one in self.left
            ],
            "consoles": self.consoles,
            "holders": [
                {
                    **attributes(one.holder, "pid", "command", "unit", "nodes"),
                    "becomes": one.becomes,
                }
                for one in self.holders
            ],
            "steps": [_step_json(one) for one in self.steps],
            "after": self.after,
            "unless": self.unless,
        }


def _gpu_json(device: Device, one: Gpu) -> dict[str, Any]:
    return {
        "address": one.address,
        "class": f"{one.pci_class:04x}",
        "kind": device.kind,
        "why": device.why,
        **attributes(one, "driver", "vfio", "virtual", "boot_vga", "framebuffers", "cards"),
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


def _step_json(step: Step) -> dict[str, Any]:
    return {
        **attributes(step, "stage", "gpu", "why"),
        "do": step.do.shell() if step.do else None,
        "undo": step.undo.shell() if step.undo else None,
        "loses": step.loses,
    }


# -- making one


def plan_for(
    host: Host,
    domain: Domain,
    settings: Config,
    assigned: Collection[str] = frozenset(),
    *,
    session: bool = False,
) -> Plan:
    """The plan for a VM. assigned: the devices that libvirt has assigned to it now.

    session: it is a VM of a user's own libvirt (libvirtd.is_session()). A refusal is part of
    the plan and not raised. Raises HostError when the GPUs cannot be inspected, StuckError.
    """
    devices = _devices(host, domain)
    plan = Plan(
        domain.name, domain.uuid, devices, console.current_display(host), NOTHING,
        by_hand=domain.by_hand,
    )  # fmt: skip
    if not plan.gpus:
        return replace(plan, reason=f"{domain.name} has no GPU of this host")
    siblings = tuple(one.address for one in devices if one.gpu is None)
    found = current_holders(host, plan.gpus, siblings)
    left = left_functions(host, plan.gpus, [one.address for one in devices])
    plan = replace(plan, holders=tuple(PlannedHolder(one, "") for one in found), left=left)
    if session:
        return replace(plan, reason=_IN_SESSION.format(plan.vm), hint=_TO_SYSTEM)
    idle = _why_idle(plan, settings)
    if idle:
        return replace(plan, reason=idle)
    try:
        plan = replace(plan, note=_loss_note(host, plan))
        claim = Claims(host).find(domain.uuid)
        if claim is not None and claim.boot == host.boot_id:
            return _claimed_plan(host, plan, claim, settings, assigned)
        handover, steps = prepare.look_ahead(host, assignment_of(host, domain), settings)
    except StuckError:
        raise
    except HookError as error:
        return _with_verdict(host, domain, settings, plan, error)
    note = "; ".join(filter(None, (_unclaimed_note(plan, assigned), plan.note)))
    plan = replace(plan, steps=steps, note=note, after=after_vm(host, handover, steps))
    holders, blocked = planned_holders(host, steps, found)
    refusal = blocked or _left_reserved(handover, steps)
    return _with_verdict(host, domain, settings, replace(plan, holders=holders), refusal)


def _devices(host: Host, domain: Domain) -> tuple[Device, ...]:
    gpus = {
        one.address: one for one in gpu.gpus_among(host, tuple(h.address for h in domain.hostdevs))
    }
    found = []
    for hostdev in domain.hostdevs:
        pci_class = pci.pci_class_of(host, hostdev.address) or 0
        found.append(Device(hostdev, pci_class, gpus.get(hostdev.address)))
    return tuple(found)


_IN_SESSION = (
    "the libvirt of qemu:///session runs its hook without root, so it does nothing for {}, and"
    " QEMU may not open a GPU"
)
_TO_SYSTEM = "define it in qemu:///system (virt-manager: the connection called QEMU/KVM)"


def _why_idle(plan: Plan, settings: Config) -> str:
    """Why prepare does nothing for the VM, whatever its GPUs; "" when it does something."""
    if all(one.virtual for one in plan.gpus):
        return "the host has no console on a virtual function"
    if not settings.enabled:
        return "`enabled: false` leaves its GPUs to libvirt"
    return ""


def _with_verdict(
    host: Host, domain: Domain, settings: Config, plan: Plan, refusal: HookError | None
) -> Plan:
    """The plan with its verdict: the refusal of prepare, or else that of libvirt."""
    if refusal is None or settings.on_failure == "start":
        libvirts = _libvirt_refusal(host, domain)
        if libvirts is None:
            plan = replace(plan, verdict=START)
            # After a failure everything is undone at once, so nothing is left for release.
            return _with_reason(replace(plan, after=""), refusal) if refusal else plan
        refusal = libvirts
    return _with_reason(replace(plan, verdict=REFUSE), refusal)


def _with_reason(plan: Plan, refusal: HookError) -> Plan:
    return replace(plan, reason=refusal.text, hint=refusal.hint)


def _libvirt_refusal(host: Host, domain: Domain) -> RefusedError | None:
    """What keeps libvirt or QEMU from starting the VM, whatever prepare does."""
    assignment = assignment_of(host, domain)
    try:
        refusals.refuse_unassignable(host, assignment)
        refusals.refuse_missing_rom(host, assignment)
    except RefusedError as error:
        return error
    return selinux_policy.refusal(host, load.files_for(host, domain.name, domain.uuid))


# Changes that free memory which a firmware driver has reserved.
_FREEING = (Unbind, ProbeAperture, Rescan, BindNative, UnregisterCoreboot)


def _left_reserved(handover: Handover, steps: tuple[Step, ...]) -> HookError | None:
    """The refusal of prepare for reservations that no step removes: a stage is switched off."""
    freed = {step.gpu for step in steps if isinstance(step.do, _FREEING)}
    for one in handover.gpus:
        if one.address not in freed and not one.virtual:
            try:
                prepare.check_free(one, handover)
            except HookError as error:
                return error
    return None


# -- a VM that has its GPU now


def _claimed_plan(
    host: Host, plan: Plan, claim: Claim, settings: Config, assigned: Collection[str]
) -> Plan:
    """The plan for a VM that holds its GPUs: the steps are those that were taken."""
    steps = tuple(claim.steps)
    gpus = tuple(_as_before(one, steps) for one in plan.gpus)
    after = outlook(Handover(gpus, frozenset(), frozenset(), settings, Removal(())), steps)
    note = _claim_note(host, plan, claim, assigned)
    return replace(plan, verdict=START, steps=steps, after=after, note=note)


def _claim_note(host: Host, plan: Plan, claim: Claim, assigned: Collection[str]) -> str:
    name, gpus = plan.vm, " and ".join(claim.gpus)
    if ownership.at_work(host, claim):
        return f"{name} is being started or stopped: its hook is running (process {claim.hook[0]})"
    opened = [node for one in plan.holders for node in one.holder.nodes]
    runs = any(node.startswith("/dev/vfio/") for node in opened)
    if runs or not set(claim.gpus).isdisjoint(assigned):
        return (
            f"{name} is running with {gpus}; this plan is for its next start, with the steps"
            " that were taken for this one"
        )
    return (
        f"{name} still holds {gpus} from an earlier run: its next start releases it first, as"
        " `vfio-console-hook recover` does, and then takes these steps again"
    )


def _as_before(one: Gpu, steps: tuple[Step, ...]) -> Gpu:
    """A GPU with the driver that it had before these steps."""
    for step in steps:
        undo = step.undo
        if isinstance(undo, ReturnNative) and undo.gpu == one.address and undo.driver:
            return replace(one, driver=undo.driver, vfio=False)
    return one


def _unclaimed_note(plan: Plan, assigned: Collection[str]) -> str:
    """A note for a VM that has a GPU without a claim: hotplugged, or before the hook came."""
    shared = [one.address for one in plan.gpus if one.vfio and one.address in assigned]
    if not shared:
        return ""
    return (
        f"{plan.vm} is running with {' and '.join(shared)}, but not through this hook; this plan"
        " is for its next start"
    )


def _loss_note(host: Host, plan: Plan) -> str:
    """A note for GPUs of which something is lost since an earlier VM: no start brings it back."""
    mine = {one.address for one in plan.gpus}
    texts = [one.text for one in losses.current(host) if one.step.gpu in mine]
    if not texts:
        return ""
    return f"lost after an earlier VM, and not back after this one: {'; '.join(texts)}"
