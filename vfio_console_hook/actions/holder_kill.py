"""Ending processes that hold a GPU, with SIGTERM and SIGKILL: only those that are configured."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence

from ..errors import HostError
from ..machine import processes
from ..machine.holders import Holder, Search, pauses
from ..machine.host import Host

# How long a process may take to be gone after SIGKILL. One in state D never is.
_KILL_S = 2.0
_COMM = 15  # TASK_COMM_LEN without the final NUL (Linux include/linux/sched.h)

# libvirt's daemons with what they start for a VM, such as virtiofsd, and what would take
# the whole desktop or the host down with it.
_NEVER = re.compile(r"systemd|systemd-logind|libvirtd|virt[a-z]+d")


def may_be_ended(host: Host, holder: Holder, names: Collection[str]) -> bool:
    """Whether names list the process, by its command or unit, and it is not protected."""
    return any(_matches(holder, name) for name in names) and not _is_protected(host, holder)


def _matches(holder: Holder, name: str) -> bool:
    if holder.command.startswith("sshd") and not name.startswith("ssh"):
        return False  # it may be in the unit of a session, and the administrator's only access
    unit = holder.unit
    return name[:_COMM] == holder.command or (unit != "" and name in (unit, _stem(unit)))


def _stem(unit: str) -> str:
    return unit.rpartition(".")[0]


def _is_protected(host: Host, holder: Holder) -> bool:
    """Whether it is never ended: process 1, logind, libvirt, a VM, or one that is not known."""
    if holder.unknown or holder.pid == 1 or "/machine.slice/" in f"{holder.cgroup}/":
        return True
    unit = holder.unit
    if _NEVER.fullmatch(holder.command) or (
        unit.endswith(".service") and _NEVER.fullmatch(_stem(unit))
    ):
        return True
    try:
        program = host.link_name(f"proc/{holder.pid}/exe") or ""
    except HostError:
        return True
    return program.startswith("qemu")


def end(host: Host, search: Search, holders: Sequence[Holder], grace_s: float) -> list[Holder]:
    """Send SIGTERM to these processes, and SIGKILL after grace_s; returns those that got one.

    A process that has closed the nodes meanwhile is left alone. It is not checked here
    that all are gone afterwards.
    """
    handles: dict[int, int] = {}
    try:
        for one in holders:
            handle = host.open_process(one.pid)
            if handle is None:
                continue
            handles[one.pid] = handle
            # The handle names one process for good; the pid may have been reused before it.
            process = processes.find(host, one.pid)
            if process is None or process.started != one.started or not search.among([one.pid]):
                host.close_process(handles.pop(one.pid))
        for handle in handles.values():
            host.signal_process(handle, signal.SIGTERM)
        left = _wait_for_close(host, search, handles, grace_s)
        for pid in left:
            host.signal_process(handles[pid], signal.SIGKILL)
        _wait_for_close(host, search, {pid: handles[pid] for pid in left}, host.time_for(_KILL_S))
        return [one for one in holders if one.pid in handles]
    finally:
        for handle in handles.values():
            host.close_process(handle)


def _wait_for_close(
    host: Host, search: Search, handles: dict[int, int], timeout_s: float
) -> list[int]:
    """Wait until these processes have closed the nodes; the pids of those that still have not."""
    left = [one.pid for one in search.among(handles)]
    for pause_s in pauses(host, timeout_s):
        if not left:
            break
        host.wait_for_end([handles[pid] for pid in left], pause_s)
        left = [one.pid for one in search.among(left)]
    return left
