"""Checks of what SELinux lets the hook do."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import HookError, HostError
from ...machine.host import Host
from ...machine.selinux import enforcing, type_of
from . import denials
from .confinement import daemons, last_denial, not_in_use, process_label
from .denials import DAEMON_DOMAINS
from .finding import FAIL, PASS, WARN, Finding, check, passed, warning
from .hook_files import HOOKS, gates
from .selinux_policy import how_to_allow, policy
from .system import System

_RESTORE = f"restorecon -Rv /{HOOKS}"
_TIMEOUT_S = 10


@check("SELinux")
def mode(system: System) -> Iterator[Finding]:
    """Whether SELinux is in use, and which domain libvirt's daemon has."""
    state = enforcing(system.host)
    if state is None:
        yield not_in_use(system.host)
        return
    text = "enforcing" if state else "permissive: it denies nothing"
    for one in daemons(system.host):
        domain = type_of(process_label(system.host, one.pid))
        if domain:
            text += f"; {one.name} runs as {domain}"
    yield passed(text)


@check("SELinux label of the hook")
def label(system: System) -> Iterator[Finding]:
    """Whether the hook has the label that the policy has for it."""
    host = system.host
    state = enforcing(host)
    for gate in gates(host) if state is not None else ():
        found = host.selinux_label(gate.path)
        if found is None:
            yield warning(f"/{gate.path} has no label", _RESTORE)
            continue
        kind = type_of(found)
        expected = _expected_types(host, gate.path)
        if kind in expected:
            yield passed(f"the hook has {kind}")
            continue
        text = f"/{gate.path} is {kind}, not {expected[0]}; SELinux may stop libvirt running it"
        yield Finding(FAIL if state else WARN, "", text, _RESTORE)


def ask_label(path: str) -> tuple[str, ...]:
    """The command that prints the label that the policy has for a path."""
    return ("/usr/sbin/matchpathcon", "-n", f"/{path}")


def _expected_types(host: Host, path: str) -> tuple[str, ...]:
    """The types that a hook may have: that of the policy, or else those that are known."""
    try:
        kind = type_of(host.run(*ask_label(path), timeout_s=_TIMEOUT_S))
    except HostError:
        return denials.HOOK_LABELS
    return (kind,) if kind else denials.HOOK_LABELS


@check("SELinux denials")
def selinux_denials(system: System) -> Iterator[Finding]:
    """What SELinux has denied to hooks since ours was installed."""
    host = system.host
    if enforcing(host) is None:
        return
    own = {type_of(process_label(host, one.pid)) for one in daemons(host)}
    domains = {*DAEMON_DOMAINS, *own} - {""}
    advice = (
        f"{_RESTORE}; {how_to_allow(host, min(own - {''}, default=DAEMON_DOMAINS[1]))}; or"
        " ausearch -m AVC -ts boot | audit2allow -M hook, and semodule -i hook.pp"
    )
    found = denials.by_selinux(host, domains)
    allowed_now = _policy_allows(system)
    yield from last_denial(host, "SELinux", found, advice, allowed_now=allowed_now)


def _policy_allows(system: System) -> bool:
    """Whether the policy, as it is now, lets the hook run: what it denied was mended since."""
    try:
        return [one.level for one in policy(system)] == [PASS]
    except HookError:
        return False
