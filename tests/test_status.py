"""status: what VMs hold, the last events of each, and the permissions to read them."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import events
from tests.conftest import Golden, MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, close_device, hold, open_device, snapshot
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import cli, hook
from vfio_console_hook.claims import history
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.claims.histories import histories
from vfio_console_hook.claims.history import STATUS
from vfio_console_hook.commands.status import overview
from vfio_console_hook.commands.status.command import status_text
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HostError, RefusedError, StepError
from vfio_console_hook.events import recovery
from vfio_console_hook.log import Log

GPU = "0000:01:00.0"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
CLAIMS = "run/vfio-console-hook/claims"
Capture = pytest.CaptureFixture[str]


class Clock(FakeHost):
    """A machine whose clock moves only when a test sets it."""

    time = 1_732_300_000.0

    def now(self) -> float:
        return self.time


def at_noon(host: FakeHost) -> Clock:
    clock = Clock(host.root)
    clock.time = 1_732_300_000.0
    return clock


def call(host: Clock, event: str, sub: str = "begin", name: str = "win11") -> int:
    """Run one event as libvirt sends it; return its exit status."""
    another = Clock(host.root)
    another.time = host.time
    return hook.main([name, event, sub, "-"], domain_xml(GPU, event=event, name=name), another)


def started(host: Clock) -> FakeLibvirt:
    libvirt = FakeLibvirt(host)
    assert call(host, "prepare") == 0
    libvirt.detach(GPU)
    assert call(host, "start") == 0
    open_device(host, GPU)
    assert call(host, "started") == 0
    return libvirt


def ended(host: Clock, libvirt: FakeLibvirt) -> None:
    close_device(host, GPU)
    libvirt.reattach(GPU)
    assert call(host, "release", "end") == 0


def prepare(host: FakeHost, name: str = "win11", *, by_hand: bool = False) -> None:
    vm = Domain(name, UUID, (Hostdev(GPU, True, "hostdev", 0),), by_hand=by_hand)
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, name))


def shown(host: FakeHost) -> str:
    """The text of status without dates and durations."""
    found = overview.current(host)
    known = tuple(
        replace(one, events=tuple(replace(event, took_s=0.123) for event in one.events))
        for one in found.histories
    )
    text = status_text(replace(found, histories=known), Terminal())
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2024-11-22 TT:TT:TT", text)


def shown_json(host: FakeHost, capsys: Capture) -> dict[str, Any]:
    assert cli.main(["--root", host.root, "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


# -- as text


def test_the_text_for_a_host_without_claims(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)

    status = cli.main(["--root", host.root, "status"])

    assert (status, capsys.readouterr()) == (
        0,
        ("no VM holds a GPU\nthe host's consoles: framebuffer console on fb0 (EFI VGA)\n", ""),
    )
    assert (snapshot(host), host.list("run")) == (before, ())


@pytest.mark.parametrize("name", ["efifb-6.12", "efifb-6.1", "native-6.1", "vgacon-5.10"])
def test_the_text_for_a_running_vm(machine: MachineFactory, golden: Golden, name: str) -> None:
    host = at_noon(machine(name))
    started(host)
    host.time += 2 * 3600 + 5 * 60 + 7

    golden(f"status-{name}", shown(host))


def test_only_lines_to_copy_may_be_too_long(machine: MachineFactory) -> None:
    host = at_noon(machine("efifb-6.12"))
    call(host, "prepare")
    found = overview.current(host)

    for width in (60, 80, 100):
        lines = status_text(found, Terminal(width)).splitlines()

        shell = {f"    {line}" for line in found.claims[0].undo}
        assert [line for line in lines if len(line) >= width and line not in shell] == []


def test_without_colour_the_text_is_the_same(machine: MachineFactory) -> None:
    host = at_noon(machine("efifb-6.1"))
    started(host)
    history.remember(
        host, "b", OTHER_UUID, "prepare", took_s=1, error=RefusedError("no", "try again")
    )
    found = overview.current(host)

    colourful = status_text(found, Terminal(80, True))

    assert "\033[" in colourful
    assert re.sub(r"\033\[\d*m", "", colourful) == status_text(found, Terminal(80))


def test_the_lines_undo_all_changes_if_run_in_their_order(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    prepare(host)

    (holding,) = overview.current(host).claims

    assert holding.undo == (
        "setpci -s 0000:01:00.0 COMMAND=2:2",
        "echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/bind",
        "for v in /sys/class/vtconsole/*; do grep -q 'frame buffer' $v/name && echo 1 > $v/bind;"
        " done",
    )


def test_a_console_that_the_kernel_has_removed_cannot_be_restored(machine: MachineFactory) -> None:
    host = at_noon(machine("efifb-6.1"))
    call(host, "prepare")
    before = overview.current(host).claims[0]
    FakeLibvirt(host).detach(GPU)
    call(host, "start")

    after = overview.current(host).claims[0]

    bind = "echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/bind"
    assert (bind in before.undo, bind in after.undo) == (True, False)
    assert after.lost[0] == (
        "the kernel has removed efi-framebuffer.0: the firmware console will not come back before"
        " a reboot"
    )


def test_the_phases_of_a_vm(machine: MachineFactory) -> None:
    host = at_noon(machine("efifb-6.12"))
    seen = []

    def look() -> None:
        seen.append([one.phase for one in overview.current(host).claims])

    libvirt = FakeLibvirt(host)
    call(host, "prepare")
    look()
    libvirt.detach(GPU)
    call(host, "start")
    look()
    call(host, "started")
    look()
    ended(host, libvirt)
    look()

    assert seen == [["starting"], ["starting"], ["running"], []]


@pytest.mark.parametrize(
    ("phase", "word"),
    [
        ("prepare", "preparing"), ("start", "starting"), ("started", "running"),
        ("release", "giving back"),
    ],
)  # fmt: skip
def test_a_running_hook_is_shown(machine: MachineFactory, phase: str, word: str) -> None:
    host = machine("efifb-6.12")
    prepare(host)
    host.tree.put("proc/4100/stat", f"4100 (python3) S 1 4100 4100 {'0 ' * 15}50 0")
    claim = f"{CLAIMS}/{UUID}"
    entry = json.dumps({"phase": phase, "hook": [4100, 50]})
    host.tree.put(claim, f"{host.read(claim)}\n{entry}\n")

    (holding,) = overview.current(host).claims

    assert (holding.phase, holding.hook) == (word, 4100)
    assert "(process 4100)\n" in shown(host)


def test_a_vm_that_takes_long_to_start_gets_advice(machine: MachineFactory) -> None:
    host = at_noon(machine("efifb-6.12"))
    call(host, "prepare")
    advice = "`vfio-console-hook recover`"

    soon = shown(host)
    host.time += 301

    assert (advice in soon, advice in shown(host)) == (False, True)


def test_a_claim_of_a_person_is_shown_with_the_command_that_undoes_it(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    prepare(host, name=GPU, by_hand=True)

    text = shown(host)

    assert text.startswith(f"a person holds {GPU}\n  taken by hand; held since ")
    assert f"`vfio-console-hook give {GPU}`" in text


def test_a_claim_of_an_earlier_boot_holds_nothing(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    prepare(host)
    host.boot_again()

    text = shown(host)

    assert "\n  of an earlier boot; held since " in text
    assert "`vfio-console-hook recover`" in text
    assert "setpci" not in text


def test_a_claim_that_cannot_be_read_is_named_beside_the_others(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    prepare(host)
    host.tree.put(f"{CLAIMS}/{OTHER_UUID}", "garbage")

    text = shown(host)

    assert text.startswith("cannot understand the claim")
    assert OTHER_UUID in text
    assert f"\nVM win11 holds {GPU}\n" in text


def test_a_directory_that_others_could_have_changed_is_named_and_the_consoles_are_shown(
    machine: MachineFactory,
) -> None:
    host = at_noon(machine("efifb-6.12"))
    os.makedirs(host.path(CLAIMS))
    os.chmod(host.path("run/vfio-console-hook"), 0o777)

    text = status_text(overview.current(host), Terminal())

    assert " ".join(text.split()).startswith(
        "/run/vfio-console-hook can be written by others than root, so it is left alone (hint:"
    )
    assert "Permission denied" not in text
    assert "framebuffer console on fb0" in text


def test_without_the_right_to_read_claims_the_reason_is_shown(machine: MachineFactory) -> None:
    class WithoutClaims(FakeHost):
        def list(self, path: str) -> tuple[str, ...]:
            if path == CLAIMS:
                raise HostError("cannot list /run: Permission denied")
            return super().list(path)

    host = at_noon(machine("efifb-6.12"))
    call(host, "prepare")

    text = shown(WithoutClaims(host.root))

    assert text.startswith("cannot list /run: Permission denied: ")
    assert "no VM holds" not in text
    assert "last event: 2024-11-22 TT:TT:TT" in text


def test_a_name_cannot_control_the_terminal(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    prepare(host, name="a\x1b[2J\nb")
    history.remember(
        host, "a\x1b[2J\nb", UUID, "start", took_s=1, error=RefusedError("\x1b[2J", "\x1b[2J")
    )

    assert "\x1b" not in shown(host)
    assert "VM a\\x1b[2J\\nb holds" in shown(host)


# -- the last events


def refused(host: Clock) -> None:
    hold(host, "dev/fb0", pid=9, command="Xorg")
    host.tree.put("etc/vfio-console-hook/default.yaml", "holders: {wait_s: 0}\n")
    for path in ("etc", "etc/vfio-console-hook"):
        os.chmod(host.path(path), 0o755)
    os.chmod(host.path("etc/vfio-console-hook/default.yaml"), 0o644)
    assert call(host, "prepare") == 1
    host.tree.remove("proc/9")


def test_the_last_refusal_is_shown_with_its_hint(machine: MachineFactory, golden: Golden) -> None:
    host = at_noon(machine("efifb-6.12"))
    refused(host)
    host.time += 30

    golden("status-refused", shown(host))


def test_the_last_refusal_stays_whatever_succeeds_later(
    machine: MachineFactory, golden: Golden
) -> None:
    host = at_noon(machine("efifb-6.12"))
    refused(host)
    host.time += 3600
    libvirt = started(host)
    during = shown(host)
    ended(host, libvirt)

    golden("status-refused-then-started", during)
    for text in (during, shown(host)):
        assert "last refusal" in text
        assert "is in use by Xorg (9) with" in " ".join(text.split())
    assert histories(host)[0].events[-1].failure == ""


def test_each_event_of_a_run_is_kept_with_its_duration(machine: MachineFactory) -> None:
    host = at_noon(machine("efifb-6.12"))
    libvirt = started(host)
    host.time += 60
    ended(host, libvirt)

    (vm_history,) = histories(host)

    assert (vm_history.vm, vm_history.uuid, vm_history.refusal) == ("win11", UUID, None)
    assert [(one.kind, one.failure) for one in vm_history.events] == [
        ("prepare", ""), ("start", ""), ("started", ""), ("release", ""),
    ]  # fmt: skip
    assert vm_history.events[-1].time - vm_history.events[0].time == 60
    assert all(0 < one.took_s < 30 for one in vm_history.events)


def test_a_vm_without_a_gpu_leaves_no_history(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    statuses = [
        hook.main(["plain", event, sub, "-"], domain_xml(), host)
        for event, sub in (("prepare", "begin"), ("start", "begin"), ("release", "end"))
    ]

    assert (statuses, host.list("run")) == ([0, 0, 0], ())


def test_a_release_by_recover_is_no_event_of_libvirt(machine: MachineFactory) -> None:
    host = at_noon(machine("vgacon-5.10"))
    call(host, "prepare")
    claim = Claims(host).find(UUID)
    assert claim is not None

    recovery.give_back(host, claim)

    (vm_history,) = histories(host)
    assert [one.kind for one in vm_history.events][-1] == "recover"


def test_the_history_of_another_vm_is_kept(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    history.remember(host, "a", UUID, "prepare", took_s=1)
    history.remember(host, "b", OTHER_UUID, "prepare", took_s=2)
    history.remember(host, "a", UUID, "start", took_s=3)

    assert {one.vm: [event.kind for event in one.events] for one in histories(host)} == {
        "a": ["prepare", "start"], "b": ["prepare"],
    }  # fmt: skip


def test_an_unreadable_domain_is_remembered_without_uuid(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    hook.main(["win11", "prepare", "begin", "-"], b"<domain", host)

    (vm_history,) = histories(host)
    assert (vm_history.vm, vm_history.uuid) == ("win11", "")
    assert vm_history.refusal is not None
    assert vm_history.refusal.text.startswith("the domain XML is not well-formed")


class Sweeping(Clock):
    """A machine on which the hook of another VM removes the oldest history just before this one."""

    def lstat(self, path: str) -> os.stat_result | None:
        status = super().lstat(path)
        if path.endswith("/00000000"):
            os.unlink(self.path(path))
        return status


def test_two_hooks_may_remove_the_oldest_history_at_once(machine: MachineFactory) -> None:
    host = at_noon(machine("native-6.1"))
    for number in range(100):
        assert history.remember(host, "x", f"{number:08}", "prepare", took_s=1) == ""

    error = history.remember(Sweeping(host.root), "x", f"{100:08}", "prepare", took_s=1)

    assert (error, len(history.names(host))) == ("", 100)


def test_only_the_last_hundred_vms_are_remembered(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    names = [f"{number:08x}-2222-4333-8444-555555555555" for number in range(105)]
    for number, uuid in enumerate(names):
        history.remember(host, f"vm{number}", uuid, "prepare", took_s=1)
        path = host.path(f"{STATUS}/{uuid}")
        if os.path.exists(path):
            os.utime(path, (1000 + number, 1000 + number))

    history.remember(host, "last", UUID, "prepare", took_s=1)

    assert history.names(host) == tuple(sorted([*names[6:], UUID]))


def test_the_drafts_of_killed_processes_are_removed(machine: MachineFactory) -> None:
    host = at_noon(machine("native-6.1"))
    assert call(host, "prepare") == 0
    for name, age_s in ((f".{OTHER_UUID}.4711", 3600), (f".{OTHER_UUID}.4712", 0)):
        draft = Path(host.path(STATUS)) / name
        draft.write_text("{")
        then = draft.stat().st_mtime - age_s
        os.utime(draft, (then, then))

    assert call(host, "release", "end") == 0

    # A live process may still be writing the other one.
    assert sorted(os.listdir(host.path(STATUS))) == [f".{OTHER_UUID}.4712", UUID]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_all_users_may_read_the_history_and_only_root_may_write_it(
    machine: MachineFactory, umask: int
) -> None:
    host = machine("efifb-6.12")
    prepare(host)
    old = os.umask(umask)

    history.remember(host, "win11", UUID, "prepare", took_s=1, error=StepError("the sentence"))
    os.umask(old)

    modes = [
        oct(stat.S_IMODE(os.stat(host.path(path)).st_mode)) for path in (STATUS, f"{STATUS}/{UUID}")
    ]
    assert modes == ["0o755", "0o644"]
    assert "echo" not in (host.read(f"{STATUS}/{UUID}") or "")


def test_the_file_of_an_earlier_version_is_replaced(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    host.tree.put(STATUS, '{"vm": "win11", "event": "prepare", "failure": "", "time": 1}')

    before = histories(host)
    history.remember(host, "win11", UUID, "prepare", took_s=1)

    assert (before, [one.vm for one in histories(host)]) == ((), ["win11"])


def test_a_history_that_cannot_be_written_stops_nothing(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    host.tree.make_directory(f"{STATUS}/{UUID}")

    history.remember(host, "win11", UUID, "prepare", took_s=1)

    assert host.list(STATUS) == (UUID,)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "\0", '"x"', "[" * 100_000, '{"vm": "a", "uuid": "b", "events": []}',
        '{"vm": "a", "uuid": "b", "refusal": null, "events": {"x": {"time": 1e300, "took_s": 0,'
        ' "failure": ""}}}',
        '{"vm": "a", "uuid": "b", "refusal": null, "events": {"x": {"time": NaN, "took_s": 0,'
        ' "failure": ""}}}',
        '{"vm": "a", "uuid": "b", "events": {}, "refusal": 7}',
    ],
)  # fmt: skip
def test_a_history_that_is_garbage_is_ignored(
    machine: MachineFactory, capsys: Capture, text: str
) -> None:
    host = machine("efifb-6.12")
    host.tree.put(f"{STATUS}/{UUID}", text)

    status = cli.main(["--root", host.root, "status"])

    assert (status, capsys.readouterr()) == (
        0,
        ("no VM holds a GPU\nthe host's consoles: framebuffer console on fb0 (EFI VGA)\n", ""),
    )
    history.remember(host, "win11", UUID, "start", took_s=1)
    assert [one.events[-1].kind for one in histories(host)] == ["start"]


# -- as JSON


def test_json_has_the_same_facts(machine: MachineFactory, capsys: Capture) -> None:
    host = at_noon(machine("efifb-6.12"))
    refused(host)
    started(host)

    found = shown_json(host, capsys)

    (held,), (vm_history,) = found["holds"], found["vms"]
    assert found["version"] == 1
    assert {key: held[key] for key in ("vm", "uuid", "gpus", "phase", "stale", "by_hand")} == {
        "vm": "win11", "uuid": UUID, "gpus": [GPU], "phase": "running", "stale": False,
        "by_hand": False,
    }  # fmt: skip
    assert held["undo"][0] == "setpci -s 0000:01:00.0 COMMAND=2:2"
    assert set(held["steps"][0]) == {
        "stage", "gpu", "why", "past", "state", "undo", "lost", "losing",
    }  # fmt: skip
    assert (found["consoles"]["alive"], found["consoles"]["text"]) == (False, "dummy device")
    assert set(vm_history["events"]) == {"prepare", "start", "started"}
    assert vm_history["refusal"]["event"] == "prepare"
    assert "in use by Xorg (9)" in vm_history["refusal"]["text"]


def test_json_has_the_same_keys_where_there_is_nothing(
    machine: MachineFactory, capsys: Capture
) -> None:
    found = shown_json(machine("efifb-6.12"), capsys)

    assert sorted(found) == [
        "consoles", "holds", "libvirt", "lost", "on_vfio_unclaimed", "rehearsals", "switches",
        "time", "unreadable", "unseen", "version", "vms",
    ]  # fmt: skip
    assert (found["holds"], found["vms"], found["consoles"]["alive"]) == ([], [], True)


def test_only_one_form_at_a_time(machine: MachineFactory, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--root", machine("efifb-6.12").root, "status", "--json", "--prometheus"])

    assert (caught.value.code, "not allowed with" in capsys.readouterr().err) == (2, True)
