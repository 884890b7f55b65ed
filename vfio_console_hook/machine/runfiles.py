"""The hook's own files in /run and /var/lib: made, read and replaced without trusting them.

Only root can write in either. A file there that another user could have made is an error and
stays untouched: links are not followed, fifos are not waited for, and a file with a second
name (hard link) is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ..errors import ClaimError, HostError
from .access import WRITABLE, why_untrusted
from .host import Host

RUN = "run/vfio-console-hook"
_ABOVE = ("run", "var/lib")
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}  # fmt: skip


def make_directory(host: Host, path: str, mode: int = 0o700) -> None:
    """Make a directory of ours, or check that the present one is ours. Raises ClaimError."""
    full = host.path(path)
    try:
        os.mkdir(full, mode)
    except FileExistsError:
        status = os.lstat(full)
        _check(path, status, "directory")
        if stat.S_IMODE(status.st_mode) == mode:
            return
    except OSError as error:
        raise failed("make", path, error) from error
    try:
        os.chmod(full, mode)  # whatever the umask was
    except OSError as error:
        raise failed("make", path, error) from error


def read(host: Host, path: str) -> bytes | None:
    """The content of a file of ours, or None when it is not there. Raises ClaimError."""
    _check_way(host, path)
    return _content(host, path)


def link_name(host: Host, path: str) -> str | None:
    """The last name in a link of ours, or None when it is not there. Raises ClaimError."""
    _check_way(host, path)
    return host.link_name(path)


def _check_way(host: Host, path: str) -> None:
    try:
        _check_directories(host, path)
    except HostError as error:
        raise ClaimError(error.text) from error


def names(host: Host, path: str) -> tuple[str, ...]:
    """The names in a directory of ours, without drafts. Raises HostError, ClaimError."""
    _check_directories(host, f"{path}/")
    return tuple(name for name in host.list(path) if not name.startswith("."))


def contents(host: Host, path: str) -> Iterator[tuple[str, bytes]]:
    """The readable files in a directory of ours, as (name, content).

    Raises HostError, ClaimError when the directory itself cannot be read.
    """
    for name in names(host, path):
        try:
            content = _content(host, f"{path}/{name}")
        except ClaimError:
            continue
        if content is not None:
            yield name, content


def _content(host: Host, path: str) -> bytes | None:
    """The content of a file in a directory that has been checked, or None without it."""
    try:
        found = host.read_file(path)
    except HostError as error:
        raise ClaimError(error.text) from error
    if found is None:
        return None
    status, content = found
    _check(path, status, "file")
    return content


def open_file(host: Host, path: str, flags: int) -> int:
    """A descriptor of a file of ours; with O_CREAT it is made. Raises ClaimError."""
    full = host.path(path)
    try:
        # Opening a device may already have an effect, so its kind is checked first.
        if os.path.lexists(full):
            _check(path, os.lstat(full), "file")
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        handle = os.open(full, flags, 0o600)
    except OSError as error:
        raise failed("open", path, error) from error
    try:
        status = os.fstat(handle)
        _check(path, status, "file")
        if stat.S_IMODE(status.st_mode) != 0o600:
            os.fchmod(handle, 0o600)  # whatever the umask was
    except BaseException:
        os.close(handle)
        raise
    return handle


def write(host: Host, path: str, text: str, mode: int = 0o600) -> None:
    """Make or replace a file atomically, synced, in a directory that exists.

    Raises ClaimError.
    """
    full = host.path(path)
    draft = os.path.join(os.path.dirname(full), f".{os.path.basename(full)}.{os.getpid()}")
    try:
        handle = _open_draft(draft, mode)
        try:
            os.fchmod(handle, mode)
            write_all(handle, text)
        finally:
            os.close(handle)
        os.rename(draft, full)
    except OSError as error:
        try:
            os.unlink(draft)
        except OSError:
            pass  # it is not there, or is swept later (claim.py, tidy; history.py, _drop_drafts)
        raise failed("write", path, error) from error


def _open_draft(draft: str, mode: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(draft, flags, mode)
    except FileExistsError:
        # Left by a killed process that had our pid. Whatever it is, it is not opened.
        os.unlink(draft)
        return os.open(draft, flags, mode)


def remove(host: Host, path: str) -> None:
    """Remove a file; it may be gone already. Raises ClaimError."""
    try:
        os.unlink(host.path(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed("remove", path, error) from error


def link(host: Host, path: str, target: str) -> None:
    """Make a link below /run, also its directory, unless there is something. Raises ClaimError."""
    full = host.path(path)
    try:
        os.makedirs(os.path.dirname(full), exist_ok=True)
        os.symlink(target, full)
    except FileExistsError:
        return
    except OSError as error:
        raise failed("make", path, error) from error


def touch(host: Host, path: str) -> None:
    """Set the times of a file below /run to now; nothing without it. Raises ClaimError."""
    try:
        os.utime(host.path(path), follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed("touch", path, error) from error


def write_all(handle: int, text: str) -> None:
    """Write all of a text and sync it. Raises OSError."""
    content = text.encode("utf-8", "surrogateescape")
    written = os.write(handle, content)
    if written != len(content):  # a full disk: the rest would fail
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(handle)


def failed(verb: str, path: str, error: OSError) -> ClaimError:
    """The ClaimError for a failed system call."""
    return ClaimError(
        f"cannot {verb} /{path}: {os.strerror(error.errno or 0)}",
        hint=f"is /{next(one for one in _ABOVE if path.startswith(one))} full, or read-only?",
    )


def _check_directories(host: Host, path: str) -> None:
    """Raise ClaimError when a directory on the path, below /run or /var/lib, is not ours."""
    place = next(one for one in _ABOVE if path.startswith(f"{one}/"))
    for part in path[len(place) + 1 :].split("/")[:-1]:
        place = f"{place}/{part}"
        status = host.lstat(place)
        if status is None:
            return
        _check(place, status, "directory")


def _check(path: str, status: os.stat_result, wanted: str) -> None:
    """Raise ClaimError for what is not of that kind, or that another user could have made."""
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
    why = why_untrusted(status, os.geteuid())
    if kind != wanted:
        why = f"is a {kind} instead of a {wanted}"
    if not why and wanted == "file" and status.st_nlink > 1:
        why = "has another name somewhere else"
    if why:
        mend = f"run `chmod go-w /{path}`" if why == WRITABLE else f"see `ls -ld /{path}`"
        raise ClaimError(
            f"/{path} {why}, so it is left alone", hint=f"find out who did that; {mend}"
        )
