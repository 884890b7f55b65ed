"""rehearse --reset: the GPU is reset as QEMU would, and what came of it is a row."""

from __future__ import annotations

import pytest

from tests.conftest import MachineFactory
from tests.rehearsing import GPU, order, rehearse, stage, the_diary
from vfio_console_hook.commands.rehearse.verdict import Verdict

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("after_reset", "status", "seen"),
    [
        ("", 0, f"{GPU} reset by bus; it answers"),
        ("silent", 1, f"{GPU} reset by bus; it does not answer any more"),
    ],
)
def test_whether_it_answers_after_the_reset(
    machine: MachineFactory, after_reset: str, status: int, seen: str, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    host.tree.put(f"{host.real(f'sys/bus/pci/devices/{GPU}')}/reset_method", "bus")
    if after_reset:
        host.tree.put(f"fake/after_reset/{GPU}", after_reset)

    found = rehearse(host, "--reset", GPU)

    verdict = Verdict.from_json(the_diary(host).account().verdicts[-1])
    (row,) = [one for one in verdict.rows if one.what == "reset"]
    assert (found, row.seen, row.agrees) == (status, seen, not status)
    assert f"{GPU}: reset by bus" in capfd.readouterr().out


def test_without_it_nothing_is_reset(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.12")
    host.tree.put(f"fake/after_reset/{GPU}", "silent")

    assert rehearse(host, GPU) == 0


def test_a_reset_has_its_time(machine: MachineFactory) -> None:
    """The kernel waits a minute for a device that does not come back."""
    host = stage(machine, "efifb-6.12")

    assert order(host, reset=True).until - order(host, began=order(host).began).until > 60
