"""What VMs hold now, the last events of each, and where the host's consoles are.

`status` prints it as text, as JSON and as metrics. Nothing is changed. Without root the
claims cannot be read; then unseen is the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...actions.firmware import Rebind
from ...actions.vfio import UnbindVfio
from ...claims import in_use, losses, ownership
from ...claims.claim import Claim
from ...claims.directory import Claims
from ...claims.histories import Event, History, histories
from ...claims.losses import Loss
from ...claims.step import Step
from ...errors import ClaimError, HookError, HostError
from ...events import undo
from ...machine import console, libvirtd, pci
from ...machine.console import Framebuffer, Vtconsole
from ...machine.host import Host
from ..command import attributes
from ..rehearse import last
from ..rehearse.last import LastRehearsal
from ..rehearse.rehearsal import Switch, switches

GIVEN_IN_PART = "given back in part"
"""The phase of a claim of which release has left something."""

# The name of each phase of a claim: while its hook is running, and after that.
_PHASES = {
    "prepare": ("preparing", "starting"),
    "start": ("starting", "starting"),
    "started": ("running", "running"),
    "stopped": ("stopping", "stopping"),
    "release": ("giving back", GIVEN_IN_PART),
}


@dataclass(frozen=True)
class HeldStep:
    """A step that was done for a VM, as text.

    state is "begun", "done" or "undone". undo is the shell line that undoes it, "" when
    it needs none or cannot be undone. lost is what will not come back, "" for nothing;
    losing the same as long as the GPU is not on vfio-pci, and the undo still helps.
    """

    stage: str
    gpu: str
    why: str
    past: str
    state: str
    undo: str
    lost: str
    losing: str


@dataclass(frozen=True)
class HeldClaim:
    """A claim of a VM or a person. since is in seconds since 1970; steps oldest first.

    phase is a name of _PHASES, or "taken by hand", or "rehearsing", or "of an earlier boot" when
    it is stale: then nothing is held any more. until is when a rehearsal will have given all
    back, 0 if it is none. hook is the pid of a running hook, else 0. stuck is
    why the release that it waits for may never come, "" when it does not wait. undo has the
    shell lines that undo what is left, in the order to run them.
    """

    vm: str
    uuid: str
    by_hand: bool
    gpus: tuple[str, ...]
    since: float
    until: float
    phase: str
    stale: bool
    hook: int
    stuck: str
    steps: tuple[HeldStep, ...]
    undo: tuple[str, ...]

    @property
    def lost(self) -> tuple[str, ...]:
        """What will not come back, without repetitions."""
        return tuple(dict.fromkeys(step.lost for step in self.steps if step.lost))

    @property
    def losing(self) -> tuple[str, ...]:
        """What will not come back once the GPU is on vfio-pci, without repetitions."""
        return tuple(dict.fromkeys(step.losing for step in self.steps if step.losing))

    @property
    def open(self) -> int:
        """How many steps are not undone."""
        return sum(step.state != "undone" for step in self.steps)


@dataclass(frozen=True)
class Overview:
    """Everything that status prints, at a time in seconds since 1970.

    unreadable has a sentence for each claim that cannot be read. unseen is why no claim
    can be read at all, "" when they can. unclaimed are GPUs on vfio-pci without a claim. lost
    is what release could not give back, and is not back since. rehearsals are the last ones
    of each VM, and switches the VMs that one has started and would destroy. libvirt is whether
    this host has one, so that VMs can hold something.
    """

    time: float
    claims: tuple[HeldClaim, ...]
    unreadable: tuple[str, ...]
    unseen: str
    unclaimed: tuple[str, ...]
    lost: tuple[Loss, ...]
    histories: tuple[History, ...]
    vtconsoles: tuple[Vtconsole, ...]
    framebuffers: tuple[Framebuffer, ...]
    drawing: str
    waits_for_text: bool
    rehearsals: tuple[LastRehearsal, ...] = ()
    switches: tuple[Switch, ...] = ()
    libvirt: bool = True

    @property
    def console_alive(self) -> bool:
        """Whether the bound console driver shows something, or fbcon waits for the first text."""
        shown = any(one.bound and one.driver != console.DUMMY for one in self.vtconsoles)
        return shown or self.waits_for_text

    @property
    def in_order(self) -> bool:
        """Whether all that VMs do not hold any more is back on the host."""
        return not self.lost and not any(
            one.stuck or (one.phase == GIVEN_IN_PART and not one.stale) for one in self.claims
        )

    @property
    def last(self) -> tuple[History, Event] | None:
        """The last event of all VMs, with the history of its VM."""
        lasts = [(one, one.events[-1]) for one in self.histories if one.events]
        return max(lasts, key=lambda both: both[1].time, default=None)


def current(host: Host) -> Overview:
    """The overview of this moment. Raises HostError when the consoles cannot be read."""
    claims = Claims(host)
    found: list[HeldClaim] = []
    unreadable: list[str] = []
    unseen = ""
    try:
        for uuid in claims.uuids():
            try:
                claim = claims.find(uuid)
            except HookError as error:
                unreadable.append(str(error))
                continue
            found += [_held_claim(host, claim)] if claim else []
    except ClaimError as error:
        unseen = str(error)
    except HostError as error:
        unseen = f"{error.text}: only root can read which VM holds a GPU"
    try:
        lost = losses.current(host)
    except HookError as error:
        lost = ()
        unreadable.append(str(error))
    return Overview(
        time=host.now(),
        claims=tuple(found),
        unreadable=tuple(unreadable),
        unseen=unseen,
        unclaimed=() if unseen else in_use.unclaimed(host),
        lost=lost,
        histories=histories(host),
        vtconsoles=console.vtconsoles(host),
        framebuffers=console.framebuffers(host),
        drawing=console.current_display(host),
        waits_for_text=console.waits_for_text(host),
        rehearsals=last.all_last(host),
        switches=switches(host),
        libvirt=libvirtd.is_here(host) or not host.complete,
    )


def _held_claim(host: Host, claim: Claim) -> HeldClaim:
    stale = claim.boot != host.boot_id
    at_work = ownership.at_work(host, claim)
    during, after = _PHASES.get(claim.phase, (claim.phase, claim.phase))
    phase = during if at_work else after
    if claim.by_hand and not at_work and claim.phase == "prepare":
        phase = "taken by hand"
    if claim.until:
        phase = "rehearsing" if at_work else "left by a rehearsal"
    steps = tuple(
        _held_step(host, step, _state(claim, number)) for number, step in enumerate(claim.steps)
    )
    return HeldClaim(
        vm=claim.name,
        uuid=claim.uuid,
        by_hand=claim.by_hand,
        gpus=claim.gpus,
        since=claim.since,
        until=claim.until,
        phase="of an earlier boot" if stale else phase,
        stale=stale,
        hook=claim.hook[0] if at_work else 0,
        stuck=in_use.why_stuck(host, claim),
        steps=steps,
        undo=(
            *_off_vfio(host, claim),
            *(step.undo for step in reversed(steps) if step.undo),
        ),
    )


def _off_vfio(host: Host, claim: Claim) -> tuple[str, ...]:
    """The lines for what a platform has bound to vfio-pci and leaves there.

    After a VM libvirt does that.
    """
    if not claim.by_hand:
        return ()
    left = (one for one in undo.from_the_host(claim) if pci.is_vfio(host, one))
    return tuple(UnbindVfio(one).shell() for one in left)


def _state(claim: Claim, number: int) -> str:
    if number in claim.undone:
        return "undone"
    return "done" if number in claim.done else "begun"


def _held_step(host: Host, step: Step, state: str) -> HeldStep:
    action, lost, losing = step.undo, "", ""
    if state == "undone":
        action = None
    elif isinstance(action, Rebind) and action.gone(host):
        lost = (
            f"the kernel has removed {action.device}: the firmware console will not come back"
            " before a reboot"
        )
        action = None
    elif action is None:
        lost = step.loses
    elif step.loses and not pci.is_vfio(host, step.gpu):
        losing = step.loses
    return HeldStep(
        stage=step.stage,
        gpu=step.gpu,
        why=step.why,
        past=step.do.past() if step.do else step.why,
        state=state,
        undo=action.shell() if action else "",
        lost=lost,
        losing=losing,
    )


def to_json(overview: Overview) -> dict[str, Any]:
    """The same as JSON values. version is increased when a key is removed or changes."""
    return {
        "version": 1,
        "time": overview.time,
        "holds": [_claim_json(one) for one in overview.claims],
        "unreadable": list(overview.unreadable),
        "unseen": overview.unseen,
        "libvirt": overview.libvirt,
        "on_vfio_unclaimed": list(overview.unclaimed),
        "lost": [_loss_json(one) for one in overview.lost],
        "consoles": {
            "alive": overview.console_alive,
            "text": overview.drawing,
            "drivers": [attributes(one, "name", "driver", "bound") for one in overview.vtconsoles],
            "framebuffers": [
                attributes(one, "name", "title", "pci") for one in overview.framebuffers
            ],
        },
        "vms": [_history_json(one) for one in overview.histories],
        "rehearsals": [last.to_json(one) for one in overview.rehearsals],
        "switches": [vars(one) for one in overview.switches],
    }


def _claim_json(one: HeldClaim) -> dict[str, Any]:
    return {
        **vars(one),
        "steps": [{**vars(step), "undo": step.undo or None} for step in one.steps],
        **attributes(one, "undo", "lost", "losing"),
    }


def _loss_json(one: Loss) -> dict[str, Any]:
    return {
        **attributes(one, "vm", "uuid", "time", "text", "hint", "announced", "by_hand"),
        **attributes(one.step, "stage", "gpu"),
    }


def _history_json(one: History) -> dict[str, Any]:
    return {
        **attributes(one, "vm", "uuid"),
        "events": {
            event.kind: attributes(event, "time", "took_s", "failure") for event in one.events
        },
        "refusal": one.refusal and vars(one.refusal),
    }
