"""What is well written in the configuration, and yet does not do on this host what it says.

prepare does not refuse a VM for it: a file may be for several hosts, and a program may be
installed later. check-config and doctor report it, with the line and what to write.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, islice

from ..actions import holder_kill
from ..config import load, text
from ..config.mistakes import Mistake
from ..config.service import DETACHED, Service
from ..config.settings import NONE, Config
from ..config.yamltext import Entry
from ..errors import HookError, nearest
from ..machine import pci, processes, systemd
from ..machine.holders import COMM, cgroup_of, command_of
from ..machine.host import Host
from ..stages.services import CALLERS, by_init_script

# Where programs are that no unit starts; Xorg is in the last one on Debian.
_PROGRAMS = (
    "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "usr/games", "usr/libexec",
    "usr/lib/xorg",
)  # fmt: skip
_PATTERN = "*?["
_LONGEST_TIMEOUT_S = 600
# A file can have thousands of names, and what was meant by one takes 20 ms to find.
_MOST = 20


def doubts(
    host: Host, path: str, content: bytes, *, about_processes: bool = True
) -> tuple[Mistake, ...]:
    """The doubts about a file in the order of its lines; its mistakes are left out.

    It applies over the installed default.yaml. What this machine does not answer raises none.
    about_processes: whether all processes and programs of the host are looked through.
    """
    if len(content) > load.MAX_BYTES:
        return ()
    entries = text.placed(content.decode("utf-8-sig", "replace"))
    own = {key: one.value for key, one in entries.items()}
    config = load.configuration_with(host, own)
    found = chain(
        _waits(path, entries, config),
        _services(host, path, entries),
        _console(host, path, entries),
        _terminate(host, path, entries, about_processes),
        _on_refusal(host, path, entries),
    )
    return tuple(sorted(islice(found, _MOST), key=lambda one: (one.line, one.column)))


def _at(path: str, entry: Entry, what: str, item: int | None = None) -> Mistake:
    place = entry.value_at if item is None else entry.items_at[item]
    return Mistake(path, what, *place)


# -- waits


def _waits(path: str, entries: dict[str, Entry], config: Config) -> Iterator[Mistake]:
    """The waits that timeout_s, the time of a whole event, makes shorter."""
    real, asked = config.within_timeout().holders, config.holders
    for key in ("wait_s", "grace_s"):
        entry = entries.get(f"holders.{key}")
        had, wanted = getattr(real, key), getattr(asked, key)
        if entry is None or had >= wanted:
            continue
        needed = math.ceil(config.timeout_s * wanted / had)
        do = f"set `timeout_s: {needed}`"
        if needed > _LONGEST_TIMEOUT_S:
            most = round(had * _LONGEST_TIMEOUT_S / config.timeout_s, 1)
            do = f"the most is {most:g}, with timeout_s 600"
        within = f"within timeout_s ({config.timeout_s})"
        yield _at(path, entry, f"'holders.{key}' gets at most {round(had, 1):g} s {within}; {do}")


# -- services


def _services(host: Host, path: str, entries: dict[str, Entry]) -> Iterator[Mistake]:
    entry = entries.get("services")
    if entry is None or not isinstance(entry.value, tuple):
        return
    services: tuple[Service, ...] = entry.value
    units = _units(host, services)
    for number, one in enumerate(services):
        if one.stop:
            what = _about_commands(host, one)
        elif units is None:
            what = _about_init_script(host, one)
        else:
            what = _about_unit(host, units.get(one.name))
        what = what or _about_screen(host, one)
        if what:
            yield _at(path, entry, what, number)


def _units(host: Host, services: tuple[Service, ...]) -> dict[str, systemd.Unit] | None:
    """The units of systemd among them by their names; None where systemd does not run."""
    names = [one.name for one in services if not one.stop]
    if not systemd.booted(host):
        return None if host.complete else {}
    try:
        return dict(zip(names, systemd.units(host, names)))
    except HookError:
        return {}


def _about_init_script(host: Host, service: Service) -> str:
    try:
        by_init_script(host, service)
    except HookError as error:
        return f"{error.text}: {error.hint}"
    return ""


def _about_unit(host: Host, unit: systemd.Unit | None) -> str:
    if unit is None:
        return ""
    if unit.loaded == "not-found":
        near = systemd.similar_unit(host, unit.name)
        return f"there is no unit {unit.name} on this host" + (
            f", did you mean {near}?" if near else ": remove it, or install what has it"
        )
    if unit.name in CALLERS:
        return f"{unit.name} starts the VM and cannot be stopped for it: remove it"
    if not unit.startable:
        return f"{unit.name} is {unit.loaded}, so it is never stopped: remove it"
    return ""


def _about_screen(host: Host, service: Service) -> str:
    """About a display manager that is to run beside the VM where no GPU is left for it."""
    manager = service.name.removesuffix(".service") in systemd.MANAGER_NAMES
    if service.start_again != DETACHED or not manager or len(pci.displays(host)) != 1:
        return ""
    return f"{service.name} would have no GPU to start on while the VM runs: remove `start_again`"


def _about_commands(host: Host, service: Service) -> str:
    for words in (service.active, service.stop, service.start):
        if host.complete and not host.exists(words[0].lstrip("/")):
            return f"there is no program {words[0]} on this host, for {service.name}"
    return ""


def _on_refusal(host: Host, path: str, entries: dict[str, Entry]) -> Iterator[Mistake]:
    entry = entries.get("on_refusal")
    program = str(entry.value).split()[0] if entry and entry.value != NONE else ""
    if entry and program and host.complete and not host.exists(program.lstrip("/")):
        yield _at(path, entry, f"there is no program {program} on this host")


# -- processes


def _terminate(
    host: Host, path: str, entries: dict[str, Entry], look: bool
) -> Iterator[Mistake]:
    entry = entries.get("holders.terminate")
    if entry is None or not isinstance(entry.value, tuple):
        return
    known: set[str] = set()
    for number, name in enumerate(entry.value):
        if holder_kill.is_never_ended(name):
            what = f"{name} is never ended: remove it, or write `session` for a login session"
            yield _at(path, entry, what, number)
            continue
        if name == holder_kill.SESSION or any(one in name for one in _PATTERN):
            continue
        known = known or (_known_names(host) if look and host.complete else set())
        if known and name not in known and name[:COMM] not in known:
            near = nearest(name, known)
            meant = f", did you mean {near}?" if near else ": remove it, or correct it"
            what = f"no process, unit or program of this host has the name {name}{meant}"
            yield _at(path, entry, what, number)


def _known_names(host: Host) -> set[str]:
    """What processes are and may be called, and the units that they may be in."""
    known: set[str] = set()
    try:
        for pid in processes.pids(host):
            known.add(command_of(host, pid))
            known.update(cgroup_of(host, pid).split("/"))
        known.update(systemd.unit_files(host))
        for folder in _PROGRAMS:
            known.update(one[:COMM] for one in host.list(folder))
    except HookError:
        pass  # a directory that cannot be read: fewer names to compare with
    known.update([one.rpartition(".")[0] for one in known if one.endswith(".service")])
    return known - {""}


# -- GPUs


def _console(host: Host, path: str, entries: dict[str, Entry]) -> Iterator[Mistake]:
    entry = entries.get("keep_console")
    if entry is None or entry.value in ("auto", "never"):
        return
    address = str(entry.value)
    gpus = pci.displays(host)
    if address not in gpus:
        there = f"they are {' and '.join(gpus)}" if gpus else "it has none"
        yield _at(path, entry, f"{address} is no GPU of this host: {there}")
