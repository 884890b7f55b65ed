"""What the checks of SELinux and those of AppArmor share."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import HostError
from ...machine.host import Host
from ...machine.selinux import SELINUX
from ..terminal import moment
from .daemon import Daemon, boot_time, running_daemons
from .denials import Denial
from .finding import FAIL, WARN, Finding, need_recorded, passed
from .hook_files import gates

# The list of modules is there on any kernel since 4.11.
_MODULES = "sys/kernel/security/lsm"
APPARMOR = "sys/module/apparmor/parameters/enabled"


def not_in_use(host: Host) -> Finding:
    """The finding for a security module without any trace. Raises UnrecordedError, HostError."""
    if host.read(_MODULES) is None:
        need_recorded(host, f"{SELINUX}/enforce", APPARMOR)
    return passed("not in use")


def daemons(host: Host) -> tuple[Daemon, ...]:
    """The daemons that run, none if that is unknown."""
    try:
        return running_daemons(host)
    except HostError:
        return ()


def process_label(host: Host, pid: int, module: str = "") -> str:
    """The label or profile of a process, or ""; module as where several are stacked (5.1)."""
    for path in (f"proc/{pid}/attr/{module}current", f"proc/{pid}/attr/current"):
        try:
            text = (host.read(path) or "").rstrip("\0")
        except HostError:
            continue  # EINVAL where no module answers, or it has just ended
        if text:
            return text
    return ""


def last_denial(
    host: Host, by: str, denials: tuple[Denial, ...], advice: str, *, allowed_now: bool = False
) -> Iterator[Finding]:
    """The last denial by a module after the host was booted and the hook installed or changed.

    It is a failure where it keeps libvirt from starting any VM, unless that was mended since.
    """
    since = max([boot_time(host) or 0, *(gate.since for gate in gates(host))])
    recent = sorted((one for one in denials if one.time >= since), key=lambda one: one.time)
    if not recent:
        yield passed(f"no hook was denied anything since {moment(since)}")
        return
    last = recent[-1]
    count = f", the last of {len(recent)} denials" if len(recent) > 1 else ""
    text = f"{by} denied {last.what} at {moment(last.time)}{count}"
    if not last.stops_all or allowed_now:
        yield Finding(WARN, "", text, advice)
        return
    yield Finding(FAIL, "", f"{text}, so libvirt starts no VM", advice)
