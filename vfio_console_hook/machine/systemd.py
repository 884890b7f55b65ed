"""systemd: how its units are, and what of them goes together.

Only what `systemctl` says is used, which has been the same from systemd 247 to 257:
`show` prints a block of KEY=VALUE for each unit, with an empty line between two,
under the unit's own name even if it was asked for by an alias, and a unit that does
not exist is one whose LoadState is "not-found".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import HostError
from .host import Host

# Where units come from; systemd.unit(5), "Unit File Load Path".
_UNIT_FILES = (
    "etc/systemd/system", "run/systemd/system", "run/systemd/generator",
    "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system",
)  # fmt: skip

# Those that stop when a unit stops: the inverse of Requires=, Requisite=, BindsTo= and
# PartOf= (systemd.unit(5)). systemd does not start them again together with it.
_DEPENDENTS = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf")
# A socket, a timer or a path that starts a service. Stopping the service leaves it be.
_TRIGGERS = "TriggeredBy"
_PROPERTIES = ("Id", "LoadState", "ActiveState", "Job", _TRIGGERS, *_DEPENDENTS)

# Its start is queued as soon as the machine is to go down, in any way; so does systemd
# itself tell that it is "stopping" (src/core/manager.c, manager_state).
_SHUTDOWN = "shutdown.target"

# It answers from memory; only a systemd that is stuck takes longer.
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Unit:
    """A unit as systemd sees it: its own name, LoadState, ActiveState, and what it is tied to."""

    name: str
    loaded: str
    active: str
    queued: bool
    triggers: tuple[str, ...]
    dependents: tuple[str, ...]

    @property
    def startable(self) -> bool:
        """Whether systemd has a file for it and would start it: it is not masked, for one."""
        return self.loaded == "loaded"

    @property
    def running(self) -> bool:
        """Whether it is up, or on its way up or down.

        An inactive unit with a job is about to start: a stop would not be queued for it.
        """
        return self.queued or self.active not in ("inactive", "failed", "maintenance")

    @property
    def up(self) -> bool:
        """Whether it is there to stay."""
        return self.active in ("active", "reloading", "refreshing") and not self.queued


def booted(host: Host) -> bool:
    """Whether systemd runs this machine; sd_booted(3)."""
    return host.exists("run/systemd/system")


def program(host: Host, name: str = "systemctl") -> str:
    """The full path of a program of systemd: older distributions have /bin apart."""
    # libvirtd gives hooks a short PATH, so it is not searched.
    there = [folder for folder in ("usr/bin", "bin") if host.exists(f"{folder}/{name}")]
    return f"/{there[0] if there else 'usr/bin'}/{name}"


def control(host: Host, verb: str, *words: str) -> str:
    """The output of a systemctl command. Raises HostError when it fails."""
    systemctl = program(host)
    if not host.exists(systemctl[1:]):
        raise HostError(f"systemd runs this machine, and there is no {systemctl}")
    command = (systemctl, verb, *words)
    try:
        return host.run(*command, timeout_s=_TIMEOUT_S)
    except HostError as error:
        # The many words would hide what systemd says.
        said = error.text.replace(" ".join(command), f"`systemctl {verb}`")
        raise HostError(said, error.hint) from error


def units(host: Host, names: Iterable[str]) -> tuple[Unit, ...]:
    """How these units are, in their order; all are asked for at once. Raises HostError."""
    names = tuple(names)
    if not names:
        return ()
    output = control(host, "show", f"--property={','.join(_PROPERTIES)}", "--", *names)
    blocks = [_unit(block) for block in output.split("\n\n")]
    if len(blocks) != len(names):
        raise HostError(f"systemctl tells of {len(blocks)} units instead of {len(names)}")
    return tuple(blocks)


def _unit(block: str) -> Unit:
    said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    dependents = [name for key in _DEPENDENTS for name in said.get(key, "").split()]
    return Unit(
        name=said.get("Id", ""),
        loaded=said.get("LoadState", ""),
        active=said.get("ActiveState", ""),
        queued=said.get("Job", "") not in ("", "0"),
        triggers=tuple(said.get(_TRIGGERS, "").split()),
        dependents=tuple(dict.fromkeys(dependents)),
    )


def with_bound(host: Host, unit: Unit) -> tuple[str, ...]:
    """The names of all running units that go down with a unit, in the order to start them.

    Those that would bring it back at once, such as its socket, come before it: a socket
    refuses to start while its service runs. Those that need it come after it.
    """
    before: dict[str, None] = {}
    after: dict[str, None] = {}
    known = {unit.name}
    found: tuple[Unit, ...] = (unit,)
    while found:
        triggers = [name for one in found for name in one.triggers]
        asked = [name for one in found for name in (*one.triggers, *one.dependents)]
        asked = [name for name in dict.fromkeys(asked) if name not in known]
        known.update(asked)
        found = tuple(one for one in units(host, asked) if one.running and one.startable)
        for one in found:
            (before if one.name in triggers else after)[one.name] = None
    return (*before, unit.name, *after)


def going_down(host: Host, names: Iterable[str]) -> tuple[bool, tuple[Unit, ...]]:
    """Whether the machine is shutting down, and how these units are. Raises HostError."""
    shutdown, *rest = units(host, (_SHUTDOWN, *names))
    return shutdown.running, tuple(rest)


def near(host: Host, name: str) -> str:
    """The installed unit whose name is most like this one, or ""."""
    import difflib  # only for a name that is probably a mistake

    there = {file for folder in _UNIT_FILES for file in host.list(folder)}
    services = sorted(file for file in there if file.endswith(".service"))
    return (difflib.get_close_matches(name, services, n=1) or [""])[0]
