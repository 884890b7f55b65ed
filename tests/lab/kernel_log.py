"""The messages of the kernel and QEMU when something is wrong."""

from __future__ import annotations

import re

BLOCKED_BAR = "can't reserve"
NO_MAPPING = "Failed to mmap"

_MARK = "lab: begin"
_FAULT = re.compile(
    r"WARNING: |BUG: |kernel BUG|Oops|general protection|Call Trace|refcount_t:"
    r"|Trying to free nonexistent|blocked for more than|Kernel panic"
)
_FATAL = re.compile(r"BUG: |kernel BUG|Oops|general protection|Kernel panic")


def mark_command(text: str) -> str:
    """The shell command that writes a mark, at which since_mark() begins."""
    return f"echo '{_MARK} {text}' > /dev/kmsg"


def since_mark(log: str) -> str:
    """The part of the log from the last mark on."""
    return log[max(log.rfind(_MARK), 0) :]


def fault(log: str) -> str | None:
    """The first line that reports a fault in the kernel, or None."""
    return next((line.strip() for line in log.splitlines() if _FAULT.search(line)), None)


def gravest(log: str) -> str | None:
    """The line that ended a task or the machine, else the first fault, without time; or None."""
    line = next((line for line in log.splitlines() if _FATAL.search(line)), fault(log))
    return line and re.sub(r"^(?:\[[^]]*\] *)+", "", line.strip())
