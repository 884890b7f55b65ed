"""check-config: mistakes in configuration files, and the effective settings of a VM."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import load, yamltext
from ..config.keys import Key
from ..config.mistakes import Mistake
from ..config.service import RELEASED, Service
from ..config.settings import Config
from ..errors import HookError
from ..log import printable
from ..machine import access
from ..machine.host import Host
from . import vms
from .command import Command
from .doubts import doubts
from .terminal import complain

_WIDTH = 79
# Comments begin here, or further to the right behind a long value.
_COMMENTS = 32


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="*",
        metavar="FILE",
        help="a file to check, installed or not; without FILE, all installed files",
    )
    parser.add_argument(
        "--vm", metavar="VM", help="print the effective settings of a VM, and where each is set"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    if arguments.vm is not None and arguments.file:
        complain("vfio-console-hook: FILE and --vm exclude each other")
        complain("hint: --vm always reads the installed files")
        return 2
    if arguments.vm is not None:
        return _print_settings(host, arguments)
    found = _findings(host, arguments.file)
    if arguments.json:
        print(json.dumps([_file_as_json(one) for one in found], indent=2))
    else:
        print("\n".join(_file_lines(found)))
    return 1 if any(one.mistakes or one.doubts for one in found) else 0


# -- files, their mistakes, and what has no effect in them


@dataclass(frozen=True)
class Checked:
    """A file, as its path was given, and what is wrong in it."""

    path: str
    mistakes: tuple[Mistake, ...]
    doubts: tuple[Mistake, ...]


def _findings(host: Host, paths: Sequence[str]) -> list[Checked]:
    """What is wrong in each file; without paths, in each installed one. Raises HookError."""
    installed = load.all_mistakes(host)
    found = []
    for path in paths or installed:
        full = os.path.normpath(os.path.join(os.getcwd(), path))
        if full in installed:
            # Links are resolved, and a file that is not trusted is a mistake already.
            content = b"" if installed[full] else host.read_bytes(full[1:]) or b""
            found.append(Checked(path, installed[full], doubts(host, full, content)))
        else:
            content = _content(host, path, full)
            wrong = load.mistakes_in(path, content)
            found.append(Checked(path, wrong, doubts(host, path, content)))
    return found


def _content(host: Host, path: str, full: str) -> bytes:
    """The content of a file that is not installed; notes why it would be refused if it were."""
    absent = HookError(f"there is no file {path}", hint="--vm VM prints the settings of a VM")
    if full.startswith(f"/{load.DIRECTORY}/"):
        content = host.read_bytes(full[1:])
        if content is None:
            raise absent
        return content
    try:
        with open(path, "rb") as file:
            refused = access.why_untrusted(os.fstat(file.fileno()))
            content = file.read()
    except FileNotFoundError as error:
        raise absent from error
    except OSError as error:
        raise HookError(f"cannot read {path}: {error.strerror}") from error
    if refused:
        _note(f"{path} {refused}, and would be refused in /{load.DIRECTORY}")
    return content


def _note(text: str) -> None:
    complain(f"note: {text}")


def _file_lines(found: list[Checked]) -> Iterator[str]:
    for one in found:
        lines = [*map(str, one.mistakes), *map(_as_warning, one.doubts)]
        yield from map(printable, lines or (f"{one.path}: no mistakes",))
    if not found:
        yield f"no file in /{load.DIRECTORY}: the defaults apply to every VM"


def _as_warning(doubt: Mistake) -> str:
    return str(replace(doubt, text=f"warning: {doubt.text}"))


def _file_as_json(one: Checked) -> dict[str, Any]:
    return {
        "file": one.path,
        "mistakes": [_place_as_json(mistake) for mistake in one.mistakes],
        "warnings": [_place_as_json(doubt) for doubt in one.doubts],
    }


def _place_as_json(one: Mistake) -> dict[str, Any]:
    return {"line": one.line or None, "column": one.column or None, "text": one.text}


# -- the settings of a VM


def _print_settings(host: Host, arguments: argparse.Namespace) -> int:
    name, uuid = _name_and_uuid(host, arguments)
    rows = load.explanation(host, name, uuid)
    shortened = _shortened(load.configuration(host, name, uuid))
    if arguments.json:
        settings = {
            key.name: _as_json(key, value, origin, shortened) for key, value, origin in rows
        }
        print(json.dumps({"vm": name, "uuid": uuid or None, "settings": settings}, indent=2))
    else:
        print(f"# settings of {printable(name)}{f' ({uuid})' if uuid else ''}")
        print("\n".join(_as_yaml(rows, shortened)))
    return 0


def _name_and_uuid(host: Host, arguments: argparse.Namespace) -> tuple[str, str]:
    """The name and the uuid of a VM; the uuid is "" when libvirt does not know it."""
    wanted = str(arguments.vm)
    try:
        known = vms.known_vms(host, arguments.connect, wanted)
    except HookError as error:
        _note(f"{error.text}; only a file named {wanted}.yaml applies")
        return wanted, ""
    if known:
        return known[0].name, known[0].uuid
    _note(f"libvirt has no VM {wanted}")
    return wanted, ""


def _shortened(settings: Config) -> dict[str, float]:
    """The waits that timeout_s, the time of a whole event, makes shorter."""
    real = settings.within_timeout().holders
    asked = settings.holders
    waits = {"wait_s": real.wait_s, "grace_s": real.grace_s}
    return {f"holders.{key}": wait for key, wait in waits.items() if wait < getattr(asked, key)}


def _as_json(key: Key, value: Any, origin: str, shortened: dict[str, float]) -> dict[str, Any]:
    file, _, line = origin.rpartition(":")
    setting = {"value": _plain(value), "file": file or None, "line": int(line) if line else None}
    if key.name in shortened:
        setting["shortened_to"] = shortened[key.name]
    return setting


def _as_yaml(rows: Iterable[tuple[Key, Any, str]], shortened: dict[str, float]) -> Iterator[str]:
    """Lines of YAML that can be pasted into a file."""
    opened = ""
    for key, value, origin in rows:
        group, _, last = key.name.rpartition(".")
        if group and group != opened:
            yield f"{group}:"
        opened = group
        comment = origin or "default"
        if key.name in shortened:
            comment += f", but at most {shortened[key.name]:g} within timeout_s"
        indent = "  " if group else ""
        lines = _yaml_lines(last, value, flow=True)
        if len(f"{indent}{lines[0]}") > _WIDTH:
            lines = _yaml_lines(last, value, flow=False)
        yield from _commented([f"{indent}{line}" for line in lines], comment, indent)


def _yaml_lines(key: str, value: Any, *, flow: bool) -> list[str]:
    plain = _plain(value)
    # Only a list of words is easier to read in one line.
    words = isinstance(plain, list) and not any(isinstance(one, dict) for one in plain)
    style = None if flow and words else False
    text: str = yamltext.library().safe_dump(
        {key: plain}, sort_keys=False, default_flow_style=style, width=1000
    )
    return text.splitlines()


def _commented(lines: list[str], comment: str, indent: str) -> Iterator[str]:
    """A setting with its comment behind its first line, or above it if that is too long."""
    first = f"{lines[0]:{_COMMENTS - 2}}  # {comment}"
    if len(first) > _WIDTH:
        first = f"{lines[0]}  # {comment}"
    if len(first) > _WIDTH:
        yield f"{indent}# {comment}"
        first = lines[0]
    yield first
    yield from lines[1:]


def _plain(value: object) -> object:
    """A value of the configuration as YAML has it."""
    if isinstance(value, Service):
        # What is not set is not written either.
        said = {
            key: words if isinstance(words, str) else " ".join(words)
            for key, words in vars(value).items()
            if words and words != RELEASED
        }
        return said if said.keys() != {"name"} else value.name
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


COMMAND = Command(
    "check-config",
    "configuration mistakes, or effective configuration of a VM",
    "vfio-console-hook check-config --vm win11",
    _options,
    _run,
)
