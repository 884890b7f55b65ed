"""What VMs hold at this moment, what was last heard of each, and where the consoles are.

`status` tells it in words, as JSON and as metrics. Looking changes nothing; who is not
root is told what stays unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...actions.firmware import Rebind
from ...claims import history, ownership
from ...claims.claim import Claim
from ...claims.directory import Claims
from ...claims.step import Step
from ...errors import ClaimError, HookError, HostError
from ...machine import console, kernel
from ...machine.console import Framebuffer, Vtconsole
from ...machine.host import Host, seconds

# The words for each phase of a claim: while its hook works, and after that.
_PHASES = {
    "prepare": ("preparing", "starting"),
    "start": ("starting", "starting"),
    "started": ("running", "running"),
    "release": ("giving back", "given back in part"),
}
DUMMY = "dummy device"
"""The console driver that draws nothing (Linux drivers/video/console/dummycon.c)."""


@dataclass(frozen=True)
class HeldStep:
    """A step that was done for a VM, in words.

    state is "begun", "done" or "undone". undo is the shell line that undoes it, "" when
    it needs none or it cannot be undone. lost says what will not come back, "" for nothing.
    """

    stage: str
    gpu: str
    why: str
    past: str
    state: str
    undo: str
    lost: str


@dataclass(frozen=True)
class Holding:
    """What one VM holds, or a person. since is in seconds since 1970; steps oldest first.

    phase is a word of _PHASES, or "taken by hand", or "of an earlier boot" when it is
    stale: then nothing is held any more. hook is the pid of a hook at work, else 0.
    """

    vm: str
    uuid: str
    by_hand: bool
    gpus: tuple[str, ...]
    since: float
    phase: str
    stale: bool
    hook: int
    steps: tuple[HeldStep, ...]

    @property
    def undo(self) -> tuple[str, ...]:
        """The shell lines that undo by hand what is left, in the order to run them."""
        return tuple(step.undo for step in reversed(self.steps) if step.undo)

    @property
    def lost(self) -> tuple[str, ...]:
        """What will not come back, once each."""
        return tuple(dict.fromkeys(step.lost for step in self.steps if step.lost))

    @property
    def open(self) -> int:
        """How many steps are not undone."""
        return sum(step.state != "undone" for step in self.steps)


@dataclass(frozen=True)
class Event:
    """The last event of a kind; failure is "" when it was done. Times in seconds."""

    kind: str
    time: float
    took_s: float
    failure: str


@dataclass(frozen=True)
class Refusal:
    """The last thing that failed for a VM, whatever succeeded since then."""

    kind: str
    time: float
    text: str
    hint: str


@dataclass(frozen=True)
class History:
    """What was last heard of a VM in this boot; events oldest first."""

    vm: str
    uuid: str
    events: tuple[Event, ...]
    refusal: Refusal | None


@dataclass(frozen=True)
class Holdings:
    """All of it, at a time in seconds since 1970.

    unreadable are claims that cannot be read, in a sentence each. unseen is why no
    claim can be seen at all, "" when they can. unclaimed are GPUs that are on vfio-pci
    without us.
    """

    time: float
    holdings: tuple[Holding, ...]
    unreadable: tuple[str, ...]
    unseen: str
    unclaimed: tuple[str, ...]
    histories: tuple[History, ...]
    vtconsoles: tuple[Vtconsole, ...]
    framebuffers: tuple[Framebuffer, ...]
    drawing: str

    @property
    def console_alive(self) -> bool:
        """Whether a console driver that draws something is bound."""
        return any(one.bound and one.driver != DUMMY for one in self.vtconsoles)

    @property
    def last(self) -> tuple[History, Event] | None:
        """The last event of all, with the VM it was for."""
        lasts = [(one, one.events[-1]) for one in self.histories if one.events]
        return max(lasts, key=lambda both: both[1].time, default=None)


def look(host: Host) -> Holdings:
    """What there is now. Raises HostError when the consoles cannot be looked at."""
    claims = Claims(host)
    found: list[Holding] = []
    unreadable: list[str] = []
    unseen = ""
    try:
        for uuid in claims.uuids():
            try:
                claim = claims.find(uuid)
            except HookError as error:
                unreadable.append(str(error))
                continue
            found += [_holding(host, claim)] if claim else []
    except ClaimError as error:
        unseen = str(error)
    except HostError as error:
        unseen = f"{error.text}: who holds a GPU only root may see"
    return Holdings(
        time=host.now(),
        holdings=tuple(found),
        unreadable=tuple(unreadable),
        unseen=unseen,
        unclaimed=() if unseen else ownership.unclaimed(host),
        histories=histories(host),
        vtconsoles=console.vtconsoles(host),
        framebuffers=console.framebuffers(host),
        drawing=console.current_display(host),
    )


def _holding(host: Host, claim: Claim) -> Holding:
    stale = claim.boot != kernel.boot_id(host)
    at_work = ownership.at_work(host, claim)
    during, after = _PHASES.get(claim.phase, (claim.phase, claim.phase))
    phase = during if at_work else after
    if claim.by_hand and not at_work and claim.phase == "prepare":
        phase = "taken by hand"
    return Holding(
        vm=claim.name,
        uuid=claim.uuid,
        by_hand=claim.by_hand,
        gpus=claim.gpus,
        since=claim.since,
        phase="of an earlier boot" if stale else phase,
        stale=stale,
        hook=claim.hook[0] if at_work else 0,
        steps=tuple(
            _held(host, step, _state(claim, number)) for number, step in enumerate(claim.steps)
        ),
    )


def _state(claim: Claim, number: int) -> str:
    if number in claim.undone:
        return "undone"
    return "done" if number in claim.done else "begun"


def _held(host: Host, step: Step, state: str) -> HeldStep:
    undo, lost = step.undo, ""
    if state == "undone":
        undo = None
    elif isinstance(undo, Rebind) and undo.gone(host):
        lost = (
            f"the kernel has removed {undo.device}: the firmware console will not come back"
            " before a reboot"
        )
        undo = None
    elif undo is None:
        lost = step.loses
    return HeldStep(
        stage=step.stage,
        gpu=step.gpu,
        why=step.why,
        past=step.do.past() if step.do else step.why,
        state=state,
        undo=undo.shell() if undo else "",
        lost=lost,
    )


def histories(host: Host) -> tuple[History, ...]:
    """What was last heard of each VM; what cannot be read or understood is left out."""
    try:
        words = [history.read(host, name) for name in history.names(host)]
        return tuple(told for word in words if word and (told := _history(word)))
    except HookError:
        return ()


def _history(word: dict[str, Any]) -> History | None:
    events, refusal = word.get("events"), word.get("refusal")
    if not isinstance(events, dict):
        return None
    found = [event for kind, one in events.items() if (event := _event(kind, one))]
    return History(
        vm=str(word.get("vm")),
        uuid=str(word.get("uuid")),
        events=tuple(found),
        refusal=_refusal(refusal),
    )


def _event(kind: str, one: Any) -> Event | None:
    try:
        return Event(kind, seconds(one["time"]), seconds(one["took_s"]), str(one["failure"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _refusal(one: Any) -> Refusal | None:
    try:
        return Refusal(str(one["event"]), seconds(one["time"]), str(one["text"]), str(one["hint"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def to_json(all_of_it: Holdings) -> dict[str, Any]:
    """The same as JSON values. version goes up when a key changes its meaning or goes."""
    return {
        "version": 1,
        "time": all_of_it.time,
        "holds": [_holding_json(one) for one in all_of_it.holdings],
        "unreadable": list(all_of_it.unreadable),
        "unseen": all_of_it.unseen,
        "on_vfio_unclaimed": list(all_of_it.unclaimed),
        "consoles": {
            "alive": all_of_it.console_alive,
            "text": all_of_it.drawing,
            "drivers": [
                {"name": one.name, "driver": one.driver, "bound": one.bound}
                for one in all_of_it.vtconsoles
            ],
            "framebuffers": [
                {"name": one.name, "title": one.title, "pci": one.pci}
                for one in all_of_it.framebuffers
            ],
        },
        "vms": [_history_json(one) for one in all_of_it.histories],
    }


def _holding_json(one: Holding) -> dict[str, Any]:
    return {
        **vars(one),
        "gpus": list(one.gpus),
        "steps": [{**vars(step), "undo": step.undo or None} for step in one.steps],
        "undo": list(one.undo),
        "lost": list(one.lost),
    }


def _history_json(one: History) -> dict[str, Any]:
    events = {
        event.kind: {"time": event.time, "took_s": event.took_s, "failure": event.failure}
        for event in one.events
    }
    refusal = one.refusal and {
        "event": one.refusal.kind,
        "time": one.refusal.time,
        "text": one.refusal.text,
        "hint": one.refusal.hint,
    }
    return {"vm": one.vm, "uuid": one.uuid, "events": events, "refusal": refusal}
