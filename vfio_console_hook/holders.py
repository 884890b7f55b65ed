"""Which processes hold a device node open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import HostError
from .host import Host


@dataclass(frozen=True)
class Holder:
    """A process and what it holds; pid 0 stands for processes that may not be looked into."""

    pid: int
    command: str
    unit: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        if not self.pid:
            return self.command
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.command} ({self.pid}){unit} with {' and '.join(self.nodes)} open"


def find(host: Host, nodes: Iterable[str]) -> list[Holder]:
    """The processes that have one of the nodes open, such as "dev/fb0"; by process id.

    Links are only read, never followed: a file on a dead network mount would hang us.
    """
    wanted = {f"/{node}" for node in nodes}
    if not wanted:
        return []
    found = []
    unknown = 0
    for pid in sorted(int(name) for name in host.list("proc") if name.isdigit()):
        try:
            names = host.list(f"proc/{pid}/fd")
            held = {host.readlink(f"proc/{pid}/fd/{name}") for name in names} & wanted
        except HostError:
            unknown += 1
            continue
        if held:
            found.append(_describe(host, pid, tuple(sorted(node for node in held if node))))
    if unknown:
        found.append(Holder(0, f"{unknown} processes that may not be looked into", "", ()))
    return found


def _describe(host: Host, pid: int, nodes: tuple[str, ...]) -> Holder:
    cgroups = (host.read(f"proc/{pid}/cgroup") or "").splitlines()
    # The unified hierarchy has the empty controller list, "0::/system.slice/gdm.service".
    paths = [line.split(":", 2)[2] for line in cgroups if line.count(":") >= 2]
    parts = [part for path in paths for part in path.split("/")]
    units = [part for part in parts if part.endswith((".service", ".scope"))]
    command = host.read(f"proc/{pid}/comm") or "a process"
    return Holder(pid, command, units[-1] if units else "", nodes)
