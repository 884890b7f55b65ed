"""The hint for a VM that is refused because processes hold its GPU: the one most useful thing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..config.load import VMS
from ..machine import systemd
from ..machine.holder import Holder, printable
from ..machine.host import Host
from . import compositors
from .holder_kill import DESKTOP, SESSION, Entries
from .holders import AwaitClosed

_USER = re.compile(r"/user-(\d+)\.slice/")
# A command that is a string in YAML as it is, and no pattern.
_PLAIN = re.compile(
    r"(?!(?:true|false|yes|no|on|off|null)$)[a-z][\w.+-]*", re.ASCII | re.IGNORECASE
)
# Stopping one of these would end libvirt, the administrator's access or the whole session.
_NEVER_STOP = re.compile(r"systemd-.*|libvirtd|virt[a-z]+d|sshd?|dropbear|dbus.*")
_MAX_UNITS = 3
_MAX_UNIT = 48


def hint(
    host: Host, holders: Sequence[Holder], wait: AwaitClosed, entries: Entries, *, kept: bool
) -> str:
    """What to do so that these processes close the GPU, as one hint: no more than is needed.

    kept: whether logind or seatd has a card open too.
    """
    keeps_off = compositors.setting(host, holders, wait.gpus)
    if keeps_off:
        return keeps_off
    managers = systemd.display_managers(host)
    units = _stoppable_services(holders, managers)
    contained = [one for one in holders if one.container or "/machine.slice/" in one.cgroup]
    users = [one for one in holders if _USER.search(one.cgroup) and one not in contained]
    sessions = [one for one in users if _draws(one, kept=kept)]
    logind = any(one.command == "systemd-logind" for one in holders)
    running = any(systemd.has_cgroup(host, f"system.slice/{unit}") for unit in managers)
    if running and not wait.desktop and (sessions or logind) and "display-manager" not in units:
        units.insert(0, "display-manager")
    place = wait.file or f"/{VMS}/NAME.yaml"
    programs = [one for one in users if one not in sessions]
    tried = (DESKTOP,) if wait.desktop else ()
    endable = [
        one for one in sessions
        if entries.matches(one, SESSION) and not any(entries.matches(one, name) for name in tried)
    ]  # fmt: skip
    parts = []
    if units:
        parts = [_stop(units, place, detached=bool(compositors.with_screen(host, wait.gpus)))]
    elif endable and SESSION not in wait.terminate:
        left = entries.matches(endable[0], DESKTOP)  # and not one at a text console
        parts = [_end_session(endable[0], place, outlived=left and bool(managers))]
    if contained:
        parts.insert(0, "shut down the VM or container that uses it")
    if not sessions or not parts:
        programs += sessions
        parts[:0] = [_close(programs, place)] if programs else []
    if parts:
        return "; ".join(parts)
    if logind:
        return "end the login session that has the GPU, see `loginctl list-sessions`"
    if all(one.unknown for one in holders):
        return "stop them: before Linux 6.0 it is not safe to remove an open framebuffer"
    return "stop these processes, or increase `holders.wait_s`"


def _stop(units: Sequence[str], place: str, *, detached: bool) -> str:
    """How to stop units for the VM. detached: a desktop can be back beside it, on another GPU."""
    shown = units[:_MAX_UNITS]
    them = "it" if len(units) == 1 else "them"
    back = ""
    if detached and "display-manager" in units:
        again = "{name: display-manager, start_again: detached}"
        shown = [again if name == "display-manager" else name for name in shown]
        back = "; a login screen should be back on another GPU meanwhile"
    return f"add `services: [{', '.join(shown)}]` to {place} to stop {them} for the VM{back}"


def _draws(one: Holder, *, kept: bool) -> bool:
    """Whether a process of a session is its compositor or display server, and no program in it.

    Programs open a render node, sound devices or nodes of NVIDIA; monitors of load, such as nvtop,
    open cards by themselves, while compositors get them from logind or seatd.
    """
    cards = any(node.startswith("/dev/dri/card") for node in one.nodes)
    return (cards and kept) or one.command == "Xwayland" or compositors.is_known(one.command)


def _close(programs: Sequence[Holder], place: str) -> str:
    """How to end programs in a session that goes on."""
    names = list(dict.fromkeys(one.command for one in programs))
    listed = " and ".join(printable(name) for name in names[:_MAX_UNITS])
    more = f" and {len(names) - _MAX_UNITS} more" if names[_MAX_UNITS:] else ""
    close = _stop_in_session(programs[0]) if not programs[1:] else ""
    close = close or f"close {listed}{more}"
    if more or not all(map(_PLAIN.fullmatch, names)):
        return close
    them = "it" if len(programs) == 1 else "them"
    entries = f"`holders: {{terminate: [{', '.join(names)}]}}`"
    return f"{close}, or add {entries} to {place} to end {them} for the VM"


def _stoppable_services(holders: Sequence[Holder], managers: Sequence[str]) -> list[str]:
    """The system units among the holders, as they are written in `services`."""
    found = []
    for one in holders:
        name, _, kind = one.unit.rpartition(".")
        inside = one.container or one.cgroup.startswith(("/user.slice/", "/machine.slice/"))
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
    stop = _stop_in_session(one)
    also = f", or {stop}" if stop else ""
    return f"{why}add `holders: {{terminate: [session]}}` to {place}{also}"


def _stop_in_session(one: Holder) -> str:
    """How to stop a unit of a user's manager; "" if it is none, or one of a desktop's program."""
    match = re.search(r"/user@(\d+)\.service/", one.cgroup)
    if not match or not one.unit.endswith(".service") or one.unit.startswith("app-"):
        return ""
    return f"`systemctl --user -M {match[1]}@ stop {one.unit[:_MAX_UNIT]}`"
