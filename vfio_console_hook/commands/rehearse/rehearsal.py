"""A rehearsal: what is to be done, until when, and its diary on disk.

    /run/vfio-console-hook/rehearsals/ID    JSON lines, for root only: names of processes are in it

    {"rehearsal": {...}}                    what was asked for, as below
    {"runner": [PID, TICKS]}                the process that does it
    {"watchdog": [PID, TICKS] or "UNIT"}    what gives all back if the runner does not
    {"cycle": {"number": N, "promise": {...}, "before": {...}}}
    {"say": TEXT}                           a line for the terminal
    {"took": {...}}                         what was done, and how long each part of it took
    {"opened": {...}}                       what vfio gave, as QEMU would have got it
    {"real": {...}}                         the VM itself is started (real.py), and of that:
    {"starting": BOOL}                      before it is; false: it could not be
    {"qemu": [PID, TICKS]}                  it runs
    {"kept": true}, {"destroying": true}    what becomes of it; the first one counts
    {"verdict": {...}}                      how one cycle compared with its promise
    {"eye": TEXT}                           what a person could read on the monitor
    {"report": BOOL}                        whether one is wanted even if all is as plan had said
    {"giver": [PID, TICKS]}                 a watchdog that wants to give back; the first one does
    {"end": TEXT}                           all is over; why it was cut short, or ""

Each line is one write. The command, the runner with its workers, and the watchdog write it; the
terminal only follows it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from ...claims.directory import Claims
from ...domain import Domain, Hostdev
from ...errors import HookError
from ...machine import runfiles
from ...machine.host import Host
from ...machine.runfiles import RUN

FOLDER = f"{RUN}/rehearsals"
OPENING_S = 20.0
"""How long start's checks, opening, mapping and closing the functions may take together.

The kernel resets a function when it is opened and when it is closed; a slow one takes seconds.
"""
RESET_S = 75.0
"""How long a reset may take: a device that does not come back is waited for for a minute.

Source: Linux drivers/pci/pci.h, PCIE_RESET_READY_POLL_MS, and pci_dev_wait().
"""
LIBVIRT_S = 60.0
"""How long libvirt may take to start QEMU, or to end it, beside the hook's own time."""
SPARE_S = 15.0
"""How long the processes may take to start, and a killed runner to be gone."""
_KEPT = 20


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed. own is the uuid of its claim, vm and uuid are those of the VM.

    addresses are the functions that take part, GPUs first; spared are the VM's other devices.
    untried is why vfio cannot open the GPU without those, "" if it can. began and until are
    in seconds since 1970. reset: vfio resets the functions once they are open.
    starts: the VM itself is started (real.py).
    """

    own: str
    vm: str
    uuid: str
    configured_as: str
    addresses: tuple[str, ...]
    spared: tuple[str, ...]
    untried: str
    seconds: float
    times: int
    timeout_s: int
    began: float
    reset: bool = False
    starts: bool = False

    @property
    def until(self) -> float:
        """When everything is back at the latest."""
        return self.began + self.times * self.cycle_s + SPARE_S

    @property
    def cycle_s(self) -> float:
        """How long one cycle may take: taking the GPU, having it, giving it back."""
        return self.timeout_s + self.opening_s + self.seconds + self.give_back_s

    @property
    def opening_s(self) -> float:
        """How long start's checks, and opening, mapping and resetting may take together."""
        return OPENING_S + RESET_S * self.reset + LIBVIRT_S * self.starts

    @property
    def give_back_s(self) -> float:
        """How long giving back may take, and ending the VM before."""
        return self.timeout_s + LIBVIRT_S * self.starts

    @property
    def give_back_at(self) -> float:
        """When giving back has begun at the latest, if all goes well."""
        return self.until - SPARE_S - self.give_back_s

    @property
    def domain(self) -> Domain:
        """Who takes the functions, as `take --vfio` would."""
        hostdevs = tuple(Hostdev(one, True, "rehearse", 0) for one in self.addresses)
        return Domain(
            self.vm, self.own, hostdevs, True, True, self.configured_as, self.until, self.spared
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rehearsal:
        """What vars() of one gave, through JSON. Raises TypeError."""
        return cls(**with_tuples(value))


@dataclass
class Account:
    """What a diary holds so far. cycles, opened, took and verdicts are as they were written."""

    rehearsal: Rehearsal | None = None
    runner: tuple[int, int] = (0, 0)
    watchdog: Any = None
    givers: list[tuple[int, int]] = field(default_factory=list)
    cycle: dict[str, Any] = field(default_factory=dict)
    took: dict[str, Any] = field(default_factory=dict)
    opened: dict[str, Any] | None = None
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    eye: str | None = None
    end: str | None = None
    report: bool = False
    said: list[str] = field(default_factory=list)
    real: dict[str, Any] | None = None
    starting: bool = False
    qemu: list[int] = field(default_factory=list)
    kept: bool = False
    destroying: bool = False

    def add(self, key: str, value: Any) -> None:
        """Learn what an entry of a line says."""
        if key in _LISTS:
            getattr(self, _LISTS[key]).append(tuple(value) if key == "giver" else value)
        elif key == "rehearsal":
            self.rehearsal = Rehearsal.from_json(value)
        elif key == "runner":
            self.runner = (int(value[0]), int(value[1]))
        elif key == "cycle":
            self.cycle, self.took, self.opened = value, {}, None
        elif key == "took":
            self.took = {**self.took, **value}
        elif key in ("kept", "destroying"):
            setattr(self, key, not (self.kept or self.destroying) or getattr(self, key))
        else:
            setattr(self, key, value)


# The entries of which there are several, and where they are kept.
_LISTS = {"giver": "givers", "verdict": "verdicts", "say": "said"}


@dataclass(frozen=True)
class Switch:
    """A VM that is destroyed at a time, in seconds since 1970, unless it is kept."""

    vm: str
    uuid: str
    at: float


def switches(host: Host) -> tuple[Switch, ...]:
    """The VMs that rehearsals have started and that are not kept; none to other users."""
    found = []
    try:
        for own in runfiles.names(host, FOLDER):
            account = Diary(host, own).account()
            over = account.end is not None or account.kept or account.destroying
            if account.rehearsal is not None and account.starting and not over:
                one = account.rehearsal
                found.append(Switch(one.vm, one.uuid, one.give_back_at))
    except (HookError, TypeError, ValueError, AttributeError):
        return ()
    return tuple(found)


class Diary:
    """The file of one rehearsal."""

    def __init__(self, host: Host, own: str) -> None:
        self.host = host
        self.own = own
        self.path = f"{FOLDER}/{own}"

    def begin(self, rehearsal: Rehearsal) -> None:
        """Make the file, and drop those of the oldest rehearsals. Raises ClaimError."""
        for path in (RUN, FOLDER):
            runfiles.make_directory(self.host, path)
        _drop_oldest(self.host)
        runfiles.write(self.host, self.path, _line({"rehearsal": vars(rehearsal)}))

    def note(self, **entry: Any) -> None:
        """Add a line. Raises ClaimError."""
        handle = runfiles.open_file(self.host, self.path, os.O_WRONLY | os.O_APPEND)
        try:
            runfiles.write_all(handle, _line(entry))
        except OSError as error:
            raise runfiles.failed("write", self.path, error) from error
        finally:
            os.close(handle)

    def jot(self, **entry: Any) -> None:
        """Add a line; where that fails the work goes on: a full disk must not keep the GPU."""
        try:
            self.note(**entry)
        except HookError:
            return

    def say(self, text: str) -> None:
        """Add a line for people, as jot() does."""
        self.jot(say=text)

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines so far; none when there is no such file. Raises ClaimError."""
        found = []
        for line in (runfiles.read(self.host, self.path) or b"").split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # its writer was killed on a full disk
            found += [entry] if isinstance(entry, dict) else []
        return found

    def account(self) -> Account:
        """What the lines say together. Raises HookError when it is no diary."""
        account = Account()
        for entry in self.lines():
            for key, value in entry.items():
                account.add(key, value)
        return account

    def rehearsal(self) -> Rehearsal:
        """What is rehearsed. Raises HookError when there is no such rehearsal."""
        found = self.account().rehearsal
        if found is None:
            raise HookError(f"there is no rehearsal {self.own}")
        return found


def with_tuples(value: dict[str, Any]) -> dict[str, Any]:
    """Values of JSON whose lists are tuples again."""
    return {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _drop_oldest(host: Host) -> None:
    """Remove the diaries of rehearsals that hold nothing, but for the last ones."""
    held = set(Claims(host).uuids())
    there = [one for one in runfiles.names(host, FOLDER) if one not in held]
    ages = [(status.st_mtime_ns, one) for one in there if (status := host.lstat(f"{FOLDER}/{one}"))]
    for _, name in sorted(ages, reverse=True)[_KEPT - 1 :]:
        runfiles.remove(host, f"{FOLDER}/{name}")
