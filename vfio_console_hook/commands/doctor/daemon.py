"""The check of libvirt's daemon: which one has QEMU's VMs, and does it run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import HostError
from ...machine import processes, systemd
from ...machine.host import Host
from ...machine.libvirtd import DAEMONS
from ..terminal import moment
from .finding import Finding, check, failure, need_recorded, passed, warning
from .system import System

SOCKETS = tuple(f"{name}.socket" for name in DAEMONS)
_SBIN = ("usr/sbin", "usr/bin")
# Clock ticks a second in /proc/PID/stat: USER_HZ, which is 100 but on Alpha (proc(5)).
TICKS = 100


@dataclass(frozen=True)
class Daemon:
    """A running daemon; started is in seconds since the epoch."""

    name: str
    pid: int
    started: float


def boot_time(host: Host) -> float | None:
    """When the host was booted, in seconds since the epoch; None if /proc/stat does not say."""
    match = re.search(r"^btime (\d+)", host.read("proc/stat") or "", re.MULTILINE)
    return float(match[1]) if match else None


def running_daemons(host: Host) -> tuple[Daemon, ...]:
    """The host's own daemons that run now, the one that has QEMU's VMs first. Raises HostError."""
    boot = boot_time(host)
    if boot is None:
        raise HostError("/proc/stat does not contain the time of the boot")
    found = [_process_of_pid_file(host, name) for name in DAEMONS]
    if not any(found):
        found = [_process_named(host, name) for name in DAEMONS]
    return tuple(
        Daemon(name, process.pid, boot + process.started / TICKS)
        for name, process in zip(DAEMONS, found)
        if process is not None
    )


def _process_of_pid_file(host: Host, name: str) -> processes.Process | None:
    pid = processes.pid_of(host.read(f"run/{name}.pid") or "")
    # The file of a daemon that was killed stays.
    return processes.find(host, pid) if pid is not None and _is_named(host, pid, name) else None


def _process_named(host: Host, name: str) -> processes.Process | None:
    for pid in processes.pids(host):
        if _is_named(host, pid, name) and _is_of_the_host(host, pid):
            return processes.find(host, pid)
    return None


def _is_named(host: Host, pid: int, name: str) -> bool:
    try:
        return host.read(f"proc/{pid}/comm") == name
    except HostError:
        return False  # it has just ended


def _is_of_the_host(host: Host, pid: int) -> bool:
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


def has_systemd(host: Host) -> bool:
    return host.stat("run/systemd/system") is not None


def _listening_sockets(host: Host) -> tuple[str, ...]:
    """The sockets on which systemd waits to start a daemon. Raises HostError."""
    if not has_systemd(host):
        return ()
    return tuple(unit.name for unit in systemd.units(host, SOCKETS) if unit.active == "active")


@check("daemon")
def daemon(system: System) -> Iterator[Finding]:
    """Which daemon has QEMU's VMs, and whether it runs or will when it is needed."""
    host = system.host
    need_recorded(host, "proc/stat")
    found = running_daemons(host)
    for one in found:
        yield passed(f"{one.name} has been running since {moment(one.started)} (process {one.pid})")
    if len(found) > 1:
        yield warning(
            "virtqemud and libvirtd are both running; neither knows the VMs of the other",
            "use only one of them: https://libvirt.org/daemons.html explains how to switch",
        )
    if not found and system.without_libvirt:
        yield passed(
            "there is no libvirt on this host: GPUs are taken and given back by `take` and `give`,"
            " by the hookscript for Proxmox VE, or at boot by vfio-console-hook-take@.service"
        )
    elif not found:
        yield _without_daemon(host)


def _without_daemon(host: Host) -> Finding:
    sockets = _listening_sockets(host)
    if sockets:
        return passed(f"not running now; systemd starts it on demand ({sockets[0]})")
    paths = ((name, f"{folder}/{name}") for name in DAEMONS for folder in _SBIN)
    installed = [name for name, path in paths if host.stat(path) is not None]
    text = "neither virtqemud nor libvirtd is running"
    if not installed:
        return failure(f"{text}, and neither is installed", "install libvirt")
    name = installed[0]
    other_init = f"start {name}, for example with `rc-service {name} start`"
    return failure(text, f"systemctl start {name}" if has_systemd(host) else other_init)
