"""What one start and destroy of a VM did to a machine, and which promises of our hook broke."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .scenarios import GONE_SENTENCE

REFUSED_SENTENCE = "the VM would be refused"


class Console(Enum):
    """The host's console on a monitor."""

    VISIBLE = "visible"  # it draws, and looks as before
    DISTORTED = "distorted"  # it draws, but looks different
    DEAD = "dead"  # the monitor is dark, or shows an old picture
    UNKNOWN = "unknown"  # no picture could be taken


class Outlook(Enum):
    """What `plan` predicted for the console."""

    NOTHING = "nothing"  # there was no `plan`
    BACK = "back"
    GONE = "gone"
    REFUSED = "refused"


@dataclass(frozen=True)
class Observation:
    """What was seen on a machine; None or UNKNOWN for what could not be seen.

    kernel and libvirt are versions. error is virsh's error if the VM did not start. mapped
    is whether QEMU had mapped BAR 0 of the GPU. meanwhile is the console on the GPU that
    stays while the VM ran, None if no GPU stays. after is the console after the VM. faults
    are sentences. outlook is what plan predicted, and logged_gone whether our log announced
    that the console would not come back. start_s is how long virsh took to start the VM.
    """

    kernel: str
    libvirt: str
    error: str = ""
    mapped: bool | None = None
    meanwhile: Console | None = None
    after: Console = Console.UNKNOWN
    faults: tuple[str, ...] = ()
    outlook: Outlook = Outlook.NOTHING
    logged_gone: bool = False
    start_s: float = 0.0

    @property
    def outcome(self) -> str:
        """The result in few words, for a cell in which no promise was broken."""
        if self.error:
            return "refused" if self.outlook is Outlook.REFUSED else "not started"
        if self.after is Console.VISIBLE:
            return "back"
        return "gone, announced" if self.outlook is Outlook.GONE else self.after.value


def outlook_of(plan: str) -> Outlook:
    """What the text of `plan` predicts; NOTHING if it is empty."""
    if not plan:
        return Outlook.NOTHING
    if REFUSED_SENTENCE in plan:
        return Outlook.REFUSED
    return Outlook.GONE if GONE_SENTENCE in plan else Outlook.BACK


def broken_promises(seen: Observation) -> list[str]:
    """The promises that our hook did not keep, a sentence each."""
    wrong = list(seen.faults)
    if seen.error:
        return wrong + _of_refusal(seen)
    if seen.outlook is Outlook.REFUSED:
        wrong.append("the VM started although plan predicted a refusal")
    if not seen.mapped:
        wrong.append("QEMU has not mapped BAR 0")
    if seen.meanwhile not in (None, Console.VISIBLE):
        wrong.append("the console on the GPU that stays is not visible while the VM runs")
    return wrong + _of_return(seen)


def _of_refusal(seen: Observation) -> list[str]:
    if seen.outlook is not Outlook.REFUSED:
        return [f"the VM did not start, and plan did not predict that: {seen.error}"]
    if seen.after is not Console.VISIBLE:
        return [f"the VM was refused, but the console is {seen.after.value}"]
    return []


def _of_return(seen: Observation) -> list[str]:
    announced = {"plan": seen.outlook is Outlook.GONE, "log": seen.logged_gone}
    if seen.after is Console.VISIBLE:
        return [
            f"the console is back although the {where} announced its loss"
            for where, loss in announced.items()
            if loss
        ]
    if seen.after is Console.DEAD:
        return [
            f"the console is gone and the {where} did not announce it"
            for where, loss in announced.items()
            if not loss
        ]
    return [f"the console is {seen.after.value} after the VM"]
