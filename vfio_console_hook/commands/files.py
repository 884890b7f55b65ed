"""Files that are named on the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from ..errors import HookError


def content(path: str) -> bytes:
    """The content of a file, or of the standard input for "-". Raises HookError."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise HookError(f"cannot read {path}: {error.strerror}") from error


def write(path: str, text: str) -> None:
    """Replace the content of a file, or create it. Raises HookError."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HookError(f"cannot write {path}: {error.strerror}") from error


def lines(path: str) -> tuple[str, ...]:
    """The lines of a user's own file; none when it is not there or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return tuple(file.read().splitlines())
    except OSError:
        return ()


def keep_lines(path: str, kept: Iterable[str]) -> None:
    """Make a user's own file of these lines, and its directory. Raises HookError."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in kept))
    except OSError as error:
        raise HookError(f"cannot write {path}: {error.strerror}") from error
