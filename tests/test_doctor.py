"""The command doctor: its output and exit status, and a case of each check."""

from __future__ import annotations

import json
import os

import pytest

from tests import (
    installed,
    test_doctor_confinement,
    test_doctor_daemon,
    test_doctor_hook_scripts,
    test_doctor_installation,
    test_doctor_machine,
    test_doctor_roms,
    test_doctor_vms,
)
from tests.conftest import Golden, MachineFactory
from tests.doctoring import GPU, OTHER_UUID, SECOND, complete_snapshot, nothing, put_vm, win11
from tests.fakehost import FakeHost, snapshot
from vfio_console_hook import __version__, cli
from vfio_console_hook.commands.doctor import command as command
from vfio_console_hook.commands.doctor import installation
from vfio_console_hook.commands.doctor.areas import AREAS
from vfio_console_hook.commands.doctor.finding import Finding
from vfio_console_hook.commands.doctor.system import System
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.errors import StuckError

Capture = pytest.CaptureFixture[str]


def run(host: FakeHost, *words: str) -> int:
    return cli.main(["--root", host.root, "doctor", *words])


def with_the_hook(host: FakeHost) -> None:
    """A snapshot with all that doctor reads, on which the hook is installed."""
    complete_snapshot(host)
    installed.hook(host)
    installed.daemon(host)
    installed.answer(host, installation.ask_python("usr/bin/python3"), "3.11.2")
    installed.answer(host, ("/usr/sbin/libvirtd", "--version"), "libvirtd (libvirt) 9.0.0")


def in_order(host: FakeHost) -> None:
    """A machine with a VM, on which nothing is wrong."""
    with_the_hook(host)
    put_vm(host, "win11", GPU, autostart=True)
    host.tree.put("etc/vfio-console-hook/vms/win11.yaml", "apu: allow")


def wrong(host: FakeHost) -> None:
    """The options of older guides, and two VMs that are assigned the same GPU."""
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


def test_quiet_prints_only_what_is_wrong(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("two-gpus-6.12")
    wrong(host)

    status = run(host, "--quiet")

    quiet = capsys.readouterr().out
    run(host)
    whole = capsys.readouterr().out
    problems = [line for line in whole.splitlines() if line.startswith(("WARN", "FAIL"))]
    assert status == 1
    assert "PASS" not in quiet
    assert [line for line in quiet.splitlines() if line.startswith(("WARN", "FAIL"))] == problems
    assert whole.splitlines()[-1].startswith(f"{quiet.splitlines()[-1]}; ")


def test_json_has_every_finding_and_the_counts(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("two-gpus-6.12")
    wrong(host)

    status = run(host, "--json")

    output = json.loads(capsys.readouterr().out)
    levels = [one["level"] for one in output["findings"]]
    assert status == 1
    assert set(output) == {"findings", "failed", "warnings"}
    assert {frozenset(one) for one in output["findings"]} == {
        frozenset({"area", "level", "subject", "text", "advice"})
    }
    assert all(isinstance(text, str) for one in output["findings"] for text in one.values())
    assert set(levels) == {"PASS", "WARN", "FAIL"}
    assert (levels.count("FAIL"), levels.count("WARN")) == (output["failed"], output["warnings"])
    assert {one["area"] for one in output["findings"]} == {area.heading for area in AREAS}


def test_without_libvirt_the_other_checks_still_run(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("libvirt/unasked", "libvirtd does not answer")

    status = run(host, "--json")

    findings = json.loads(capsys.readouterr().out)["findings"]
    levels = {one["subject"]: one["level"] for one in findings}
    assert status == 0
    assert levels["libvirt"] == "WARN"
    assert levels[f"IOMMU group of {GPU}"] == levels[f"console on {GPU}"] == "PASS"


def test_after_a_check_that_fails_to_read_the_others_still_run(machine: MachineFactory) -> None:
    system = System(machine("iomem-without-root"))

    found = [one for area in AREAS for one in area.findings(system)]

    (bootfb,) = [one for one in found if one.subject == "BOOTFB"]
    assert (bootfb.level, "/proc/iomem" in bootfb.text) == ("WARN", True)
    assert found[-1].area == "what VMs hold"


class OfAUser(FakeHost):
    """A machine that a user other than root looks at."""

    privileged = False


def test_a_user_who_is_not_root_is_told_so_first_and_once(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = OfAUser(machine("efifb-6.12").root)
    in_order(host)
    for path in (installed.GATE, "proc/iomem"):
        installed.refuse(host, path)

    status = cli.main(["doctor", "--json"], host)

    first, *others = json.loads(capsys.readouterr().out)["findings"]
    assert (first["level"], first["subject"], status) == ("WARN", "user", 0)
    assert first["text"].startswith("this user is not root; not checked: hook, ")
    assert "as root" in first["advice"]
    assert not [one for one in others if "as root" in one["advice"]]
    assert not [one for one in others if one["subject"] == "hook"]


class CutOff(FakeHost):
    """A machine on which reading the command line kills the process that reads it."""

    def read(self, path: str) -> str | None:
        if path == "proc/cmdline":
            os._exit(1)
        return super().read(path)


def test_after_an_area_whose_process_dies_the_others_still_run(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = CutOff(machine("efifb-6.12").root)

    status = cli.main(["doctor", "--json"], host)

    findings = json.loads(capsys.readouterr().out)["findings"]
    (cut_off,) = [one for one in findings if one["area"] == "kernel command line"]
    assert (status, cut_off["level"]) == (0, "WARN")
    assert findings[-1]["area"] == "what VMs hold"


class Stuck(FakeHost):
    """A machine on which reading the command line never ends."""

    def read(self, path: str) -> str | None:
        if path == "proc/cmdline":
            raise StuckError("the kernel is stuck", hint="reboot")
        return super().read(path)


def test_a_kernel_that_is_stuck_is_a_failure(machine: MachineFactory, capsys: Capture) -> None:
    status = cli.main(["doctor", "--json"], Stuck(machine("efifb-6.12").root))

    findings = json.loads(capsys.readouterr().out)["findings"]
    (stuck,) = [one for one in findings if one["area"] == "kernel command line"]
    assert (status, stuck["level"], stuck["advice"]) == (1, "FAIL", "reboot")
    assert "the kernel is stuck" in stuck["text"]


def test_a_name_with_a_newline_or_an_escape_breaks_no_line() -> None:
    finding = Finding("WARN", "VM a\nb", "\033[31mred", "do\nthis", "VMs")

    text = command.text([finding], Terminal())

    assert text == "VMs\nWARN  VM a\\nb: \\x1b[31mred\n      do: do\\nthis\n"


def test_only_headings_and_levels_are_coloured() -> None:
    findings = [Finding("FAIL", "hook", "gone", "install it", "the hook")]

    plain = command.text(findings, Terminal())
    painted = command.text(findings, Terminal(colour=True))

    assert plain == "The hook\nFAIL  hook: gone\n      do: install it\n"
    assert painted == "\033[1mThe hook\033[0m\n\033[31mFAIL\033[0m" + plain[len("The hook\nFAIL") :]


@pytest.mark.parametrize(
    ("failed", "warned", "line"),
    [
        (0, 0, "no problems found"),
        (1, 0, "1 check failed"),
        (3, 2, "3 checks failed, 2 warnings"),
        (0, 1, "1 warning"),
    ],
)
def test_the_last_line_counts(failed: int, warned: int, line: str) -> None:
    assert command.summary(failed, warned) == line


def test_every_check_has_a_case_that_is_not_a_pass() -> None:
    tables = (
        test_doctor_confinement, test_doctor_daemon, test_doctor_hook_scripts,
        test_doctor_installation, test_doctor_machine, test_doctor_roms, test_doctor_vms,
    )  # fmt: skip
    objecting = {case.check for table in tables for case in table.CASES if case.level != "PASS"}

    assert {check for area in AREAS for check in area.checks} - objecting == set()
