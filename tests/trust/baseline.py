"""The undisturbed life of a subject's VM, kept at each event, to begin from there again."""

from __future__ import annotations

import ast
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.orders.watch import FIRMWARE_RESERVATIONS, whole
from tests.trust.fault import CHANGES, LOOKS, Access, Trace
from tests.trust.life import PREPARE, RELEASE, START, Machine
from tests.trust.subjects import Subject

EVENTS = (PREPARE, START, RELEASE)
_IOMEM = "proc/iomem"
_IOMMU_GROUP = "/iommu_group"
_VTCONSOLES = "sys/class/vtconsole/"


class UnsoundError(Exception):
    """Something is wrong although nothing disturbed the program."""


@dataclass(frozen=True)
class Baseline:
    """What each event did, and how the machine was before all and after all.

    saved is the machine just before each event. A VM that is refused has only prepare.
    losses are what plan listed as lost. renumbers: even undisturbed, cards
    and framebuffers come back with each other's numbers, which are by arrival: where the
    firmware lit one GPU and a native driver has another, libvirt brings back the latter first.
    """

    subject: Subject
    saved: dict[str, Path]
    changes: dict[str, tuple[Access, ...]]
    looks: dict[str, tuple[Access, ...]]
    before: dict[str, str]
    after: dict[str, str]
    losses: tuple[str, ...]
    renumbers: bool

    @property
    def refused(self) -> bool:
        return START not in self.saved

    def begin(self, event: str, directory: Path) -> Machine:
        """The machine just before an event, in directory, which is made anew."""
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.saved[event], directory, symlinks=True)
        return Machine(self.subject, directory, directory.with_suffix(".stderr"))

    def changed(self, now: dict[str, str]) -> list[str]:
        """The paths that are neither as before nor as plan said.

        vfio-pci also puts the dummy console in the place of a vgacon that draws nothing
        (Linux drivers/pci/vgaarb.c, vga_remove_vgacon), of which plan has nothing to say. And a
        device may come into its IOMMU group with its first driver, for good (of_iommu_configure).
        """
        ignored = _consoles(now) ^ _consoles(self.before) if self._idle_vgacon else set()
        return [
            path
            for path in sorted({*now, *self.before})
            if now.get(path) != self.before.get(path)
            and not ((self.losses or self.renumbers) and now.get(path) == self.after.get(path))
            and not (self.losses and path == _IOMEM and self._is_dark(now[path]))
            and ignored.isdisjoint(path.split("/"))
            and not (_IOMMU_GROUP in path and path not in self.before)
        ]

    def _is_dark(self, iomem: str) -> bool:
        """Whether only firmware claims are missing: a console that is lost goes before the rest."""
        before, now = {*self.before[_IOMEM].splitlines()}, {*iomem.splitlines()}
        gone = {line.rpartition(" : ")[2] for line in before - now}
        return now <= before and gone <= {*FIRMWARE_RESERVATIONS}

    @property
    def _idle_vgacon(self) -> bool:
        return any(
            "VGA+" in what and self.before.get(f"{path[:-4]}bind", "").strip() == "0"
            for path, what in self.before.items()
            if path.endswith("/name")
        )

    def not_as_before(self, machine: Machine) -> str:
        """What of the machine is neither as before nor as plan said; "" when all is."""
        now = machine.seen()
        wrong = self.changed(now)
        if not wrong:
            return ""
        path = wrong[0]
        return (
            f"{len(wrong)} paths are not as before, such as {path}: {now.get(path)!r:.60}"
            f" instead of {self.before.get(path)!r:.60}"
        )

    def held(self, machine: Machine, *, tidied: bool = True) -> str:
        """What is still claimed, or broken; "" when nothing is.

        tidied: not even a draft or a name may be there.
        """
        if machine.fault:
            return f"the kernel is dead: {machine.fault}"
        left = [one for one in machine.claimed() if tidied or machine.is_claim(one)]
        return f"still there: {', '.join(left)}" if left else ""


def _consoles(seen: dict[str, str]) -> set[str]:
    """The names of the console drivers."""
    return {path.split("/")[-1] for path in seen if path.startswith(_VTCONSOLES)}


def undisturbed(subject: Subject, directory: Path) -> Baseline:
    """Lead the VM's life once. Raises UnsoundError. directory is made for what is kept."""
    directory.mkdir()
    now = directory / "now"
    subject.lay_out(now)
    machine = Machine(subject, now, directory / "stderr")
    before, steps = machine.seen(), subject.planned(now)
    by_device = whole(machine.host)
    lost = () if isinstance(steps, str) else tuple(one.loses for one in steps if one.loses)
    saved: dict[str, Path] = {}
    changes: dict[str, tuple[Access, ...]] = {}
    looks: dict[str, tuple[Access, ...]] = {}
    for event in EVENTS:
        saved[event] = directory / event
        shutil.copytree(now, saved[event], symlinks=True)
        notes = directory / f"notes-{event}"
        ended = machine.event(event, trace=Trace(str(notes)))
        if ended.wrong() or ended.killed:
            raise UnsoundError(f"{subject}: undisturbed, {event} {ended.wrong()}")
        changes[event], looks[event] = (_read(f"{notes}{part}") for part in (CHANGES, LOOKS))
        if ended.status:
            break
        _then(machine, event)
    after = machine.seen()
    renumbers = after != before and whole(machine.host) == by_device
    baseline = Baseline(subject, saved, changes, looks, before, after, lost, renumbers)
    wrong = ended.stderr if event != PREPARE else "" if changes[PREPARE] else "nothing is done"
    wrong = wrong or baseline.held(machine) or baseline.not_as_before(machine)
    if wrong:
        raise UnsoundError(f"{subject}: undisturbed, {event}: {wrong}")
    return baseline


def _then(machine: Machine, event: str) -> None:
    """What libvirt does after an event that has succeeded. Raises UnsoundError."""
    if event == PREPARE:
        machine.detach()
    elif event == START:
        blocked = machine.run_vm()
        if blocked:
            raise UnsoundError(f"{machine.subject}: {blocked}")
        machine.reattach()


def _read(path: str) -> tuple[Access, ...]:
    if not Path(path).exists():
        return ()
    rows = (line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines())
    return tuple(Access(who, kind, ast.literal_eval(what)) for who, kind, what in rows)
