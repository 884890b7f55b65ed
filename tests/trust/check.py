"""A check: a promise, and how it is tried out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Effort:
    """How much a check may do: quick is for every change, otherwise all there is.

    directory is empty and the check's own; minutes is how long what could go on for
    ever may go on.
    """

    quick: bool
    directory: Path
    minutes: float


@dataclass(frozen=True)
class Outcome:
    """What came of it: how many cases were tried, and what was wrong, one line each.

    figures is a clause for the table, such as "on 62 machines".
    """

    cases: int
    failures: tuple[str, ...] = ()
    figures: str = ""


@dataclass(frozen=True)
class Check:
    """promise is one line for people; alone, whether nothing else may run beside it."""

    name: str
    promise: str
    run: Callable[[Effort], Outcome]
    alone: bool = False


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A new directory in a file system of memory, if there is one, as /run is on every host.

    If there is none, it is below otherwise. It is gone afterwards.
    """
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else otherwise
    directory = Path(tempfile.mkdtemp(prefix="trust-", dir=place))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
