"""prepare of a VM with one GPU on a recorded machine, as the gate starts it.

Run as `python3 -I prepare.py ROOT NAME prepare begin -`, with the XML on stdin.
What prepare changes is kept in memory, so that every run finds the machine alike.
"""

from __future__ import annotations

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from vfio_console_hook import hook, journal  # noqa: E402  (the path has to be there first)
from vfio_console_hook.actions.firmware import PCI_COMMAND  # noqa: E402
from vfio_console_hook.recorded import RecordedHost  # noqa: E402


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


def main() -> int:
    host = Pretending(sys.argv[1])
    status = hook.main(sys.argv[2:], host=host)
    for folder in (journal.CLAIMS, journal.BY_NAME):
        for name in os.listdir(host.path(folder)):
            os.unlink(host.path(f"{folder}/{name}"))
    return status


if __name__ == "__main__":
    sys.exit(main())
