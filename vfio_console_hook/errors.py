"""What can go wrong, told to people.

One class for each person who has to act. They are raised wherever the fact is
known and caught in two places only: hook.main and cli.main. The text says what
could not be done, to what, why, and what is the state now: lower case, no full
stop. The hint is one thing to try.
"""

from __future__ import annotations

import os

# How much of foreign text may stand in a sentence.
_LONGEST_PATH = 300
_LONGEST_CONTENT = 60


class HookError(Exception):
    """One sentence for a person, with an optional hint."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.text} (hint: {self.hint})" if self.hint else self.text


class ConfigError(HookError):
    """The administrator has to edit a configuration file."""


class DomainError(HookError):
    """The domain XML cannot be read."""


class RefusedError(HookError):
    """Going on would harm the host or the VM; nothing was begun."""


class HostError(HookError):
    """The kernel refused a read or a write; carries its path and errno."""

    def __init__(self, text: str, hint: str = "", *, path: str = "", errno: int = 0) -> None:
        super().__init__(text, hint)
        self.path = path
        self.errno = errno

    @classmethod
    def of(cls, what: str, path: str, error: OSError) -> HostError:
        """The HostError for a failed system call: "cannot WHAT PATH: reason"."""
        number = error.errno or 0
        shown = _cut(path)
        return cls(f"cannot {what} {shown}: {os.strerror(number)}", path=path, errno=number)

    @classmethod
    def unclear(cls, path: str, content: str) -> HostError:
        """The HostError for what is there and is not as the kernel writes it."""
        return cls(f"cannot understand {_cut(path)}: {content[:_LONGEST_CONTENT]!r}", path=path)


class UnrecordedError(HostError):
    """A snapshot of a machine does not contain what was asked for."""


class StepError(HookError):
    """The kernel accepted a step, and what it should have done is not there."""


class ClaimError(HookError):
    """The claim of claims cannot be read or written."""


class LostError(HookError):
    """Something cannot be given back before a reboot: told to the person, not a failure."""


class StuckError(HookError):
    """A process of ours cannot be killed: nothing may be tried or undone below it."""


class BugError(HookError):
    """Something that no one foresaw; carries the traceback for the log."""

    def __init__(self, text: str, hint: str = "", *, trace: str = "") -> None:
        super().__init__(text, hint)
        self.trace = trace

    @classmethod
    def of(cls, error: Exception) -> BugError:
        """The BugError for an unforeseen exception, while it is being handled."""
        import traceback  # only for a bug

        return cls(
            f"internal error: {type(error).__name__}: {error}",
            "this is a bug, please report it with `journalctl -t vfio-console-hook`",
            trace=traceback.format_exc(),
        )


def _cut(path: str) -> str:
    return path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}..."
