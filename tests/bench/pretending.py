"""The real Host over a snapshot that does not change, so that every run is like the first.

The hook's writes to the machine stay in memory, and reads return them. All other reads are
from files, as on the running machine, so a run costs the same as there.
"""

from __future__ import annotations

import os

from vfio_console_hook import hook
from vfio_console_hook.actions.firmware import PCI_COMMAND
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME
from vfio_console_hook.machine.host import Host


class Pretending(Host):
    """A machine at an operation of a VM.

    After prepare the firmware's framebuffer is unbound and memory decoding is off; at
    start vfio-pci has the GPU.
    """

    def __init__(self, root: str, operation: str) -> None:
        super().__init__(root)
        self.unbound = operation != "prepare"
        self.vfio = operation == "start"
        self.command = b"\0\0" if self.unbound else b""

    def write(self, path: str, text: str) -> None:
        self.unbound = path.endswith("/unbind")

    def poke(self, path: str, offset: int, content: bytes) -> None:
        self.command = content

    def peek(self, path: str, offset: int, size: int) -> bytes:
        if self.command and offset == PCI_COMMAND:
            return self.command
        return super().peek(path, offset, size)

    def link_name(self, path: str) -> str | None:
        if self.vfio and path.startswith("sys/bus/pci/") and path.endswith("/driver"):
            return "vfio-pci"
        gone = self.unbound and "-framebuffer." in path and path.endswith("/driver")
        return None if gone else super().link_name(path)

    def read_bytes(self, path: str) -> bytes | None:
        content = super().read_bytes(path)
        if self.unbound and content is not None and path == "proc/iomem":
            lines = content.split(b"\n")
            return b"\n".join(line for line in lines if not line.endswith(b": efifb"))
        return content


def main(root: str, argv: list[str]) -> int:
    """Run one event on the machine below root; the exit status.

    Afterwards the claims are as before, for the next run. If there was no directory of
    claims, the claim stays: so the first prepare leaves one.
    """
    host = Pretending(root, argv[1])
    if not host.exists(CLAIMS):
        return hook.main(argv, host=host)
    before = _claims(host)
    status = hook.main(argv, host=host)
    for path in _claims(host).keys() - before.keys():
        os.unlink(host.path(path))
    for path, content in before.items():
        _put(host.path(path), content)
    return status


def prepare(root: str, argv: list[str]) -> int:
    """Run prepare on the machine below root; the exit status.

    Afterwards its claim is removed. The claims of other VMs are not read, as there may be
    many.
    """
    host = Pretending(root, argv[1])
    status = hook.main(argv, host=host)
    name = host.path(f"{BY_NAME}/={argv[0]}")
    os.unlink(os.path.join(os.path.dirname(name), os.readlink(name)))
    os.unlink(name)
    return status


def _claims(host: Host) -> dict[str, bytes | str]:
    """The files and links of claims, with their contents."""
    found: dict[str, bytes | str] = {}
    for folder in (CLAIMS, BY_NAME):
        for name in os.listdir(host.path(folder)):
            path = f"{folder}/{name}"
            found[path] = host.readlink(path) or host.read_bytes(path) or b""
    return found


def _put(path: str, content: bytes | str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
    if isinstance(content, str):
        os.symlink(content, path)
        return
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(handle, content)
    os.close(handle)
