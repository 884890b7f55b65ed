"""Rehearsals on a fake machine: begun, followed and killed in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost
from tests.fakehost import processes as fake_processes
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import cli
from vfio_console_hook.commands.rehearse import detached
from vfio_console_hook.commands.rehearse.rehearsal import FOLDER, Account, Diary, Rehearsal
from vfio_console_hook.machine import streams
from vfio_console_hook.machine.host import Host

GPU = "0000:01:00.0"
OWN = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a02"
WITHIN_S = 60


class Stage(FakeHost):
    """A machine on which waiting takes time, and each change pause_s."""

    patient = True
    pause_s = 0.0

    def _change(self, kind: str, path: str, text: str, failing: str) -> None:
        time.sleep(self.pause_s)
        super()._change(kind, path, text, failing)


class KilledOnce(Stage):
    """A machine on which one process is killed right before a change, and none after it."""

    def _change(self, kind: str, path: str, text: str, failing: str) -> None:
        if self.exists("fake/killed"):
            self._crash_before = 0
        elif len(self.changes) + 1 == self._crash_before:
            self.tree.put("fake/killed", "")
        super()._change(kind, path, text, failing)


class WithSystemd(Stage):
    """A machine that systemd runs: transient units are processes of their own.

    systemd.service(5): ExecStopPost= runs once the main process has ended, in whatever way. A
    timer only fires when a test says so.
    """

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if not command[0].endswith("/systemd-run"):
            return super().run(*command, timeout_s=timeout_s)
        options = [*takewhile(lambda word: word.startswith("--"), command[1:])]
        words = command[1 + len(options) :]
        values = dict(one[2:].partition("=")[::2] for one in options)
        kind = "timer" if "on-active" in values else "service"
        self.tree.put(f"fake/transient/{values['unit']}.{kind}", "\n".join((*options, *words)))
        if kind == "service":
            post = [one for one in options if one.startswith("--property=ExecStopPost=")]
            after = post[0].split("=", 2)[2].split() if post else []
            self._apart(values["unit"], words, after)
        return ""

    def _apart(self, unit: str, words: Sequence[str], post: Sequence[str]) -> None:
        """Run the program with these words, then with those of ExecStopPost=."""
        if os.fork():
            return
        try:
            for command in filter(None, (words, post)):
                child = os.fork()
                if child == 0:
                    os.setsid()
                    self._real = True
                    streams.lead_nowhere(0, 1, 2)
                    cli.main(command[3:], self)
                    os._exit(0)
                os.waitpid(child, 0)
            self.tree.put(f"fake/transient-ended/{unit}", "")
        finally:
            os._exit(0)


def stage(machine: MachineFactory, name: str, **options: Any) -> Stage:
    """A fresh machine to rehearse on."""
    host = Stage(machine(name).root, **options)
    host.tree.make_directory("var/lib")
    return host


def xml_file(path: Path, *addresses: str) -> str:
    """The path of the XML of a VM with these devices."""
    path.write_bytes(domain_xml(*addresses))
    return str(path)


def rehearse(host: FakeHost, *words: str) -> int:
    """Run the command to its end, and that of the processes that it has started."""
    status = cli.main(["rehearse", "--yes", "--seconds", "1", *words], host)
    gone(host)
    return status


def order(host: Host, *addresses: str, **changes: Any) -> Rehearsal:
    """A rehearsal as the command would order it; short, unless changes say something else."""
    values: dict[str, Any] = {
        "own": OWN, "vm": "win11", "uuid": UUID, "configured_as": "win11",
        "addresses": addresses or (GPU,), "spared": (), "untried": "", "seconds": 1.0,
        "times": 1, "timeout_s": 60, "began": host.now(),
    }  # fmt: skip
    return Rehearsal(**{**values, **changes})


def begin(host: Host, rehearsal: Rehearsal) -> Diary:
    """Begin it as the command does, and return at once."""
    from vfio_console_hook.commands.rehearse.command import _detached

    diary = Diary(host, rehearsal.own)
    diary.begin(rehearsal)
    detached.begin(host, rehearsal, lambda role, own: _detached(host, role, own))
    return diary


def until(diary: Diary, holds: Callable[[Account], object]) -> Account:
    """What a diary tells once a condition holds."""
    end = time.monotonic() + WITHIN_S
    while not holds(account := diary.account()):
        assert time.monotonic() < end, diary.lines()
        time.sleep(0.01)
    return account


def ended(diary: Diary, host: FakeHost) -> Account:
    """What a diary tells in the end, when all its processes have ended."""
    account = until(diary, lambda account: account.end is not None)
    gone(host)
    return account


def gone(host: FakeHost) -> None:
    """Wait until no process of a rehearsal is left on the machine."""
    end = time.monotonic() + WITHIN_S
    units = [one for one in host.list("fake/transient") if one.endswith(".service")]
    while (
        any(host.read(f"proc/{pid}/stat") for pid in host.list("fake/real"))
        or len(host.list("fake/transient-ended")) < len(units)
    ):
        assert time.monotonic() < end
        time.sleep(0.01)


def the_diary(host: Host) -> Diary:
    """That of the only rehearsal."""
    (own,) = host.list(FOLDER)
    return Diary(host, own)


def kill(host: FakeHost, pid: int, number: int = signal.SIGKILL) -> None:
    """A signal for a process of a rehearsal, of which the machine learns too."""
    host.kill_between(pid, number)
    while number == signal.SIGKILL and fake_processes.runs(pid):
        time.sleep(0.01)
    host.read(f"proc/{pid}/stat")
