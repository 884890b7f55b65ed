"""Processes of the machine: what they have open, and how they are ended."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from ...errors import HostError
from .files import Files, is_absent


class Processes(Files):
    """The processes of the machine, by their numbers."""

    def open_files(self, pid: int) -> dict[str, str]:
        """The names of the files that a process has open, each with one of its descriptors.

        The links in /proc/PID/fd are only read, never followed: a file on a dead
        network mount would hang us. Empty when there is no such process. Raises
        HostError when the process cannot be inspected.
        """
        try:
            # Names below an open directory take the kernel less time than whole paths;
            # there may be a hundred thousand of them.
            readlink = os.readlink
            folder = os.open(self.path(f"proc/{pid}/fd"), os.O_RDONLY | os.O_CLOEXEC)
            try:
                names = os.listdir(folder)
                try:
                    return {readlink(name, dir_fd=folder): name for name in names}
                except OSError as error:
                    if not _passing(error):
                        raise
                    return dict(_links(names, folder))
            finally:
                os.close(folder)
        except OSError as error:
            if is_absent(error):
                return {}
            raise HostError.of("list", f"/proc/{pid}/fd", error) from error

    def mappings(self, pid: int) -> bytes:
        """The text of /proc/PID/maps: what a process has mapped, one area a line.

        Empty when there is no such process. Raises HostError when the process cannot
        be inspected.
        """
        parts = []
        try:
            handle = os.open(self.path(f"proc/{pid}/maps"), os.O_RDONLY | os.O_CLOEXEC)
            try:
                while part := os.read(handle, 65536):
                    parts.append(part)
            finally:
                os.close(handle)
        except OSError as error:
            if not is_absent(error):
                raise HostError.of("read", f"/proc/{pid}/maps", error) from error
        return b"".join(parts)

    def device_number(self, path: str) -> int | None:
        """The number of the character device that path, or the link there, leads to, or None.

        A link in /proc/PID/fd may only be given when it shows a name below /dev.
        """
        try:
            status = os.stat(self.path(path))
        except OSError:
            return None
        return status.st_rdev if stat.S_ISCHR(status.st_mode) else None

    def own_pids(self) -> frozenset[int]:
        """This process, and the one that it was forked from (worker.run)."""
        mine, parent = os.getpid(), os.getppid()
        # A fork shows the command line of its parent; a program that started us does not.
        command = self.read_bytes(f"proc/{mine}/cmdline")
        forked = command is not None and command == self.read_bytes(f"proc/{parent}/cmdline")
        return frozenset((mine, parent) if forked else (mine,))

    def detach(self, work: Callable[[], None]) -> None:
        """Run work in a process that no terminal, connection or session of ours ends.

        It has no parent to wait for it, has no terminal, and its standard streams are /dev/null.
        """
        import signal  # only a rehearsal needs this

        from .. import streams

        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        try:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            # The leader of a session gets a terminal as its own when it opens one.
            if os.fork() == 0:
                os.chdir("/")
                streams.lead_nowhere(0, 1, 2)
                work()
        finally:
            # Whatever happens, the caller's code must not go on in here.
            os._exit(0)

    def open_process(self, pid: int) -> int | None:
        """A handle of a process, for the methods below; None when there is no such process.

        It stays the handle of this process even if another one gets its number later.
        Raises HostError where the kernel has none (before 5.3).
        """
        try:
            return os.pidfd_open(pid)
        except AttributeError as error:  # Python was built for an older kernel
            raise HostError(f"cannot watch process {pid}: no pidfd_open") from error
        except OSError as error:
            if is_absent(error):
                return None
            raise HostError.of("watch", f"process {pid}", error) from error

    def close_process(self, handle: int) -> None:
        os.close(handle)

    def signal_process(self, handle: int, number: int) -> None:
        """Send a signal to a process; nothing when it has ended. Raises HostError."""
        import signal  # only where processes have to be ended

        try:
            signal.pidfd_send_signal(handle, number)
        except OSError as error:
            if not is_absent(error):
                raise HostError.of(f"send signal {number} to", "a process", error) from error

    def wait_for_end(self, handles: Sequence[int], timeout_s: float) -> None:
        """Wait until one of these processes ends, or until timeout_s are over."""
        import select

        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        poll.poll(max(timeout_s, 0) * 1000)

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a process; nothing when it is gone. Raises HostError."""
        import signal

        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        except OSError as error:
            raise HostError.of("kill", f"process {pid}", error) from error


def _passing(error: OSError) -> bool:
    # A descriptor was closed while we looked; or the name does not fit into a page,
    # as that of no node in /dev does (Linux fs/proc/base.c, do_proc_readlink).
    return error.errno in (errno.ENOENT, errno.ENAMETOOLONG)


def _links(names: Sequence[str], folder: int) -> Iterator[tuple[str, str]]:
    """Each link in a directory that can be read, as (text, name)."""
    for name in names:
        try:
            yield os.readlink(name, dir_fd=folder), name
        except OSError as error:
            if not _passing(error):
                raise
