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

unpack() lays such a text out below a directory, RecordedHost reads it there, and
record() makes one of a running machine. Nothing here reacts to a write.
"""

from __future__ import annotations

import os
import re
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
        full = os.path.join(directory, path)
        os.makedirs(full if kind == "d" else os.path.dirname(full), exist_ok=True)
        if kind == "l":
            os.symlink(value, full)
        elif kind != "d":
            with open(full, "wb") as file:
                file.write(bytes.fromhex(value) if kind == "x" else value.encode())
    return RecordedHost(directory)


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


# What record() takes along: attributes that plan reads, and the doors that
# prepare writes to (which have no content to read).
_DEVICE_FILES = (
    "boot_vga class device driver_override enable modalias power_state resource"
    " subsystem_device subsystem_vendor vendor remove"
).split()
_PLAIN_FILES = (
    "proc/iomem proc/ioports proc/fb proc/sys/kernel/osrelease"
    " proc/sys/kernel/random/boot_id sys/kernel/security/lockdown sys/class/tty/tty0/active"
).split()
_DOORS = ("bind", "unbind")
_FIRMWARE_DEVICE = re.compile(r"(?:.*-framebuffer|vga16fb|of-display)\.\d+")
# _text is in every table: it shows that there is one.
_SYMBOLS = (
    "_text",
    "aperture_remove_conflicting_pci_devices",
    "sysfb_disable",
    "radeon_pci_remove",
)


def record(host: Host) -> str:
    """The machine as a text that unpack() reads; no serial numbers, names or addresses of people.

    Raises HostError when something that is there cannot be read.
    """
    lines = ["# vfio-console-hook machine"]
    for path in _PLAIN_FILES:
        lines += _file(host, path)
    lines += _symbols(host) + _screen_info(host)
    seen: set[str] = set()
    for bus in ("pci", "platform"):
        for name in host.list(f"sys/bus/{bus}/devices"):
            lines += _device(host, bus, name, seen)
    lines += _file(host, "sys/bus/pci/drivers_probe", door=True)
    lines += _file(host, "sys/bus/pci/rescan", door=True)
    for driver in ("vfio-pci",):
        lines += _driver(host, "pci", driver, seen)
    lines += _consoles(host)
    return "\n".join(lines) + "\n"


def _file(host: Host, path: str, *, door: bool = False) -> list[str]:
    if not host.exists(path):
        return []
    try:
        content = b"" if door else host.read_bytes(path) or b""
    except HostError:
        if not path.startswith("sys/devices"):
            raise
        content = b""  # an attribute for writing only
    if not content.isascii() or b"\0" in content:
        return [f"x {path} = {content.hex()}"]
    text = content.decode().rstrip("\n")
    if not text:
        return [f"f {path}"]
    if "\n" not in text:
        return [f"f {path} = {text}"]
    return [f"f {path}", *("|" + line for line in text.split("\n"))]


def _link(host: Host, path: str) -> list[str]:
    target = host.readlink(path)
    return [] if target is None else [f"l {path} -> {target}"]


def _symbols(host: Host) -> list[str]:
    """Only the kernel symbols that a decision rests on: the whole table has megabytes."""
    table = host.read_bytes("proc/kallsyms")
    if table is None:
        return []
    lines = (line.decode() for line in table.split(b"\n"))
    kept = (line for line in lines if line.partition("\t")[0].rsplit(" ", 1)[-1] in _SYMBOLS)
    return ["f proc/kallsyms", *("|" + line for line in kept)]


def _screen_info(host: Host) -> list[str]:
    data = host.read_bytes("sys/kernel/boot_params/data")
    # struct screen_info is the first 64 bytes; the rest of boot_params is nobody's business.
    return [] if data is None else [f"x sys/kernel/boot_params/data = {data[:64].hex()}"]


def _device(host: Host, bus: str, name: str, seen: set[str]) -> list[str]:
    link = f"sys/bus/{bus}/devices/{name}"
    if bus == "platform" and not _FIRMWARE_DEVICE.fullmatch(name):
        return []
    if bus == "pci" and not (host.read(f"{link}/class") or "").startswith(("0x03", "0x0403")):
        return []
    real = host.real(link)
    if real is None:
        return []
    lines = [*_link(host, link), f"d {real}"]
    for attribute in _DEVICE_FILES:
        lines += _file(host, f"{real}/{attribute}", door=attribute == "remove")
    if host.exists(f"{real}/config"):
        # Only the standard header: capabilities may hold a serial number.
        lines += [f"x {real}/config = {host.peek(f'{real}/config', 0, 64).hex()}"]
    for name_of_link in ("driver", "subsystem", "iommu_group"):
        lines += _link(host, f"{real}/{name_of_link}")
    driver = host.link_name(f"{real}/driver")
    lines += _driver(host, bus, driver, seen) if driver else []
    for kind in ("graphics", "drm", "vfio-dev"):
        for child in host.list(f"{real}/{kind}"):
            lines += [f"d {real}/{kind}/{child}"]
            lines += _link(host, f"{real}/{kind}/{child}/device")
            lines += _file(host, f"{real}/{kind}/{child}/name")
    return lines


def _driver(host: Host, bus: str, driver: str, seen: set[str]) -> list[str]:
    folder = f"sys/bus/{bus}/drivers/{driver}"
    if folder in seen or not host.exists(folder):
        return []
    seen.add(folder)
    lines = [f"d {folder}"]
    for door in _DOORS:
        lines += _file(host, f"{folder}/{door}", door=True)
    return lines + _link(host, f"{folder}/module")


def _consoles(host: Host) -> list[str]:
    lines = []
    for kind in ("graphics", "drm"):
        lines += [f"d sys/class/{kind}"] if host.exists(f"sys/class/{kind}") else []
        for name in host.list(f"sys/class/{kind}"):
            lines += _link(host, f"sys/class/{kind}/{name}")
    indices = None
    for fb in (name for name in host.list("sys/class/graphics") if re.fullmatch(r"fb\d+", name)):
        memory = host.framebuffer_memory(fb)
        if memory is not None:
            lines += [f"f dev/{fb}", f"f ioctl/{fb}/memory = {memory[0]:#x} {memory[1]}"]
            indices = host.console_map(fb)
    if indices is not None:
        packed = pack_console_map(indices)
        lines += ["f ioctl/con2fbmap", *("|" + line for line in packed.splitlines())]
    if host.exists("sys/class/vtconsole"):
        lines += ["d sys/class/vtconsole"]
    for console in host.list("sys/class/vtconsole"):
        real = host.real(f"sys/class/vtconsole/{console}")
        lines += _link(host, f"sys/class/vtconsole/{console}") + [f"d {real}"]
        lines += _file(host, f"{real}/name") + _file(host, f"{real}/bind")
    tty = host.read("sys/class/tty/tty0/active")
    if tty:
        mode = "text" if host.text_mode(tty) else "graphics"
        lines += [f"f dev/{tty}", f"f ioctl/{tty}/mode = {mode}", "f ioctl/consoles = unlocked"]
    return lines
