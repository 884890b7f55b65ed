"""Steps: what is done to the machine, and how it is undone.

A Step is a value: a stage yields it without touching anything, `plan` prints it,
the journal writes it down, and only its actions change the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from .actions import Action, of_kind

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True)
class Step:
    """One thing that a stage wants done, and its way back.

    why is a clause for people. do is None where only the way back needs an
    action. undo is None where nothing is to be undone; loses then says what the
    person will not have any more, if anything.
    """

    stage: str
    gpu: str
    why: str
    do: Action | None
    undo: Action | None
    loses: str = ""

    def to_json(self) -> dict[str, Any]:
        """The step as JSON values; from_json() reads it back."""
        return {
            "stage": self.stage,
            "gpu": self.gpu,
            "why": self.why,
            "do": _pack(self.do),
            "undo": _pack(self.undo),
            "loses": self.loses,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        """The step that to_json() wrote. Raises ValueError when it is not one."""
        try:
            return cls(
                stage=str(value["stage"]),
                gpu=str(value["gpu"]),
                why=str(value["why"]),
                do=_unpack(value["do"]),
                undo=_unpack(value["undo"]),
                loses=str(value["loses"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a step: {error}") from error


def _pack(action: Action | None) -> dict[str, Any] | None:
    return None if action is None else {"kind": action.kind, **vars(action)}


def _unpack(value: dict[str, Any] | None) -> Action | None:
    if value is None:
        return None
    fields = {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}
    return of_kind(str(fields.pop("kind")))(**fields)
