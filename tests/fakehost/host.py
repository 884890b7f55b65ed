"""FakeHost: a recorded machine that does to its own files what the kernel would do."""

from __future__ import annotations

import errno
import json
import os
import re
import signal

from vfio_console_hook.errors import HostError
from vfio_console_hook.recorded import RecordedHost

from . import fbcon, fbdev, pci, sysfb
from .tree import KernelFault, Tree

_CHANGES = "fake/changes"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Crash(BaseException):
    """The program died right here."""


class FakeHost(RecordedHost):
    """A recorded machine that reacts to writes as the kernel does.

    All of its state lies in the directory: another FakeHost over the same one,
    in another process too, goes on where this one stopped.

    crash_before=k raises Crash before the k-th change (counted from 1) that this
    object and its copies in forked processes make; in a forked process it kills
    that process. refuse=k lets the k-th change fail with refuse_errno.
    """

    def __init__(
        self,
        root: str,
        *,
        crash_before: int = 0,
        refuse: int = 0,
        refuse_errno: int = errno.EIO,
    ) -> None:
        super().__init__(root)
        self.tree = Tree(root)
        self._crash_before = crash_before
        self._refuse = refuse
        self._refuse_errno = refuse_errno
        self._pid = os.getpid()
        sysfb.learn(self.tree)
        pci.learn(self.tree)
        self._before = len(self._all_changes())

    patient = False
    """Whether waiting takes time. Nobody else acts on a fake machine, so by itself it does not."""

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        return super().wait(condition, timeout_s if self.patient else 0)

    # -- what was done to it

    def _all_changes(self) -> list[str]:
        return (self.tree.read(_CHANGES) or "").splitlines()

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """(kind, path, text) of each change tried since this object was made.

        kind is "write", "poke" or "ioctl".
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

    def load_module(self, module: str) -> None:
        """modprobe MODULE by somebody else: it does not count as a change."""
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
        if number == self._refuse:
            raise HostError.of(failing, f"/{path}", OSError(self._refuse_errno, ""))

    # -- the doors of Host

    def read_bytes(self, path: str) -> bytes | None:
        if path == "proc/iomem":
            fbdev.settle(self.tree)
        return super().read_bytes(path)

    def write(self, path: str, text: str) -> None:
        failing = f"write '{text.strip()}' to"
        self._change("write", path, text.strip(), failing)
        real = self.real(path)
        if real is None:
            raise HostError.of(failing, f"/{path}", OSError(errno.ENOENT, ""))
        fbdev.settle(self.tree)
        try:
            _react(self.tree, real, text)
        except OSError as error:
            raise HostError.of(failing, f"/{path}", error) from error

    def poke(self, path: str, offset: int, content: bytes) -> None:
        failing = f"write '{content.hex()}' to"
        self._change("poke", path, f"{offset:#x} {content.hex()}", failing)
        real = self.real(path)
        if real is None or os.path.basename(real) != "config":
            raise HostError.of(failing, f"/{path}", OSError(errno.ENOENT, ""))
        try:
            pci.check_config_write(self.tree)
        except OSError as error:
            raise HostError.of(failing, f"/{path}", error) from error
        self.tree.poke(real, offset, content)
        pci.config_written(self.tree, pci.address_of(real))

    def map_console(self, fb: str, console: int, index: int) -> None:
        self._change("ioctl", f"dev/{fb}", f"console {console} to fb{index}", f"map {console} on")
        fbcon.put_con2fb_map(self.tree, fb, console, index)

    def set_text_mode(self, tty: str, text: bool) -> None:
        """KDSETMODE (vt_ioctl.c): only redrawing depends on it, no console driver does."""
        mode = "text" if text else "graphics"
        self._change("ioctl", f"dev/{tty}", f"KDSETMODE {mode}", "set the mode of")
        self.tree.put(f"ioctl/{tty}/mode", mode)

    def lock_consoles(self, locked: bool) -> None:
        state = "locked" if locked else "unlocked"
        self._change("ioctl", "dev/tty0", f"VT_LOCKSWITCH {state}", "lock")
        self.tree.put("ioctl/consoles", state)

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0] != "/sbin/modprobe":
            return super().run(*command, timeout_s=timeout_s)
        if not {"--resolve-alias", "--showconfig"}.intersection(command):
            self._change("run", command[0], " ".join(command[1:]), "run")
        return pci.modprobe(self.tree, command[1:])


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
    (r"sys/bus/pci/drivers/([^/]+)/bind", pci.write_bind),
    (r"sys/bus/pci/drivers/([^/]+)/unbind", pci.write_unbind),
    (r"sys/bus/pci/drivers_probe", lambda tree, _, word: pci.write_probe(tree, word)),
    (r"sys/bus/pci/rescan", lambda tree, _, word: pci.write_rescan(tree)),
    (_ADDRESS + "/remove", lambda tree, address, _: pci.write_remove(tree, address)),
    (_ADDRESS + "/enable", pci.write_enable),
    (_ADDRESS + "/driver_override", pci.write_override),
    (r"sys/devices/virtual/vtconsole/(vtcon\d+)/bind", fbcon.write_bind),
)
