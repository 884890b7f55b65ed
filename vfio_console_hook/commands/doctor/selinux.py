"""Checks of what SELinux lets the hook do."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import HostError
from ...machine.host import Host
from . import denials
from .confinement import SELINUX, daemons, last_denial, not_in_use, process_label
from .finding import FAIL, WARN, Finding, check, passed, warning
from .hook_files import HOOKS, gates
from .system import System

_UNCONFINED_HOOKS = "virt_hooks_unconfined"
# Fedora's policy (virt.fc), and that of the SELinux project.
_HOOK_TYPES = ("virt_hook_t", "virt_script_exec_t")
_RESTORE = f"restorecon -Rv /{HOOKS}"
_TIMEOUT_S = 10


def _enforcing(host: Host) -> bool | None:
    """Whether SELinux enforces its policy, None where it is not in use. Raises HostError.

    Some kernels have it without any policy on the host; libselinux decides by the
    configuration (src/enabled.c, is_selinux_enabled).
    """
    text = host.read(f"{SELINUX}/enforce")
    if text is None or not host.exists("etc/selinux/config"):
        return None
    return text != "0"


@check("SELinux")
def mode(system: System) -> Iterator[Finding]:
    """Whether SELinux is in use, and which domain libvirt's daemon has."""
    enforcing = _enforcing(system.host)
    if enforcing is None:
        yield not_in_use(system.host)
        return
    text = "enforcing" if enforcing else "permissive: it denies nothing"
    for one in daemons(system.host):
        domain = denials.selinux_type(process_label(system.host, one.pid))
        if domain:
            text += f"; {one.name} runs as {domain}"
    yield passed(text)


@check("SELinux label of the hook")
def label(system: System) -> Iterator[Finding]:
    """Whether the hook has the label that the policy has for it."""
    host = system.host
    enforcing = _enforcing(host)
    for gate in gates(host) if enforcing is not None else ():
        found = host.selinux_label(gate.path)
        if found is None:
            yield warning(f"/{gate.path} has no label", _RESTORE)
            continue
        kind = denials.selinux_type(found)
        expected = _expected_types(host, gate.path)
        if kind in expected:
            yield passed(f"the hook has {kind}")
            continue
        text = f"/{gate.path} is {kind}, not {expected[0]}; SELinux may stop libvirt running it"
        yield Finding(FAIL if enforcing else WARN, "", text, _RESTORE)


def ask_label(path: str) -> tuple[str, ...]:
    """The command that prints the label that the policy has for a path."""
    return ("/usr/sbin/matchpathcon", "-n", f"/{path}")


def _expected_types(host: Host, path: str) -> tuple[str, ...]:
    """The types that a hook may have: that of the policy, or else those that are known."""
    try:
        kind = denials.selinux_type(host.run(*ask_label(path), timeout_s=_TIMEOUT_S))
    except HostError:
        return _HOOK_TYPES
    return (kind,) if kind else _HOOK_TYPES


@check("SELinux denials")
def selinux_denials(system: System) -> Iterator[Finding]:
    """What SELinux has denied to the hook since it was installed."""
    host = system.host
    if _enforcing(host) is None:
        return
    advice = _RESTORE
    # Which domains it is for differs between the releases of the policy.
    if (host.read(f"{SELINUX}/booleans/{_UNCONFINED_HOOKS}") or "").startswith("0"):
        advice += f"; or setsebool -P {_UNCONFINED_HOOKS} on"
    advice += "; or ausearch -m AVC -ts boot | audit2allow -M hook, and semodule -i hook.pp"
    yield from last_denial(host, denials.by_selinux(host), advice)
