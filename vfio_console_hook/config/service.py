"""Service: one item of the setting "services"."""

from __future__ import annotations

import re
from dataclasses import dataclass

RELEASED, DETACHED = "released", "detached"
# The characters of unit names (systemd.unit(5)); no "-" in front, which would be an option.
_UNIT = r"[A-Za-z0-9:_.@\\][A-Za-z0-9:_.@\\-]{0,254}"


@dataclass(frozen=True)
class Service:
    """What is stopped before a VM and started after it: a unit of systemd, or three commands.

    A command is a tuple of words, the first one the full path of the program; a unit has
    none. start_again is RELEASED, or DETACHED: as soon as vfio-pci has the VM's GPUs.
    """

    name: str
    active: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    start_again: str = RELEASED


def service_of(value: object) -> Service | None:
    """The service that an item of a file is, or None for a bad one."""
    if isinstance(value, str) and re.fullmatch(_UNIT, value):
        return Service(value)
    if not isinstance(value, tuple) or any(not isinstance(one.value, str) for one in value):
        return None
    texts = {entry.key: entry.value for entry in value}
    again = texts.pop("start_again", None)
    name = texts.pop("name", "")
    if len(texts) + (again is not None) + 1 != len(value) or not name:
        return None
    if again not in (None, RELEASED, DETACHED):
        return None
    if not texts:
        return Service(name, start_again=again) if again and re.fullmatch(_UNIT, name) else None
    commands = {key: tuple(text.split()) for key, text in texts.items()}
    if set(commands) != {"active", "stop", "start"}:
        return None
    if any(not words or words[0][0] != "/" for words in commands.values()):
        return None
    return Service(name, **commands, start_again=again or RELEASED)
