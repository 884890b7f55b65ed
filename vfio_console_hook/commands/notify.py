"""notify: notifications of what a user did not see, in their desktop session.

An entry in /etc/xdg/autostart runs it once a session has begun, as the user. It reads what
everyone may read, and keeps in the user's own directory which ones they have seen:

    $XDG_STATE_HOME/vfio-console-hook/notified    (~/.local/state), "BOOT UUID TIME", one a line

A session may begin before what shows notifications runs, so it is tried for a while.
"""

from __future__ import annotations

import argparse
import os
import time

from ..claims import history, losses
from ..claims.losses import Loss
from ..claims.notices import SESSION, Notice, notices
from ..errors import HookError, cut
from ..log import printable
from ..machine.host import Host
from . import files
from .command import Command
from .progress import say

_STATE = "vfio-console-hook/notified"
_MOST = 3
_LONGEST_TEXT = 600
_TRY_S = 60
_PAUSE_S = 3
_ANSWER_S = 10
_APPLICATION = "vfio-console-hook"
# By these the programs below find the bus of the user's session (sd-bus, GDBus).
_BUS = ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="also what was shown before")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    history.names(host)  # not "nothing to show" if it may not be read (SELinux)
    current = [one for one in notices(host, _lost(host)) if SESSION in one.places]
    seen = _Seen(host)
    new = [one for one in current if arguments.again or not seen.has(one)][:_MOST]
    host.environment |= {name: os.environ[name] for name in _BUS if name in os.environ}
    deadline = host.clock() + _TRY_S
    for one in new:
        _notify_before(host, deadline, one)
    seen.keep([one for one in current if one in new or seen.has(one)])
    if not new:
        say("nothing to show: no VM was refused and nothing was lost, or you have seen it")
    return 0


def _notify_before(host: Host, deadline: float, one: Notice) -> None:
    """Show one as soon as something shows notifications. Raises HookError after the deadline."""
    while True:
        try:
            _notify(host, one)
            return
        except HookError as error:
            if host.clock() >= deadline:
                raise HookError(
                    f"cannot show a notification: {error.text}", "run it in a desktop session"
                ) from error
            host.wait_for_end((), _PAUSE_S)


def _lost(host: Host) -> tuple[Loss, ...]:
    """The losses that are not mended, as far as a user can see that."""
    try:
        return losses.current(host)
    except HookError:
        return ()


class _Seen:
    """Which notices the user has seen."""

    def __init__(self, host: Host) -> None:
        self._boot = host.boot_id
        state = os.environ.get("XDG_STATE_HOME", "")
        if not state.startswith("/"):  # as the XDG Base Directory Specification says
            state = os.path.expanduser("~/.local/state")
        self._path = os.path.join(state, _STATE)
        self._lines = set(files.lines(self._path))

    def has(self, notice: Notice) -> bool:
        return self._line(notice) in self._lines

    def keep(self, current: list[Notice]) -> None:
        """Write down that these have been seen; what is none any more is forgotten.

        Raises HookError.
        """
        lines = {self._line(one) for one in current}
        if lines != self._lines:
            files.keep_lines(self._path, sorted(lines))

    def _line(self, notice: Notice) -> str:
        return f"{self._boot} {notice.uuid} {notice.time:.3f}"


def _notify(host: Host, one: Notice) -> None:
    """Show one notification. Raises HookError when nothing shows any."""
    when = time.strftime("%H:%M", time.localtime(one.time))
    summary = printable(f"{one.head} ({when})")
    # GNOME's banner has all lines in one.
    hint = f"\n(hint: {cut(one.hint, _LONGEST_TEXT)})" if one.hint else ""
    text = cut(one.text, _LONGEST_TEXT) + hint
    body = "\n".join(map(_as_markup, text.split("\n")))
    if host.exists("usr/bin/notify-send"):
        # It takes a backslash in the body as C does (tools/notify-send.c, g_strcompress), with
        # which any process could write what it likes into the text by its name.
        command: tuple[str, ...] = (
            "/usr/bin/notify-send", f"--app-name={_APPLICATION}", "--icon=dialog-warning",
            "--urgency=critical", "--", summary, body.replace("\\", "\\\\"),
        )  # fmt: skip
    else:
        # Desktop Notifications Specification: name, replaced id, icon, summary, body, no
        # actions, the urgency "critical", which stays until it is closed; no timeout.
        place = "/org/freedesktop/Notifications"
        command = (
            "/usr/bin/busctl", "--user", "--", "call", "org.freedesktop.Notifications", place,
            "org.freedesktop.Notifications", "Notify", "susssasa{sv}i", _APPLICATION, "0",
            "dialog-warning", summary, body, "0", "1", "urgency", "y", "2", "0",
        )  # fmt: skip
    host.run(*command, timeout_s=_ANSWER_S)


def _as_markup(text: str) -> str:
    """A line as the body of a notification has it, where &, < and > have a meaning."""
    text = printable(text).replace("&", "&amp;")
    return text.replace("<", "&lt;").replace(">", "&gt;")


COMMAND = Command(
    "notify",
    "show in this desktop session why a VM was refused",
    "vfio-console-hook notify",
    _options,
    _run,
    changes=True,
)
