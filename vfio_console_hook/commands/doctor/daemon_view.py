"""Check of a daemon in a container: the files that it sees decide, not those of the host."""

from __future__ import annotations

from collections.abc import Iterator

from ...machine import roots
from ...machine.host import Host
from .daemon import Daemon, running_daemons
from .finding import Finding, check, failure, passed, unrecorded
from .hook_files import CHAINED, DROPIN, MAIN, is_gate, python_of
from .installation import PROGRAM
from .system import System

_BY_HAND = (
    "run it outside of the container, or take GPUs by hand before such a VM starts:"
    " `vfio-console-hook take ADDRESS`"
)


@check("files of the daemon")
def files_of_the_daemon(system: System) -> Iterator[Finding]:
    """Whether a daemon with a root or mount namespace of its own has the hook in there.

    libvirtd looks for hooks, and runs them, in its own view (src/util/virhook.c).
    """
    host = system.host
    if unrecorded(host, "proc/stat"):
        return  # the check of the daemon reports it
    for one in running_daemons(host):
        view = roots.seen_by(host, one.pid)
        if view:
            yield _finding(host, one, view)


def _finding(host: Host, one: Daemon, view: str) -> Finding:
    title = f"files of {one.name}"
    # "0::/system.slice/docker-3f9a.scope" (cgroups(7))
    unit = (host.read(f"proc/{one.pid}/cgroup") or "").rpartition("/")[2]
    who = f"{one.name} (process {one.pid}{f', {unit}' if unit else ''})"
    text = f"{who} has files of its own, as in a container"
    gates = [path for path in (MAIN, DROPIN, CHAINED) if _is_gate(host, f"{view}/{path}")]
    if not gates:
        return failure(f"{text}, and no hook among them: VMs start without it", _BY_HAND, of=title)
    python = python_of(host.read_bytes(f"{view}/{gates[0]}") or b"")
    missing = [path for path in (PROGRAM, python) if not host.exists(f"{view}/{path}")]
    if missing:
        text += f", with /{gates[0]} but without /{missing[0]}: VMs with a PCI device are refused"
        return failure(text, _BY_HAND, of=title)
    return passed(f"{text}, and /{gates[0]} is among them", of=title)


def _is_gate(host: Host, path: str) -> bool:
    return is_gate(host.read_bytes(path) or b"")
