"""A kernel that cannot bind a device to vfio-pci: refused before anything is touched."""

from __future__ import annotations

import pytest

from tests import events
from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost, FakeLibvirt, snapshot
from vfio_console_hook import cli
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import parse
from vfio_console_hook.errors import HookError, RefusedError
from vfio_console_hook.log import Log

GPU = "0000:01:00.0"
VM = parse(domain_xml(GPU))
RELEASE = "6.12.107+deb13-amd64"


@pytest.fixture
def host(machine: MachineFactory) -> FakeHost:
    """A machine on which vfio-pci is not loaded."""
    host = machine("efifb-6.12")
    host.tree.remove("sys/bus/pci/drivers/vfio-pci")
    host.tree.put("proc/sys/kernel/osrelease", RELEASE)
    return host


def refusal(host: FakeHost) -> RefusedError:
    """The refusal of prepare; plan and take have it too, and libvirt could not start the VM."""
    before = snapshot(host)
    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, Config(), Log(host, "win11"))
    planned = plan.plan_for(host, VM, Config())
    assert (planned.verdict, planned.reason) == (plan.REFUSE, caught.value.text)
    assert cli.main(["take", "--vfio", "01:00.0"], host) == 1
    assert (snapshot(host), host.changes) == (before, [])
    with pytest.raises(HookError):
        FakeLibvirt(host).detach(GPU)
    return caught.value


def test_after_an_update_of_the_kernel_its_modules_are_gone(host: FakeHost) -> None:
    host.tree.make_directory("lib/modules/6.12.200")

    error = refusal(host)

    assert error.text == (
        f"vfio-pci is not loaded, and the modules of the running kernel {RELEASE} are not"
        " installed, so no VM can have a PCI device"
    )
    assert error.hint == "reboot if the kernel was updated since boot"


def test_a_kernel_without_vfio_pci(host: FakeHost) -> None:
    others = "kernel/drivers/vfio/pci/mlx5/mlx5-vfio-pci.ko:\n"
    host.tree.put(f"lib/modules/{RELEASE}/modules.dep", others)

    error = refusal(host)

    assert error.text.startswith(f"vfio-pci is not available for the running kernel {RELEASE}")


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not recorded"])
def test_a_module_that_can_be_loaded_is_enough(host: FakeHost, installed: bool) -> None:
    if installed:
        host.tree.put(f"lib/modules/{RELEASE}/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko:")

    assert plan.plan_for(host, VM, Config()).verdict == plan.START
