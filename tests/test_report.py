"""The report of a rehearsal: a machine that can be read, and nothing private."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeLibvirt, close_device, open_device
from tests.test_snapshots_of_the_lab import SECRETS
from vfio_console_hook import cli
from vfio_console_hook.commands.rehearse import report
from vfio_console_hook.commands.rehearse.report import Evidence, report_text, sections
from vfio_console_hook.commands.snapshot.replacements import Replacements
from vfio_console_hook.commands.snapshot.writer import machine_text, text_and_names
from vfio_console_hook.machine.libvirtd import Vm

GPU = "0000:01:00.0"
BOOT = "0b1d7f6c-1111-4222-8333-444455556666"
VM = Vm("annas-secret-vm", "c0ffee00-1234-4567-89ab-001122334455", "<domain/>", "", False)
KERNEL = """\
[   11.000000] vfio-pci 0000:01:00.0: vgaarb: deactivate vga console
[   12.000000] kernel: usb 1-2: SerialNumber: 0123456789ABCDEF
[   12.100000] wlan0: associate with 3c:22:fb:aa:bb:cc
[   12.200000] nvidia 0000:01:00.0: serial number: 998877, board of annas-secret-vm
[   12.300000] console: switching to colour frame buffer device 160x50\x1b[31m
"""


@pytest.fixture
def evidence(machine: MachineFactory) -> Evidence:
    """As of a machine on which all was done by hand."""
    host = machine("lab-efifb-6.12")
    host.tree.put("proc/sys/kernel/hostname", "annas-pc")
    host.tree.put("proc/sys/kernel/random/boot_id", BOOT)
    before, names = text_and_names(host, (VM,))
    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    open_device(host, GPU)
    during = machine_text(host)
    close_device(host, GPU)
    libvirt.reattach(GPU)
    return Evidence(
        before, names, (GPU,), False, "annas-secret-vm will start\n\n  steps\tof it\n",
        "driver: none", f"annas-pc: taking {GPU} for {VM.uuid}\n", KERNEL, during,
        machine_text(host),
    )  # fmt: skip


def test_it_is_the_machine_before(
    evidence: Evidence, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "snapshot").write_text(evidence.before)
    (tmp_path / "report").write_text(report_text(evidence))

    printed = []
    for name in ("snapshot", "report"):
        status = cli.main(["--root", str(tmp_path / name), "plan", "vm1"])
        printed.append((status, *capfd.readouterr()))

    assert printed[0] == printed[1]


def test_its_parts_can_be_read_again(evidence: Evidence) -> None:
    found = sections(report_text(evidence))

    assert [*found] == ["rehearsed", "plan", "verdict", "log", "kernel", "during", "after"]
    assert found["rehearsed"] == f"functions {GPU}\nagrees no\n"
    assert found["plan"] == "vm1 will start\n\n  steps of it\n"
    assert found["log"] == f"host1: taking {GPU} for 00000000-0000-4000-8000-000000000002\n"
    assert "drivers/vfio-pci" in found["during"] and "# ==" not in found["during"]
    assert sections(evidence.before) == {}


def test_during_and_after_are_the_machine_but_for_its_boot(evidence: Evidence) -> None:
    found = sections(report_text(evidence))
    (boot,) = [line for line in evidence.before.splitlines() if "random/boot_id" in line]

    for part, original in (("during", evidence.during), ("after", evidence.after)):
        differing = set(found[part].splitlines()) ^ set(original.splitlines())
        # The command line is shortened, as `record` does.
        assert {line for line in differing if not line.startswith("f proc/cmdline")} == {
            boot, f"f proc/sys/kernel/random/boot_id = {BOOT}"
        }  # fmt: skip


def test_nothing_private_is_in_it(evidence: Evidence) -> None:
    text = report_text(evidence)

    assert {name for name, one in SECRETS.items() if re.search(one, text)} == set()
    for word in ("anna", BOOT, VM.uuid, "0123456789ABCDEF", "3c:22:fb", "998877", "\x1b"):
        assert word not in text, word


def test_what_the_kernel_says_of_the_gpu_is_in_it(evidence: Evidence) -> None:
    lines = sections(report_text(evidence))["kernel"].splitlines()

    assert lines == [
        "[   11.000000] vfio-pci 0000:01:00.0: vgaarb: deactivate vga console",
        "[   12.200000] nvidia 0000:01:00.0: serial number ..., board of vm1",
        "[   12.300000] console: switching to colour frame buffer device 160x50\\x1b[31m",
    ]


def test_a_rehearsal_that_was_cut_short_has_no_machine_of_later(evidence: Evidence) -> None:
    short = Evidence(evidence.before, evidence.names, (), False)

    found = sections(report_text(short))

    assert (found["rehearsed"], found["during"], found["after"]) == ("agrees no\n", "", "")


def test_the_replacements_reach_another_process(evidence: Evidence) -> None:
    again = Replacements.from_json(json.loads(json.dumps(evidence.names.to_json())))

    text = f"annas-secret-vm on annas-pc, {BOOT}, {VM.uuid}, 10.1.2.3 and 3c:22:fb:aa:bb:cc"
    assert again.text(text) == evidence.names.text(text)
    assert again.vm("annas-secret-vm") == "vm1"


@pytest.mark.parametrize(
    ("line", "kept"),
    [("[    9.999999] early", False), ("<6>[   10.000001] late", True), ("no time", True)],
)
def test_lines_of_dmesg_since_a_time(line: str, kept: bool) -> None:
    assert report.since(line, 10.0) == (line if kept else "")
