"""Where a path leads, and whether another user than root could make it lead elsewhere.

A file can also be replaced by a user who can write a directory on its path, or owns a
symbolic link there. So the whole path is resolved, link by link: NixOS, stow and others put
links that root owns into /etc, and those are accepted.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ..value import Value
from .access import WRITABLE, why_untrusted
from .host import Host

# As many links as the kernel follows in one path (Linux include/linux/namei.h, MAXSYMLINKS).
_MOST_LINKS = 40


@dataclass(frozen=True, eq=False, repr=False)
class Resolved(Value):
    """A path without links, and whether it can be trusted.

    path is "" when nothing is there. untrusted is the first place on the path that another
    user could have changed, and why says so, as a clause about it; both are "" when there
    is none.
    """

    path: str = ""
    untrusted: str = ""
    why: str = ""


def resolve(host: Host, path: str) -> Resolved:
    """Resolve path, up to the first place that another user could change. Raises HostError."""
    # os.path.realpath() resolves links too, but does not show which places it passed.
    walked = ""
    left = path.split("/")
    links = 0
    while left:
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            walked = walked.rpartition("/")[0]
            continue
        place = f"{walked}/{part}" if walked else part
        status = host.lstat(place)
        if status is None:
            return Resolved()
        why = why_untrusted(status, host.owner_uid)
        if why and not (why == WRITABLE and left and _is_sticky(status)):
            return Resolved("", place, why)
        if not stat.S_ISLNK(status.st_mode):
            walked = place
            continue
        links += 1
        if links > _MOST_LINKS:
            return Resolved()
        target = host.readlink(place) or ""
        walked = "" if target.startswith("/") else walked
        left = target.split("/") + left
    return Resolved(walked)


def _is_sticky(status: os.stat_result) -> bool:
    """Whether users can replace only what they own in there, as in /nix/store (inode(7))."""
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
