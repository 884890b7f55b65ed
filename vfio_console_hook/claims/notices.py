"""Notices: what is shown to people who did not see why a VM was refused, or what is lost.

Who starts a VM from the desktop that is ended for it sees nothing of virsh's error. They look
at a login prompt next, or log in again:

    /run/vfio-console-hook.status/issue    the text for login prompts, readable by everyone;
                                           there as long as there is a notice for any place
    /etc/issue.d/vfio-console-hook.issue   install.sh's link to it
    /run/issue.d/vfio-console-hook.issue   the same, made here where agetty does not look
                                           into /etc/issue.d

A notice goes when the VM's next start comes further, when what is lost is found to be back, by
`dismiss`, and with the boot. Nothing is ever raised for it, and no event waits for it.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import HookError, cut
from ..log import printable
from ..machine import runfiles
from ..machine.host import Host
from . import history
from .histories import histories

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from .losses import Loss

LOGIN, SESSION = "login", "session"
"""The places, as in the configuration: login prompts, and the next desktop session."""

ISSUE = history.ISSUE
# agetty(8), ISSUE FILES. As long as there is an /etc/issue, util-linux before 2.41 reads no
# other directory than this one, and later ones read both, so that the text would be there
# twice. Without an /etc/issue they read only the other (from 2.35 on). It is seen by what is
# there, as cockpit's link of the same kind is.
_BESIDE, LINK = "etc/issue", "etc/issue.d/vfio-console-hook.issue"
_OTHER_LINK = "run/issue.d/vfio-console-hook.issue"
# What `agetty --reload` touches: each agetty at whose prompt nothing was typed shows it anew.
_RELOAD = "run/agetty.reload"

_MOST = 3
_WIDTH = 79
_LONGEST_NAME = 60
_LONGEST_TEXT = 400
_TRIES = 3


@dataclass(frozen=True)
class Notice:
    """One thing that is shown to people. time is in seconds since 1970.

    head is what has happened, to what; text and hint are those of the error. uuid and time
    distinguish it from others.
    """

    head: str
    uuid: str
    time: float
    text: str
    hint: str
    places: tuple[str, ...]


def notices(host: Host, lost: Iterable[Loss]) -> tuple[Notice, ...]:
    """What there is to show, the newest first. lost has the losses to be shown, too."""
    found = []
    for one in histories(host):
        refusal = one.refusal
        if refusal is None or not refusal.places or one.done_since is not None:
            continue
        head = f"VM {_name(one.vm)} was not started"
        if not refusal.prevents_start:
            head = f"{_name(one.vm)} could not be given back as a whole"
        found.append(
            Notice(head, one.uuid, refusal.time, refusal.text, refusal.hint, refusal.places)
        )
    for loss in lost:
        if loss.places:
            head = f"lost after {_name(loss.vm)}"
            found.append(Notice(head, loss.uuid, loss.time, loss.text, loss.hint, loss.places))
    return tuple(sorted(found, key=lambda one: -one.time))


def show(host: Host) -> str:
    """Bring the text for login prompts up to date; why that failed, or ""."""
    from . import losses  # it loads the actions, and needs this module

    try:
        # The hook of another VM may be at the same: who writes last looks once more.
        for _ in range(_TRIES):
            current = notices(host, losses.known(host))
            if not _write(host, current):
                break
    except HookError as error:
        return error.text
    return ""


def _write(host: Host, current: tuple[Notice, ...]) -> bool:
    """Make the file say this; whether that changed it. Raises HookError."""
    wanted = issue_text(current).encode("utf-8", "replace") if current else None
    before = runfiles.read(host, ISSUE)
    if wanted == before:
        return False
    if wanted is None:
        runfiles.remove(host, ISSUE)
    else:
        runfiles.make_directory(host, history.STATUS, 0o755)
        runfiles.write(host, ISSUE, wanted.decode(), 0o644)
        _link(host)
    if (wanted or b"") != (before or b""):
        runfiles.touch(host, _RELOAD)
    return True


def _link(host: Host) -> None:
    """Let agetty find the file where install.sh's link does not. Raises HookError."""
    if not host.exists(_BESIDE) or host.lstat(LINK) is None:
        runfiles.link(host, _OTHER_LINK, f"/{ISSUE}")


def issue_text(current: Iterable[Notice]) -> str:
    """Notices as agetty shows them; "" when none is for login prompts."""
    shown = [one for one in current if LOGIN in one.places]
    if not shown:
        return ""
    paragraphs = []
    for one in shown[:_MOST]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time))
        paragraphs.append(f"vfio-console-hook: {one.head} ({when}): {cut(one.text, _LONGEST_TEXT)}")
        if one.hint:
            paragraphs.append(f"hint: {cut(one.hint, _LONGEST_TEXT)}")
    more = f" ({len(shown) - _MOST} more)" if len(shown) > _MOST else ""
    paragraphs.append(
        f"`vfio-console-hook status` has details{more}, `vfio-console-hook dismiss` hides this"
    )
    lines = [_wrapped(one) for one in paragraphs]
    # agetty replaces a backslash and what follows it, also by what it reads or runs.
    return "\n".join(lines).replace("\\", "\\\\") + "\n\n"


def _wrapped(text: str) -> str:
    """As lines that fit, without a character that steers a terminal."""
    return textwrap.fill(
        printable(text), _WIDTH, subsequent_indent="  ", break_on_hyphens=False
    )


def _name(vm: str) -> str:
    return cut(vm, _LONGEST_NAME)
