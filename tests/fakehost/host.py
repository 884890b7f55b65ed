"""FakeHost: a recorded machine that does to its own files what the kernel would do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import time
from contextlib import contextmanager

from vfio_console_hook.errors import HostError, StuckError
from vfio_console_hook.machine.snapshot import SnapshotHost, answer_path

from . import (
    coreboot,
    fbcon,
    fbdev,
    modules,
    nvidia,
    openrc,
    pci,
    processes,
    selinux,
    sound,
    sysfb,
    systemd,
    uevents,
    vfio,
)
from .tree import KernelFault, Tree

_CHANGES = "fake/changes"
_LOCK = "fake/lock"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Crash(BaseException):
    """The program died right here."""


class FakeHost(SnapshotHost):
    """A recorded machine that reacts to writes as the kernel does.

    All of its state lies in the directory: another FakeHost over the same one,
    in another process too, goes on where this one stopped.

    crash_before=k raises Crash before the k-th change (counted from 1) that this
    object and its copies in forked processes make; in a forked process it kills
    that process. refuse=k lets the k-th change fail with refuse_errno. hang: a
    write in whose path and text this is found never comes back, nor does a program.
    """

    def __init__(
        self,
        root: str,
        *,
        crash_before: int = 0,
        refuse: int = 0,
        refuse_errno: int = errno.EIO,
        hang: str = "",
    ) -> None:
        super().__init__(root)
        self.tree = Tree(root)
        self._crash_before = crash_before
        self._refuse = refuse
        self._refuse_errno = refuse_errno
        self._hang = hang
        self._pid = os.getpid()
        self.stuck: set[int] = set()
        self.handles: dict[int, tuple[int, str]] = {}
        self.pauses: list[float] = []
        self._now = 0.0
        with self._kernel_lock():
            fbcon.learn(self.tree)
            sysfb.learn(self.tree)
            coreboot.learn(self.tree)
            pci.learn(self.tree)
            modules.settle(self.tree)
            vfio.settle(self.tree)
        self.nodes = vfio.OpenNodes(self.tree)
        self._before = len(self._all_changes())

    patient = False
    """Whether waiting takes time. Nothing else acts on a fake machine, so by itself it does not."""

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        if self.patient:
            return super().wait(condition, timeout_s)
        # Host.wait() looks more than once: one look that fails is not the end of it.
        return condition() or (timeout_s > 0 and condition())

    def clock(self) -> float:
        return time.monotonic() if self.patient else self._now

    def boot_again(self, boot_id: str = "another") -> None:
        """What is left in /run is of an earlier boot now (it is a tmpfs, so by mistake)."""
        self.tree.put("proc/sys/kernel/random/boot_id", boot_id)
        vars(self).pop("boot_id", None)  # Host reads it once

    # -- processes

    own: frozenset[int] = frozenset()
    """The numbers that this program and its supervisor have on the machine."""

    def own_pids(self) -> frozenset[int]:
        return self.own | {vfio.own_number(self.tree)}

    def open_files(self, pid: int) -> dict[str, str]:
        """Linux fs/proc/fd.c, proc_fd_permission: asks ptrace_may_access."""
        self._settle(pid)
        self._look_into(pid, f"/proc/{pid}/fd")
        return super().open_files(pid)

    def mappings(self, pid: int) -> bytes:
        """Linux fs/proc/task_mmu.c, pid_maps_open, likewise."""
        self._look_into(pid, f"/proc/{pid}/maps")
        return super().mappings(pid)

    def _look_into(self, pid: int, path: str) -> None:
        if self.exists(f"fake/concealed/{pid}"):
            raise HostError.of("list", path, OSError(errno.EACCES, ""))

    def device_number(self, path: str) -> int | None:
        return processes.device_number(self.tree, path)

    def open_process(self, pid: int) -> int | None:
        """Linux kernel/pid.c, pidfd_open: ESRCH for a number that no process has."""
        if not self.exists(f"proc/{pid}"):
            return None
        handle = max(self.handles, default=1000) + 1
        self.handles[handle] = (pid, self.read(f"proc/{pid}/stat") or "")
        return handle

    _real = False

    def detach(self, work: Callable[[], None]) -> None:
        """A process of this machine, as all that it starts, and with the signals it gets there."""

        def as_a_process() -> None:
            self._real = True
            self.read(f"proc/{os.getpid()}/stat")
            work()

        super().detach(as_a_process)

    def read(self, path: str) -> str | None:
        match = re.fullmatch(r"proc/(\d+)/stat", path)
        if match is not None:
            self._settle(int(match[1]))
        return super().read(path)

    def _settle(self, pid: int) -> None:
        """Let a process of a test be one of the machine's, from its first look to its end."""
        there = self.exists(f"fake/real/{pid}")
        if self._real and pid == os.getpid() and not there:
            processes.make(self.tree, pid, "vfio-console-ho", "0::/")
            self.tree.put(f"fake/real/{pid}", "")
        if there and not processes.runs(pid):
            with self._kernel_lock():  # others may look at it, too
                processes.end(self.tree, pid)
                vfio.settle(self.tree)

    def close_process(self, handle: int) -> None:
        del self.handles[handle]

    def _lives(self, handle: int) -> bool:
        pid, started = self.handles[handle]
        return self.exists(f"proc/{pid}/stat") and (self.read(f"proc/{pid}/stat") or "") == started

    def signal_process(self, handle: int, number: int) -> None:
        """Linux kernel/signal.c, pidfd_send_signal: ESRCH for one that has ended."""
        pid, _ = self.handles[handle]
        self._change("signal", f"proc/{pid}", signal.Signals(number).name, "send a signal to")
        if self._lives(handle) and self.exists(f"fake/real/{pid}"):
            self.kill_between(pid, number)
        elif self._lives(handle) and pid not in self.stuck:
            processes.receive(self.tree, pid, number, self.clock())

    def kill_between(self, pid: int, number: int) -> None:
        """Send a signal to a process of a test, but not in the middle of what the kernel does."""
        with self._kernel_lock():
            os.kill(pid, number)

    def wait_for_end(self, handles: Sequence[int], timeout_s: float) -> None:
        """Linux kernel/fork.c, pidfd_poll: readable as soon as the process has ended."""
        self.pauses.append(timeout_s)
        if not all(self._lives(handle) for handle in handles):
            return
        end = time.monotonic() + timeout_s
        while self.patient and time.monotonic() < end and all(map(self._lives, handles)):
            time.sleep(0.02)
        ends = (processes.due(self.tree, self.handles[handle][0]) for handle in handles)
        self._now = min([self._now + timeout_s, *(when for when in ends if when is not None)])
        processes.end_due(self.tree, self.clock())

    # -- nodes that stay open

    def open_node(self, path: str) -> int:
        self._change("open", path, "", "open")
        with self._kernel_lock():
            vfio.settle(self.tree)
            try:
                return self.nodes.open(path)
            except OSError as error:
                raise HostError.of("open", f"/{path}", error) from error

    def close_node(self, handle: int) -> None:
        with self._kernel_lock():
            self.nodes.close(handle)

    def ask_node(self, handle: int, request: int, argument: bytearray | int, name: str) -> int:
        failing = f"ask (ioctl {request:#x})"
        self._change("ioctl", name.lstrip("/"), f"{request:#x}", failing)
        with self._kernel_lock():
            try:
                return self.nodes.ask(handle, request, argument)
            except OSError as error:
                raise HostError.of(failing, name, error) from error

    def map_node(self, handle: int, offset: int, size: int, name: str) -> vfio.Mapped:
        self._change("map", name, f"{offset:#x} {size:#x}", "map")
        with self._kernel_lock():
            try:
                return self.nodes.map(handle, offset, size)
            except OSError as error:
                raise HostError.of("map", name, error) from error

    # -- what was done to it

    @contextmanager
    def _kernel_lock(self) -> Iterator[None]:
        """One change at a time on the whole machine, whichever process makes it.

        It takes the place of console_lock, device_lock, pci_lock_rescan_remove and the resource
        lock, with which the kernel does the same.
        """
        self.tree.make_directory(os.path.dirname(_LOCK))
        with open(self.path(_LOCK), "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _all_changes(self) -> list[str]:
        return (self.tree.read(_CHANGES) or "").splitlines()

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """(kind, path, text) of each change tried since this object was made.

        kind is "write", "poke", "ioctl", "open" or "map".
        """
        return [
            (kind, path, text)
            for kind, path, text in map(json.loads, self._all_changes()[self._before :])
        ]

    @property
    def log(self) -> list[str]:
        """What the kernel logged, from the machine's beginning."""
        return (self.tree.read("fake/dmesg") or "").splitlines()

    @property
    def fault(self) -> str | None:
        """Why the kernel is dead, if it is."""
        return self.tree.read("fake/fault")

    def print_text(self) -> None:
        """Another program writes to the console: it does not count as a change."""
        fbcon.print_text(self.tree)

    def load_module(self, module: str) -> None:
        """modprobe MODULE by another program: it does not count as a change."""
        pci.load_module(self.tree, module)

    def _change(self, kind: str, path: str, text: str, failing: str) -> None:
        """Count a change, and stop here if this is the one to crash or fail at."""
        if self.fault is not None:
            raise KernelFault(self.fault)
        number = len(self._all_changes()) - self._before + 1
        if number == self._crash_before:
            if os.getpid() != self._pid:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Crash(f"before change {number}: {kind} {path} {text}")
        with open(self.path(_CHANGES), "a", encoding="utf-8") as file:
            file.write(json.dumps([kind, path, text]) + "\n")
        if self._hang and self._hang in f"{path} {text}":
            self._never_return(kind, f"/{path.lstrip('/')} {text}")
        if number == self._refuse:
            raise HostError.of(failing, f"/{path}", OSError(self._refuse_errno, ""))

    def _never_return(self, kind: str, what: str) -> None:
        """The kernel is stuck: below a program, whose end Host.run() does not wait for, or us."""
        if kind == "run":
            raise StuckError(
                f"the kernel is stuck in `{what}` (process 4711)",
                hint="save your work and reboot the host",
            )
        while True:
            time.sleep(60)

    # -- the doors of Host

    def read_bytes(self, path: str) -> bytes | None:
        if path == "proc/iomem" and fbdev.unsettled(self.tree):
            with self._kernel_lock():
                fbdev.settle(self.tree)
        if path.startswith("sys/module/"):
            with self._kernel_lock():
                modules.settle(self.tree)
        return super().read_bytes(path)

    def write(self, path: str, text: str) -> None:
        self.write_watched(path, text, lambda: None, 0)

    def write_watched(self, path: str, text: str, act: Callable[[], None], after_s: float) -> None:
        failing = f"write '{text.strip()}' to"
        self._change("write", path, text.strip(), failing)
        # A recording has no uevent; each device has one (Linux drivers/base/core.c).
        folder, _, name = path.rpartition("/")
        above = self.real(folder) if name == "uevent" else None
        real = f"{above}/{name}" if above else self.real(path)
        if real is None:
            raise HostError.of(failing, f"/{path}", OSError(errno.ENOENT, ""))
        if not self._delivered(real, text, failing):
            self._now += after_s
            act()
            if not self._delivered(real, text, failing):
                self._never_return("write", f"/{path} {text}")

    def _delivered(self, path: str, text: str, failing: str) -> bool:
        """The kernel's reaction; False while the write waits for a program."""
        with self._kernel_lock():
            fbdev.settle(self.tree)
            try:
                _react(self.tree, path, text)
            except sound.StillOpen:
                return False
            except OSError as error:
                raise HostError.of(failing, f"/{path}", error) from error
            modules.settle(self.tree)
        return True

    def poke(self, path: str, offset: int, content: bytes) -> None:
        failing = f"write '{content.hex()}' to"
        self._change("poke", path, f"{offset:#x} {content.hex()}", failing)
        real = self.real(path)
        if real is None or os.path.basename(real) != "config":
            raise HostError.of(failing, f"/{path}", OSError(errno.ENOENT, ""))
        with self._kernel_lock():
            try:
                pci.check_config_write(self.tree)
            except OSError as error:
                raise HostError.of(failing, f"/{path}", error) from error
            self.tree.poke(real, offset, content)
            pci.config_written(self.tree, pci.address_of(real))

    def map_console(self, fb: str, console: int, index: int) -> None:
        self._change("ioctl", f"dev/{fb}", f"console {console} to fb{index}", f"map {console} on")
        with self._kernel_lock():
            fbcon.put_con2fb_map(self.tree, fb, console, index)
            modules.settle(self.tree)

    def set_text_mode(self, tty: str, text: bool) -> None:
        """KDSETMODE (vt_ioctl.c): only redrawing depends on it, no console driver does."""
        mode = "text" if text else "graphics"
        self._change("ioctl", f"dev/{tty}", f"KDSETMODE {mode}", "set the mode of")
        self.tree.put(f"ioctl/{tty}/mode", mode)

    def show_text(self, tty: str, text: str) -> None:
        """Linux vt.c, do_con_write: shown, or lost on the dummy console."""
        self._change("text", f"dev/{tty}", text.strip(), "write to")
        self.print_text()

    def lock_consoles(self, locked: bool) -> None:
        state = "locked" if locked else "unlocked"
        self._change("ioctl", "dev/tty0", f"VT_LOCKSWITCH {state}", "lock")
        self.tree.put("ioctl/consoles", state)

    def kill(self, pid: int) -> None:
        """SIGKILL: the process is gone, unless the kernel holds it (state D)."""
        if pid not in self.stuck:
            self.tree.remove(f"proc/{pid}")

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0].endswith("/systemctl") and self.exists("systemd"):
            if command[1] != "show":
                self._change("run", command[0], " ".join(command[1:]), "run")
            return systemd.systemctl(self.tree, command)
        if command[0] == nvidia.SMI and self.exists(nvidia.SMI[1:]):
            self._change("run", command[0], " ".join(command[1:]), "run")
            return nvidia.smi(self.tree, command)
        if command[0] == "/sbin/rmmod":
            self._change("run", command[0], command[1], "run")
            with self._kernel_lock():
                output = pci.rmmod(self.tree, command[1])
                modules.settle(self.tree)
            return output
        if command[0] != "/sbin/modprobe":
            return super().run(*command, timeout_s=timeout_s)
        if {"--resolve-alias", "--showconfig"}.intersection(command):
            if self.exists(answer_path(command)) and not self.exists("fake/native"):
                return super().run(*command, timeout_s=timeout_s)  # nothing can change it
            return pci.modprobe(self.tree, command[1:])
        self._change("run", command[0], " ".join(command[1:]), "run")
        with self._kernel_lock():
            output = pci.modprobe(self.tree, command[1:])
            modules.settle(self.tree)
        return output

    def become(
        self, *command: str, environment: dict[str, str], text: str, timeout_s: float
    ) -> None:
        """The program would run now: what it is called with lies below fake/."""
        became = {"command": command, "environment": environment, "text": text, "s": timeout_s}
        self.tree.put("fake/became", json.dumps(became))

    def ask(self, path: str, question: str) -> str:
        if not self.exists(selinux.POLICY):
            return super().ask(path, question)
        return selinux.answer(self.tree, path, question)

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        if not openrc.is_command(self.tree, command[0]):
            raise HostError(f"cannot run {' '.join(command)}: No such file or directory")
        if command[-1] != "status":
            self._change("run", command[0], " ".join(command[1:]), "run")
        return openrc.exit_status(self.tree, command)


def _react(tree: Tree, path: str, text: str) -> None:
    """Do what the attribute's store function does. Raises OSError with the kernel's errno."""
    # The kernel takes a name with or without a line end (sysfs_streq, bus_find_device_by_name).
    word = text.strip()
    for pattern, store in _STORES:
        match = re.fullmatch(pattern, path)
        if match is not None:
            store(tree, match[1] if match.groups() else "", word)
            return
    if path.startswith(("sys/", "proc/")):
        raise NotImplementedError(f"FakeHost does not know what Linux does with /{path}")
    tree.write(path, text)


_ADDRESS = r"sys/devices/(?:.*/)?([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
_STORES: tuple[tuple[str, Callable[[Tree, str, str], None]], ...] = (
    (r"sys/bus/platform/drivers/([^/]+)/bind", sysfb.write_bind),
    (r"sys/bus/platform/drivers/([^/]+)/unbind", sysfb.write_unbind),
    (r"sys/bus/coreboot/drivers/([^/]+)/bind", coreboot.write_bind),
    (r"sys/bus/coreboot/drivers/([^/]+)/unbind", coreboot.write_unbind),
    (r"sys/bus/pci/drivers/([^/]+)/bind", pci.write_bind),
    (r"sys/bus/pci/drivers/([^/]+)/unbind", pci.write_unbind),
    (r"sys/bus/pci/drivers_probe", lambda tree, _, word: pci.write_probe(tree, word)),
    (r"sys/bus/pci/rescan", lambda tree, _, word: pci.write_rescan(tree)),
    (_ADDRESS + "/remove", lambda tree, address, _: pci.write_remove(tree, address)),
    (_ADDRESS + "/enable", pci.write_enable),
    (_ADDRESS + "/reset", pci.write_reset),
    (_ADDRESS + "/driver_override", pci.write_override),
    (uevents.CARD, uevents.write),
    (r"sys/devices/virtual/vtconsole/(vtcon\d+)/bind", fbcon.write_bind),
)
