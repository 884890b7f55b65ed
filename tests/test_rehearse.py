"""rehearse: all that a start and a stop do, without the VM, and back again whatever happens."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import hosts, natives, rehearsing, snapshots
from tests.building import MEM, K, Machine, Pci
from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost, configure, hold, resources, snapshot, systemd
from tests.gate import ROOT
from tests.rehearsing import (
    GPU,
    KilledOnce,
    Stage,
    WithSystemd,
    begin,
    ended,
    kill,
    order,
    rehearse,
    stage,
    until,
    xml_file,
)
from vfio_console_hook import cli, hook
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands import take
from vfio_console_hook.commands.rehearse import last, runner, watchdog
from vfio_console_hook.commands.rehearse.promise import promise_of
from vfio_console_hook.commands.rehearse.rehearsal import Diary
from vfio_console_hook.commands.rehearse.report import sections
from vfio_console_hook.commands.rehearse.verdict import Verdict
from vfio_console_hook.errors import HookError
from vfio_console_hook.machine import console

Capture = pytest.CaptureFixture[str]
PCI = "sys/bus/pci/devices"

def verdict(host: FakeHost) -> Verdict:
    return Verdict.from_json(rehearsing.the_diary(host).account().verdicts[-1])


def seen(host: FakeHost) -> dict[str, str]:
    return {row.what: row.seen for row in verdict(host).rows}


# -- to its end


def test_the_host_is_as_before_and_all_was_as_plan_had_said(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    before = snapshot(host)

    status = rehearse(host, GPU)

    out, err = capfd.readouterr()
    assert (status, err, snapshot(host) == before, Claims(host).uuids()) == (0, "", True, ())
    assert seen(host)["BARs"] == "2 mapped"
    assert "bound 0000:01:00.0 to vfio-pci" in out and "2 of 2 BARs mapped" in out
    assert out.endswith("no eye has seen it\nall was as plan had said\n")


@pytest.mark.parametrize("name", ["native-6.1", "efifb-5.10", "efifb-0380-6.12"])
def test_of_a_vm_too(machine: MachineFactory, tmp_path: Path, name: str) -> None:
    host = stage(machine, name)
    before = snapshot(host)

    status = rehearse(host, "--xml", xml_file(tmp_path / "vm.xml", GPU))

    assert (status, snapshot(host) == before) == (0, True)


def test_a_loss_that_plan_lists_is_what_is_seen(machine: MachineFactory, tmp_path: Path) -> None:
    host = stage(machine, "efifb-6.1")

    status = rehearse(host, "--xml", xml_file(tmp_path / "vm.xml", GPU))

    assert (status, seen(host)["framebuffer"]) == (0, "none")
    assert console.dark(host)


def test_it_is_repeated_as_often_as_wanted(machine: MachineFactory, capfd: Capture) -> None:
    host = stage(machine, "efifb-6.12")

    status = rehearse(host, "--times", "3", GPU)

    assert (status, len(rehearsing.the_diary(host).account().verdicts)) == (0, 3)
    assert "3 of 3 cycles were as plan had said" in capfd.readouterr().out


def test_what_else_the_vm_gets_stays_on_its_driver(machine: MachineFactory, tmp_path: Path) -> None:
    host = stage(machine, "efifb-6.12")
    nic = "0000:05:00.0"
    path = f"sys/devices/pci0000:00/{nic}"
    host.tree.put(f"{path}/class", "0x020000")
    host.tree.link(f"{PCI}/{nic}", path)
    host.tree.link(f"{path}/iommu_group", "sys/kernel/iommu_groups/9")
    host.tree.make_directory("sys/bus/pci/drivers/igb")
    host.tree.link(f"{path}/driver", "sys/bus/pci/drivers/igb")

    status = rehearse(host, "--xml", xml_file(tmp_path / "vm.xml", GPU, nic))

    changed = [path for _, path, text in host.changes if nic in path or nic in text]
    assert (status, changed, seen(host)["BARs"]) == (0, [], "2 mapped")


def test_a_group_with_what_stays_is_not_opened_and_the_verdict_says_so(
    machine: MachineFactory, tmp_path: Path, capfd: Capture
) -> None:
    host = stage(machine, "group-not-viable-efifb-6.1")
    gpu, sound, disk = "0000:09:00.0", "0000:09:00.1", "0000:02:00.0"

    status = rehearse(host, "--xml", xml_file(tmp_path / "vm.xml", gpu, sound, disk))

    changed = [path for _, path, text in host.changes if disk in path or disk in text]
    assert (status, changed) == (0, [])
    assert seen(host)["BARs"].startswith(f"not tried: {disk} (SATA controller, on ahci)")
    assert "cannot be mapped as QEMU does" in capfd.readouterr().out


def card_with_a_held_bar() -> Machine:
    """A GPU and its sound, of which something else has a page reserved."""
    gpu = hosts.lab_gpu()
    sound = Pci(
        "0000:01:00.1", hosts.AUDIO, (hosts.QEMU, 0x2668), bars=((0, 0xFEB04000, 16 * K, MEM),),
        bridge=gpu.bridge, group=gpu.group,
    )  # fmt: skip
    lit = (hosts.firmware_on(gpu, "efifb", "6.12"),)
    return Machine("card", (), "6.12", (gpu, sound), lit, extra=hosts.BLACKLISTED)


def test_a_bar_of_which_something_else_has_a_part_is_named_and_not_mapped(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = Stage(machine(card_with_a_held_bar()).root)
    host.tree.make_directory("var/lib")
    assert resources.request(host.tree, 0xFEB04000, 0xFEB04FFF, "holds_bar")
    before = snapshot(host)

    status = rehearse(host, GPU, "01:00.1")

    assert (status, snapshot(host) == before, Claims(host).uuids()) == (1, True, ())
    assert seen(host)["BARs"] == "2 mapped; holds_bar reserves feb04000-feb04fff"
    still = "holds_bar still reserves feb04000-feb04fff in BAR 0 of 0000:01:00.1"
    assert still in seen(host)["steps"]
    assert "see !!" in capfd.readouterr().out


# -- on every machine


def gpus_of(name: str) -> tuple[str, ...]:
    """The addresses of the displays in a snapshot, by the text alone."""
    found = re.findall(r"(?m)^f sys/devices/\S*/(\S+)/class = 0x03", snapshots.machine_text(name))
    return tuple(sorted(found))


# Their connectors are numbered for each card; the kernel numbers those of a type for all cards
# (drm_connector.c, drm_connector_enum_list).
NUMBERED_BY_HAND = ("two-gpus-6.12", "fedora-two-gpus", "group-not-viable-nvidia")
# Nothing tells the fake kernel which driver takes these devices by itself.
OF_UNKNOWN_DRIVERS = ("virtio", "snd_hda_intel")
EVERY = [
    (name, gpu)
    for name in snapshots.before_vms()
    if not name.startswith((*NUMBERED_BY_HAND, "iomem-without-root"))
    for gpu in gpus_of(name)
]


@pytest.mark.parametrize(("name", "gpu"), EVERY, ids=" ".join)
def test_the_verdict_is_what_plan_has_said_on_every_machine(
    machine: MachineFactory, name: str, gpu: str
) -> None:
    """Wherever plan promises a start; in this process and without a watchdog."""
    host = machine(name)
    host.tree.make_directory("var/lib")
    for one in gpus_of(name):
        if host.link_name(f"{PCI}/{one}/driver") == "bochs-drm":
            host.tree.put(f"fake/native/{one}", natives.BOCHS)
    try:
        addresses = tuple(one.address for one in take.taker_of(host, (gpu,), vfio=True).hostdevs)
        rehearsal = order(host, *addresses, vm=gpu, configured_as=gpu, seconds=0.0)
        config = runner.configuration_of(host, rehearsal)
        promise_of(host, rehearsal, rehearsal.domain, config)
    except HookError:
        assert host.changes == []  # plan refuses it, too
        return
    drivers = {host.link_name(f"{PCI}/{one}/driver") or "" for one in addresses}
    unknown = [one for one in drivers if one.startswith(OF_UNKNOWN_DRIVERS)]
    if unknown and name.startswith(("lab-", "recorded-", "rehearsed-")):
        pytest.skip(f"{unknown[0]} does not come back on the fake machine")
    diary = Diary(host, rehearsal.own)
    diary.begin(rehearsal)
    diary.note(watchdog="none")

    status = runner.run(host, rehearsal.own)

    assert [str(row) for row in verdict(host).rows if not row.agrees] == []
    assert (status, Claims(host).uuids()) == (0, ())


# -- refused


def test_what_plan_refuses_is_refused(machine: MachineFactory, capfd: Capture) -> None:
    host = stage(machine, "efifb-6.12")
    configure(host, "holders: {wait_s: 0}\n")
    hold(host, "dev/fb0", pid=77, command="plymouthd")
    before = snapshot(host)

    status = rehearse(host, GPU)

    err = capfd.readouterr().err
    assert (status, snapshot(host) == before, host.changes) == (1, True, [])
    assert "plymouthd (77)" in err and "nothing was rehearsed" in err


def test_a_vm_that_has_its_gpu_is_not_rehearsed(
    machine: MachineFactory, tmp_path: Path, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    assert hook.main(["win11", "prepare", "begin", "-"], domain_xml(GPU), FakeHost(host.root)) == 0
    before = snapshot(host)

    status = rehearse(host, "--xml", xml_file(tmp_path / "vm.xml", GPU))

    assert (status, snapshot(host) == before) == (1, True)
    assert f"{GPU} belongs to the VM win11, which has it now" in capfd.readouterr().err


def test_a_gpu_that_was_on_vfio_pci_before_is_so_afterwards(machine: MachineFactory) -> None:
    host = stage(machine, "harvester-on-vfio-already")
    gpu = "0000:b3:00.0"
    assert host.link_name(f"{PCI}/{gpu}/driver") == "vfio-pci"

    status = rehearse(host, gpu)

    assert (status, host.link_name(f"{PCI}/{gpu}/driver")) == (0, "vfio-pci")


def test_without_a_person_it_wants_a_yes(machine: MachineFactory, capfd: Capture) -> None:
    host = stage(machine, "efifb-6.12")

    status = cli.main(["rehearse", GPU], host)

    assert (status, host.changes) == (1, [])
    assert "hint: say --yes" in capfd.readouterr().err


def test_a_vm_and_another_rehearsal_are_refused_meanwhile(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    diary = begin(host, order(host, seconds=20.0))
    until(diary, lambda account: account.opened)

    vm = hook.main(["win11", "prepare", "begin", "-"], domain_xml(GPU), FakeHost(host.root))
    refused = capfd.readouterr().err
    second = cli.main(["rehearse", "--yes", GPU], FakeHost(host.root))
    taken = cli.main(["take", GPU], FakeHost(host.root))
    again = capfd.readouterr().err
    status = cli.main(["status"], FakeHost(host.root))
    shown = capfd.readouterr().out
    recovered = cli.main(["recover"], FakeHost(host.root))
    gave = cli.main(["give", GPU], FakeHost(host.root))
    given = capfd.readouterr()
    kill(host, diary.account().runner[0], signal.SIGTERM)
    ended(diary, host)

    assert (vm, second, taken, status, recovered, gave) == (1, 1, 1, 0, 0, 1)
    sentence = f"{GPU} is in a rehearsal of win11, which gives it back by "
    assert sentence in refused and again.count(sentence) == 2
    assert "a rehearsal of win11 holds 0000:01:00.0" in shown and "given back by" in shown
    assert "win11: skipped: its rehearsal gives it back by" in given.out
    assert "win11 cannot be released: its rehearsal gives it back by" in given.err


# -- cut short


MOMENTS = ("runner", "cycle", "taking", "opened", "giving back")


def at(moment: str, diary: Diary) -> bool:
    """Whether a diary has come to that moment."""
    lines = diary.lines()
    says = [str(one.get("say", "")) for one in lines]
    return any(moment in one for one in lines) or any(one.startswith(moment) for one in says)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["efifb-6.12", "native-6.1"])
def test_a_killed_runner_is_followed_by_the_watchdog(
    machine: MachineFactory, name: str, moment: str
) -> None:
    host = stage(machine, name)
    before = snapshot(host)
    if moment == "giving back":
        host.pause_s = 0.3  # it must not be over before the kill
    diary = begin(host, order(host, seconds=20.0 if moment != "giving back" else 0.1))

    account = until(diary, lambda account: at(moment, diary))
    kill(host, account.runner[0])
    account = ended(diary, host)

    assert snapshot(host) == before
    assert (Claims(host).uuids(), account.end) == ((), "its process was killed")
    (remembered,) = last.all_last(host)
    assert (remembered.agrees, remembered.why) == (False, "its process was killed")


def test_a_runner_that_hangs_is_killed_at_the_announced_time(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.12")
    before = snapshot(host)
    rehearsal = order(host, seconds=30.0, timeout_s=60)
    rehearsal = replace(rehearsal, began=host.now() - 102)  # the watchdog fires in 8 s
    diary = begin(host, rehearsal)
    account = until(diary, lambda account: account.opened)

    kill(host, account.runner[0], signal.SIGSTOP)
    account = ended(diary, host)

    assert (snapshot(host) == before, Claims(host).uuids()) == (True, ())
    assert account.end == "it hung, and was killed"
    assert host.now() < rehearsal.until


@pytest.mark.parametrize("comes", ["recover", "start"])
def test_if_both_are_killed_whoever_comes_next_gives_back(
    machine: MachineFactory, comes: str, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    before = snapshot(host)
    diary = begin(host, order(host, seconds=30.0))
    account = until(diary, lambda account: account.opened)
    kill(host, account.watchdog[0])
    kill(host, account.runner[0])

    shown = cli.main(["status"], FakeHost(host.root))
    if comes == "recover":
        assert cli.main(["recover"], FakeHost(host.root)) == 0
    else:
        words = ["win11", "prepare", "begin", "-"]
        assert hook.main(words, domain_xml(GPU), FakeHost(host.root)) == 0
        assert [one.name for one in Claims(host).readable()] == ["win11"]
        assert not any(one.until for one in Claims(host).readable())
        assert hook.main(["win11", "release", "end", "-"], b"", FakeHost(host.root)) == 0

    assert (shown, snapshot(host) == before, Claims(host).uuids()) == (1, True, ())
    assert "its rehearsal was killed" in capfd.readouterr().out


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_makes_it_give_back_at_once(machine: MachineFactory, signal_number: int) -> None:
    host = stage(machine, "native-6.1")
    before = snapshot(host)
    diary = begin(host, order(host, seconds=30.0))
    account = until(diary, lambda account: account.opened)
    began = time.monotonic()

    kill(host, account.runner[0], signal_number)
    account = ended(diary, host)

    assert (snapshot(host) == before, Claims(host).uuids()) == (True, ())
    assert (account.end, time.monotonic() - began < 15) == ("stopped on request", True)


def test_a_diary_that_cannot_be_written_keeps_nothing(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.12")
    before = snapshot(host)
    diary = begin(host, order(host, seconds=3.0))
    until(diary, lambda account: account.opened)
    time.sleep(1)  # the watchdog looks for the runner five times a second

    os.unlink(host.path(diary.path))
    rehearsing.gone(host)

    assert (snapshot(host) == before, Claims(host).uuids()) == (True, ())


def test_a_terminal_that_goes_changes_nothing(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.12")
    diary = begin(host, order(host))
    account = until(diary, lambda account: account.opened)

    kill(host, account.runner[0], signal.SIGHUP)
    account = ended(diary, host)

    assert (account.end, Verdict.from_json(account.verdicts[0]).agrees) == ("", True)


@pytest.mark.parametrize("change", range(1, 11))
def test_whichever_change_kills_the_worker_all_is_given_back(
    machine: MachineFactory, change: int
) -> None:
    host = stage(machine, "efifb-6.12")
    before = snapshot(host)

    diary = begin(KilledOnce(host.root, crash_before=change), order(host, seconds=0.2))
    account = ended(diary, host)

    assert (snapshot(host) == before, Claims(host).uuids()) == (True, ())
    assert not account.verdicts or not Verdict.from_json(account.verdicts[0]).agrees


def test_after_a_reboot_nothing_is_held(machine: MachineFactory, capfd: Capture) -> None:
    host = stage(machine, "efifb-6.12")
    diary = begin(host, order(host, seconds=30.0))
    account = until(diary, lambda account: account.opened)
    kill(host, account.watchdog[0])
    kill(host, account.runner[0])
    booted = FakeHost(host.root)
    booted.boot_again()
    begun = len(booted.changes)

    shown = cli.main(["status"], booted)
    recovered = cli.main(["recover"], booted)

    assert (shown, recovered, booted.changes[begun:], Claims(booted).uuids()) == (0, 0, [], ())


# -- with systemd


def with_systemd(machine: MachineFactory) -> WithSystemd:
    host = WithSystemd(machine("efifb-6.12").root)
    host.tree.make_directory("var/lib")
    systemd.install(host.tree)
    return host


def transient(host: FakeHost) -> dict[str, list[str]]:
    """The options and words of the transient units, by the end of their names."""
    units = host.list("fake/transient")
    texts = {one: (host.read(f"fake/transient/{one}") or "").splitlines() for one in units}
    return {one.partition("-rehearsal-")[2][8:]: lines for one, lines in texts.items()}


def test_with_systemd_it_is_a_unit_with_a_timer_as_its_watchdog(machine: MachineFactory) -> None:
    host = with_systemd(machine)
    before = snapshot(host)

    status = rehearse(host, GPU)

    units = transient(host)
    own = rehearsing.the_diary(host).own
    assert (status, snapshot(host) == before, sorted(units)) == (
        0, True, ["-watchdog.timer", ".service"],
    )  # fmt: skip
    assert units[".service"][-3:] == ["rehearse", "--as", "runner", own][1:]
    assert units["-watchdog.timer"][-3:] == ["--as", "watchdog", own]
    (fires,) = [one for one in units["-watchdog.timer"] if one.startswith("--on-active=")]
    # 60 s to take, 20 to open and close, 1 to have it: giving back has begun by then.
    assert fires in ("--on-active=81s", "--on-active=80s")


def test_when_the_unit_is_killed_systemd_gives_back_at_once(machine: MachineFactory) -> None:
    host = with_systemd(machine)
    before = snapshot(host)
    diary = begin(host, order(host, seconds=30.0))
    account = until(diary, lambda account: account.opened)

    kill(host, account.runner[0])
    account = ended(diary, host)

    assert (snapshot(host) == before, account.end) == (True, "its process was killed")


def test_what_a_runner_has_left_is_given_back_and_the_reason_stays(
    machine: MachineFactory,
) -> None:
    host = stage(machine, "efifb-6.12")
    before = snapshot(host)
    diary = begin(host, order(host, seconds=30.0))
    account = until(diary, lambda account: account.opened)
    kill(host, account.watchdog[0])
    diary.note(end="the kernel is stuck (process 7)")
    kill(host, account.runner[0])

    watchdog.give_back(host, diary.own)

    assert (snapshot(host) == before, Claims(host).uuids()) == (True, ())
    assert diary.account().end == "the kernel is stuck (process 7)"


def test_the_timer_kills_a_unit_that_hangs(machine: MachineFactory) -> None:
    host = with_systemd(machine)
    before = snapshot(host)
    diary = begin(host, order(host, seconds=30.0))
    account = until(diary, lambda account: account.opened)
    kill(host, account.runner[0], signal.SIGSTOP)

    fired = cli.main(transient(host)["-watchdog.timer"][-4:], WithSystemd(host.root))
    account = ended(diary, host)

    assert (fired, snapshot(host) == before) == (0, True)
    assert account.end == "it hung, and was killed"


# -- a person


PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.rehearsing import Stage
from vfio_console_hook import cli
sys.exit(cli.main(["rehearse", *sys.argv[2:]], Stage(sys.argv[1])))
"""


def typed(host: FakeHost, answers: dict[str, bytes], *words: str) -> tuple[int, str]:
    """The exit status and output of the command in a terminal, where a person answers."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        argv = [sys.executable, "-c", PROGRAM, host.root, *words]
        os.execve(sys.executable, argv, {"TERM": "dumb", "COLUMNS": "100"})
    output = ""
    waiting = dict(answers)
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break  # the command has ended
        output += part.decode()
        for question in [one for one in waiting if one in output]:
            os.write(terminal, waiting.pop(question))
        if not part:
            break
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


NOW, SEES = "rehearse this now? [y/N]", "on the monitor? [y/N]"


def test_a_person_is_asked_once_and_for_what_the_monitor_shows(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")

    status, output = typed(host, {NOW: b"y\n", SEES: b"y\n"}, "--seconds", "1", GPU)

    cli.main(["status"], FakeHost(host.root))
    assert (status, output.count(NOW), output.count(SEES)) == (0, 1, 1)
    assert "a person could read it" in output
    assert "a person could read the console" in capfd.readouterr().out


def test_a_monitor_that_stays_dark_is_no_success(
    machine: MachineFactory, tmp_path: Path
) -> None:
    host = stage(machine, "efifb-6.12")
    file = tmp_path / "report.txt"
    words = ("--seconds", "1", "--report", str(file), GPU)

    status, output = typed(host, {NOW: b"y\n", SEES: b"n\n"}, *words)

    row = sections(file.read_text())["verdict"].splitlines()[-1]
    assert row == "!!monitor: a person could not read it; plan: the console can be read"

    assert (status, last.all_last(host)[0].eye) == (1, "no")
    assert "a person could not read it" in output


def test_nobody_is_asked_about_a_console_that_is_lost(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.1")

    status, output = typed(host, {NOW: b"y\n"}, "--seconds", "1", GPU)

    assert (status, output.count(SEES)) == (0, 0)
    assert re.search(r"monitor +see console +the host shows nothing", output)


def test_without_consent_nothing_is_changed(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.12")

    status, output = typed(host, {NOW: b"\n"}, GPU)

    assert (status, host.changes, output.endswith("nothing was changed\r\n")) == (2, [], True)


def test_ctrl_c_gives_back_at_once(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.12")
    before = snapshot(host)
    began = time.monotonic()

    status, output = typed(host, {"BARs mapped": b"\x03"}, "--yes", "--seconds", "60", GPU)
    rehearsing.gone(host)

    assert (status, snapshot(host) == before, time.monotonic() - began < 30) == (130, True, True)
    assert "interrupted: everything was given back" in output


# -- what is kept


def test_status_shows_the_last_rehearsal_and_what_has_changed_since(
    machine: MachineFactory, tmp_path: Path, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    rehearse(host, "--xml", xml_file(tmp_path / "vm.xml", GPU))
    capfd.readouterr()

    cli.main(["status"], FakeHost(host.root))
    fresh = capfd.readouterr().out
    host.tree.put("proc/sys/kernel/osrelease", "6.13.0")
    configure(host, "timeout_s: 30\n")
    cli.main(["status"], FakeHost(host.root))
    later = capfd.readouterr().out
    cli.main(["status", "--json"], FakeHost(host.root))
    (shown,) = json.loads(capfd.readouterr().out)["rehearsals"]

    assert "last rehearsal of win11: " in fresh and "changed" not in fresh
    assert "since then the kernel and the configuration changed: rehearse it again" in later
    assert (shown["agrees"], shown["changed"]) == (True, ["the kernel", "the configuration"])


def test_record_has_no_more_of_libvirts_file_than_the_devices(
    machine: MachineFactory, tmp_path: Path, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    xml = xml_file(tmp_path / "vm.xml", GPU)
    disk = b"<devices><disk><source file='/home/ada/private.img'/></disk>"
    text = Path(xml).read_bytes().replace(b"<devices>", disk).replace(b"win11", b"adas-vm")
    Path(xml).write_bytes(text)
    host.tree.put("etc/libvirt/qemu/adas-vm.xml", text.decode())
    rehearse(host, "--xml", xml)
    capfd.readouterr()

    cli.main(["record", str(tmp_path / "recorded")], FakeHost(host.root))
    cli.main(["--root", str(tmp_path / "recorded"), "status"])

    recorded = (tmp_path / "recorded").read_text()
    assert ("private.img" in recorded, "adas-vm" in recorded) == (False, False)
    shown = capfd.readouterr().out
    assert "last rehearsal of vm1: " in shown and "changed" not in shown


def test_metrics_have_the_last_rehearsal(
    machine: MachineFactory, tmp_path: Path, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    rehearse(host, "--xml", xml_file(tmp_path / "vm.xml", GPU))
    host.tree.put("proc/sys/kernel/osrelease", "6.13.0")
    capfd.readouterr()

    cli.main(["status", "--prometheus"], FakeHost(host.root))

    found = capfd.readouterr().out.splitlines()
    assert 'vfio_console_hook_rehearsal_agrees{vm="win11"} 1' in found
    assert 'vfio_console_hook_rehearsal_outdated{vm="win11"} 1' in found
    assert 'vfio_console_hook_last_result{vm="win11",event="rehearse"} 1' in found


def test_json_has_all_rows_and_the_announced_time(machine: MachineFactory, capfd: Capture) -> None:
    host = stage(machine, "efifb-6.12")

    status = rehearse(host, "--json", GPU)

    found = json.loads(capfd.readouterr().out)
    assert (status, found["agrees"], found["vm"], len(found["cycles"])) == (0, True, GPU, 1)
    assert [row["what"] for row in found["cycles"][0]["rows"]][:3] == ["steps", "BARs", "driver"]
    assert found["until"] > host.now()
