"""The errors that people see.

There is one class for each way to act on it. They are raised where the fact is known and
caught in two places only: hook.main and cli.main. The text says what could not be done, to
what, why, and the state now: lower case, no full stop. The hint is one thing to try.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# The most characters of a path or a file's content in a sentence.
_LONGEST_PATH = 300
_LONGEST_CONTENT = 60

_PACKAGES = {
    "lxml": "install the package python3-lxml (Arch: python-lxml)",
    "PyYAML": "install the package python3-yaml (Fedora: python3-pyyaml, openSUSE: python3-PyYAML,"
    " Arch: python-yaml)",
}


class HookError(Exception):
    """One sentence for a person, with an optional hint."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.text} (hint: {self.hint})" if self.hint else self.text

    def adding(self, clause: str) -> HookError:
        """The same error with a clause more, where something is known that it could not know."""
        return error_of({**self.to_json(), "text": self.text + clause})

    def to_json(self) -> dict[str, Any]:
        """The error as JSON values, for another process; error_of() makes it again."""
        return {"class": type(self).__name__, **vars(self)}


class ConfigError(HookError):
    """The administrator has to edit a configuration file."""


class DomainError(HookError):
    """The domain XML cannot be read."""


class RefusedError(HookError):
    """Going on would harm the host or the VM; nothing was begun."""


class InstallationError(HookError):
    """A library that the program needs, or a part of it, is not installed."""

    @classmethod
    def of(cls, library: str, error: Exception) -> InstallationError:
        """The error for a library that cannot be loaded: "lxml" or "PyYAML"."""
        return cls(f"cannot load {library}: {error}; nothing was changed", _PACKAGES[library])

    @classmethod
    def of_program(cls, error: ImportError) -> InstallationError:
        """The error for a module of the program that cannot be loaded."""
        return cls(
            f"cannot load the program: {error}", "install vfio-console-hook again"
        )


class HostError(HookError):
    """A read, a write or a program failed; carries path and errno of a system call."""

    def __init__(self, text: str, hint: str = "", *, path: str = "", errno: int = 0) -> None:
        super().__init__(text, hint)
        self.path = path
        self.errno = errno

    @classmethod
    def of(cls, what: str, path: str, error: OSError) -> HostError:
        """The HostError for a failed system call: "cannot WHAT PATH: reason"."""
        number = error.errno or 0
        shown = cut(path, _LONGEST_PATH)
        return cls(f"cannot {what} {shown}: {os.strerror(number)}", path=path, errno=number)

    @classmethod
    def unclear(cls, path: str, content: str) -> HostError:
        """The HostError for a file whose content is not in the kernel's format."""
        return cls(
            f"cannot understand {cut(path, _LONGEST_PATH)}: {content[:_LONGEST_CONTENT]!r}",
            path=path,
        )


class UnrecordedError(HostError):
    """A snapshot of a machine does not contain what was asked for."""


class StepError(HookError):
    """The kernel accepted a step, but reading back shows that it had no effect."""


class ClaimError(HookError):
    """A claim cannot be read or written."""


class LostError(HookError):
    """Something comes back only with a reboot: reported, but not a failure."""


class StuckError(HookError):
    """A process of ours cannot be killed: nothing is done or undone while it is stuck."""


class CutOffError(HookError):
    """The work did not come to its end; it no longer runs."""


class BugError(HookError):
    """A bug: any other exception; carries the traceback for the log."""

    def __init__(self, text: str, hint: str = "", *, trace: str = "") -> None:
        super().__init__(text, hint)
        self.trace = trace

    @classmethod
    def of(cls, error: Exception) -> BugError:
        """The BugError for any other exception, while it is being handled."""
        import traceback  # only for a bug

        return cls(
            f"internal error: {type(error).__name__}: {error}",
            "this is a bug, please report it with `journalctl -t vfio-console-hook`",
            trace=traceback.format_exc(),
        )


def understood(error: Exception) -> HookError:
    """Any exception, while it is being handled, as an error that people see."""
    if isinstance(error, HookError):
        return error
    if isinstance(error, ImportError):
        return InstallationError.of_program(error)
    return BugError.of(error)


def error_of(value: dict[str, Any]) -> HookError:
    """The error that to_json() wrote, of the same class."""
    kinds: list[Any] = [HookError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    fields = {key: one for key, one in value.items() if key != "class"}
    error: HookError = next(kind for kind in kinds if kind.__name__ == value["class"])(**fields)
    return error


def cut(text: str, longest: int) -> str:
    """The text, cut off after longest characters."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or ""."""
    import difflib  # takes 2 ms to load, so only for a mistake

    folded = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), folded, n=1)
    return folded[near[0]] if near else ""
