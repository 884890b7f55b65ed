"""The GPUs of the snapshots, as the drawings of their memory need them."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory

from tests import snapshots
from tests.building import M
from vfio_console_hook.machine import gpu, pci
from vfio_console_hook.machine.gpu import Gpu
from vfio_console_hook.machine.iomem import Reservation
from vfio_console_hook.machine.memory import Bar, Range
from vfio_console_hook.machine.snapshot import unpack

# One snapshot was made without root, so its iomem has no addresses.
MACHINES = sorted({*snapshots.names()} - {"iomem-without-root"})

BASE = 0xC0000000


@cache
def gpus(name: str) -> tuple[Gpu, ...]:
    """All GPUs of a snapshot in MACHINES."""
    with TemporaryDirectory() as folder:
        host = unpack(snapshots.text(name), folder)
        return gpu.gpus_among(host, pci.displays(host))


def sized(first: int, size_bytes: int) -> Range:
    return Range(first, first + size_bytes - 1)


def a_gpu(*reservations: Reservation, bars: tuple[Bar, ...] = (), driver: str | None = None) -> Gpu:
    """A GPU with a BAR 0 of 16 MiB by default."""
    return Gpu(
        address="0000:01:00.0", pci_class=0x0300, bars=bars or (Bar(0, sized(BASE, 16 * M)),),
        driver=driver, vfio=driver == "vfio-pci", virtual=False, boot_vga=True, framebuffers=(),
        cards=(), firmware=(), reservations=reservations,
    )  # fmt: skip


def reservation(name: str, offset: int, size_bytes: int) -> Reservation:
    """A reservation in BAR 0, at this offset from its beginning."""
    return Reservation(name, sized(BASE + offset, size_bytes), 0)
