"""Checks of whether libvirt's daemon knows the hook, and has called it."""

from __future__ import annotations

import calendar
import os
import re
from collections.abc import Iterator

from ... import domain
from ...claims.histories import histories
from ...errors import HookError, HostError
from ...machine import processes, roots, systemd
from ...machine.host import Host
from ..terminal import moment
from .daemon import TICKS, Daemon, boot_time, has_systemd, running_daemons
from .finding import Finding, check, failure, passed, unrecorded, warning
from .hook_files import gates, hook_files
from .system import System, gpus_among

# The start of a daemon and the start of the host are known to the second or so.
_SLACK_S = 2.0
_SECOND = 0.999999
_TIMEOUT_S = 10


@check("hook known to the daemon")
def hook_known(system: System) -> Iterator[Finding]:
    """Whether the daemon has looked for hooks since ours was as it is now.

    It looks when it starts and when it is reloaded, and remembers only whether there was
    any QEMU hook that can be executed (src/util/virhook.c, virHookInitialize and
    virHookPresent). So a hook that was made executable later is not called.
    """
    host = system.host
    ours = [one for one in gates(host) if one.runs]
    if unrecorded(host, "proc/stat"):
        return  # the check of the daemon reports it
    daemons = running_daemons(host)
    if not ours or not daemons:
        return
    one = daemons[0]
    if roots.seen_by(host, one.pid):
        return  # it looks for hooks elsewhere
    title = f"hook known to {one.name}"
    since = min(gate.since for gate in ours)
    changed = _state_change(host, one.name)
    reason = _why_known(host, one, since, changed)
    if reason:
        yield passed(reason, of=title)
        return
    advice = f"systemctl reload {one.name}" if has_systemd(host) else f"kill -HUP {one.pid}"
    installed = f"the hook was installed, changed or made executable at {moment(since)}"
    if changed is None:
        text = f"{one.name} has been running since {moment(one.started)}"
        text += f"; it is unknown whether it was reloaded after {installed}"
        yield warning(text, advice, of=title)
    else:
        text = f"{one.name} looked for hooks at {moment(changed)}, before {installed}"
        yield failure(f"{text}, and may not call it", advice, of=title)


def _why_known(host: Host, one: Daemon, since: float, changed: float | None) -> str:
    """Why the daemon knows that there is a hook, or ""."""
    looked = one.started + _SLACK_S if changed is None else changed
    if looked >= since:
        if looked > one.started + _SLACK_S:
            return f"it was reloaded at {moment(looked)}"
        return "it was started after the hook was installed"
    earlier = [hook for hook in hook_files(host) if hook.runs and hook.since <= one.started]
    if earlier:
        return f"/{earlier[0].path} was there when it started"
    call = last_call(host)
    if call is not None and call[0] > max(one.started, changed or 0):
        return "it has called the hook before"
    return ""


def ask_state_change(host: Host, name: str, *, precise: bool = False) -> tuple[str, ...]:
    """The command that prints when a unit last changed its state, in UTC.

    Precise is to the microsecond, which systemctl can since systemd 247; some
    replacements of it never learnt.
    """
    show = ("show", "--property=StateChangeTimestamp", f"{name}.service")
    more = ("--timestamp=us+utc",) if precise else ()
    return ("/usr/bin/env", "TZ=UTC", systemd.program_path(host), *show, *more)


def _state_change(host: Host, name: str) -> float | None:
    """When the daemon's unit last became active or was reloaded; None if that is unknown.

    A reload is two changes of state, to "reloading" and back, while ActiveEnterTimestamp
    stays that of the start (systemd src/core/unit.c, unit_notify). Where only seconds are
    known, the second counts as over.
    """
    if not has_systemd(host):
        return None
    for precise in (True, False):
        try:
            output = host.run(
                *ask_state_change(host, name, precise=precise), timeout_s=_TIMEOUT_S
            )
        except HostError:
            continue
        # "StateChangeTimestamp=Sat 2025-11-22 18:28:01.123456 UTC", "=" alone if never.
        found = re.search(r"=\w+ (\d+)-(\d+)-(\d+) (\d+):(\d+):(\d+)(\.\d+)? UTC", output)
        if found is None:
            return None
        *numbers, fraction = found.groups()
        try:
            return calendar.timegm(tuple(map(int, numbers))) + float(fraction or _SECOND)
        except (ValueError, OverflowError):
            return None  # no such day
    return None


# The history also has what people do.
_EVENTS_OF_LIBVIRT = ("prepare", "start", "started", "reconnect", "release")


def last_call(host: Host) -> tuple[float, str, str] | None:
    """The time of libvirt's last call of the hook in this boot, the event, and the VM."""
    calls = [
        (event.time, event.kind, one.vm)
        for one in histories(host)
        for event in one.events
        if event.kind in _EVENTS_OF_LIBVIRT
    ]
    return max(calls, default=None)


@check("last call of the hook")
def hook_called(system: System) -> Iterator[Finding]:
    """Whether libvirt has called the hook since the host was booted."""
    installed = [gate.since for gate in gates(system.host) if gate.runs]
    if not installed:
        return
    last = last_call(system.host)
    if last is not None:
        time, event, vm = last
        yield passed(f"{moment(time)}, {event} of {vm}")
        return
    for name in _started_with_gpu_since(system, min(installed)):
        yield warning(
            f"VM {name} is running with a GPU, but libvirt has not called the hook since the host"
            " was booted",
            "see the other findings about the hook and the daemon, then restart the VM",
        )
        return
    yield passed("libvirt has made none since the host was booted")


def _started_with_gpu_since(system: System, installed: float) -> Iterator[str]:
    """The VMs that run with a GPU of the host and were started with the hook in place."""
    for vm in system.vms:
        started = _start_of_qemu(system.host, vm.name)
        if not vm.live or (started is not None and started < installed):
            continue
        try:
            devices = domain.hostdev_addresses(vm.live.encode("utf-8", "surrogateescape"))
            if gpus_among(system.host, devices):
                yield vm.name
        except HookError:
            continue  # another check reports that its XML or a device cannot be read


def _start_of_qemu(host: Host, vm: str) -> float | None:
    """When the QEMU of a VM was started, by the file that libvirt keeps of it, if that is known.

    Source: libvirt src/qemu/qemu_process.c, qemuProcessLaunch: virPidFileConstructPath.
    """
    boot = boot_time(host)
    if os.sep in vm or boot is None:
        return None
    try:
        pid = processes.pid_of(host.read(f"run/libvirt/qemu/{vm}.pid") or "")
    except HostError:
        return None
    process = None if pid is None else processes.find(host, pid)
    return boot + process.started / TICKS if process else None
