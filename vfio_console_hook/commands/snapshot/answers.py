"""What a witness saw (witness.py), as the entries of a recorded machine.

Nothing is decided here about what people may see: redact.py does that. Only what
would make the text large for nothing is left out: processes that hold none of the
nodes that were looked for, and of the others all but what tells who they are.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator

from ...errors import HookError, HostError
from ...machine.host import Host
from ...machine.snapshot import ITSELF, Entry, answer_path, pack_console_map
from .tracing import Seen

_DELETED = " (deleted)"
_PROCESS = re.compile(r"proc/(\d+)(?:/|$)")
# What of a process is written down, if it was read; no command line, no environment.
_OF_A_PROCESS = (
    "comm", "cgroup", "stat", "status", "wchan", "attr/current", "attr/apparmor/current",
)  # fmt: skip
# Kernel names in /dev that matter; others may be those of people's disks.
_NODES = re.compile(r"fb\d+|dri|kfd|kvm|nvidia.*|snd|vfio|tty\d*|vga_arbiter|vhost-.*")
# Processes are told apart, and a home may be on a server that does not answer.
_UNLISTED = ("proc", "home")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (?:\S+ +){4}(/.*)")
# As many links as the kernel follows in one path (Linux include/linux/namei.h, MAXSYMLINKS).
_MOST_LINKS = 40


def entries(host: Host, seen: Seen) -> list[Entry]:
    """Everything that was seen of the host, each path once, sorted by it."""
    found = _Files(host)
    for path, content in seen.files.items():
        found.file(path, content)
    for path, names in seen.lists.items():
        found.folder(path, names)
    for path in (*seen.there, *seen.links, *seen.stats, *seen.labels, *seen.refused):
        found.there(path)
    every = {entry.path: entry for entry in found.entries.values()}
    for entry in (*_told(found, seen), *_answers(seen), *_programs(seen)):
        every.setdefault(entry.path, entry)
    ordered = [every[path] for path in sorted(every)]
    return [*ordered, *_processes(seen, _nodes(found, seen))]


class _Files:
    """Files, folders and links at their true places: none lies behind a link."""

    def __init__(self, host: Host) -> None:
        self.entries: dict[str, Entry] = {}
        self._host = host
        self._targets: dict[str, str | None] = {}

    def file(self, path: str, content: bytes) -> None:
        true = self.place(path)
        if true is not None:
            self.entries[true] = Entry("f", true, content)

    def folder(self, path: str, names: Iterable[str]) -> None:
        true = self.place(path)
        if true is None:
            return
        self.entries.setdefault(true, Entry("d", true))
        for name in names:
            below = f"{true}/{name}"
            told = true not in _UNLISTED and (true != "dev" or _NODES.fullmatch(name))
            if told and self._target(below) is None:
                self.there(below)

    def there(self, path: str) -> None:
        """Something of which only is told that it is there."""
        true = self.place(path)
        if true is not None and true not in self.entries:
            # A link that leads nowhere is there as a link only.
            kind = self._kind(true)
            if kind:
                self.entries[true] = Entry(kind, true)

    def place(self, path: str, links: int = 0) -> str | None:
        """The path with its links resolved, which are noted; None for what is left out."""
        if path == "" or links > _MOST_LINKS or _PROCESS.match(path):
            return None
        true = ""
        parts = path.split("/")
        for number, part in enumerate(parts):
            step = f"{true}/{part}".lstrip("/")
            target = self._target(step)
            if target is None:
                true = step
                continue
            whole = os.path.normpath(os.path.join(true, target, *parts[number + 1 :])).lstrip("/")
            return None if whole.startswith("..") else self.place(whole, links + 1)
        return true

    def is_folder(self, path: str) -> bool:
        true = self.place(path)
        return true is not None and self.entries.get(true, Entry("f", "")).kind == "d"

    def _target(self, path: str) -> str | None:
        """Where a link leads, from its own folder; the link is noted. None when it is none."""
        if path not in self._targets:
            target = _readlink(self._host, path)
            if target is not None and target.startswith("/") and target != "/dev/null":
                # On another machine it would lead out of the recorded one; the one
                # to /dev/null masks a unit of systemd, and does no harm anywhere.
                target = os.path.relpath(target, f"/{os.path.dirname(path)}")
            if target is not None:
                self.entries[path] = Entry("l", path, os.fsencode(target))
            self._targets[path] = target
        return self._targets[path]

    def _kind(self, path: str) -> str:
        try:
            status = self._host.stat(path)
        except HostError:
            return "f"
        if status is None:
            return ""
        return "d" if stat.S_ISDIR(status.st_mode) else "f"


def _readlink(host: Host, path: str) -> str | None:
    try:
        return host.readlink(path)
    except HostError:
        return None


# -- what a file cannot hold


def _told(found: _Files, seen: Seen) -> Iterator[Entry]:
    """What the machine said of files beside their content."""
    told = [
        (
            "stat", path,
            f"{status.st_mode:o} {status.st_uid} {status.st_gid} {int(status.st_mtime)}"
            f" {int(status.st_ctime)}",
        )
        for path, status in seen.stats.items()
    ]  # fmt: skip
    told += [("label", path, label) for path, label in seen.labels.items()]
    told += [("refused", path, str(error.errno)) for path, error in seen.refused.items()]
    for kind, path, text in told:
        if not _PROCESS.match(path):
            itself = f"/{ITSELF}" if found.is_folder(path) else ""
            yield _text(f"{kind}/{path}{itself}", text)


def _answers(seen: Seen) -> Iterator[Entry]:
    """What devices answered."""
    for fb, (start, size) in seen.memories.items():
        yield Entry("f", f"dev/{fb}")
        yield _text(f"ioctl/{fb}/memory", f"{start:#x} {size}")
    if seen.consoles is not None:
        yield _text("ioctl/con2fbmap", pack_console_map(seen.consoles))
    for tty, text in seen.modes.items():
        yield Entry("f", f"dev/{tty}")
        yield _text(f"ioctl/{tty}/mode", "text" if text else "graphics")


def _programs(seen: Seen) -> Iterator[Entry]:
    for command, answer in seen.ran.items():
        if isinstance(answer, HostError):
            yield failure(f"{answer_path(command)}.failed", answer)
        else:
            yield _text(answer_path(command), answer)
    for command, status in seen.statuses.items():
        if isinstance(status, HostError):
            yield failure(f"{answer_path(command)}.failed", status)
        else:
            yield _text(f"{answer_path(command)}.status", "" if status is None else str(status))


def failure(path: str, error: HookError) -> Entry:
    """The entry for why something could not be asked."""
    return _text(path, f"{error.text}\n{error.hint}".rstrip("\n"))


def _text(path: str, text: str) -> Entry:
    return Entry("f", path, f"{text}\n".encode("utf-8", "surrogateescape"))


# -- processes


def _nodes(found: _Files, seen: Seen) -> dict[str, int | None]:
    """The files that holders were looked for, such as "/dev/fb0", with their numbers."""
    nodes = {f"/{path}": number for path, number in seen.numbers.items() if path[:4] == "dev/"}
    for path, names in seen.lists.items():
        if path.startswith("sys/class/backlight/"):
            nodes.update({f"/{found.place(path)}/{name}": None for name in names})
    return nodes


def _processes(seen: Seen, nodes: dict[str, int | None]) -> Iterator[Entry]:
    """Those that hold one of the nodes, that may not be looked into, or that were asked for."""
    read: dict[int, list[str]] = {}
    for path in seen.files:
        match = _PROCESS.match(path)
        if match and path[match.end() :] in _OF_A_PROCESS:
            read.setdefault(int(match[1]), []).append(path)
    refused = {int(match[1]) for path in seen.refused if (match := _PROCESS.match(path))}
    for pid in sorted({*read, *refused, *seen.open_files, *seen.mappings}):
        held = [*_held(pid, seen, nodes), *_mapped(pid, seen, nodes)]
        told = any(_tells(path, seen.files[path]) for path in read.get(pid, ()))
        if not held and not told and pid not in refused:
            continue
        yield Entry("d", f"proc/{pid}/fd")
        for path in read.get(pid, ()):
            yield Entry("f", path, seen.files[path])
        yield from held
        for name in ("fd", "maps"):
            error = seen.refused.get(f"proc/{pid}/{name}")
            if error is not None:
                itself = f"/{ITSELF}" if name == "fd" else ""
                yield _text(f"refused/proc/{pid}/{name}{itself}", str(error.errno))


def _tells(path: str, content: bytes) -> bool:
    """Whether it was asked for this very process: names are read of all, to find one."""
    return not path.endswith("/comm") and not content.startswith(b"unconfined")


def _held(pid: int, seen: Seen, nodes: dict[str, int | None]) -> Iterator[Entry]:
    for text, descriptor in sorted(seen.open_files.get(pid, {}).items()):
        link = f"proc/{pid}/fd/{descriptor}"
        shown = _shown(text, seen.numbers.get(link), nodes)
        if shown:
            yield Entry("l", link, os.fsencode(shown))


def _mapped(pid: int, seen: Seen, nodes: dict[str, int | None]) -> Iterator[Entry]:
    lines = []
    for line in seen.mappings.get(pid, b"").decode("utf-8", "surrogateescape").splitlines():
        match = _MAPPING.fullmatch(line)
        if match is None:
            continue
        area = f"{int(match[1], 16):x}-{int(match[2], 16):x}"
        shown = _shown(match[3], seen.numbers.get(f"proc/{pid}/map_files/{area}"), nodes)
        if shown:
            lines.append(line[: match.start(3)] + shown)
    if lines:
        yield _text(f"proc/{pid}/maps", "\n".join(lines))


def _shown(text: str, number: int | None, nodes: dict[str, int | None]) -> str:
    """The name by which a recorded machine knows an open file; "" when it is none of the nodes.

    A recorded machine has no numbers of devices, so a node of another name gets the usual one.
    """
    plain = text[: -len(_DELETED)] if text.endswith(_DELETED) else text
    if any(node.endswith(plain) for node in nodes):
        return text
    return next((node for node, own in nodes.items() if number is not None and own == number), "")
