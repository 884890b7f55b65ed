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
    at_work = (0, 0)
    while host.clock() < end:
        account = diary.account()
        if account.end is not None:
            return 0
        at_work = account.runner if account.runner[0] else at_work
        if not at_work[0]:
            time.sleep(_PAUSE_S)
        elif processes.lives(host, at_work):
            _await_end(host, at_work, end - host.clock())
        elif account.real is None:
            break
        else:
            time.sleep(_PAUSE_S)  # the VM has its time, and may be kept
    return give_back(host, own)


def _await_end(host: Host, name: tuple[int, int], timeout_s: float) -> None:
    handle = host.open_process(name[0])
    if handle is None:
        return
    try:
        if processes.lives(host, name):
            host.wait_for_end([handle], timeout_s)
    finally:
        host.close_process(handle)


def give_back(host: Host, own: str) -> int:
    """Kill the runner and give back what the rehearsal holds, unless all is over.

    Returns 0 if nothing is held any more.
    """
    diary = Diary(host, own)
    rehearsal = diary.rehearsal()
    status = 0
    if not diary.account().kept and _is_due(host, rehearsal, diary):
        status = _end(host, rehearsal, diary) if _is_first(host, rehearsal, diary) else 0
    if not _holds(host, own):  # or the timer tries again: the kernel may let go later
        detached.disarm(host, own)
    return status


def _is_due(host: Host, rehearsal: Rehearsal, diary: Diary) -> bool:
    """Whether something is not over yet."""
    account = diary.account()
    return account.end is None or _holds(host, diary.own) or real.runs(host, rehearsal, account)


def _is_first(host: Host, rehearsal: Rehearsal, diary: Diary) -> bool:
    """Whether no other watchdog gives back, or is dead; False when one has done so.

    The timer kills a runner that hangs, and with that systemd runs the unit's ExecStopPost=.
    """
    own = processes.this(host)
    diary.jot(giver=own)
    while _is_due(host, rehearsal, diary):
        givers = [one for one in diary.account().givers if one == own or processes.lives(host, one)]
        if not givers or givers[0] == own:
            return True
        time.sleep(_PAUSE_S)
    return False


def _holds(host: Host, own: str) -> bool:
    return Claims(host).find(own) is not None


def _end(host: Host, rehearsal: Rehearsal, diary: Diary) -> int:
    log = Log(host, rehearsal.vm)
    killed = _kill(host, diary.account().runner)
    why = "it hung, and was killed" if killed else diary.account().end or "its process was killed"
    log.warning(f"the rehearsal was cut short: {why}")
    diary.say(f"the watchdog gives back: {why}")
    try:
        vm = RealVm.in_diary(diary.account())
        if vm is not None and not real.destroy(host, rehearsal, vm, diary, log):
            return 0
        if _holds(host, rehearsal.own):
            runner.give_back(host, rehearsal, diary, log)
        if diary.account().cycle:
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
