"""An event of a VM in a process of its own, and what libvirt would see of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests import snapshots
from tests.fakehost import FakeHost
from tests.libvirt_xml import domain_xml
from tests.trust.process import Exit, in_a_process
from vfio_console_hook import hook

GPU = "0000:01:00.0"
NAME = "win11"
OTHER_UID = 12345
"""The user and group of another user than root."""


def fresh(machine: str, directory: Path) -> FakeHost:
    """A machine whose vfio-pci is loaded, in a new directory below this one."""
    root = directory / "machine"
    shutil.rmtree(root, ignore_errors=True)
    snapshots.unpack_into(machine, root)
    FakeHost(str(root)).load_module("vfio-pci")
    return FakeHost(str(root))


def event(
    host: FakeHost,
    operation: str,
    name: str = NAME,
    xml: bytes | None = None,
    first: Callable[[], object] = int,
) -> Exit:
    """Let libvirt call the hook for a VM with one GPU; first is done in the same process."""
    given = xml if xml is not None else domain_xml(GPU, name=name, event=operation)
    sub = "end" if operation in ("release", "stopped") else "begin"

    def work() -> int:
        first()
        return hook.main([name, operation, sub, "-"], given, type(host)(host.root))

    return in_a_process(work, Path(host.root).parent / "stderr")
