"""`release: {native: load}`: a driver that is kept off the host gives a console after the VM."""

from __future__ import annotations

import pytest

from tests import events
from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost, FakeLibvirt
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config, Release
from vfio_console_hook.domain import parse
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import Log
from vfio_console_hook.machine.console import FBCON, vtconsoles
from vfio_console_hook.machine.gpu import Gpu, gpus_among

GPU = "0000:01:00.0"
VM = parse(domain_xml(GPU))
LOAD = Config(release=Release("load"))


def cycle(host: FakeHost, config: Config) -> None:
    """A VM starts and ends."""
    log, libvirt = Log(host, "win11"), FakeLibvirt(host)
    events.prepare(host, VM, config, log)
    libvirt.detach(GPU)
    events.start(host, VM.uuid, log)
    libvirt.reattach(GPU)
    events.release(host, VM.uuid, log)


def gpu(host: FakeHost) -> Gpu:
    return gpus_among(host, (GPU,))[0]


def console_is_drawn(host: FakeHost) -> bool:
    return any(one.driver == FBCON and one.bound for one in vtconsoles(host))


def test_without_it_the_console_is_lost_and_plan_names_the_driver(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    after = plan.plan_for(host, VM, Config()).after

    cycle(host, Config())

    assert (gpu(host).driver, console_is_drawn(host)) == (None, False)
    assert "bochs" in after and "`release: {native: load}`" in after


@pytest.mark.parametrize("blacklist", ["bochs", ""])
def test_a_driver_is_loaded_where_no_console_came_back(
    machine: MachineFactory, blacklist: str
) -> None:
    host = machine("efifb-6.1")
    host.tree.put("fake/blacklist", blacklist)
    _, steps = events.look(host, VM, LOAD)

    cycle(host, LOAD)

    assert (gpu(host).native, bool(gpu(host).framebuffers)) == (True, True)
    assert console_is_drawn(host)
    assert any("bochs" in step.why for step in steps)


def test_plan_promises_the_console_with_it(machine: MachineFactory) -> None:
    promised = "the console comes back with bochs, which release loads"

    assert outlook(*events.look(machine("efifb-6.1"), VM, LOAD)) == promised


def test_the_next_vm_takes_the_gpu_from_that_driver(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    cycle(host, LOAD)

    cycle(host, LOAD)

    assert (gpu(host).native, console_is_drawn(host)) == (True, True)


def test_nothing_is_loaded_where_the_firmware_console_is_back(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    cycle(host, LOAD)

    assert (gpu(host).driver, gpu(host).firmware[0].driver) == (None, "efi-framebuffer")


def test_a_gpu_that_was_on_vfio_pci_since_boot_gets_its_driver(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    FakeLibvirt(host).detach(GPU)  # what vfio-pci.ids does; nobody will reattach it

    cycle(host, LOAD)

    assert (gpu(host).native, gpu(host).vfio, console_is_drawn(host)) == (True, False, True)


def test_a_gpu_without_an_installed_driver_is_left_alone(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    host.tree.remove("fake/native")
    _, steps = events.look(host, VM, LOAD)

    cycle(host, LOAD)

    assert gpu(host).driver is None
    assert [step.why for step in steps if step.stage == "load"] == [
        "no driver for it is installed, so release can load none"
    ]
