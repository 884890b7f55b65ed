"""Processes: what /proc shows of them, which files they have open, and how they end.

What /proc does not show lies below fake/:

    fake/concealed/PID       it may not be looked into
    fake/opened/proc/PID/... the node that a link there leads to, where its text names another
    fake/obeys/PID           "15 2.5": the signal that ends it beside SIGKILL, and its seconds
    fake/due/PID             when it ends, by the machine's clock
"""

from __future__ import annotations

import signal

from . import fbdev
from .tree import Tree

NEVER = 0
"""What ends a process in state D: it has every signal pending and acts on none (kernel/signal.c,
signal_wake_up_state, which does not wake TASK_UNINTERRUPTIBLE)."""

_AREA = 0x1000


def make(tree: Tree, pid: int, command: str, cgroup: str, *, parent: int = 1) -> None:
    """Let there be a process, if there is none of that number yet."""
    if tree.exists(f"proc/{pid}/stat"):
        return
    started = int(tree.read("fake/ticks") or "1000") + 1
    tree.put("fake/ticks", str(started))
    tree.put(f"proc/{pid}/comm", command)
    tree.put(f"proc/{pid}/cgroup", cgroup)
    # Linux fs/proc/array.c, do_task_stat: parent is the 4th field, the start the 22nd.
    rest = f"S {parent} {pid} {pid} 0 -1 4194560 {'0 ' * 8}20 0 1 0 {started} 0 0"
    tree.put(f"proc/{pid}/stat", f"{pid} ({command}) {rest}")
    tree.make_directory(f"proc/{pid}/fd")
    tree.put(f"proc/{pid}/maps", "")


def open_file(tree: Tree, pid: int, node: str, shown: str, number: int = -1) -> None:
    """Give it a descriptor of a node, which is called shown (fs/proc/base.c, do_proc_readlink)."""
    free = number if number >= 0 else len(tree.list(f"proc/{pid}/fd"))
    _lead(tree, f"proc/{pid}/fd/{free}", node, shown)


def close_file(tree: Tree, pid: int, number: int) -> None:
    """Take a descriptor away; the process goes with its last one."""
    tree.remove(f"proc/{pid}/fd/{number}")
    tree.remove(f"fake/opened/proc/{pid}/fd/{number}")
    if not tree.list(f"proc/{pid}/fd"):
        end(tree, pid)


def map_file(tree: Tree, pid: int, node: str, shown: str) -> None:
    """Let it have mapped a node (fs/proc/task_mmu.c, show_map_vma; base.c, proc_map_files)."""
    maps = tree.read_bytes(f"proc/{pid}/maps") or b""
    first = (maps.count(b"\n") + 1) * 16 * _AREA
    last = first + _AREA
    head = f"{first:08x}-{last:08x} rw-s 00000000 00:06 {first % 999} "
    tree.put(f"proc/{pid}/maps", maps.decode() + head.ljust(73) + shown)
    _lead(tree, f"proc/{pid}/map_files/{first:x}-{last:x}", node, shown)


def _lead(tree: Tree, link: str, node: str, shown: str) -> None:
    tree.text_link(link, shown)
    tree.put(f"fake/opened/{link}", node)


def having_open(tree: Tree, shown: str) -> list[tuple[int, str]]:
    """The processes that have a file of that name open, each with the link in its fd."""
    return [
        (int(pid), f"proc/{pid}/fd/{number}")
        for pid in tree.list("proc") if pid.isdigit()
        for number in tree.list(f"proc/{pid}/fd")
        if tree.readlink(f"proc/{pid}/fd/{number}") == shown
    ]  # fmt: skip


def forget_node(tree: Tree, node: str) -> None:
    """Whoever has it open sees that the node is no longer in /dev (devtmpfs_delete_node)."""
    for _, link in having_open(tree, f"/{node}"):
        tree.remove(link)
        tree.text_link(link, f"/{node} (deleted)")


def runs(pid: int) -> bool:
    """Whether a process of a test, which is one of this computer, has not ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def device_number(tree: Tree, path: str) -> int | None:
    """The number of a node in /dev, or of the one that a link in /proc leads to.

    The file in the place of a node in a recorded machine has a number of its own.
    """
    node = tree.read(f"fake/opened/{path}") or path
    status = tree.stat(node) if node.startswith("dev/") else None
    return status.st_ino if status else None


def end(tree: Tree, pid: int) -> None:
    """A process ends; what only it kept alive is freed (kernel/exit.c, do_exit, exit_files)."""
    fakes = (f"fake/{kind}/{pid}" for kind in ("obeys", "due", "real"))
    for path in (f"proc/{pid}", f"fake/opened/proc/{pid}", *fakes):
        tree.remove(path)
    _end_sessions(tree)
    fbdev.settle(tree)


def _end_sessions(tree: Tree) -> None:
    """logind closes the devices of a session whose compositor has gone, and systemd their copies.

    systemd src/login/logind-session.c, session_drop_controller; logind-session-device.c,
    session_device_free. systemd, process 1, has them as the store of logind's service. seatd:
    seatd/seat.c, seat_remove_client.
    """
    for pid in [int(name) for name in tree.list("proc") if name.isdigit()]:
        if not keeps(tree, pid):
            continue
        for number in tree.list(f"proc/{pid}/fd"):
            link = f"proc/{pid}/fd/{number}"
            users = [one for one, _ in having_open(tree, tree.readlink(link) or "")]
            if all(keeps(tree, one) for one in users):
                tree.remove(link)


def keeps(tree: Tree, pid: int) -> bool:
    """Whether it keeps devices open for a login session."""
    keepers = ("systemd", "systemd-logind", "elogind", "elogind-daemon", "seatd")
    return (tree.read(f"proc/{pid}/comm") or "") in keepers


def receive(tree: Tree, pid: int, number: int, now: float) -> None:
    """A process gets a signal (kernel/signal.c, complete_signal and get_signal).

    It may ignore or handle SIGTERM, and take its time; SIGKILL ends it at once.
    """
    by, takes_s = (tree.read(f"fake/obeys/{pid}") or "15 0").split()
    if int(by) == NEVER or number not in (int(by), signal.SIGKILL):
        return
    wait_s = 0.0 if number == signal.SIGKILL else float(takes_s)
    tree.put(f"fake/due/{pid}", str(now + wait_s))
    end_due(tree, now)


def due(tree: Tree, pid: int) -> float | None:
    """When a process ends, if that is known."""
    when = tree.read(f"fake/due/{pid}")
    return None if when is None else float(when)


def end_due(tree: Tree, now: float) -> None:
    for name in tree.list("fake/due"):
        when = due(tree, int(name))
        if when is not None and when <= now:
            end(tree, int(name))
