"""A fault that is injected into the program, and a trace of what all its processes did."""

from __future__ import annotations

import errno
import mmap
import re
from dataclasses import dataclass

WORKER, HOOK, BOTH = "worker", "hook", "both"
CHANGES, LOOKS = 0, 8  # places in a Trace
NOTHING, HALF, FAILS = "nothing", "half", "fails"


@dataclass(frozen=True)
class Fault:
    """What happens to the program, and when; by itself, nothing.

    at: the number of the change, from 1. kill: which of WORKER, HOOK, BOTH is killed
    once the change is made. refusal: the errno with which it fails instead; with
    lasting, so do all later ones of its kind, for files or for the same path of the
    machine. look: the number of the look at the machine that is answered as blind says,
    NOTHING (it has just gone), HALF, or FAILS (EIO). gone: a PCI device that is pulled
    out before that look.
    """

    at: int = 0
    kill: str = ""
    refusal: int = 0
    lasting: bool = False
    look: int = 0
    blind: str = ""
    gone: str = ""

    def __str__(self) -> str:
        if self.kill:
            return f"kill -9 of {self.kill} after change {self.at}"
        if self.refusal:
            name = errno.errorcode[self.refusal]
            return f"{name} for change {self.at}{' and on' if self.lasting else ''}"
        if self.gone:
            return f"{self.gone} pulled out before look {self.look}"
        return f"look {self.look} sees {self.blind}" if self.look else "nothing"


@dataclass(frozen=True)
class Access:
    """A change, or a look: which process does it (the hook's own or its worker), and what."""

    who: str
    kind: str
    what: str

    @property
    def own(self) -> bool:
        """Whether it is one of the program's own files."""
        return self.kind.startswith("file ")

    @property
    def pattern(self) -> str:
        """The same for all machines and VMs: without addresses and numbers."""
        what = re.sub(r"[0-9a-f]{8}-[-0-9a-f]{27}", "UUID", self.what)
        what = re.sub(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", "PCI", what)
        what = re.sub(r"0x[0-9a-f]+|\d+", "N", what)
        return f"{self.who} {self.kind} {re.sub(r'(N )+', 'N ', what)}"


class Trace:
    """What has happened so far, in all processes of one event."""

    def __init__(self, notes: str = "") -> None:
        self._shared = mmap.mmap(-1, 24)  # a fork shares it
        self._notes = notes

    def _get(self, place: int) -> int:
        return int.from_bytes(self._shared[place : place + 8], "little")

    def _set(self, place: int, value: int) -> None:
        self._shared[place : place + 8] = value.to_bytes(8, "little")

    def count(self, place: int, access: Access) -> int:
        """The number of one more of CHANGES or LOOKS, from 1."""
        self._set(place, self._get(place) + 1)
        if self._notes:
            with open(f"{self._notes}{place}", "a", encoding="utf-8") as file:
                file.write(f"{access.who}\t{access.kind}\t{access.what!r}\n")
        return self._get(place)

    @property
    def changes(self) -> int:
        return self._get(CHANGES)

    @property
    def hook(self) -> int:
        """The pid of the hook's own process."""
        return self._get(16)

    @hook.setter
    def hook(self, pid: int) -> None:
        self._set(16, pid)
