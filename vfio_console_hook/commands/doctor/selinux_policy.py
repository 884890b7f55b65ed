"""The check that asks SELinux's policy whether the hook may run, before any VM is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...config import load
from ...errors import HostError, RefusedError
from ...machine import selinux
from ...machine.host import Host
from ...machine.libvirtd import DAEMONS
from ...machine.runfiles import RUN
from .confinement import daemons, process_label
from .denials import OWN_LABEL
from .finding import FAIL, WARN, Finding, check, passed
from .hook_files import HOOKS, gates, python_of
from .system import System

UNCONFINED_HOOKS = "virt_hooks_unconfined"
# What QEMU needs for a PCI device by the policy of the SELinux project (virt.te). Where there
# is no virt_use_vfio, as in Fedora's, the other one may be off.
_OF_QEMU = ("virt_use_vfio", "virt_use_sysfs")
# What install.sh loads where it is needed, and the type that it gives the gate.
_MODULE = "usr/lib/vfio-console-hook/vfio_console_hook.cil"
_SHELL = "bin/sh"
# What the hook does on any host with a GPU, and which file or directory is as good as all.
_ATTRIBUTE, _RUN = "sys/bus/pci/drivers_probe", RUN.rpartition("/")[0]


@dataclass(frozen=True)
class _Denied:
    """What the policy denies to the hook: the domain, what, and what follows, as clauses.

    advice is a line to run; without one how_to_allow() has it.
    """

    domain: str
    what: str
    so: str
    advice: str = ""


@check("SELinux policy")
def policy(system: System) -> Iterator[Finding]:
    """Whether the policy lets libvirt's daemon run the hook, and the hook do its work."""
    host = system.host
    enforcing = selinux.enforcing(host)
    label = _label_of_daemon(host) if enforcing is not None else ""
    running = [gate.path for gate in gates(host) if gate.runs] if label else []
    denied = _first_denied(host, label, running, load.installed_files(host))
    if denied:
        text = f"it does not allow {denied.domain} {denied.what}, so {denied.so}"
        advice = denied.advice or how_to_allow(host, denied.domain)
        yield Finding(FAIL if enforcing else WARN, "", text, advice)
    elif running:
        yield passed(f"it allows {selinux.type_of(label)} to run the hook, and the hook its work")
    off = [name for name in _OF_QEMU if _is_off(host, name)] if enforcing is not None else []
    if off:
        text = f"QEMU may not use the GPU of a VM: {' and '.join(off)} {_be(off)} off"
        advice = f"setsebool -P {' '.join(f'{name}=on' for name in off)}"
        yield Finding(FAIL if enforcing else WARN, "", text, advice)


def _is_off(host: Host, name: str) -> bool:
    """Whether a switch of QEMU's is off, where the policy has them."""
    own = host.read(f"{selinux.SELINUX}/booleans/{_OF_QEMU[0]}")
    return own is not None and _boolean(host, name).startswith("0")


def _boolean(host: Host, name: str) -> str:
    """What selinuxfs has of a switch: its value and the one to be committed; "" if none."""
    return host.read(f"{selinux.SELINUX}/booleans/{name}") or ""


def _be(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def denied(host: Host) -> str:
    """What the policy denies to the hook, as a sentence for install.sh; "" if nothing.

    Raises HostError.
    """
    label = _label_of_daemon(host) if selinux.enforcing(host) is not None else ""
    running = [gate.path for gate in gates(host) if gate.runs] if label else []
    found = _first_denied(host, label, running, ())
    return f"it does not allow {found.domain} {found.what}" if found else ""


def refusal(host: Host, files: tuple[str, ...]) -> RefusedError | None:
    """The refusal of a VM with a GPU, for plan; None if the policy, or no answer, has none.

    files are those of the configuration that the VM reads.
    """
    try:
        if not selinux.enforcing(host):
            return None
        label = _label_of_daemon(host)
        running = [gate.path for gate in gates(host) if gate.runs] if label else []
        denied = _first_denied(host, label, running, files)
    except HostError:
        return None  # doctor reports it
    if denied is None:
        return None
    text = f"SELinux does not allow {denied.domain} {denied.what}, so {denied.so}"
    return RefusedError(text, denied.advice or how_to_allow(host, denied.domain))


def _first_denied(
    host: Host, daemon: str, running: list[str], files: tuple[str, ...]
) -> _Denied | None:
    """What is denied first; what would follow it cannot happen any more."""
    found = (one for path in running for one in _denied_to_hook(host, daemon, path, files))
    return next(found, None)


def _label_of_daemon(host: Host) -> str:
    """The label that libvirt's daemon has, or will have when systemd starts it; "" if unknown."""
    for one in daemons(host):
        return process_label(host, one.pid)
    first = process_label(host, 1)
    for name in DAEMONS:
        program = host.selinux_label(f"usr/sbin/{name}")
        if program and first:
            return selinux.created(host, first, program, "process")
    return ""


def _denied_to_hook(
    host: Host, daemon: str, gate: str, files: tuple[str, ...]
) -> Iterator[_Denied]:
    """What the policy denies on the way of an event, the first thing first. Raises HostError."""
    hook, missing = _executed(host, daemon, gate)
    # The kernel opens the interpreter for the daemon, too (fs/binfmt_script.c, load_script).
    missing += _of_file(host, daemon, _SHELL, "read", "open", "execute")
    if missing:
        yield _Denied(
            selinux.type_of(daemon),
            f"to run /{gate} ({_type_of_file(host, gate)}): {_listed(missing)}",
            "libvirt starts no VM",
        )
        return
    python = python_of(host.read_bytes(gate) or b"")
    program, missing = _executed(host, hook, python)
    if missing:
        what = f"to run /{python} ({_type_of_file(host, python)}): {_listed(missing)}"
        yield _Denied(selinux.type_of(hook), what, "no VM with a PCI device starts")
        return
    domain = selinux.type_of(program)
    for what in _denied_at_work(host, program):
        yield _Denied(domain, what, "no VM with a GPU starts")
    for path in files:
        # A file that was moved here from a home directory keeps its label.
        missing = _of_file(host, program, path, "open", "read")
        if missing:
            what = f"to read /{path} ({_type_of_file(host, path)}): {_listed(missing)}"
            advice = f"restorecon -Rv /{load.DIRECTORY}"
            yield _Denied(domain, what, "no VM that it is for starts", advice)


def _executed(host: Host, source: str, path: str) -> tuple[str, tuple[str, ...]]:
    """The label of a process that executes a file, and the permissions that are denied.

    Source: Linux security/selinux/hooks.c, selinux_bprm_creds_for_exec.
    """
    missing = _of_file(host, source, path, "read", "open", "execute")
    label = host.selinux_label(path)
    if label is None:
        return source, missing  # another check reports it
    new = selinux.created(host, source, label, "process")
    if new == source:
        return new, missing + _of_file(host, source, path, "execute_no_trans")
    missing += selinux.denied(host, source, new, "process", ("transition",))
    return new, missing + _of_file(host, new, path, "entrypoint")


def _of_file(host: Host, source: str, path: str, *permissions: str) -> tuple[str, ...]:
    label = host.selinux_label(path)
    return selinux.denied(host, source, label, "file", permissions) if label else ()


def _denied_at_work(host: Host, source: str) -> Iterator[str]:
    """What the hook's Python may not do of all that it has to."""
    missing = _of_file(host, source, _ATTRIBUTE, "open", "write")
    if missing:
        kind = _type_of_file(host, _ATTRIBUTE)
        yield f"to write to attributes in /sys ({kind}): {_listed(missing)}"
    init = process_label(host, 1)
    missing = selinux.denied(host, source, init, "lnk_file", ("read",)) if init else ()
    missing += selinux.denied(host, source, source, "capability", ("sys_ptrace",))
    if missing:
        yield f"to see which processes have a GPU open: {_listed(missing)}"
    run = host.selinux_label(_RUN)
    if run:
        missing = selinux.denied(host, source, run, "dir", ("write", "add_name"))
        own = selinux.created(host, source, run, "dir", RUN.rpartition("/")[2])
        missing += selinux.denied(host, source, own, "dir", ("create",))
        if missing:
            yield f"to keep its claims in /run ({selinux.type_of(run)}): {_listed(missing)}"
    # Without it /proc/iomem has only zeros (kernel/resource.c, r_show).
    if selinux.denied(host, source, source, "capability", ("sys_admin",)):
        yield "to see the addresses in /proc/iomem: the capability sys_admin is denied"


def _type_of_file(host: Host, path: str) -> str:
    return selinux.type_of(host.selinux_label(path) or "")


def _listed(permissions: tuple[str, ...]) -> str:
    unique = tuple(dict.fromkeys(permissions))
    *first, last = unique
    return f"{', '.join(first)} and {last} are denied" if first else f"{last} is denied"


def how_to_allow(host: Host, domain: str) -> str:
    """What to do about a policy that does not let the hook run or work."""
    labels = [selinux.type_of(host.selinux_label(gate.path) or "") for gate in gates(host)]
    if host.exists(_MODULE) and OWN_LABEL not in labels:
        return f"semodule -i /{_MODULE}, then restorecon -Rv /{HOOKS}"
    permissive = f"semanage permissive -a {domain}, which lets SELinux only log what it would deny"
    # Which of the daemons it helps differs between the releases of the policy.
    if _boolean(host, UNCONFINED_HOOKS).startswith("0"):
        return f"setsebool -P {UNCONFINED_HOOKS} on; if it still fails then, {permissive}"
    return permissive
