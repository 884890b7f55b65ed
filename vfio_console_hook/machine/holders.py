"""Finding the processes that have a node of a GPU open or mapped.

Only /proc is read. A file that a process has open is never touched unless it is below
/dev: it could be on a network file system that does not answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..errors import HostError
from . import processes
from .host import Host

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from .holder import Holder

COMM = 15
"""How much of a command /proc/PID/comm shows (Linux include/linux/sched.h, TASK_COMM_LEN)."""
_DELETED = " (deleted)"
_KTHREADD = 2
# Every container has these (OCI Runtime Specification, "Default Devices"), and most
# processes have them open: their device numbers are not compared.
_DEFAULT_DEVICES = frozenset(
    f"/dev/{name}"
    for name in ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero")
)
# One line of /proc/PID/maps: the area, then mode, offset, device and inode; the name.
_MAPPING = rb"^([0-9a-f]+)-([0-9a-f]+) (?:\S+ +){4}(/.*)$"
# Of the 800 bytes of an error that virsh of libvirt 7.0 shows, this many list processes.
_MAX_LISTED = 360
# The pauses between two searches start short and double.
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.25


def listed(texts: Iterable[object]) -> str:
    """The first of them, as many as fit into an error text, and how many more there are."""
    found = [str(text) for text in texts]
    shown = found[:1]
    for text in found[1:]:
        if len(", ".join([*shown, text]).encode()) > _MAX_LISTED:
            break
        shown.append(text)
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def holders_of(host: Host, nodes: Iterable[str]) -> list[Holder]:
    """The processes that have one of the nodes open, such as "dev/fb0"; by process id.

    Processes that cannot be inspected are included; this process is not.
    """
    return Search(host, nodes).holders()


def pauses(host: Host, timeout_s: float) -> Iterator[float]:
    """How many seconds to wait before each next search, until timeout_s are over."""
    deadline = host.clock() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while (left_s := deadline - host.clock()) > 0:
        yield min(pause_s, left_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class Search:
    """Searches all processes for those that have some nodes open, as often as needed.

    /proc may show a node under another name. Of a file system that is no longer mounted it
    shows only the end of the path (Linux fs/d_path.c, prepend_path), and a container, or
    mknod, may have another node for the same device: that has the same device number.
    """

    def __init__(self, host: Host, nodes: Iterable[str]) -> None:
        self._host = host
        self._shown: dict[str, str] = {}
        self._numbers: dict[int, str] = {}
        for node in nodes:
            if node.startswith("sys/"):
                self._add_files(node)
            else:
                self._add_node(node)
        words = {text.rpartition("/")[2] for text in self._shown if not text.endswith(_DELETED)}
        self._words = (b" /dev/", *(f"/{word}".encode() for word in sorted(words)))

    def _add_files(self, folder: str) -> None:
        # /proc shows the path without links (d_path).
        real = self._host.real(folder)
        for name in self._host.list(folder):
            self._add(f"/{real}/{name}", f"/{folder}")

    def _add_node(self, node: str) -> None:
        parts = node.split("/")
        names = ["/" + "/".join(parts[number:]) for number in range(len(parts))]
        for name in names:
            # "/12" may be a vfio group, or a terminal of a container (devpts).
            if not name[1:].isdigit():
                self._add(name, f"/{node}")
        number = self._host.device_number(node)
        if number is not None:
            self._numbers[number] = f"/{node}"

    def _add(self, text: str, node: str) -> None:
        self._shown[text] = self._shown[text + _DELETED] = node

    def holders(self) -> list[Holder]:
        """All processes that hold one of the nodes, by process id."""
        if not self._shown:
            return []
        return self.among(processes.pids(self._host))

    def among(self, pids: Iterable[int]) -> list[Holder]:
        """Those of these processes that hold one of the nodes."""
        ourselves = self._host.own_pids()
        found = []
        for pid in pids:
            try:
                held = self._nodes_of(pid)
            except HostError:
                held = None
            if (held is None or held) and pid not in ourselves:
                found.append(self._holder(pid, held or set()))
        return [one for one in found if one]

    def _nodes_of(self, pid: int) -> set[str]:
        """The nodes that a process holds. Raises HostError when it cannot be inspected."""
        files = self._host.open_files(pid)
        found = {self._shown[text] for text in self._shown.keys() & files.keys()}
        for text in [text for text in files if text[:5] == "/dev/"]:
            found |= self._node_by_number(text, f"proc/{pid}/fd/{files[text]}")
        maps = self._host.mappings(pid)
        for word in self._words:
            if word in maps:
                for text, area in _mapped_files(maps):
                    if text in self._shown:
                        found.add(self._shown[text])
                    elif text[:5] == "/dev/":
                        found |= self._node_by_number(text, f"proc/{pid}/map_files/{area}")
                break
        return found

    def _node_by_number(self, text: str, link: str) -> set[str]:
        """The node that has the device number of a file below /dev with another name."""
        if text in self._shown or text in _DEFAULT_DEVICES or not self._numbers:
            return set()
        number = self._host.device_number(link)
        return {self._numbers[number]} if number in self._numbers else set()

    def _holder(self, pid: int, held: set[str]) -> Holder | None:
        """The process; None when nothing is held and it has ended or is a kernel thread."""
        process = processes.find(self._host, pid)
        if not held and (process is None or _KTHREADD in (pid, process.parent)):
            return None
        from .holder import Holder  # takes 0.7 ms to load, and mostly nothing holds a node

        command = command_of(self._host, pid) or "a process"
        started = process.started if process else 0
        return Holder(pid, command, cgroup_of(self._host, pid), tuple(sorted(held)), started)


def _mapped_files(maps: bytes) -> Iterator[tuple[str, str]]:
    """(name, area) of each file in a text of /proc/PID/maps; the area as in map_files.

    Source: Linux fs/proc/task_mmu.c, show_map_vma pads addresses to eight digits, and
    fs/proc/base.c, map_files_get_link does not.
    """
    for match in re.finditer(_MAPPING, maps, re.MULTILINE):
        first, last = int(match[1], 16), int(match[2], 16)
        yield match[3].decode("utf-8", "surrogateescape"), f"{first:x}-{last:x}"


def command_of(host: Host, pid: int) -> str:
    """The name of a process's command, at most 15 characters, or ""."""
    return _text(host, f"proc/{pid}/comm")


def cgroup_of(host: Host, pid: int) -> str:
    """The path of the cgroup of a process that systemd uses, or ""."""
    found = ""
    for line in _text(host, f"proc/{pid}/cgroup").splitlines():
        # "0::PATH" in the unified hierarchy, "1:name=systemd:PATH" before it (cgroups(7)).
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers in ("", "name=systemd") and len(path) > len(found) and path != "/":
            found = path
    return found


def _text(host: Host, path: str) -> str:
    try:
        return host.read(path) or ""
    except HostError:
        return ""
