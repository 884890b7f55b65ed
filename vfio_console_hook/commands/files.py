"""Files that are named on the command line."""

from __future__ import annotations

import sys

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
