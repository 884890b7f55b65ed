"""Processes in /proc: whose child one is, whether it is stuck, and killing the right one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import HostError
from ..value import Value
from .host import Host

_SIGKILL = 9  # the module signal takes a millisecond to load


@dataclass(frozen=True, eq=False, repr=False)
class Process(Value):
    """One process. state is a letter, "D" for one that the kernel does not let go of.

    started is in clock ticks since boot: with the pid it names a process for good.
    """

    pid: int
    state: str
    parent: int
    session: int
    started: int


def find(host: Host, pid: int) -> Process | None:
    """The process of that number, or None when there is none, or only a zombie of it."""
    try:
        text = host.read(f"proc/{pid}/stat") or ""
    except HostError:
        return None
    # The name, in parentheses, may hold blanks and parentheses itself (proc(5)).
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    numbers = tuple(map(pid_of, (fields[1], fields[3], fields[19])))
    return None if None in numbers else Process(pid, fields[0], *(one or 0 for one in numbers))


def pids(host: Host) -> tuple[int, ...]:
    """The numbers of all processes, sorted. Raises HostError."""
    found = map(pid_of, host.list("proc"))
    return tuple(sorted(pid for pid in found if pid is not None))


def pid_of(text: str) -> int | None:
    """The process id that a text is, such as the content of a pid file, or None."""
    # 64 bits have 20 digits, and Python refuses to read some thousand.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def this(host: Host) -> tuple[int, int]:
    """This process as (pid, start in ticks since boot); 0 ticks in a snapshot."""
    process = find(host, os.getpid())
    return os.getpid(), process.started if process else 0


def lives(host: Host, name: tuple[int, int]) -> bool:
    """Whether the process that was (pid, start in ticks) is still there."""
    process = find(host, name[0]) if name[0] else None
    return process is not None and process.started == name[1]


def in_session(host: Host, session: int) -> tuple[Process, ...]:
    """The processes of a session (setsid), children that outlived their parents included.

    A number may have become that of another session since, unless its leader is still
    there, if only as a zombie (Linux kernel/pid.c).
    """
    found = (find(host, pid) for pid in pids(host))
    return tuple(one for one in found if one is not None and one.session == session)


# In the environment of all programs that a worker starts: the kernel gives the number of a
# session anew, so the number alone does not say whose program it is.
_MARK = "VFIO_CONSOLE_HOOK_WORKER"


def mark_programs(host: Host, worker: tuple[int, int]) -> None:
    """Let all programs that are run from now on bear the mark of this worker."""
    host.environment[_MARK] = _mark_of(worker)


def programs_of(host: Host, worker: tuple[int, int]) -> tuple[Process, ...]:
    """The programs that a worker has started, and they in turn, and that still run."""
    mark = f"{_MARK}={_mark_of(worker)}".encode()
    return tuple(one for one in in_session(host, worker[0]) if mark in _environment(host, one.pid))


def _mark_of(worker: tuple[int, int]) -> str:
    return f"{worker[0]}.{worker[1]}"


def _environment(host: Host, pid: int) -> list[bytes]:
    try:
        return (host.read_bytes(f"proc/{pid}/environ") or b"").split(b"\0")
    except HostError:
        return []


def kill(host: Host, process: Process) -> None:
    """Kill this very process, whichever has its number by now. Raises HostError."""
    handle = host.open_process(process.pid)
    if handle is None:
        return
    try:
        # From here on the handle stays that of one process: of the one that is meant?
        now = find(host, process.pid)
        if now is not None and now.started == process.started:
            host.signal_process(handle, _SIGKILL)
    finally:
        host.close_process(handle)


def stuck_in(host: Host, process: Process) -> str:
    """Where the kernel holds a process, for people: "process 12 in nv_pci_remove"."""
    try:
        where = host.read(f"proc/{process.pid}/wchan") or ""
    except HostError:
        where = ""
    return f"process {process.pid}" + (f" in {where}" if where not in ("", "0") else "")
