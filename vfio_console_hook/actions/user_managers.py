"""Starting the managers of users again that were stopped to end a desktop.

The manager of a user's units runs more than the desktop: what a user who lingers has always
running, such as containers, and what one who is logged in by ssh has started. It is stopped as a
whole (holder_kill.py), so it starts again as soon as the GPU has left. logind would start it only
with the next login, or the next boot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import HostError
from ..machine import systemd
from ..machine.host import Host
from .action import Action
from .services import StartUnits

# logind's files, one for each user that it knows (systemd src/login/logind-user.c, user_save),
# and who lingers (logind-dbus.c, method_set_user_linger).
_USERS, _LINGER = "run/systemd/users", "var/lib/systemd/linger"
# The states of a user with a session that is not just ending (sd_uid_get_state(3)).
_LOGGED_IN = ("active", "online")


def to_start_again(host: Host) -> StartManagers | None:
    """What starts the managers again that run now; None if there are none, or that is not known."""
    try:
        uids = [uid for uid in host.list(_USERS) if uid.isdigit()]
        lingers = host.list(_LINGER) if uids else ()
    except HostError:
        return None
    running = {
        f"user@{uid}.service": uid
        for uid in uids
        if systemd.has_cgroup(host, f"user.slice/user-{uid}.slice/user@{uid}.service")
    }
    lingering = (
        unit for unit, uid in running.items() if lingers and _word(host, uid, "NAME") in lingers
    )
    return StartManagers(tuple(running), tuple(lingering)) if running else None


def _word(host: Host, uid: str, key: str) -> str:
    """What logind's file of a user says of one thing; "" also if it cannot be read (SELinux)."""
    try:
        text = host.read(f"{_USERS}/{uid}") or ""
    except HostError:
        return ""
    match = re.search(rf"^{key}=(.*)$", text, re.MULTILINE)
    return match[1] if match else ""


@dataclass(frozen=True, eq=False, repr=False)
class StartManagers(Action):
    """Ask systemd to start those of these managers again whose users linger or are logged in.

    units are such as "user@1000.service", lingering those of them whose users linger.
    """

    units: tuple[str, ...]
    lingering: tuple[str, ...]
    kind = "start-managers"
    detached = True

    def apply(self, host: Host) -> None:
        uids = ((unit, unit[5:].partition(".")[0]) for unit in self.units)
        logged_in = [unit for unit, uid in uids if _word(host, uid, "STATE") in _LOGGED_IN]
        wanted = tuple(dict.fromkeys((*self.lingering, *logged_in)))
        if wanted:
            StartUnits(wanted).apply(host)

    def shell(self) -> str:
        return f"systemctl start {' '.join(self.units)}  # of users who linger or are logged in"

    def past(self) -> str:
        return f"made sure that {' and '.join(self.units)} runs if its user lingers or is logged in"
