"""On each recorded machine plan's verdict is what prepare, libvirt and QEMU then do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import events, snapshots
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, LibvirtError, NotViableError, open_device
from tests.libvirt_xml import UUID, domain_xml
from tests.trust.subjects import Subject
from vfio_console_hook import cli
from vfio_console_hook.commands.plan import memory_map, plan
from vfio_console_hook.errors import HookError
from vfio_console_hook.log import Log
from vfio_console_hook.machine import card, gpu, pci
from vfio_console_hook.machine.accelerators import gpus_of_host

GPU_ONLY, WHOLE_CARD, ALL_GPUS = "GPU", "card", "all GPUs"


@dataclass(frozen=True)
class Outcome:
    """What became of a start: why it failed, "" if the VM runs, and what blocks its BARs."""

    failed: str
    blocked: tuple[int, ...] = ()


def started(host: FakeHost, subject: Subject) -> Outcome:
    """Start the VM as libvirt and QEMU do."""
    vm, log = subject.domain(), Log(host, "win11")
    try:
        events.prepare(host, vm, subject.config(host), log)
        libvirt = FakeLibvirt(host)
        for address in subject.gpus:
            libvirt.detach(address)
        events.start(host, UUID, log)
        blocked = [bar for address in subject.gpus for bar in open_device(host, address)]
    except (HookError, LibvirtError, NotViableError) as error:
        return Outcome(str(error))
    return Outcome("", tuple(blocked))


def assignments(host: FakeHost, which: str) -> list[tuple[str, ...]]:
    """The devices of VMs that this machine could have."""
    gpus = [one for one in gpus_of_host(host) if not pci.is_virtual(host, one)]
    if which == ALL_GPUS:
        return [tuple(gpus)] if len(gpus) > 1 else []
    if which == GPU_ONLY:
        return [(one,) for one in gpus]
    cards = [(one, *(f for f in card.functions(host, one) if f != one)) for one in gpus]
    return [one for one in cards if len(one) > 1 and not set(one[1:]) & set(gpus)]


@pytest.mark.parametrize("which", [GPU_ONLY, WHOLE_CARD, ALL_GPUS])
@pytest.mark.parametrize("name", snapshots.before_vms())
def test_the_verdict_is_what_happens(tmp_path: Path, name: str, which: str) -> None:
    first = tmp_path / "machine"
    Subject(name, ()).lay_out(first)
    for number, addresses in enumerate(assignments(FakeHost(str(first)), which)):
        subject = Subject(name, addresses)
        subject.lay_out(tmp_path / f"start{number}")
        host = FakeHost(str(tmp_path / f"start{number}"))
        try:
            made = plan.plan_for(host, subject.domain(), subject.config(host))
        except HookError as error:
            assert started(host, subject).failed == str(error)
            continue

        outcome = started(host, subject)

        assert outcome.blocked == ()
        assert (made.verdict == plan.REFUSE) == bool(outcome.failed), (made.reason, outcome.failed)
        if made.verdict == plan.START:
            drawn = {
                (one.address, bar.bar.number, bar.name)
                for one in made.gpus
                for bar in memory_map.bar_maps(one)
                if bar.kind.blocks
            }
            left = {
                (one.address, held.bar, held.name)
                for one in gpu.gpus_at(host, addresses)
                for held in one.foreign_reservations
            }
            assert (left, bool(drawn) and not made.steps) == (set(), False)


def planned(host: FakeHost, directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of the command and its last lines."""
    xml = directory / "vm.xml"
    xml.write_bytes(domain_xml("0000:01:00.0"))
    status = cli.main(["plan", "--xml", str(xml)], host)
    text = " ".join(capsys.readouterr().out.split())
    return status, text[text.index("the VM would") :]


def test_a_start_is_promised_where_libvirt_runs_the_hook(
    machine: MachineFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = machine("recorded-efifb-6.12")

    assert planned(host, tmp_path, capsys)[0] == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda host: host.tree.remove("etc/libvirt/hooks/qemu"), "not installed, so VMs start"),
        (lambda host: host.tree.remove("usr/lib/vfio-console-hook"), "is incomplete"),
    ],
)
def test_no_start_is_promised_where_libvirt_does_not_run_the_hook(
    machine: MachineFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[FakeHost], None],
    said: str,
) -> None:
    host = machine("recorded-efifb-6.12")
    damage(host)

    status, text = planned(host, tmp_path, capsys)

    assert status == 1
    assert text.startswith("the VM would start if libvirt ran the hook, but ") and said in text
    assert re.search("hint: (run|install) ", text)
