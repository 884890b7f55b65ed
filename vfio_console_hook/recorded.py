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

unpack() lays such a text out below a directory and RecordedHost reads it there;
recorder.py makes one of a running machine. Nothing here reacts to a write.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from .errors import HostError
from .host import CONSOLES, Host


class RecordedHost(Host):
    """A machine unpacked below a directory: ioctls are answered from its files."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.owner_uid = os.getuid()

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        answer = self.read(f"ioctl/{fb}/memory")
        if answer is None:
            return None
        start, size = answer.split()
        return int(start, 0), int(size, 0)

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        lines = self.read("ioctl/con2fbmap")
        if lines is None or not self.exists(f"dev/{fb}"):
            return None
        return unpack_console_map(lines)

    def map_console(self, fb: str, console: int, index: int) -> None:
        if not self.exists(f"dev/{fb}"):
            raise HostError(f"cannot map console {console}: no /dev/{fb}", path=f"/dev/{fb}")
        indices = [*(self.console_map(fb) or [None] * len(CONSOLES))]
        indices[console - 1] = index
        self.write("ioctl/con2fbmap", pack_console_map(indices) + "\n")

    def text_mode(self, tty: str) -> bool:
        return self.read(f"ioctl/{tty}/mode") != "graphics"

    def set_text_mode(self, tty: str, text: bool) -> None:
        self.write(f"ioctl/{tty}/mode", "text\n" if text else "graphics\n")

    def lock_consoles(self, locked: bool) -> None:
        self.write("ioctl/consoles", "locked\n" if locked else "unlocked\n")

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        raise HostError(f"cannot run {command[0]} on a recorded machine")

    def kill(self, pid: int) -> None:
        raise HostError(f"cannot kill process {pid} of a recorded machine")

    def device_number(self, path: str) -> int | None:
        return None  # a link in its /proc would lead to a node of this machine

    def ourselves(self) -> frozenset[int]:
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
        raise HostError(f"cannot run {command[0]} on a recorded machine")


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


def unpack(text: str, directory: str) -> RecordedHost:
    """Lay a recorded machine out below directory, which exists. Raises HostError."""
    # Every machine has it, and it is empty at boot.
    os.makedirs(os.path.join(directory, "run"), exist_ok=True)
    for kind, path, value in _entries(text):
        try:
            _lay_out(os.path.realpath(directory), kind, path, value)
        except (OSError, ValueError) as error:
            raise HostError(f"cannot lay out {path!r} of the recorded machine: {error}") from error
    return RecordedHost(directory)


def _lay_out(root: str, kind: str, path: str, value: str) -> None:
    """Make one entry below root. Raises OSError, ValueError."""
    full = os.path.join(root, path)
    above = os.path.dirname(full)
    # The text may come from anybody: nothing is written through a link.
    if os.path.commonpath([root, os.path.realpath(above)]) != root:
        raise ValueError("it lies behind a link")
    os.makedirs(full if kind == "d" else above, 0o755, exist_ok=True)
    if kind == "l":
        os.symlink(value, full)
    elif kind != "d":
        with open(full, "xb") as file:
            file.write(bytes.fromhex(value) if kind == "x" else value.encode())


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
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
        if kind not in ("d", "f", "l", "x") or path.startswith("/") or ".." in path.split("/"):
            raise HostError(f"line {at} of the recorded machine is not an entry: {line[:60]!r}")
        if kind == "f":
            value += "\n" if " = " in rest else ""
            while at < len(lines) and lines[at].startswith("|"):
                value += lines[at][1:] + "\n"
                at += 1
        yield kind, path, value
