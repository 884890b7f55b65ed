"""Steps: what is done to the machine, and how it is undone.

A Step is a value: a stage yields it without touching anything, `plan` prints it,
a claim stores it, and only its actions change the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..actions.action import Action
from ..actions.kinds import action_of_kind
from ..value import Value

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, eq=False, repr=False)
class Step(Value):
    """One thing that a stage wants done, and its undo.

    why is a clause for people. do is None where only the undo is an action. undo is
    None where there is nothing to undo; loses then says what the person will not get
    back, if anything.
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
    kind = action_of_kind(str(fields.pop("kind")))
    types = getattr(kind, "__annotations__", {})  # up to Python 3.9 a class without any has none
    for key, one in fields.items():
        if not fits(types.get(key, ""), one) or not (key in _FREE or _stays_inside(one)):
            raise ValueError(f"not a step: {kind.kind} with a bad {key[:20]!r}")
    return kind(**fields)


# Words of the administrator; every other text may become a part of a path.
_FREE = ("name", "active", "stop", "start")
# No action waits longer than an event may take (settings.py, timeout_s).
_LONGEST_S = 600


def fits(annotation: str, value: object) -> bool:
    """Whether a value in a claim fits the annotation of an action's field."""
    if annotation == "str":
        return isinstance(value, str)
    if annotation == "bool":
        return isinstance(value, bool)
    if annotation == "int":
        return type(value) is int and -1 <= value < 1 << 64
    if annotation == "float":
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return 0 <= value <= _LONGEST_S
    if annotation == "tuple[str, ...]":
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if annotation == "tuple[int, ...]":
        return isinstance(value, tuple) and all(type(one) is int for one in value)
    if annotation == "tuple[int | None, ...]":
        return isinstance(value, tuple) and all(one is None or type(one) is int for one in value)
    return False


def _stays_inside(value: object) -> bool:
    """Whether no text in the value leads out of the directory that an action joins it to."""
    texts = value if isinstance(value, tuple) else (value,)
    return not any(
        isinstance(one, str) and ("\0" in one or ".." in one.split("/")) for one in texts
    )
