"""Whose files these are: root obeys nothing that somebody else could have written.

A file is also exchanged by whoever may write a directory on the way to it, or owns a link
there. So the whole way is walked, link by link: NixOS, stow and others lay links of root's
into /etc, and these are as good as files.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from .host import Host

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    import os

WRITABLE = "can be written by others than root"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH  # the mask of an access control list is in it, too
# As many links as the kernel follows in one path (Linux include/linux/namei.h, MAXSYMLINKS).
_MOST_LINKS = 40


@dataclass(frozen=True)
class Way:
    """Where a path leads: end is the same place without any link, "" when nothing is there.

    bad is the first place on the way that somebody else could have made, and why says so,
    as a clause about it; both are "" when there is none. Then end can be trusted.
    """

    end: str = ""
    bad: str = ""
    why: str = ""


def refused(status: os.stat_result, owner_uid: int = 0) -> str:
    """Why a file or directory would not be obeyed, by its owner and mode: a clause, or ""."""
    if status.st_uid not in (0, owner_uid):
        return f"belongs to user {status.st_uid} instead of root"
    # Everybody may "write" a link, which means nothing.
    if status.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(status.st_mode):
        return WRITABLE
    return ""


def follow(host: Host, path: str) -> Way:
    """Walk to path and look who could have changed what is on the way. Raises HostError."""
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
            return Way()
        why = refused(status, host.owner_uid)
        if why and not (why == WRITABLE and left and _is_sticky(status)):
            return Way("", place, why)
        if not stat.S_ISLNK(status.st_mode):
            walked = place
            continue
        links += 1
        if links > _MOST_LINKS:
            return Way()
        target = host.readlink(place) or ""
        walked = "" if target.startswith("/") else walked
        left = target.split("/") + left
    return Way(walked)


def _is_sticky(status: os.stat_result) -> bool:
    """Whether nobody can replace what belongs to others in there, as in /nix/store (inode(7))."""
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
