"""A machine on which the program dies, is refused, or sees less than there is.

Nothing of the program is replaced. Its changes of the machine pass through FakeHost
anyway. Its changes of files (the claims, the history, the log) are reported by
CPython itself: audit events come before a file is opened, made, renamed or removed
(PEP 578), and sys.setprofile reports each call of a C function, so of os.write() and
os.fsync(). What an audit hook or a profile function raises, the call raises in its
place; and what is called next is called with the change already on disk, which is
where a process is killed, with a real SIGKILL. strace sees the very same system calls in
a prepare, and beside them only the writes of the log, which are its news and no claim.

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
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


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

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0] == "/usr/bin/virsh":
            return ""  # no VM runs
        with self._kernel():
            return super().run(*command, timeout_s=timeout_s)

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

    def peek(self, path: str, offset: int, size: int) -> bytes:
        def look() -> bytes:
            return super(FaultHost, self).peek(path, offset, size)

        # What does not answer on the bus any more reads as ones.
        seen = self._look("peek", path, look, b"", lambda all_: b"\xff" * len(all_))
        if not seen:
            raise HostError.of("read", f"/{path}", OSError(errno.ENOENT, ""))
        return seen


def _changing(name: str) -> Callable[..., Any]:
    """A method of FakeHost that changes the machine, with the fault in it."""
    method = getattr(FakeHost, name)

    def change(host: FaultHost, *arguments: Any, **named: Any) -> Any:
        with host._kernel():
            return method(host, *arguments, **named)

    return change


def _looking(
    name: str, kind: str, path: str, nothing: object, half: Callable[[Any], Any] | None
) -> Callable[..., Any]:
    """A method of FakeHost that looks at a path, made of its argument, with the fault in it."""
    method = getattr(FakeHost, name)

    def look(host: FaultHost, what: object) -> Any:
        return host._look(kind, path.format(what), lambda: method(host, what), nothing, half)

    return look


def _half(whole: Any) -> Any:
    return whole and whole[: len(whole) // 2]


for _name in ("write", "poke", "map_console", "set_text_mode", "lock_consoles", "signal_process",
              "exit_status"):  # fmt: skip
    setattr(FaultHost, _name, _changing(_name))
for _name, *_look in (
    ("read_bytes", "read", "{}", None, _half),
    ("list", "list", "{}", (), _half),
    ("readlink", "readlink", "{}", None, None),
    ("exists", "exists", "{}", False, None),
    ("real", "real", "{}", None, None),
    ("stat", "stat", "{}", None, None),
    ("framebuffer_memory", "ioctl", "dev/{}", None, None),
    ("console_map", "ioctl", "dev/{}", None, None),
    ("open_files", "list", "proc/{}/fd", {}, None),
    ("mappings", "read", "proc/{}/maps", b"", None),
):
    setattr(FaultHost, _name, _looking(_name, *_look))


def _opened_for_change(host: FaultHost, path: str, arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[2] & _WRITING)


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
