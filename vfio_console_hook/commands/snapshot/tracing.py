"""A host that traces its answers: what plan, status and doctor read of a machine.

writer.py runs them on one, so a snapshot has everything that they need, whatever they
read in a later version. answers.py turns the trace into entries.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from ...errors import HookError, HostError, UnrecordedError
from ...machine.host import Host
from ...machine.libvirtd import Vm
from ...machine.snapshot import answer_path, pack_console_map

T = TypeVar("T")


def failure_text(error: HookError) -> str:
    """An error as a snapshot has it: the sentence, and the hint in a second line."""
    return f"{error.text}\n{error.hint}".rstrip("\n")


@dataclass()
class Trace:
    """The answers of a host, by path, process or command.

    existing are paths, links among them, of which nothing else was asked. refused has the errors of
    paths that could not be read. texts are the answers of devices and programs, by the
    path that they have in a snapshot.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    existing: set[str] = field(default_factory=set)
    stats: dict[str, os.stat_result] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    refused: dict[str, HostError] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    open_files: dict[int, dict[str, str]] = field(default_factory=dict)
    mappings: dict[int, bytes] = field(default_factory=dict)
    numbers: dict[str, int | None] = field(default_factory=dict)


class TracingHost(Host):
    """Passes questions on to another host and traces the answers; it can change nothing.

    forgiving: a path that cannot be read counts as missing.
    """

    def __init__(self, host: Host, *, forgiving: bool = False) -> None:
        self.root = host.root
        self.owner_uid = host.owner_uid
        self.trace = Trace()
        self._host = host
        self._forgiving = forgiving
        # One time for all, so that output which depends on it is the same for the snapshot.
        self._now = host.now()

    @property
    def complete(self) -> bool:
        return self._host.complete

    @property
    def privileged(self) -> bool:
        return self._host.privileged

    def _answer(self, path: str, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except HostError as error:
            if error.errno:
                self.trace.refused[path] = error
            if self._forgiving:
                return otherwise
            raise

    # -- files

    def read_bytes(self, path: str) -> bytes | None:
        content = self._answer(path, lambda: self._host.read_bytes(path), None)
        if content is not None:
            self.trace.files[path] = content
        return content

    def list(self, path: str) -> tuple[str, ...]:
        none: tuple[str, ...] = ()
        try:
            names = self._answer(path, lambda: self._host.list(path), none)
        except HostError:
            self.trace.lists[path] = none
            raise
        if names or self._host.exists(path):
            self.trace.lists[path] = names
        return names

    def exists(self, path: str) -> bool:
        if not self._host.exists(path):
            return False
        self.trace.existing.add(path)
        return True

    def stat(self, path: str) -> os.stat_result | None:
        status = self._answer(path, lambda: self._host.stat(path), None)
        if status is not None:
            self.trace.stats[path] = status
        return status

    def lstat(self, path: str) -> os.stat_result | None:
        status = self._answer(path, lambda: self._host.lstat(path), None)
        self._add_status(path, status)
        return status

    def read_file(self, path: str, most: int = -1) -> tuple[os.stat_result, bytes] | None:
        found = self._answer(path, lambda: self._host.read_file(path, most), None)
        if found is None:
            return None
        self._add_status(path, found[0])
        if stat.S_ISREG(found[0].st_mode):
            self.trace.files[path] = found[1]
        return found

    def _add_status(self, path: str, status: os.stat_result | None) -> None:
        if status is not None and stat.S_ISLNK(status.st_mode):
            self.trace.existing.add(path)
        elif status is not None:
            self.trace.stats[path] = status

    def selinux_label(self, path: str) -> str | None:
        label = self._answer(path, lambda: self._host.selinux_label(path), None)
        if label is not None:
            self.trace.labels[path] = label
        return label

    def readlink(self, path: str) -> str | None:
        target = self._answer(path, lambda: self._host.readlink(path), None)
        if target is not None:
            self.trace.existing.add(path)
        return target

    def real(self, path: str) -> str | None:
        real = self._host.real(path)
        if real is not None:
            self.trace.existing.add(path)
        return real

    def peek(self, path: str, offset: int, size: int) -> bytes:
        content = self._answer(path, lambda: self._host.peek(path, offset, size), b"")
        # The bytes before offset were not read.
        known = self.trace.files.get(path, b"").ljust(offset, b"\0")
        self.trace.files[path] = known[:offset] + content + known[offset + len(content) :]
        return content

    # -- devices

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        memory = self._answer(f"dev/{fb}", lambda: self._host.framebuffer_memory(fb), None)
        if memory is not None:
            self.trace.texts[f"dev/{fb}"] = ""
            self.trace.texts[f"ioctl/{fb}/memory"] = f"{memory[0]:#x} {memory[1]}"
        return memory

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        indices = self._answer(f"dev/{fb}", lambda: self._host.console_map(fb), None)
        if indices is not None:
            self.trace.existing.add(f"dev/{fb}")
            self.trace.texts["ioctl/con2fbmap"] = pack_console_map(indices)
        return indices

    def text_mode(self, tty: str) -> bool:
        text = self._answer(f"dev/{tty}", lambda: self._host.text_mode(tty), True)
        self.trace.texts[f"dev/{tty}"] = ""
        self.trace.texts[f"ioctl/{tty}/mode"] = "text" if text else "graphics"
        return text

    # -- processes

    def open_files(self, pid: int) -> dict[str, str]:
        none: dict[str, str] = {}
        files = self._answer(f"proc/{pid}/fd", lambda: self._host.open_files(pid), none)
        self.trace.open_files[pid] = files
        return files

    def mappings(self, pid: int) -> bytes:
        text = self._answer(f"proc/{pid}/maps", lambda: self._host.mappings(pid), b"")
        self.trace.mappings[pid] = text
        return text

    def device_number(self, path: str) -> int | None:
        number = self._host.device_number(path)
        self.trace.numbers[path] = number
        return number

    def own_pids(self) -> frozenset[int]:
        return self._host.own_pids()

    # -- programs and time

    def run(self, *command: str, timeout_s: float = 30) -> str:
        output = self._program(command, partial(self._host.run, *command, timeout_s=timeout_s))
        self.trace.texts[answer_path(command)] = output
        return output

    def ask(self, path: str, question: str) -> str:
        command = (f"/{path}", question)
        answer = self._program(command, partial(self._host.ask, path, question))
        self.trace.texts[answer_path(command)] = answer
        return answer

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        question = partial(self._host.exit_status, *command, timeout_s=timeout_s)
        status = self._program(command, question)
        self.trace.texts[f"{answer_path(command)}.status"] = "" if status is None else str(status)
        return status

    def _program(self, command: tuple[str, ...], question: Callable[[], T]) -> T:
        failed = f"{answer_path(command)}.failed"
        try:
            answer = question()
        except UnrecordedError:
            raise  # a snapshot of a snapshot does not have it either
        except HostError as error:
            self.trace.texts[failed] = failure_text(error)
            raise
        self.trace.texts.pop(failed, None)
        return answer

    def vms(self, uri: str, name: str = "") -> tuple[Vm, ...]:
        return self._host.vms(uri, name)

    def now(self) -> float:
        return self._now

    def clock(self) -> float:
        return self._host.clock()

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        return self._host.wait(condition, timeout_s)

    def wait_for_end(self, handles: Sequence[int], timeout_s: float) -> None:
        self._host.wait_for_end(handles, timeout_s)

    # -- changes, which are refused

    def poke(self, path: str, offset: int, content: bytes) -> None:
        raise HostError(f"cannot change /{path} while tracing")

    def _ioctl(self, path: str, request: int, argument: bytearray | int) -> bool:
        raise HostError(f"cannot change /{path} while tracing")

    def open_process(self, pid: int) -> int | None:
        raise HostError(f"cannot act on process {pid} while tracing")

    def kill(self, pid: int) -> None:
        raise HostError(f"cannot act on process {pid} while tracing")
