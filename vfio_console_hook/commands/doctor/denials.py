"""What SELinux and AppArmor have denied to libvirt's hooks, from the audit records."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ...errors import HostError
from ...machine import systemd
from ...machine.host import Host
from ...machine.selinux import type_of

# auditd's log gets the records instead of the kernel's log while auditd runs (Linux
# kernel/audit.c, audit_log_end); the others are where syslog puts the kernel's log.
_AUDIT_LOG = "var/log/audit/audit.log"
_KERNEL_LOGS = ("var/log/kern.log", "var/log/messages", "var/log/syslog")
# Only these lines are read: a log is long, and has much about people.
_PATTERN = "avc: +denied|apparmor=.DENIED"
_TIMEOUT_S = 20

# A hook runs in the daemon's domain unless the policy has one for it, so whose a denial is
# follows from what was to be used; or, if the daemon uses that too, from the process.

# Of our own module (config/selinux). Then those of Fedora's policy (virt.te), of that of the
# SELinux project, and ours.
OWN_LABEL, OWN_DOMAIN = "vfio_console_hook_exec_t", "vfio_console_hook_t"
HOOK_LABELS = ("virt_hook_t", "virt_script_exec_t", OWN_LABEL)
HOOK_DOMAINS = (OWN_DOMAIN, "virt_hook_unconfined_t")
DAEMON_DOMAINS = ("virtd_t", "virtqemud_t")
_OUR_FILES = re.compile(r".*vfio-console-hook.*|.*vfio_console_hook.*|.*/libvirt/hooks/.*")
# What only a hook executes or changes, not the daemon: the name of a file, or its type.
_NAMES = ("modprobe", "kmod", "systemctl", "iomem", "kallsyms")
_TYPES = (
    "kmod_exec_t", "insmod_exec_t", "systemd_systemctl_exec_t", "framebuf_device_t",
    "dri_device_t", "tty_device_t", "xserver_misc_device_t", "systemd_unit_file_t",
)  # fmt: skip
_CLASSES = ("service", "system")
# Threads of the daemon and what it starts beside hooks. The kernel cuts a name at 15 bytes.
_OF_THE_DAEMON = re.compile(
    r"(?:prio-)?rpc-.*|virtqemud|libvirtd|daemon-init|vm-.*|qemu-.*|udevadm|mdevctl|dmidecode"
    r"|dnsmasq|passt.*|swtpm.*|virtiofsd|numad"
)
# The gate, what it starts, and what that starts.
_OF_A_HOOK = re.compile(
    r"qemu|50-vfio-console|vfio-console-ho|python3[.\d]*|sh|dash|bash|busybox|[mg]?awk|cat|timeout"
    r"|modprobe|kmod|systemctl"
)

_WHEN = re.compile(r"audit\((\d+)\.\d+:\d+\)")
_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|(\S+))')
_SELINUX = re.compile(r"avc:\s+denied\s+\{ ([^}]*) \}")


@dataclass(frozen=True)
class Denial:
    """Something that was denied. time is in seconds since the epoch; what is a clause.

    stops_all is whether no hook could run at all, so that libvirt starts no VM.
    """

    time: float
    what: str
    stops_all: bool = False


def by_selinux(host: Host, domains: Collection[str] = DAEMON_DOMAINS) -> tuple[Denial, ...]:
    """What SELinux has denied to hooks, or to the daemon that was to run one. Raises HostError.

    domains are those in which the daemon runs.
    """
    found = (_selinux_denial(line, domains) for line in _records(host))
    return tuple(filter(None, found))


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


def _selinux_denial(line: str, domains: Collection[str]) -> Denial | None:
    """A line such as `type=AVC msg=audit(1:2): avc:  denied  { execute } for  pid=...`."""
    denied, when, fields = _SELINUX.search(line), _WHEN.search(line), _fields(line)
    if denied is None or when is None or fields.get("permissive") == "1":
        return None
    source, target = (type_of(fields.get(key, "")) for key in ("scontext", "tcontext"))
    file, process = fields.get("path") or fields.get("name", ""), fields.get("comm", "")
    kind = fields.get("tclass", "")
    the_hook = kind == "file" and (target in HOOK_LABELS or _is_a_hook(file))
    if source not in HOOK_DOMAINS:
        used_by_one = the_hook or _only_a_hook_uses(process, file, target, kind)
        if source not in domains or not (used_by_one or _OF_A_HOOK.fullmatch(process)):
            return None
    what = f"{denied[1].strip()} of {file or kind} ({target})"
    stops_all = source in domains and the_hook and "exec" in denied[1]
    return Denial(float(when[1]), f"{what} to {process} ({source})", stops_all)


def _is_a_hook(file: str) -> bool:
    return file == "qemu" or _OUR_FILES.fullmatch(file) is not None


def _only_a_hook_uses(process: str, file: str, target: str, kind: str) -> bool:
    """Whether what was to be used is nothing for the daemon and its own programs."""
    if _OF_THE_DAEMON.fullmatch(process):
        return False
    return file.rpartition("/")[2] in _NAMES or target in _TYPES or kind in _CLASSES


def _apparmor_denial(line: str, profile: str) -> Denial | None:
    """A line such as `audit(1:2): apparmor="DENIED" operation="exec" profile="libvirtd" ...`."""
    when, fields = _WHEN.search(line), _fields(line)
    if when is None or fields.get("apparmor") != "DENIED":
        return None
    # A profile may have others inside it for what it executes (apparmor.d(5), "hats").
    if fields.get("profile", "").partition("//")[0] != profile:
        return None
    process, operation = fields.get("comm", ""), fields.get("operation", "")
    name = fields.get("name") or fields.get("peer") or fields.get("capname", "")
    # The daemon executes nothing else that its profile would not know.
    of_a_hook = operation == "exec" or _OUR_FILES.fullmatch(name)
    if not (of_a_hook or _OF_A_HOOK.fullmatch(process)):
        return None
    stops_all = operation == "exec" and "/libvirt/hooks/" in name
    return Denial(float(when[1]), f"{operation} of {name} to {process}", stops_all)


def _fields(line: str) -> dict[str, str]:
    return {key: quoted or plain for key, quoted, plain in _FIELD.findall(line)}
