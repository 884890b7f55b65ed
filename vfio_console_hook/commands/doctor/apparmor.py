"""Checks of what AppArmor lets the hook do, and which processes it hides from the hook."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...machine import processes
from ...machine.host import Host
from . import denials
from .confinement import APPARMOR, daemons, last_denial, not_in_use, process_label
from .finding import Finding, check, failure, passed, warning
from .hook_files import gates, python_of_hook
from .system import System

_PROFILES = "sys/kernel/security/apparmor/profiles"
# Where Debian's profile lets a hook execute programs (src/security/apparmor/
# usr.sbin.libvirtd.in): one level only, the name without links.
_EXECUTABLE = re.compile(r"(?:usr/)?s?bin/[^/]+|etc/libvirt/hooks/.+|usr/lib/libvirt/[^/]+")
_BIN_RULE = re.compile(
    r"^\s*(?:audit\s+)?(?:allow\s+)?/(?:usr/|\{,?usr/,?\})(?:s?bin|\{,s\}bin)/(?:\*{1,2}|python3\S*)"
    r"\s+(\w*x)\s*,",
    re.MULTILINE,
)
# The profiles of processes that Debian's profile may inspect (its rules "ptrace (read)").
_OPEN_PROFILES = re.compile(r"unconfined|libvirtd|virtqemud|libvirt-.*|(?:.*/)?dnsmasq|swtpm")
_MOST_NAMES = 5


def _profile_of_daemon(host: Host) -> tuple[str, str] | None:
    """(profile, mode) of libvirt's daemon, None if it has none. Raises HostError.

    mode is "enforce", "complain" or another word of the kernel's.
    """
    if host.read(APPARMOR) != "Y":
        return None
    for one in daemons(host):
        match = re.fullmatch(r"(.+) \((\w+)\)", process_label(host, one.pid, "apparmor/"))
        return (match[1], match[2]) if match else None
    # While it does not run, see what is loaded.
    for line in (host.read(_PROFILES) or "").splitlines():
        match = re.fullmatch(r"((?:/usr/sbin/)?(?:virtqemud|libvirtd)) \((\w+)\)", line)
        if match:
            return match[1], match[2]
    return None


@check("AppArmor")
def mode(system: System) -> Iterator[Finding]:
    """Whether AppArmor is in use, and which profile libvirt's daemon has."""
    if system.host.read(APPARMOR) != "Y":
        yield not_in_use(system.host)
        return
    profile = _profile_of_daemon(system.host)
    if profile is None:
        yield passed("in use; libvirt's daemon is not confined")
    else:
        yield passed(f"libvirt's daemon has the profile {' ('.join(profile)})")


@check("AppArmor and the hook")
def confined_hook(system: System) -> Iterator[Finding]:
    """Whether the daemon's profile lets the hook run, and what it hides from it.

    The gate runs in the daemon's profile, and the Python that it starts in none
    (mode PUx): so the hook can inspect all processes.
    """
    host = system.host
    profile = _profile_of_daemon(host)
    if profile is None or profile[1] != "enforce" or not gates(host):
        return
    refused = [path for path in _executed(host) if not _EXECUTABLE.fullmatch(path)]
    for path in refused:
        text = f"the profile {profile[0]} does not let the hook execute /{path}"
        yield failure(text, "install vfio-console-hook again; keep Python in /usr/bin")
    if refused:
        return
    own = _profile_of_python(host)
    rule = _bin_rule(host)
    if own:
        text = f"the hook's Python has its own profile {own}, which may hide processes from it"
        yield warning(text, "see /etc/apparmor.d, and set that profile to complain mode")
    elif rule is None:
        text = f"it is unknown what the profile {profile[0]} lets the hook execute"
        yield warning(text, "start a VM, then see `vfio-console-hook status`")
    elif "u" in rule.lower():
        yield passed("the hook's Python is not confined and can inspect all processes")
    else:
        yield _hidden_processes(host, profile[0])


def _executed(host: Host) -> Iterator[str]:
    """What is executed for an event, with links resolved, as AppArmor sees it."""
    for path in (*(gate.path for gate in gates(host)), python_of_hook(host)):
        real = host.real(path)
        if real is not None:
            yield real


def _profile_of_python(host: Host) -> str:
    """The profile that Python has by itself, or ""."""
    python = python_of_hook(host)
    real = host.real(python) or python
    lines = (host.read(_PROFILES) or "").splitlines()
    names = (line.rpartition(" (")[0] for line in lines if not line.endswith("(unconfined)"))
    return next((name for name in names if name in (f"/{python}", f"/{real}")), "")


def _bin_rule(host: Host) -> str | None:
    """How the daemon's profile lets programs in /usr/bin be executed, such as "PUx"."""
    for name in ("usr.sbin.virtqemud", "usr.sbin.libvirtd"):
        for path in (f"local/{name}", name):
            match = _BIN_RULE.search(host.read(f"etc/apparmor.d/{path}") or "")
            if match:
                return match[1]
    return None


def _hidden_processes(host: Host, name: str) -> Finding:
    """What a Python that stays in the daemon's profile cannot inspect."""
    hidden: dict[str, int] = {}
    for pid in processes.pids(host):
        other = process_label(host, pid, "apparmor/").partition(" (")[0]
        if other and not _OPEN_PROFILES.fullmatch(other):
            hidden[other] = hidden.get(other, 0) + 1
    text = f"the hook's Python stays in the profile {name}"
    if hidden:
        names = sorted(hidden)
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        text += (
            f" and cannot inspect {sum(hidden.values())} processes,"
            f" in the profiles {', '.join(names[:_MOST_NAMES])}{more}"
        )
    advice = (
        f"add the rule `/usr/bin/* PUx,` to the profile, as Debian has it; or aa-complain {name}"
    )
    return warning(text, advice)


@check("AppArmor denials")
def apparmor_denials(system: System) -> Iterator[Finding]:
    """What AppArmor has denied to the hook since it was installed."""
    host = system.host
    profile = _profile_of_daemon(host)
    if profile is None:
        return
    advice = (
        "keep the hook and what it executes in /etc/libvirt/hooks and /usr/bin, or add a rule to"
        " /etc/apparmor.d/local/usr.sbin.libvirtd and run systemctl reload apparmor"
    )
    found = denials.by_apparmor(host, profile[0])
    yield from last_denial(host, "AppArmor", found, advice)
