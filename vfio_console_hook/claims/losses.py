"""Losses: what release could not give back, until it is there again or a person dismisses it.

    /run/vfio-console-hook.status/losses    readable by everyone, gone with the boot it speaks of

    {"boot": ..., "losses": [{"vm": NAME, "uuid": UUID, "time": T, "step": {...}, "text": ...,
     "hint": ..., "places": [...]}, ...]}

The claim is given up all the same: nothing is held, and the next VM may start. Whether a loss
is mended is never written down but looked at each time, by the undo of its step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..actions.firmware import CONSOLES_BACK
from ..errors import HookError, LostError
from ..machine import console, pci, runfiles
from ..machine.host import Host, seconds
from . import history
from .directory import Claims
from .step import Step

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

FILE = history.LOSSES


@dataclass(frozen=True)
class Loss:
    """What one step of a VM, or of a person's `take`, has lost. time is in seconds since 1970.

    places are where people are to see it who do not ask (notices.py).
    """

    vm: str
    uuid: str
    time: float
    step: Step
    text: str
    hint: str = ""
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text} (hint: {self.hint})" if self.hint else self.text

    @property
    def announced(self) -> bool:
        """Whether plan had listed it before the VM started."""
        return bool(self.step.loses)

    @property
    def by_hand(self) -> str:
        """The shell line that may mend it; "" when none does."""
        return self.step.undo.shell() if self.step.undo and not self.announced else ""

    def now(self, host: Host) -> Loss | None:
        """The loss as it is now, None when it is mended; only looks."""
        undo = self.step.undo
        if undo is None:
            return self if console.dark(host) else None
        try:
            error = undo.missing(host)
            shown = error is None and undo.kind in CONSOLES_BACK
            if not shown and undo.concerns and pci.is_vfio(host, undo.concerns):
                return self  # the next VM has the GPU
        except HookError:
            return self  # systemd, for one, does not answer
        return None if error is None else replace(self, text=error.text, hint=error.hint)

    def to_json(self) -> dict[str, Any]:
        """The loss as JSON values; from_json() reads it back."""
        return {**vars(self), "step": self.step.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Loss:
        """The loss that to_json() wrote. Raises ValueError, KeyError or TypeError."""
        vm, uuid, text, hint = (str(value[key]) for key in ("vm", "uuid", "text", "hint"))
        places = tuple(map(str, value.get("places", ())))  # earlier versions had none
        step = Step.from_json(value["step"])
        return cls(vm, uuid, seconds(value["time"]), step, text, hint, places)


def of_step(
    host: Host,
    vm: str,
    uuid: str,
    step: Step,
    error: LostError | None,
    places: tuple[str, ...] = (),
) -> Loss:
    """The loss of a step whose undo raised an error, or that has none."""
    text, hint = (error.text, error.hint) if error else (step.loses, "")
    return Loss(vm, uuid, host.now(), step, text, hint, places)


def known(host: Host) -> tuple[Loss, ...]:
    """The losses of this boot as they were written down, mended or not. Raises ClaimError."""
    return tuple(_read(host))


def current(host: Host) -> tuple[Loss, ...]:
    """The losses of this boot that are not mended, as they are now. Raises ClaimError."""
    return tuple(now for one in _read(host) if (now := one.now(host)))


def add(host: Host, loss: Loss) -> None:
    """Write a loss down, instead of one of the same step. Raises ClaimError."""

    def added(known: list[Loss]) -> list[Loss]:
        return [one for one in known if (one.uuid, one.step) != (loss.uuid, loss.step)] + [loss]

    _change(host, added)


def settle(host: Host) -> None:
    """Forget the losses that are mended: what is taken next must not look like one of them.

    Raises ClaimError.
    """
    if not host.exists(FILE):
        return
    mended = [one for one in _read(host) if one.now(host) is None]
    if mended:
        forget(host, mended)


def forget(host: Host, losses: Iterable[Loss]) -> None:
    """Forget these losses, by their VM and step. Raises ClaimError."""
    gone = [(one.uuid, one.step) for one in losses]
    _change(host, lambda known: [one for one in known if (one.uuid, one.step) not in gone])


def _change(host: Host, change: Callable[[list[Loss]], list[Loss]]) -> None:
    # Hooks of several VMs may be at it.
    with Claims(host).lock():
        losses = change(_read(host))
        if not losses:
            runfiles.remove(host, FILE)
            return
        history.make_directory(host)
        content = {"boot": host.boot_id, "losses": [one.to_json() for one in losses]}
        runfiles.write(host, FILE, json.dumps(content) + "\n", 0o644)


def _read(host: Host) -> list[Loss]:
    """The losses in the file; none when it is of another boot or cannot be understood."""
    try:
        content = json.loads(runfiles.read(host, FILE) or "null")
        if content is None or content["boot"] != host.boot_id:
            return []
        return [Loss.from_json(one) for one in content["losses"]]
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ):  # fmt: skip
        return []
