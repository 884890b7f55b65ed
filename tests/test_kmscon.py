"""kmscon, a console in user space, has the GPU open: it goes and comes back like any console."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import (
    FakeHost,
    FakeLibvirt,
    close_device,
    hold,
    kmscon,
    open_device,
    snapshot,
    systemd,
)
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import cli
from vfio_console_hook.claims import losses
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.status import overview
from vfio_console_hook.config.service import Service
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, LostError
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import console

ONE = "0000:01:00.0"
FIRST, SECOND = "0000:03:00.0", "0000:13:00.0"
TTY1, TTY2 = "kmsconvt@tty1.service", "kmsconvt@tty2.service"
NOW = Config(holders=Holders(wait_s=0))


def vm(*gpus: str) -> Domain:
    return Domain("win11", UUID, tuple(Hostdev(gpu, True, "hostdev", 1) for gpu in gpus))


def states(host: FakeHost, *units: str) -> list[str]:
    return [systemd.state(host.tree, unit) for unit in units]


def start(host: FakeHost, gpu: str, config: Config = NOW) -> FakeLibvirt:
    """What libvirt does until the VM runs."""
    libvirt = FakeLibvirt(host)
    events.prepare(host, vm(gpu), config, Log(host, "win11"))
    libvirt.detach(gpu)
    events.start(host, UUID, Log(host, "win11"))
    open_device(host, gpu)
    return libvirt


def end(host: FakeHost, gpu: str, libvirt: FakeLibvirt) -> None:
    close_device(host, gpu)
    libvirt.reattach(gpu)
    events.release(host, UUID, Log(host, "win11"))


def test_it_is_stopped_on_all_terminals_and_is_back_after_the_vm(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1", "tty2")
    before = without_processes(host)

    libvirt = start(host, ONE)
    during = states(host, TTY1, TTY2)
    end(host, ONE, libvirt)

    assert during == ["inactive", "inactive"]
    assert states(host, TTY1, TTY2) == ["active", "active"]
    assert without_processes(host) == before


def without_processes(host: FakeHost) -> dict[str, str]:
    """The machine but for the processes, which are others then."""
    return {path: text for path, text in snapshot(host).items() if not path.startswith("proc/7")}


def test_plan_names_it_and_does_not_refuse(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1")

    found = plan.plan_for(host, vm(ONE), NOW)

    assert found.verdict == plan.START
    assert [step.stage for step in found.steps][:2] == ["kmscon", "preflight"]
    assert [one.becomes for one in found.holders] == [
        f"stops with {TTY1}, which is stopped first"
    ]
    assert f"{TTY1} starts again" in found.after


def test_status_speaks_of_it_as_the_console(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    below = console.current_display(host)
    kmscon.install(host.tree, "tty1", "tty3")

    drawing = overview.current(host).drawing

    assert drawing == f"kmscon on tty1 and tty3, above {below}"


def test_on_another_gpu_it_is_left_alone(machine: MachineFactory) -> None:
    host = machine("two-amd")
    (other,) = cards(host, SECOND)
    kmscon.install(host.tree, "tty1", cards=(other,))

    before = process(host)

    libvirt = start(host, FIRST)
    end(host, FIRST, libvirt)

    assert process(host) == before


def cards(host: FakeHost, address: str) -> list[str]:
    names = host.list(f"sys/bus/pci/devices/{address}/drm")
    return [name for name in names if name.startswith("card")]


def test_on_both_gpus_it_is_back_on_the_one_that_stays_while_the_vm_runs(
    machine: MachineFactory,
) -> None:
    host = machine("two-amd")
    kmscon.install(host.tree, "tty1")
    before = process(host)

    libvirt = start(host, FIRST)
    during, screens = process(host), sorted(host.open_files(7001))
    end(host, FIRST, libvirt)

    (other,) = cards(host, SECOND)
    assert screens == [f"/dev/dri/{other}"]
    assert during not in (None, before)
    assert process(host) == during


def process(host: FakeHost) -> str | None:
    """The kmscon on tty1, by what tells it from a later one."""
    return host.read("proc/7001/stat")


def test_beside_another_holder_the_vm_is_refused_and_it_is_back_at_once(
    machine: MachineFactory,
) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1")
    hold(host, "dev/dri/card0", pid=9, command="Xorg")

    with pytest.raises(HookError, match=r"in use by Xorg \(9\)"):
        events.prepare(host, vm(ONE), NOW, Log(host, "win11"))

    assert states(host, TTY1) == ["active"]


@pytest.mark.parametrize("name", ["kmsconvt@tty1", TTY1])
def test_what_the_configuration_stops_is_stopped_once(machine: MachineFactory, name: str) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1")
    config = Config(services=(Service(name),), holders=Holders(wait_s=0))

    _, steps = events.look(host, vm(ONE), config)

    assert [step.stage for step in steps if step.stage in ("services", "kmscon")] == ["services"]


def test_the_unit_for_all_seats_is_found_too(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    systemd.install(host.tree)
    systemd.put(host.tree, "kmscon.service", systemd.Unit(active="active"))
    kmscon.begin(host.tree, "kmscon.service")

    libvirt = start(host, ONE)
    during = states(host, "kmscon.service")
    end(host, ONE, libvirt)

    assert (during, states(host, "kmscon.service")) == (["inactive"], ["active"])
    assert console.current_display(host).startswith("kmscon, above ")


def test_one_that_does_not_start_again_is_a_loss(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1")
    libvirt = start(host, ONE)
    systemd.put(host.tree, TTY1, systemd.Unit(fails=True))

    with pytest.raises(LostError):
        end(host, ONE, libvirt)

    assert [one.text for one in losses.current(host)] == [f"{TTY1} is not running again"]


def test_one_that_does_not_stop_keeps_the_vm_from_starting(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1")
    systemd.put(host.tree, TTY1, systemd.Unit(active="active", stop_s=systemd.NEVER))

    with pytest.raises(HookError, match=f"{TTY1} did not stop within 15 s"):
        events.prepare(host, vm(ONE), NOW, Log(host, "win11"))


def test_the_log_says_what_became_of_it(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1")

    libvirt = start(host, ONE)
    end(host, ONE, libvirt)

    log = host.read(SNAPSHOT_LOG) or ""
    assert f"stopped {TTY1}" in log
    assert f"asked systemd to start {TTY1}" in log


def test_a_snapshot_of_the_machine_has_what_plan_and_status_print_of_it(
    machine: MachineFactory, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    host = machine("native-6.1")
    kmscon.install(host.tree, "tty1", "tty2")
    xml = domain_xml(ONE, name="vm1").decode()
    for name, text in (("name", "vm1"), ("uuid", UUID), ("xml", xml)):
        host.tree.put(f"libvirt/1/{name}", text)
    file = tmp_path / "machine.tree"
    words = ("plan", "vm1")

    cli.main(["record", str(file)], host)
    capsys.readouterr()
    cli.main(words, host)
    there = capsys.readouterr().out
    cli.main(["--root", str(file), *words])

    assert capsys.readouterr().out == there
    assert "kmscon on tty1 and tty2 has the GPU open" in there
