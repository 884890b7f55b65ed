"""What a check tells when it cannot look: not known is neither right nor wrong."""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable, Iterator

from ...errors import HostError
from .finding import NOT_RECORDED, WARN, Check, Finding, Subject

# Programs tell it in words: most in those of strerror(3), journalctl in its own.
_NOT_ALLOWED = re.compile("Permission denied|insufficient permissions|not seeing messages")


def unknown(subject: str, error: HostError) -> Finding:
    """The finding for something that could not be looked at."""
    if error.errno in (errno.EACCES, errno.EPERM) or _NOT_ALLOWED.search(error.text):
        text = f"cannot look as this user: {error.text}"
        return Finding(WARN, subject, text, "run `vfio-console-hook doctor` as root")
    if unasked(error):
        return Finding(WARN, subject, NOT_RECORDED)
    return Finding(WARN, subject, f"not known: {error.text}", error.hint)


def titled(subject: str) -> Callable[[Check], Check]:
    """For checks: if it cannot look at something, that is told under this subject."""

    def decorate(check: Check) -> Check:
        @functools.wraps(check)
        def looking(about: Subject) -> Iterator[Finding]:
            try:
                yield from check(about)
            except HostError as error:
                yield unknown(subject, error)

        return looking

    return decorate


def unasked(error: HostError) -> bool:
    """Whether a program was not asked for the recorded machine that this is."""
    return error.text.endswith("on a recorded machine")
