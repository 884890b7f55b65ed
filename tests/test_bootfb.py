"""A BOOTFB that fills its BAR, which the kernel puts above the BAR: in nobody's way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import events
from tests.building import Machine
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, close_device, open_device
from tests.hosts import DISPLAY, lab
from vfio_console_hook.commands.plan.memory_map import bar_maps
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.log import Log
from vfio_console_hook.machine.gpu import gpus_among

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
GPU = "0000:01:00.0"
VM = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
ANY_CONFIG = [Config(), Config(bootfb="refuse"), Config(bootfb="rescan")]


def filled(kernel: str, *, bound: bool = True) -> Machine:
    """A GPU of class 0380 whose framebuffer has 2048 x 2048 pixels, as the lab has it."""
    machine = lab(kernel, "simpledrm", DISPLAY, bound=bound)
    (gpu,), (firmware,) = machine.pci, machine.firmware
    gpu = replace(gpu, native="")
    return replace(machine, pci=(gpu,), firmware=(replace(firmware, size=0x1000000),))


def kinds(host: FakeHost) -> list[str]:
    (gpu,) = gpus_among(host, (GPU,))
    return [one.kind.words for one in bar_maps(gpu)]


@pytest.mark.parametrize("config", ANY_CONFIG, ids=lambda config: str(config.bootfb))
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_the_unbind_of_simpledrm_is_enough_and_is_undone(
    machine: MachineFactory, kernel: str, config: Config
) -> None:
    host = machine(filled(kernel))
    libvirt, log = FakeLibvirt(host), Log(host, "win11")
    driver = "sys/bus/platform/devices/simple-framebuffer.0/driver"

    for _ in range(2):
        events.prepare(host, VM, config, log)
        assert not host.exists(driver)
        libvirt.detach(GPU)
        events.start(host, UUID, log)
        assert open_device(host, GPU) == []
        close_device(host, GPU)
        libvirt.reattach(GPU)
        events.release(host, UUID, log)
        assert host.link_name(driver) == "simple-framebuffer"


def test_while_simpledrm_is_bound_it_blocks_the_bar(machine: MachineFactory) -> None:
    assert kinds(machine(filled("6.12"))) == ["firmware console", "free"]


def test_without_a_driver_nothing_blocks_the_bar(machine: MachineFactory) -> None:
    assert kinds(machine(filled("6.12", bound=False))) == ["free", "free"]


def test_before_5_18_it_is_busy_and_blocks_the_bar(machine: MachineFactory) -> None:
    host = machine(filled("5.15", bound=False))

    with pytest.raises(RefusedError, match="BOOTFB"):
        events.prepare(host, VM, Config(), Log(host, "win11"))
