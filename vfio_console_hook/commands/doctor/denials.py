"""What SELinux and AppArmor have denied to libvirt's hooks, from the audit records."""

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
# Only these lines are read: a log is long, and has much about people.
_PATTERN = "avc: +denied|apparmor=.DENIED"
_TIMEOUT_S = 20

# The kernel cuts a name of a process at 15 bytes. A script is called by its file.
_HOOK_NAMES = ("qemu", "50-vfio-console-hook"[:15], "vfio-console-hook"[:15])
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
    """Something that was denied. time is in seconds since the epoch; what is a clause."""

    time: float
    what: str


def by_selinux(host: Host) -> tuple[Denial, ...]:
    """What SELinux has denied to hooks, or to the daemon that was to run one. Raises HostError."""
    return tuple(filter(None, map(_selinux_denial, _records(host))))


def by_apparmor(host: Host, profile: str) -> tuple[Denial, ...]:
    """What AppArmor has denied to hooks in the daemon's profile. Raises HostError."""
    return tuple(filter(None, (_apparmor_denial(line, profile) for line in _records(host))))


def _records(host: Host) -> tuple[str, ...]:
    """The audit records of what was denied, each once. Raises HostError."""
    texts = []
    if host.stat(_AUDIT_LOG) is not None:
        texts.append(_output(host, *ask_log(host, _AUDIT_LOG)))
    if host.stat("run/systemd/system") is not None:
        # journalctl(1): it fails without a match, and with a reason if it may not read all.
        texts.append(_output(host, *ask_journal(host)))
    else:
        logs = [path for path in _KERNEL_LOGS if host.stat(path) is not None][:1]
        texts += [_output(host, *ask_log(host, path)) for path in logs]
    if not texts:
        raise HostError("there is no log of denials")
    return tuple(dict.fromkeys(line for text in texts for line in text.splitlines()))


def ask_journal(host: Host) -> tuple[str, ...]:
    """The command for the kernel's log since boot. A lower case pattern ignores case."""
    options = ("--dmesg", "--boot", "--no-pager", "--output=cat", "--grep=denied")
    return (systemd.program_path(host, "journalctl"), *options)


def ask_log(host: Host, path: str) -> tuple[str, ...]:
    """The command for the lines about denials in a log."""
    grep = "usr/bin/grep" if host.exists("usr/bin/grep") else "bin/grep"
    return (f"/{grep}", "-a", "-E", _PATTERN, f"/{path}")


def _output(host: Host, *command: str) -> str:
    """What a program prints, "" if it fails because it found nothing."""
    try:
        return host.run(*command, timeout_s=_TIMEOUT_S)
    except HostError as error:
        if error.text.endswith(" failed: exit status 1"):
            return ""
        raise


def _selinux_denial(line: str) -> Denial | None:
    """A line such as `type=AVC msg=audit(1:2): avc:  denied  { execute } for  pid=...`."""
    denied, when, fields = _SELINUX.search(line), _WHEN.search(line), _fields(line)
    if denied is None or when is None or fields.get("permissive") == "1":
        return None
    process = fields.get("comm", "")
    source, target = (selinux_type(fields.get(key, "")) for key in ("scontext", "tcontext"))
    file = fields.get("path") or fields.get("name", "")
    is_hook = file.rpartition("/")[2] in _FILES or target in _HOOK_LABELS
    by_daemon = process in _DAEMON_NAMES and is_hook
    if source not in _DAEMON_LABELS or not (by_daemon or process in _HOOK_NAMES):
        return None
    what = f"{denied[1].strip()} of {file or fields.get('tclass', '')} ({target})"
    return Denial(float(when[1]), f"{what} to {process} ({source})")


def _apparmor_denial(line: str, profile: str) -> Denial | None:
    """A line such as `audit(1:2): apparmor="DENIED" operation="exec" profile="libvirtd" ...`."""
    when, fields = _WHEN.search(line), _fields(line)
    if when is None or fields.get("apparmor") != "DENIED" or fields.get("profile") != profile:
        return None
    process, operation = fields.get("comm", ""), fields.get("operation", "")
    # A denial to the daemon itself does not concern hooks, unless it was to execute something.
    if process not in _HOOK_NAMES and operation != "exec":
        return None
    name = fields.get("name") or fields.get("peer") or fields.get("capname", "")
    return Denial(float(when[1]), f"{operation} of {name} to {process}")


def _fields(line: str) -> dict[str, str]:
    return {key: quoted or plain for key, quoted, plain in _FIELD.findall(line)}


def selinux_type(label: str) -> str:
    """The type in a label "USER:ROLE:TYPE:LEVEL", or ""."""
    return (label.split(":") + ["", "", ""])[2]
