"""A machine on which the program dies, is refused, or sees less than there is.

Nothing of the program is replaced. Its changes of the machine pass through FakeHost
anyway. Its changes of files (the claims, the history, the log) are reported by
CPython itself: audit events come before a file is opened, made, renamed or removed
(PEP 578), and sys.setprofile reports each call of a C function, so of os.write() and
os.fsync(). What an audit hook or a profile function raises, the call raises in its
place; and what is called next is called with the change already on disk, which is
where a process is killed, with a real SIGKILL. strace sees the very same system calls in
a prepare, and beside them only the writes of the log, which are its news and no record.

What the fake kernel itself does to its own files lies elsewhere and does not count.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from tests.fakehost import FakeHost, pci
from tests.trust.fault import (
    BOTH,
    CHANGES,
    FAILS,
    HOOK,
    LOOKS,
    NOTHING,
    WORKER,
    Access,
    Fault,
    Trace,
)
from vfio_console_hook.errors import HostError

T = TypeVar("T")

# Where the program keeps files of its own.
_OWN = re.compile(r"(?:run/vfio-console-hook|var)(?:[./]|$)")
_LOOKED_AT = re.compile(r"(?:sys|proc|dev)/")
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FaultHost(FakeHost):
    """FakeHost for a process that is thrown away: its fault cannot be taken back.

    The process that makes one is the hook's own; what is forked from it is a worker.
    """

    def __init__(self, root: str, fault: Fault, trace: Trace) -> None:
        super().__init__(root)
        self._fault = fault
        self._trace = trace
        trace.hook = os.getpid()
        self._inside = False  # the fake kernel, or a look
        self._number = 0  # of the change that is under way
        self._failing = ""  # what goes on failing
        self._open = ""  # which file of the program's is written
        self._to_be_killed = False
        self._below = f"{self.root}/"
        sys.addaudithook(self._audit)

    @property
    def _who(self) -> str:
        return HOOK if os.getpid() == self._trace.hook else WORKER

    # -- changes

    def _about_to(self, kind: str, what: str) -> None:
        """A change is about to be made. Raises OSError when it is refused."""
        self._number = self._trace.count(CHANGES, Access(self._who, kind, what))
        if not self._fault.refusal:
            return
        own = kind.startswith("file ")
        same = "file" if own else what.split(" ")[0]
        if self._number == self._fault.at and self._fault.lasting:
            self._failing = same
        if self._number == self._fault.at or self._failing == same:
            raise OSError(self._fault.refusal, os.strerror(self._fault.refusal))

    def _is_hit(self) -> bool:
        return bool(self._fault.kill) and self._number == self._fault.at

    def _kill(self) -> None:
        """Kill the process that it hits; the change is made."""
        self._to_be_killed, hook, me = False, self._trace.hook, os.getpid()
        if me != hook and self._fault.kill in (HOOK, BOTH):
            os.kill(hook, signal.SIGKILL)
        if me == hook or self._fault.kill != HOOK:
            os.kill(me, signal.SIGKILL)
        self._number = 0

    def _change(self, kind: str, path: str, text: str, failing: str) -> None:
        super()._change(kind, path, text, failing)
        try:
            self._about_to(kind, f"{path} {text}")
        except OSError as error:
            raise HostError.of(failing, f"/{path}", error) from error

    @contextmanager
    def _kernel(self) -> Iterator[None]:
        """The fake kernel works on its own files; then the process is killed, if it is to be."""
        before, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = before
            if self._is_hit():  # the kernel itself may have refused it as well
                self._kill()

    def write(self, path: str, text: str) -> None:
        with self._kernel():
            super().write(path, text)

    def poke(self, path: str, offset: int, content: bytes) -> None:
        with self._kernel():
            super().poke(path, offset, content)

    def map_console(self, fb: str, console: int, index: int) -> None:
        with self._kernel():
            super().map_console(fb, console, index)

    def set_text_mode(self, tty: str, text: bool) -> None:
        with self._kernel():
            super().set_text_mode(tty, text)

    def lock_consoles(self, locked: bool) -> None:
        with self._kernel():
            super().lock_consoles(locked)

    def signal_process(self, handle: int, number: int) -> None:
        with self._kernel():
            super().signal_process(handle, number)

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0] == "/usr/bin/virsh":
            return ""  # no VM runs
        with self._kernel():
            return super().run(*command, timeout_s=timeout_s)

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        with self._kernel():
            return super().exit_status(*command, timeout_s=timeout_s)

    # -- changes of the program's own files

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        change = _FILE_EVENTS.get(event)
        if change is None or self._inside:
            return
        path = self._own(arguments[1 if event in ("os.rename", "os.symlink") else 0])
        if isinstance(arguments[0], int):
            path = self._open  # fchmod, ftruncate
        if not path or not change(self, path, arguments):
            return
        if event == "open":
            self._open = path
        self._about_to(f"file {event.rpartition('.')[2]}", path)
        self._to_be_killed = self._is_hit()
        if self._to_be_killed or event == "open":
            sys.setprofile(self._called)

    def _own(self, path: object) -> str:
        """A file of the program's, by its path on the machine; "" for any other."""
        text = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        if not text.startswith(self._below):
            return ""
        below = text[len(self._below) :]
        return below if _OWN.match(below) else ""

    def _called(self, frame: FrameType, event: str, function: Any) -> None:
        """What runs after an audited change, and every call while a file is open."""
        if self._to_be_killed:
            self._kill()
        if event != "c_call":
            return
        name = function.__name__
        if name in ("write", "fsync") and function.__module__ == "posix":
            if frame.f_code.co_filename.endswith("worker.py"):
                return  # its pipe
            self._about_to(f"file {name}", self._open)
            self._to_be_killed = self._is_hit()
        elif name in ("close", "__exit__"):
            sys.setprofile(None)

    # -- looks

    def _look(
        self,
        kind: str,
        path: str,
        look: Callable[[], T],
        nothing: T,
        half: Callable[[T], T] | None = None,
    ) -> T:
        """What a look shows. half makes of it what is to be seen when it is torn."""
        if self._inside or not _LOOKED_AT.match(path):
            return look()
        number = self._trace.count(LOOKS, Access(self._who, kind, path))
        self._inside = True
        try:
            if number != self._fault.look:
                return look()
            if self._fault.gone:
                self._pull_out(self._fault.gone)
            elif self._fault.blind == NOTHING or kind in ("exists", "real"):
                return nothing
            elif self._fault.blind == FAILS:
                raise HostError.of("read", f"/{path}", OSError(errno.EIO, ""))
            elif half is not None:
                return half(look())
            return look()
        finally:
            self._inside = False

    def _pull_out(self, address: str) -> None:
        """Linux drivers/pci/hotplug/pciehp_pci.c, pciehp_unconfigure_device."""
        if self.tree.exists(f"{pci.BUS}/devices/{address}"):
            pci.write_remove(self.tree, address)
            self.tree.remove(f"fake/removed/{address}")  # no rescan finds it

    def read_bytes(self, path: str) -> bytes | None:
        def look() -> bytes | None:
            return super(FaultHost, self).read_bytes(path)

        def half(content: bytes | None) -> bytes | None:
            return content and content[: len(content) // 2]

        return self._look("read", path, look, None, half)

    def list(self, path: str) -> tuple[str, ...]:
        def look() -> tuple[str, ...]:
            return super(FaultHost, self).list(path)

        return self._look("list", path, look, (), lambda all_: all_[: len(all_) // 2])

    def readlink(self, path: str) -> str | None:
        return self._look("readlink", path, lambda: super(FaultHost, self).readlink(path), None)

    def exists(self, path: str) -> bool:
        return self._look("exists", path, lambda: super(FaultHost, self).exists(path), False)

    def real(self, path: str) -> str | None:
        return self._look("real", path, lambda: super(FaultHost, self).real(path), None)

    def stat(self, path: str) -> os.stat_result | None:
        return self._look("stat", path, lambda: super(FaultHost, self).stat(path), None)

    def peek(self, path: str, offset: int, size: int) -> bytes:
        def look() -> bytes:
            return super(FaultHost, self).peek(path, offset, size)

        # What does not answer on the bus any more reads as ones.
        seen = self._look("peek", path, look, b"", lambda all_: b"\xff" * len(all_))
        if not seen:
            raise HostError.of("read", f"/{path}", OSError(errno.ENOENT, ""))
        return seen

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        def look() -> tuple[int, int] | None:
            return super(FaultHost, self).framebuffer_memory(fb)

        return self._look("ioctl", f"dev/{fb}", look, None)

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        def look() -> tuple[int | None, ...] | None:
            return super(FaultHost, self).console_map(fb)

        return self._look("ioctl", f"dev/{fb}", look, None)

    def open_files(self, pid: int) -> dict[str, str]:
        def look() -> dict[str, str]:
            return super(FaultHost, self).open_files(pid)

        return self._look("list", f"proc/{pid}/fd", look, {})

    def mappings(self, pid: int) -> bytes:
        def look() -> bytes:
            return super(FaultHost, self).mappings(pid)

        return self._look("read", f"proc/{pid}/maps", look, b"")


def _opened_for_change(host: FaultHost, path: str, arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[2] & _CHANGING)


def _not_there(host: FaultHost, path: str, arguments: tuple[Any, ...]) -> bool:
    return not os.path.lexists(host.path(path))


def _always(host: FaultHost, path: str, arguments: tuple[Any, ...]) -> bool:
    return True


_FILE_EVENTS: dict[str, Callable[[FaultHost, str, tuple[Any, ...]], bool]] = {
    "open": _opened_for_change,
    "os.mkdir": _not_there,
    "os.chmod": _always,
    "os.truncate": _always,
    "os.rename": _always,
    "os.remove": _always,
    "os.rmdir": _always,
    "os.symlink": _always,
}
