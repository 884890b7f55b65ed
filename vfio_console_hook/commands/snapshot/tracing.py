"""A host that keeps in mind what it was asked: what plan and doctor read of a machine.

writer.py lets them look through one, so nothing that they need is forgotten in a
recorded machine, whatever they may come to read. What was seen is kept as it was
answered; answers.py makes entries of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ...errors import HostError
from ...machine.host import Host
from ...machine.libvirtd import Vm

T = TypeVar("T")


@dataclass()
class Seen:
    """What a host answered, by what it was asked; None for what was not there.

    there are the paths that exist. refused has the errno of what may not be read,
    ran the output of programs and statuses what they exited with, or why they failed.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    stats: dict[str, os.stat_result] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    refused: dict[str, HostError] = field(default_factory=dict)
    memories: dict[str, tuple[int, int]] = field(default_factory=dict)
    consoles: tuple[int | None, ...] | None = None
    modes: dict[str, bool] = field(default_factory=dict)
    open_files: dict[int, dict[str, str]] = field(default_factory=dict)
    mappings: dict[int, bytes] = field(default_factory=dict)
    numbers: dict[str, int | None] = field(default_factory=dict)
    ran: dict[tuple[str, ...], str | HostError] = field(default_factory=dict)
    statuses: dict[tuple[str, ...], int | HostError | None] = field(default_factory=dict)


class TracingHost(Host):
    """Lets another host answer, and notes what was asked; it can change nothing.

    forgiving: what may not be read counts as not there, for who goes on without it.
    """

    def __init__(self, host: Host, *, forgiving: bool = False) -> None:
        self.root = host.root
        self.owner_uid = host.owner_uid
        self.seen = Seen()
        self._host = host
        self._forgiving = forgiving
        # Time stands still, so that what depends on it is the same on the recorded machine.
        self._now = host.now()

    @property
    def complete(self) -> bool:
        return self._host.complete

    @property
    def privileged(self) -> bool:
        return self._host.privileged

    def _ask(self, path: str, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except HostError as error:
            if error.errno:
                self.seen.refused[path] = error
            if self._forgiving:
                return otherwise
            raise

    # -- looking

    def read_bytes(self, path: str) -> bytes | None:
        content = self._ask(path, lambda: self._host.read_bytes(path), None)
        if content is not None:
            self.seen.files[path] = content
        return content

    def list(self, path: str) -> tuple[str, ...]:
        none: tuple[str, ...] = ()
        try:
            names = self._ask(path, lambda: self._host.list(path), none)
        except HostError:
            self.seen.lists[path] = none
            raise
        if names or self._host.exists(path):
            self.seen.lists[path] = names
        return names

    def exists(self, path: str) -> bool:
        if not self._host.exists(path):
            return False
        self.seen.there.add(path)
        return True

    def stat(self, path: str) -> os.stat_result | None:
        status = self._ask(path, lambda: self._host.stat(path), None)
        if status is not None:
            self.seen.stats[path] = status
        return status

    def lstat(self, path: str) -> os.stat_result | None:
        status = self._ask(path, lambda: self._host.lstat(path), None)
        self._saw(path, status)
        return status

    def read_file(self, path: str, most: int = -1) -> tuple[os.stat_result, bytes] | None:
        found = self._ask(path, lambda: self._host.read_file(path, most), None)
        if found is None:
            return None
        self._saw(path, found[0])
        if stat.S_ISREG(found[0].st_mode):
            self.seen.files[path] = found[1]
        return found

    def _saw(self, path: str, status: os.stat_result | None) -> None:
        if status is not None and stat.S_ISLNK(status.st_mode):
            self.seen.links.add(path)
        elif status is not None:
            self.seen.stats[path] = status

    def selinux_label(self, path: str) -> str | None:
        label = self._ask(path, lambda: self._host.selinux_label(path), None)
        if label is not None:
            self.seen.labels[path] = label
        return label

    def readlink(self, path: str) -> str | None:
        target = self._ask(path, lambda: self._host.readlink(path), None)
        if target is not None:
            self.seen.links.add(path)
        return target

    def real(self, path: str) -> str | None:
        real = self._host.real(path)
        if real is not None:
            self.seen.there.add(path)
        return real

    def peek(self, path: str, offset: int, size: int) -> bytes:
        content = self._ask(path, lambda: self._host.peek(path, offset, size), b"")
        # The gap before it stays dark: it was not looked at.
        known = self.seen.files.get(path, b"").ljust(offset, b"\0")
        self.seen.files[path] = known[:offset] + content + known[offset + len(content) :]
        return content

    # -- asking devices

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        memory = self._ask(f"dev/{fb}", lambda: self._host.framebuffer_memory(fb), None)
        if memory is not None:
            self.seen.memories[fb] = memory
        return memory

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        indices = self._ask(f"dev/{fb}", lambda: self._host.console_map(fb), None)
        if indices is not None:
            self.seen.there.add(f"dev/{fb}")
            self.seen.consoles = indices
        return indices

    def text_mode(self, tty: str) -> bool:
        text = self._ask(f"dev/{tty}", lambda: self._host.text_mode(tty), True)
        self.seen.modes[tty] = text
        return text

    # -- processes

    def open_files(self, pid: int) -> dict[str, str]:
        none: dict[str, str] = {}
        files = self._ask(f"proc/{pid}/fd", lambda: self._host.open_files(pid), none)
        self.seen.open_files[pid] = files
        return files

    def mappings(self, pid: int) -> bytes:
        text = self._ask(f"proc/{pid}/maps", lambda: self._host.mappings(pid), b"")
        self.seen.mappings[pid] = text
        return text

    def device_number(self, path: str) -> int | None:
        number = self._host.device_number(path)
        self.seen.numbers[path] = number
        return number

    def own_pids(self) -> frozenset[int]:
        return self._host.own_pids()

    # -- programs and time

    def run(self, *command: str, timeout_s: float = 30) -> str:
        try:
            output = self._host.run(*command, timeout_s=timeout_s)
        except HostError as error:
            self.seen.ran[command] = error
            raise
        self.seen.ran[command] = output
        return output

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        try:
            status = self._host.exit_status(*command, timeout_s=timeout_s)
        except HostError as error:
            self.seen.statuses[command] = error
            raise
        self.seen.statuses[command] = status
        return status

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

    # -- what a witness does not do

    def poke(self, path: str, offset: int, content: bytes) -> None:
        raise HostError(f"a look changes nothing, /{path} least of all")

    def _ioctl(self, path: str, request: int, argument: bytearray | int) -> bool:
        raise HostError(f"a look changes nothing, /{path} least of all")

    def open_process(self, pid: int) -> int | None:
        raise HostError(f"a look does nothing to process {pid}")

    def kill(self, pid: int) -> None:
        raise HostError(f"a look does nothing to process {pid}")
