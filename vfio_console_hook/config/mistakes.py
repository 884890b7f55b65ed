"""Mistakes in a configuration file: their place, and what was probably meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..errors import nearest
from .service import DETACHED, RELEASED
from .yamltext import Entry

Reader = Callable[[object], object]
"""Makes a value of what a file holds, or None when it is not a good one."""

_LONGEST = 60
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Mistake:
    """One mistake in a file. line and column count from 1; they are 0 for the file itself."""

    path: str
    text: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """In the format of compilers, so that editors find the place."""
        if not self.line:
            return f"{self.path} {self.text}"
        return f"{self.path}:{self.line}:{self.column}: {self.text}"


def bad_value(value: object, name: str, wanted: str, read: Reader) -> tuple[str, int | None]:
    """The sentence about a bad value, and the index of the wrong item when it is a list."""
    meant = next((one for one in _guesses(value, wanted) if read(one) is not None), None)
    if meant is not None:
        return f"{_bad_value(value, name, wanted)}, did you mean {_written(meant)}?", None
    for number, item in enumerate(value if isinstance(value, list) else ()):
        if read([item]) is None:
            if command := _command(item, name) if name in _NAMES else "":
                return f"{shown(item)} in '{name}' is a command; {command}", number
            service = _bad_service(item) if name == "services" else ""
            what = service or f"bad value {shown(item)}"
            return f"{what} in '{name}', it must be {wanted}", number
    return _bad_value(value, name, wanted), None


def not_a_group(value: object, name: str, names: Iterable[str]) -> str:
    """The sentence about a value in place of a group; names are full, such as "group.key"."""
    keys = ", ".join(_keys_in(name, names))
    return _bad_value(value, name, f"a group of keys, indented below `{name}:`: {keys}")


def unknown_key(word: str, group: str, names: Iterable[str]) -> str:
    """The sentence about a key of a group that is not in names, which are full."""
    names = tuple(names)
    text = f"unknown key {shown(word)}" + (f" in '{group}'" if group else "")
    if elsewhere := _elsewhere(word, group, names):
        return f"{text}, {elsewhere}"
    known = _keys_in(group, names)
    near = nearest(word.replace("-", "_"), known)
    if near:
        return f"{text}, did you mean '{near}'?"
    return f"{text}, the keys are {', '.join(known)}"


def shown(value: object) -> str:
    """A value of a file as text of at most 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        return "a group of keys"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        # An item takes at least three characters, so more items would be cut off anyway.
        text = f"[{', '.join(shown(one) for one in value[:_LONGEST])}]"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _bad_value(value: object, name: str, wanted: str) -> str:
    return f"bad value {shown(value)} for '{name}', it must be {wanted}"


def _keys_in(group: str, names: Iterable[str]) -> list[str]:
    """The keys of a group; of the group "", the keys and groups at the top level."""
    start = f"{group}." if group else ""
    rest = (name[len(start) :] for name in names if name.startswith(start))
    return list(dict.fromkeys(name.partition(".")[0] for name in rest))


def _elsewhere(word: str, group: str, names: tuple[str, ...]) -> str:
    """Where a known key belongs that is in the wrong place; "" for an unknown one."""
    if group:
        return "write it at the beginning of a line" if word in names else ""
    homes = [name.rpartition(".") for name in names if word in (name, name.rpartition(".")[2])]
    for home, _, last in homes:
        return f"write `{last}:` indented below `{home}:`" if home else ""
    return ""


def _bad_service(item: object) -> str:
    """What is wrong with a service's group of commands; "" for anything else."""
    if not isinstance(item, tuple):
        return ""
    entries: dict[str, Entry] = {entry.key: entry for entry in item}
    again = entries.pop("start_again", None)
    if again is not None and again.value not in (RELEASED, DETACHED):
        good = f"{RELEASED} or {DETACHED}"
        return f"a group with {shown(again.value)} for 'start_again', which must be {good},"
    needed: tuple[str, ...] = ("name", "active", "stop", "start")
    if again is not None and not entries.keys() & set(needed[1:]):
        needed = needed[:1]
    missing = [key for key in needed if key not in entries]
    if missing:
        return f"a group without {' and '.join(f'`{key}:`' for key in missing)}"
    for key, entry in entries.items():
        if key not in needed:
            return f"a group with the unknown key {shown(key)}"
        if key != "name" and not str(entry.value).startswith("/"):
            return f"a group with {shown(entry.value)}, which is not a full path, for '{key}'"
    return ""


# The lists of names for which people write whole commands, and the programs that they write in
# front of what they mean.
_NAMES = ("services", "holders.terminate")
_ENDING = ("sudo", "kill", "killall", "pkill", "systemctl", "service", "rc-service", "loginctl")


def _command(item: object, key: str) -> str:
    """What to write for a key instead of a whole command; "" for anything else."""
    words = item.split() if isinstance(item, str) else []
    program = words[0].rpartition("/")[2] if words else ""
    if not words or not (words[0].startswith("/") or program in _ENDING):
        return ""
    left = [
        word for word in words[1:]
        if word not in (*_ENDING, "stop", "start", "restart", "kill") and word[0] != "-"
    ]  # fmt: skip
    named = program if program not in _ENDING else " ".join(left[:1])
    group = ", or a group of name, active, stop and start" if key == "services" else ""
    return f"write {named or 'the name alone'}{group}"


def _guesses(value: object, wanted: str) -> Iterator[object]:
    """Values that may have been meant; some of them are bad too."""
    if isinstance(value, str):
        low = value.lower()
        yield _WORDS.get(low)
        number = low.rstrip("s ")
        yield int(number) if number.isdigit() and number.isascii() and len(number) < 9 else None
        yield low
        yield f"{low}.0"  # an address without its function
        words = wanted.replace(",", "").split()
        near = nearest(low, [one for one in words if one.isalpha()])
        yield _WORDS.get(near, near)
        yield [one.strip() for one in value.split(",")]
        yield [one.strip() for one in low.split(",")]
    elif isinstance(value, float) and value.is_integer():
        yield int(value)
    elif isinstance(value, list) and value:
        yield value[0] if len(value) == 1 else None
        if all(isinstance(one, str) for one in value):
            yield " ".join(value)
            yield list(dict.fromkeys(one.lower() for one in value))


def _written(value: object) -> str:
    """A value as YAML."""
    if isinstance(value, list):
        return f"[{', '.join(_written(one) for one in value)}]"
    return str(value) if isinstance(value, str) else shown(value)
