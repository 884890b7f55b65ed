"""The claim: which VM holds which GPUs, and every step done for it, written ahead.

    /run/vfio-console-hook/             0700, gone with the boot it speaks of
        lock                            flock, held while claims are read or made
        claims/UUID                     one VM, JSON lines, oldest first
        by-name/=NAME -> ../claims/UUID for the gate, which starts no Python to look
        by-name/+unnamed                some claim's name is too long for a link
        kernel                          answers that hold for the whole boot
    /run/vfio-console-hook.status/      for everybody to read, see history.py

The lines of a claim:
    {"vm": NAME, "uuid": ..., "boot": ..., "gpus": [...], "since": ..., "by_hand": BOOL}
    {"phase": "start", "hook": [PID, TICKS]}  how far the VM is, and who works on it now;
                         with "forgotten": true when libvirt knows nothing of it any more
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

from ..errors import ClaimError, HookError, StuckError
from ..machine import processes, runfiles
from ..machine.host import Host, seconds
from ..machine.runfiles import RUN
from .step import Step

CLAIMS = f"{RUN}/claims"
BY_NAME = f"{RUN}/by-name"
_LOCK_S = 10.0
_LONGEST_REASON = 200
_UNNAMED = f"{BY_NAME}/+unnamed"


@dataclass()
class Claim:
    """What one VM holds. Its file grows with it; steps[n] is undone when n is in undone.

    by_hand: a person took the GPUs, no VM. forgotten: libvirt knows nothing of this run any
    more, so it has re-attached nothing. hook is the process that handles the last
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
    forgotten: bool = False
    steps: list[Step] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)

    @property
    def path(self) -> str:
        return f"{CLAIMS}/{self.uuid}"

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

        What was forgotten once stays so. The caller holds the lock.
        """
        self.phase, self.hook = phase, processes.this(self.host)
        self.forgotten = self.forgotten or forgotten
        extra = {"forgotten": True} if forgotten else {}
        self._tell({"phase": phase, "hook": self.hook, **extra})

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
        except ClaimError:
            return

    @property
    def open_steps(self) -> list[tuple[int, Step]]:
        """The steps not undone yet, newest first: the order of undoing."""
        return [(n, s) for n, s in reversed([*enumerate(self.steps)]) if n not in self.undone]

    def drop(self) -> None:
        """Give the claim up. Raises ClaimError."""
        claims = Claims(self.host)
        # Locked, or the name of a claim that is made anew for the same VM would go.
        with claims.lock():
            try:
                os.unlink(self.host.path(self.path))
            except OSError as error:
                raise runfiles.failed("remove", self.path, error) from error
            # The claim had its name as long as it was there, or the gate would not see it.
            claims.unlink_name(self.name, self.uuid)
            if self.host.exists(_UNNAMED):
                claims.tidy()

    def _append(self, entry: dict[str, object]) -> None:
        handle = runfiles.open_file(self.host, self.path, os.O_RDWR)
        try:
            _cut_torn_line(handle)
            runfiles.write_all(handle, json.dumps(entry) + "\n")
        except OSError as error:
            raise runfiles.failed("write", self.path, error) from error
        finally:
            os.close(handle)


class Claims:
    """The claims of all VMs on a machine."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock. Only for reading and making claims: never around a step.

        Raises ClaimError when somebody else keeps it for seconds, which nobody
        of ours does.
        """
        for path in (RUN, CLAIMS, BY_NAME):
            runfiles.make_directory(self.host, path)
        handle = runfiles.open_file(self.host, f"{RUN}/lock", os.O_RDWR | os.O_CREAT)
        try:
            deadline = time.monotonic() + _LOCK_S
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    raise ClaimError(
                        f"another process keeps the lock of the claim, /{RUN}/lock",
                        hint=f"see who it is with `fuser /{RUN}/lock`",
                    )
                time.sleep(0.005)
            yield
        finally:
            os.close(handle)

    def find(self, uuid: str) -> Claim | None:
        """The claim of one VM, or None. Raises ClaimError when it cannot be read."""
        text = runfiles.read(self.host, f"{CLAIMS}/{uuid}")
        return None if text is None else _parse(self.host, uuid, text)

    def uuids(self) -> tuple[str, ...]:
        """The VMs that hold something. Raises HostError, ClaimError."""
        return runfiles.names(self.host, CLAIMS)

    def others(self, uuid: str, boot: str, about: tuple[str, ...] = ()) -> list[Claim]:
        """What other VMs than uuid hold in this boot, as far as it can be read.

        about: only what names one of these PCI addresses, if there are any.
        """
        return [one for one in self.readable(about) if one.uuid != uuid and one.boot == boot]

    def readable(self, about: tuple[str, ...] = ()) -> tuple[Claim, ...]:
        """The claims of all VMs that can be read; about as for others()."""
        found = []
        wanted = tuple(address.encode() for address in about)
        # What cannot be read or understood must not keep other VMs from starting; `status`
        # names it.
        for uuid, text in runfiles.contents(self.host, CLAIMS):
            # To understand a claim takes seven times as long as to read it, and others
            # may be waiting for the lock.
            if wanted and not any(one in text for one in wanted):
                continue
            try:
                found.append(_parse(self.host, uuid, text))
            except ClaimError:
                continue
        return tuple(found)

    def make(self, claim: Claim, inherited: list[Step]) -> None:
        """Make the file of a new claim, with steps it takes over from another one.

        The caller holds the lock. Raises ClaimError.
        """
        name, uuid = claim.name, claim.uuid
        head = {
            "vm": name, "uuid": uuid, "boot": claim.boot, "gpus": claim.gpus,
            "since": claim.since, "by_hand": claim.by_hand,
        }  # fmt: skip
        claim.hook = processes.this(self.host)
        lines = [head, {"phase": claim.phase, "hook": claim.hook}]
        lines += [{"step": step.to_json()} for step in inherited]
        lines += [{"done": number} for number in range(len(inherited))]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        # First the name: without it the gate would never call us to give the claim back.
        self._link(name, uuid)
        try:
            runfiles.write(self.host, claim.path, text)
        except ClaimError:
            self.unlink_name(name, uuid)
            raise
        claim.steps += inherited
        claim.done |= set(range(len(inherited)))
        try:
            self.tidy()
        except HookError:
            return  # the claim is whole, and what an earlier crash left is in nobody's way

    def _link(self, name: str, uuid: str) -> None:
        if not _linkable(name):
            runfiles.write(self.host, _UNNAMED, "")
            return
        draft = self.host.path(f"{BY_NAME}/.{uuid}.{os.getpid()}")
        try:
            # Of a process that was killed and had our number.
            if os.path.lexists(draft):
                os.unlink(draft)
            os.symlink(_link_to(uuid), draft)
            os.rename(draft, self.host.path(f"{BY_NAME}/={name}"))
        except OSError as error:
            raise runfiles.failed("link", f"{BY_NAME}/={name}", error) from error

    def unlink_name(self, name: str, uuid: str) -> None:
        """Remove the name of a claim that is gone; the caller holds the lock.

        Raises ClaimError.
        """
        link = f"{BY_NAME}/={name}"
        # A VM made anew under the same name may have the link by now.
        if _linkable(name) and self.host.readlink(link) == _link_to(uuid):
            runfiles.remove(self.host, link)

    def tidy(self) -> None:
        """Remove what a crash has left: drafts, and names without a claim.

        The caller holds the lock. Raises ClaimError.
        """
        links = {_link_to(uuid) for uuid in self.uuids()}
        for folder in (RUN, CLAIMS, BY_NAME):
            for name in self.host.list(folder):
                if name.startswith("."):
                    runfiles.remove(self.host, f"{folder}/{name}")
        for name in self.host.list(BY_NAME):
            link = f"{BY_NAME}/{name}"
            if name.startswith("=") and self.host.readlink(link) not in links:
                runfiles.remove(self.host, link)
        if not links:
            runfiles.remove(self.host, _UNNAMED)


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


def _parse(host: Host, uuid: str, text: bytes) -> Claim:
    lines = text.split(b"\n")
    try:
        # What follows the last newline was cut off by a crash: nothing was done for it.
        entries = [json.loads(line) for line in lines[:-1]]
        head = entries[0]
        claim = Claim(
            host=host,
            name=_name(head["vm"]),
            uuid=uuid,
            boot=str(head["boot"]),
            gpus=tuple(_name(gpu) for gpu in head["gpus"]),
            since=seconds(head["since"]),
            by_hand=head["by_hand"] is True,
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


def _cut_torn_line(handle: int) -> None:
    """Go to the end of the last whole line, and drop what a crash left behind it."""
    end = os.lseek(handle, 0, os.SEEK_END)
    if end and os.pread(handle, 1, end - 1) != b"\n":
        end = os.pread(handle, end, 0).rfind(b"\n") + 1
        os.ftruncate(handle, end)
        os.lseek(handle, end, os.SEEK_SET)
