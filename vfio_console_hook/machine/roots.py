"""Processes that see other files than the host does: in a container, or after chroot(2)."""

from __future__ import annotations

from .host import Host


def seen_by(host: Host, pid: int) -> str:
    """The directory below which the files are that a process sees, "" if they are the host's.

    The path is in the form of Host's. Raises HostError when it may not be looked at.
    """
    root = f"proc/{pid}/root"
    # proc(5): below this magic link everything has the view of the process. In a mount
    # namespace of its own the link reads "/" all the same. In a snapshot it is a directory.
    target = host.readlink(root)
    moved = target not in (None, "/") or (target is None and host.exists(root))
    return root if moved or _namespace(host, str(pid)) not in (None, _own(host)) else ""


def _own(host: Host) -> str | None:
    # Process 1 first, because a snapshot has no process of ours.
    return _namespace(host, "1") or _namespace(host, "self")


def _namespace(host: Host, process: str) -> str | None:
    """The mount namespace of a process, such as "mnt:[4026531841]" (namespaces(7))."""
    return host.readlink(f"proc/{process}/ns/mnt")
