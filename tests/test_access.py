"""Trust: files of other users, a user's own libvirt, and names with control characters.

`python3 -m tests.trust access` tries far more of the same.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, configure, snapshot
from tests.libvirt_xml import EVENTS, UUID, domain_xml
from vfio_console_hook import cli, hook
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.claims.history import STATUS
from vfio_console_hook.errors import ClaimError
from vfio_console_hook.log import SNAPSHOT_LOG
from vfio_console_hook.machine import paths, runfiles
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.runfiles import RUN
from vfio_console_hook.machine.snapshot import SnapshotHost

GPU, SOUND = "0000:01:00.0", "0000:01:00.1"
CLAIM = f"{CLAIMS}/{UUID}"
Capture = pytest.CaptureFixture[str]


class OfAUser(FakeHost):
    """The machine for the hook of qemu:///session, which runs as the user."""

    @property
    def privileged(self) -> bool:
        return False


def call(host: FakeHost, operation: str, sub: str = "begin", xml: bytes | None = None) -> int:
    given = domain_xml(GPU, event=operation) if xml is None else xml
    return hook.main(["win11", operation, sub, "-"], given, type(host)(host.root))


def left_alone(host: FakeHost, capfd: Capture) -> str:
    """The error of prepare; the machine must be unchanged."""
    before = snapshot(host)
    assert call(host, "prepare") == 1
    assert (snapshot(host), host.changes) == (before, [])
    return capfd.readouterr().err


# -- claims


@pytest.mark.parametrize("path", [RUN, CLAIMS, f"{RUN}/by-name", f"{RUN}/lock", CLAIM])
def test_a_link_in_run_is_an_error_and_not_followed(
    machine: MachineFactory, tmp_path: Path, capfd: Capture, path: str
) -> None:
    host = machine("efifb-6.12")
    target = tmp_path / "theirs"
    target.write_text("") if path in (f"{RUN}/lock", CLAIM) else target.mkdir()
    host.tree.text_link(path, str(target))
    kind = "file" if target.is_file() else "directory"

    printed = left_alone(host, capfd)

    assert printed.splitlines() == [
        f"vfio-console-hook: /{path} is a link instead of a {kind}, so it is left alone",
        f"hint: find out who did that; see `ls -ld /{path}`",
    ]
    assert list(target.iterdir()) == [] if target.is_dir() else target.read_text() == ""


def test_a_directory_in_run_that_others_can_write_is_an_error(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.make_directory(CLAIMS)
    os.chmod(host.path(RUN), 0o700)
    os.chmod(host.path(CLAIMS), 0o770)

    assert left_alone(host, capfd).splitlines() == [
        f"vfio-console-hook: /{CLAIMS} can be written by others than root, so it is left alone",
        f"hint: find out who did that; run `chmod go-w /{CLAIMS}`",
    ]


def test_a_claim_with_a_second_hard_link_is_not_written(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    call(host, "prepare")
    os.link(host.path(CLAIM), host.path("second"))
    before = Path(host.path("second")).read_bytes()

    assert call(host, "release", "end") == 1
    assert f"/{CLAIM} has another name somewhere else" in capfd.readouterr().err
    assert Path(host.path("second")).read_bytes() == before


def test_a_link_in_place_of_the_status_directory_is_not_followed_and_the_vm_starts(
    machine: MachineFactory, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    host.tree.text_link(STATUS, str(tmp_path))
    there = sorted(os.listdir(tmp_path))

    assert call(host, "prepare") == 0
    assert sorted(os.listdir(tmp_path)) == there
    assert f"/{STATUS} is a link instead of a directory" in (host.read(SNAPSHOT_LOG) or "")


def test_the_mode_of_a_directory_that_all_users_can_read_is_restored(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    host.tree.make_directory(RUN)
    os.chmod(host.path(RUN), 0o755)

    call(host, "prepare")

    assert stat.S_IMODE(os.stat(host.path(RUN)).st_mode) == 0o700


def test_an_existing_file_with_the_name_of_a_draft_is_not_written(tmp_path: Path) -> None:
    host = SnapshotHost(str(tmp_path))
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "run").mkdir()
    (tmp_path / f"run/.x.{os.getpid()}").symlink_to(victim)

    runfiles.write(host, "run/x", "new")

    assert ((tmp_path / "run/x").read_text(), victim.read_text()) == ("new", "untouched")


def test_a_device_in_run_is_not_opened(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    host.tree.make_directory(CLAIMS)
    for path in (RUN, CLAIMS):
        os.chmod(host.path(path), 0o700)
    try:
        os.mknod(host.path(CLAIM), stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("devices cannot be made here")

    with pytest.raises(ClaimError, match=r"is a device instead of a file"):
        Claims(host).find(UUID)


# -- resolving a path


def test_a_path_is_resolved_to_one_without_links(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("")
    (tmp_path / "link").symlink_to("/a/./b/../b")
    for one in ("a", "a/b", "a/b/file"):
        (tmp_path / one).chmod(0o700)

    way = paths.resolve(SnapshotHost(str(tmp_path)), "link/file")

    assert way == paths.Resolved("a/b/file")


def test_a_path_with_too_many_links_is_not_resolved(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")

    assert paths.resolve(SnapshotHost(str(tmp_path)), "circle/file") == paths.Resolved()


def test_a_command_that_others_can_write_is_a_mistake_with_its_line(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("opt/tool", "#!/bin/sh")
    os.chmod(host.path("opt"), 0o755)
    os.chmod(host.path("opt/tool"), 0o777)
    words = ", ".join(f"{key}: /opt/tool x" for key in ("active", "stop", "start"))
    content = f"# \nservices:\n  - {{name: tool, {words}}}\n"
    configure(host, content)

    assert left_alone(host, capfd) == (
        "vfio-console-hook: /etc/vfio-console-hook/default.yaml:2:1: /opt/tool of tool is not run"
        " as root: /opt/tool can be written by others than root, run `chmod go-w /opt/tool`\n"
    )


# -- qemu:///session


def of_a_user(machine: MachineFactory) -> OfAUser:
    host = OfAUser(machine("efifb-6.12").root)
    host.tree.put(f"sys/bus/pci/devices/{SOUND}/class", "0x040300")
    return host


def test_for_a_vm_of_a_user_nothing_is_done_and_one_line_is_logged(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = of_a_user(machine)
    before = snapshot(host)

    statuses = [call(host, operation, sub) for operation, sub in (*EVENTS, ("reconnect", "begin"))]

    assert (statuses, capfd.readouterr(), host.changes) == ([0] * 6, ("", ""), [])
    assert (snapshot(host), host.list("run")) == (before, ())
    (line,) = (host.read(SNAPSHOT_LOG) or "").splitlines()
    assert line == (
        f"warning: win11: prepare {GPU}: a VM of qemu:///session: only as root the hook can free"
        " its GPU from the console, so nothing is done; define the VM in qemu:///system"
    )


@pytest.mark.parametrize(
    "xml",
    [domain_xml(), domain_xml(SOUND), b"not XML", b"", domain_xml("0000:77:00.0")],
    ids=["no device", "no GPU", "no XML", "nothing", "no such device"],
)
def test_for_a_vm_of_a_user_without_a_gpu_nothing_is_logged(
    machine: MachineFactory, capfd: Capture, xml: bytes
) -> None:
    host = of_a_user(machine)

    assert (call(host, "prepare", xml=xml), capfd.readouterr()) == (0, ("", ""))
    assert (host.read(SNAPSHOT_LOG), host.list("run")) == (None, ())


def test_the_hook_of_a_user_ignores_claims_of_root(machine: MachineFactory, capfd: Capture) -> None:
    root = machine("efifb-6.12")
    call(root, "prepare")
    before = Path(root.path(CLAIM)).read_bytes()
    host = OfAUser(root.root)

    assert [call(host, operation, sub) for operation, sub in EVENTS] == [0] * 5
    assert Path(root.path(CLAIM)).read_bytes() == before


def test_a_host_is_privileged_for_the_effective_uid_0() -> None:
    assert Host().privileged == (os.geteuid() == 0)


@pytest.mark.parametrize(
    "words", [["take", GPU], ["give", GPU], ["recover"], ["recover", "--force"]]
)
def test_a_user_can_neither_take_nor_give_nor_recover(
    machine: MachineFactory, capfd: Capture, words: list[str]
) -> None:
    """The directory of the claims belongs to root, so a user gets EACCES there."""
    host = machine("efifb-6.12")
    host.tree.make_directory(CLAIMS)
    host.tree.put(f"refused/{CLAIMS}/.itself", "13")
    before = snapshot(host)

    status = cli.main(words, host)

    printed = capfd.readouterr().err
    assert (status, snapshot(host)) == (1, before)
    assert (len(printed.splitlines()), "Permission denied" in printed) == (1, True)


# -- names


def test_the_name_of_another_vm_cannot_control_the_terminal(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    name = "a\u202e\nb\x85"
    hook.main([name, "prepare", "begin", "-"], domain_xml(GPU, name=name), host)
    capfd.readouterr()
    other = domain_xml(GPU, name="other", uuid=UUID.replace("0f", "1f", 1))

    hook.main(["other", "prepare", "begin", "-"], other, FakeHost(host.root))

    assert capfd.readouterr().err.splitlines() == [
        f"vfio-console-hook: {GPU} belongs to the VM a\\u202e\\nb\\x85, which has it now",
        "hint: shut a\\u202e\\nb\\x85 down; if it is not running, `vfio-console-hook recover`",
    ]
