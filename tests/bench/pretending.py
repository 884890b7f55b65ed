"""A recorded machine that shows what prepare changed, and keeps it in memory only.

So every run finds the machine alike, and costs no more than a real one would.
"""

from __future__ import annotations

import os

from vfio_console_hook import hook, journal
from vfio_console_hook.actions.firmware import PCI_COMMAND
from vfio_console_hook.recorded import RecordedHost


class Pretending(RecordedHost):
    """Shows the firmware driver unbound and memory decoding off once that was written."""

    unbound = False
    command = b""

    def write(self, path: str, text: str) -> None:
        self.unbound = self.unbound or path.endswith("/unbind")

    def poke(self, path: str, offset: int, content: bytes) -> None:
        self.command = content

    def peek(self, path: str, offset: int, size: int) -> bytes:
        if self.command and offset == PCI_COMMAND:
            return self.command
        return super().peek(path, offset, size)

    def link_name(self, path: str) -> str | None:
        gone = self.unbound and "-framebuffer." in path and path.endswith("/driver")
        return None if gone else super().link_name(path)

    def read_bytes(self, path: str) -> bytes | None:
        content = super().read_bytes(path)
        if self.unbound and content is not None and path == "proc/iomem":
            lines = content.split(b"\n")
            return b"\n".join(line for line in lines if not line.endswith(b": efifb"))
        return content


def main(root: str, argv: list[str]) -> int:
    """Run one event on the machine below root and forget its claim; the exit status."""
    host = Pretending(root)
    status = hook.main(argv, host=host)
    for folder in (journal.CLAIMS, journal.BY_NAME):
        for name in os.listdir(host.path(folder)):
            os.unlink(host.path(f"{folder}/{name}"))
    return status
