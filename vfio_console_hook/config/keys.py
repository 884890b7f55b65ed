"""KEYS: what is known of each setting of settings.Config. Loaded only where a file sets one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from .settings import Config


@dataclass(frozen=True)
class Key:
    """One setting.

    name is as in the file, "group.key" inside a group. wanted describes the good values.
    read turns the value of the file into that of Config, or returns None for a bad one. doc
    is one line for people.
    """

    name: str
    wanted: str
    read: Callable[[object], Any]
    default: Any
    doc: str


def _keys(settings: Any, group: str = "") -> Iterator[Key]:
    for one in fields(settings):
        if is_dataclass(one.default):
            yield from _keys(one.default, f"{one.name}.")
        else:
            yield Key(group + one.name, default=one.default, **one.metadata)


KEYS = tuple(_keys(Config))
BY_NAME = {key.name: key for key in KEYS}
"""KEYS by their names."""
GROUPS = {name.partition(".")[0] for name in BY_NAME if "." in name}
"""The parts of those names before the "."."""
