"""What the text of a configuration file sets, and what is wrong in it.

Loaded only if the text has more than comments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .keys import BY_NAME, GROUPS, Key
from .mistakes import Mistake, bad_value, not_a_group, unknown_key
from .yamltext import Entry, Place, YamlError, parse


def settings(path: str, text: str, mistakes: list[Mistake]) -> dict[str, tuple[Any, str]]:
    """The values that a text sets and their origins, by the names in KEYS; else mistakes."""
    try:
        content = parse(text)
    except YamlError as error:
        mistakes.append(Mistake(path, error.problem, error.line, error.column))
        return {}
    if content is None:
        return {}
    if not isinstance(content, tuple):
        mistakes.append(Mistake(path, "not a mapping of keys, such as `bootfb: refuse`", 1, 1))
        return {}
    values: dict[str, tuple[Any, str]] = {}
    for entry, wrong, place in _entries(content, ""):
        if wrong:
            mistakes.append(Mistake(path, wrong, *place))
        else:
            values[entry.key] = entry.value, f"{path}:{entry.line}"
    return values


def placed(text: str) -> dict[str, Entry]:
    """The good settings of a text with their places, by the names in KEYS; values are read."""
    try:
        content = parse(text)
    except YamlError:
        return {}
    entries = _entries(content, "") if isinstance(content, tuple) else ()
    return {entry.key: entry for entry, wrong, _ in entries if not wrong}


def _entries(entries: tuple[Entry, ...], group: str) -> Iterator[tuple[Entry, str, Place]]:
    """Each setting as (entry, mistake, its place); the entry has the full key and read value."""
    first: dict[str, int] = {}
    for entry in entries:
        name = f"{group}.{entry.key}" if group else entry.key
        at = entry.line, entry.column
        if name in first:
            yield entry, f"key '{name}' is already set in line {first[name]}", at
        elif name in GROUPS and isinstance(entry.value, tuple):
            yield from _entries(entry.value, name)
        elif name in GROUPS:
            # With nothing in it, all its keys are commented out.
            if entry.value is not None:
                yield entry, not_a_group(entry.value, name, BY_NAME), entry.value_at
        elif name not in BY_NAME or "." in entry.key:
            yield entry, unknown_key(entry.key, group, BY_NAME), at
        else:
            yield _setting(entry, BY_NAME[name])
        first.setdefault(name, entry.line)


def _setting(entry: Entry, key: Key) -> tuple[Entry, str, Place]:
    """A setting with its full key and read value, or the mistake in the value, and its place."""
    value = key.read(entry.value)
    if value is not None:
        return replace(entry, key=key.name, value=value), "", entry.value_at
    text, item = bad_value(entry.value, key.name, key.wanted, key.read)
    return entry, text, entry.value_at if item is None else entry.items_at[item]
