"""Checks of what SELinux and AppArmor let the hook do, and what they hide from it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import HostError
from ...machine import processes
from ...machine.host import Host
from ..terminal import moment
from . import daemon, denials
from .finding import FAIL, NOT_RECORDED, PASS, WARN, Check, Finding, Subject, unrecorded
from .gates import HOOKS, gates
from .installation import PYTHON
from .unknown import titled

_MODULES = "sys/kernel/security/lsm"
_SELINUX = "sys/fs/selinux"
_UNCONFINED_HOOKS = "virt_hooks_unconfined"
# Fedora's policy (virt.fc), and that of the SELinux project.
_HOOK_TYPES = ("virt_hook_t", "virt_script_exec_t")
_TIMEOUT_S = 10

_APPARMOR = "sys/module/apparmor/parameters/enabled"
_PROFILES = "sys/kernel/security/apparmor/profiles"
# Where Debian's profile lets a hook execute programs (src/security/apparmor/
# usr.sbin.libvirtd.in): one level only, the name without links.
_EXECUTABLE = re.compile(r"(?:usr/)?s?bin/[^/]+|etc/libvirt/hooks/.+|usr/lib/libvirt/[^/]+")
_BIN_RULE = re.compile(
    r"^\s*(?:audit\s+)?(?:allow\s+)?/(?:usr/|\{,?usr/,?\})(?:s?bin|\{,s\}bin)/(?:\*{1,2}|python3\S*)"
    r"\s+(\w*x)\s*,",
    re.MULTILINE,
)
# Whom Debian's profile may look into (its rules "ptrace (read)").
_OPEN_PROFILES = re.compile(r"unconfined|libvirtd|virtqemud|libvirt-.*|(?:.*/)?dnsmasq|swtpm")
_NAMED = 5


# -- SELinux


def _enforcing(host: Host) -> bool | None:
    """Whether SELinux enforces its policy, None where it is not in use. Raises HostError.

    Some kernels have it without any policy on the host; libselinux tells by the
    configuration (src/enabled.c, is_selinux_enabled).
    """
    text = host.read(f"{_SELINUX}/enforce")
    if text is None or not host.exists("etc/selinux/config"):
        return None
    return text != "0"


def _unused(host: Host, title: str) -> Finding:
    """The finding for a security module of which nothing is seen. Raises HostError."""
    # For who reads a recording of this machine: the list is there on any kernel since 4.11.
    told = host.read(_MODULES) is not None or not unrecorded(host, f"{_SELINUX}/enforce", _APPARMOR)
    return Finding(PASS, title, "not in use") if told else Finding(WARN, title, NOT_RECORDED)


@titled("SELinux")
def selinux(subject: Subject) -> Iterator[Finding]:
    """Whether SELinux is in use, and which domain libvirt's daemon has."""
    enforcing = _enforcing(subject.host)
    if enforcing is None:
        yield _unused(subject.host, "SELinux")
        return
    mode = "enforcing" if enforcing else "permissive: it denies nothing"
    for one in _daemons(subject.host):
        label = _current(subject.host, one.pid)
        if label.count(":") >= 2:
            mode += f"; {one.name} runs as {label.split(':')[2]}"
    yield Finding(PASS, "SELinux", mode)


@titled("SELinux label of the hook")
def label(subject: Subject) -> Iterator[Finding]:
    """Whether the hook has the label that the policy has for it."""
    host, title = subject.host, "SELinux label of the hook"
    enforcing = _enforcing(host)
    for gate in gates(host) if enforcing is not None else ():
        told = host.selinux_label(gate.path)
        if told is None:
            text = f"/{gate.path} has none"
            yield Finding(WARN, title, text, f"restorecon -Rv /{HOOKS}")
            continue
        kind = _type(told)
        wanted = _wanted(host, gate.path)
        if kind in wanted:
            yield Finding(PASS, title, kind)
            continue
        yield Finding(
            FAIL if enforcing else WARN,
            title,
            f"/{gate.path} is {kind} and should be {wanted[0]}: libvirt may not run it",
            f"restorecon -Rv /{HOOKS}",
        )


def ask_label(path: str) -> tuple[str, ...]:
    """The command for the label that the policy has for a path."""
    return ("/usr/sbin/matchpathcon", "-n", f"/{path}")


def _wanted(host: Host, path: str) -> tuple[str, ...]:
    """The types that a hook may have: what the policy says, or else those that are known."""
    try:
        said = host.run(*ask_label(path), timeout_s=_TIMEOUT_S)
    except HostError:
        return _HOOK_TYPES
    return (_type(said),) if _type(said) else _HOOK_TYPES


def _type(context: str) -> str:
    """The type in a label "USER:ROLE:TYPE:LEVEL", or ""."""
    return (context.split(":") + ["", "", ""])[2]


@titled("SELinux denials")
def selinux_denials(subject: Subject) -> Iterator[Finding]:
    """What SELinux has denied to the hook since it was installed."""
    host = subject.host
    if _enforcing(host) is None:
        return
    advice = f"restorecon -Rv /{HOOKS}"
    # Which domains it is for differs between the releases of the policy.
    if (host.read(f"{_SELINUX}/booleans/{_UNCONFINED_HOOKS}") or "").startswith("0"):
        advice += f"; or setsebool -P {_UNCONFINED_HOOKS} on"
    advice += "; or ausearch -m AVC -ts boot | audit2allow -M hook, and semodule -i hook.pp"
    yield from _told(host, "SELinux denials", denials.selinux(host), advice)


def _told(
    host: Host, title: str, denied: tuple[denials.Denial, ...], advice: str
) -> Iterator[Finding]:
    """The last denial, if there was one after the hook was installed or mended."""
    since = max([daemon.booted(host) or 0, *(gate.since for gate in gates(host))])
    recent = sorted((one for one in denied if one.when >= since), key=lambda one: one.when)
    if not recent:
        yield Finding(PASS, title, f"none to hooks since {moment(since)}")
        return
    last = recent[-1]
    count = f"{len(recent)}, the last" if len(recent) > 1 else "one"
    yield Finding(WARN, title, f"{count} at {moment(last.when)}: {last.what}", advice)


# -- AppArmor


def _mode(host: Host) -> tuple[str, str] | None:
    """(profile, mode) of libvirt's daemon, None where it has none. Raises HostError.

    mode is "enforce", "complain" and the like.
    """
    for one in _daemons(host):
        match = re.fullmatch(r"(.+) \((\w+)\)", _current(host, one.pid, "apparmor/"))
        return (match[1], match[2]) if match else None
    # While it does not run, what is loaded tells.
    for line in (host.read(_PROFILES) or "").splitlines():
        match = re.fullmatch(r"((?:/usr/sbin/)?(?:virtqemud|libvirtd)) \((\w+)\)", line)
        if match:
            return match[1], match[2]
    return None


def _in_use(host: Host) -> bool:
    """Whether AppArmor is in use. Raises HostError."""
    return host.read(_APPARMOR) == "Y"


@titled("AppArmor")
def apparmor(subject: Subject) -> Iterator[Finding]:
    """Whether AppArmor is in use, and which profile libvirt's daemon has."""
    if not _in_use(subject.host):
        yield _unused(subject.host, "AppArmor")
        return
    confined = _mode(subject.host)
    if confined is None:
        yield Finding(PASS, "AppArmor", "in use; libvirt's daemon is not confined")
    else:
        yield Finding(PASS, "AppArmor", f"libvirt's daemon has the profile {' ('.join(confined)})")


@titled("AppArmor and the hook")
def profile(subject: Subject) -> Iterator[Finding]:
    """Whether the daemon's profile lets the hook run, and what it hides from it.

    The gate runs in the daemon's profile, and the Python that it starts in none
    (mode PUx): so the hook can look into all processes.
    """
    host, title = subject.host, "AppArmor and the hook"
    confined = _mode(host) if _in_use(host) else None
    if confined is None or confined[1] != "enforce" or not gates(host):
        return
    refused = [path for path in _executed(host) if not _EXECUTABLE.fullmatch(path)]
    for path in refused:
        yield Finding(
            FAIL,
            title,
            f"the hook leads to /{path}, which the profile {confined[0]} does not let it execute",
            "run the install.sh of vfio-console-hook; keep Python in /usr/bin",
        )
    if refused:
        return
    own = _own_profile(host)
    rule = _bin_rule(host)
    if own:
        hidden = f"the hook's Python has a profile of its own, {own}, which may hide things from it"
        yield Finding(WARN, title, hidden, "see /etc/apparmor.d, and put it into complain mode")
    elif rule is None:
        text = f"what the profile {confined[0]} lets the hook execute is not known"
        yield Finding(WARN, title, text, "see what vfio-console-hook status says after a start")
    elif "u" in rule.lower():
        yield Finding(PASS, title, "its Python is not confined, and sees all processes")
    else:
        yield _hiding(host, confined[0])


def _executed(host: Host) -> Iterator[str]:
    """What is executed when an event comes, without links, as AppArmor sees it."""
    for path in (*(gate.path for gate in gates(host)), PYTHON):
        real = host.real(path)
        if real is not None:
            yield real


def _own_profile(host: Host) -> str:
    """The profile that Python has by itself, or ""."""
    real = host.real(PYTHON) or PYTHON
    lines = (host.read(_PROFILES) or "").splitlines()
    names = (line.rpartition(" (")[0] for line in lines if not line.endswith("(unconfined)"))
    return next((name for name in names if name in (f"/{PYTHON}", f"/{real}")), "")


def _bin_rule(host: Host) -> str | None:
    """How the daemon's profile lets programs in /usr/bin be executed, such as "PUx"."""
    for name in ("usr.sbin.virtqemud", "usr.sbin.libvirtd"):
        texts = (host.read(f"etc/apparmor.d/{path}") or "" for path in (f"local/{name}", name))
        for text in texts:
            match = _BIN_RULE.search(text)
            if match:
                return match[1]
    return None


def _hiding(host: Host, name: str) -> Finding:
    """What a Python that stays in the daemon's profile may not look into."""
    hidden: dict[str, int] = {}
    for pid in processes.pids(host):
        other = _current(host, pid, "apparmor/").partition(" (")[0]
        if other and not _OPEN_PROFILES.fullmatch(other):
            hidden[other] = hidden.get(other, 0) + 1
    text = f"the hook's Python stays in the profile {name}"
    if hidden:
        names = sorted(hidden)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text += (
            f", which hides {sum(hidden.values())} processes from it:"
            f" those of {', '.join(names[:_NAMED])}{more}"
        )
    advice = f"have the rule /usr/bin/* PUx in the profile, as Debian has; or aa-complain {name}"
    return Finding(WARN, "AppArmor and the hook", text, advice)


@titled("AppArmor denials")
def apparmor_denials(subject: Subject) -> Iterator[Finding]:
    """What AppArmor has denied to the hook since it was installed."""
    host = subject.host
    confined = _mode(host) if _in_use(host) else None
    if confined is None:
        return
    advice = (
        "keep the hook and what it calls in /etc/libvirt/hooks and /usr/bin, or add a rule to"
        " /etc/apparmor.d/local/usr.sbin.libvirtd and run systemctl reload apparmor"
    )
    yield from _told(host, "AppArmor denials", denials.apparmor(host, confined[0]), advice)


# -- both


def _daemons(host: Host) -> tuple[daemon.Daemon, ...]:
    """The daemons that run, none where that is not known."""
    try:
        return daemon.running(host)
    except HostError:
        return ()


def _current(host: Host, pid: int, module: str = "") -> str:
    """The label or profile of a process, or ""; module as where several are stacked (5.1)."""
    for path in (f"proc/{pid}/attr/{module}current", f"proc/{pid}/attr/current"):
        try:
            text = (host.read(path) or "").rstrip("\0")
        except HostError:
            continue  # EINVAL where no module answers, or it has just ended
        if text:
            return text
    return ""


CHECKS: tuple[Check, ...] = (
    selinux, label, selinux_denials, apparmor, profile, apparmor_denials,
)  # fmt: skip
