"""Ending the processes that hold a GPU: those that the configuration names, and no others.

Only where somebody has to be ended is this loaded.
"""

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

# libvirt's daemons and what they start for a VM, such as virtiofsd; and whoever would
# take the whole desktop, or the host, along.
_NEVER = re.compile(r"systemd|systemd-logind|libvirtd|virt[a-z]+d")


def may_end(host: Host, holder: Holder, names: Collection[str]) -> bool:
    """Whether a process may be ended: it is named, by its command or unit, and not spared."""
    return any(_is_named(holder, name) for name in names) and not _is_spared(host, holder)


def _is_named(holder: Holder, name: str) -> bool:
    if holder.command.startswith("sshd") and not name.startswith("ssh"):
        return False  # it may be in the unit of a session, and be the person's only way in
    unit = holder.unit
    return name[:_COMM] == holder.command or (unit != "" and name in (unit, _stem(unit)))


def _stem(unit: str) -> str:
    return unit.rpartition(".")[0]


def _is_spared(host: Host, holder: Holder) -> bool:
    """Whether it is never ended: process 1, logind, libvirt, a VM, one that is not known."""
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
    """End these processes, first with SIGTERM, after grace_s with SIGKILL; those it was sent to.

    A process that has closed the nodes meanwhile is left alone. Whether all are
    gone afterwards, the caller has to look.
    """
    handles: dict[int, int] = {}
    try:
        for one in holders:
            handle = host.open_process(one.pid)
            if handle is None:
                continue
            handles[one.pid] = handle
            # From here on it cannot be mistaken for another process; up to here it could.
            process = processes.find(host, one.pid)
            if process is None or process.started != one.started or not search.among([one.pid]):
                host.close_process(handles.pop(one.pid))
        for handle in handles.values():
            host.signal_process(handle, signal.SIGTERM)
        left = _await(host, search, handles, grace_s)
        for pid in left:
            host.signal_process(handles[pid], signal.SIGKILL)
        _await(host, search, {pid: handles[pid] for pid in left}, _KILL_S)
        return [one for one in holders if one.pid in handles]
    finally:
        for handle in handles.values():
            host.close_process(handle)


def _await(host: Host, search: Search, handles: dict[int, int], timeout_s: float) -> list[int]:
    """Those that still hold the nodes after timeout_s; nobody as soon as they do not."""
    left = [one.pid for one in search.among(handles)]
    for pause_s in pauses(host, timeout_s):
        if not left:
            break
        host.wait_for_end([handles[pid] for pid in left], pause_s)
        left = [one.pid for one in search.among(left)]
    return left
