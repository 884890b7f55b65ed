"""Ending processes that hold a GPU: only those that are configured.

An entry of `holders.terminate` is a command, a unit that the process is part of (also a slice,
or the manager of a user's units), a pattern for one of these, or "session". A login session
is stopped as a whole, with its user's units: else its manager would start them again. A session
of the same user without the GPU, such as one by ssh, goes on.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from functools import cached_property

from ..errors import HostError
from ..machine import processes, systemd
from ..machine.holder import Holder
from ..machine.holders import COMM, Search, cgroup_of, command_of, pauses
from ..machine.host import Host

SESSION = "session"
"""The entry for whatever login session has the GPU."""
DESKTOP = "session of a stopped display manager"
"""Not in a configuration: what is left of a desktop whose display manager was stopped."""
# The commands of ssh servers, which may be the administrator's only access.
_SSH = ("sshd", "dropbear", "tinysshd")
# A session that one of these has begun is not meant: by ssh, or at a text console.
_BEGUN_BY = {SESSION: _SSH, DESKTOP: (*_SSH, "login")}

# How long a process may take to be gone after SIGKILL. One in state D never is.
_KILL_S = 2.0

# libvirt's daemons with what they start for a VM, such as virtiofsd, and what would take
# the whole desktop or the host down with it.
_UNIT = re.compile(r"\.(?:service|scope|slice)$")
# Where pam_systemd(8) puts what a user starts: in the scope of the session, or below the
# manager of the user's own units.
_USER = re.compile(r"/user\.slice/user-\d+\.slice/(session-\w+\.scope|user@\d+\.service)(?![^/])")
_NEVER = re.compile(r"systemd|systemd-logind|libvirtd|virt[a-z]+d|qemu.*")


class Entries:
    """Entries of `holders.terminate`: which processes they are for, at one moment.

    What has begun the login sessions is looked for once, whatever the number of holders, and
    only for an entry that is about sessions: a look at all processes takes tens of milliseconds.
    """

    def __init__(self, host: Host, names: Collection[str]) -> None:
        self._host = host
        self.names = tuple(names)

    def may_end(self, holder: Holder) -> bool:
        """Whether one of them is for the process, and it is not protected."""
        meant = any(self.matches(holder, name) for name in self.names)
        return meant and not _is_protected(self._host, holder)

    def matches(self, holder: Holder, name: str) -> bool:
        """Whether an entry, which need not be one of them, is for this process."""
        server = next((one for one in _SSH if holder.command.startswith(one)), None)
        if server and not name.startswith((server, "ssh")):
            return False  # it may be in the unit of a session
        if name in _BEGUN_BY:
            return self._unit_of_session(holder, name) is not None
        units = [part for part in holder.cgroup.split("/") if _UNIT.search(part)]
        known = [holder.command, *units, *map(_stem, filter(None, [holder.unit]))]
        return name[:COMM] == holder.command or any(fnmatchcase(one, name) for one in known)

    def stop_sessions(self, holders: Sequence[Holder]) -> list[str]:
        """Begin to stop the login sessions that are meant; their units. Raises HostError."""
        meant = [entry for entry in self.names if entry in _BEGUN_BY]
        found = [self._unit_of_session(one, entry) for one in holders for entry in meant]
        units = list(dict.fromkeys(unit for unit in found if unit is not None))
        if units:
            systemd.systemctl(self._host, "stop", "--no-block", "--", *units)
        return units

    def _unit_of_session(self, holder: Holder, entry: str) -> str | None:
        """The unit to stop for the end of the process's login session; None if not meant."""
        found = _USER.match(holder.cgroup)
        if found is None:
            return None
        for command, cgroup in self._beginners:
            if command.startswith(_BEGUN_BY[entry]) and cgroup.startswith(found[0]):
                return None
        return found[1]

    @cached_property
    def _beginners(self) -> tuple[tuple[str, str], ...]:
        """Each process that may have begun a session that is not meant: its command, its cgroup."""
        commands = ((pid, command_of(self._host, pid)) for pid in processes.pids(self._host))
        return tuple(
            (command, cgroup_of(self._host, pid))
            for pid, command in commands
            if command.startswith(_BEGUN_BY[DESKTOP])
        )


def _stem(unit: str) -> str:
    return unit.rpartition(".")[0]


def is_never_ended(name: str) -> bool:
    """Whether a process of this command, or of this service, is never ended."""
    return _NEVER.fullmatch(_stem(name) if name.endswith(".service") else name) is not None


def _is_protected(host: Host, holder: Holder) -> bool:
    """Whether it is never ended: process 1, logind, libvirt, a VM, or one that is not known."""
    if holder.unknown or holder.pid == 1 or "/machine.slice/" in f"{holder.cgroup}/":
        return True
    if is_never_ended(holder.command) or is_never_ended(holder.unit):
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
