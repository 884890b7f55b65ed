"""How the last events of each VM in this boot ended: for everyone to read, and no claim.

    /run/vfio-console-hook.status/      0755
        UUID                            one VM, JSON, made and replaced by a rename
        unknown                         the last one whose XML could not be read
        losses                          what could not be given back, see losses.py
        issue                           what login prompts show of all that, see notices.py

    {"vm": NAME, "uuid": UUID,
     "events": {"prepare": {"time": T, "took_s": S, "failure": ""}, "start": ..., ...},
     "refusal": null or {"time": T, "event": "prepare", "text": ..., "hint": ...,
                         "places": ["login", "session"]}}

events has the last one of each kind: of libvirt prepare, start, started, reconnect, stopped
and release; of people recover and give. T is in seconds since 1970. The refusal is the last
thing that failed, and stays whatever succeeds later; a loss is none.

Only what every event runs is here; histories.py reads it, into values.
"""

from __future__ import annotations

import json
import os
import stat

from ..errors import HookError, LostError
from ..machine import runfiles
from ..machine.host import Host
from ..machine.runfiles import RUN

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

STATUS = f"{RUN}.status"
UNKNOWN = "unknown"
LOSSES = f"{STATUS}/losses"
ISSUE = f"{STATUS}/issue"
_UNSEEN = "`vfio-console-hook status` will not show this event: "
_MOST = 100
"""How many VMs are kept here: a host may make and remove them by the thousand."""
_STALE_S = 60
"""How old a draft is that will not be renamed any more: it takes milliseconds."""


def remember(
    host: Host,
    vm: str,
    uuid: str,
    event: str,
    *,
    took_s: float,
    error: HookError | None = None,
    places: tuple[str, ...] = (),
) -> str:
    """Write down that an event of a VM ended, after how many seconds; error is how it failed.

    uuid "" means that it is not known. places are where people are to see the error who
    were not there (notices.py). Returns what people will not see, and why, "" if they will:
    nothing is raised, because the event does not depend on it.
    """
    # One file for each VM, and libvirt runs one hook at a time for each, so no lock.
    name = uuid or UNKNOWN
    path = f"{STATUS}/{name}"
    now = host.now()
    ended = {"time": now, "took_s": round(took_s, 3), "failure": error.text if error else ""}
    try:
        make_directory(host)
        known = (read(host, name) if uuid else None) or {}
        refusal = known.get("refusal")
        # What is lost is shown until it is back (losses.py), and no longer.
        if error is not None and not isinstance(error, LostError):
            refusal = {
                "time": now, "event": event, "text": error.text, "hint": error.hint,
                "places": places,
            }  # fmt: skip
        events = {kind: one for kind, one in _events(known).items() if kind != event}
        events[event] = ended  # the last, as the clock may have been set back
        word = {"vm": vm, "uuid": uuid, "events": events, "refusal": refusal}
        runfiles.write(host, path, json.dumps(word) + "\n", 0o644)
        _drop_drafts(host, path)
        if not known:
            _drop_oldest(host)
    except HookError as failure:
        return f"{_UNSEEN}{failure.text}"
    except OSError as failure:
        return f"{_UNSEEN}cannot look after /{STATUS}: {os.strerror(failure.errno or 0)}"
    return update_notices(host) if error is not None or host.exists(ISSUE) else ""


def update_notices(host: Host) -> str:
    """Show at login prompts what is so now; what people will not see, and why, or ""."""
    try:
        from . import notices  # only where something was refused, or lost

        failure = notices.show(host)
    except ImportError as error:  # half of the program is gone, which is no reason not to start
        failure = str(error)
    return f"login prompts will not show it: {failure}" if failure else ""


def dismiss_refusal(host: Host, uuid: str) -> None:
    """Forget the refusal of a VM, as there is no other way to show that a person knows of it.

    Raises ClaimError.
    """
    name = uuid or UNKNOWN
    word = read(host, name)
    if word is not None:
        word["refusal"] = None
        runfiles.write(host, f"{STATUS}/{name}", json.dumps(word) + "\n", 0o644)


def read(host: Host, name: str) -> dict[str, Any] | None:
    """The word of one VM as it was written, or None when there is none that can be understood.

    Raises ClaimError when it may not be read, or another user could have written it.
    """
    try:
        word = json.loads(runfiles.read(host, f"{STATUS}/{name}") or "null")
    except (ValueError, RecursionError):
        return None
    return word if isinstance(word, dict) else None


def names(host: Host) -> tuple[str, ...]:
    """Whose words there are, for read(). Raises HostError, ClaimError."""
    others = (LOSSES, ISSUE)
    return tuple(one for one in runfiles.names(host, STATUS) if f"{STATUS}/{one}" not in others)


def _events(known: dict[str, Any]) -> dict[str, Any]:
    events = known.get("events")
    return events if isinstance(events, dict) else {}


def make_directory(host: Host) -> None:
    """Make the directory of the words. Raises ClaimError, OSError."""
    status = host.lstat(STATUS)
    if status is not None and stat.S_ISREG(status.st_mode):
        os.unlink(host.path(STATUS))  # in which earlier versions had the last event
    runfiles.make_directory(host, STATUS, 0o755)


def _drop_drafts(host: Host, just_written: str) -> None:
    """Remove what processes have left that were killed while they wrote."""
    drafts = [name for name in host.list(STATUS) if name.startswith(".")]
    now = os.stat(host.path(just_written)).st_mtime if drafts else 0
    for name in drafts:
        status = host.lstat(f"{STATUS}/{name}")
        if status is not None and now - status.st_mtime > _STALE_S:
            runfiles.remove(host, f"{STATUS}/{name}")


def _drop_oldest(host: Host) -> None:
    there = names(host)
    if len(there) <= _MOST:
        return
    # The hook of another VM may be at the same work, and have removed some.
    found = [(host.lstat(f"{STATUS}/{name}"), name) for name in there]
    ages = [(status.st_mtime_ns, name) for status, name in found if status is not None]
    for _, name in sorted(ages, reverse=True)[_MOST:]:
        runfiles.remove(host, f"{STATUS}/{name}")
