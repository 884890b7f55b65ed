"""The one door to the machine: files, ioctls, processes, programs and time.

A Host is rooted at a directory. "/" is the running machine; any other root is a
snapshot of one (snapshot.py), so the same code reads a user's bug report. Nothing
here decides anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cached_property

from .consoles import Consoles
from .nodes import Nodes
from .processes import Processes
from .programs import ENVIRONMENT, Programs

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

    from ..libvirtd import Vm

# The end of the year 9999, the last that strftime() can write everywhere.
LAST_S = 253402214400


def seconds(value: Any) -> float:
    """A number of seconds that, since the epoch, has a date. Raises ValueError, TypeError."""
    found = float(value)
    if not 0 <= found < LAST_S:
        raise ValueError("no time")
    return found


class Host(Consoles, Nodes, Processes, Programs):
    """The running machine, below root.

    owner_uid is the user that configuration files must belong to.
    """

    owner_uid = 0

    def __init__(self, root: str = "/") -> None:
        super().__init__(root)
        self.environment = dict(ENVIRONMENT)
        self._end: float | None = None

    @cached_property
    def boot_id(self) -> str:
        """The random identity of this boot (Linux drivers/char/random.c)."""
        return self.read("proc/sys/kernel/random/boot_id") or ""

    @property
    def complete(self) -> bool:
        """Whether a file that is missing here is missing on the machine too; see snapshot.py."""
        return True

    @property
    def privileged(self) -> bool:
        """Whether we are root there; libvirtd of qemu:///session runs the hook as its user."""
        return os.geteuid() == 0

    def vms(self, uri: str, name: str = "") -> tuple[Vm, ...]:
        """The VMs that libvirt knows at uri, or that of a name or uuid, asked read-only.

        Raises HostError.
        """
        from .. import (
            libvirtd,  # only for commands: libvirt gives the hook what it needs
        )

        return libvirtd.vms(uri, name)

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def clock(self) -> float:
        """Seconds since an unspecified moment, for deadlines."""
        return time.monotonic()

    def give_up_after(self, timeout_s: float | None) -> None:
        """Let no wait end later than that many seconds from now; None: as it was before."""
        self._end = None if timeout_s is None else self.clock() + timeout_s

    def time_for(self, wanted_s: float, spared_s: float = 0) -> float:
        """How many seconds a wait may take that wants so many, and leaves so many to others."""
        if self._end is None:
            return wanted_s
        return max(0.0, min(wanted_s, self._end - self.clock() - spared_s))

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether condition came true within timeout_s; tested every 50 ms."""
        deadline = time.monotonic() + self.time_for(timeout_s)
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True
