"""Accelerators whose class is no display's: holders, deadlines and giving back as for a GPU."""

from __future__ import annotations

import pytest

from tests import events
from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost, FakeLibvirt, close_device, open_device, snapshot
from tests.libvirt_xml import UUID
from vfio_console_hook import cli
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import parse
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.log import Log
from vfio_console_hook.machine import gpu, nodes
from vfio_console_hook.machine.accelerators import gpus_of_host, is_gpu

MI300X, BMC = "0000:c6:00.0", "0000:03:00.0"
PATH = f"sys/devices/pci0000:00/0000:c5:01.0/{MI300X}"
NOW = Config(holders=Holders(wait_s=0))
VM = parse(domain_xml(MI300X))


@pytest.fixture
def host(machine: MachineFactory) -> FakeHost:
    return machine("mi300x-class-1200")


def made(host: FakeHost, pci_class: str, driver: str, vendor: str = "0x1002") -> FakeHost:
    """The accelerator with another class, driver and vendor."""
    host.tree.put(f"{PATH}/class", pci_class)
    host.tree.put(f"{PATH}/vendor", vendor)
    host.tree.remove(f"{PATH}/driver")
    if driver:
        host.tree.make_directory(f"sys/bus/pci/drivers/{driver}")
        host.tree.link(f"{PATH}/driver", f"sys/bus/pci/drivers/{driver}")
    return host


@pytest.mark.parametrize(
    ("pci_class", "driver", "vendor", "counts"),
    [
        ("0x120000", "amdgpu", "0x1002", True),
        ("0x120000", "habanalabs", "0x1da3", True),
        ("0x120000", "intel_vpu", "0x8086", True),
        ("0x0b4000", "amdgpu", "0x1002", True),
        ("0x118000", "amdxdna", "0x1022", True),
        ("0x120000", "", "0x1002", True),
        ("0x120000", "vfio-pci", "0x1da3", True),
        ("0x0b4000", "c6xx", "0x8086", False),  # QuickAssist
        ("0x120000", "xocl", "0x10ee", False),  # an FPGA
        ("0x120000", "", "0x10ee", False),
        ("0x020000", "igb", "0x8086", False),
        ("0x020000", "virtio-pci", "0x1af4", False),
        ("0x040300", "snd_hda_intel", "0x1002", False),
    ],
)
def test_an_accelerator_is_known_by_its_driver(
    host: FakeHost, pci_class: str, driver: str, vendor: str, counts: bool
) -> None:
    made(host, pci_class, driver, vendor)

    assert (is_gpu(host, MI300X), MI300X in gpus_of_host(host)) == (counts, counts)
    assert is_gpu(host, BMC)


def test_who_computes_on_it_is_named_before_anything_is_touched(host: FakeHost) -> None:
    before = snapshot(host)

    made_plan = plan.plan_for(host, VM, NOW)
    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, NOW, Log(host, "win11"))

    assert f"{MI300X} is in use by ollama (900) [ollama.service]" in caught.value.text
    assert made_plan.reason.startswith(caught.value.text)
    assert snapshot(host) == before


def test_the_nodes_of_drivers_without_a_card_count(host: FakeHost) -> None:
    made(host, "0x120000", "habanalabs", "0x1da3")
    for kind, name in (("accel", "accel0"), ("accel", "accel_controlD0"), ("habanalabs", "hl0")):
        host.tree.make_directory(f"{PATH}/{kind}/{name}")
        host.tree.link(f"sys/class/{kind}/{name}", f"{PATH}/{kind}/{name}")

    found = nodes.nodes_to_close(host, gpu.gpus_among(host, (MI300X,)))

    assert {"dev/accel/accel0", "dev/accel/accel_controlD0", "dev/hl0"} <= set(found)


def test_the_driver_leaves_within_the_timeout_and_comes_back(host: FakeHost) -> None:
    host.kill(900)
    consoles = host.read("sys/class/vtconsole/vtcon1/bind")
    libvirt, log = FakeLibvirt(host), Log(host, "win11")

    events.prepare(host, VM, NOW, log)
    driver = host.link_name(f"{PATH}/driver")
    libvirt.detach(MI300X)
    events.start(host, UUID, log)
    blocked = open_device(host, MI300X)
    running = plan.plan_for(host, VM, NOW)
    close_device(host, MI300X)
    libvirt.reattach(MI300X)
    events.release(host, UUID, log)

    assert (driver, blocked, running.verdict) == (None, [], plan.START)
    assert host.link_name(f"{PATH}/driver") == "amdgpu"
    assert host.exists("dev/dri/renderD128")
    assert host.read("sys/class/vtconsole/vtcon1/bind") == consoles
    assert not [one for one in host.changes if "vtcon" in one[1] or one[0] == "ioctl"]
    assert Claims(host).uuids() == ()


def test_nothing_is_said_about_consoles(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.kill(900)

    assert cli.main(["take", "--vfio", "c6:00.0"], host) == 0
    assert cli.main(["give", "c6:00.0"], host) == 0

    out, err = capsys.readouterr()
    assert (err, "consoles" in out) == ("", False)
    assert "afterwards: amdgpu comes back" in out
    assert Claims(host).uuids() == ()


def test_doctor_says_what_comes_back_and_nothing_about_consoles(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.kill(900)
    host.tree.remove("sys/bus/pci/devices/0000:03:00.0")

    cli.main(["doctor"], host)

    out = " ".join(capsys.readouterr().out.split())
    assert f"PASS driver on {MI300X}: amdgpu comes back" in out
    assert f"console on {MI300X}" not in out and f"BOOTFB in {MI300X}" not in out
