"""Checks of the host, the installation and the VMs, as `doctor` prints them.

A check is a function that looks at a Subject and yields Findings; it changes
nothing. CHECKS holds them in the order in which they are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import HookError
from .finding import FAIL, PASS, WARN, Finding, Subject

Check = Callable[[Subject], Iterator[Finding]]

__all__ = ["FAIL", "PASS", "WARN", "Check", "Finding", "Subject", "checks", "examine"]


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which they are told."""
    return ()


def examine(subject: Subject) -> tuple[Finding, ...]:
    """What all checks find. A check that cannot look says so, and the others go on."""
    found: list[Finding] = []
    for check in checks():
        try:
            found += check(subject)
        except HookError as error:
            found.append(Finding(WARN, _title(check), f"cannot look: {error.text}", error.hint))
    return tuple(found)


def _title(check: Check) -> str:
    return check.__name__.replace("_", " ")
