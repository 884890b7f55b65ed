"""What prepare reads before it changes anything: each thing once, or twice."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost
from tests.gate import ROOT
from tests.libvirt_xml import domain_xml
from vfio_console_hook import domain
from vfio_console_hook.config import load
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.log import Log

READS = ("read_bytes", "read_file", "list", "readlink", "exists", "real", "peek", "console_map",
         "framebuffer_memory", "text_mode")  # fmt: skip


class CountingHost(FakeHost):
    """Counts what the program reads until it makes its first change, by path."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()
        self.counting = True

    def _change(self, *args: Any) -> None:
        self.counting = False
        super()._change(*args)


def counted(name: str) -> Any:
    def read(host: CountingHost, path: str, *args: Any) -> Any:
        # Not what the fake machine reads of itself.
        asker = sys._getframe(1).f_code.co_filename
        if host.counting and asker.startswith(f"{ROOT}/vfio_console_hook/"):
            host.reads[path] += "snapshot.py" not in asker
        return getattr(super(CountingHost, host), name)(path, *args)

    return read


for _name in READS:
    setattr(CountingHost, _name, counted(_name))


def list_groups(host: FakeHost) -> FakeHost:
    """The devices of each IOMMU group, which older snapshots lack (iommu.c, iommu_group_alloc)."""
    for address in host.list("sys/bus/pci/devices"):
        group = host.link_name(f"sys/bus/pci/devices/{address}/iommu_group")
        real = host.real(f"sys/bus/pci/devices/{address}")
        if group is not None and real is not None:
            host.tree.link(f"sys/kernel/iommu_groups/{group}/devices/{address}", real)
    return host


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("efifb-6.12", "0000:01:00.0"),
        ("efifb-5.10", "0000:01:00.0"),
        ("vesafb-5.10", "0000:00:05.0"),
        ("vgacon-5.10", "0000:01:00.0"),
        ("efidrm-7", "0000:01:00.0"),
    ],
)
def test_prepare_reads_nothing_more_than_twice_before_the_first_change(
    machine: MachineFactory, name: str, gpu: str
) -> None:
    host = CountingHost(list_groups(machine(name)).root)
    vm = domain.parse(domain_xml(gpu))

    load.configuration(host, vm.name, vm.uuid)
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, vm.name))

    assert not host.counting
    assert {path: count for path, count in host.reads.items() if count > 2} == {}
    assert len(host.reads) > 20
