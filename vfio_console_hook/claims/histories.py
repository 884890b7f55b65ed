"""The last events of each VM as values, for those who show them. history.py writes them down."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HookError
from ..machine.host import Host, seconds
from . import history

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

# What gives back the rest of a claim of which one of these has left something.
_GIVING_BACK = ("release", "recover", "give")


@dataclass(frozen=True)
class Event:
    """The last event of a kind; failure is "" when it was done. Times in seconds."""

    kind: str
    time: float
    took_s: float
    failure: str


@dataclass(frozen=True)
class Refusal:
    """The last failure of a VM, whatever succeeded after it.

    places are where people are to see it who did not see the error (`announce`).
    """

    event: str
    time: float
    text: str
    hint: str
    places: tuple[str, ...] = ()

    @property
    def prevents_start(self) -> bool:
        """Whether the VM did not start for it; otherwise it had ended before."""
        return self.event in ("prepare", "start")


@dataclass(frozen=True)
class History:
    """The last events of a VM since the boot, oldest first."""

    vm: str
    uuid: str
    events: tuple[Event, ...]
    refusal: Refusal | None

    @property
    def done_since(self) -> Event | None:
        """The event that was done since its refusal and settles it, or None."""
        if self.refusal is None:
            return None
        kinds: tuple[str, ...] = (self.refusal.event,)
        if self.refusal.event in _GIVING_BACK:
            kinds = _GIVING_BACK
        after = self.refusal.time
        done = (one for one in self.events if not one.failure and one.time > after)
        return next((one for one in done if one.kind in kinds), None)


def histories(host: Host) -> tuple[History, ...]:
    """The last events of each VM; files that cannot be read or parsed are left out."""
    try:
        names = history.names(host)
    except HookError:
        return ()
    files = (_file(host, name) for name in names)
    return tuple(one for file in files if file and (one := _history(file)))


def _file(host: Host, name: str) -> dict[str, Any] | None:
    try:
        return history.read(host, name)
    except HookError:
        return None


def _history(file: dict[str, Any]) -> History | None:
    events = file.get("events")
    if not isinstance(events, dict):
        return None
    found = tuple(event for kind, one in events.items() if (event := _event(kind, one)))
    return History(str(file.get("vm")), str(file.get("uuid")), found, _refusal(file.get("refusal")))


def _event(kind: str, one: Any) -> Event | None:
    try:
        return Event(kind, seconds(one["time"]), seconds(one["took_s"]), str(one["failure"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _refusal(one: Any) -> Refusal | None:
    try:
        places = one.get("places", ())  # earlier versions had none
        return Refusal(
            str(one["event"]), seconds(one["time"]), str(one["text"]), str(one["hint"]),
            tuple(map(str, places)) if isinstance(places, list) else (),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
