"""doctor: libvirt's daemon runs, has found the hook, and calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import installed
from tests.conftest import Golden, MachineFactory
from tests.doctoring import (
    GPU,
    Arrange,
    Case,
    assert_found,
    both,
    findings,
    missing_in_snapshot,
    put,
    put_vm,
    sentences,
)
from tests.fakehost import FakeHost, systemd
from tests.installed import BOOTED, DROPIN, INSTALLED, STARTED, answer, file, folder, process
from tests.libvirt_xml import UUID
from vfio_console_hook.commands.doctor import calls, daemon, daemon_view
from vfio_console_hook.commands.doctor.finding import Check

EARLY = BOOTED + 10
KNOWN, CALLED = "hook known to libvirtd", "last call of the hook"


def hook(host: FakeHost) -> None:
    """The hook on a machine that was booted at BOOTED."""
    installed.hook(host)
    host.tree.put("proc/stat", f"btime {BOOTED}")


def hook_only(host: FakeHost) -> None:
    """The hook on a snapshot without processes."""
    installed.hook(host)


def runs(name: str = "libvirtd", *, pid: int = 700, at: int = STARTED) -> Arrange:
    return lambda host: installed.daemon(host, name, pid=pid, at=at)


def on_systemd(*sockets: str) -> Arrange:
    def arrange(host: FakeHost) -> None:
        systemd.install(host.tree)
        folder(host, "run/systemd/system")
        for name in sockets:
            systemd.put(host.tree, name, systemd.Unit(active="active"))

    return arrange


def called(event: str, at: float) -> Arrange:
    """The history has this event of the hook."""
    outcome = {"time": at, "took_s": 0.2, "failure": ""}
    history = {"vm": "win11", "uuid": UUID, "events": {event: outcome}, "refusal": None}
    return put(f"run/vfio-console-hook.status/{UUID}", json.dumps(history))


def changed(when: str) -> Arrange:
    """systemctl prints this time as the last change of the unit's state."""

    def arrange(host: FakeHost) -> None:
        on_systemd()(host)
        answer(host, calls.ask_state_change(host, "libvirtd"), f"StateChangeTimestamp={when}")

    return arrange


def changed_precisely(when: str) -> Arrange:
    """A systemctl that prints microseconds."""

    def arrange(host: FakeHost) -> None:
        on_systemd()(host)
        asked = calls.ask_state_change(host, "libvirtd", precise=True)
        answer(host, asked, f"StateChangeTimestamp={when}")

    return arrange


def systemctl_in_bin(host: FakeHost) -> None:
    on_systemd()(host)
    Path(host.path("usr/bin/systemctl")).unlink()
    Path(host.path("bin")).unlink()  # a link to usr/bin
    host.tree.put("bin/systemctl", "")
    asked = ("show", "--property=StateChangeTimestamp", "libvirtd.service")
    printed = "StateChangeTimestamp=Tue 2023-11-14 22:30:05 UTC"
    answer(host, ("/usr/bin/env", "TZ=UTC", "/bin/systemctl", *asked), printed)


LOOKED = 1700001005
"""22:30:05, when the daemon looked for hooks."""


def made_executable(at: float) -> Arrange:
    """The status of the hook was changed then, and not its content."""

    def arrange(host: FakeHost) -> None:
        host.tree.put(f"stat/{installed.GATE}", f"100755 0 0 {BOOTED} {at}")

    return arrange


def contained(host: FakeHost) -> None:
    """The daemon runs in a container of podman."""
    host.tree.put("proc/700/cgroup", "0::/machine.slice/libpod-3f9a.scope")
    for pid, namespace in ((1, 4026531841), (700, 4026532999)):
        host.tree.text_link(f"proc/{pid}/ns/mnt", f"mnt:[{namespace}]")


def another_hook(host: FakeHost) -> None:
    file(host, DROPIN.replace("50-vfio-console-hook", "10-foreign"), "#!/bin/sh", at=BOOTED)


def running_vm(*addresses: str) -> Arrange:
    return lambda host: put_vm(host, "win11", *addresses, running=True)


def ran_before(host: FakeHost) -> None:
    """The QEMU of win11 was started before the hook was installed."""
    process(host, 900, "qemu-system-x86", at=EARLY)
    host.tree.put("run/libvirt/qemu/win11.pid", "900")


def with_hook(
    name: str, check: Check, level: str, title: str, value: str, *arrangements: Arrange
) -> Case:
    return Case(name, check, both(hook, *arrangements), level, title, value)


def stopped(name: str, fix: str, *arrangements: Arrange) -> Case:
    """A case without a running daemon."""
    return with_hook(name, daemon.daemon, "FAIL", "daemon", fix, *arrangements)


def early(name: str, level: str, value: str, *arrangements: Arrange) -> Case:
    """A case with a daemon that was started before the hook was installed."""
    return with_hook(name, calls.hook_known, level, KNOWN, value, runs(at=EARLY), *arrangements)


CASES = [
    missing_in_snapshot("processes not in the snapshot", daemon.daemon, hook_only, "daemon"),
    with_hook("libvirtd", daemon.daemon, "PASS", "daemon", "libvirtd", runs()),
    with_hook("virtqemud", daemon.daemon, "PASS", "daemon", "process 700", runs("virtqemud")),
    with_hook(
        "two daemons", daemon.daemon, "WARN", "daemon", "https://libvirt.org/daemons.html",
        runs(), runs("virtqemud", pid=701),
    ),
    with_hook(
        "a daemon that systemd starts on demand", daemon.daemon, "PASS", "daemon",
        "libvirtd.socket", on_systemd("libvirtd.socket"),
    ),
    with_hook(
        "a daemon in a container", daemon_view.files_of_the_daemon, "FAIL", "files of libvirtd",
        "outside of the container", runs(), contained,
    ),
    with_hook(
        "no libvirt", daemon.daemon, "PASS", "daemon", "`take` and `give`",
        put("recorded/now", "1"),
    ),
    stopped(
        "libvirtd is stopped", "systemctl start libvirtd",
        lambda host: file(host, "usr/sbin/libvirtd", ""), on_systemd(),
    ),
    stopped(
        "virtqemud is stopped", "systemctl start virtqemud",
        lambda host: file(host, "usr/bin/virtqemud", ""), on_systemd(),
    ),
    stopped(
        "libvirtd is stopped on OpenRC", "rc-service libvirtd start",
        lambda host: file(host, "usr/sbin/libvirtd", ""),
    ),
    stopped("no daemon", "install libvirt", on_systemd()),
    with_hook(
        "started after the hook was installed", calls.hook_known, "PASS", KNOWN, "", runs()
    ),
    early(
        "not reloaded since the hook was installed", "FAIL", "systemctl reload libvirtd",
        changed("Tue 2023-11-14 22:13:30 UTC"),
    ),
    early(
        "reloaded since", "PASS", "2023-11-14 22:30:05", changed("Tue 2023-11-14 22:30:05 UTC")
    ),
    early(
        "made executable in the second of the reload", "FAIL", "systemctl reload libvirtd",
        made_executable(LOOKED + 0.5), changed_precisely("Tue 2023-11-14 22:30:05.250000 UTC"),
    ),
    early(
        "reloaded in the second in which it was made executable", "PASS", "22:30:05",
        made_executable(LOOKED + 0.25), changed_precisely("Tue 2023-11-14 22:30:05.500000 UTC"),
    ),
    early(
        "made executable after a reload that came after a call", "FAIL", "22:30:06",
        called("prepare", LOOKED - 1), made_executable(LOOKED + 1),
        changed_precisely("Tue 2023-11-14 22:30:05.250000 UTC"),
    ),
    early(
        "called after a reload, and changed since", "PASS", "called the hook before",
        called("prepare", LOOKED + 1), made_executable(LOOKED + 2),
        changed_precisely("Tue 2023-11-14 22:30:05.250000 UTC"),
    ),
    early("systemctl in /bin", "PASS", "2023-11-14 22:30:05", systemctl_in_bin),
    early("another hook was there before", "PASS", "10-foreign", another_hook),
    early("called before the last change", "PASS", "", called("prepare", INSTALLED - 1)),
    early("called since", "PASS", "", called("release", INSTALLED + 1)),
    early("called before the daemon was started", "WARN", "", called("prepare", EARLY - 1)),
    early("called by a person only", "WARN", "", called("give", INSTALLED + 1)),
    early("without systemd", "WARN", "kill -HUP 700"),
    early("a unit that never changed", "WARN", "systemctl reload libvirtd", changed("")),
    early("a unit without a time", "WARN", "systemctl reload libvirtd", changed("n/a")),
    with_hook(
        "a call", calls.hook_called, "PASS", CALLED, "2023-11-14 22:46:40",
        called("release", STARTED),
    ),
    with_hook("no call", calls.hook_called, "PASS", CALLED, "none", running_vm()),
    with_hook(
        "no call for a VM with a GPU", calls.hook_called, "WARN", CALLED, "win11", running_vm(GPU)
    ),
    with_hook(
        "a VM that ran before", calls.hook_called, "PASS", CALLED, "none", running_vm(GPU),
        ran_before,
    ),
    *(
        with_hook(
            f"a history of {text!r}", calls.hook_called, "PASS", CALLED, "none",
            put(f"run/vfio-console-hook.status/{UUID}", text),
        )
        for text in ("", "{", "[]", '{"events": {"prepare": {"time": "x"}}}')
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_has_its_finding(machine: MachineFactory, case: Case) -> None:
    assert_found(case, machine(case.machine))


def test_the_sentences_about_the_daemon(machine: MachineFactory, golden: Golden) -> None:
    golden("doctor-sentences-daemon", sentences(CASES, machine))


def test_without_processes_in_the_snapshot_only_the_check_of_the_daemon_reports_it(
    machine: MachineFactory,
) -> None:
    case = Case("no processes", calls.hook_known, hook_only, "PASS", "")

    assert findings(case, machine(case.machine)) == []


def users_daemon(host: FakeHost) -> None:
    process(host, 300, "libvirtd", at=STARTED, user=1000)
    process(host, 700, "libvirtd", at=STARTED)


def in_a_container(host: FakeHost) -> None:
    process(host, 700, "virtqemud", at=STARTED)
    host.tree.put("proc/700/status", "Name:\tvirtqemud\nUid:\t0\t0\t0\t0\nNSpid:\t700\t7")


def stale_pid_file(host: FakeHost) -> None:
    process(host, 700, "bash", at=STARTED)
    host.tree.put("run/libvirtd.pid", "700")


@pytest.mark.parametrize(
    ("arrange", "pids"), [(users_daemon, [700]), (in_a_container, []), (stale_pid_file, [])]
)
def test_only_daemons_of_the_host_count(
    machine: MachineFactory, arrange: Arrange, pids: list[int]
) -> None:
    host = machine("efifb-6.12")
    both(hook, arrange)(host)

    assert [one.pid for one in daemon.running_daemons(host)] == pids
