"""Checks of libvirt's daemon: does it run, does it know of the hook, has it called it."""

from __future__ import annotations

import calendar
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ... import domain
from ...errors import HookError, HostError
from ...machine import processes, systemd
from ...machine.host import Host
from ..status import overview
from ..terminal import moment
from .finding import FAIL, NOT_RECORDED, PASS, WARN, Check, Finding, Subject, gpus_among, unrecorded
from .gates import entries, gates
from .unknown import titled

# Who may handle QEMU's VMs: the modular daemon, or the one for everything. Each writes
# /run/NAME.pid (src/remote/remote_daemon.c, daemonPidFilePath).
DAEMONS = ("virtqemud", "libvirtd")
SOCKETS = tuple(f"{name}.socket" for name in DAEMONS)
_SBIN = ("usr/sbin", "usr/bin")
# Clock ticks a second in /proc/PID/stat: USER_HZ, which is 100 but on Alpha (proc(5)).
_TICKS = 100
# Both the start of a daemon and the start of the host are told as whole seconds or so.
_SLACK_S = 2.0
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Daemon:
    """A running daemon; started is in seconds since the epoch."""

    name: str
    pid: int
    started: float


def booted(host: Host) -> float | None:
    """When the host was started, in seconds since the epoch; None if /proc/stat does not say."""
    match = re.search(r"^btime (\d+)", host.read("proc/stat") or "", re.MULTILINE)
    return float(match[1]) if match else None


def running(host: Host) -> tuple[Daemon, ...]:
    """The host's own daemons that run now, the one that has QEMU's VMs first. Raises HostError."""
    boot = booted(host)
    if boot is None:
        raise HostError("/proc/stat does not tell when the host was started")
    found = [_by_pid_file(host, name) for name in DAEMONS]
    if not any(found):
        found = [_by_name(host, name) for name in DAEMONS]
    return tuple(
        Daemon(name, process.pid, boot + process.started / _TICKS)
        for name, process in zip(DAEMONS, found)
        if process is not None
    )


def _by_pid_file(host: Host, name: str) -> processes.Process | None:
    pid = processes.pid_of(host.read(f"run/{name}.pid") or "")
    # The file of a daemon that was killed stays.
    return processes.find(host, pid) if pid is not None and _is(host, pid, name) else None


def _by_name(host: Host, name: str) -> processes.Process | None:
    for pid in processes.pids(host):
        if _is(host, pid, name) and _of_the_host(host, pid):
            return processes.find(host, pid)
    return None


def _is(host: Host, pid: int, name: str) -> bool:
    try:
        return host.read(f"proc/{pid}/comm") == name
    except HostError:
        return False  # it has just ended


def _of_the_host(host: Host, pid: int) -> bool:
    """Whether it is neither a user's own daemon (qemu:///session) nor one in a container."""
    try:
        status = host.read(f"proc/{pid}/status") or ""
    except HostError:
        return False
    user = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    # proc(5): one number for each PID namespace that it is in.
    numbers = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
    contained = numbers is not None and len(numbers[1].split()) > 1
    return not contained and (user is None or user[1] == "0")


def listening(host: Host) -> tuple[str, ...]:
    """The sockets on which systemd waits to start a daemon. Raises HostError."""
    if host.stat("run/systemd/system") is None:
        return ()
    return tuple(unit.name for unit in systemd.units(host, SOCKETS) if unit.active == "active")


@titled("daemon")
def daemon(subject: Subject) -> Iterator[Finding]:
    """Which daemon has QEMU's VMs, and whether it runs or will when it is needed."""
    host = subject.host
    if unrecorded(host, "proc/stat"):
        yield Finding(WARN, "daemon", NOT_RECORDED)
        return
    found = running(host)
    for one in found:
        text = f"{one.name} runs since {moment(one.started)} (process {one.pid})"
        yield Finding(PASS, "daemon", text)
    if len(found) > 1:
        yield Finding(
            WARN,
            "daemon",
            "both virtqemud and libvirtd run: VMs of the one are not known to the other",
            "use one of them: https://libvirt.org/daemons.html tells how to switch",
        )
    if found:
        return
    sockets = listening(host)
    if sockets:
        text = f"it does not run now; systemd starts it when asked ({sockets[0]})"
        yield Finding(PASS, "daemon", text)
        return
    there = next((name for name in DAEMONS if _installed(host, name)), None)
    text = "neither virtqemud nor libvirtd runs"
    if there is None:
        yield Finding(FAIL, "daemon", f"{text}, and none is installed", "install libvirt")
        return
    advice = f"systemctl start {there}"
    if host.stat("run/systemd/system") is None:
        advice = f"start {there}, such as with `rc-service {there} start`"
    yield Finding(FAIL, "daemon", text, advice)


def _installed(host: Host, name: str) -> bool:
    return any(host.stat(f"{folder}/{name}") is not None for folder in _SBIN)


@titled("hook known to the daemon")
def known(subject: Subject) -> Iterator[Finding]:
    """Whether the daemon has looked for hooks since ours is there.

    It looks when it starts and when it is reloaded, and remembers only whether there
    was any hook of QEMU's (src/util/virhook.c, virHookInitialize and virHookPresent).
    """
    host = subject.host
    ours = [one for one in gates(host) if one.runs]
    if unrecorded(host, "proc/stat"):
        return  # the check of the daemon tells
    daemons = running(host)
    if not ours or not daemons:
        return
    one = daemons[0]
    title = f"hook known to {one.name}"
    since = min(gate.since for gate in ours)
    proof = _proof(host, one, since)
    if proof:
        yield Finding(PASS, title, proof)
        return
    reloaded = _changed_state(host, one.name)
    text = (
        f"{one.name} has run since {moment(one.started)}, and the hook is there only since"
        f" {moment(since)}"
    )
    by_systemd = host.stat("run/systemd/system") is not None
    advice = f"systemctl reload {one.name}" if by_systemd else f"kill -HUP {one.pid}"
    if reloaded is None:
        text += "; whether it was told to look for it cannot be seen"
        yield Finding(WARN, title, text, advice)
    else:
        text += "; nobody has told it to look for hooks again"
        yield Finding(FAIL, title, text, advice)


def _proof(host: Host, one: Daemon, since: float) -> str:
    """Why the daemon knows that there is a hook, or ""."""
    if one.started + _SLACK_S >= since:
        return "it was started after the hook was installed"
    earlier = [hook for hook in entries(host) if hook.runs and hook.since <= one.started]
    if earlier:
        return f"/{earlier[0].path} was there when it started"
    heartbeat = last_event(host)
    if heartbeat is not None and heartbeat.when > one.started:
        return "it has called it already"
    reloaded = _changed_state(host, one.name)
    if reloaded is not None and reloaded + _SLACK_S >= since:
        return f"it was reloaded at {moment(reloaded)}"
    return ""


def ask_state(host: Host, name: str) -> tuple[str, ...]:
    """The command that tells when a unit last changed its state, in UTC."""
    # --timestamp=utc is known from systemd 247 on, and not to all that call themselves so.
    show = ("show", "--property=StateChangeTimestamp", f"{name}.service")
    return ("/usr/bin/env", "TZ=UTC", systemd.program_path(host), *show)


def _changed_state(host: Host, name: str) -> float | None:
    """When the daemon's unit last became active or was reloaded; None where nobody knows.

    A reload is two changes of state, to "reloading" and back, while ActiveEnterTimestamp
    stays that of the start (systemd src/core/unit.c, unit_notify).
    """
    if host.stat("run/systemd/system") is None:
        return None
    try:
        said = host.run(*ask_state(host, name), timeout_s=_TIMEOUT_S)
    except HostError:
        return None
    # "StateChangeTimestamp=Sat 2025-11-22 18:28:01 UTC", with nothing behind "=" if never.
    numbers = re.search(r"=\w+ (\d+)-(\d+)-(\d+) (\d+):(\d+):(\d+) UTC", said)
    return float(calendar.timegm(tuple(map(int, numbers.groups())))) if numbers else None


@dataclass(frozen=True)
class Heartbeat:
    """The last event of libvirt's that came to the hook. when is in seconds since the epoch."""

    when: float
    vm: str
    event: str


# What people do is remembered, too.
_OF_LIBVIRT = ("prepare", "start", "started", "reconnect", "release")


def last_event(host: Host) -> Heartbeat | None:
    """What was last heard of libvirt in this boot. Raises HostError."""
    found = [
        Heartbeat(event.time, one.vm, event.kind)
        for one in overview.histories(host)
        for event in one.events
        if event.kind in _OF_LIBVIRT
    ]
    return max(found, key=lambda one: one.when, default=None)


@titled("last call of the hook")
def heartbeat(subject: Subject) -> Iterator[Finding]:
    """Whether libvirt has really called the hook since the host was started."""
    host, title = subject.host, "last call of the hook"
    installed = [gate.since for gate in gates(host) if gate.runs]
    if not installed:
        return
    last = last_event(host)
    if last is not None:
        yield Finding(PASS, title, f"{moment(last.when)}, {last.event} of {last.vm}")
        return
    for name in _with_gpu_since(subject, min(installed)):
        yield Finding(
            WARN,
            title,
            f"VM {name} runs with a GPU, and libvirt has not called the hook since the host was"
            " started",
            "see the other findings about the hook and the daemon; then start the VM anew",
        )
        return
    yield Finding(PASS, title, "none yet since the host was started")


def _with_gpu_since(subject: Subject, installed: float) -> Iterator[str]:
    """The VMs that run with a GPU of the host, and were started with the hook in place."""
    for vm in subject.vms:
        started = _started(subject.host, vm.name)
        if not vm.live or (started is not None and started < installed):
            continue
        try:
            devices = domain.hostdev_addresses(vm.live.encode("utf-8", "surrogateescape"))
            if gpus_among(subject.host, devices):
                yield vm.name
        except HookError:
            continue  # another check tells that its XML or a device cannot be read


def _started(host: Host, vm: str) -> float | None:
    """When the QEMU of a VM was started, by the file that libvirt keeps of it, if that is known.

    Source: libvirt src/qemu/qemu_process.c, qemuProcessLaunch: virPidFileConstructPath.
    """
    boot = booted(host)
    if os.sep in vm or boot is None:
        return None
    try:
        pid = processes.pid_of(host.read(f"run/libvirt/qemu/{vm}.pid") or "")
    except HostError:
        return None
    process = None if pid is None else processes.find(host, pid)
    return boot + process.started / _TICKS if process else None


CHECKS: tuple[Check, ...] = (daemon, known, heartbeat)
