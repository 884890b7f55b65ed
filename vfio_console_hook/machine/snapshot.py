"""A snapshot: the files, links and answers of a machine, as one text.

    # a comment
    d sys/class/graphics                            an empty directory
    l sys/class/graphics/fb0 -> ../../devices/...   a link and its target
    f sys/class/vtconsole/vtcon0/bind = 1           a file of one line
    f proc/iomem                                    a file of many lines
    |00000000-00000fff : Reserved
    x sys/devices/pci0000:00/0000:00:02.0/config = 34121111...    bytes, in hex

Answers of devices to ioctls are below `ioctl/`, as text:

    ioctl/fb0/memory      "0xc0000000 4096000": start and size (FBIOGET_FSCREENINFO)
    ioctl/con2fbmap       "1-63 0": consoles and their framebuffer, "-" for none
    ioctl/tty1/mode       "text" or "graphics" (KDGETMODE)
    ioctl/consoles        "locked" or "unlocked" (VT_LOCKSWITCH)

Other answers of the machine, which files below a directory cannot hold:

    stat/PATH             "100755 0 0 1732312312 1732312399": mode, uid, gid, mtime and
                          ctime (missing: the mtime), if not as unpacked
    label/PATH            "system_u:object_r:virt_hook_t:s0" (SELinux)
    refused/PATH          "13": the errno with which every access fails
    ran/COMMAND           the output of a program; answer_path() has the name
    ran/FILE QUESTION     what a file answers to what is written to it (/sys/fs/selinux/access)
    ran/COMMAND.failed    why it failed, as a sentence; the hint, if any, in a second line
    ran/COMMAND.status    the exit status of a configured command; empty: it did not end
    libvirt/N/            name, uuid, xml, live and autostart of a VM (libvirtd.Vm); N is 1, 2...
    libvirt/unasked       why libvirt could not be asked, as in .failed
    recorded/now          seconds since 1970; only in complete snapshots

For a PATH that is a directory, the file is PATH/.itself.

unpack() writes such a text to a directory and SnapshotHost reads it there;
commands/snapshot writes one of a running machine. Nothing here can be changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from stat import S_ISLNK

from ..errors import HostError, UnrecordedError
from .host import Host, seconds
from .host.consoles import CONSOLES, FBIOGET_CON2FBMAP, FBIOGET_FSCREENINFO, KDGETMODE

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from .libvirtd import Vm

    T = TypeVar("T")

ITSELF = ".itself"
# NAME_MAX is 255, and ".failed" must fit behind the name.
_LONGEST_NAME = 240
# No path below /sys and /proc is as deep, and Python's functions that make and remove a
# thousand nested directories run out of stack.
_DEEPEST = 64
_LAST_ERRNO = 4096  # Linux include/linux/err.h, MAX_ERRNO
_NOWHERE = ".nowhere"


class SnapshotHost(Host):
    """A snapshot unpacked below a directory: ioctls are answered from its files."""

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        self._raise_refusal(f"ask (ioctl {FBIOGET_FSCREENINFO:#x})", f"dev/{fb}")
        return self._parsed_file(f"ioctl/{fb}/memory", _start_and_size)

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        self._raise_refusal(f"ask (ioctl {FBIOGET_CON2FBMAP:#x})", f"dev/{fb}")
        if not self.exists(f"dev/{fb}"):
            return None
        return self._parsed_file("ioctl/con2fbmap", unpack_console_map)

    def text_mode(self, tty: str) -> bool:
        self._raise_refusal(f"ask (ioctl {KDGETMODE:#x})", f"dev/{tty}")
        return self.read(f"ioctl/{tty}/mode") != "graphics"

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        status = self._answer(command, ".status")
        return self._parsed_file(f"{answer_path(command)}.status", int) if status else None

    def now(self) -> float:
        now = self._parsed_file("recorded/now", seconds) if self.read("recorded/now") else None
        return super().now() if now is None else now

    @property
    def complete(self) -> bool:
        return self.exists("recorded")

    @property
    def privileged(self) -> bool:
        return True  # the user who unpacked the snapshot counts as its root

    def kill(self, pid: int) -> None:
        raise HostError(f"cannot kill process {pid} of a snapshot")

    def device_number(self, path: str) -> int | None:
        return None  # a link in its /proc would lead to a node of this machine

    def own_pids(self) -> frozenset[int]:
        return frozenset()  # this process does not run there

    def open_process(self, pid: int) -> int | None:
        raise HostError(f"cannot watch process {pid} of a snapshot")

    def poke(self, path: str, offset: int, content: bytes) -> None:
        raise HostError(f"cannot change /{path} of a snapshot")

    def _ioctl(self, path: str, request: int, argument: bytearray | int) -> bool:
        raise HostError(f"cannot change /{path} of a snapshot")

    def open_node(self, path: str) -> int:
        raise HostError(f"cannot open /{path} of a snapshot")

    def run(self, *command: str, timeout_s: float = 30) -> str:
        return self._answer(command, "")

    def become(
        self, *command: str, environment: dict[str, str], text: str, timeout_s: float
    ) -> None:
        raise HostError(f"cannot run {command[0]} on a recorded machine")

    def ask(self, path: str, question: str) -> str:
        return self._answer((f"/{path}", question), "")

    def _answer(self, command: tuple[str, ...], kind: str) -> str:
        path = answer_path(command)
        failure = self.read(f"{path}.failed")
        if failure is not None:
            raise _error(failure)
        answer = self.read(f"{path}{kind}")
        if answer is None:
            raise UnrecordedError(f"cannot run {command[0]} on a recorded machine")
        return answer

    def vms(self, uri: str, name: str = "") -> tuple[Vm, ...]:
        if uri.startswith("test:"):
            return super().vms(uri, name)  # libvirt's own test driver
        if not self.exists("libvirt"):
            raise HostError("this snapshot does not contain the VMs of libvirt")
        reason = self.read("libvirt/unasked")
        if reason is not None:
            raise _error(reason)
        names = (name for name in self.list("libvirt") if name.isascii() and name.isdigit())
        numbers = sorted(map(int, names))
        found = tuple(self._vm(f"libvirt/{number}") for number in numbers)
        uuid = name.replace("-", "").lower()
        return tuple(
            one for one in found if name in ("", one.name) or uuid == one.uuid.replace("-", "")
        )

    def _vm(self, folder: str) -> Vm:
        from .libvirtd import Vm  # the hook does not need it

        name, uuid, xml, live, autostart = (
            self.read(f"{folder}/{part}") or ""
            for part in ("name", "uuid", "xml", "live", "autostart")
        )
        return Vm(name, uuid, xml, live, autostart == "1")

    # -- files as they were on the machine

    def _attribute(self, kind: str, path: str) -> str | None:
        """The text of kind/PATH for a path, or None."""
        for place in (f"{kind}/{path}", f"{kind}/{path}/{ITSELF}"):
            if os.path.isfile(self.path(place)):
                return (super().read_bytes(place) or b"").decode(errors="replace").strip()
        return None

    def _parsed_file(self, path: str, parse: Callable[[str], T]) -> T | None:
        """The text of a file, parsed; None when it is not there. Raises HostError."""
        text = self.read(path)
        return None if text is None else _parsed_text(f"/{path}", text, parse)

    def _if_there(self, what: str, path: str, call: Callable[[str], T], *none_for: int) -> T | None:
        # A link can be read where what it leads to cannot.
        if what != "read the link":
            self._raise_refusal(what, path)
        return super()._if_there(what, path, call, *none_for)

    def stat(self, path: str) -> os.stat_result | None:
        unpacked = super().stat(path)
        attributes = self._attribute("stat", path)
        if attributes is None:
            return unpacked and _of_root(unpacked)
        mode, uid, gid, modified, changed = _parsed_text(
            f"/stat/{path}", attributes, _mode_and_times
        )
        size = unpacked.st_size if unpacked else 0
        found = (mode, 0, 0, 1, uid, gid, size, int(modified), int(modified), int(changed))
        return os.stat_result(found, {"st_mtime": modified, "st_ctime": changed})

    def lstat(self, path: str) -> os.stat_result | None:
        unpacked = super().lstat(path)
        is_link = unpacked is not None and S_ISLNK(unpacked.st_mode)
        return _of_root(unpacked) if unpacked and is_link else self.stat(path)

    def read_file(self, path: str, most: int = -1) -> tuple[os.stat_result, bytes] | None:
        found = super().read_file(path, most)
        status = self.lstat(path) if found else None
        return (status, found[1]) if found and status else None

    def selinux_label(self, path: str) -> str | None:
        self._raise_refusal("read the label of", path)
        return self._attribute("label", path)

    def peek(self, path: str, offset: int, size: int) -> bytes:
        self._raise_refusal("read", path)
        return super().peek(path, offset, size)

    def open_files(self, pid: int) -> dict[str, str]:
        self._raise_refusal("list", f"proc/{pid}/fd")
        return super().open_files(pid)

    def mappings(self, pid: int) -> bytes:
        self._raise_refusal("read", f"proc/{pid}/maps")
        return super().mappings(pid)

    def _raise_refusal(self, what: str, path: str) -> None:
        """Raise the HostError that this access caused on the machine, if it did."""
        number = self._attribute("refused", path)
        if number is not None:
            error = _parsed_text(f"/refused/{path}", number, _errno)
            raise HostError.of(what, f"/{path}", OSError(error, ""))


class SentHost(SnapshotHost):
    """A snapshot from another person: none of its links leads to a file of this machine.

    The target of such a link does not exist.
    """

    def path(self, path: str) -> str:
        full = super().path(path)
        return full if _is_below(self.root, os.path.realpath(full)) else f"{self.root}/{_NOWHERE}"

    def readlink(self, path: str) -> str | None:
        above, _, name = path.rpartition("/")
        try:
            return os.readlink(os.path.join(self.path(above), name))
        except (OSError, ValueError):
            return None


def _is_below(root: str, real: str) -> bool:
    return real == root or real.startswith(f"{root}/")


def _parsed_text(path: str, text: str, parse: Callable[[str], T]) -> T:
    """The text of a file, parsed. Raises HostError when it cannot be."""
    try:
        return parse(text)
    except (ValueError, IndexError, OverflowError) as error:
        raise HostError.unclear(path, text) from error


def _start_and_size(answer: str) -> tuple[int, int]:
    start, size = answer.split()
    return int(start, 0), int(size, 0)


def _mode_and_times(text: str) -> tuple[int, int, int, float, float]:
    mode, uid, gid, *times = text.split()
    return int(mode, 8), int(uid), int(gid), seconds(times[0]), seconds(times[-1])


def _errno(number: str) -> int:
    value = int(number)
    if not 0 < value < _LAST_ERRNO:
        raise ValueError("not an errno")
    return value


def _error(lines: str) -> HostError:
    """The error with this sentence, and the hint in a second line, if any."""
    text, _, hint = lines.partition("\n")
    return HostError(text, hint)


def _of_root(status: os.stat_result) -> os.stat_result:
    """The same status; files of the user who unpacked the snapshot belong to its root."""
    if status.st_uid != os.getuid():
        return status
    return os.stat_result((*status[:4], 0, *status[5:10]))


def answer_path(command: Iterable[str]) -> str:
    """The path of a program's output in a snapshot, below ran/."""
    from urllib.parse import quote  # slow to load, and needed only for programs

    # " = " would end the path.
    text = quote(" ".join(command), safe=" -.,:=@+", errors="surrogateescape")
    name = text.replace(" = ", "%20=%20")
    if len(name) > _LONGEST_NAME:
        from hashlib import sha256  # needed only here

        digest = sha256(name.encode()).hexdigest()[:16]
        name = f"{name[: _LONGEST_NAME - 17]}~{digest}"
    return f"ran/{name}"


def unpack_console_map(lines: str) -> tuple[int | None, ...]:
    """The framebuffer of each of the 63 consoles, from lines "1-63 0"."""
    indices: list[int | None] = [None] * len(CONSOLES)
    for line in lines.splitlines():
        consoles, index = line.split()
        first, _, last = consoles.partition("-")
        for console in range(int(first), int(last or first) + 1):
            indices[console - 1] = None if index == "-" else int(index)
    return tuple(indices)


def pack_console_map(indices: Iterable[int | None]) -> str:
    """The lines "1-63 0" for the framebuffers of consoles 1, 2, 3..."""
    runs: list[tuple[int, int, int | None]] = []
    for console, index in enumerate(indices, start=1):
        if runs and runs[-1][2] == index:
            runs[-1] = (runs[-1][0], console, index)
        else:
            runs.append((console, console, index))
    return "\n".join(
        f"{first}-{last} {'-' if index is None else index}" for first, last, index in runs
    )


@dataclass(frozen=True)
class Entry:
    """One entry of a snapshot: kind "d" for a directory, "l" for a link, "f" for a file.

    content is that of the file, or the target of the link.
    """

    kind: str
    path: str
    content: bytes = b""

    def lines(self) -> list[str]:
        """The lines of the entry. Raises ValueError for a path that cannot be written."""
        if self.kind == "d":
            return [f"d {self._checked_path('')}"]
        if self.kind == "l":
            target = self.content.decode()
            if not target.isprintable():
                raise ValueError(f"a snapshot cannot contain the link {self.path!r}")
            return [f"l {self._checked_path(' -> ')} -> {target}"]
        path = self._checked_path(" = ")
        if _UNWRITABLE.search(self.content):
            return [f"x {path} = {self.content.hex()}"]
        if not self.content:
            return [f"f {path}"]
        text = self.content.decode().removesuffix("\n")
        if "\n" not in text:
            return [f"f {path} = {text}"]
        return [f"f {path}", *(f"|{line}" for line in text.split("\n"))]

    def _checked_path(self, mark: str) -> str:
        """The path. Raises ValueError if a reader would find its end too early."""
        if not self.path.isprintable() or (mark and mark in f"{self.path} "):
            raise ValueError(f"a snapshot cannot contain the path {self.path!r}")
        return self.path


# Bytes that lines of text cannot hold; a reader may take a carriage return for a line's end.
_UNWRITABLE = re.compile(rb"[^\n\t\x20-\x7e]")


def unpack(text: str, directory: str) -> SnapshotHost:
    """Unpack a snapshot below directory, which exists. Raises HostError.

    Its links are not changed: a snapshot from another person is read through a SentHost.
    """
    # Every machine has it, and it is empty at boot.
    os.makedirs(os.path.join(directory, "run"), exist_ok=True)
    root = os.path.realpath(directory)
    inside: set[str] = set()
    for entry in entries(text):
        try:
            _unpack_entry(root, inside, entry)
        except (OSError, ValueError) as error:
            raise _unpackable(entry.path, error) from error
    return SnapshotHost(directory)


def _unpackable(path: str, error: Exception) -> HostError:
    return HostError(f"cannot unpack {path!r} of the snapshot: {error}")


def _unpack_entry(root: str, inside: set[str], entry: Entry) -> None:
    """Make one entry below root. Raises OSError, ValueError.

    inside are the directories known to be below root; no later entry can replace one by a link.
    """
    full = os.path.join(root, entry.path)
    above = os.path.dirname(full)
    # The text can come from anyone: nothing is written through a link.
    if above not in inside and not _is_below(root, os.path.realpath(above)):
        raise ValueError("it is behind a link")
    if entry.kind != "d" and os.path.lexists(full):
        raise ValueError("it is listed twice")
    if entry.kind == "d" or above not in inside:
        os.makedirs(full if entry.kind == "d" else above, 0o755, exist_ok=True)
    inside.add(above)
    if entry.kind == "l":
        os.symlink(entry.content, os.fsencode(full))
    elif entry.kind == "f":
        with open(full, "xb") as file:
            file.write(entry.content)


def entries(text: str) -> Iterator[Entry]:
    """The entries of a snapshot. Raises HostError."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line or line.startswith("#"):
            continue
        kind, _, rest = line.partition(" ")
        path, _, value = rest.partition(" -> " if kind == "l" else " = ")
        parts = path.split("/")
        bad = path.startswith("/") or ".." in parts or len(parts) > _DEEPEST
        if bad or kind not in ("d", "f", "l", "x"):
            raise HostError(f"line {at} of the snapshot is not an entry: {line[:60]!r}")
        if kind == "f":
            value += "\n" if " = " in rest else ""
            while at < len(lines) and lines[at].startswith("|"):
                value += lines[at][1:] + "\n"
                at += 1
        try:
            content = bytes.fromhex(value) if kind == "x" else value.encode()
        except ValueError as error:
            raise _unpackable(path, error) from error
        yield Entry("f" if kind == "x" else kind, path, content)
