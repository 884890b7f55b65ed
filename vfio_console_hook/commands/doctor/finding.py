"""One line of doctor, and the frame around a check that yields such lines."""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ...errors import (
    HookError,
    HostError,
    InstallationError,
    StuckError,
    UnrecordedError,
)
from ...machine.host import Host
from .system import System

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
NOT_RECORDED = "not in this snapshot"
AS_ROOT = "run `vfio-console-hook doctor` as root"
# Programs report a refusal in the words of strerror(3), journalctl in its own.
_NOT_ALLOWED = re.compile("Permission denied|insufficient permissions|not seeing messages")


@dataclass(frozen=True)
class Finding:
    """One line of doctor.

    level is PASS, WARN or FAIL. subject is the title ("IOMMU group of 0000:01:00.0"),
    text what was found, advice what to do about it. check() fills in a title that is
    missing, Area.findings() the heading.
    """

    level: str
    subject: str
    text: str
    advice: str = ""
    area: str = ""


def passed(text: str, *, of: str = "") -> Finding:
    """A PASS; of is a title other than that of the check."""
    return Finding(PASS, of, text)


def warning(text: str, advice: str = "", *, of: str = "") -> Finding:
    """A WARN; of is a title other than that of the check."""
    return Finding(WARN, of, text, advice)


def failure(text: str, advice: str = "", *, of: str = "") -> Finding:
    """A FAIL; of is a title other than that of the check."""
    return Finding(FAIL, of, text, advice)


Check = Callable[[System], Iterator[Finding]]
"""Reads a System, changes nothing, raises nothing, and yields what it found."""


def check(title: str) -> Callable[[Check], Check]:
    """Decorate a check: its findings get this title, and an error becomes one of them."""

    def decorate(unframed: Check) -> Check:
        @functools.wraps(unframed)
        def framed(system: System) -> Iterator[Finding]:
            try:
                for one in unframed(system):
                    yield replace(one, subject=one.subject or title)
            except HookError as error:
                yield could_not_check(title, error)

        return framed

    return decorate


def could_not_check(title: str, error: HookError) -> Finding:
    """The finding for an error: what is unknown is neither right nor wrong."""
    if isinstance(error, UnrecordedError):
        return Finding(WARN, title, NOT_RECORDED)
    refused = isinstance(error, HostError) and error.errno in (errno.EACCES, errno.EPERM)
    if refused or _NOT_ALLOWED.search(error.text):
        return Finding(WARN, title, f"this user cannot check it: {error.text}", AS_ROOT)
    level = FAIL if isinstance(error, (StuckError, InstallationError)) else WARN
    return Finding(level, title, f"could not be checked: {error.text}", error.hint)


def unrecorded(host: Host, *paths: str) -> bool:
    """Whether this is a snapshot without any of these paths, so that nothing is known of them."""
    return not host.complete and not any(host.exists(path) for path in paths)


def need_recorded(host: Host, *paths: str) -> None:
    """Raise UnrecordedError, which ends the check, when none of these is in the snapshot."""
    if unrecorded(host, *paths):
        raise UnrecordedError(f"/{paths[0]} is {NOT_RECORDED}")
