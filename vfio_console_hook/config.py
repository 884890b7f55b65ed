"""The configuration: default.yaml, and on top of it the file of one VM, key by key.

None is needed. Whatever is wrong is told all at once, with file and line, and
then nothing may be begun: half a configuration is not what the administrator
wrote. KEYS is the one list of what can be set.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .errors import ConfigError
from .host import Host

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from typing import Any

    from .yamltext import Entry

DIRECTORY = "etc/vfio-console-hook"
VMS = f"{DIRECTORY}/vms"
_MAX_BYTES = 64 * 1024
# virsh shows them all in one line.
_MAX_TOLD = 20


@dataclass(frozen=True)
class Key:
    """What can be set: one row of KEYS.

    name is as in the file, "group.key" inside a group. wanted says what values
    are good, and read makes the Config's value of what the file holds, or None
    when that is not one of them. doc is one line for people.
    """

    name: str
    wanted: str
    read: Callable[[object], Any]
    default: Any
    doc: str


def _boolean() -> tuple[str, Callable[[object], bool | None]]:
    return "true or false", lambda value: value if isinstance(value, bool) else None


def _one_of(*words: str) -> tuple[str, Callable[[object], str | None]]:
    return (
        f"one of {', '.join(words)}",
        lambda value: value if isinstance(value, str) and value in words else None,
    )


def _some_of(*words: str) -> tuple[str, Callable[[object], tuple[str, ...] | None]]:
    def read(value: object) -> tuple[str, ...] | None:
        if not isinstance(value, list) or any(word not in words for word in value):
            return None
        return tuple(value) if len(set(value)) == len(value) else None

    return f"a list of some of {', '.join(words)}, each once", read


def _whole(low: int, high: int) -> tuple[str, Callable[[object], int | None]]:
    # type() and not isinstance(): true and false are integers to Python.
    return (
        f"a whole number from {low} to {high}",
        lambda value: value if type(value) is int and low <= value <= high else None,
    )


def _number(low: int, high: int) -> tuple[str, Callable[[object], float | None]]:
    return (
        f"a number from {low} to {high}",
        lambda value: (
            float(value) if type(value) in (int, float) and low <= value <= high else None
        ),
    )


def _console_place() -> tuple[str, Callable[[object], str | None]]:
    words = ("auto", "never")
    return (
        "auto, never, or the PCI address of a GPU such as 0000:02:00.0",
        lambda value: (
            value if isinstance(value, str) and (value in words or _ADDRESS.fullmatch(value))
            else None
        ),
    )  # fmt: skip


def _names() -> tuple[str, Callable[[object], tuple[str, ...] | None]]:
    def read(value: object) -> tuple[str, ...] | None:
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            return None
        return tuple(value)

    return "a list of names", read


@dataclass(frozen=True)
class Service:
    """What is stopped before and started after: a unit of systemd, or commands of a host without.

    The commands are words, the program first, with its full path; a unit has none.
    """

    name: str
    active: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()


def _services() -> tuple[str, Callable[[object], tuple[Service, ...] | None]]:
    def read(value: object) -> tuple[Service, ...] | None:
        found = [_service(one) for one in value] if isinstance(value, list) else [None]
        return None if None in found else tuple(one for one in found if one)

    return (
        "a list of units, or of groups of name, active, stop and start",
        read,
    )


def _service(value: object) -> Service | None:
    if isinstance(value, str) and _UNIT.fullmatch(value):
        return Service(value)
    if not isinstance(value, tuple) or any(not isinstance(one.value, str) for one in value):
        return None
    texts = {entry.key: entry.value for entry in value}
    if len(texts) != len(value) or set(texts) != {"name", "active", "stop", "start"}:
        return None
    commands = {key: tuple(texts[key].split()) for key in ("active", "stop", "start")}
    if not texts["name"] or any(not words or words[0][0] != "/" for words in commands.values()):
        return None
    return Service(texts["name"], **commands)


CONSOLE_STAGES = ("fbcon", "drm_aperture", "fbdev", "vgacon")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
# Linux comm and systemd unit names; no blanks and no leading "-", which systemctl
# would take for an option.
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\][A-Za-z0-9:_.@\\-]{0,254}")

KEYS = (
    Key(
        "enabled",
        *_boolean(),
        True,
        "Whether anything is done for the VM; false leaves its GPUs to libvirt alone.",
    ),
    Key(
        "stages",
        *_some_of(*CONSOLE_STAGES),
        CONSOLE_STAGES,
        "The console drivers that are taken off a GPU; they always run in this order.",
    ),
    Key(
        "bootfb",
        *_one_of("refuse", "native", "rescan"),
        "refuse",
        "What to do when the kernel does not free the memory of simple-framebuffer.0 (BOOTFB).",
    ),
    Key(
        "keep_console",
        *_console_place(),
        "auto",
        "Whether the host's consoles move to the framebuffer of another GPU that stays.",
    ),
    Key(
        "host_driver",
        *_one_of("leave", "load"),
        "leave",
        "Whether to load the driver of a host GPU whose firmware console vfio-pci would remove.",
    ),
    Key(
        "apu",
        *_one_of("refuse", "allow"),
        "refuse",
        "Whether a GPU that is part of an AMD processor may be taken off its driver.",
    ),
    Key(
        "services",
        *_services(),
        (),
        "What is stopped, if it runs, before the GPU is taken, and started again afterwards.",
    ),
    Key(
        "holders.wait_s",
        *_number(0, 600),
        5.0,
        "How many seconds to wait for processes that have the GPU open.",
    ),
    Key(
        "holders.terminate",
        *_names(),
        (),
        "Processes, by name or unit, that are ended if they have the GPU open after that.",
    ),
    Key(
        "holders.grace_s",
        *_number(0, 60),
        5.0,
        "How many seconds a process gets between SIGTERM and SIGKILL.",
    ),
    Key(
        "on_failure",
        *_one_of("abort", "start"),
        "abort",
        "What happens to the VM when its GPUs cannot be freed.",
    ),
    Key(
        "timeout_s",
        *_whole(1, 600),
        60,
        "How many seconds one event may take before it is given up.",
    ),
    Key(
        "log_level",
        *_one_of("debug", "info", "warning", "error"),
        "info",
        "The least important lines that are written to the log.",
    ),
)

_KEYS = {key.name: key for key in KEYS}
_GROUPS = {name.partition(".")[0] for name in _KEYS if "." in name}


def _default(name: str) -> Any:
    return _KEYS[name].default


@dataclass(frozen=True)
class Holders:
    """What is done about processes that hold a GPU."""

    wait_s: float = _default("holders.wait_s")
    terminate: tuple[str, ...] = _default("holders.terminate")
    grace_s: float = _default("holders.grace_s")


@dataclass(frozen=True)
class Config:
    """What the administrator wants for one VM; Config() is the default."""

    enabled: bool = _default("enabled")
    stages: tuple[str, ...] = _default("stages")
    bootfb: str = _default("bootfb")
    keep_console: str = _default("keep_console")
    host_driver: str = _default("host_driver")
    apu: str = _default("apu")
    services: tuple[Service, ...] = _default("services")
    holders: Holders = Holders()
    on_failure: str = _default("on_failure")
    timeout_s: int = _default("timeout_s")
    log_level: str = _default("log_level")

    def within_timeout(self) -> Config:
        """The same, but with waits that leave time for the rest of an event.

        Stopping services gets half of timeout_s, and undoing everything a quarter.
        """
        share = 4 if self.services else 3
        holders = replace(
            self.holders,
            wait_s=min(self.holders.wait_s, self.timeout_s / share),
            grace_s=min(self.holders.grace_s, self.timeout_s / 10),
        )
        return replace(self, holders=holders)


def load(host: Host, name: str, uuid: str) -> Config:
    """The configuration of a VM, which may have its file under its name or its uuid.

    Raises ConfigError with all mistakes in all its files, HostError when one
    cannot be read.
    """
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    for path in _files(host, name, uuid, mistakes):
        text = _text(host, path, mistakes)
        # Most files are the commented examples: yaml takes too long to load for that.
        if any(line.strip() and line.lstrip()[0] != "#" for line in text.splitlines()):
            values.update(_values(path, text, mistakes))
    if len(mistakes) > _MAX_TOLD:
        mistakes[_MAX_TOLD:] = [f"and {len(mistakes) - _MAX_TOLD} more mistakes"]
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return Config(holders=Holders(**_group(values, "holders")), **_group(values, ""))


def _group(values: dict[str, Any], group: str) -> dict[str, Any]:
    pairs = ((name.rpartition("."), value) for name, value in values.items())
    return {key: value for (prefix, _, key), value in pairs if prefix == group}


# -- which files


def _files(host: Host, name: str, uuid: str, mistakes: list[str]) -> Iterator[str]:
    """The files for a VM that are there and can be trusted, the most general one first."""
    if not _is_safe_directory(host, DIRECTORY, mistakes):
        return
    if "default.yaml" in host.list(DIRECTORY) and _is_safe_file(
        host, f"{DIRECTORY}/default.yaml", mistakes
    ):
        yield f"{DIRECTORY}/default.yaml"
    if not _is_safe_directory(host, VMS, mistakes):
        return
    # A name may be ".." or hold anything else, so it is compared and never made a path.
    stems = [file[:-5] for file in host.list(VMS) if file.endswith(".yaml") and file != ".yaml"]
    mine = [f"{stem}.yaml" for stem in stems if stem == name or stem.lower() == uuid.lower()]
    if len(mine) > 1:
        both = " and ".join(f"/{VMS}/{file}" for file in mine)
        mistakes.append(f"{both} are for the same VM; keep one of them")
    for file in mine:
        if _is_safe_file(host, f"{VMS}/{file}", mistakes):
            yield f"{VMS}/{file}"


def _is_safe_directory(host: Host, path: str, mistakes: list[str]) -> bool:
    """Whether a directory is there and only root can change it."""
    status = host.stat(path)
    if status is None:
        return False
    if not stat.S_ISDIR(status.st_mode):
        mistakes.append(f"/{path} is not a directory")
        return False
    return _only_root_writes(host, path, mistakes)


def _is_safe_file(host: Host, path: str, mistakes: list[str]) -> bool:
    """Whether a file can be read without harm: what others write must not be obeyed."""
    status = host.stat(path)
    real = host.real(path)
    if status is None or real is None:
        mistakes.append(f"/{path} is a link to nothing")
    elif not stat.S_ISREG(status.st_mode):
        mistakes.append(f"/{path} is not a regular file")
    elif status.st_size > _MAX_BYTES:
        mistakes.append(f"/{path} is {status.st_size} bytes long, more than {_MAX_BYTES}")
    else:
        holding = real.rpartition("/")[0] or "."
        return _only_root_writes(host, path, mistakes) and (
            # For a link to another directory, whose files others could replace.
            holding in (DIRECTORY, VMS) or _only_root_writes(host, holding, mistakes)
        )
    return False


def _only_root_writes(host: Host, path: str, mistakes: list[str]) -> bool:
    status = host.stat(path)
    if status is None:
        return False
    if status.st_uid not in (0, host.owner_uid):
        mistakes.append(f"/{path} belongs to user {status.st_uid} instead of root")
        return False
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mistakes.append(f"/{path} can be written by others than root, run `chmod go-w /{path}`")
        return False
    return True


# -- what is in them


def _text(host: Host, path: str, mistakes: list[str]) -> str:
    content = host.read_bytes(path) or b""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        mistakes.append(f"/{path}:{line}: not UTF-8")
        return ""


def _values(path: str, text: str, mistakes: list[str]) -> dict[str, Any]:
    """The values in a file, by the names in KEYS; what is wrong goes to mistakes."""
    # Only when there is something to read: it loads yaml.
    from .yamltext import YamlError, parse

    try:
        content = parse(text)
    except YamlError as error:
        mistakes.append(f"/{path}:{error.line}: {error.problem}")
        return {}
    if content is None:
        return {}
    if not isinstance(content, tuple):
        mistakes.append(f"/{path}:1: not a mapping of keys, such as `bootfb: refuse`")
        return {}
    values: dict[str, Any] = {}
    for entry, wrong in _checked(content, ""):
        if wrong:
            mistakes.append(f"/{path}:{entry.line}: {wrong}")
        else:
            values[entry.key] = entry.value
    return values


def _checked(entries: tuple[Entry, ...], group: str) -> Iterator[tuple[Entry, str]]:
    """Each setting as an entry with its full key and read value, or with what is wrong."""
    first: dict[str, int] = {}
    for entry in entries:
        name = f"{group}.{entry.key}" if group else entry.key
        if name in first:
            yield entry, f"key {_shown(name)} is already set in line {first[name]}"
        elif name in _GROUPS and isinstance(entry.value, tuple):
            yield from _checked(entry.value, name)
        elif name in _GROUPS:
            # With nothing in it, all its keys are commented out.
            if entry.value is not None:
                yield entry, _bad(entry, name, "a group of keys")
        elif name not in _KEYS or "." in entry.key:
            yield entry, _unknown(entry.key, group)
        else:
            value = _KEYS[name].read(entry.value)
            wrong = _bad(entry, name, _KEYS[name].wanted) if value is None else ""
            yield replace(entry, key=name, value=value), wrong
        first.setdefault(name, entry.line)


def _bad(entry: Entry, name: str, wanted: str) -> str:
    return f"bad value {_shown(entry.value)} for '{name}', it must be {wanted}"


def _unknown(word: str, group: str) -> str:
    import difflib  # only for a mistake

    start = f"{group}." if group else ""
    names = (name[len(start) :] for name in _KEYS if name.startswith(start))
    known = list(dict.fromkeys(name.partition(".")[0] for name in names))
    near = difflib.get_close_matches(word.lower(), known, n=1)
    where = f" in '{group}'" if group else ""
    if near:
        return f"unknown key {_shown(word)}{where}, did you mean '{near[0]}'?"
    return f"unknown key {_shown(word)}{where}, the keys are {', '.join(known)}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"[{', '.join(_shown(one) for one in value)}]"
    if isinstance(value, tuple):
        return "a group of keys"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
