"""Where libvirt looks for hooks of QEMU's, and which of them are the gate."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ...machine.host import Host

HOOKS = "etc/libvirt/hooks"
# libvirt runs MAIN, then, since 6.5, what is in DROPINS, in the order of the names
# (src/util/virhook.c, virHookCall). CHAINED is for a hook of somebody else to call.
MAIN = f"{HOOKS}/qemu"
DROPINS = f"{HOOKS}/qemu.d"
DROPIN = f"{DROPINS}/50-vfio-console-hook"
CHAINED = f"{HOOKS}/vfio-console-hook"

_MARK = re.compile(rb"^# vfio-console-hook: the gate", re.MULTILINE)


@dataclass(frozen=True)
class HookFile:
    """A file where libvirt looks for hooks, or what is there instead of one."""

    path: str
    status: os.stat_result
    content: bytes

    @property
    def ours(self) -> bool:
        return _MARK.search(self.content) is not None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def runs(self) -> bool:
        """Whether libvirt runs it: src/util/virfile.c, virFileIsExecutable, asks for any x bit."""
        return self.is_file and self.status.st_mode & 0o111 != 0

    @property
    def since(self) -> float:
        """When it came here, was changed or made executable, in seconds since the epoch."""
        return max(self.status.st_mtime, self.status.st_ctime)


def look(host: Host, path: str) -> HookFile | None:
    """What is at a path, links followed, or None. Raises HostError."""
    status = host.stat(path)
    if status is None:
        return None
    content = host.read_bytes(path) if stat.S_ISREG(status.st_mode) else b""
    return HookFile(path, status, content or b"")


def entries(host: Host) -> Iterator[HookFile]:
    """All that libvirt comes across when it calls the hooks, in its order. Raises HostError."""
    for path in (MAIN, *(f"{DROPINS}/{name}" for name in host.list(DROPINS))):
        found = look(host, path)
        if found is not None:
            yield found


def gates(host: Host) -> tuple[HookFile, ...]:
    """The files of ours that events come to: libvirt's own, or called by another hook.

    They may not be executable. Raises HostError.
    """
    there = tuple(entries(host))
    ours = [one for one in there if one.ours]
    chained = look(host, CHAINED)
    if chained is not None and chained.ours and any(calls_chained(one) for one in there):
        ours.append(chained)
    return tuple(ours)


def calls_chained(hook: HookFile) -> bool:
    """Whether a hook of somebody else calls the gate that lies beside it."""
    called = f"/{CHAINED}".encode()
    return any(called in line for _, line in code(hook.content))


def code(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a script that are no comments, without comments at their end; from 1."""
    for number, line in enumerate(content.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith(b"#"):
            yield number, re.split(rb"\s#", line)[0]
