"""What SELinux and AppArmor have denied to libvirt's hooks, as the audit records tell."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import HostError
from ...machine import systemd
from ...machine.host import Host

# auditd's log gets the records instead of the kernel's log while auditd runs (Linux
# kernel/audit.c, audit_log_end); the others are where syslog puts the kernel's log.
_AUDIT_LOG = "var/log/audit/audit.log"
_KERNEL_LOGS = ("var/log/kern.log", "var/log/messages", "var/log/syslog")
# Only these lines are anybody's business: a log is long, and tells much about people.
_PATTERN = "avc: +denied|apparmor=.DENIED"
_TIMEOUT_S = 20

# The kernel cuts a name of a process at 15 bytes. A script is called by its file.
HOOK_NAMES = ("qemu", "50-vfio-console-hook"[:15], "vfio-console-hook"[:15])
# The threads of the daemon that become a hook.
_DAEMON_NAMES = ("rpc-virtqemud", "rpc-libvirtd", "virtqemud", "libvirtd", "qemu-event")
_FILES = ("qemu", "50-vfio-console-hook", "vfio-console-hook")
_HOOK_LABELS = ("virt_hook_t", "virt_script_exec_t")
_DAEMON_LABELS = ("virtd_t", "virtqemud_t", "virt_hook_unconfined_t")

_WHEN = re.compile(r"audit\((\d+)\.\d+:\d+\)")
_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|(\S+))')
_SELINUX = re.compile(r"avc:\s+denied\s+\{ ([^}]*) \}")


@dataclass(frozen=True)
class Denial:
    """Something that was denied. when is in seconds since the epoch; what is a sentence."""

    when: float
    what: str


def selinux(host: Host) -> tuple[Denial, ...]:
    """What SELinux has denied to hooks, or to the daemon that was to run one. Raises HostError."""
    return tuple(one for one in map(_by_selinux, _lines(host)) if one is not None)


def apparmor(host: Host, profile: str) -> tuple[Denial, ...]:
    """What AppArmor has denied to hooks in the daemon's profile. Raises HostError."""
    found = (_by_apparmor(line, profile) for line in _lines(host))
    return tuple(one for one in found if one is not None)


def _lines(host: Host) -> tuple[str, ...]:
    """The audit records of what was denied, each once. Raises HostError."""
    texts = []
    if host.stat(_AUDIT_LOG) is not None:
        texts.append(_asked(host, *ask_log(host, _AUDIT_LOG)))
    if host.stat("run/systemd/system") is not None:
        # journalctl(1): it fails without a match. To who may not read all, it says more.
        texts.append(_asked(host, *ask_journal(host)))
    else:
        logs = [path for path in _KERNEL_LOGS if host.stat(path) is not None][:1]
        texts += [_asked(host, *ask_log(host, path)) for path in logs]
    if not texts:
        raise HostError("there is no log of what was denied")
    return tuple(dict.fromkeys(line for text in texts for line in text.splitlines()))


def ask_journal(host: Host) -> tuple[str, ...]:
    """The command for what the kernel logged since the boot. A pattern in lower case finds any."""
    options = ("--dmesg", "--boot", "--no-pager", "--output=cat", "--grep=denied")
    return (systemd.program_path(host, "journalctl"), *options)


def ask_log(host: Host, path: str) -> tuple[str, ...]:
    """The command for the lines about denials in a log."""
    grep = "usr/bin/grep" if host.exists("usr/bin/grep") else "bin/grep"
    return (f"/{grep}", "-a", "-E", _PATTERN, f"/{path}")


def _asked(host: Host, *command: str) -> str:
    """What a program prints, "" if it fails as it does when it has found nothing."""
    try:
        return host.run(*command, timeout_s=_TIMEOUT_S)
    except HostError as error:
        if error.text.endswith(" failed: exit status 1"):
            return ""
        raise


def _by_selinux(line: str) -> Denial | None:
    """A line such as `type=AVC msg=audit(1:2): avc:  denied  { execute } for  pid=...`."""
    denied, when, said = _SELINUX.search(line), _WHEN.search(line), _fields(line)
    if denied is None or when is None or said.get("permissive") == "1":
        return None
    who = said.get("comm", "")
    source, target = _type(said.get("scontext", "")), _type(said.get("tcontext", ""))
    file = said.get("path") or said.get("name", "")
    is_hook = file.rpartition("/")[2] in _FILES or target in _HOOK_LABELS
    by_daemon = who in _DAEMON_NAMES and is_hook
    if source not in _DAEMON_LABELS or not (by_daemon or who in HOOK_NAMES):
        return None
    what = f"{denied[1].strip()} of {file or said.get('tclass', '')} ({target}) to {who} ({source})"
    return Denial(float(when[1]), what)


def _by_apparmor(line: str, profile: str) -> Denial | None:
    """A line such as `audit(1:2): apparmor="DENIED" operation="exec" profile="libvirtd" ...`."""
    when, said = _WHEN.search(line), _fields(line)
    if when is None or said.get("apparmor") != "DENIED" or said.get("profile") != profile:
        return None
    who, operation = said.get("comm", ""), said.get("operation", "")
    # What the daemon itself is denied is its own matter, unless it was to execute something.
    if who not in HOOK_NAMES and operation != "exec":
        return None
    name = said.get("name") or said.get("peer") or said.get("capname", "")
    return Denial(float(when[1]), f"{operation} of {name} to {who}")


def _fields(line: str) -> dict[str, str]:
    return {key: quoted or plain for key, quoted, plain in _FIELD.findall(line)}


def _type(label: str) -> str:
    """The type in a label "USER:ROLE:TYPE:LEVEL"."""
    return (label.split(":") + ["", "", ""])[2]
