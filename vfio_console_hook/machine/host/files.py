"""Files of the machine: read, listed, looked at, and attributes of the kernel written.

A write never creates a file: a misspelt attribute fails in a test as it does in the kernel.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from ...errors import HostError

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")


# open() takes twice as long, and a prepare reads a hundred files.
_READ_AT_ONCE = 1 << 16
# A page, which is the most that such a file has room for (SIMPLE_TRANSACTION_LIMIT).
_LONGEST_ANSWER = 4096


class Files:
    """The files below root. Paths have no leading slash ("sys/class/vtconsole")."""

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.realpath(root)

    def path(self, path: str) -> str:
        """The path for a system call. Raises HostError for one with a NUL, which none can have."""
        if "\0" in path:
            raise HostError(f"no file can have the name {path[:60]!r}")
        return os.path.join(self.root, path)

    def read_bytes(self, path: str) -> bytes | None:
        """The content of a file, or None when it is not there. Raises HostError."""

        def content(full: str) -> bytes:
            handle = os.open(full, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return b"".join(iter(lambda: os.read(handle, _READ_AT_ONCE), b""))
            finally:
                os.close(handle)

        return self._if_there("read", path, content)

    def read(self, path: str) -> str | None:
        """The text of a file without blanks around it, or None when it is not there.

        Bytes that are not UTF-8 become lone surrogates (surrogateescape). Raises
        HostError when it is there and cannot be read.
        """
        content = self.read_bytes(path)
        return None if content is None else content.decode("utf-8", "surrogateescape").strip()

    def list(self, path: str) -> tuple[str, ...]:
        """The names in a directory, sorted; none when it is not there. Raises HostError."""
        return tuple(sorted(self._if_there("list", path, os.listdir) or ()))

    def exists(self, path: str) -> bool:
        return os.path.exists(self.path(path))

    def stat(self, path: str) -> os.stat_result | None:
        """The status of a file, links followed, or None without it. Raises HostError."""
        return self._if_there("look at", path, os.stat)

    def lstat(self, path: str) -> os.stat_result | None:
        """The status of a file or of the link itself, or None without it. Raises HostError."""
        return self._if_there("look at", path, os.lstat)

    def read_file(self, path: str, most: int = -1) -> tuple[os.stat_result, bytes] | None:
        """The status of a file and its first bytes, all by default; None without the file.

        Both are of the same file, even if another one gets its name meanwhile. Only a
        regular file has bytes here: a link is not followed, and a fifo is not waited for.
        Raises HostError.
        """

        def status_and_content(full: str) -> tuple[os.stat_result, bytes]:
            status = os.lstat(full)
            if not stat.S_ISREG(status.st_mode):
                return status, b""
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with open(os.open(full, flags), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                return status, file.read(most) if stat.S_ISREG(status.st_mode) else b""

        return self._if_there("read", path, status_and_content)

    def selinux_label(self, path: str) -> str | None:
        """The SELinux label of a file, such as "system_u:object_r:virt_hook_t:s0", or None.

        Links are followed. Raises HostError when it may not be read.
        """

        def label(full: str) -> str:
            raw = os.getxattr(full, "security.selinux")
            return raw.rstrip(b"\0").decode("utf-8", "surrogateescape")

        # ENODATA: the file has none. ENOTSUP: its file system has no labels.
        return self._if_there("read the label of", path, label, errno.ENODATA, errno.ENOTSUP)

    def readlink(self, path: str) -> str | None:
        """Where a link points, as written in it; None when there is no such link.

        Raises HostError when the link may not be read.
        """
        return self._if_there("read the link", path, os.readlink, errno.EINVAL)

    def link_name(self, path: str) -> str | None:
        """The last part of the path that a link points to (a driver's name), or None."""
        target = self.readlink(path)
        return None if target is None else os.path.basename(target)

    def real(self, path: str) -> str | None:
        """The path with all links resolved, or None when it is not there. Raises HostError."""
        # It fails for a link that is removed meanwhile (posixpath.py).
        full = self._if_there("read the link", path, os.path.realpath)
        if full is None or not os.path.exists(full):
            return None
        return os.path.relpath(full, self.root)

    def _if_there(self, what: str, path: str, call: Callable[[str], T], *none_for: int) -> T | None:
        """What call returns for the full path, or None when nothing is there.

        none_for are further errnos that mean None. Raises HostError: "cannot WHAT PATH".
        """
        try:
            return call(self.path(path))
        except OSError as error:
            if is_absent(error) or error.errno in none_for:
                return None
            raise HostError.of(what, f"/{path}", error) from error

    # -- parts of files, and attributes of the kernel

    def write(self, path: str, text: str) -> None:
        """Write text to an attribute that exists, in one system call. Raises HostError."""
        self.poke(path, 0, text.encode("utf-8", "surrogateescape"))

    def write_watched(
        self, path: str, text: str, act: Callable[[], None], after_s: float
    ) -> None:
        """Write as write() does, and act once if the kernel has not come back after that time.

        The write itself stays in this thread, so that /proc shows where the kernel holds it.
        Raises HostError.
        """
        import threading  # only for a write that may wait for a program

        timer = threading.Timer(after_s, act)
        timer.daemon = True  # a stuck kernel must not keep this process, too
        timer.start()
        try:
            self.write(path, text)
        finally:
            timer.cancel()
        timer.join()

    def peek(self, path: str, offset: int, size: int) -> bytes:
        """size bytes at offset of a file such as PCI `config`. Raises HostError."""
        try:
            handle = os.open(self.path(path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(handle, size, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise HostError.of("read", f"/{path}", error) from error

    def ask(self, path: str, question: str) -> str:
        """What a file answers to a question that is written to it, such as selinuxfs's access.

        Nothing is changed by that. Raises HostError.
        """
        try:
            handle = os.open(self.path(path), os.O_RDWR | os.O_CLOEXEC)
            try:
                os.write(handle, question.encode("utf-8", "surrogateescape"))
                answer = os.read(handle, _LONGEST_ANSWER)
            finally:
                os.close(handle)
        except OSError as error:
            raise HostError.of("ask", f"/{path}", error) from error
        return answer.decode("utf-8", "surrogateescape")

    def poke(self, path: str, offset: int, content: bytes) -> None:
        """Write content at offset of a file that exists, in one system call. Raises HostError."""
        try:
            handle = os.open(self.path(path), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(handle, content, offset)
            finally:
                os.close(handle)
        except OSError as error:
            shown = content.decode(errors="replace") if content.isascii() else content.hex()
            raise HostError.of(f"write '{shown.strip()}' to", f"/{path}", error) from error


def is_absent(error: OSError) -> bool:
    """Whether an error means that there is no such file, device or process, or no longer."""
    # ENODEV and ENXIO: the device went away between open and read.
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ESRCH)
