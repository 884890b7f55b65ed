"""The record: which VM holds which GPUs, and every step done for it, written ahead.

    /run/vfio-console-hook/             0700, gone with the boot it speaks of
        lock                            flock, held while claims are read or made
        claims/UUID                     one VM, JSON lines, oldest first
        by-name/=NAME -> ../claims/UUID for the gate, which starts no Python to look
        by-name/+unnamed                some claim's name is too long for a link
        kernel                          answers that hold for the whole boot
    /run/vfio-console-hook.status/      for everybody to read, see history.py

The lines of a claim:
    {"vm": NAME, "uuid": ..., "boot": ..., "gpus": [...], "since": ..., "by_hand": BOOL}
    {"phase": "start", "hook": [PID, TICKS]}  how far the VM is, and who works on it now
    {"worker": [PID, TICKS]}  its process that talks to the kernel; [0, 0] when that has ended
    {"step": {...}}      about to be done
    {"done": N}          step N has been done and read back, counted from 0
    {"undone": N}        step N has been undone, or cannot be and was told

A claim is made by a rename and grows by whole lines, each synced before the
step it names, so a crash loses at most a line that nothing was done for yet.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import processes
from .errors import HostError, JournalError, StuckError
from .host import Host
from .step import Step

RUN = "run/vfio-console-hook"
CLAIMS = f"{RUN}/claims"
BY_NAME = f"{RUN}/by-name"
_LOCK_S = 10.0
_UNNAMED = f"{BY_NAME}/+unnamed"


@dataclass
class Record:
    """What one VM holds. Its file grows with it; steps[n] is undone when n is in undone.

    by_hand: a person took the GPUs, no VM. hook is the process that handles the last
    event, and worker the one that talks to the kernel for it. Both are (pid, start
    in ticks since boot), (0, 0) for none.
    """

    host: Host
    name: str
    uuid: str
    boot: str
    gpus: tuple[str, ...]
    since: float
    by_hand: bool = False
    phase: str = "prepare"
    hook: tuple[int, int] = (0, 0)
    worker: tuple[int, int] = (0, 0)
    steps: list[Step] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)

    @property
    def path(self) -> str:
        return f"{CLAIMS}/{self.uuid}"

    def begin(self, step: Step) -> int:
        """Write down that step is about to be done; its number. Raises JournalError."""
        self._append({"step": step.to_json()})
        self.steps.append(step)
        return len(self.steps) - 1

    def finish(self, number: int) -> None:
        """Write down that a step has been done and read back. Raises JournalError."""
        self._append({"done": number})
        self.done.add(number)

    def forget(self, number: int) -> None:
        """Write down that a step is undone. Raises JournalError."""
        self._append({"undone": number})
        self.undone.add(number)

    def reach(self, phase: str) -> None:
        """Write down how far the VM has come, and that this process handles it now.

        The caller holds the lock.
        """
        self.phase, self.hook = phase, processes.this(self.host)
        self._tell({"phase": phase, "hook": self.hook})

    @contextmanager
    def work(self) -> Iterator[None]:
        """Write down that this process talks to the kernel, and when it has come to its end.

        Not when the kernel is stuck: then nothing may be undone below what is left.
        """
        self._attend(processes.this(self.host))
        try:
            yield
        except StuckError:
            raise
        except Exception:
            self._leave()
            raise
        self._leave()

    def _leave(self) -> None:
        # Given back, it is no longer there.
        if self.host.exists(self.path):
            self._attend((0, 0))

    def _attend(self, worker: tuple[int, int]) -> None:
        self._tell({"worker": worker})
        self.worker = worker

    def _tell(self, entry: dict[str, object]) -> None:
        # The way back does not need it, and a full disk must not keep the console dark.
        try:
            self._append(entry)
        except JournalError:
            return

    @property
    def open_steps(self) -> list[tuple[int, Step]]:
        """The steps not undone yet, newest first: the order of undoing."""
        return [(n, s) for n, s in reversed([*enumerate(self.steps)]) if n not in self.undone]

    def drop(self) -> None:
        """Give the claim up. Raises JournalError."""
        link = f"{BY_NAME}/={self.name}"
        try:
            os.unlink(self.host.path(self.path))
            # A VM made anew under the same name may have the link by now.
            if _linkable(self.name) and self.host.readlink(link) == _link_to(self.uuid):
                os.unlink(self.host.path(link))
            if not self.host.list(CLAIMS) and self.host.exists(_UNNAMED):
                os.unlink(self.host.path(_UNNAMED))
        except OSError as error:
            raise _error("remove", self.path, error) from error

    def _append(self, entry: dict[str, object]) -> None:
        try:
            handle = os.open(self.host.path(self.path), os.O_RDWR | os.O_CLOEXEC)
            try:
                _cut_torn_line(handle)
                _write_all(handle, json.dumps(entry) + "\n")
            finally:
                os.close(handle)
        except OSError as error:
            raise _error("write", self.path, error) from error


class Journal:
    """The records of all VMs on a machine."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock. Only for reading and making claims: never around a step.

        Raises JournalError when somebody else keeps it for seconds, which nobody
        of ours does.
        """
        _make_directories(self.host)
        try:
            handle = os.open(
                self.host.path(f"{RUN}/lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise _error("open", f"{RUN}/lock", error) from error
        try:
            deadline = time.monotonic() + _LOCK_S
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    raise JournalError(
                        f"another process keeps the lock of the record, /{RUN}/lock",
                        hint=f"see who it is with `fuser /{RUN}/lock`",
                    )
                time.sleep(0.005)
            yield
        finally:
            os.close(handle)

    def find(self, uuid: str) -> Record | None:
        """The record of one VM, or None. Raises JournalError when it cannot be read."""
        try:
            text = self.host.read_bytes(f"{CLAIMS}/{uuid}")
        except HostError as error:
            raise JournalError(error.text) from error
        return None if text is None else _parse(self.host, uuid, text)

    def uuids(self) -> tuple[str, ...]:
        """The VMs that hold something. Raises HostError."""
        return tuple(name for name in self.host.list(CLAIMS) if not name.startswith("."))

    def others(self, uuid: str, boot: str) -> list[Record]:
        """What other VMs than uuid hold in this boot, as far as it can be read."""
        return [one for one in self.records() if one.uuid != uuid and one.boot == boot]

    def records(self) -> tuple[Record, ...]:
        """The records of all VMs that can be read."""
        found = []
        for uuid in self.uuids():
            try:
                record = self.find(uuid)
            except JournalError:
                continue  # `status` names it; it must not keep other VMs from starting
            if record is not None:
                found.append(record)
        return tuple(found)

    def claim(self, record: Record, inherited: list[Step]) -> None:
        """Make the file of a new record, with steps it takes over from another one.

        The caller holds the lock. Raises JournalError.
        """
        name, uuid = record.name, record.uuid
        head = {
            "vm": name, "uuid": uuid, "boot": record.boot, "gpus": record.gpus,
            "since": record.since, "by_hand": record.by_hand,
        }  # fmt: skip
        record.hook = processes.this(self.host)
        lines = [head, {"phase": record.phase, "hook": record.hook}]
        lines += [{"step": step.to_json()} for step in inherited]
        lines += [{"done": number} for number in range(len(inherited))]
        write_file(self.host, record.path, "".join(json.dumps(line) + "\n" for line in lines))
        record.steps += inherited
        record.done |= set(range(len(inherited)))
        try:
            self._link(name, uuid)
        except JournalError:
            os.unlink(self.host.path(record.path))
            raise

    def _link(self, name: str, uuid: str) -> None:
        link = self.host.path(f"{BY_NAME}/={name}")
        try:
            if not _linkable(name):
                write_file(self.host, _UNNAMED, "")
                return
            if os.path.lexists(link):
                os.unlink(link)
            os.symlink(_link_to(uuid), link)
        except OSError as error:
            raise _error("link", f"{BY_NAME}/={name}", error) from error


def _locked(handle: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _linkable(name: str) -> bool:
    return "/" not in name and len(os.fsencode(name)) < 255  # NAME_MAX, with the "="


def _link_to(uuid: str) -> str:
    return f"../claims/{uuid}"


def _parse(host: Host, uuid: str, text: bytes) -> Record:
    lines = text.split(b"\n")
    try:
        # What follows the last newline was cut off by a crash: nothing was done for it.
        entries = [json.loads(line) for line in lines[:-1]]
        head = entries[0]
        record = Record(
            host=host,
            name=str(head["vm"]),
            uuid=uuid,
            boot=str(head["boot"]),
            gpus=tuple(str(gpu) for gpu in head["gpus"]),
            since=float(head["since"]),
            by_hand=head["by_hand"] is True,
        )
        for entry in entries[1:]:
            _replay(record, entry)
    except (
        ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise JournalError(
            f"cannot understand the record /{CLAIMS}/{uuid}: {error}",
            hint="read it, undo by hand what it names, then remove it",
        ) from error
    return record


def _replay(record: Record, entry: dict[str, object]) -> None:
    for key, value in entry.items():
        if key == "step" and isinstance(value, dict):
            record.steps.append(Step.from_json(value))
        elif key == "done" and isinstance(value, int):
            record.done.add(value)
        elif key == "undone" and isinstance(value, int):
            record.undone.add(value)
        elif key == "phase":
            record.phase = str(value)
        elif key in ("hook", "worker") and isinstance(value, list):
            pid, started = value
            setattr(record, key, (int(pid), int(started)))
        else:
            raise ValueError(f"unknown entry {key!r}")


def write_file(host: Host, path: str, text: str, mode: int = 0o600) -> None:
    """Make or replace a file below /run in one go, synced. Raises JournalError."""
    _make_directories(host)
    full = host.path(path)
    draft = os.path.join(os.path.dirname(full), f".{os.path.basename(full)}.{os.getpid()}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(handle, mode)
            _write_all(handle, text)
        finally:
            os.close(handle)
        os.rename(draft, full)
    except OSError as error:
        if os.path.lexists(draft):
            os.unlink(draft)
        raise _error("write", path, error) from error


def _cut_torn_line(handle: int) -> None:
    """Go to the end of the last whole line, and drop what a crash left behind it."""
    end = os.lseek(handle, 0, os.SEEK_END)
    if end and os.pread(handle, 1, end - 1) != b"\n":
        end = os.pread(handle, end, 0).rfind(b"\n") + 1
        os.ftruncate(handle, end)
        os.lseek(handle, end, os.SEEK_SET)


def _write_all(handle: int, text: str) -> None:
    content = text.encode("utf-8", "surrogateescape")
    written = os.write(handle, content)
    if written != len(content):  # a full disk: the rest would fail
        raise OSError(28, os.strerror(28))
    os.fsync(handle)


def _make_directories(host: Host) -> None:
    for path in (RUN, CLAIMS, BY_NAME):
        try:
            os.mkdir(host.path(path), 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise _error("make", path, error) from error


def _error(verb: str, path: str, error: OSError) -> JournalError:
    return JournalError(
        f"cannot {verb} the record /{path}: {os.strerror(error.errno or 0)}",
        hint="is /run full, or read-only?",
    )
