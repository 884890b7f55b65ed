"""The files where libvirt looks for QEMU hooks, and which of them are the gate of this hook."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ...machine.host import Host

HOOKS = "etc/libvirt/hooks"
# libvirt runs MAIN, then, since 6.5, what is in DROPINS, in the order of the names
# (src/util/virhook.c, virHookCall). CHAINED is there for another hook to call.
MAIN = f"{HOOKS}/qemu"
DROPINS = f"{HOOKS}/qemu.d"
DROPIN = f"{DROPINS}/50-vfio-console-hook"
CHAINED = f"{HOOKS}/vfio-console-hook"
# The same for the events of the daemon itself.
DAEMON = f"{HOOKS}/daemon"

_PYTHON = re.compile(rb"^PYTHON=/(usr/bin/python3[0-9.]*)$", re.MULTILINE)
_MARK = re.compile(rb"^# vfio-console-hook: the gate", re.MULTILINE)


@dataclass(frozen=True)
class HookFile:
    """A file, a folder or a link where libvirt looks for hooks.

    status and content are those of what a link leads to; status is None for a link to
    nothing. target is where a dangling link points to.
    """

    path: str
    status: os.stat_result | None
    content: bytes = b""
    target: str = ""

    @property
    def ours(self) -> bool:
        return is_gate(self.content)

    @property
    def dangling(self) -> bool:
        return self.status is None

    @property
    def is_file(self) -> bool:
        return self.status is not None and stat.S_ISREG(self.status.st_mode)

    @property
    def is_folder(self) -> bool:
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    @property
    def runs(self) -> bool:
        """Whether libvirt runs it: src/util/virfile.c, virFileIsExecutable, wants any x bit."""
        return self.is_file and self.status is not None and self.status.st_mode & 0o111 != 0

    @property
    def since(self) -> float:
        """When it was put here, changed or made executable, in seconds since the epoch."""
        return max(self.status.st_mtime, self.status.st_ctime) if self.status else 0.0


def is_gate(content: bytes) -> bool:
    """Whether a file is the gate of this hook."""
    return _MARK.search(content) is not None


def python_of(gate: bytes) -> str:
    """The Python that a gate starts, as a path below the root; install.sh writes it there."""
    match = _PYTHON.search(gate)
    return match[1].decode() if match else "usr/bin/python3"


def python_of_hook(host: Host) -> str:
    """The Python that runs the hook on this host, as a path below the root. Raises HostError."""
    return next((python_of(one.content) for one in gates(host)), python_of(b""))


def hook_file(host: Host, path: str) -> HookFile | None:
    """What is at a path, links followed, or None. Raises HostError."""
    status = host.stat(path)
    if status is None:
        target = host.readlink(path)
        return None if target is None else HookFile(path, None, target=target)
    content = host.read_bytes(path) if stat.S_ISREG(status.st_mode) else b""
    return HookFile(path, status, content or b"")


def hook_files(host: Host, main: str = MAIN) -> Iterator[HookFile]:
    """All that libvirt finds when it calls the hooks, in its order. Raises HostError."""
    for path in (main, *(f"{main}.d/{name}" for name in host.list(f"{main}.d"))):
        found = hook_file(host, path)
        if found is not None:
            yield found


def gates(host: Host) -> tuple[HookFile, ...]:
    """The files of ours that get events, from libvirt itself or from another hook.

    They may not be executable. Raises HostError.
    """
    there = tuple(hook_files(host))
    ours = [one for one in there if one.ours]
    chained = hook_file(host, CHAINED)
    if chained is not None and chained.ours and any(_calls_chained(one) for one in there):
        ours.append(chained)
    return tuple(ours)


def _calls_chained(hook: HookFile) -> bool:
    """Whether another hook calls the gate that lies beside it."""
    called = f"/{CHAINED}".encode()
    return any(called in line for _, line in code_lines(hook.content))


def code_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a script that are no comments, with their numbers, without trailing comments."""
    for number, line in enumerate(content.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith(b"#"):
            yield number, re.split(rb"\s#", line)[0]
