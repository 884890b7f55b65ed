"""What people see of a refusal who did not see the error: login prompts, sessions, a command."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Golden, MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, hold, systemd
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import cli, hook
from vfio_console_hook.claims import notices
from vfio_console_hook.claims.history import ISSUE
from vfio_console_hook.claims.notices import LINK
from vfio_console_hook.errors import HostError
from vfio_console_hook.machine import worker
from vfio_console_hook.machine.host import Host

GPU = "0000:01:00.0"
CARD = "dev/dri/card0"
OTHER = "22222222-2222-4333-8444-555555555555"
DEFAULT = "etc/vfio-console-hook/default.yaml"
OTHER_LINK = "run/issue.d/vfio-console-hook.issue"
RELOAD = "run/agetty.reload"
NOON = 1_732_300_000.0


class Clock(FakeHost):
    """A machine whose clock moves only when a test sets it."""

    time = NOON

    def now(self) -> float:
        return self.time


def console(machine: MachineFactory, settings: str = "") -> Clock:
    """A machine with login prompts, whose GPU a process has open."""
    host = Clock(machine("efifb-6.12").root)
    configure(host, settings)
    host.tree.put("etc/issue", "Debian\\n")
    host.tree.text_link(LINK, f"/{ISSUE}")
    host.tree.put(RELOAD, "")
    os.utime(host.path(RELOAD), (0, 0))
    hold(host, "dev/fb0", pid=9, command="Xorg")
    return host


def configure(host: FakeHost, settings: str) -> None:
    host.tree.put(DEFAULT, f"holders: {{wait_s: 0}}\n{settings}")
    for path, mode in (("etc", 0o755), (os.path.dirname(DEFAULT), 0o755), (DEFAULT, 0o644)):
        os.chmod(host.path(path), mode)


def call(
    host: Clock, event: str, sub: str = "begin", *, name: str = "win11", uuid: str = UUID
) -> int:
    """Run one event as libvirt sends it; return its exit status."""
    xml = domain_xml(GPU, event=event, name=name).replace(UUID.encode(), uuid.encode())
    another = Clock(host.root)
    another.time = host.time
    return hook.main([name, event, sub, "-"], xml, another)


def issue(host: FakeHost) -> str | None:
    content = host.read_bytes(ISSUE)
    return None if content is None else content.decode()


def redrawn(host: FakeHost) -> bool:
    """Whether agettys have been asked to draw their prompts anew."""
    return os.stat(host.path(RELOAD)).st_mtime > 0


# -- login prompts


def test_a_refusal_is_shown_at_login_prompts_at_once(
    machine: MachineFactory, golden: Golden
) -> None:
    host = console(machine)

    status = call(host, "prepare")

    golden("issue-refused", issue(host) or "")
    assert (status, redrawn(host)) == (1, True)
    assert os.stat(host.path(ISSUE)).st_mode & 0o777 == 0o644
    assert host.lstat(OTHER_LINK) is None


def test_it_goes_when_the_vm_starts_and_prompts_are_drawn_anew(machine: MachineFactory) -> None:
    host = console(machine)
    call(host, "prepare")
    os.utime(host.path(RELOAD), (0, 0))
    host.tree.remove("proc/9")
    host.time += 60

    assert call(host, "prepare") == 0

    assert (issue(host), redrawn(host)) == (None, True)
    assert "last refusal" in status(host)


def test_that_of_another_vm_stays(machine: MachineFactory) -> None:
    host = console(machine)
    call(host, "prepare")
    host.time += 60
    call(host, "prepare", name="other", uuid=OTHER)
    host.tree.remove("proc/9")
    both = issue(host) or ""
    host.time += 60

    assert call(host, "prepare") == 0

    assert both.index("VM other was") < both.index("VM win11 was")
    assert "VM other was" in (issue(host) or "")
    assert "VM win11 was" not in (issue(host) or "")


def test_only_the_newest_are_shown_and_the_others_counted(machine: MachineFactory) -> None:
    host = console(machine)
    for number in range(5):
        host.time += 60
        uuid = f"{number}2222222-2222-4333-8444-555555555555"
        call(host, "prepare", name=f"vm{number}", uuid=uuid)

    text = issue(host) or ""

    assert [f"VM vm{number} was" in text for number in range(5)] == [False, False, True, True, True]
    assert "(2 more)" in text


def test_a_failure_after_the_same_refusal_draws_nothing_anew(machine: MachineFactory) -> None:
    host = console(machine)
    call(host, "prepare")
    os.utime(host.path(RELOAD), (0, 0))

    call(host, "prepare")

    assert not redrawn(host)


@pytest.mark.parametrize("gone", ["etc/issue", LINK])
def test_where_agetty_does_not_look_into_etc_there_is_a_link_in_run(
    machine: MachineFactory, gone: str
) -> None:
    host = console(machine)
    os.unlink(host.path(gone))

    call(host, "prepare")
    call(host, "prepare")

    assert os.readlink(host.path(OTHER_LINK)) == f"/{ISSUE}"


def test_dismiss_hides_it_everywhere(
    machine: MachineFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    host = console(machine)
    call(host, "prepare")
    capsys.readouterr()

    assert cli.main(["dismiss", "win11"], host) == 0

    printed = capsys.readouterr().out
    assert printed.startswith(f"dismissed: win11: {GPU} is in use by Xorg (9)")
    assert issue(host) is None
    assert "last refusal" not in status(host)


def status(host: FakeHost) -> str:
    from vfio_console_hook.commands.status import overview
    from vfio_console_hook.commands.status.command import status_text
    from vfio_console_hook.commands.terminal import Terminal

    return status_text(overview.current(host), Terminal())


@pytest.mark.parametrize(
    ("setting", "expected"), [("announce: []", None), ("announce: [session]", "")]
)
def test_the_configuration_says_where_it_is_shown(
    machine: MachineFactory, setting: str, expected: str | None
) -> None:
    host = console(machine, f"{setting}\n")

    call(host, "prepare")

    assert issue(host) == expected
    assert "last refusal" in status(host)


def test_a_vm_that_starts_all_the_same_was_not_refused(machine: MachineFactory) -> None:
    host = console(machine, "on_failure: start\non_refusal: /bin/sh\n")
    trusted(host, "bin/sh")

    assert call(host, "prepare") == 0

    assert issue(host) is None
    assert not host.exists("fake/became")


def test_a_refusal_of_start_is_shown_by_what_prepare_had_configured(
    machine: MachineFactory,
) -> None:
    host = console(machine, "announce: [session, login]\n")
    host.tree.remove("proc/9")
    assert call(host, "prepare") == 0
    configure(host, "announce: []\n")

    assert call(host, "start") == 1  # the GPU is not on vfio-pci

    assert "VM win11 was not started" in (issue(host) or "")


def test_what_is_lost_after_a_vm_is_shown_until_it_is_back(machine: MachineFactory) -> None:
    host = console(machine, "services: [gdm]\n")
    host.tree.remove("proc/9")
    systemd.install(host.tree)
    systemd.put(host.tree, "gdm.service", systemd.Unit(active="active", fails=True))
    libvirt = FakeLibvirt(host)
    assert call(host, "prepare") == 0
    libvirt.detach(GPU)
    assert call(host, "start") == 0
    libvirt.reattach(GPU)

    assert call(host, "release", "end") == 1

    lost = issue(host) or ""
    assert "lost after win11" in lost
    assert "gdm.service" in lost
    systemd.put(host.tree, "gdm.service", systemd.Unit(active="active"))
    host.time += 60
    assert call(host, "prepare") == 0
    assert issue(host) is None


def test_a_directory_that_is_full_or_not_ours_fails_nothing(machine: MachineFactory) -> None:
    host = console(machine)
    host.tree.make_directory(ISSUE)
    host.tree.remove("proc/9")

    assert call(host, "prepare") == 0

    log = host.read("var/log/vfio-console-hook.log") or ""
    assert f"login prompts will not show it: /{ISSUE} is a directory instead of a file" in log


def test_a_part_of_the_program_that_is_gone_keeps_no_vm_from_starting(
    machine: MachineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = console(machine)
    call(host, "prepare")
    host.tree.remove("proc/9")
    monkeypatch.delattr("vfio_console_hook.claims.notices")
    monkeypatch.setitem(sys.modules, "vfio_console_hook.claims.notices", None)

    assert call(host, "prepare") == 0


HOSTILE = "a\\n\\e{red}b\\4{eth0} \\S{X}\x1b[2J\x9b1m\rroot login:\n# \u202e"


def test_no_name_steers_a_terminal_or_agetty(machine: MachineFactory, tmp_path: Path) -> None:
    host = console(machine)
    call(host, "prepare")
    vm = json.loads(host.read(f"run/vfio-console-hook.status/{UUID}") or "")
    vm["vm"], vm["refusal"]["text"] = HOSTILE, f"in use by {HOSTILE}"
    host.tree.put(f"run/vfio-console-hook.status/{UUID}", json.dumps(vm))

    assert notices.show(host) == ""

    text = issue(host) or ""
    assert all(one.isprintable() for one in text.replace("\n", ""))
    if shutil.which("agetty"):
        # The real one: what it shows is what is written there, with single backslashes.
        _, terminal = pty.openpty()
        shown = subprocess.run(
            ["agetty", "--show-issue", f"--issue-file={host.path(ISSUE)}"],
            stdin=terminal, stdout=subprocess.PIPE, text=True, check=True,
        ).stdout  # fmt: skip
        os.close(terminal)
        assert shown == text.replace("\\\\", "\\")
        assert "a\\n\\e{red}b" in shown


# -- the next desktop session


class Session(FakeHost):
    """A machine with a desktop session, in which something shows notifications in the end."""

    def __init__(self, root: str, *, failures: int = 0) -> None:
        super().__init__(root)
        self.shown: list[tuple[str, ...]] = []
        self.failures = failures

    def run(self, *command: str, timeout_s: float = 30) -> str:
        if command[0] not in ("/usr/bin/notify-send", "/usr/bin/busctl"):
            return super().run(*command, timeout_s=timeout_s)
        if self.failures:
            self.failures -= 1
            raise HostError(f"{command[0]} failed: no such name org.freedesktop.Notifications")
        self.shown.append(command)
        return ""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory that the user's session says is theirs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "state"


def session(host: Clock, *, failures: int = 0, send: bool = True) -> Session:
    if send:
        host.tree.put("usr/bin/notify-send", "")
    return Session(host.root, failures=failures)


def test_one_file_that_is_not_ours_hides_no_other_refusal(machine: MachineFactory) -> None:
    host = console(machine)
    host.tree.text_link("run/vfio-console-hook.status/00000000-0000-4000-8000-00000000000a", "/x")
    call(host, "prepare")
    desktop = session(host)

    assert cli.main(["notify"], desktop) == 0

    assert len(desktop.shown) == 1
    assert "VM win11 was not started" in (issue(host) or "")


class Denied(Session):
    """A session whose user may not look into what the hook has written, as with SELinux."""

    def list(self, path: str) -> tuple[str, ...]:
        if path == "run/vfio-console-hook.status":
            raise HostError.of("list", f"/{path}", PermissionError(errno.EACCES, ""))
        return super().list(path)


def test_who_may_not_look_is_not_told_that_there_is_nothing(
    machine: MachineFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    host = console(machine)
    call(host, "prepare")

    status = cli.main(["notify"], Denied(host.root))

    out, err = capsys.readouterr()
    assert (status, "nothing to show" in out) == (1, False)
    assert "cannot list /run/vfio-console-hook.status: Permission denied" in err


def test_each_user_sees_a_refusal_once(machine: MachineFactory, home: Path) -> None:
    host = console(machine)
    call(host, "prepare")
    first, second = session(host), session(host)

    assert cli.main(["notify"], first) == 0
    assert cli.main(["notify"], second) == 0

    ((*options, summary, body),) = first.shown
    assert options[0] == "/usr/bin/notify-send"
    assert options[-1] == "--"
    assert summary.startswith("VM win11 was not started (")
    assert body.startswith(f"{GPU} is in use by Xorg (9) with ")
    assert second.shown == []
    assert [len(path.read_text().splitlines()) for path in home.rglob("notified")] == [1]


def test_those_that_are_too_many_at_once_are_shown_the_next_time(machine: MachineFactory) -> None:
    host = console(machine)
    for number in range(5):
        host.time += 60
        uuid = f"{number}2222222-2222-4333-8444-555555555555"
        call(host, "prepare", name=f"vm{number}", uuid=uuid)
    first, second = session(host), session(host)

    cli.main(["notify"], first)
    cli.main(["notify"], second)

    shown = [[command[-2][:6] for command in one.shown] for one in (first, second)]
    assert shown == [["VM vm4", "VM vm3", "VM vm2"], ["VM vm1", "VM vm0"]]


def test_the_next_refusal_is_shown_again(machine: MachineFactory) -> None:
    host = console(machine)
    call(host, "prepare")
    cli.main(["notify"], session(host))
    host.time += 60
    call(host, "prepare")
    again = session(host)

    cli.main(["notify"], again)

    assert len(again.shown) == 1


def test_nothing_is_shown_of_a_vm_that_has_started_since(machine: MachineFactory) -> None:
    host = console(machine)
    call(host, "prepare")
    host.tree.remove("proc/9")
    host.time += 60
    call(host, "prepare")
    later = session(host)

    assert cli.main(["notify", "--again"], later) == 0

    assert later.shown == []


def test_a_session_may_begin_before_what_shows_notifications(machine: MachineFactory) -> None:
    host = console(machine)
    call(host, "prepare")
    starting = session(host, failures=3)

    assert cli.main(["notify"], starting) == 0

    assert (len(starting.shown), starting.pauses) == (1, [3, 3, 3])


def test_what_could_not_be_shown_is_tried_again_in_the_next_session(
    machine: MachineFactory,
) -> None:
    host = console(machine)
    call(host, "prepare")
    never, later = session(host, failures=1000), session(host)

    status = cli.main(["notify"], never)
    cli.main(["notify"], later)

    assert (status, len(later.shown)) == (1, 1)
    assert sum(never.pauses) == pytest.approx(60)


def test_without_notify_send_the_bus_is_called(machine: MachineFactory) -> None:
    host = console(machine)
    call(host, "prepare")
    bare = session(host, send=False)

    cli.main(["notify"], bare)

    ((program, *words),) = bare.shown
    assert program == "/usr/bin/busctl"
    signature = words.index("susssasa{sv}i")
    # Name, replaced id, icon, summary, body, no actions, one hint with its type, no timeout.
    assert words[signature + 1 : signature + 4] == ["vfio-console-hook", "0", "dialog-warning"]
    assert words[signature + 4].startswith("VM win11 was not started")
    assert words[signature + 6 :] == ["0", "1", "urgency", "y", "2", "0"]


def test_the_programs_learn_where_the_bus_of_the_session_is(
    machine: MachineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = console(machine)
    call(host, "prepare")
    bus = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/7/bus", "XDG_RUNTIME_DIR": "/run/7"}
    for name, value in {**bus, "LD_PRELOAD": "/tmp/x.so"}.items():
        monkeypatch.setenv(name, value)
    shown = session(host)

    cli.main(["notify"], shown)

    assert (shown.environment.items() >= bus.items(), "LD_PRELOAD" in shown.environment) == (
        True, False,
    )  # fmt: skip


def test_a_name_is_no_markup_of_a_notification(machine: MachineFactory) -> None:
    host = console(machine)
    hold(host, "dev/fb0", pid=8, command="<b>&x")
    call(host, "prepare")
    shown = session(host)

    cli.main(["notify"], shown)

    assert "&lt;b&gt;&amp;x (8)" in shown.shown[0][-1]


@pytest.mark.parametrize(("send", "shown"), [(True, r"a\\n\\033 (8)"), (False, r"a\n\033 (8)")])
def test_a_backslash_in_a_name_is_one_in_the_notification(
    machine: MachineFactory, send: bool, shown: str
) -> None:
    host = console(machine)
    hold(host, "dev/fb0", pid=8, command=r"a\n\033")
    call(host, "prepare")
    desktop = session(host, send=send)

    cli.main(["notify"], desktop)

    # notify-send makes one of two (g_strcompress), the bus takes them as they are.
    assert shown in " ".join(desktop.shown[0])


# -- a command


def trusted(host: FakeHost, program: str) -> None:
    host.tree.put(program, "")
    place = ""
    for part in program.split("/"):
        place = f"{place}/{part}" if place else part
        os.chmod(host.path(place), 0o755)


def became(host: FakeHost) -> dict[str, Any]:
    """What the process that nothing waits for has become."""
    until = time.monotonic() + 20
    while not host.exists("fake/became") and time.monotonic() < until:
        time.sleep(0.02)
    return dict(json.loads(host.read("fake/became") or "{}"))


def test_the_command_gets_the_reason_on_its_input_and_in_its_environment(
    machine: MachineFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    host = console(machine, "on_refusal: /usr/bin/mail -s refused root\n")
    trusted(host, "usr/bin/mail")

    assert call(host, "prepare", name="win\n11") == 1

    found = became(host)
    error, hint = (line.partition(": ")[2] for line in capfd.readouterr().err.splitlines())
    assert found["command"] == ["/usr/bin/mail", "-s", "refused", "root"]
    assert found["environment"] == {
        "VFIO_CONSOLE_HOOK_VM": "win\\n11",
        "VFIO_CONSOLE_HOOK_UUID": UUID,
        "VFIO_CONSOLE_HOOK_EVENT": "prepare",
        "VFIO_CONSOLE_HOOK_GPUS": GPU,
        "VFIO_CONSOLE_HOOK_REASON": error,
        "VFIO_CONSOLE_HOOK_HINT": hint,
    }
    assert found["text"] == f"VM win\\n11: it was not started: {error}\nhint: {hint}\n"


def test_the_command_is_run_for_what_is_lost_after_a_vm_too(machine: MachineFactory) -> None:
    host = console(machine, "services: [gdm]\non_refusal: /usr/bin/mail root\n")
    trusted(host, "usr/bin/mail")
    host.tree.remove("proc/9")
    systemd.install(host.tree)
    systemd.put(host.tree, "gdm.service", systemd.Unit(active="active", fails=True))
    libvirt = FakeLibvirt(host)
    call(host, "prepare")
    libvirt.detach(GPU)
    call(host, "start")
    libvirt.reattach(GPU)

    call(host, "release", "end")

    found = became(host)
    assert found["environment"]["VFIO_CONSOLE_HOOK_EVENT"] == "release"
    assert found["text"].startswith("VM win11: not all was given back after it: ")
    assert "gdm.service" in found["text"]


def test_what_another_user_could_have_changed_since_is_not_run(machine: MachineFactory) -> None:
    host = console(machine, "on_refusal: /usr/bin/mail root\n")
    trusted(host, "usr/bin/mail")
    host.tree.remove("proc/9")
    assert call(host, "prepare") == 0
    os.chmod(host.path("usr/bin/mail"), 0o777)

    assert call(host, "start") == 1

    until = time.monotonic() + 20
    wanted = "on_refusal: /usr/bin/mail is not run as root: /usr/bin/mail can be written by others"
    while wanted not in (host.read("var/log/vfio-console-hook.log") or ""):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not host.exists("fake/became")


def test_a_program_that_others_can_write_is_a_mistake_before_anything_is_done(
    machine: MachineFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    host = console(machine, "on_refusal: /usr/bin/mail root\n")
    trusted(host, "usr/bin/mail")
    os.chmod(host.path("usr/bin/mail"), 0o777)

    assert call(host, "prepare") == 1

    assert "/usr/bin/mail of on_refusal is not run as root" in capfd.readouterr().err


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def content(path: Path) -> str:
    """The content of a file that is made by a rename, as soon as it is there."""
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, f"{path} is never made"
        time.sleep(0.02)
    return path.read_text(errors="replace")


def test_the_process_is_free_of_us_and_has_a_plain_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = "cat; env; cat /proc/$$/stat; ls -l /proc/$$/fd"
    program = script(tmp_path / "run", f"{{ {lines}; }} >{out}.new; mv {out}.new {out}")

    def become() -> None:
        Host().become(program, "a b", environment={"X": "\udc80"}, text="hello\n", timeout_s=30)

    worker.detach(become)

    found = content(out)
    session = next(line for line in found.splitlines() if " (run) " in line).split()[5]
    assert found.startswith("hello\n")
    assert "\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n" in found
    assert "PYTHON" not in found
    assert int(session) != os.getsid(0)
    assert "pipe:" not in found


def test_the_process_is_ended_after_its_time_and_nothing_waits_for_it(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    program = script(tmp_path / "run", f"echo $$ >{out}.new; mv {out}.new {out}; sleep 1000")
    began = time.monotonic()

    def become() -> None:
        Host().become(program, environment={}, text="", timeout_s=3)

    worker.detach(become)
    returned_s = time.monotonic() - began
    pid = content(out).strip()

    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < began + 20
        time.sleep(0.05)
    assert returned_s < 2.5
