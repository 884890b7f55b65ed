"""A recorded machine: the files, links and answers of a host, as one text.

    # a comment
    d sys/class/graphics                            an empty directory
    l sys/class/graphics/fb0 -> ../../devices/...   a link, as written in it
    f sys/class/vtconsole/vtcon0/bind = 1           a file of one line
    f proc/iomem                                    a file of many lines
    |00000000-00000fff : Reserved
    x sys/devices/pci0000:00/0000:00:02.0/config = 34121111...    bytes, in hex

What a device answers to an ioctl lies below `ioctl/`, as text:

    ioctl/fb0/memory      "0xc0000000 4096000": start and size (FBIOGET_FSCREENINFO)
    ioctl/con2fbmap       "1-63 0": consoles and their framebuffer, "-" for none
    ioctl/tty1/mode       "text" or "graphics" (KDGETMODE)
    ioctl/consoles        "locked" or "unlocked" (VT_LOCKSWITCH)

What else the machine answered, and a file below a directory cannot hold:

    stat/PATH             "100755 0 0 1732312312 1732312399": mode, uid, gid, mtime and
                          ctime (the same without it), if not as unpacked
    label/PATH            "system_u:object_r:virt_hook_t:s0" (SELinux)
    refused/PATH          "13": the errno with which everything there fails
    ran/COMMAND           what a program printed, by answer_path()
    ran/COMMAND.failed    why it failed, as a sentence; in a second line the hint, if any
    ran/COMMAND.status    what a command of the administrator exited with; empty: it went on
    libvirt/N/            name, uuid, xml, live and autostart of a VM (libvirtd.Vm); N is 1, 2...
    libvirt/unasked       why libvirt could not be asked, likewise
    recorded/now          seconds since 1970; what is missing was not there then

For a PATH that is a directory, the file is PATH/.itself.

unpack() lays such a text out below a directory and RecordedHost reads it there;
recording/ makes one of a running machine. Nothing here reacts to a write.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from stat import S_ISLNK

from ..errors import HostError
from .host import Host, seconds
from .host.consoles import CONSOLES, FBIOGET_CON2FBMAP, FBIOGET_FSCREENINFO, KDGETMODE

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from .libvirtd import Vm

    T = TypeVar("T")

ITSELF = ".itself"
# NAME_MAX is 255, and ".failed" is to fit behind.
_LONGEST_NAME = 240
# Linux has no path of as many parts below /sys and /proc; and who makes or removes the
# directories of one with a thousand would run out of stack.
_DEEPEST = 64
_LAST_ERRNO = 4096  # Linux include/linux/err.h, MAX_ERRNO
_NOWHERE = ".nowhere"


class SnapshotHost(Host):
    """A machine unpacked below a directory: ioctls are answered from its files."""

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        self._as_on_the_machine(f"ask (ioctl {FBIOGET_FSCREENINFO:#x})", f"dev/{fb}")
        return self._understood(f"ioctl/{fb}/memory", _start_and_size)

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        self._as_on_the_machine(f"ask (ioctl {FBIOGET_CON2FBMAP:#x})", f"dev/{fb}")
        if not self.exists(f"dev/{fb}"):
            return None
        return self._understood("ioctl/con2fbmap", unpack_console_map)

    def map_console(self, fb: str, console: int, index: int) -> None:
        if not self.exists(f"dev/{fb}"):
            raise HostError(f"cannot map console {console}: no /dev/{fb}", path=f"/dev/{fb}")
        indices = [*(self.console_map(fb) or [None] * len(CONSOLES))]
        indices[console - 1] = index
        self.write("ioctl/con2fbmap", pack_console_map(indices) + "\n")

    def text_mode(self, tty: str) -> bool:
        self._as_on_the_machine(f"ask (ioctl {KDGETMODE:#x})", f"dev/{tty}")
        return self.read(f"ioctl/{tty}/mode") != "graphics"

    def set_text_mode(self, tty: str, text: bool) -> None:
        self.write(f"ioctl/{tty}/mode", "text\n" if text else "graphics\n")

    def lock_consoles(self, locked: bool) -> None:
        self.write("ioctl/consoles", "locked\n" if locked else "unlocked\n")

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        status = self._answer(command, ".status")
        return self._understood(f"{answer_path(command)}.status", int) if status else None

    def now(self) -> float:
        now = self._understood("recorded/now", seconds) if self.read("recorded/now") else None
        return super().now() if now is None else now

    @property
    def complete(self) -> bool:
        return self.exists("recorded")

    @property
    def privileged(self) -> bool:
        return True  # who has laid the machine out stands for its root

    def kill(self, pid: int) -> None:
        raise HostError(f"cannot kill process {pid} of a recorded machine")

    def device_number(self, path: str) -> int | None:
        return None  # a link in its /proc would lead to a node of this machine

    def own_pids(self) -> frozenset[int]:
        return frozenset()  # we do not run there

    def open_process(self, pid: int) -> int | None:
        raise HostError(f"cannot watch process {pid} of a recorded machine")

    def write(self, path: str, text: str) -> None:
        # A recorded file keeps the whole text, as an attribute shows it back.
        if not self.exists(path):
            raise HostError(f"cannot write '{text.strip()}' to /{path}: No such file or directory")
        with open(self.path(path), "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")

    def run(self, *command: str, timeout_s: float = 30) -> str:
        return self._answer(command, "")

    def _answer(self, command: tuple[str, ...], kind: str) -> str:
        path = answer_path(command)
        failure = self.read(f"{path}.failed")
        if failure is not None:
            raise _error(failure)
        answer = self.read(f"{path}{kind}")
        if answer is None:
            raise HostError(f"cannot run {command[0]} on a recorded machine")
        return answer

    def vms(self, uri: str, name: str = "") -> tuple[Vm, ...]:
        if uri.startswith("test:"):
            return super().vms(uri, name)  # libvirt's own pretence, for tests
        if not self.exists("libvirt"):
            raise HostError("what libvirt knows is not in this recorded machine")
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
        from .libvirtd import Vm  # only for people: the hook is told what it needs

        name, uuid, xml, live, autostart = (
            self.read(f"{folder}/{part}") or ""
            for part in ("name", "uuid", "xml", "live", "autostart")
        )
        return Vm(name, uuid, xml, live, autostart == "1")

    # -- files as they were on the machine

    def _told(self, kind: str, path: str) -> str | None:
        """What kind/PATH says of a path, or None."""
        for place in (f"{kind}/{path}", f"{kind}/{path}/{ITSELF}"):
            if os.path.isfile(self.path(place)):
                return (super().read_bytes(place) or b"").decode(errors="replace").strip()
        return None

    def _understood(self, path: str, read: Callable[[str], T]) -> T | None:
        """What read makes of a file's text, None when it is not there. Raises HostError."""
        text = self.read(path)
        return None if text is None else _made(f"/{path}", text, read)

    def stat(self, path: str) -> os.stat_result | None:
        self._as_on_the_machine("look at", path)
        unpacked = super().stat(path)
        told = self._told("stat", path)
        if told is None:
            return unpacked and _of_root(unpacked)
        mode, uid, gid, modified, changed = _made(f"/stat/{path}", told, _mode_and_times)
        size = unpacked.st_size if unpacked else 0
        return os.stat_result((mode, 0, 0, 1, uid, gid, size, modified, modified, changed))

    def lstat(self, path: str) -> os.stat_result | None:
        self._as_on_the_machine("look at", path)
        unpacked = super().lstat(path)
        is_link = unpacked is not None and S_ISLNK(unpacked.st_mode)
        return _of_root(unpacked) if unpacked and is_link else self.stat(path)

    def read_file(self, path: str, most: int = -1) -> tuple[os.stat_result, bytes] | None:
        self._as_on_the_machine("read", path)
        found = super().read_file(path, most)
        status = self.lstat(path) if found else None
        return (status, found[1]) if found and status else None

    def selinux_label(self, path: str) -> str | None:
        self._as_on_the_machine("read the label of", path)
        return self._told("label", path)

    def read_bytes(self, path: str) -> bytes | None:
        self._as_on_the_machine("read", path)
        return super().read_bytes(path)

    def peek(self, path: str, offset: int, size: int) -> bytes:
        self._as_on_the_machine("read", path)
        return super().peek(path, offset, size)

    def list(self, path: str) -> tuple[str, ...]:
        self._as_on_the_machine("list", path)
        return super().list(path)

    def open_files(self, pid: int) -> dict[str, str]:
        self._as_on_the_machine("list", f"proc/{pid}/fd")
        return super().open_files(pid)

    def mappings(self, pid: int) -> bytes:
        self._as_on_the_machine("read", f"proc/{pid}/maps")
        return super().mappings(pid)

    def _as_on_the_machine(self, what: str, path: str) -> None:
        """Raise the HostError that the machine gave, where it did."""
        number = self._told("refused", path)
        if number is not None:
            error = _made(f"/refused/{path}", number, _errno)
            raise HostError.of(what, f"/{path}", OSError(error, ""))


class SentHost(SnapshotHost):
    """One that somebody sent: no link of it leads to a file of this machine.

    What lies behind such a link is not there.
    """

    def path(self, path: str) -> str:
        full = super().path(path)
        return full if _lies_in(self.root, os.path.realpath(full)) else f"{self.root}/{_NOWHERE}"

    def readlink(self, path: str) -> str | None:
        above, _, name = path.rpartition("/")
        try:
            return os.readlink(os.path.join(self.path(above), name))
        except (OSError, ValueError):
            return None


def _lies_in(root: str, real: str) -> bool:
    return real == root or real.startswith(f"{root}/")


def _made(path: str, text: str, read: Callable[[str], T]) -> T:
    """What read makes of a text. Raises HostError when it cannot."""
    try:
        return read(text)
    except (ValueError, IndexError, OverflowError) as error:
        raise HostError.unclear(path, text) from error


def _start_and_size(answer: str) -> tuple[int, int]:
    start, size = answer.split()
    return int(start, 0), int(size, 0)


def _mode_and_times(told: str) -> tuple[int, int, int, int, int]:
    mode, uid, gid, *times = told.split()
    modified, changed = seconds(times[0]), seconds(times[-1])
    return int(mode, 8), int(uid), int(gid), int(modified), int(changed)


def _errno(number: str) -> int:
    value = int(number)
    if not 0 < value < _LAST_ERRNO:
        raise ValueError("no errno")
    return value


def _error(told: str) -> HostError:
    """The error that a sentence, and a hint in the second line, tell of."""
    text, _, hint = told.partition("\n")
    return HostError(text, hint)


def _of_root(status: os.stat_result) -> os.stat_result:
    """The same file; who has laid the machine out stands for its root."""
    if status.st_uid != os.getuid():
        return status
    return os.stat_result((*status[:4], 0, *status[5:10]))


def answer_path(command: Iterable[str]) -> str:
    """Where what a program printed is on a recorded machine, below ran/."""
    from urllib.parse import quote  # slow to load, and only for programs

    # " = " would be taken for the end of the path.
    name = quote(" ".join(command), safe=" -.,:=@+").replace(" = ", "%20=%20")
    if len(name) > _LONGEST_NAME:
        from hashlib import sha256  # only for this

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
    """One entry of a recorded machine: kind "d" for a directory, "l" for a link, "f" for a file.

    content is that of the file, or the text of the link.
    """

    kind: str
    path: str
    content: bytes = b""

    def lines(self) -> list[str]:
        """The entry as it is written. Raises ValueError for a path that cannot be."""
        if self.kind == "d":
            return [f"d {self._named('')}"]
        if self.kind == "l":
            target = self.content.decode()
            if not target.isprintable():
                raise ValueError(f"a recorded machine cannot hold the link {self.path!r}")
            return [f"l {self._named(' -> ')} -> {target}"]
        path = self._named(" = ")
        if _UNWRITABLE.search(self.content):
            return [f"x {path} = {self.content.hex()}"]
        whole = self.content.decode()
        text = whole[:-1] if whole.endswith("\n") else whole
        if not whole:
            return [f"f {path}"]
        if "\n" not in text:
            return [f"f {path} = {text}"]
        return [f"f {path}", *(f"|{line}" for line in text.split("\n"))]

    def _named(self, mark: str) -> str:
        """The path, if nothing in it could be taken for the end of it."""
        if not self.path.isprintable() or (mark and mark in f"{self.path} "):
            raise ValueError(f"a recorded machine cannot hold the path {self.path!r}")
        return self.path


# What is no text of its own lines: a reader may take a carriage return for a line's end.
_UNWRITABLE = re.compile(rb"[^\n\t\x20-\x7e]")


def unpack(text: str, directory: str) -> SnapshotHost:
    """Lay a recorded machine out below directory, which exists. Raises HostError.

    Its links stay as they are: what is not from ourselves is read through a SentHost.
    """
    # Every machine has it, and it is empty at boot.
    os.makedirs(os.path.join(directory, "run"), exist_ok=True)
    for kind, path, value in _parsed(text):
        try:
            _lay_out(os.path.realpath(directory), kind, path, value)
        except (OSError, ValueError) as error:
            raise HostError(f"cannot lay out {path!r} of the recorded machine: {error}") from error
    return SnapshotHost(directory)


def entries(text: str) -> Iterator[Entry]:
    """The entries of a recorded machine. Raises HostError."""
    for kind, path, value in _parsed(text):
        content = bytes.fromhex(value) if kind == "x" else value.encode()
        yield Entry("f" if kind == "x" else kind, path, content)


def _lay_out(root: str, kind: str, path: str, value: str) -> None:
    """Make one entry below root. Raises OSError, ValueError."""
    full = os.path.join(root, path)
    above = os.path.dirname(full)
    # The text may come from anybody: nothing is written through a link.
    if not _lies_in(root, os.path.realpath(above)):
        raise ValueError("it lies behind a link")
    if kind != "d" and os.path.lexists(full):
        raise ValueError("it is there twice")
    os.makedirs(full if kind == "d" else above, 0o755, exist_ok=True)
    if kind == "l":
        os.symlink(value, full)
    elif kind != "d":
        with open(full, "xb") as file:
            file.write(bytes.fromhex(value) if kind == "x" else value.encode())


def _parsed(text: str) -> Iterator[tuple[str, str, str]]:
    """(kind, path, value) of each entry; a file's value is its whole content."""
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
            raise HostError(f"line {at} of the recorded machine is not an entry: {line[:60]!r}")
        if kind == "f":
            value += "\n" if " = " in rest else ""
            while at < len(lines) and lines[at].startswith("|"):
                value += lines[at][1:] + "\n"
                at += 1
        yield kind, path, value
