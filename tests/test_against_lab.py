"""Keeps FakeHost honest: what the lab recorded of real kernels is what it predicts.

For each scenario that starts a VM, the program recorded the machine before, while the
VM ran, and after it (tests/lab/trial.py). Here the same program runs on FakeHost over
the first recording; each time the whole machine must be as the lab's.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fakehost import FakeHost, FakeLibvirt, close_device, open_device
from tests.gate import ROOT
from tests.lab.scenarios import SCENARIOS, Scenario, leaving
from vfio_console_hook import config, events
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.log import Log
from vfio_console_hook.recorded import unpack
from vfio_console_hook.recording.recorder import SEEN, record

MACHINES = ROOT / "tests/machines"
VM = "gpu"
UUID = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a01"

# Those whose first cycle is one VM, started and destroyed, on a host that does nothing else.
KINDS = ("cycles", "dropin", "moved", "rebound", "terminated", "untouched")
STARTED = tuple(
    one for one in SCENARIOS if one.hook and one.kind in KINDS and (one.holder or not one.refused)
)

# No recording tells which driver would match a device that has none.
NATIVE = "driver=bochs-drm module=bochs fb=bochs-drmdrmfb bars=0,2 connectors=Virtual-1"


def text(name: str) -> str:
    """What every recording has of its machine, without who had what open at that moment."""
    return (MACHINES / f"lab-{name}.tree").read_text(encoding="utf-8").partition(SEEN)[0]


def recorded(name: str, directory: Path) -> str:
    """A recording as the recorder writes it: without comments, in its order."""
    directory.mkdir()
    return record(unpack(text(name), str(directory)))


def without_the_guests_writes(machine: str, addresses: tuple[str, ...]) -> str:
    """The machine without what a guest may write to config space of its GPUs through vfio.

    Its firmware switches SERR on in COMMAND, and the ROM's address is in the BAR
    since somebody, QEMU or the guest, has read the ROM (Linux drivers/pci/rom.c,
    pci_map_rom). Neither is the host's doing, and both are gone when the VM is.
    """
    config = rf"(?m)^(x \S+/(?:{'|'.join(addresses)})/config = )([0-9a-f]{{128}})$"
    return re.sub(config, _without_serr_and_rom, machine)


def _without_serr_and_rom(line: re.Match[str]) -> str:
    header = bytearray.fromhex(line[2])
    header[5] &= ~0x01
    header[0x30:0x34] = bytes(4)
    return line[1] + header.hex()


def displays(host: FakeHost) -> list[str]:
    """The addresses of all display devices in the order of the scenario."""
    places = {
        host.real(f"sys/bus/pci/devices/{address}") or "": address
        for address in host.list("sys/bus/pci/devices")
        if (host.read(f"sys/bus/pci/devices/{address}/class") or "").startswith("0x03")
    }
    # Which is that of the root ports, not of the buses behind them.
    return [places[place] for place in sorted(places)]


def gpus(host: FakeHost, scenario: Scenario) -> tuple[str, ...]:
    """What the VM gets."""
    return leaving(scenario, displays(host))


def fake(scenario: Scenario, directory: Path) -> FakeHost:
    """The machine before, with the configuration of the VM."""
    directory.mkdir()
    unpack(text(scenario.name), str(directory))
    host = FakeHost(str(directory))
    for address in displays(host):
        host.tree.put(f"fake/native/{address}", NATIVE)
    if scenario.config:
        host.tree.put(f"etc/vfio-console-hook/vms/{VM}.yaml", scenario.config)
    return host


def begin(host: FakeHost, addresses: tuple[str, ...], libvirt: FakeLibvirt) -> None:
    """libvirt starts the VM."""
    log = Log(host, VM)
    domain = Domain(VM, UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in addresses))
    events.prepare(host, domain, config.load(host, VM, UUID), log)
    for address in addresses:
        libvirt.detach(address)
    events.start(host, UUID, log)
    for address in addresses:
        assert open_device(host, address) == []


def end(host: FakeHost, addresses: tuple[str, ...], libvirt: FakeLibvirt) -> None:
    """The VM is destroyed."""
    for address in addresses:
        close_device(host, address)
    for address in addresses:
        libvirt.reattach(address)
    events.release(host, UUID, Log(host, VM))


def test_every_scenario_that_starts_a_vm_is_recorded() -> None:
    """tests/lab/run leaves them with its results, as machine-WHEN.tree."""
    wanted = [f"lab-{one.name}{when}" for one in STARTED for when in ("", "-during", "-after")]

    assert [name for name in wanted if not (MACHINES / f"{name}.tree").exists()] == []


@pytest.mark.parametrize("scenario", STARTED, ids=lambda scenario: scenario.name)
def test_the_machine_is_as_in_the_lab_while_the_vm_runs_and_after_it(
    scenario: Scenario, tmp_path: Path
) -> None:
    host = fake(scenario, tmp_path / "fake")
    libvirt = FakeLibvirt(host)
    addresses = gpus(host, scenario)

    begin(host, addresses, libvirt)
    during = record(host)
    end(host, addresses, libvirt)

    assert without_the_guests_writes(during, addresses) == without_the_guests_writes(
        recorded(f"{scenario.name}-during", tmp_path / "during"), addresses
    )
    assert record(host) == recorded(f"{scenario.name}-after", tmp_path / "after")
