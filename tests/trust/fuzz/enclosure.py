"""A recorded machine that notes what is asked of it, and an eye on what is opened beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vfio_console_hook.errors import HostError
from vfio_console_hook.machine.libvirtd import Vm
from vfio_console_hook.machine.snapshot import SentHost, SnapshotHost

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
# Python itself opens these: its modules, which are loaded late, and its own standard files.
_PYTHONS = tuple(
    os.path.realpath(path)
    for path in {_ROOT, sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share", "/dev/null"}
)
_DOORS = ("sys/", "dev/", "proc/")
_OPENING = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.symlink", "os.remove", "os.rename")


class Outside(BaseException):
    """The program went where it has nothing to do. No Exception, so that no handler catches it."""


class Enclosed(SnapshotHost):
    """Nothing is done: each write is noted, and must be below /sys, /dev or /proc."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def _note(self, path: str) -> None:
        plain = os.path.normpath(path)
        if not f"{plain}/".startswith(_DOORS):
            raise Outside(f"a write to /{plain}")
        self.written.append(plain)

    def write(self, path: str, text: str) -> None:
        self._note(path)

    def poke(self, path: str, offset: int, content: bytes) -> None:
        self._note(path)

    def map_console(self, fb: str, console: int, index: int) -> None:
        self._note(f"dev/{fb}")

    def set_text_mode(self, tty: str, text: bool) -> None:
        self._note(f"dev/{tty}")

    def lock_consoles(self, locked: bool) -> None:
        self._note("dev/tty0")

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if any("\0" in word for word in command):
            raise ValueError("embedded null byte")  # as subprocess says
        return super().run(*command, timeout_s=timeout_s)

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        if any("\0" in word for word in command):
            raise ValueError("embedded null byte")
        return 1

    def kill(self, pid: int) -> None:
        raise Outside(f"process {pid} was to be killed")

    def vms(self, uri: str, name: str = "") -> tuple[Vm, ...]:
        if uri.startswith("test:"):
            raise HostError("no libvirt is asked here")
        return super().vms(uri, name)

    def clock(self) -> float:
        self._seconds = getattr(self, "_seconds", 0.0) + 1
        return self._seconds

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        if not 0 <= timeout_s <= 3600:
            raise Outside(f"a wait of {timeout_s} s")
        return condition()

    def wait_for_end(self, handles: Sequence[int], timeout_s: float) -> None:
        if not 0 <= timeout_s <= 3600:
            raise Outside(f"a wait of {timeout_s} s")


class EnclosedSent(Enclosed, SentHost):
    """The same for a machine from a bug report."""


_inside: list[str] = []


@contextmanager
def kept_inside(directory: str) -> Iterator[None]:
    """Raises Outside when a file is opened that is neither below directory nor Python's own."""
    if _watch not in _watching:
        # Such a hook stays for good (PEP 578), so it is added once.
        sys.addaudithook(_watch)
        _watching.append(_watch)
    _inside.append(os.path.realpath(directory))
    try:
        yield
    finally:
        _inside.pop()


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if not _inside or event not in _OPENING:
        return
    argument = arguments[1] if event == "os.symlink" else arguments[0]
    if not isinstance(argument, (str, bytes)):
        return  # a descriptor that was opened before
    path = os.fsdecode(argument)
    if not os.path.isabs(path):
        return  # below a directory that was opened before
    if event == "os.symlink":
        path = os.path.dirname(path)  # the link itself may lead anywhere
    real = os.path.realpath(path)
    allowed = (_inside[-1], *_PYTHONS)
    if not any(real == one or real.startswith(f"{one}/") for one in allowed):
        raise Outside(f"{event} of {real}")


_watching: list[Callable[[str, tuple[object, ...]], None]] = []
