"""The runner: takes the GPU, has it for a while, gives it back; once or several times.

It is a process of its own that no terminal ends. SIGTERM makes it give back at once. Its work
is that of `take --vfio` and `give`, with the same claim, and between them that of the event
start and of QEMU.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ...claims import history, ownership
from ...claims.directory import Claims
from ...config import load
from ...config.settings import Config
from ...domain import Domain
from ...errors import BugError, CutOffError, HookError, StepError, StuckError, understood
from ...events import prepare, release, start
from ...events.assignment import assignment_of
from ...log import Log
from ...machine import processes, vfio_access, worker
from ...machine.host import Host
from . import evidence, last, real
from .promise import Promise, promise_of
from .real import RealVm
from .rehearsal import Diary, Rehearsal
from .report import AFTER, DURING
from .sight import sight_of
from .verdict import Verdict, verdict_of

EVENT = "rehearse"
# What udev and the drivers still do when everything is back: monitors are found, services start.
_SETTLE_S = 5.0
_ARMED_S = 5.0


class _Log(Log):
    """A log whose lines are also in the diary, for the terminal that follows it."""

    diary: Diary

    def debug(self, text: str) -> None:
        self.diary.say(f"  {text.partition(', for ')[0]}")
        super().debug(text)

    def warning(self, text: str) -> None:
        self.diary.say(f"  {text}")
        super().warning(text)


def run(host: Host, own: str) -> int:
    """Do the rehearsal of this id; 0 if all was as plan had said. Raises HookError without one."""
    diary = Diary(host, own)
    rehearsal = diary.rehearsal()
    end = ""
    with _stops() as stop:
        diary.note(runner=processes.this(host))
        began = host.clock()
        try:
            if not host.wait(lambda: diary.account().watchdog is not None, _ARMED_S):
                raise HookError("nothing was begun: there is no watchdog")
            for number in range(1, rehearsal.times + 1):
                if rehearsal.times > 1:
                    diary.say(f"cycle {number} of {rehearsal.times}")
                if not _cycle(host, rehearsal, diary, number, stop):
                    break
                if worker.stopped(stop):
                    raise HookError("stopped on request")
        except Exception as error:
            end = str(understood(error))
        agrees = conclude(host, rehearsal, diary, end, host.clock() - began)
    return 0 if agrees else 1


def conclude(host: Host, rehearsal: Rehearsal, diary: Diary, end: str, took_s: float) -> bool:
    """Write down that all is over and what came of it; whether all was as plan had said."""
    verdicts = [Verdict.from_json(one) for one in diary.account().verdicts]
    agrees = not end and len(verdicts) == rehearsal.times and all(one.agrees for one in verdicts)
    differs = "; ".join(str(row) for one in verdicts for row in one.rows if not row.agrees)
    error = None if agrees else HookError(end or differs)
    history.remember(host, rehearsal.vm, rehearsal.uuid, EVENT, took_s=took_s, error=error)
    try:
        last.remember(host, rehearsal, agrees, end or differs)
    except HookError as refused:
        diary.say(f"`vfio-console-hook status` will not show this rehearsal: {refused.text}")
    _write_report(host, rehearsal, diary, verdicts, agrees, end)
    diary.jot(end=end)
    return agrees


def _write_report(
    host: Host, rehearsal: Rehearsal, diary: Diary, verdicts: list[Verdict], agrees: bool, end: str
) -> None:
    """Write the report, if it is wanted or something was not as plan had said."""
    account = diary.account()
    try:
        if account.report or not agrees:
            rows = [evidence.verdict_line(row) for one in verdicts for row in one.rows]
            path = evidence.write_report(
                host, rehearsal, agrees, [*rows, *([f"cut short: {end}"] if end else [])], account
            )
            none = "there is no report: no evidence was kept"
            diary.say(f"{evidence.REPORTED}{path}" if path else none)
    except HookError as error:
        diary.say(f"there is no report: {error.text}")
    evidence.drop(host, rehearsal.own)


@contextmanager
def _stops() -> Iterator[int]:
    """A descriptor from which can be read once that this process is to give back at once."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {one: signal.getsignal(one) for one in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal or session that ends

    def once(number: int, frame: object) -> None:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, once)
    try:
        yield reader
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


# -- one cycle


def _cycle(host: Host, rehearsal: Rehearsal, diary: Diary, number: int, stop: int) -> bool:
    """Take, have, give back and compare; whether all agrees. Raises HookError if cut short."""
    config = configuration_of(host, rehearsal)
    vm = RealVm.in_diary(diary.account())
    who = vm.domain(rehearsal) if vm else rehearsal.domain
    promise = Promise.from_json(
        json.loads(worker.look(lambda: _look(host, rehearsal, who, config)))
    )
    before = json.loads(worker.look(lambda: json.dumps(vars(sight_of(host, rehearsal.addresses)))))
    diary.note(cycle={"number": number, "promise": vars(promise), "before": before})
    log = _Log(host, rehearsal.vm, config.log_level)
    log.diary = diary
    cut: HookError | None = None
    try:
        if vm is None:
            _take(host, rehearsal, config, diary, log, stop)
            _have(host, rehearsal, diary, log, stop)
        else:
            real.start(host, rehearsal, vm, diary, stop)
            worker.look(lambda: evidence.keep(host, rehearsal.own, DURING))
            real.wait(host, rehearsal, diary, stop)
    except StuckError:
        raise  # nothing may be undone while the kernel holds a process
    except Exception as error:
        # Whatever it is, a bug too: the GPU goes back.
        cut = understood(error)
        diary.jot(took={"error": str(cut)})
        diary.say(str(cut))
    if vm is None:
        give_back(host, rehearsal, diary, log)
    elif not real.destroy(host, rehearsal, vm, diary, log):
        diary.say(f"{rehearsal.vm} is kept")
    verdict = judge(host, diary)
    if isinstance(cut, (CutOffError, BugError)):
        raise cut
    return verdict.agrees


def _look(host: Host, rehearsal: Rehearsal, who: Domain, config: Config) -> str:
    return json.dumps(vars(promise_of(host, rehearsal, who, config)))


def configuration_of(host: Host, rehearsal: Rehearsal) -> Config:
    """The configuration of the VM, or of the GPU. Raises ConfigError, HostError."""
    return load.configuration(host, rehearsal.configured_as, rehearsal.uuid, by_hand=True)


def _take(
    host: Host, rehearsal: Rehearsal, config: Config, diary: Diary, log: Log, stop: int
) -> None:
    diary.say(f"taking {' '.join(rehearsal.addresses)}")
    began = host.clock()
    deadline = worker.Deadline(host, rehearsal.timeout_s, stop)
    try:
        assignment = assignment_of(host, rehearsal.domain)
        prepare.prepare_within(deadline, host, assignment, config, log)
    finally:
        claim = Claims(host).find(rehearsal.own)
        steps = len(claim.done) if claim else 0
        diary.jot(took={"take_s": host.clock() - began, "steps": steps})


def _have(host: Host, rehearsal: Rehearsal, diary: Diary, log: Log, stop: int) -> None:
    """What the event start and QEMU do, for as long as was asked for."""
    began = host.clock()
    deadline = worker.Deadline(host, rehearsal.opening_s + rehearsal.seconds, stop)
    claim = ownership.acquire(host, rehearsal.own, "start")
    if claim is None:
        raise HookError("the claim of the rehearsal is gone")
    refused: StepError | None = None
    try:
        try:
            start.start(claim, log, deadline.run)
        except StepError as error:
            # A VM would not start now; what vfio says of the same memory is worth a look.
            refused = error
        wait_s = 0.0 if refused else rehearsal.seconds

        def hold() -> None:
            with claim.work():
                _open_and_wait(host, rehearsal, diary, wait_s)

        deadline.run(hold)
        if refused:
            raise refused
    finally:
        diary.jot(took={"have_s": host.clock() - began})


def _open_and_wait(host: Host, rehearsal: Rehearsal, diary: Diary, wait_s: float) -> None:
    if rehearsal.untried:
        diary.say(f"nothing is opened through vfio: {rehearsal.untried}")
        host.wait(lambda: False, wait_s)
        return
    with vfio_access.opened(host, rehearsal.addresses, reset=rehearsal.reset) as found:
        diary.jot(opened=found.to_json())
        mapped = sum(region.mapped for region in found.regions)
        diary.say(f"{mapped} of {len(found.regions)} BARs mapped, as QEMU would")
        for one in found.resets:
            diary.say(f"{one.address}: {one}")
        evidence.keep(host, rehearsal.own, DURING)
        host.wait(lambda: False, wait_s)


def give_back(host: Host, rehearsal: Rehearsal, diary: Diary, log: Log) -> None:
    """Give back what the rehearsal holds, if anything; what is lost by it is written down.

    Raises StuckError.
    """
    diary.say("giving back")
    began = host.clock()
    deadline = worker.Deadline(host, rehearsal.timeout_s)
    try:
        claim = ownership.acquire(host, rehearsal.own, "release", forgotten=True)
        if claim is not None:
            release.release(claim, log, deadline.run)
    except StuckError as error:
        diary.jot(took={"lost": str(error)})
        raise
    except HookError as error:
        diary.jot(took={"lost": str(error)})
        diary.say(str(error))
    finally:
        diary.jot(took={"give_s": host.clock() - began})


def judge(host: Host, diary: Diary) -> Verdict:
    """Compare the machine with the promise once all has settled, and write the verdict down."""

    def look() -> str:
        found: list[Verdict] = []

        def settled() -> bool:
            found[:] = [verdict_of(host, diary.account())]
            return found[0].settled

        host.wait(settled, _SETTLE_S)
        evidence.keep(host, diary.own, AFTER)
        return json.dumps(found[0].to_json())

    verdict = json.loads(worker.look(look))
    diary.jot(verdict=verdict)
    return Verdict.from_json(verdict)
