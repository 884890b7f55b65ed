"""How the last events of each VM in this boot ended: for everyone to read, and no claim.

    /run/vfio-console-hook.status/      0755
        UUID                            one VM, JSON, made and replaced by a rename
        unknown                         the last one whose XML could not be read
        losses                          what could not be given back, see losses.py

    {"vm": NAME, "uuid": UUID,
     "events": {"prepare": {"time": T, "took_s": S, "failure": ""}, "start": ..., ...},
     "refusal": null or {"time": T, "event": "prepare", "text": ..., "hint": ...}}

events has the last one of each kind: of libvirt prepare, start, started, reconnect, stopped
and release; of people recover and give. T is in seconds since 1970. The refusal is the last
thing that failed, and stays whatever succeeds later; a loss is none.

Only what the hook runs is here; commands/status/overview.py reads it, into values.
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
_MOST = 100
"""How many VMs are kept here: a host may make and remove them by the thousand."""
_STALE_S = 60
"""How old a draft is that will not be renamed any more: it takes milliseconds."""


def remember(
    host: Host, vm: str, uuid: str, event: str, *, took_s: float, error: HookError | None = None
) -> str:
    """Write down that an event of a VM ended, after how many seconds; error is how it failed.

    uuid "" means that it is not known. Returns why it could not be written, "" if it was:
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
            refusal = {"time": now, "event": event, "text": error.text, "hint": error.hint}
        events = {kind: one for kind, one in _events(known).items() if kind != event}
        events[event] = ended  # the last, as the clock may have been set back
        word = {"vm": vm, "uuid": uuid, "events": events, "refusal": refusal}
        runfiles.write(host, path, json.dumps(word) + "\n", 0o644)
        _drop_drafts(host, path)
        if not known:
            _drop_oldest(host)
    except HookError as failure:
        return failure.text
    except OSError as failure:
        return f"cannot look after /{STATUS}: {os.strerror(failure.errno or 0)}"
    return ""


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
    return tuple(name for name in runfiles.names(host, STATUS) if f"{STATUS}/{name}" != LOSSES)


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
