"""rehearse --start and keep: the VM itself, destroyed unless somebody keeps it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import rehearsed
from tests.conftest import MachineFactory
from tests.fakehost import libvirtd, snapshot, systemd
from tests.fakehost.libvirtd import WithLibvirtd
from tests.libvirt_xml import UUID
from tests.rehearsing import GPU, OWN, WithSystemd, ended, gone, kill, order, until
from vfio_console_hook import cli
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.rehearse import command, detached, real, rehearsal, watchdog
from vfio_console_hook.commands.rehearse.rehearsal import Diary
from vfio_console_hook.commands.rehearse.report import sections
from vfio_console_hook.commands.rehearse.verdict import Verdict
from vfio_console_hook.domain import Hostdev
from vfio_console_hook.machine import virsh

Capture = pytest.CaptureFixture[str]
VM = "win11"


@pytest.fixture
def host(machine: MachineFactory, monkeypatch: pytest.MonkeyPatch) -> WithLibvirtd:
    for name in ("OPENING_S", "SPARE_S", "LIBVIRT_S"):
        monkeypatch.setattr(rehearsal, name, 1.0)
    made = WithLibvirtd(machine("efifb-6.12").root)
    made.tree.make_directory("var/lib")
    libvirtd.define(made, VM, UUID, GPU)
    return made


def started(host: WithLibvirtd, seconds: float = 1.0, timeout_s: int = 60) -> Diary:
    """A rehearsal that starts the VM, begun as the command does."""
    ordered = order(host, seconds=seconds, timeout_s=timeout_s, starts=True)
    diary = Diary(host, OWN)
    diary.begin(ordered)
    hostdev = vars(Hostdev(GPU, True, "hostdev", 0))
    diary.note(real={"uri": "qemu:///system", "hostdevs": [hostdev]})
    detached.begin(host, ordered, lambda role, own: command._detached(host, role, own))
    return diary


def off(host: WithLibvirtd) -> bool:
    return virsh.is_off(host, "qemu:///system", VM) is True


def keep(host: WithLibvirtd) -> int:
    return cli.main(["keep", VM], host)


def rows(diary: Diary) -> dict[str, str]:
    verdict = Verdict.from_json(diary.account().verdicts[-1])
    assert verdict.agrees, [str(row) for row in verdict.rows]
    return {row.what: row.seen for row in verdict.rows}


def test_a_vm_that_is_not_kept_is_destroyed_and_the_host_is_as_before(host: WithLibvirtd) -> None:
    before = snapshot(host)

    account = ended(started(host), host)

    assert (account.end, off(host), Claims(host).uuids()) == ("", True, ())
    assert snapshot(host) == before
    found = rows(Diary(host, OWN))
    assert found["BARs"] == "2 mapped"
    assert "having 1." in found["seconds"]


def test_a_vm_that_is_kept_runs_on(host: WithLibvirtd, capsys: Capture) -> None:
    diary = started(host, seconds=20)
    until(diary, lambda account: account.qemu)

    status = keep(host)

    account = ended(diary, host)
    assert (status, account.kept, account.end, off(host)) == (0, True, "", False)
    assert "win11 is kept" in capsys.readouterr().out
    assert [*rows(diary)] == ["steps", "BARs"]


def test_a_vm_that_ends_by_itself_is_compared_too(host: WithLibvirtd) -> None:
    diary = started(host, seconds=20)
    until(diary, lambda account: account.opened)

    host.end(VM)

    assert ended(diary, host).end == ""
    assert rows(diary)["given back"] == "all of it"


def test_ctrl_c_destroys_it_at_once(host: WithLibvirtd) -> None:
    diary = started(host, seconds=60)
    account = until(diary, lambda account: account.opened)

    os.kill(account.runner[0], signal.SIGTERM)

    assert ended(diary, host).verdicts and off(host)


@pytest.mark.parametrize("phase", ["starting", "qemu", "opened"])
def test_the_watchdog_destroys_it_when_the_runner_is_killed(
    host: WithLibvirtd, phase: str
) -> None:
    diary = started(host, seconds=1.0, timeout_s=4)
    account = until(diary, lambda account: getattr(account, phase))

    kill(host, account.runner[0])

    account = ended(diary, host)
    assert (off(host), "killed" in (account.end or "")) == (True, True)
    assert Claims(host).uuids() == ()


def test_both_may_be_killed_but_for_the_timer_of_systemd(host: WithLibvirtd) -> None:
    """Without systemd the watchdog is a process; what it would do is what the timer runs."""
    diary = started(host, seconds=60)
    account = until(diary, lambda account: account.opened)
    kill(host, account.runner[0])
    kill(host, account.watchdog[0])
    gone(host)

    status = watchdog.give_back(host, OWN)

    assert (status, off(host), Claims(host).uuids()) == (0, True, ())


def test_a_killed_runner_does_not_end_a_vm_before_its_time(host: WithLibvirtd) -> None:
    diary = started(host, seconds=60)
    account = until(diary, lambda account: account.opened)

    kill(host, account.runner[0])

    time.sleep(1)
    assert (off(host), keep(host)) == (False, 0)
    watchdog.give_back(host, OWN)
    assert not off(host)
    kill(host, account.watchdog[0])
    gone(host)


def test_while_libvirtd_is_down_qemu_is_killed(
    host: WithLibvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "_KILL_AFTER_S", 0.5)
    monkeypatch.setattr(real, "_ASK_AGAIN_S", 0.2)
    diary = started(host, seconds=1, timeout_s=2)
    until(diary, lambda account: account.opened)
    host.tree.put("fake/libvirt/down", "")

    account = ended(diary, host)

    assert not host.qemu_runs()
    assert account.took["lost"] == "libvirt has not given back what win11 had"
    host.tree.remove("fake/libvirt/down")
    host.end(VM)  # libvirtd is back
    assert Claims(host).uuids() == ()


def test_a_start_that_comes_after_its_time_is_ended_all_the_same(
    host: WithLibvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virsh is killed at the end of its time, and libvirtd goes on."""
    monkeypatch.setattr(real, "_ASK_AGAIN_S", 0.2)
    host.tree.put("fake/libvirt/slow_s", "4")

    account = ended(started(host, timeout_s=1), host)

    assert (off(host), host.qemu_runs()) == (True, False)
    assert account.end


def test_a_vm_that_comes_even_later_is_ended_by_the_timer(
    host: WithLibvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "_ASK_AGAIN_S", 0.2)
    host.tree.put("fake/libvirt/slow_s", "9")
    account = ended(started(host, timeout_s=1), host)
    assert account.took["lost"] == "libvirt does not say whether win11 is off"
    assert host.wait(host.qemu_runs, 20)

    watchdog.give_back(host, OWN)

    assert host.wait(lambda: off(host), 20)


def test_a_vm_that_runs_already_is_left_alone(host: WithLibvirtd) -> None:
    host.run("/usr/bin/virsh", "-c", "qemu:///system", "start", "--domain", VM)

    account = ended(started(host), host)

    assert "win11 is not off" in (account.end or str(account.took["error"]))
    assert (off(host), account.starting) == (False, False)


def test_a_start_that_libvirt_refuses_destroys_nothing(host: WithLibvirtd) -> None:
    host.tree.put("fake/libvirt/refuses", "Cannot access storage file")

    account = ended(started(host), host)

    assert account.took["error"] == "Cannot access storage file"
    assert (account.starting, off(host), Claims(host).uuids()) == (False, True, ())


def test_a_later_run_of_the_vm_is_not_destroyed(host: WithLibvirtd) -> None:
    """It was shut down and started again by a person, after the runner had been killed."""
    diary = started(host, seconds=60)
    account = until(diary, lambda account: account.opened)
    kill(host, account.runner[0])
    kill(host, account.watchdog[0])
    gone(host)
    host.end(VM)
    host.run("/usr/bin/virsh", "-c", "qemu:///system", "start", "--domain", VM)

    watchdog.give_back(host, OWN)

    assert not off(host)


@pytest.mark.parametrize("first", ["kept", "destroying"])
def test_of_keep_and_the_switch_the_first_one_wins(host: WithLibvirtd, first: str) -> None:
    diary = Diary(host, OWN)
    diary.begin(order(host))
    for one in (first, *({"kept", "destroying"} - {first})):
        diary.note(**{one: True})

    account = diary.account()

    assert (account.kept, account.destroying) == (first == "kept", first == "destroying")


def test_status_shows_until_when_it_has_to_be_kept(host: WithLibvirtd, capsys: Capture) -> None:
    diary = started(host, seconds=60)
    until(diary, lambda account: account.qemu)

    shown = status_of(host, capsys)

    assert "a rehearsal has started win11: destroyed by" in shown
    assert "unless `vfio-console-hook keep win11` is run" in shown
    keep(host)
    ended(diary, host)
    assert "keep win11" not in status_of(host, capsys)


def status_of(host: WithLibvirtd, capsys: Capture) -> str:
    capsys.readouterr()
    cli.main(["status"], host)
    return " ".join(capsys.readouterr().out.split())


def test_keep_that_comes_too_late_says_so(host: WithLibvirtd, capsys: Capture) -> None:
    diary = Diary(host, OWN)
    diary.begin(order(host))
    diary.note(real={"uri": "qemu:///system", "hostdevs": []})
    diary.note(starting=True)
    diary.note(destroying=True)

    assert (keep(host), "is being destroyed already" in capsys.readouterr().err) == (1, True)


def test_keep_of_a_vm_that_no_rehearsal_has_started(host: WithLibvirtd, capsys: Capture) -> None:
    assert (keep(host), "no rehearsal has started win11" in capsys.readouterr().err) == (1, True)


def test_the_command_announces_when_it_is_destroyed(
    host: WithLibvirtd, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_MINUTE_S", 0.02)
    status = cli.main(["rehearse", "--start", "--minutes", "1", "--yes", VM], host)
    gone(host)

    out = capfd.readouterr().out
    assert "unless `vfio-console-hook keep win11` was run" in " ".join(out.split())
    assert (status, off(host)) == (0, True), out


def test_its_report_can_be_replayed(
    host: WithLibvirtd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_MINUTE_S", 0.02)
    file = tmp_path / "report.txt"

    cli.main(["rehearse", "--start", "--minutes", "1", "--yes", "--report", str(file), VM], host)
    gone(host)

    text = file.read_text(encoding="utf-8")
    assert sections(text)["rehearsed"] == f"functions {GPU}\nagrees yes\nstarted yes\n"
    assert rehearsed.replay(text, tmp_path / "replayed") == {}


@pytest.mark.parametrize(
    "words", [("--xml", "x.xml"), (GPU,), ("a", "b"), ("--times", "2", VM), ("--reset", VM)]
)
def test_only_one_vm_of_libvirts_can_be_started(
    host: WithLibvirtd, words: tuple[str, ...], capsys: Capture
) -> None:
    assert cli.main(["rehearse", "--yes", "--start", *words], host) == 1
    assert off(host)


# -- with systemd


class Both(WithLibvirtd, WithSystemd):
    """A machine with libvirtd, that systemd runs."""


def with_systemd(host: WithLibvirtd) -> Both:
    systemd.install(host.tree)
    return Both(host.root)


def test_with_systemd_the_switch_is_a_timer_and_no_end_of_the_unit(host: WithLibvirtd) -> None:
    """However the runner ends; and a watchdog that is killed at its work begins anew."""
    both = with_systemd(host)

    diary = started(both)

    account = ended(diary, both)
    units = {one[-13:]: both.read(f"fake/transient/{one}") or "" for one in both.list(_UNITS)}
    (timer,) = [text for name, text in units.items() if name.endswith(".timer")]
    (unit,) = [text for name, text in units.items() if not name.endswith(".timer")]
    assert (account.end, off(both)) == ("", True)
    assert "--property=Restart=on-abnormal" in timer and "oneshot" not in timer
    assert "ExecStopPost" not in unit


def test_with_systemd_the_timer_destroys_it_when_the_runner_was_killed(host: WithLibvirtd) -> None:
    both = with_systemd(host)
    diary = started(both, seconds=60)
    account = until(diary, lambda account: account.opened)

    kill(both, account.runner[0])

    time.sleep(0.5)
    assert not off(both)
    (name,) = [one for one in both.list(_UNITS) if one.endswith(".timer")]
    fired = (both.read(f"{_UNITS}/{name}") or "").split("\n")[-4:]
    assert (cli.main(fired, Both(host.root)), off(both)) == (0, True)


_UNITS = "fake/transient"
