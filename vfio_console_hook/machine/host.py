"""The machine: the one door through which everything is read, written or asked.

A Host is rooted at a directory. "/" is the running machine; any other root is a
recorded one (snapshot.py), so the same code reads a user's bug report. Paths are
given without the leading slash ("sys/class/vtconsole").

Nothing here decides anything, and a write never creates a file: a misspelt
attribute fails in a test as it does in the kernel.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence

from ..errors import HostError, StuckError

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from typing import Any

    from .libvirtd import Vm

# Of programs: nobody else's variables choose what they do (MODPROBE_OPTIONS, SYSTEMD_*)
# or in which language they say it. It is what libvirt leaves of its own to a hook.
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
# How long a killed child may take to be gone. One that is stuck in the kernel never is.
_KILL_GRACE_S = 2.0
# virsh of libvirt 7.0 shows 800 bytes of a message.
_LONGEST_COMPLAINT = 1000

# The end of the year 9999, which strftime() can still tell anywhere.
_LAST_S = 253402214400

CONSOLES = range(1, 64)
"""The virtual consoles: MAX_NR_CONSOLES is 63 (Linux include/uapi/linux/vt.h)."""

# ioctl numbers: Linux include/uapi/linux/fb.h, kd.h and vt.h.
FBIOGET_FSCREENINFO = 0x4602
FBIOGET_CON2FBMAP = 0x460F
_FBIOPUT_CON2FBMAP = 0x4610
KDSETMODE = 0x4B3A
KDGETMODE = 0x4B3B
VT_LOCKSWITCH = 0x560B
VT_UNLOCKSWITCH = 0x560C
_KD_TEXT = 0
_KD_GRAPHICS = 1

# con2fb_map[] holds -1 for a console without framebuffer; FBIOGET_CON2FBMAP
# gives it back in an unsigned field (Linux drivers/video/fbdev/core/fbcon.c).
_NO_FRAMEBUFFER = 0xFFFFFFFF


def seconds(value: Any) -> float:
    """A time in seconds since the epoch that can be told as a date.

    Raises ValueError, TypeError, OverflowError.
    """
    told = float(value)
    if not 0 <= told < _LAST_S:
        raise ValueError("no time")
    return told


class Host:
    """The running machine, below root.

    owner_uid is the user that configuration files must belong to.
    """

    owner_uid = 0

    @property
    def whole(self) -> bool:
        """Whether what is not here is not there either; not so for all recorded machines."""
        return True

    @property
    def privileged(self) -> bool:
        """Whether we are root there; qemu:///session runs the hook as whoever it belongs to."""
        return os.geteuid() == 0

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.realpath(root)

    def path(self, path: str) -> str:
        """The path as the operating system knows it. Raises HostError for what can be none."""
        if "\0" in path:
            raise HostError(f"no file can have the name {path[:60]!r}")
        return os.path.join(self.root, path)

    # -- looking

    def read_bytes(self, path: str) -> bytes | None:
        """The content of a file, or None when it is not there. Raises HostError."""
        try:
            with open(self.path(path), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            if _absent(error):
                return None
            raise HostError.of("read", f"/{path}", error) from error

    def read(self, path: str) -> str | None:
        """The text of a file without blanks around it, or None when it is not there.

        Raises HostError when it is there and cannot be read.
        """
        content = self.read_bytes(path)
        return None if content is None else content.decode("utf-8", "surrogateescape").strip()

    def list(self, path: str) -> tuple[str, ...]:
        """The names in a directory, sorted; none when it is not there. Raises HostError."""
        try:
            return tuple(sorted(os.listdir(self.path(path))))
        except OSError as error:
            if _absent(error):
                return ()
            raise HostError.of("list", f"/{path}", error) from error

    def exists(self, path: str) -> bool:
        return os.path.exists(self.path(path))

    def stat(self, path: str) -> os.stat_result | None:
        """What the file is, links followed, or None when it is not there. Raises HostError."""
        try:
            return os.stat(self.path(path))
        except OSError as error:
            if _absent(error):
                return None
            raise HostError.of("look at", f"/{path}", error) from error

    def lstat(self, path: str) -> os.stat_result | None:
        """What the file is, or the link itself, or None when it is not there. Raises HostError."""
        try:
            return os.lstat(self.path(path))
        except OSError as error:
            if _absent(error):
                return None
            raise HostError.of("look at", f"/{path}", error) from error

    def read_file(self, path: str, most: int = -1) -> tuple[os.stat_result, bytes] | None:
        """What a file is and its first bytes, all by default; None when it is not there.

        Both are of one and the same file, whatever takes its name meanwhile. What is no
        regular file has no bytes: a link is not followed, and a fifo not waited for.
        Raises HostError.
        """
        try:
            status = os.lstat(self.path(path))
            if not stat.S_ISREG(status.st_mode):
                return status, b""
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with open(os.open(self.path(path), flags), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                content = file.read(most) if stat.S_ISREG(status.st_mode) else b""
        except OSError as error:
            if _absent(error):
                return None
            raise HostError.of("read", f"/{path}", error) from error
        return status, content

    def label(self, path: str) -> str | None:
        """The SELinux label of a file, such as "system_u:object_r:virt_hook_t:s0", or None.

        Links are followed. Raises HostError when it may not be read.
        """
        try:
            raw = os.getxattr(self.path(path), "security.selinux")
        except OSError as error:
            if _absent(error) or error.errno in (errno.ENODATA, errno.ENOTSUP):
                return None
            raise HostError.of("read the label of", f"/{path}", error) from error
        return raw.rstrip(b"\0").decode("utf-8", "surrogateescape")

    def readlink(self, path: str) -> str | None:
        """Where a link points, as written in it; None when there is no such link.

        Raises HostError when the link may not be read.
        """
        try:
            return os.readlink(self.path(path))
        except OSError as error:
            if _absent(error) or error.errno == errno.EINVAL:
                return None
            raise HostError.of("read the link", f"/{path}", error) from error

    def link_name(self, path: str) -> str | None:
        """The last part of where a link points (a driver's name), or None."""
        target = self.readlink(path)
        return None if target is None else os.path.basename(target)

    def real(self, path: str) -> str | None:
        """The path with all links resolved, or None when it is not there. Raises HostError."""
        try:
            full = os.path.realpath(self.path(path))
        except OSError as error:  # a link that has gone since it was seen (posixpath.py)
            if _absent(error):
                return None
            raise HostError.of("read the link", f"/{path}", error) from error
        if not os.path.exists(full):
            return None
        return os.path.relpath(full, self.root)

    # -- writing

    def write(self, path: str, text: str) -> None:
        """Write text to an attribute that exists, in one system call. Raises HostError."""
        self.poke(path, 0, text.encode())

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

    # -- asking devices

    def framebuffer_memory(self, fb: str) -> tuple[int, int] | None:
        """(start, size in bytes) of a framebuffer's memory as its driver tells it.

        start is 0 for DRM drivers (FBINFO_HIDE_SMEM_START). None without /dev/fbN.
        """
        raw = bytearray(80)
        if not self._ioctl(f"dev/{fb}", FBIOGET_FSCREENINFO, raw):
            return None
        # struct fb_fix_screeninfo: char id[16]; unsigned long smem_start; u32 smem_len
        return int.from_bytes(raw[16:24], "little"), int.from_bytes(raw[24:28], "little")

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        """Which framebuffer each of the 63 consoles is mapped to, None for no one.

        fb is any framebuffer to ask through. None when it cannot be asked.
        """
        indices = []
        for console in CONSOLES:
            raw = bytearray(console.to_bytes(4, "little") + bytes(4))
            if not self._ioctl(f"dev/{fb}", FBIOGET_CON2FBMAP, raw):
                return None
            indices.append(int.from_bytes(raw[4:], "little"))
        return tuple(None if index == _NO_FRAMEBUFFER else index for index in indices)

    def map_console(self, fb: str, console: int, index: int) -> None:
        """Map a console (1 to 63) to framebuffer index, asking through fb. Raises HostError."""
        raw = bytearray(console.to_bytes(4, "little") + index.to_bytes(4, "little"))
        if not self._ioctl(f"dev/{fb}", _FBIOPUT_CON2FBMAP, raw):
            raise HostError(f"cannot map console {console}: no /dev/{fb}", path=f"/dev/{fb}")

    def text_mode(self, tty: str) -> bool:
        """Whether the kernel draws text on this virtual terminal (KD_TEXT)."""
        raw = bytearray(8)
        self._ioctl(f"dev/{tty}", KDGETMODE, raw)
        return raw[0] == _KD_TEXT

    def set_text_mode(self, tty: str, text: bool) -> None:
        """Let the kernel draw text on this virtual terminal, or stop it. Raises HostError."""
        self._ioctl(f"dev/{tty}", KDSETMODE, _KD_TEXT if text else _KD_GRAPHICS)

    def lock_consoles(self, locked: bool) -> None:
        """Forbid or allow switching between virtual terminals. Raises HostError."""
        self._ioctl("dev/tty0", VT_LOCKSWITCH if locked else VT_UNLOCKSWITCH, 0)

    def _ioctl(self, path: str, request: int, argument: bytearray | int) -> bool:
        """Run one ioctl; False when the device is not there. Raises HostError."""
        import fcntl  # only few machines need it

        try:
            # No ioctl here needs more than a look (fb_ioctl and vt_ioctl check
            # capabilities, not the mode). Without O_NOCTTY a console would become our
            # controlling terminal.
            handle = os.open(self.path(path), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(handle, request, argument)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                return False
            raise HostError.of(f"ask (ioctl {request:#x})", f"/{path}", error) from error
        return True

    # -- processes

    def open_files(self, pid: int) -> dict[str, str]:
        """What the files are called that a process has open, each with one descriptor of it.

        The links in /proc/PID/fd are only read, never followed: a file on a dead
        network mount would hang us. Empty when there is no such process; raises
        HostError when it may not be looked into.
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
            if _absent(error):
                return {}
            raise HostError.of("list", f"/proc/{pid}/fd", error) from error

    def mappings(self, pid: int) -> bytes:
        """The text of /proc/PID/maps: what a process has mapped, one area a line.

        Empty when there is no such process; raises HostError when it may not be
        looked into.
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
            if not _absent(error):
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

    def ourselves(self) -> frozenset[int]:
        """This process, and the one that it was forked from (worker.run)."""
        mine, parent = os.getpid(), os.getppid()
        # A fork shows the command line of its parent; a program that started us does not.
        command = self.read_bytes(f"proc/{mine}/cmdline")
        forked = command is not None and command == self.read_bytes(f"proc/{parent}/cmdline")
        return frozenset((mine, parent) if forked else (mine,))

    def open_process(self, pid: int) -> int | None:
        """A handle of a process, for the methods below; None when there is no such process.

        It stays the handle of this very process, whoever gets its number later.
        Raises HostError where the kernel has none (before 5.3).
        """
        try:
            return os.pidfd_open(pid)
        except AttributeError as error:  # a Python that was built on an older kernel
            raise HostError(f"cannot watch process {pid}: no pidfd_open") from error
        except OSError as error:
            if _absent(error):
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
            if not _absent(error):
                raise HostError.of(f"send signal {number} to", "a process", error) from error

    def await_end(self, handles: Sequence[int], timeout_s: float) -> None:
        """Wait until one of these processes ends, or until timeout_s are over."""
        import select

        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        poll.poll(max(timeout_s, 0) * 1000)

    # -- programs and time

    def run(self, *command: str, timeout_s: float = 30) -> str:
        """The output of a program, called by its full path, as text like that of read().

        Raises HostError when it fails or does not end in time, StuckError when it
        cannot even be killed.
        """
        import subprocess  # slow to load, and only rare paths need it

        shown = " ".join(command)
        pipe = subprocess.PIPE
        try:
            child = subprocess.Popen(  # noqa: S603  (no shell, and callers give full paths)
                command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=_ENVIRONMENT,
            )  # fmt: skip
        except OSError as error:
            raise HostError(f"cannot run {shown}: {os.strerror(error.errno or 0)}") from error
        try:
            output, complaint = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            try:
                child.wait(_KILL_GRACE_S)
            except subprocess.TimeoutExpired:
                raise StuckError(
                    f"the kernel is stuck in `{shown}` (process {child.pid})",
                    hint="save your work and reboot the host",
                ) from error
            raise HostError(f"{shown} did not end within {timeout_s:g} s") from error
        if child.returncode:
            raise HostError(
                f"{shown} failed: {_sentence(complaint) or f'exit status {child.returncode}'}"
            )
        return output.decode("utf-8", "surrogateescape").strip()

    def vms(self, uri: str, name: str = "") -> tuple[Vm, ...]:
        """The VMs that libvirt knows at uri, or that of a name or uuid, asked read-only.

        Raises HostError.
        """
        from . import libvirtd  # only for people: the hook is told what it needs

        return libvirtd.ask(uri, name)

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        """The exit status of a program, called by its full path; None while it still runs.

        It is left to run then, and what it prints goes nowhere: a script that starts
        a daemon may give it our pipes, and we would wait for the daemon's end. Raises
        HostError when it cannot be started.
        """
        import subprocess  # slow to load, and only rare paths need it

        null = subprocess.DEVNULL
        try:
            # In a session of its own it outlives whoever ends ours.
            child = subprocess.Popen(  # noqa: S603  (no shell, and callers give full paths)
                command, stdin=null, stdout=null, stderr=null, start_new_session=True,
                env=_ENVIRONMENT,
            )  # fmt: skip
        except OSError as error:
            shown = " ".join(command)
            raise HostError(f"cannot run {shown}: {os.strerror(error.errno or 0)}") from error
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a process; nothing when it is gone. Raises HostError."""
        import signal

        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        except OSError as error:
            raise HostError.of("kill", f"process {pid}", error) from error

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def clock(self) -> float:
        """Seconds from some moment on, for deadlines."""
        return time.monotonic()

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether condition came true within timeout_s; looked at every 50 ms."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True


def _sentence(complaint: bytes) -> str:
    """What a program printed on stderr, in any encoding, as one line of text."""
    text = " ".join(complaint.decode(errors="backslashreplace").split())
    return text if len(text) <= _LONGEST_COMPLAINT else f"{text[:_LONGEST_COMPLAINT]}..."


def _absent(error: OSError) -> bool:
    # ENODEV and ENXIO: the device went away between open and read.
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ESRCH)


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
