"""Finds the hook's changes to the host's consoles in a trace by strace.

Reads the output of `strace -f -y -X verbose`. The calls of a process that has executed
a hook or Python, and of its children, are the hook's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_OPENS = ("open", "openat", "openat2", "creat")
_FORKS = ("clone", "clone3", "fork", "vfork")
_WRITES = ("write", "pwrite64", "writev")
CALLS = (*_OPENS, *_FORKS, *_WRITES, "execve", "ioctl")

_LINE = re.compile(r"(\d+) +(.*)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\w+)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")

_HOOKS = "/etc/libvirt/hooks/"
_PYTHON = "/usr/bin/python3"

# Attributes by which consoles, vtconsoles and framebuffers are changed.
_ATTRIBUTE = re.compile(
    r"/sys/(class/(vtconsole|graphics)|devices/virtual/(vtconsole|graphics)"
    r"|devices/.*/graphics|bus/platform/drivers/\w+-framebuffer)/"
)
_FRAMEBUFFER = re.compile(r"/dev/fb\d+$")
_TERMINAL = re.compile(r"/dev/(tty\d*|console|vcs.*)$")
_ACCESS_MODE = 0o3  # O_ACCMODE; 0 is O_RDONLY
# The ioctls that only read: FBIOGET_VSCREENINFO, FBIOGET_FSCREENINFO, FBIOGETCMAP,
# FBIOGET_CON2FBMAP (Linux include/uapi/linux/fb.h).
_ASKING = (0x4600, 0x4602, 0x4604, 0x460F)
# KD* (linux/kd.h) and VT_* (linux/vt.h), including those that only read.
_CONSOLE_IOCTLS = ("K", "V")


@dataclass(frozen=True)
class Call:
    """A system call in a trace."""

    pid: int
    name: str
    arguments: str
    result: str

    @property
    def text(self) -> str:
        return f"{self.name}({self.arguments}) = {self.result}"


@dataclass(frozen=True)
class HookTrace:
    """The hook's system calls, and the events for which libvirt called it."""

    events: frozenset[str]
    calls: tuple[Call, ...]

    @property
    def console_changes(self) -> tuple[Call, ...]:
        """The calls that change a console, a vtconsole or a framebuffer, or can do so."""
        return tuple(call for call in self.calls if _changes(call))


def read(text: str) -> HookTrace:
    """The hook's part of a trace."""
    everything = tuple(calls(text.splitlines()))
    parents = {
        int(call.result): call.pid
        for call in everything
        if call.name in _FORKS and call.result.isdigit()
    }
    executed = [
        (call.pid, call.arguments)
        for call in everything
        if call.name == "execve" and call.result == "0" and _is_ours(call.arguments)
    ]
    ours = {pid for pid, _ in executed}

    def belongs(pid: int | None) -> bool:
        while pid is not None and pid not in ours:
            pid = parents.get(pid)
        return pid is not None

    # The words: the program, argv[0], the VM, the operation.
    words = [_PATH.findall(arguments) for _, arguments in executed]
    events = frozenset(one[3] for one in words if one[0].startswith(_HOOKS) and len(one) > 3)
    return HookTrace(events, tuple(call for call in everything if belongs(call.pid)))


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """The system calls of a trace; one that strace wrote in two parts is one call."""
    begun: dict[str, str] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        pid, text = match.groups()
        if text.endswith(_UNFINISHED):
            begun[pid] = text[: -len(_UNFINISHED)]
            continue
        resumed = _RESUMED.match(text)
        if resumed:
            text = begun.pop(pid, f"{resumed[1]}(") + resumed[2]
        call = _CALL.match(text)
        if call:
            yield Call(int(pid), *call.groups())
    # A call that did not return may have changed something.
    for pid, text in begun.items():
        name, _, arguments = text.partition("(")
        yield Call(int(pid), name, arguments, "?")


def _is_ours(arguments: str) -> bool:
    program = _PATH.match(arguments)
    return program is not None and program[1].startswith((_HOOKS, _PYTHON))


def _changes(call: Call) -> bool:
    if call.name in _OPENS:
        path = _PATH.search(call.arguments)
        return path is not None and _is_console(path[1]) and _writable(call, path.end())
    descriptor = _DESCRIPTOR.match(call.arguments)
    if descriptor is None:
        return False
    if call.name in _WRITES:
        return _is_console(descriptor[1])
    if call.name == "ioctl":
        request = _NUMBER.search(call.arguments, descriptor.end())
        return request is not None and _ioctl_changes(descriptor[1], int(request[0], 0))
    return False


def _is_console(path: str) -> bool:
    return any(kind.match(path) for kind in (_ATTRIBUTE, _FRAMEBUFFER, _TERMINAL))


def _writable(call: Call, after: int) -> bool:
    if call.name == "creat":
        return True
    flags = _NUMBER.search(call.arguments, after)
    return flags is not None and bool(int(flags[0], 0) & _ACCESS_MODE)


def _ioctl_changes(path: str, request: int) -> bool:
    if _FRAMEBUFFER.match(path):
        return request not in _ASKING
    return bool(_TERMINAL.match(path)) and chr(request >> 8 & 0xFF) in _CONSOLE_IOCTLS
