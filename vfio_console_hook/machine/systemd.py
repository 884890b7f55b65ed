"""systemd: the state of its units, and which of them stop together.

Only output of `systemctl` is used that is the same from systemd 247 to 257: `show` prints a
block of KEY=VALUE for each unit, with an empty line between two, under the unit's own name
even when the argument is an alias, and a unit that does not exist has the LoadState
"not-found".
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import HostError, nearest
from .host import Host

# Where units come from; systemd.unit(5), "Unit File Load Path".
_UNIT_FILES = (
    "etc/systemd/system", "run/systemd/system", "run/systemd/generator",
    "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system",
)  # fmt: skip

# Where a running unit has its cgroup: with one hierarchy, and with the older ones.
_CGROUPS = ("sys/fs/cgroup", "sys/fs/cgroup/systemd", "sys/fs/cgroup/unified")

# Units that a program has made, which nothing else can start again.
_TRANSIENT = "run/systemd/transient"

DISPLAY_MANAGER = "display-manager.service"
MANAGER_NAMES = (
    *("display-manager", "gdm", "gdm3", "greetd", "lightdm", "lxdm", "ly", "plasmalogin", "sddm"),
    *("slim", "xdm"),
)
"""What the units and init scripts of display managers are called."""

# Those that stop when a unit stops: the inverse of Requires=, Requisite=, BindsTo= and
# PartOf= (systemd.unit(5)). systemd does not start them again together with it.
_DEPENDENTS = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf")
# A socket, timer or path unit that starts a service. It stays up when the service stops.
_TRIGGERS = "TriggeredBy"
_PROPERTIES = ("Id", "LoadState", "ActiveState", "Job", _TRIGGERS, *_DEPENDENTS)

# Its start is queued as soon as any kind of shutdown begins; systemd's own state "stopping"
# means the same (src/core/manager.c, manager_state).
_SHUTDOWN = "shutdown.target"

# systemd answers from memory; only one that is stuck takes longer.
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Unit:
    """A unit: its own name, LoadState, ActiveState, and the units that start or stop with it."""

    name: str
    loaded: str
    active: str
    queued: bool
    triggers: tuple[str, ...]
    dependents: tuple[str, ...]

    @property
    def startable(self) -> bool:
        """Whether systemd would start it: it has a unit file and is not masked."""
        return self.loaded == "loaded"

    @property
    def running(self) -> bool:
        """Whether it is up, starting or stopping.

        An inactive unit with a job is starting: a stop would leave no job.
        """
        return self.queued or self.active not in ("inactive", "failed", "maintenance")

    @property
    def up(self) -> bool:
        """Whether it is up, with no job that changes that."""
        return self.active in ("active", "reloading", "refreshing") and not self.queued


def booted(host: Host) -> bool:
    """Whether systemd runs this machine; sd_booted(3)."""
    return host.exists("run/systemd/system")


def program_path(host: Host, name: str = "systemctl") -> str:
    """The full path of a program of systemd: older distributions have /bin apart."""
    # PATH is not searched: libvirtd runs hooks with a short one.
    there = [folder for folder in ("usr/bin", "bin") if host.exists(f"{folder}/{name}")]
    return f"/{there[0] if there else 'usr/bin'}/{name}"


def systemctl(host: Host, verb: str, *words: str) -> str:
    """The output of a systemctl command. Raises HostError when it fails."""
    systemctl = program_path(host)
    if not host.exists(systemctl[1:]):
        raise HostError(f"systemd runs this machine, and there is no {systemctl}")
    command = (systemctl, verb, *words)
    try:
        return host.run(*command, timeout_s=_TIMEOUT_S)
    except HostError as error:
        # The many arguments would hide systemd's reason.
        text = error.text.replace(" ".join(command), f"`systemctl {verb}`")
        raise HostError(text, error.hint) from error


def units(host: Host, names: Iterable[str]) -> tuple[Unit, ...]:
    """The state of these units, in their order, by one call of systemctl. Raises HostError."""
    names = tuple(names)
    if not names:
        return ()
    output = systemctl(host, "show", f"--property={','.join(_PROPERTIES)}", "--", *names)
    blocks = [_unit(block) for block in output.split("\n\n")]
    if len(blocks) != len(names):
        raise HostError(f"systemctl printed {len(blocks)} units instead of {len(names)}")
    return tuple(blocks)


def _unit(block: str) -> Unit:
    shown = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    dependents = [name for key in _DEPENDENTS for name in shown.get(key, "").split()]
    return Unit(
        name=shown.get("Id", ""),
        loaded=shown.get("LoadState", ""),
        active=shown.get("ActiveState", ""),
        queued=shown.get("Job", "") not in ("", "0"),
        triggers=tuple(shown.get(_TRIGGERS, "").split()),
        dependents=tuple(dict.fromkeys(dependents)),
    )


def stopped_with(host: Host, unit: Unit) -> tuple[str, ...]:
    """The names of a unit and all running units that stop with it, in the order to start them.

    Transient units are none of them: scopes, and what systemd-run has made.

    Those that would start it again, such as its socket, come before it: a socket does not
    start while its service runs. Those that depend on it come after it.
    """
    before: dict[str, None] = {}
    after: dict[str, None] = {}
    known = {unit.name}
    found: tuple[Unit, ...] = (unit,)
    while found:
        triggers = [name for one in found for name in one.triggers]
        asked = [name for one in found for name in (*one.triggers, *one.dependents)]
        asked = [name for name in asked if not host.exists(f"{_TRANSIENT}/{name}")]
        asked = [name for name in dict.fromkeys(asked) if name not in known]
        known.update(asked)
        found = tuple(one for one in units(host, asked) if one.running and one.startable)
        for one in found:
            (before if one.name in triggers else after)[one.name] = None
    return (*before, unit.name, *after)


def going_down(host: Host, names: Iterable[str]) -> tuple[bool, tuple[Unit, ...]]:
    """Whether the machine is shutting down, and the state of these units. Raises HostError."""
    shutdown, *rest = units(host, (_SHUTDOWN, *names))
    return shutdown.running, tuple(rest)


def has_cgroup(host: Host, path: str) -> bool:
    """Whether there is a cgroup, such as "system.slice/gdm.service": while the unit runs."""
    return any(host.exists(f"{top}/{path}") for top in _CGROUPS)


def unit_files(host: Host) -> set[str]:
    """The names of all unit files that are installed. Raises HostError."""
    return {file for folder in _UNIT_FILES for file in host.list(folder)}


def similar_unit(host: Host, name: str) -> str:
    """The installed service whose name is most like this one, or ""."""
    # Without the ending, which makes any two names alike.
    stems = sorted(file[:-8] for file in unit_files(host) if file.endswith(".service"))
    near = nearest(name.rpartition(".")[0], stems)
    return f"{near}.service" if near else ""


def display_managers(host: Host) -> tuple[str, ...]:
    """The names of the unit that starts the desktop: display-manager.service is only an alias."""
    found = []
    path = f"etc/systemd/system/{DISPLAY_MANAGER}"
    # On Debian it leads to gdm3.service, which is a link to gdm.service.
    for _ in range(4):
        try:
            target = host.readlink(path)
        except HostError:
            break
        if target is None:
            break
        path = os.path.normpath(os.path.join(os.path.dirname(f"/{path}"), target))[1:]
        found.append(os.path.basename(path))
    return tuple(found)
