"""doctor: libvirt's daemon runs, knows of the hook, and calls it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, systemd
from tests.installed import (
    BOOTED,
    DROPIN,
    INSTALLED,
    STARTED,
    advice,
    answer,
    daemon,
    file,
    folder,
    found,
    hook,
    in_utc,
    process,
)
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook.commands.doctor import daemon as checks
from vfio_console_hook.commands.doctor.areas import Subject
from vfio_console_hook.machine.libvirtd import Vm

GPU = "0000:01:00.0"
EARLY = BOOTED + 10


@pytest.fixture
def host(machine: MachineFactory) -> Iterator[FakeHost]:
    host = hook(machine("efifb-6.12"))
    host.tree.put("proc/stat", f"btime {BOOTED}")
    with in_utc():
        yield host


def with_systemd(host: FakeHost, *sockets: str) -> None:
    systemd.install(host.tree)
    folder(host, "run/systemd/system")
    for name in sockets:
        systemd.put(host.tree, name, systemd.Unit(active="active"))


def heard(host: FakeHost, event: str, at: float) -> None:
    """Leave word of an event, as the hook does."""
    told = {"time": at, "took_s": 0.2, "failure": ""}
    word = {"vm": "win11", "uuid": UUID, "events": {event: told}, "refusal": None}
    host.tree.put(f"run/vfio-console-hook.status/{UUID}", json.dumps(word))


def reloaded(host: FakeHost, when: str) -> None:
    with_systemd(host)
    answer(host, checks.ask_state(host, "libvirtd"), f"StateChangeTimestamp={when}")


# -- which daemon


def test_nothing_is_known_of_a_recorded_machine_without_processes(machine: MachineFactory) -> None:
    host = hook(machine("efifb-6.12"))

    assert found(checks.daemon, host) == [("WARN", "not in this recorded machine")]
    assert found(checks.known, host) == []


@pytest.mark.parametrize("name", ["libvirtd", "virtqemud"])
def test_a_running_daemon_is_in_order(host: FakeHost, name: str) -> None:
    daemon(host, name)

    assert found(checks.daemon, host) == [
        ("PASS", f"{name} runs since 2023-11-14 22:46:40 (process 700)")
    ]


def test_a_daemon_without_its_file_is_found_by_its_name(host: FakeHost) -> None:
    process(host, 300, "libvirtd", at=STARTED, user=1000)
    process(host, 700, "libvirtd", at=STARTED)

    assert [one.pid for one in checks.running(host)] == [700]


def test_the_daemon_of_a_container_is_none_of_the_hosts(host: FakeHost) -> None:
    process(host, 700, "virtqemud", at=STARTED)
    host.tree.put("proc/700/status", "Name:\tvirtqemud\nUid:\t0\t0\t0\t0\nNSpid:\t700\t7")

    assert checks.running(host) == ()


def test_a_file_that_a_killed_daemon_left_means_nothing(host: FakeHost) -> None:
    process(host, 700, "bash", at=STARTED)
    host.tree.put("run/libvirtd.pid", "700")

    assert checks.running(host) == ()


def test_two_daemons_are_told(host: FakeHost) -> None:
    daemon(host, "libvirtd", pid=700)
    daemon(host, "virtqemud", pid=701)

    assert [level for level, _ in found(checks.daemon, host)] == ["PASS", "PASS", "WARN"]


def test_a_daemon_that_systemd_starts_when_asked_need_not_run(host: FakeHost) -> None:
    with_systemd(host, "libvirtd.socket")

    assert found(checks.daemon, host) == [
        ("PASS", "it does not run now; systemd starts it when asked (libvirtd.socket)")
    ]


@pytest.mark.parametrize(
    ("installed", "by_systemd", "mend"),
    [
        ("usr/sbin/libvirtd", True, "systemctl start libvirtd"),
        ("usr/bin/virtqemud", True, "systemctl start virtqemud"),
        ("usr/sbin/libvirtd", False, "start libvirtd, such as with `rc-service libvirtd start`"),
        ("", True, "install libvirt"),
    ],
)
def test_a_daemon_that_does_not_run_is_told(
    host: FakeHost, installed: str, by_systemd: bool, mend: str
) -> None:
    if installed:
        file(host, installed, "")
    if by_systemd:
        with_systemd(host)

    assert [level for level, _ in found(checks.daemon, host)] == ["FAIL"]
    assert advice(checks.daemon, host) == [mend]


# -- does it know of the hook


def test_a_daemon_that_was_started_later_knows_the_hook(host: FakeHost) -> None:
    daemon(host)

    assert found(checks.known, host) == [("PASS", "it was started after the hook was installed")]


def test_a_daemon_that_runs_longer_than_the_hook_is_there_is_told(host: FakeHost) -> None:
    daemon(host, at=EARLY)
    reloaded(host, "Tue 2023-11-14 22:13:30 UTC")

    assert found(checks.known, host) == [(
        "FAIL", "libvirtd has run since 2023-11-14 22:13:30, and the hook is there only since"
        " 2023-11-14 22:30:00; nobody has told it to look for hooks again",
    )]  # fmt: skip
    assert advice(checks.known, host) == ["systemctl reload libvirtd"]


def test_a_daemon_that_was_reloaded_knows_the_hook(host: FakeHost) -> None:
    daemon(host, at=EARLY)
    reloaded(host, "Tue 2023-11-14 22:30:05 UTC")

    assert found(checks.known, host) == [("PASS", "it was reloaded at 2023-11-14 22:30:05")]


def test_systemctl_is_found_where_bin_is_apart(host: FakeHost) -> None:
    daemon(host, at=EARLY)
    with_systemd(host)
    Path(host.path("usr/bin/systemctl")).unlink()
    Path(host.path("bin")).unlink()  # a link to usr/bin
    host.tree.put("bin/systemctl", "")
    told = "StateChangeTimestamp=Tue 2023-11-14 22:30:05 UTC"
    asked = ("show", "--property=StateChangeTimestamp", "libvirtd.service")
    answer(host, ("/usr/bin/env", "TZ=UTC", "/bin/systemctl", *asked), told)

    assert found(checks.known, host) == [("PASS", "it was reloaded at 2023-11-14 22:30:05")]


def test_a_daemon_that_found_another_hook_calls_ours_too(host: FakeHost) -> None:
    daemon(host, at=EARLY)
    file(host, DROPIN.replace("50-vfio-console-hook", "10-foreign"), "#!/bin/sh", at=BOOTED)

    assert found(checks.known, host) == [
        ("PASS", "/etc/libvirt/hooks/qemu.d/10-foreign was there when it started")
    ]


@pytest.mark.parametrize(("event", "at", "level"), [
    ("prepare", INSTALLED - 1, "PASS"),
    ("release", INSTALLED + 1, "PASS"),
    ("prepare", EARLY - 1, "WARN"),
    ("give", INSTALLED + 1, "WARN"),
])  # fmt: skip
def test_a_daemon_that_has_called_the_hook_knows_it(
    host: FakeHost, event: str, at: int, level: str
) -> None:
    daemon(host, at=EARLY)
    heard(host, event, at)

    assert [told for told, _ in found(checks.known, host)] == [level]


def test_without_systemd_nobody_knows_whether_a_daemon_was_reloaded(host: FakeHost) -> None:
    daemon(host, at=EARLY)

    ((level, text),) = found(checks.known, host)

    assert (level, text.endswith("whether it was told to look for it cannot be seen")) == (
        "WARN", True
    )  # fmt: skip
    assert advice(checks.known, host) == ["kill -HUP 700"]


@pytest.mark.parametrize("said", ["", "n/a"])
def test_a_unit_that_never_changed_tells_nothing(host: FakeHost, said: str) -> None:
    daemon(host, at=EARLY)
    reloaded(host, said)

    assert [told for told, _ in found(checks.known, host)] == ["WARN"]
    assert advice(checks.known, host) == ["systemctl reload libvirtd"]


# -- has it called it


def running_vm(host: FakeHost, *addresses: str) -> Subject:
    xml = domain_xml(*addresses, name="win11").decode()
    return Subject(host, (Vm("win11", UUID, xml, xml, False),))


def test_the_last_call_is_told(host: FakeHost) -> None:
    heard(host, "release", STARTED)

    assert found(checks.heartbeat, host) == [("PASS", "2023-11-14 22:46:40, release of win11")]


def test_a_hook_that_was_not_called_yet_is_in_order(host: FakeHost) -> None:
    told = found(checks.heartbeat, host, running_vm(host))

    assert told == [("PASS", "none yet since the host was started")]


def test_a_vm_that_runs_with_a_gpu_and_without_a_call_is_told(host: FakeHost) -> None:
    ((level, text),) = found(checks.heartbeat, host, running_vm(host, GPU))

    assert (level, text.startswith("VM win11 runs with a GPU")) == ("WARN", True)


def test_a_vm_that_ran_before_the_hook_was_installed_is_in_order(host: FakeHost) -> None:
    process(host, 900, "qemu-system-x86", at=EARLY)
    host.tree.put("run/libvirt/qemu/win11.pid", "900")

    assert [level for level, _ in found(checks.heartbeat, host, running_vm(host, GPU))] == ["PASS"]


@pytest.mark.parametrize("words", ["", "{", "[]", '{"events": {"prepare": {"time": "x"}}}'])
def test_words_that_cannot_be_understood_are_no_call(host: FakeHost, words: str) -> None:
    host.tree.put(f"run/vfio-console-hook.status/{UUID}", words)

    assert checks.last_event(host) is None
