"""A snapshot is the same after it is unpacked and written again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.snapshots import FOLDER
from vfio_console_hook import cli
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.plan import text as plan_text
from vfio_console_hook.commands.snapshot.writer import machine_text
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, HostError
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.libvirtd import Vm
from vfio_console_hook.machine.snapshot import (
    Entry,
    SentHost,
    SnapshotHost,
    answer_path,
    entries,
    pack_console_map,
    unpack,
    unpack_console_map,
)

TREES = sorted(FOLDER.glob("*.tree"))


def unpacked(text: str, directory: Path) -> SnapshotHost:
    directory.mkdir()
    return unpack(text, str(directory))


def plans(host: SnapshotHost) -> list[str]:
    """The plan for every GPU of a machine, or the error."""
    found = []
    for address in host.list("sys/bus/pci/devices"):
        vm = Domain("vm", "0" * 8, (Hostdev(address, True, "hostdev", 0),))
        try:
            made = plan.plan_for(host, vm, Config())
        except HookError as error:
            found.append(str(error))
        else:
            found += [plan_text.text(made, Terminal())] if made.gpus else []
    return found


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.stem)
def test_a_snapshot_of_a_machine_is_the_same_machine(tree: Path, tmp_path: Path) -> None:
    original = unpacked(tree.read_text(encoding="utf-8"), tmp_path / "a")

    first = machine_text(original)

    again = unpacked(first, tmp_path / "b")
    assert machine_text(again) == first
    # The processes that have a GPU open, the claims of VMs and their losses, and what programs
    # answered (plan asks modprobe what would give a console back) are not in this part.
    for name in (name for name in original.list("proc") if name.isdigit()):
        shutil.rmtree(original.path(f"proc/{name}"))
    for folder in ("run/vfio-console-hook", "run/vfio-console-hook.status", "ran"):
        shutil.rmtree(original.path(folder), ignore_errors=True)
    assert plans(again) == plans(original)


def test_every_gpu_of_a_machine_is_in_its_snapshot(machine: MachineFactory, tmp_path: Path) -> None:
    again = unpacked(machine_text(machine("bmc-and-two-nvidia")), tmp_path / "b")

    assert again.list("sys/bus/pci/devices") == ("0000:03:00.0", "0000:17:00.0", "0000:65:00.0")


def test_a_snapshot_has_only_the_symbols_that_decide(tmp_path: Path) -> None:
    host = unpacked(
        "f proc/kallsyms\n|ffffffff81000000 T _text\n|ffffffff81234567 T secret_place\n"
        "|0000000000000000 t radeon_pci_remove\t[radeon]",
        tmp_path / "a",
    )

    text = machine_text(host)

    assert "secret_place" not in text
    assert "|0000000000000000 t radeon_pci_remove\t[radeon]" in text.splitlines()


def test_a_snapshot_keeps_only_the_header_of_config_space_and_screen_info(tmp_path: Path) -> None:
    device = "sys/devices/pci0000:00/0000:00:02.0"
    host = unpacked(
        f"f {device}/class = 0x030000\n"
        "l sys/bus/pci/devices/0000:00:02.0 -> ../../../devices/pci0000:00/0000:00:02.0\n"
        f"x {device}/config = {'ab' * 256}\n"
        f"x sys/kernel/boot_params/data = {'cd' * 4096}",
        tmp_path / "a",
    )

    lines = machine_text(host).splitlines()

    assert f"x {device}/config = {'ab' * 64}" in lines
    assert f"x sys/kernel/boot_params/data = {'cd' * 64}" in lines


def test_the_bind_file_of_a_firmware_driver_without_a_device_is_in_a_snapshot(
    machine: MachineFactory,
) -> None:
    host = machine("lab-efifb-6.12")
    doors = "sys/bus/platform/drivers/efi-framebuffer"
    host.write(f"{doors}/unbind", "efi-framebuffer.0")

    lines = machine_text(host).splitlines()

    assert [line for line in lines if doors in line] == [
        f"d {doors}", f"f {doors}/bind", f"f {doors}/unbind",
    ]  # fmt: skip


def test_a_card_is_in_a_snapshot_with_its_connectors_and_its_other_name(
    machine: MachineFactory,
) -> None:
    host = machine("lab-native")
    folder = "sys/devices/pci0000:00/0000:00:05.0/0000:01:00.0/drm"

    lines = machine_text(host).splitlines()

    assert [line for line in lines if folder in line and " sys/class/" not in line] == [
        f"d {folder}/card0",
        f"l {folder}/card0/device -> ../../../0000:01:00.0",
        f"d {folder}/card0/card0-Virtual-1",
        f"l {folder}/controlD64 -> card0",
    ]


# -- the text


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("f a", b""),
        ("f a = 1", b"1\n"),
        ("f a = ", b"\n"),
        ("f a = b = c -> d", b"b = c -> d\n"),
        ("f a\n|one\n| two\n||three", b"one\n two\n|three\n"),
        ("f a = one\n|two", b"one\ntwo\n"),
        ("x a = 00ff0a", b"\x00\xff\n"),
        ("x a = ", b""),
        ("# comment\n\nf a = grün", "grün\n".encode()),
    ],
)
def test_a_file_has_the_content_that_its_lines_say(
    tmp_path: Path, text: str, content: bytes
) -> None:
    assert unpack(text, str(tmp_path)).read_bytes("a") == content


def test_links_are_unpacked_as_written(tmp_path: Path) -> None:
    host = unpack("l a/b -> ../c d -> e", str(tmp_path))

    assert os.readlink(host.path("a/b")) == "../c d -> e"


@pytest.mark.parametrize(
    "line",
    ["z a = 1", "f /etc/passwd = x", "f ../x = 1", "d a/../../x", "garbage", "|orphan", "F a",
     " f a", "l /a -> b", "x ../a = 00"],
)  # fmt: skip
def test_a_line_that_is_not_an_entry_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(HostError) as caught:
        unpack(f"# head\n{line}", str(tmp_path))

    assert caught.value.text.startswith("line 2 of ")
    assert repr(line) in caught.value.text


@pytest.mark.parametrize(
    "text",
    ["x a = 0g", "x a = 012", "f a\nf a/b = 1", "l a -> b\nl a -> c", "f ", "d a\nf a = 1",
     "f a\0b = 1", "f " + "a" * 300, "l a -> "],
    ids=["no-hex", "odd-hex", "file-as-directory", "twice", "no-path", "directory-as-file", "nul",
         "long-name", "empty-link"],
)  # fmt: skip
def test_an_entry_that_cannot_be_unpacked_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(HostError):
        unpack(text, str(tmp_path))


def test_no_machine_writes_into_a_directory_whose_name_begins_with_its_own(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()

    with pytest.raises(HostError):
        unpack("l a -> ../root2\nf a/file = harm", str(tmp_path / "root"))

    assert list((tmp_path / "root2").iterdir()) == []


@pytest.mark.parametrize("target", ["absolute", "relative"])
def test_no_machine_writes_outside_its_directory(tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    leads = str(outside) if target == "absolute" else "../outside"

    try:
        unpack(f"l a -> {leads}\nf a/file = harm", str(root))
    except HostError:
        pass

    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    ("lines", "indices"),
    [
        ("1-63 0", (0,) * 63),
        ("1-63 -", (None,) * 63),
        ("1-6 0\n7-7 1\n8-63 -", (0,) * 6 + (1,) + (None,) * 56),
    ],
)
def test_the_map_of_the_consoles_is_written_in_runs(
    lines: str, indices: tuple[int | None, ...]
) -> None:
    assert unpack_console_map(lines) == indices
    assert pack_console_map(indices) == lines


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("bind", lambda host: host.write("bind", "0")),
        ("dev/fb0", lambda host: host.map_console("fb0", 1, 0)),
        ("dev/tty1", lambda host: host.set_text_mode("tty1", True)),
        ("dev/tty0", lambda host: host.lock_consoles(True)),
    ],
)
def test_a_snapshot_cannot_be_changed(
    tmp_path: Path, path: str, change: Callable[[SnapshotHost], None]
) -> None:
    host = SnapshotHost(str(tmp_path))
    (tmp_path / "bind").write_text("1\n", encoding="utf-8")

    with pytest.raises(HostError) as caught:
        change(host)

    assert caught.value.text == f"cannot change /{path} of a snapshot"
    assert host.read("bind") == "1"


def test_a_write_to_the_machine_never_makes_a_file(tmp_path: Path) -> None:
    host = Host(str(tmp_path))

    with pytest.raises(HostError) as caught:
        host.write("bind", "0")

    assert (caught.value.text, os.listdir(tmp_path)) == (
        "cannot write '0' to /bind: No such file or directory", [],
    )  # fmt: skip


def test_a_snapshot_runs_no_program(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        SnapshotHost(str(tmp_path)).run("/usr/bin/virsh", "list")

    assert caught.value.text == "cannot run /usr/bin/virsh on a recorded machine"


# -- other answers of a machine


def test_a_file_has_the_attributes_in_the_snapshot(tmp_path: Path) -> None:
    lines = ("f a/b = 1", "f stat/a/b = 100640 1000 6 17 18", "f label/a/b = u:r:t:s0")
    host = unpack("\n".join(lines), str(tmp_path))

    status = host.stat("a/b")

    assert status is not None
    assert (status.st_mode, status.st_uid, status.st_gid) == (0o100640, 1000, 6)
    assert (status.st_mtime, status.st_ctime, status.st_size) == (17, 18, 2)
    assert host.selinux_label("a/b") == "u:r:t:s0"


def test_a_directory_has_attributes_of_its_own(tmp_path: Path) -> None:
    host = unpack(
        "f a/b = 1\nf stat/a/b = 100600 0 0 17\nf stat/a/.itself = 40777 1 2 18\n"
        "f label/a/.itself = u:r:t:s0",
        str(tmp_path),
    )

    statuses = map(host.stat, ("a", "a/b"))
    found = [status and (status.st_mode, status.st_mtime) for status in statuses]

    assert found == [(0o40777, 18), (0o100600, 17)]
    assert (host.selinux_label("a"), host.selinux_label("a/b")) == ("u:r:t:s0", None)


def test_a_file_without_attributes_belongs_to_root(tmp_path: Path) -> None:
    status = unpack("f a = 1", str(tmp_path)).stat("a")

    assert status is not None
    assert (status.st_uid, status.st_size) == (0, 2)


def test_a_path_that_could_not_be_read_on_the_machine_is_an_error(tmp_path: Path) -> None:
    host = unpack("f a/b = 1\nf refused/a/b = 13\nf refused/a/.itself = 1", str(tmp_path))

    with pytest.raises(HostError, match=r"^cannot read /a/b: Permission denied$"):
        host.read("a/b")
    with pytest.raises(HostError, match=r"^cannot list /a: Operation not permitted$"):
        host.list("a")


def test_a_program_has_the_output_in_the_snapshot(tmp_path: Path) -> None:
    host = SnapshotHost(str(tmp_path))
    long = ("/bin/x", "a = b", "/" * 300)
    for command, kind, text in (
        (("/bin/x", "-a"), "", "out\nput\n"),
        (("/bin/y",), ".failed", "/bin/y failed: no\ntry again\n"),
        (("/bin/z",), ".status", "3\n"),
        (long, "", "long\n"),
    ):
        path = tmp_path / f"{answer_path(command)}{kind}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert host.run("/bin/x", "-a") == "out\nput"
    assert host.run(*long) == "long"
    assert host.exit_status("/bin/z", timeout_s=1) == 3
    with pytest.raises(HostError) as caught:
        host.run("/bin/y")
    assert (caught.value.text, caught.value.hint) == ("/bin/y failed: no", "try again")


def test_the_vms_are_those_in_the_snapshot(tmp_path: Path) -> None:
    host = unpack(
        "f libvirt/2/name = b\nf libvirt/10/name = c\nf libvirt/1/name = a\n"
        "f libvirt/1/uuid = 1\nf libvirt/1/xml\n|<a>\n|</a>\nf libvirt/1/live = <b/>\n"
        "f libvirt/1/autostart = 1",
        str(tmp_path),
    )

    assert host.vms("qemu:///system") == (
        Vm("a", "1", "<a>\n</a>", "<b/>", True), Vm("b", "", "", "", False),
        Vm("c", "", "", "", False),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "this snapshot does not contain the VMs of libvirt"),
        ("f libvirt/unasked = it sleeps", "it sleeps"),
    ],
)
def test_a_snapshot_without_vms_gives_the_reason(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(HostError) as caught:
        unpack(text, str(tmp_path)).vms("qemu:///system")

    assert caught.value.text == error


def test_time_stands_still_in_a_complete_snapshot(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    complete = unpack("f recorded/now = 1732312312", str(tmp_path / "a"))
    part = unpack("", str(tmp_path / "b"))

    assert (complete.complete, complete.now(), part.complete) == (True, 1732312312.0, False)
    assert part.now() > 1732312312


@pytest.mark.parametrize(
    "entry",
    [
        Entry("d", "a b"),
        Entry("l", "a", b"../b -> c"),
        Entry("f", "a"),
        Entry("f", "a", b"\n"),
        Entry("f", "a", b"one\n"),
        Entry("f", "a", b"one\n\n|two\n\n"),
        Entry("f", "a", b"carriage\r\nreturn\r\n"),
        Entry("f", "a", "grün\n".encode()),
        Entry("f", "a", bytes(range(256))),
    ],
    ids=str,
)
def test_a_written_entry_is_read_back_unchanged(entry: Entry) -> None:
    assert list(entries("\n".join(entry.lines()))) == [entry]


@pytest.mark.parametrize(
    "entry",
    [
        Entry("f", "a = b"), Entry("l", "a -> b", b"c"), Entry("d", "a\nf b"),
        Entry("l", "a", b"b\nc"),
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_would_be_read_differently_is_not_written(entry: Entry) -> None:
    with pytest.raises(ValueError, match=r"^a snapshot cannot contain"):
        entry.lines()


@pytest.mark.parametrize("target", ["absolute", "relative"])
def test_no_link_of_a_sent_snapshot_is_followed_out_of_it(tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "root").mkdir()
    leads = str(tmp_path / "outside") if target == "absolute" else "../outside"
    unpack(f"l a -> {leads}\nl b -> a/secret\nf c/inside = 1\nl d -> c", str(tmp_path / "root"))
    host = SentHost(str(tmp_path / "root"))

    assert [host.read(path) for path in ("a/secret", "b", "d/inside")] == [None, None, "1"]
    assert (host.list("a"), host.exists("b"), host.real("b")) == ((), False, None)
    assert (host.readlink("a"), host.readlink("b")) == (leads, "a/secret")


def test_the_command_reads_a_snapshot_as_a_sent_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "name").write_text("(M) a secret\n")
    (tmp_path / "bind").write_text("1\n")
    (tmp_path / "sent.tree").write_text(f"l sys/class/vtconsole/vtcon0 -> {tmp_path}\n")

    assert cli.main(["--root", str(tmp_path / "sent.tree"), "status"]) == 0

    assert "a secret" not in capsys.readouterr().out


def test_a_path_that_is_too_deep_is_not_an_entry(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="line 1 of "):
        unpack("d " + "a/" * 1000 + "a", str(tmp_path))

    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("text", "ask"),
    [
        ("f recorded/now = soon", lambda host: host.now()),
        ("f recorded/now = nan", lambda host: host.now()),
        ("f recorded/now = 1e300", lambda host: host.now()),
        ("f ioctl/fb0/memory = 0xc0000000", lambda host: host.framebuffer_memory("fb0")),
        ("f dev/fb0\nf ioctl/con2fbmap = 1-99 0", lambda host: host.console_map("fb0")),
        ("f dev/fb0\nf ioctl/con2fbmap = 1-63", lambda host: host.console_map("fb0")),
        ("f a = 1\nf stat/a = 100644 0 0", lambda host: host.stat("a")),
        ("f a = 1\nf stat/a = rw 0 0 1", lambda host: host.stat("a")),
        ("f a = 1\nf refused/a = no", lambda host: host.read("a")),
        ("f a = 1\nf refused/a = " + "9" * 5000, lambda host: host.read("a")),
        ("f ran/%2Fbin%2Fa.status = x", lambda host: host.exit_status("/bin/a", timeout_s=1)),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_parsed_is_one_short_sentence(
    tmp_path: Path, text: str, ask: Callable[[SnapshotHost], object]
) -> None:
    host = unpack(text, str(tmp_path))

    with pytest.raises(HostError) as caught:
        ask(host)

    assert caught.value.text.startswith("cannot understand /")
    assert len(caught.value.text) < 200
