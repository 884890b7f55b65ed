"""Runs a program and kills it right after the Nth system call that changes anything.

A seccomp filter stops the program, and what it starts, at those calls only, so the
rest runs at full speed. Calls are counted over all its processes together. The Nth call
completes, and its process, or all of them, get SIGKILL before the next instruction
(ptrace(2), PTRACE_EVENT_SECCOMP; seccomp(2), SECCOMP_RET_TRACE).

Calls that leave no trace on the machine do not count: reading, waiting, writing to
/dev/null, logging over the journal's socket. x86-64, Linux 5.3 or later, standard library
of Python 3.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from dataclasses import dataclass, field

# Linux include/uapi/linux/ptrace.h
_TRACEME, _CONT, _SYSCALL = 0, 7, 24
_SETOPTIONS, _GETEVENTMSG, _GET_SYSCALL_INFO = 0x4200, 0x4201, 0x420E
_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE, _EVENT_SECCOMP = 1, 2, 3, 7
_SYSGOOD, _EXITKILL = 0x1, 0x100000
_OPTIONS = _SYSGOOD | _EXITKILL | sum(1 << one for one in (1, 2, 3, 4, 7))
_WALL = 0x40000000
_AT_EXIT = signal.SIGTRAP | 0x80

# Linux include/uapi/linux/seccomp.h and bpf_common.h
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARGUMENTS_AT = 0, 16

# Linux arch/x86/entry/syscalls/syscall_64.tbl
_OPENAT, _IOCTL = 257, 16
_CHANGING = {
    1: "write", 18: "pwrite64", 20: "writev", 62: "kill", 76: "truncate", 77: "ftruncate",
    82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink",
    88: "symlink", 90: "chmod", 91: "fchmod", 92: "chown", 93: "fchown", 133: "mknod",
    175: "init_module", 176: "delete_module", 188: "setxattr", 234: "tgkill", 258: "mkdirat",
    259: "mknodat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat",
    268: "fchmodat", 280: "utimensat", 285: "fallocate", 313: "finit_module",
    316: "renameat2", 424: "pidfd_send_signal", _OPENAT: "openat", _IOCTL: "ioctl",
}  # fmt: skip
_OF_DESCRIPTOR = ("write", "pwrite64", "writev", "ftruncate", "fchmod", "fchown", "ioctl")
_SECOND_PATH = ("openat", "mkdirat", "mknodat", "unlinkat", "renameat", "renameat2", "fchmodat")
_MAKING = os.O_CREAT | os.O_TRUNC
# ioctls that only read: TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD; FBIOGET_VSCREENINFO,
# FBIOGET_FSCREENINFO, FBIOGET_CON2FBMAP; KDGETMODE. And those that concern only the descriptor:
# FIONBIO, FIONCLEX, FIOCLEX.
_ASKING = (
    0x5401, 0x802C542A, 0x5413, 0x541B, 0x4600, 0x4602, 0x460F, 0x4B3B, 0x5421, 0x5450, 0x5451
)  # fmt: skip

_Instruction = tuple[int, int, int, int]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


@dataclass
class Run:
    """How a program ended: its status as in waitpid(2), its changing calls, its stderr."""

    calls: list[str] = field(default_factory=list)
    status: int = 0
    killed: bool = False
    stderr: str = ""


def run(argv: list[str], text: bytes, *, after: int, all_processes: bool) -> Run:
    """Run a program with a text on stdin, and kill it after so many of those calls.

    all_processes: kill the program and all that it has started, otherwise only the process
    that made the call. Returns when all of them have ended.
    """
    errors = os.memfd_create("errors")
    pid = os.fork()
    if pid == 0:
        _begin(argv, text, errors)
    tracer = _Tracer(pid, after, all_processes)
    tracer.follow()
    os.lseek(errors, 0, os.SEEK_SET)
    tracer.run.stderr = os.read(errors, 65536).decode(errors="replace")
    os.close(errors)
    return tracer.run


def _begin(argv: list[str], text: bytes, errors: int) -> None:
    try:
        source = os.memfd_create("stdin")
        os.write(source, text)
        os.lseek(source, 0, os.SEEK_SET)
        null = os.open(os.devnull, os.O_RDWR)
        for number, handle in enumerate((source, null, errors)):
            os.dup2(handle, number)
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _filter()
        os.execve(argv[0], argv, {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    finally:
        os._exit(70)


def _filter() -> None:
    """Install the filter for this process and all that it starts."""
    asking = [(_IF_EQUAL, len(_ASKING) - at, 0, one) for at, one in enumerate(_ASKING)]
    program = [(_LOAD, 0, 0, _NUMBER_AT)]
    program += _by_argument(_OPENAT, 2, [(_IF_ANY_BIT, 0, 1, _MAKING)])
    program += _by_argument(_IOCTL, 1, asking)
    for number in _CHANGING:
        program += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_TRACE)]
    program.append((_RETURN, 0, 0, _RET_ALLOW))
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    kept = ctypes.create_string_buffer(code, len(code))
    whole = struct.pack("@HP", len(program), ctypes.addressof(kept))
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(whole), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot install the seccomp filter")


def _by_argument(number: int, argument: int, tests: list[_Instruction]) -> list[_Instruction]:
    """The instructions for one call: the tests of its argument lead to TRACE or to ALLOW."""
    body = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument), *tests]
    body += [(_RETURN, 0, 0, _RET_TRACE), (_RETURN, 0, 0, _RET_ALLOW)]
    return [(_IF_EQUAL, 0, len(body), number), *body]


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")
    return result


class _Tracer:
    """Follows a program and all that it starts to their ends."""

    def __init__(self, pid: int, after: int, all_processes: bool) -> None:
        self.run = Run()
        self._first = pid
        self._after = after
        self._all_processes = all_processes
        self._alive = {pid}
        self._begun = {pid}
        os.waitpid(pid, _WALL)
        _ptrace(_SETOPTIONS, pid, data=_OPTIONS)
        _ptrace(_CONT, pid)

    def follow(self) -> None:
        """Handle stops until all of them have ended."""
        while self._alive:
            pid, status = os.waitpid(-1, _WALL)
            if os.WIFSTOPPED(status):
                # A process that was killed meanwhile cannot be continued.
                with contextlib.suppress(ProcessLookupError):
                    self._stopped(pid, os.WSTOPSIG(status), status >> 16)
                continue
            self._alive.discard(pid)
            if pid == self._first:
                self.run.status = status

    def _stopped(self, pid: int, number: int, event: int) -> None:
        if event == _EVENT_SECCOMP:
            self._called(pid)
        elif event in (_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE):
            message = ctypes.c_ulong()
            _ptrace(_GETEVENTMSG, pid, data=ctypes.addressof(message))
            self._alive.add(message.value)
            _ptrace(_CONT, pid)
        elif number == _AT_EXIT:
            self._kill(pid)
        elif event:
            _ptrace(_CONT, pid)
        else:
            # A new process begins with a SIGSTOP of ptrace, which it must not get.
            began = number == signal.SIGSTOP and pid not in self._begun
            self._begun.add(pid)
            _ptrace(_CONT, pid, data=0 if began else number)

    def _called(self, pid: int) -> None:
        call = _call(pid)
        last = False
        if os.devnull not in call.split(" "):
            self.run.calls.append(f"{_command(pid)}: {call}")
            last = len(self.run.calls) == self._after
        # PTRACE_SYSCALL stops the process once more when the call returns.
        _ptrace(_SYSCALL if last else _CONT, pid)

    def _kill(self, pid: int) -> None:
        self.run.killed = True
        # The stopped process comes last, so that it cannot see the others end.
        others = self._alive - {pid} if self._all_processes else set()
        for victim in (*others, pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def _call(pid: int) -> str:
    """The call at which a process is stopped, as text."""
    info = ctypes.create_string_buffer(128)
    _ptrace(_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
    number, *arguments = struct.unpack_from("=7Q", info.raw, 24)
    name = _CHANGING.get(number, str(number))
    if name in _OF_DESCRIPTOR:
        what = os.readlink(f"/proc/{pid}/fd/{arguments[0]}")
        text = _string(pid, arguments[1], arguments[2]) if name in ("write", "pwrite64") else ""
        return f"{name} {what} {text!r}" if text else f"{name} {what} {arguments[1]:#x}"
    if name in ("kill", "tgkill", "pidfd_send_signal"):
        return f"{name} {arguments[0]} {arguments[1]}"
    return f"{name} {_string(pid, arguments[1 if name in _SECOND_PATH else 0], 200)}"


def _string(pid: int, address: int, size: int) -> str:
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
            file.seek(address)
            return file.read(min(size, 200)).split(b"\0")[0].decode(errors="replace")
    except (OSError, ValueError, OverflowError):
        return "?"
