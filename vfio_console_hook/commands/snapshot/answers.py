"""The entries of a snapshot, made from the answers of a tracing host (tracing.py).

Private data is removed later, by redact.py. Here only bulk is left out: processes that
have none of the GPU's nodes open, and most files of the others.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator

from ...errors import HostError
from ...machine.host import Host
from ...machine.snapshot import ITSELF, Entry
from .tracing import Trace

_DELETED = " (deleted)"
_PROCESS = re.compile(r"proc/(\d+)(?:/|$)")
_NAMESPACE = re.compile(r"proc/\d+/ns/mnt")
_IN_ROOT = re.compile(r"proc/\d+/root/")
# The files of a process that are kept, if they were read: no command line, no environment.
_OF_A_PROCESS = (
    "comm", "cgroup", "stat", "status", "wchan", "attr/current", "attr/apparmor/current",
)  # fmt: skip
# Kernel names in /dev that matter; others may be private names of disks.
_NODES = re.compile(r"fb\d+|dri|kfd|kvm|nvidia.*|snd|vfio|tty\d*|vga_arbiter|vhost-.*")
# Processes have entries of their own, and a home may be on a server that does not answer.
_UNLISTED = ("proc", "home")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (?:\S+ +){4}(/.*)")
# As many links as the kernel follows in one path (Linux include/linux/namei.h, MAXSYMLINKS).
_MOST_LINKS = 40


def entries(host: Host, trace: Trace) -> list[Entry]:
    """All answers of the host as entries, each path once, sorted by path."""
    found = _Files(host)
    for path, content in trace.files.items():
        found.add_file(path, content)
    for path, names in trace.lists.items():
        found.add_folder(path, names)
    for path in (*trace.existing, *trace.stats, *trace.labels, *trace.refused):
        found.add_existing(path)
    every = {entry.path: entry for entry in found.entries.values()}
    for entry in (*_attributes(found, trace), *texts(trace)):
        every.setdefault(entry.path, entry)
    ordered = [every[path] for path in sorted(every)]
    return [*ordered, *_processes(trace, _nodes(found, trace)), *_own_files(host, trace)]


class _Files:
    """Files, folders and links by their real paths, which contain no links."""

    def __init__(self, host: Host) -> None:
        self.entries: dict[str, Entry] = {}
        self._host = host
        self._targets: dict[str, str | None] = {}

    def add_file(self, path: str, content: bytes) -> None:
        real = self.real_path(path)
        if real is not None:
            self.entries[real] = Entry("f", real, content)

    def add_folder(self, path: str, names: Iterable[str]) -> None:
        real = self.real_path(path)
        if real is None:
            return
        self.entries.setdefault(real, Entry("d", real))
        for name in names:
            below = f"{real}/{name}"
            listed = real not in _UNLISTED and (real != "dev" or _NODES.fullmatch(name))
            if listed and self._target(below) is None:
                self.add_existing(below)

    def add_existing(self, path: str) -> None:
        """Add a path of which only the existence is known."""
        real = self.real_path(path)
        if real is not None and real not in self.entries:
            # A link that leads nowhere is there as a link only.
            kind = self._kind(real)
            if kind:
                self.entries[real] = Entry(kind, real)

    def real_path(self, path: str, links: int = 0) -> str | None:
        """The path with its links resolved, which become entries; None if it is left out."""
        if path == "" or links > _MOST_LINKS or _PROCESS.match(path):
            return None
        real = ""
        parts = path.split("/")
        for number, part in enumerate(parts):
            step = f"{real}/{part}".lstrip("/")
            target = self._target(step)
            if target is None:
                real = step
                continue
            full = os.path.normpath(os.path.join(real, target, *parts[number + 1 :])).lstrip("/")
            return None if full.startswith("..") else self.real_path(full, links + 1)
        return real

    def is_folder(self, path: str) -> bool:
        real = self.real_path(path)
        return real is not None and self.entries.get(real, Entry("f", "")).kind == "d"

    def _target(self, path: str) -> str | None:
        """The target of a link, relative to its folder; None if it is no link. Adds the link."""
        if path not in self._targets:
            target = _readlink(self._host, path)
            if target is not None and target.startswith("/") and target != "/dev/null":
                # An absolute target would lead out of an unpacked snapshot. A link to
                # /dev/null is harmless; it masks a unit of systemd.
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


# -- answers that are not contents of files


def _attributes(found: _Files, trace: Trace) -> Iterator[Entry]:
    """Modes, owners and times of files, their labels, and the errors that they gave."""
    attributes = [
        (
            "stat", path,
            f"{status.st_mode:o} {status.st_uid} {status.st_gid} {_time(status.st_mtime)}"
            f" {_time(status.st_ctime)}",
        )
        for path, status in trace.stats.items()
    ]  # fmt: skip
    attributes += [("label", path, label) for path, label in trace.labels.items()]
    attributes += [("refused", path, str(error.errno)) for path, error in trace.refused.items()]
    for kind, path, text in attributes:
        if not _PROCESS.match(path):
            itself = f"/{ITSELF}" if found.is_folder(path) else ""
            yield text_file(f"{kind}/{path}{itself}", text)


def _time(seconds: float) -> str:
    """Milliseconds show what came first: a reload of the daemon, or a chmod."""
    return f"{seconds:.3f}".removesuffix(".000")


def texts(trace: Trace) -> Iterator[Entry]:
    """The answers of devices and programs."""
    return (text_file(path, text) for path, text in trace.texts.items())


def text_file(path: str, text: str) -> Entry:
    """A file with this text, to which a line end is added; an empty one for no text."""
    return Entry("f", path, f"{text}\n".encode("utf-8", "surrogateescape") if text else b"")


# -- processes


def _nodes(found: _Files, trace: Trace) -> dict[str, int | None]:
    """The nodes whose holders were searched, such as "/dev/fb0", with their device numbers."""
    nodes = {f"/{path}": number for path, number in trace.numbers.items() if path[:4] == "dev/"}
    for path, names in trace.lists.items():
        if path.startswith("sys/class/backlight/"):
            nodes.update({f"/{found.real_path(path)}/{name}": None for name in names})
    return nodes


def _processes(trace: Trace, nodes: dict[str, int | None]) -> Iterator[Entry]:
    """Processes that hold one of the nodes, could not be inspected, or were asked for by pid."""
    read: dict[int, list[str]] = {}
    for path in trace.files:
        match = _PROCESS.match(path)
        if match and path[match.end() :] in _OF_A_PROCESS:
            read.setdefault(int(match[1]), []).append(path)
    refused = {int(match[1]) for path in trace.refused if (match := _PROCESS.match(path))}
    for pid in sorted({*read, *refused, *trace.open_files, *trace.mappings}):
        held = [*_open_nodes(pid, trace, nodes), *_mapped_nodes(pid, trace, nodes)]
        asked = any(_asked_for(path, trace.files[path]) for path in read.get(pid, ()))
        if not held and not asked and pid not in refused:
            continue
        yield Entry("d", f"proc/{pid}/fd")
        for path in read.get(pid, ()):
            yield Entry("f", path, trace.files[path])
        yield from held
        for name in ("fd", "maps"):
            error = trace.refused.get(f"proc/{pid}/{name}")
            if error is not None:
                itself = f"/{ITSELF}" if name == "fd" else ""
                yield text_file(f"refused/proc/{pid}/{name}{itself}", str(error.errno))


def _own_files(host: Host, trace: Trace) -> Iterator[Entry]:
    """The mount namespaces that were compared, and what was found in the root of a process."""
    for path in sorted({*trace.existing, *trace.files}):
        if _NAMESPACE.fullmatch(path):
            yield Entry("l", path, os.fsencode(_readlink(host, path) or ""))
        elif _IN_ROOT.match(path):
            yield Entry("f", path, trace.files.get(path, b""))


def _asked_for(path: str, content: bytes) -> bool:
    """Whether the file of a process means that this process was asked for.

    The names of all processes are read to find one.
    """
    return not path.endswith("/comm") and not content.startswith(b"unconfined")


def _open_nodes(pid: int, trace: Trace, nodes: dict[str, int | None]) -> Iterator[Entry]:
    for text, descriptor in sorted(trace.open_files.get(pid, {}).items()):
        link = f"proc/{pid}/fd/{descriptor}"
        shown = _node_name(text, trace.numbers.get(link), nodes)
        if shown:
            yield Entry("l", link, os.fsencode(shown))


def _mapped_nodes(pid: int, trace: Trace, nodes: dict[str, int | None]) -> Iterator[Entry]:
    lines = []
    for line in trace.mappings.get(pid, b"").decode("utf-8", "surrogateescape").splitlines():
        match = _MAPPING.fullmatch(line)
        if match is None:
            continue
        area = f"{int(match[1], 16):x}-{int(match[2], 16):x}"
        shown = _node_name(match[3], trace.numbers.get(f"proc/{pid}/map_files/{area}"), nodes)
        if shown:
            lines.append(line[: match.start(3)] + shown)
    if lines:
        yield text_file(f"proc/{pid}/maps", "\n".join(lines))


def _node_name(text: str, number: int | None, nodes: dict[str, int | None]) -> str:
    """The name of an open file in a snapshot; "" when it is none of the nodes.

    A snapshot has no device numbers, so a node with another name gets its usual one.
    """
    plain = text[: -len(_DELETED)] if text.endswith(_DELETED) else text
    if any(node.endswith(plain) for node in nodes):
        return text
    return next((node for node, own in nodes.items() if number is not None and own == number), "")
