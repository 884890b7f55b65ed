"""What a rehearsal's command does while others do the work: print, ask, and stop it on Ctrl-C.

It may be killed at any time; the rehearsal comes to its end without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from ...errors import HookError
from ...log import printable
from ...machine import console, processes, worker
from ...machine.host import Host
from .. import files
from ..progress import ask, say
from ..terminal import Terminal
from . import evidence, last
from .rehearsal import Diary, Rehearsal
from .verdict import DARK_ROW, Row, Verdict, eye_row, table

_POLL_S = 0.1
# The last resort: systemd reports a process that does not start, or dies.
_STARTS_S = 90.0
_LATE_S = 30.0
_SIGTERM = 15


def follow(
    host: Host, rehearsal: Rehearsal, diary: Diary, arguments: argparse.Namespace, *, asks: bool
) -> int:
    """Follow a rehearsal that has begun to its end; the exit status. Raises HookError.

    asks: a person is there who can say what the monitor shows.
    """
    as_json = arguments.json
    interrupted = _until_end(diary, as_json)
    account = diary.account()
    verdicts = [Verdict.from_json(one) for one in account.verdicts]
    agrees = not account.end and len(verdicts) == rehearsal.times and verdicts[-1].agrees
    if as_json:
        print(json.dumps(_json(rehearsal, verdicts, account.end or "", agrees), indent=2))
    elif verdicts:
        monitor = _monitor(host, diary, rehearsal, asks and not interrupted)
        if any(one.startswith(evidence.REPORTED) for one in account.said):
            evidence.add_row(host, rehearsal.uuid, monitor)
        agrees = agrees and monitor.agrees
        shown = Verdict((*verdicts[-1].rows, monitor))
        print("\n" + table(shown, Terminal.for_stream(sys.stdout)), end="")
        agreed = sum(one.agrees for one in verdicts)
        if rehearsal.times > 1:
            print(f"{agreed} of {rehearsal.times} cycles were as plan had said")
    if arguments.report:
        files.write(arguments.report, evidence.report_of(host, rehearsal.uuid))
    if interrupted:
        raise KeyboardInterrupt("everything was given back")
    if not as_json:
        print(_last_line(agrees, account.end or ""))
    return 0 if agrees else 1


def _monitor(host: Host, diary: Diary, rehearsal: Rehearsal, asks: bool) -> Row:
    """What a person sees on the monitor; it is noted as well."""
    line = f"vfio-console-hook: rehearsed {printable(rehearsal.vm)}, {time.strftime('%H:%M:%S')}"

    def draw() -> str:
        if console.dark(host):
            return "dark"
        active = host.read("sys/class/tty/tty0/active") or "tty1"
        if not host.text_mode(active):
            return "graphics"
        if asks:
            host.show_text("tty0", f"\r\n{line}\r\n")
        return "text"

    drawn = worker.look(draw)
    if drawn == "dark":
        return DARK_ROW  # the row of the console says whether plan had said so
    if not asks:
        return eye_row("")
    what = f"the line `{line}`" if drawn == "text" else "the desktop"
    eye = "yes" if ask(f"can you see {what} on the monitor?") else "no"
    diary.note(eye=eye)
    last.add_eye(host, rehearsal.uuid, eye)
    return eye_row(eye)


def _until_end(diary: Diary, quiet: bool) -> bool:
    """Print what the diary says until all is over; whether it was ended by Ctrl-C."""
    printed, interrupted, stopped = 0, False, False
    host, rehearsal = diary.host, diary.rehearsal()
    begun = host.clock()
    while True:
        try:
            lines = diary.lines()
            _refuse_dead(lines, host.clock() - begun, host.now() - rehearsal.until)
            for entry in lines[printed:]:
                if "say" in entry and not quiet:
                    say(str(entry["say"]))
            printed = len(lines)
            if any("end" in entry for entry in lines):
                return interrupted
            # The runner may not have come up yet.
            stopped = stopped or (interrupted and _stop(host, diary))
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            if interrupted:
                raise KeyboardInterrupt("everything is given back without this program") from None
            interrupted = True
            say("giving back at once")


def _refuse_dead(lines: list[dict[str, Any]], for_s: float, late_s: float) -> None:
    """Raise HookError when nothing writes the diary: the processes did not come up, or died."""
    if for_s > _STARTS_S and not any("runner" in entry for entry in lines):
        hint = "see `journalctl -t systemd -t vfio-console-hook -n 50`"
        raise HookError("the rehearsal did not begin: its process did not come up", hint)
    if late_s > _LATE_S:
        raise HookError("the rehearsal did not end", "see `vfio-console-hook status`")


def _stop(host: Host, diary: Diary) -> bool:
    """Ask the runner to give back at once; whether there is one."""
    name = diary.account().runner
    handle = host.open_process(name[0]) if name[0] else None
    if handle is None:
        return False
    try:
        if processes.lives(host, name):
            host.signal_process(handle, _SIGTERM)
    finally:
        host.close_process(handle)
    return True


def _json(
    rehearsal: Rehearsal, verdicts: list[Verdict], end: str, agrees: bool
) -> dict[str, object]:
    return {
        "version": 1,
        "vm": rehearsal.vm,
        "uuid": rehearsal.uuid,
        "functions": list(rehearsal.addresses),
        "spared": list(rehearsal.spared),
        "until": rehearsal.until,
        "agrees": agrees,
        "cut_short": end,
        "cycles": [one.to_json() for one in verdicts],
    }


def _last_line(agrees: bool, end: str) -> str:
    if agrees:
        return "all was as plan had said"
    return f"cut short: {end}" if end else "not all was as plan had said, see !!"
