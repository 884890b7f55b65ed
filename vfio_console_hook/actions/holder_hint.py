"""The hint for a VM that is refused because processes hold its GPU: the one most useful thing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..config.load import VMS
from ..machine import systemd
from ..machine.holder import Holder
from ..machine.host import Host
from . import compositors
from .holder_kill import SESSION, Entries
from .holders import AwaitClosed

# Where a running unit has its cgroup: with one hierarchy, and with the older ones.
_CGROUPS = ("sys/fs/cgroup", "sys/fs/cgroup/systemd", "sys/fs/cgroup/unified")
_USER = re.compile(r"/user-(\d+)\.slice/")
# Stopping one of these would end libvirt, the administrator's access or the whole session.
_NEVER_STOP = re.compile(r"systemd-.*|libvirtd|virt[a-z]+d|sshd?|dropbear|dbus.*")
_MAX_UNITS = 3
_MAX_UNIT = 48


def hint(host: Host, holders: Sequence[Holder], wait: AwaitClosed, entries: Entries) -> str:
    """What to do so that these processes close the GPU, as one hint."""
    keeps_off = compositors.setting(host, holders, wait.gpus)
    if keeps_off:
        return keeps_off
    managers = systemd.display_managers(host)
    units = _stoppable_services(holders, managers)
    sessions = [one for one in holders if _USER.search(one.cgroup)]
    logind = any(one.command == "systemd-logind" for one in holders)
    running = any(
        host.exists(f"{top}/system.slice/{unit}") for top in _CGROUPS for unit in managers
    )
    if running and (sessions or logind) and "display-manager" not in units:
        units.insert(0, "display-manager")
    place = wait.file or f"/{VMS}/NAME.yaml"
    if units:
        listed = ", ".join(units[:_MAX_UNITS])
        them = "it" if len(units) == 1 else "them"
        return f"add `services: [{listed}]` to {place} to stop {them} for the VM"
    endable = [one for one in sessions if entries.matches(one, SESSION)]
    if endable and SESSION not in wait.terminate and not wait.desktop:
        return _end_session(endable[0], place, outlived=bool(managers))
    if logind:
        return "end the login session that has the GPU, see `loginctl list-sessions`"
    if any("/machine.slice/" in one.cgroup for one in holders):
        return "shut down the VM or container that uses it"
    if all(one.unknown for one in holders):
        return "stop them: before Linux 6.0 it is not safe to remove an open framebuffer"
    return "stop these processes, or increase `holders.wait_s`"


def _stoppable_services(holders: Sequence[Holder], managers: Sequence[str]) -> list[str]:
    """The system units among the holders, as they are written in `services`."""
    found = []
    for one in holders:
        name, _, kind = one.unit.rpartition(".")
        inside = one.cgroup.startswith(("/user.slice/", "/machine.slice/"))
        if one.unit in managers:
            found.append("display-manager")
        elif kind == "service" and not inside and not _NEVER_STOP.fullmatch(name):
            found.append(name if len(name) <= _MAX_UNIT else one.unit[:_MAX_UNIT] + "...")
    found.sort(key=lambda name: name != "display-manager")
    return list(dict.fromkeys(found))


def _end_session(one: Holder, place: str, *, outlived: bool) -> str:
    """How to end a process in a user's session: the whole session, or its user unit."""
    match = _USER.search(one.cgroup)
    user = match[1] if match else ""
    why = f"the session of user {user} has outlived its display manager: " if outlived else ""
    unit = one.unit
    stop = ""
    if f"/user@{user}.service/" in one.cgroup and unit.endswith(".service"):
        stop = f", or `systemctl --user -M {user}@ stop {unit[:_MAX_UNIT]}`"
    return f"{why}add `holders: {{terminate: [session]}}` to {place}{stop}"
