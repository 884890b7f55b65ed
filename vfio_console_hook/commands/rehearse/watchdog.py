"""The watchdog: gives everything back when the runner does not, because it hangs or was killed.

With systemd it is a timer, which nothing can kill, and what systemd runs once the runner has
ended, in whatever way; without, a process that waits for both.
"""

from __future__ import annotations

import time

from ...claims.directory import Claims
from ...errors import HookError
from ...log import Log
from ...machine import processes
from ...machine.host import Host
from ...machine.worker import KILL_GRACE_S
from . import detached, real, runner
from .real import RealVm
from .rehearsal import Diary, Rehearsal

_PAUSE_S = 0.2


def wait(host: Host, own: str) -> int:
    """Wait until the runner has ended or should have, then do what give_back() does."""
    diary = Diary(host, own)
    rehearsal = diary.rehearsal()
    diary.note(watchdog=processes.this(host))
    end = host.clock() + rehearsal.give_back_at - host.now()
    while host.clock() < end:
        told = diary.told()
        if told.end is not None:
            return 0
        if told.runner[0] and not processes.lives(host, told.runner):
            if told.real is None:
                break
            time.sleep(_PAUSE_S)  # the VM has its time, and may be kept
            continue
        handle = host.open_process(told.runner[0]) if told.runner[0] else None
        if handle is None:
            time.sleep(_PAUSE_S)
            continue
        try:
            if processes.lives(host, told.runner):
                host.wait_for_end([handle], end - host.clock())
        finally:
            host.close_process(handle)
    return give_back(host, own)


def give_back(host: Host, own: str) -> int:
    """Kill the runner and give back what the rehearsal holds, unless all is over.

    Returns 0 if nothing is held any more.
    """
    diary = Diary(host, own)
    rehearsal = diary.rehearsal()
    status = 0
    if diary.told().kept:
        detached.disarm(host, own)
    elif diary.told().end is None or _holds(host, own) or real.runs(host, rehearsal, diary.told()):
        status = _end(host, rehearsal, diary)
    detached.disarm(host, own)
    return status


def _holds(host: Host, own: str) -> bool:
    return Claims(host).find(own) is not None


def _end(host: Host, rehearsal: Rehearsal, diary: Diary) -> int:
    log = Log(host, rehearsal.vm)
    killed = _kill(host, diary.told().runner)
    why = "it hung, and was killed" if killed else "its process was killed"
    log.warning(f"the rehearsal was cut short: {why}")
    diary.say(f"the watchdog gives back: {why}")
    try:
        vm = RealVm.in_diary(diary.told())
        if vm is not None and not real.destroy(host, rehearsal, vm, diary, log):
            return 0
        if _holds(host, rehearsal.own):
            runner.give_back(host, rehearsal, diary, log)
        if diary.told().cycle:
            runner.judge(host, diary)
    except HookError as error:
        why = f"{why}; {error}"
    runner.conclude(host, rehearsal, diary, why, host.now() - rehearsal.began)
    return int(_holds(host, rehearsal.own))


def _kill(host: Host, name: tuple[int, int]) -> bool:
    """Kill the runner, if it is still there; whether it was."""
    if not processes.lives(host, name):
        return False
    process = processes.find(host, name[0])
    if process is not None:
        processes.kill(host, process)
    host.wait(lambda: not processes.lives(host, name), KILL_GRACE_S)
    return True
