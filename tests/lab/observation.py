"""What one start and destroy of a VM did to a machine, and what of it our hook answers for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .scenarios import GONE_SENTENCE

REFUSED_SENTENCE = "the VM would be refused"


class Console(Enum):
    """What a person sees of the host's console on a monitor."""

    VISIBLE = "visible"  # it draws, and looks as it did at first
    DISTORTED = "distorted"  # it draws, but looks different
    DEAD = "dead"  # the monitor is dark, or shows what was left over
    UNKNOWN = "unknown"  # nobody could look any more


class Outlook(Enum):
    """What `plan` said would come of it."""

    NOTHING = "nothing"  # there was no `plan`
    BACK = "back"
    GONE = "gone"
    REFUSED = "refused"


@dataclass(frozen=True)
class Observation:
    """What was seen on a machine; None or UNKNOWN is what could not be seen on it.

    kernel and libvirt are versions. error is virsh's when the VM did not start. mapped is
    whether QEMU had BAR 0 of the GPU in its memory. meanwhile is the console on a GPU that
    stays while the VM ran, None where no GPU stays; after is the console once the VM was
    gone. faults are sentences. logged_gone is whether our log said that the console
    would not come back. start_s is how long virsh took to start the VM.
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
        """In few words what came of it, where no promise of our hook was broken."""
        if self.error:
            return "refused" if self.outlook is Outlook.REFUSED else "not started"
        if self.after is Console.VISIBLE:
            return "back"
        return "gone, announced" if self.outlook is Outlook.GONE else self.after.value


def outlook_of(plan: str) -> Outlook:
    """What the words of `plan` promise; NOTHING where there are none."""
    if not plan:
        return Outlook.NOTHING
    if REFUSED_SENTENCE in plan:
        return Outlook.REFUSED
    return Outlook.GONE if GONE_SENTENCE in plan else Outlook.BACK


def broken_promises(seen: Observation) -> list[str]:
    """Where our hook did something else than it said, or than it is for; a sentence each."""
    wrong = list(seen.faults)
    if seen.error:
        return wrong + _of_refusal(seen)
    if seen.outlook is Outlook.REFUSED:
        wrong.append("the VM started although plan said that it would be refused")
    if not seen.mapped:
        wrong.append("QEMU has not mapped BAR 0")
    if seen.meanwhile not in (None, Console.VISIBLE):
        wrong.append("the console on the GPU that stays is not visible while the VM runs")
    return wrong + _of_return(seen)


def _of_refusal(seen: Observation) -> list[str]:
    if seen.outlook is not Outlook.REFUSED:
        return [f"the VM did not start although plan said nothing of it: {seen.error}"]
    if seen.after is not Console.VISIBLE:
        return [f"the VM was refused, and yet the console is {seen.after.value}"]
    return []


def _of_return(seen: Observation) -> list[str]:
    said = {"plan": seen.outlook is Outlook.GONE, "log": seen.logged_gone}
    if seen.after is Console.VISIBLE:
        return [
            f"the console is back although the {p} said it would not be" for p in said if said[p]
        ]
    if seen.after is Console.DEAD:
        return [f"the console is gone and the {p} did not say so" for p in said if not said[p]]
    return [f"the console is {seen.after.value} after the VM"]
