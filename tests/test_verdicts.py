"""On each recorded machine plan's verdict is what prepare, libvirt and QEMU then do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import events, snapshots
from tests.fakehost import FakeHost, FakeLibvirt, LibvirtError, NotViableError, open_device
from tests.libvirt_xml import UUID
from tests.trust.subjects import Subject
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
