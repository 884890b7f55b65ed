"""Device nodes that stay open: what is asked of them by ioctl, and what of them is mapped.

A handle is a number that only close_node() ends. Beside vfio's nodes nothing is kept open: the
other ioctls (consoles.py) open a node for one question.
"""

from __future__ import annotations

import os

from ...errors import HostError
from .files import Files

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Protocol

    class Mapping(Protocol):
        """A part of a node in memory, until it is closed."""

        def close(self) -> None: ...


class Nodes(Files):
    """Device nodes that are kept open."""

    def open_node(self, path: str) -> int:
        """A handle of a device node, to read and write. Raises HostError, if it is missing too."""
        try:
            return os.open(self.path(path), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError.of("open", f"/{path}", error) from error

    def close_node(self, handle: int) -> None:
        os.close(handle)

    def ask_node(self, handle: int, request: int, argument: bytearray | int, name: str) -> int:
        """What an ioctl returns; it may write into argument. Raises HostError.

        name is what people call the node. Some ioctls return a new handle.
        """
        import fcntl  # only a rehearsal needs it

        try:
            return fcntl.ioctl(handle, request, argument)
        except OSError as error:
            raise HostError.of(f"ask (ioctl {request:#x})", name, error) from error

    def map_node(self, handle: int, offset: int, size: int, name: str) -> Mapping:
        """A shared mapping, to read and write, which nothing has touched. Raises HostError."""
        import mmap  # only a rehearsal needs it

        try:
            return mmap.mmap(handle, size, offset=offset)  # MAP_SHARED, PROT_READ | PROT_WRITE
        except OSError as error:
            raise HostError.of("map", name, error) from error
