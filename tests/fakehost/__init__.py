"""A recorded machine that reacts to writes as Linux does.

FakeHost is the machine; the rest is what happens around the program: QEMU opens
a device, libvirt detaches one, a process holds a node, the program dies. Each
reaction names the kernel function that it imitates.
"""

from .host import Crash, FakeHost
from .pci import NotViableError
from .tree import KernelFault, snapshot
from .userspace import (
    FakeLibvirt,
    LibvirtError,
    WithVirsh,
    close_device,
    conceal,
    configure,
    hold,
    leave,
    let_go,
    obey,
    open_device,
)

__all__ = [
    "Crash",
    "FakeHost",
    "FakeLibvirt",
    "KernelFault",
    "LibvirtError",
    "NotViableError",
    "WithVirsh",
    "close_device",
    "conceal",
    "configure",
    "hold",
    "leave",
    "let_go",
    "obey",
    "open_device",
    "snapshot",
]
