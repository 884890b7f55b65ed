"""systemd and systemctl: units with their states and jobs.

The texts and exit statuses are those of systemctl 247, 252 and 257, seen in the lab.
Each unit is a file systemd/NAME in the machine's directory:

    load          LoadState
    active        ActiveState
    job           "start" or "stop" while one is queued or runs
    aliases       other names of the unit
    triggers      units that start this one, such as its socket
    needed_by     units that stop with it (RequiredBy)
    stop_s        how long it takes to stop
    waits         a start job does not run: it is ordered after something that is not up
    fails         it fails as soon as it is started
    no_condition  a Condition...= in it does not hold, so a start does nothing
    burst         how often it may be started (StartLimitBurst=)
    by_hand       whether it may be stopped by hand (RefuseManualStop=)
    transient     a program made it, a scope or by systemd-run; once it has stopped it is unknown

fake/systemd/NAME holds how often it was started, and since when it is stopping.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from vfio_console_hook.errors import HostError

from . import kmscon, processes
from .tree import Tree

NEVER = 1e9


@dataclass
class Unit:
    """A unit; see above."""

    load: str = "loaded"
    active: str = "inactive"
    job: str = ""
    aliases: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    needed_by: tuple[str, ...] = ()
    stop_s: float = 0
    waits: bool = False
    fails: bool = False
    no_condition: bool = False
    burst: int = 5
    by_hand: bool = True
    transient: bool = False


def install(tree: Tree) -> None:
    """Let systemd run the machine."""
    tree.make_directory("run/systemd/system")
    tree.put("usr/bin/systemctl", "")
    put(tree, "shutdown.target", Unit())


def put(tree: Tree, name: str, unit: Unit) -> None:
    """Add a unit with its file, or change it."""
    tree.put(f"systemd/{name}", json.dumps(asdict(unit)))
    # src/core/unit.c, unit_make_transient, and unit_unlink_state_files
    folder = "run/systemd/transient" if unit.transient else "usr/lib/systemd/system"
    if unit.transient and unit.active == "inactive":
        tree.remove(f"{folder}/{name}")
        tree.remove(f"systemd/{name}")
    elif unit.load not in ("not-found", "masked"):
        tree.put(f"{folder}/{name}", "[Unit]")


def state(tree: Tree, name: str) -> str:
    """ActiveState of a unit, with its job if it has one, such as "inactive start"."""
    unit = _settled(tree, name)
    return f"{unit.active} {unit.job}".strip()


def shut_down(tree: Tree) -> None:
    """`systemctl poweroff`: the first thing is that shutdown.target is queued."""
    put(tree, "shutdown.target", Unit(job="start"))


def systemctl(tree: Tree, command: tuple[str, ...]) -> str:
    """What the command prints. Raises HostError, as Host.run() does, when it fails."""
    verb, *words = (word for word in command[1:] if word != "--")
    names = [word for word in words if not word.startswith("--")]
    errors: list[tuple[int, str]] = []
    blocks = []
    for given in names:
        name = _resolve(tree, given if "." in given else f"{given}.service")
        if "@." in name:
            raise HostError(
                f"{' '.join(command)} failed: Failed to get properties: Unit name {name} is neither"
                " a valid invocation ID nor unit name."
            )
        try:
            if verb == "show":
                blocks.append(_show(tree, name))
            else:
                {"start": _start, "stop": _stop, "reset-failed": _reset}[verb](tree, name)
        except _SystemctlError as error:
            errors.append((error.status, error.text))
    if errors:
        complaint = "\n".join(text for _, text in errors)
        raise HostError(f"{' '.join(command)} failed: {complaint}")
    if (
        verb != "show"
        and "--no-block" not in words
        and any(_settled(tree, name).job for name in names)
    ):
        raise HostError(f"{' '.join(command)} did not end within 10 s")
    return "\n\n".join(blocks)


class _SystemctlError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def _resolve(tree: Tree, name: str) -> str:
    for one in tree.list("systemd"):
        if one == name or name in _read(tree, one).aliases:
            return one
    return name


def _read(tree: Tree, name: str) -> Unit:
    values = json.loads(tree.read(f"systemd/{name}") or '{"load": "not-found"}')
    for key, value in values.items():
        values[key] = tuple(value) if isinstance(value, list) else value
    return Unit(**values)


def _settled(tree: Tree, name: str) -> Unit:
    """The unit as it is now that time has passed."""
    unit = _read(tree, name)
    since = float(tree.read(f"fake/systemd/{name}/stopping") or 0)
    if unit.active == "deactivating" and time.monotonic() >= since + unit.stop_s:
        wanted, unit.job, unit.active = unit.job, "", "inactive"
        put(tree, name, unit)
        _end_processes(tree, name)
        if wanted == "start":
            _start(tree, name)
            unit = _read(tree, name)
    return unit


def _end_processes(tree: Tree, name: str) -> None:
    """The processes of its cgroup end with a service: KillMode= is control-group by default.

    The kernel shows no empty cgroup that systemd has removed (src/core/cgroup.c,
    unit_prune_cgroup).
    """
    for pid in (pid for pid in tree.list("proc") if pid.isdigit()):
        if f"/{name}/" in f"{tree.read(f'proc/{pid}/cgroup') or ''}/":
            processes.end(tree, int(pid))
    for path in ("system.slice", f"system.slice/{kmscon.SLICE}"):
        tree.remove(f"sys/fs/cgroup/{path}/{name}")


def _show(tree: Tree, name: str) -> str:
    """Properties in systemd's order; a job is an object with a number, none is nothing."""
    unit = _settled(tree, name)
    return "\n".join((
        f"Id={name}", f"RequiredBy={' '.join(unit.needed_by)}", "RequisiteOf=", "BoundBy=",
        "ConsistsOf=", f"TriggeredBy={' '.join(unit.triggers)}", f"LoadState={unit.load}",
        f"ActiveState={unit.active}", f"Job={595 if unit.job else ''}",
    ))  # fmt: skip


def _start(tree: Tree, name: str) -> None:
    """src/core/dbus-manager.c, method_start_unit, and what unit_start() does then."""
    unit = _settled(tree, name)
    if unit.load != "loaded":
        reasons = {"not-found": "not found", "masked": "is masked"}
        raise _SystemctlError(
            5 if unit.load == "not-found" else 1,
            f"Failed to start {name}: Unit {name}"
            f" {reasons.get(unit.load, 'has a bad unit file setting')}.",
        )
    if _read(tree, "shutdown.target").job:
        raise _SystemctlError(
            4,
            f"Failed to start {name}: Transaction for {name}/start is destructive (swap.target has"
            " 'stop' job queued, but 'start' is included in transaction).\nSee system logs and"
            f" 'systemctl status {name}' for details.",
        )
    if unit.active == "deactivating" or unit.waits:
        unit.job = "start"  # in place of the stop job, if there is one
    elif unit.active not in ("inactive", "failed"):
        unit.job = ""  # the start job replaces a stop job, and has nothing to do
    elif not unit.no_condition:
        # src/core/socket.c, socket_start: "Socket service already active, refusing."
        theirs = [one for one in tree.list("systemd") if name in _read(tree, one).triggers]
        refused = any(_read(tree, one).active not in ("inactive", "failed") for one in theirs)
        # src/core/unit.c, unit_test_start_limit
        starts = int(tree.read(f"fake/systemd/{name}/starts") or 0)
        tree.put(f"fake/systemd/{name}/starts", str(starts + 1))
        unit.active = "failed" if unit.fails or refused or starts >= unit.burst else "active"
        unit.job = ""
        if unit.active == "active" and name.startswith("kmscon"):
            kmscon.begin(tree, name)
    put(tree, name, unit)


def _stop(tree: Tree, name: str) -> None:
    unit = _settled(tree, name)
    if unit.load == "not-found" and unit.active == "inactive":
        raise _SystemctlError(5, f"Failed to stop {name}: Unit {name} not loaded.")
    if not unit.by_hand:
        raise _SystemctlError(
            4,
            f"Failed to stop {name}: Operation refused, unit {name} may be requested by dependency"
            " only (it is configured to refuse manual start/stop).\nSee system logs and"
            f" 'systemctl status {name}' for details.",
        )
    unit.job = ""  # a queued start is cancelled
    if unit.active not in ("inactive", "failed", "deactivating"):
        tree.put(f"fake/systemd/{name}/stopping", str(time.monotonic()))
        unit.active, unit.job = ("deactivating", "stop") if unit.stop_s else ("inactive", "")
    put(tree, name, unit)
    if unit.active == "inactive":
        _end_processes(tree, name)
    for one in unit.needed_by:
        if _read(tree, one).active not in ("inactive", "failed"):
            _stop(tree, one)


def _reset(tree: Tree, name: str) -> None:
    """A unit that is in memory for no other reason than that we ask is "not loaded"."""
    unit = _settled(tree, name)
    starts = f"fake/systemd/{name}/starts"
    if unit.load != "loaded" or (unit.active == "inactive" and not tree.exists(starts)):
        raise _SystemctlError(
            1, f"Failed to reset failed state of unit {name}: Unit {name} not loaded."
        )
    tree.remove(starts)
    if unit.active == "failed":
        unit.active = "inactive"
    put(tree, name, unit)
