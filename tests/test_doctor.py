"""The command doctor: what it prints, its exit status, and that every check is met."""

from __future__ import annotations

import json
import os

import pytest

from tests import installed, test_doctor_machine, test_doctor_vms
from tests.conftest import Golden, MachineFactory
from tests.doctoring import GPU, OTHER_UUID, SECOND, nothing, put_vm, recorded_whole, win11
from tests.fakehost import FakeHost, snapshot
from vfio_console_hook import __version__, cli
from vfio_console_hook.commands.doctor import command as command
from vfio_console_hook.commands.doctor import installation
from vfio_console_hook.commands.doctor.areas import Finding, Subject, areas, examine
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.errors import StuckError

Capture = pytest.CaptureFixture[str]
OWN_AREAS = (
    "VMs", "configuration", "IOMMU and vfio-pci", "the kernel and the host's console",
    "kernel command line", "what VMs hold",
)  # fmt: skip


def run(host: FakeHost, *words: str) -> int:
    return cli.main(["--root", host.root, "doctor", *words])


def with_the_hook(host: FakeHost) -> None:
    """All that doctor reads is recorded, and the hook is installed."""
    recorded_whole(host)
    installed.hook(host)
    installed.daemon(host)
    installed.answer(host, installation.ASK_PYTHON, "3.11.2")
    installed.answer(host, ("/usr/sbin/libvirtd", "--version"), "libvirtd (libvirt) 9.0.0")


def in_order(host: FakeHost) -> None:
    """A machine with a VM, on which nothing is wrong."""
    with_the_hook(host)
    put_vm(host, "win11", GPU, autostart=True)
    host.tree.put("etc/vfio-console-hook/vms/win11.yaml", "apu: allow")


def wrong(host: FakeHost) -> None:
    """What people have of older recipes, and two VMs that want the same GPU."""
    with_the_hook(host)
    host.tree.put(
        "proc/cmdline", "ro quiet video=efifb:off,vesafb:off initcall_blacklist=sysfb_init"
    )
    put_vm(host, "win11", GPU, autostart=True)
    put_vm(host, "linux", GPU, SECOND, uuid=OTHER_UUID, autostart=True, managed=False)
    host.tree.put("etc/vfio-console-hook/default.yaml", "bootfb: perhaps\nholders:\n  wait: 3")
    host.tree.put("etc/vfio-console-hook/vms/Win11.yaml", "apu: allow")


MACHINES = {
    "efifb-6.12": in_order,
    "two-gpus-6.12": wrong,
    "simpledrm-0380-6.12": win11,
    "nvidia-bootfb-bar3": nothing,
}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("efifb-6.12", 0),
        ("two-gpus-6.12", 1),
        ("simpledrm-0380-6.12", 1),
        ("nvidia-bootfb-bar3", 0),
    ],
)
def test_the_whole_output(
    machine: MachineFactory, capsys: Capture, golden: Golden, name: str, status: int
) -> None:
    host = machine(name)
    MACHINES[name](host)
    before = snapshot(host), host.list("run")

    with installed.in_utc():
        done = run(host)

    output = capsys.readouterr()
    golden(f"doctor-{name}", output.out.replace(f"version {__version__}", "version 0.0.0"))
    assert (done, output.err) == (status, "")
    assert (snapshot(host), host.list("run")) == before
    assert all(len(line) < 80 and line.isascii() for line in output.out.splitlines())


def test_quiet_tells_only_what_is_not_in_order(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("two-gpus-6.12")
    wrong(host)

    status = run(host, "--quiet")

    quiet = capsys.readouterr().out
    run(host)
    whole = capsys.readouterr().out
    told = [line for line in whole.splitlines() if line.startswith(("WARN", "FAIL"))]
    assert status == 1
    assert "PASS" not in quiet
    assert [line for line in quiet.splitlines() if line.startswith(("WARN", "FAIL"))] == told
    more = "; `vfio-console-hook doctor -q` shows nothing else"
    assert whole.splitlines()[-1] == quiet.splitlines()[-1] + more


def test_json_has_every_finding_and_the_counts(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("two-gpus-6.12")
    wrong(host)

    status = run(host, "--json")

    told = json.loads(capsys.readouterr().out)
    levels = [one["level"] for one in told["findings"]]
    assert status == 1
    assert set(told) == {"findings", "failed", "warnings"}
    assert {frozenset(one) for one in told["findings"]} == {
        frozenset({"area", "level", "subject", "text", "advice"})
    }
    assert all(isinstance(text, str) for one in told["findings"] for text in one.values())
    assert set(levels) == {"PASS", "WARN", "FAIL"}
    assert (levels.count("FAIL"), levels.count("WARN")) == (told["failed"], told["warnings"])
    assert {one["area"] for one in told["findings"]} >= set(OWN_AREAS)


def test_a_libvirt_that_cannot_be_asked_is_a_warning_and_the_rest_goes_on(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("libvirt/unasked", "libvirtd does not answer")

    status = run(host)

    output = capsys.readouterr().out
    assert status == 0
    assert "WARN  libvirt: libvirtd does not answer" in output
    assert f"PASS  IOMMU group of {GPU}: group 1" in output
    assert f"PASS  console on {GPU}: the firmware console comes back" in output


def test_a_check_that_cannot_look_says_so_and_the_others_go_on(machine: MachineFactory) -> None:
    found = examine(Subject(machine("iomem-without-root")))

    bootfb = [one for one in found if one.subject == "BOOTFB"]
    assert [(one.level, one.text) for one in bootfb] == [
        (
            "WARN",
            "not known: cannot tell who has reserved the GPU's memory: /proc/iomem shows no"
            " addresses",
        )
    ]
    assert found[-1].area == "what VMs hold"


class CutOff(FakeHost):
    """A machine on which a look at the command line kills the process that looks."""

    def read(self, path: str) -> str | None:
        if path == "proc/cmdline":
            os._exit(1)
        return super().read(path)


def test_an_area_whose_look_dies_says_so_and_the_others_go_on(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = CutOff(machine("efifb-6.12").root)

    status = cli.main(["doctor", "--json"], host)

    told = json.loads(capsys.readouterr().out)["findings"]
    (cut_off,) = [one for one in told if one["area"] == "kernel command line"]
    assert (status, cut_off["level"], cut_off["text"]) == (
        0, "WARN", "cannot look: the worker process died before it was done",
    )  # fmt: skip
    assert told[-1]["area"] == "what VMs hold"


class Stuck(FakeHost):
    """A machine on which a look at the command line cannot be ended."""

    def read(self, path: str) -> str | None:
        if path == "proc/cmdline":
            raise StuckError("the kernel is stuck", hint="reboot")
        return super().read(path)


def test_a_kernel_that_is_stuck_is_a_failure(machine: MachineFactory, capsys: Capture) -> None:
    status = cli.main(["doctor"], Stuck(machine("efifb-6.12").root))

    output = capsys.readouterr().out
    assert status == 1
    assert "FAIL  command line: cannot look: the kernel is stuck\n      do: reboot" in output


def test_a_name_with_a_newline_or_an_escape_breaks_no_line() -> None:
    finding = Finding("WARN", "VM a\nb", "\033[31mred", "do\nthis", "VMs")

    text = command.text([finding], Terminal())

    assert text == "VMs\nWARN  VM a\\nb: \\x1b[31mred\n      do: do\\nthis\n"


def test_colour_is_only_for_the_words_that_judge() -> None:
    findings = [Finding("FAIL", "hook", "gone", "install it", "the hook")]

    plain = command.text(findings, Terminal())
    painted = command.text(findings, Terminal(colour=True))

    assert plain == "The hook\nFAIL  hook: gone\n      do: install it\n"
    assert painted == "\033[1mThe hook\033[0m\n\033[31mFAIL\033[0m" + plain[len("The hook\nFAIL") :]


@pytest.mark.parametrize(
    ("failed", "warned", "line"),
    [
        (0, 0, "everything is in order"),
        (1, 0, "1 check failed"),
        (3, 2, "3 checks failed, 2 warnings"),
        (0, 1, "1 warning"),
    ],
)
def test_the_last_line_counts(failed: int, warned: int, line: str) -> None:
    assert command.summary(failed, warned) == line


def test_every_check_has_been_seen_to_object() -> None:
    objecting = {
        case.check
        for cases in (test_doctor_machine.CASES, test_doctor_vms.CASES)
        for case in cases
        if case.level != "PASS"
    }

    for area, checks in areas():
        if area in OWN_AREAS:
            assert set(checks) <= objecting, area
