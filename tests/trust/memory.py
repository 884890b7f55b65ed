"""Where machines are laid out that are thrown away soon, and files that are not kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = "/dev/shm"


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
