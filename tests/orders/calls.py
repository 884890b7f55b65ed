"""The program run once: in this process, or in one that is killed in the middle."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fakehost import FakeHost
from tests.trust.process import in_a_process
from vfio_console_hook.cli import COMMANDS
from vfio_console_hook.errors import HookError, HostError

from . import watch

_VIRSH = "/usr/bin/virsh"
Work = Callable[[FakeHost], int]


@dataclass(frozen=True)
class Kill:
    """When the program is killed: before its change number before.

    whole: the hook with its worker, and not its worker alone.
    """

    before: int
    whole: bool


class SeenHost(FakeHost):
    """The machine as one run of the program finds it: with libvirt's answer, and a kill."""

    running: str | None = None
    kill_before = 0
    hook_pid = 0

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0] != _VIRSH:
            return super().run(*command, timeout_s=timeout_s)
        if self.running is None:
            raise HostError("virsh did not end in time")
        return self.running

    def kill(self, pid: int) -> None:
        self.tree.put("fake/killed", f"{self.tree.read('fake/killed') or ''}\n{pid}")
        super().kill(pid)

    def _change(self, kind: str, path: str, text: str, failing: str) -> None:
        if self.kill_before and len(self.changes) + 1 == self.kill_before:
            os.kill(self.hook_pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        super()._change(kind, path, text, failing)


@dataclass(frozen=True)
class Called:
    """What a call of the program came to."""

    status: int
    out: str
    err: str
    changes: tuple[tuple[str, str, str], ...]
    before: dict[str, watch.Claim]
    after: dict[str, watch.Claim]


def command(host: FakeHost, *argv: str) -> int:
    """What cli.main does, without building the parser of all commands anew each time."""
    command = next(one for one in COMMANDS if one.name == argv[0])
    parser = argparse.ArgumentParser()
    command.options(parser)
    try:
        return command.run(host, parser.parse_args(argv[1:]))
    except HookError as error:
        print(f"vfio-console-hook: {error.text}", file=sys.stderr)
        return 1


def here(work: Work, host: FakeHost) -> tuple[int, str, str]:
    """The program run in this process: its exit status, stdout and stderr."""
    out, err = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(one, "utf-8", write_through=True) for one in (out, err)]
    redirected = contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1])
    with _quiet_stdout(), redirected[0], redirected[1]:
        status = work(host)
        for stream in streams:
            stream.flush()
    return status, out.getvalue().decode(), err.getvalue().decode()


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Commands print each step on descriptor 1 itself (commands/progress.py)."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def in_a_child(work: Work, host: SeenHost, kill_before: int) -> int:
    """The exit status of the program in a process that is killed with its worker; -9 then."""

    def child() -> int:
        host.kill_before, host.hook_pid = kill_before, os.getpid()
        return work(host)

    return in_a_process(child, Path(f"{host.root}.stderr")).status
