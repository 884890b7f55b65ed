"""A claim: what one VM holds, and every step done for it, written ahead.

It is a file of JSON lines, oldest first (directory.py says where):

    {"format": 2, "vm": NAME, "uuid": ..., "boot": ..., "gpus": [...], "since": ...,
     "by_hand": BOOL, "settings": {"log_level": ..., "timeout_s": ..., "on_failure": ...}}
                         and "on_refusal" and "announce" if they are not the defaults; with
                         "until": T for a rehearsal, which gives all back by then
    {"phase": "start", "hook": [PID, TICKS]}  how far the VM is, and which process handles it;
                         with "forgotten": true when libvirt no longer knows of this run
    {"worker": [PID, TICKS]}  its process that talks to the kernel; [0, 0] when that has ended
    {"step": {...}}      about to be done
    {"done": N}          step N has been done and read back, counted from 0
    {"undone": N}        step N has been undone, or cannot be and was reported as lost

Format 1, of versions before there was a number, has neither "format" nor "settings".

A claim is made by a rename and grows by whole lines, one write each, synced before the
step it names. So a crash loses at most a line for which nothing has been done yet. Only
one process writes at a time: ownership.acquire() has stopped the one before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ..errors import ClaimError, CutOffError, StuckError
from ..log import LEVELS
from ..machine import processes, runfiles
from ..machine.host import Host, seconds
from ..machine.runfiles import RUN
from .step import Step

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

CLAIMS = f"{RUN}/claims"
FORMAT = 2
_LONGEST_REASON = 200

# settings.py has the same, for people, and takes 2 ms to load.
_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "log_level": lambda value: value in LEVELS,
    "timeout_s": lambda value: type(value) is int and 1 <= value <= 600,
    "on_failure": lambda value: value in ("abort", "start"),
    "on_refusal": lambda value: isinstance(value, str) and value[:1] == "/" and "\0" not in value,
    "announce": lambda value: (
        isinstance(value, list) and all(one in ("login", "session") for one in value)
    ),
}
_LATER_SETTINGS = ("on_refusal", "announce")


@dataclass(eq=False, repr=False)
class Claim:
    """What one VM holds. Its file grows with it; steps[n] is undone when n is in undone.

    by_hand: a person took the GPUs, no VM. until: when a rehearsal will have given them back, in
    seconds since 1970; 0 if it is none. forgotten: libvirt no longer knows of this run,
    so it has re-attached nothing. hook is the process that handles the last event, and
    worker the one that talks to the kernel for it. Both are (pid, start in ticks since
    boot), (0, 0) for none. dropped: its file is gone, or another claim's. log_level and what
    follows are what later events need of the configuration that prepare had (settings.py).
    """

    host: Host
    name: str
    uuid: str
    boot: str
    gpus: tuple[str, ...]
    since: float
    by_hand: bool = False
    until: float = 0.0
    phase: str = "prepare"
    hook: tuple[int, int] = (0, 0)
    worker: tuple[int, int] = (0, 0)
    forgotten: bool = False
    steps: list[Step] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)
    dropped: bool = False
    log_level: str = "info"
    timeout_s: int = 60
    on_failure: str = "abort"
    on_refusal: str = "none"
    announce: tuple[str, ...] = ("login", "session")

    @property
    def path(self) -> str:
        return f"{CLAIMS}/{self.uuid}"

    @property
    def open_steps(self) -> list[tuple[int, Step]]:
        """The steps not undone yet, newest first: the order of undoing."""
        return [(n, s) for n, s in reversed([*enumerate(self.steps)]) if n not in self.undone]

    def create(self, inherited: list[Step]) -> None:
        """Make the file, with steps that are taken over from another claim. Raises ClaimError."""
        self.hook = processes.this(self.host)
        # An earlier version that is installed meanwhile does not know the others.
        settings = {
            key: getattr(self, key)
            for key in _SETTINGS
            if key not in _LATER_SETTINGS or getattr(self, key) != getattr(Claim, key)
        }
        head = {
            "format": FORMAT, "vm": self.name, "uuid": self.uuid, "boot": self.boot,
            "gpus": self.gpus, "since": self.since, "by_hand": self.by_hand, "settings": settings,
        }  # fmt: skip
        if self.until:
            head["until"] = self.until
        lines = [head, {"phase": self.phase, "hook": self.hook}]
        lines += [{"step": step.to_json()} for step in inherited]
        lines += [{"done": number} for number in range(len(inherited))]
        runfiles.write(self.host, self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.steps += inherited
        self.done |= set(range(len(inherited)))

    def begin(self, step: Step) -> int:
        """Write down that step is about to be done; its number. Raises ClaimError."""
        self._append({"step": step.to_json()})
        self.steps.append(step)
        return len(self.steps) - 1

    def finish(self, number: int) -> None:
        """Write down that a step has been done and read back. Raises ClaimError."""
        self._append({"done": number})
        self.done.add(number)

    def forget(self, number: int) -> None:
        """Write down that a step is undone. Raises ClaimError."""
        self._append({"undone": number})
        self.undone.add(number)

    def reach(self, phase: str, *, forgotten: bool = False) -> None:
        """Write down how far the VM has come, and that this process handles it now.

        What was forgotten once stays so. The caller holds the lock, and has stopped the
        worker of the process before.
        """
        self.cut_torn_line()
        self.phase, self.hook = phase, processes.this(self.host)
        self.forgotten = self.forgotten or forgotten
        extra = {"forgotten": True} if forgotten else {}
        self._note({"phase": phase, "hook": self.hook, **extra})

    @contextmanager
    def work(self) -> Iterator[None]:
        """Write down that this process talks to the kernel, and when it has come to its end.

        Not when the kernel is stuck: then nothing may be undone below what is left.
        """
        self._require_hook()
        self._note_worker(processes.this(self.host))
        self._require_hook()
        processes.mark_programs(self.host, self.worker)
        try:
            yield
        except StuckError:
            raise
        except Exception:
            self._end_work()
            raise
        self._end_work()

    def _end_work(self) -> None:
        if not self.dropped:
            self._note_worker((0, 0))

    def _require_hook(self) -> None:
        """Raise CutOffError when the hook was killed: the next one may not have seen this worker.

        What it has seen it kills.
        """
        if self.hook[0] not in (os.getpid(), os.getppid()):
            raise CutOffError("the hook that started this process was killed")

    def _note_worker(self, worker: tuple[int, int]) -> None:
        self._note({"worker": worker})
        self.worker = worker

    def _note(self, entry: dict[str, object]) -> None:
        """Append what the undo does not need: a full disk must not keep the console dark."""
        try:
            self._append(entry)
        except ClaimError:
            return

    def _append(self, entry: dict[str, object]) -> None:
        handle = runfiles.open_file(self.host, self.path, os.O_WRONLY | os.O_APPEND)
        try:
            end = os.fstat(handle).st_size
            try:
                runfiles.write_all(handle, json.dumps(entry) + "\n")
            except OSError as error:
                # A full disk takes a part of a line. What refuses that, too, takes no other line.
                with suppress(OSError):
                    os.ftruncate(handle, end)
                raise runfiles.failed("write", self.path, error) from error
        finally:
            os.close(handle)

    def cut_torn_line(self) -> None:
        """Remove what follows the last whole line: its writer was killed on a full disk."""
        handle = runfiles.open_file(self.host, self.path, os.O_RDWR)
        try:
            end = os.fstat(handle).st_size
            if end and os.pread(handle, 1, end - 1) != b"\n":
                os.ftruncate(handle, os.pread(handle, end, 0).rfind(b"\n") + 1)
        except OSError as error:
            raise runfiles.failed("write", self.path, error) from error
        finally:
            os.close(handle)


def parse(host: Host, uuid: str, text: bytes) -> Claim:
    """The claim in a file's content. Raises ClaimError, and then nothing of it is believed."""
    lines = text.split(b"\n")
    try:
        # What follows the last newline was cut off by a crash: nothing was done for it.
        entries = [json.loads(line) for line in lines[:-1]]
        head = entries[0]
        if head.get("format", 1) not in (1, FORMAT):
            raise ClaimError(
                f"/{CLAIMS}/{uuid} was written by another version of vfio-console-hook (format"
                f" {str(head['format'])[:20]}, this version knows 1 and {FORMAT})",
                hint="install the version that was there when the VM started, or reboot the host",
            )
        claim = Claim(
            host=host,
            name=_name(head["vm"]),
            uuid=uuid,
            boot=str(head["boot"]),
            gpus=tuple(_name(gpu) for gpu in head["gpus"]),
            since=seconds(head["since"]),
            by_hand=head["by_hand"] is True,
            until=seconds(head.get("until", 0)),
            **_settings(head.get("settings", {})),
        )
        for entry in entries[1:]:
            _replay(claim, entry)
    except (
        ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise ClaimError(
            f"cannot understand the claim /{CLAIMS}/{uuid}: {str(error)[:_LONGEST_REASON]}",
            hint="read it, undo by hand what it names, then remove it",
        ) from error
    return claim


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings in a claim. Raises ValueError for what no configuration has."""
    for name, value in values.items():
        if name not in _SETTINGS or not _SETTINGS[name](value):
            raise ValueError(f"no such setting: {name[:20]!r}")
    return {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}


def _replay(claim: Claim, entry: dict[str, object]) -> None:
    for key, value in entry.items():
        if key == "step" and isinstance(value, dict):
            claim.steps.append(Step.from_json(value))
        elif key == "done" and isinstance(value, int):
            claim.done.add(value)
        elif key == "undone" and isinstance(value, int):
            claim.undone.add(value)
        elif key == "phase":
            claim.phase = str(value)
        elif key == "forgotten" and isinstance(value, bool):
            claim.forgotten = value
        elif key in ("hook", "worker") and isinstance(value, list):
            pid, started = value
            if not (type(pid) is type(started) is int and pid >= 0 <= started):
                raise ValueError(f"{key} is no process")
            setattr(claim, key, (pid, started))
        else:
            raise ValueError(f"unknown entry {key!r}")


def _name(value: object) -> str:
    """A text that may become a part of a path. Raises ValueError."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a name is no text")
    os.fsencode(value)  # UnicodeEncodeError is a ValueError
    return value
