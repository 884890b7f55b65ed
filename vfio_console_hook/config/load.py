"""The configuration: default.yaml, and on top of it the file of one VM, key by key.

No file is needed. All mistakes are reported at once, with file, line and column, and with
any mistake nothing is begun: half a configuration is not what the administrator wrote.
settings.Config has what can be set.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

from ..errors import ConfigError
from ..machine import access, paths
from ..machine.host import Host
from .settings import NONE, Config, Holders, Release

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

    from .keys import Key
    from .mistakes import Mistake

DIRECTORY = "etc/vfio-console-hook"
VMS = f"{DIRECTORY}/vms"
DEFAULT = f"{DIRECTORY}/default.yaml"
MAX_BYTES = 32 * 1024
# virsh shows them all in one line.
_MAX_LISTED = 20


def configuration(host: Host, name: str, uuid: str, *, by_hand: bool = False) -> Config:
    """The configuration of a VM, which may have its file under its name or its uuid.

    by_hand: a person takes the GPUs. `enabled: false` is about VMs that libvirt starts, so it
    does not count then. Raises ConfigError with all mistakes in all its files, HostError when
    one cannot be read.
    """
    values = {name: value for name, (value, _) in _settings(host, name, uuid).items()}
    return _config({**values, "enabled": True} if by_hand else values)


def configuration_with(host: Host, own: dict[str, Any]) -> Config:
    """That of a VM whose own file sets these values, by the names in KEYS. Raises HostError."""
    present = DEFAULT in _present(host, [])
    general = _settings_in(host, DEFAULT, []) if present else {}
    return _config({**{name: value for name, (value, _) in general.items()}, **own})


def _config(values: dict[str, Any]) -> Config:
    return Config(
        holders=Holders(**_group(values, "holders")),
        release=Release(**_group(values, "release")),
        **_group(values, ""),
    )


def explanation(host: Host, name: str, uuid: str) -> tuple[tuple[Key, Any, str], ...]:
    """Each key, its value in configuration() for a VM, and where that is set.

    The origin is "/FILE:LINE", or "" for the default. Raises what configuration() raises.
    """
    from .keys import KEYS  # takes 0.7 ms to load, and no event asks

    settings = _settings(host, name, uuid)
    return tuple((key, *settings.get(key.name, (key.default, ""))) for key in KEYS)


def all_mistakes(host: Host) -> dict[str, tuple[Mistake, ...]]:
    """All mistakes in each of the configuration files, by path; none for a file in order.

    A file that is never read, because of its name, is a mistake too. Raises HostError when
    a directory cannot be read.
    """
    mistakes: list[Mistake] = []
    paths = _present(host, mistakes)
    for path in paths:
        _settings_in(host, path, mistakes)
    mistakes += never_read(host)
    found = dict.fromkeys([f"/{path}" for path in paths] + [one.path for one in mistakes])
    return {path: tuple(one for one in mistakes if one.path == path) for path in found}


def mistakes_in(path: str, content: bytes) -> tuple[Mistake, ...]:
    """All mistakes in a file that is not in its place yet; its owner does not matter."""
    mistakes: list[Mistake] = []
    if len(content) > MAX_BYTES:
        return (_too_long(path, len(content)),)
    _values(path, _decoded(path, content, mistakes), mistakes)
    return tuple(mistakes)


def mistakes_for(host: Host, name: str, uuid: str) -> tuple[Mistake, ...]:
    """All mistakes in the files of a VM; with "" twice, in those of all VMs. Raises HostError."""
    return tuple(_settings_and_mistakes(host, name, uuid)[1])


def listed(mistakes: Iterable[Mistake]) -> str:
    """The mistakes in one line; the first ones when there are many."""
    texts = [str(one) for one in mistakes]
    if len(texts) > _MAX_LISTED:
        texts[_MAX_LISTED:] = [f"and {len(texts) - _MAX_LISTED} more mistakes"]
    return "; ".join(texts)


def installed_files(host: Host) -> tuple[str, ...]:
    """The paths of the files that are read, for all VMs first. Raises HostError."""
    return _present(host, [])


def files_for(host: Host, name: str, uuid: str) -> tuple[str, ...]:
    """The paths of the files that a VM reads, the one for all VMs first. Raises HostError."""
    return tuple(_files_for(host, name, uuid, []))


def files_without_vm(host: Host, vms: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The paths of the files for one VM each that none of these VMs reads. Raises HostError.

    vms are names and uuids.
    """
    read = {path for name, uuid in vms for path in _files_for(host, name, uuid, [])}
    return tuple(path for path in _present(host, []) if path != DEFAULT and path not in read)


def file_for(name: str, uuid: str) -> str:
    """The path of the file for a VM, by its uuid where its name is none of a file."""
    stem = name if name.isprintable() and "/" not in name else uuid
    return f"/{VMS}/{stem}.yaml"


def _settings(host: Host, name: str, uuid: str) -> dict[str, tuple[Any, str]]:
    """What the files of a VM set, as value and origin. Raises ConfigError, HostError."""
    settings, mistakes = _settings_and_mistakes(host, name, uuid)
    if mistakes:
        raise ConfigError(listed(mistakes))
    return settings


def _settings_and_mistakes(
    host: Host, name: str, uuid: str
) -> tuple[dict[str, tuple[Any, str]], list[Mistake]]:
    mistakes: list[Mistake] = []
    settings: dict[str, tuple[Any, str]] = {}
    for path in _files_for(host, name, uuid, mistakes):
        settings.update(_settings_in(host, path, mistakes))
    return settings, mistakes


def _group(values: dict[str, Any], group: str) -> dict[str, Any]:
    pairs = ((name.rpartition("."), value) for name, value in values.items())
    return {key: value for (prefix, _, key), value in pairs if prefix == group}


# -- which files


def _present(host: Host, mistakes: list[Mistake]) -> tuple[str, ...]:
    """The files in trusted directories, the one for all VMs first."""
    directory = _trusted_directory(host, DIRECTORY, mistakes)
    general = (DEFAULT,) if "default.yaml" in _names_in(host, directory) else ()
    vms = _trusted_directory(host, VMS, mistakes) if directory else ""
    names = (one for one in _names_in(host, vms) if one.endswith(".yaml") and one != ".yaml")
    return (*general, *(f"{VMS}/{name}" for name in names))


def _files_for(host: Host, name: str, uuid: str, mistakes: list[Mistake]) -> Iterator[str]:
    """The files for a VM that exist, the one for all VMs first."""
    present = _present(host, mistakes)
    if DEFAULT in present:
        yield DEFAULT
    # A VM's name may be ".." or hold anything else: it is compared, never part of a path.
    stems = {path: path[len(VMS) + 1 : -5] for path in present if path != DEFAULT}
    mine = [path for path, s in stems.items() if s == name or s.lower() == uuid.lower()]
    if len(mine) > 1:
        mistakes.append(
            _mistake(f"/{mine[0]}", f"and /{mine[1]} are for the same VM; keep one of them")
        )
    yield from mine


def never_read(host: Host) -> Iterator[Mistake]:
    """The files that have the wrong name or place, so that they are never read."""
    for name in _names_in(host, paths.resolve(host, DIRECTORY).path):
        if name.endswith((".yaml", ".yml")) and name != "default.yaml":
            stem = name.rpartition(".")[0]
            meant = f"for the VM {stem} is /{VMS}/{stem}.yaml"
            if stem in ("", "default"):
                meant = f"for all VMs is /{DEFAULT}"
            yield _mistake(f"/{DIRECTORY}/{name}", f"is never read; the file {meant}")
    for name in _names_in(host, paths.resolve(host, VMS).path):
        if name == ".yaml" or not name.endswith(".yaml"):
            text = "is never read; its name must be that of a VM, and .yaml"
            yield _mistake(f"/{VMS}/{name}", text)


def _names_in(host: Host, directory: str) -> tuple[str, ...]:
    return host.list(directory) if directory else ()


def _trusted_directory(host: Host, path: str, mistakes: list[Mistake]) -> str:
    """The path of a trusted directory without links, or ""."""
    end = _trusted_path(host, path, mistakes)
    status = host.lstat(end) if end else None
    if status is None:
        return ""
    if not stat.S_ISDIR(status.st_mode):
        mistakes.append(_mistake(f"/{path}", "is not a directory"))
        return ""
    return end


def _trusted_path(host: Host, path: str, mistakes: list[Mistake]) -> str:
    """A trusted path without links; "" when nothing is there, or it cannot be trusted."""
    way = paths.resolve(host, path)
    if way.why:
        mistakes.append(_untrusted(way))
    return way.path


def _untrusted(way: paths.Resolved) -> Mistake:
    mend = f", run `chmod go-w /{way.untrusted}`" if way.why == access.WRITABLE else ""
    return _mistake(f"/{way.untrusted}", way.why + mend)


def _mistake(path: str, text: str, line: int = 0, column: int = 0) -> Mistake:
    from .mistakes import Mistake  # only for a mistake

    return Mistake(path, text, line, column)


def _too_long(path: str, size: int) -> Mistake:
    return _mistake(path, f"is {size} bytes long, more than {MAX_BYTES}")


# -- what is in them


def _settings_in(host: Host, path: str, mistakes: list[Mistake]) -> dict[str, tuple[Any, str]]:
    """What a file sets, as value and origin; what is wrong with it is added to mistakes."""
    content = _content(host, path, mistakes)
    values = _values(f"/{path}", _decoded(f"/{path}", content, mistakes), mistakes)
    for name, (value, origin) in values.items():
        mistakes += _untrusted_programs(host, name, value, origin)
    return values


def _content(host: Host, path: str, mistakes: list[Mistake]) -> bytes:
    """The content of a file; nothing when it cannot be trusted, which is added to mistakes."""
    before = len(mistakes)
    end = _trusted_path(host, path, mistakes)
    found = host.read_file(end, MAX_BYTES + 1) if end else None
    if found is None:
        if len(mistakes) == before:
            mistakes.append(_mistake(f"/{path}", "is a link to nothing"))
        return b""
    status, content = found
    # Checked for the file that was read: it may have been replaced since it was resolved.
    why = access.why_untrusted(status, host.owner_uid)
    if not stat.S_ISREG(status.st_mode):
        mistakes.append(_mistake(f"/{path}", "is not a regular file"))
    elif why:
        mistakes.append(_untrusted(paths.Resolved("", end, why)))
    elif len(content) > MAX_BYTES:
        mistakes.append(_too_long(f"/{path}", max(status.st_size, len(content))))
    else:
        return content
    return b""


def _untrusted_programs(host: Host, name: str, value: Any, origin: str) -> Iterator[Mistake]:
    """The programs of commands, which run as root, that other users could have changed.

    name and value are those of any setting.
    """
    file, _, line = origin.rpartition(":")
    for whose, program in dict.fromkeys(_programs(name, value)):
        why = why_not_run(host, program)
        if why:
            text = f"{program} of {whose} is not run as root: {why}"
            yield _mistake(file, text, int(line), 1)


def _programs(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(whose, program) of each command in a setting."""
    if name == "on_refusal" and value != NONE:
        yield name, value.split()[0]
    for one in value if name == "services" else ():
        commands = (one.active, one.stop, one.start)
        yield from ((one.name, words[0]) for words in commands if words)


def why_not_run(host: Host, program: str) -> str:
    """Why root does not run a program that is given by its full path, or "". Raises HostError."""
    way = paths.resolve(host, program)
    return str(_untrusted(way)) if way.why else ""


def _decoded(path: str, content: bytes, mistakes: list[Mistake]) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        column = len(before) - (before.rfind(b"\n") + 1) + 1
        mistakes.append(_mistake(path, "not UTF-8", before.count(b"\n") + 1, column))
        return ""


def _values(path: str, text: str, mistakes: list[Mistake]) -> dict[str, tuple[Any, str]]:
    """The values in a file and their origins, by the names in KEYS; the rest are mistakes."""
    # Most files only have comments, like the examples: yaml need not be loaded for them.
    if not any(line.strip() and line.lstrip()[0] != "#" for line in text.splitlines()):
        return {}
    from .text import settings  # takes 1.4 ms to load, without yaml

    return settings(path, text, mistakes)
