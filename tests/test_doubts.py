"""check-config: what is well written, and does not do on this host what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, hold, openrc, systemd
from tests.libvirt_xml import UUID, domain_xml
from tests.test_check_config import DEFAULT, WIN11, put
from vfio_console_hook import cli
from vfio_console_hook.actions.holders import AwaitClosed
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config import load
from vfio_console_hook.domain import parse

Capture = pytest.CaptureFixture[str]
AMD = "0000:09:00.0"


@pytest.fixture
def host(machine: MachineFactory) -> FakeHost:
    """One AMD GPU, sddm by its alias, lactd, a masked unit, and some programs."""
    host = machine("amd-single")
    host.tree.put("recorded/now", "1")
    systemd.install(host.tree)
    sddm = systemd.Unit(active="active", aliases=("display-manager.service",))
    systemd.put(host.tree, "sddm.service", sddm)
    systemd.put(host.tree, "lactd.service", systemd.Unit(active="active"))
    systemd.put(host.tree, "libvirtd.service", systemd.Unit(active="active"))
    systemd.put(host.tree, "ollama.service", systemd.Unit(load="masked"))
    for program in ("usr/bin/gamescope", "usr/bin/kwin_wayland_wrapper", "usr/sbin/rc-service"):
        host.tree.put(program, "")
    hold(host, "dev/dri/card0", pid=7, command="Xorg", unit="sddm.service")
    return host


def checked(host: FakeHost, capsys: Capture, text: str) -> list[str]:
    """What check-config prints about a file for win11, without the path of it."""
    put(host, WIN11, text)
    status = cli.main(["check-config"], host)
    lines = capsys.readouterr().out.splitlines()
    assert status == (0 if lines[-1] == f"/{WIN11}: no mistakes" else 1)
    return [line.removeprefix(f"/{WIN11}:") for line in lines if WIN11 in line]


FINE = [" no mistakes"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "holders:\n  wait_s: 50\n",
            ["2:11: warning: 'holders.wait_s' gets at most 20 s within timeout_s (60);"
             " set `timeout_s: 150`"],
        ),
        (
            "services: [lactd]\nholders:\n  wait_s: 50\n",
            ["3:11: warning: 'holders.wait_s' gets at most 15 s within timeout_s (60);"
             " set `timeout_s: 200`"],
        ),
        (
            "timeout_s: 100\nholders: {grace_s: 20}\n",
            ["2:20: warning: 'holders.grace_s' gets at most 10 s within timeout_s (100);"
             " set `timeout_s: 200`"],
        ),
        (
            "holders: {wait_s: 300}\n",
            ["1:19: warning: 'holders.wait_s' gets at most 20 s within timeout_s (60);"
             " the most is 200, with timeout_s 600"],
        ),
        ("timeout_s: 150\nholders: {wait_s: 50}\n", FINE),
        # What nobody asked for is not missed.
        ("timeout_s: 10\n", FINE),
        ("services: [display-manager, lactd.service]\n", FINE),
        (
            "services:\n  - display-manager\n  - lactt\n",
            ["3:5: warning: there is no unit lactt.service on this host, did you mean"
             " lactd.service?"],
        ),
        (
            "services: [qqqq]\n",
            ["1:12: warning: there is no unit qqqq.service on this host: remove it, or install"
             " what has it"],
        ),
        (
            "services: [lactd, ollama]\n",
            ["1:19: warning: ollama.service is masked, so it is never stopped: remove it"],
        ),
        (
            "services: [libvirtd]\n",
            ["1:12: warning: libvirtd.service starts the VM and cannot be stopped for it: remove"
             " it"],
        ),
        (
            "services:\n"
            "  - {name: sddm, active: /usr/sbin/rc-service x, stop: /sbin/off, start: /sbin/on}\n",
            ["2:5: warning: there is no program /sbin/off on this host, for sddm"],
        ),
        (
            "services: [{name: display-manager, start_again: detached}]\n",
            ["1:12: warning: display-manager would have no GPU to start on while the VM runs:"
             " remove `start_again`"],
        ),
        ("services: [{name: lactd, start_again: detached}]\n", FINE),
        (
            "holders:\n  terminate:\n    - Xorg\n    - systemd-logind\n",
            ["4:7: warning: systemd-logind is never ended: remove it, or write `session` for a"
             " login session"],
        ),
        (
            "holders: {terminate: [libvirtd.service, virtqemud, qemu-system-x86]}\n",
            [f"1:{column}: warning: {name} is never ended: remove it, or write `session` for a"
             " login session" for column, name in
             ((23, "libvirtd.service"), (41, "virtqemud"), (52, "qemu-system-x86"))],
        ),
        ("holders: {terminate: [Xorg, sddm, lactd.service, gamescope, session, 'kwin*']}\n", FINE),
        ("holders: {terminate: [kwin_wayland_wr, kwin_wayland_wrapper]}\n", FINE),
        (
            "holders: {terminate: [gamescop, steam]}\n",
            ["1:23: warning: no process, unit or program of this host has the name gamescop, did"
             " you mean gamescope?",
             "1:33: warning: no process, unit or program of this host has the name steam: remove"
             " it, or correct it"],
        ),
        (
            "keep_console: 02:00.0\n",
            [f"1:15: warning: 0000:02:00.0 is no GPU of this host: they are {AMD}"],
        ),
        (f"keep_console: {AMD}\n", FINE),
        ("keep_console: never\n", FINE),
        # A file with a mistake is not read any further.
        (
            "apu: perhaps\nservices: [qqqq]\n",
            ["1:6: bad value 'perhaps' for 'apu', it must be one of refuse, allow"],
        ),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_reported_with_line_and_cure(
    host: FakeHost, capsys: Capture, text: str, lines: list[str]
) -> None:
    assert checked(host, capsys, text) == lines


def test_the_file_for_all_vms_counts(host: FakeHost, capsys: Capture) -> None:
    put(host, DEFAULT, "timeout_s: 150\n")

    assert checked(host, capsys, "holders: {wait_s: 50}\n") == FINE


@pytest.mark.parametrize(
    "text", ["holders: {wait_s: 50}\n", "services: [lactd]\nholders: {wait_s: 50}\n"]
)
def test_the_wait_that_is_reported_is_that_of_the_plan(
    host: FakeHost, capsys: Capture, text: str
) -> None:
    (line,) = checked(host, capsys, text)

    made = plan.plan_for(host, parse(domain_xml(AMD)), load.configuration(host, "win11", UUID))
    (wait,) = {one.do.wait_s for one in made.steps if isinstance(one.do, AwaitClosed)}
    assert f"gets at most {wait:g} s" in line


def test_the_unit_that_is_reported_is_that_of_the_plan(host: FakeHost, capsys: Capture) -> None:
    (line,) = checked(host, capsys, "services: [lactt]\n")

    made = plan.plan_for(host, parse(domain_xml(AMD)), load.configuration(host, "win11", UUID))
    (step,) = (one for one in made.steps if one.stage == "services")
    assert step.why == "there is no unit lactt.service, did you mean lactd.service?"
    assert "there is no unit lactt.service on this host, did you mean lactd.service?" in line


def test_without_systemd_a_unit_is_written_as_commands(host: FakeHost, capsys: Capture) -> None:
    host.tree.remove("run/systemd/system")

    assert checked(host, capsys, "services: [lactd]\n") == [
        "1:12: warning: the service lactd cannot be stopped: this host does not run systemd, and"
        " there is no /etc/init.d/lactd: configure commands for it, see `services` in"
        " default.yaml"
    ]


def test_without_systemd_an_init_script_is_right(host: FakeHost, capsys: Capture) -> None:
    host.tree.remove("run/systemd/system")
    openrc.put(host.tree, "lactd", "started")

    assert checked(host, capsys, "services: [lactd]\n") == FINE


def test_thousands_of_names_are_not_all_looked_for(host: FakeHost, capsys: Capture) -> None:
    names = ", ".join(f"qq{number}" for number in range(2000))

    assert len(checked(host, capsys, f"holders: {{terminate: [{names}]}}\n")) == 20


def test_a_file_that_is_too_long_is_not_read(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("vfio_console_hook.config.text.parse", read.append)
    file = tmp_path / "long.yaml"
    file.write_text("services: [a]\n" + " " * load.MAX_BYTES)

    assert (cli.main(["check-config", str(file)], host), read) == (1, [])


def test_a_machine_that_does_not_answer_raises_no_doubt(host: FakeHost, capsys: Capture) -> None:
    host.tree.remove("recorded")
    (Path(host.root) / "usr/bin/systemctl").unlink()

    text = "services: [qqqq]\nholders: {terminate: [qqqq]}\n"
    assert checked(host, capsys, text) == FINE


def test_a_file_that_is_not_installed_is_looked_at_in_the_same_way(
    host: FakeHost, capsys: Capture, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("services: [qqqq]\nkeep_console: 02:00.0\n")

    status = cli.main(["check-config", "--json", str(file)], host)

    (found,) = json.loads(capsys.readouterr().out)
    assert (status, found["mistakes"]) == (1, [])
    assert [(one["line"], one["column"]) for one in found["warnings"]] == [(1, 12), (2, 15)]
