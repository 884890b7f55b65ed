"""kmscon: a console in user space, one unit of systemd for each terminal, or one for all.

Only loaded where it runs (console.kmscon_cgroups).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .console import kmscon_cgroups
from .host import Host


@dataclass(frozen=True)
class Kmscon:
    """A unit of kmscon that runs. tty is its terminal, such as "tty1", or "" for all."""

    unit: str
    tty: str
    pids: tuple[int, ...]


def kmscons(host: Host) -> tuple[Kmscon, ...]:
    """The units of kmscon that run. Raises HostError."""
    found = []
    for cgroup in kmscon_cgroups(host):
        pids = (host.read(f"{cgroup}/cgroup.procs") or "").split()
        if pids:  # or it has just ended
            unit = cgroup.rpartition("/")[2]
            tty = unit.removesuffix(".service").partition("@")[2]
            found.append(Kmscon(unit, tty, tuple(int(pid) for pid in pids if pid.isdigit())))
    return tuple(found)


def phrase(found: Iterable[Kmscon]) -> str:
    """Units of kmscon as a phrase such as "kmscon on tty1 and tty2"."""
    ttys = [one.tty for one in found if one.tty]
    return "kmscon" + (f" on {' and '.join(ttys)}" if ttys else "")
