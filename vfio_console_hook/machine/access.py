"""Which files root can trust: those that only root can change."""

from __future__ import annotations

import os
import stat

WRITABLE = "can be written by others than root"
# The mask of an access control list shows as the mode of the group (acl(5)).
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def why_untrusted(status: os.stat_result, owner_uid: int = 0) -> str:
    """Why a file or directory cannot be trusted, by its owner and mode: a clause, or ""."""
    if status.st_uid not in (0, owner_uid):
        return f"belongs to user {status.st_uid} instead of root"
    # The mode of a link is 0777 and has no meaning (symlink(7)).
    if status.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(status.st_mode):
        return WRITABLE
    return ""
