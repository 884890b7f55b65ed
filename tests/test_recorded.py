"""Machines as text: written down, laid out and written down again they are the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.gate import ROOT
from vfio_console_hook import events, report
from vfio_console_hook.config import Config
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, HostError
from vfio_console_hook.host import Host
from vfio_console_hook.recorded import (
    RecordedHost,
    pack_console_map,
    unpack,
    unpack_console_map,
)
from vfio_console_hook.recorder import record

TREES = sorted((ROOT / "tests/machines").glob("*.tree"))


def laid_out(text: str, directory: Path) -> RecordedHost:
    directory.mkdir()
    return unpack(text, str(directory))


def plans(host: RecordedHost) -> list[str]:
    """The plan for every GPU of a machine, or why there is none."""
    found = []
    for address in host.list("sys/bus/pci/devices"):
        vm = Domain("vm", "0" * 8, (Hostdev(address, True, "hostdev", 0),))
        try:
            leaving, steps = events.look(host, vm, Config())
        except HookError as error:
            found.append(str(error))
        else:
            found += [report.plan(host, vm, leaving, steps)] if leaving.gpus else []
    return found


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.stem)
def test_a_machine_recorded_twice_is_the_same(tree: Path, tmp_path: Path) -> None:
    first = record(laid_out(tree.read_text(encoding="utf-8"), tmp_path / "a"))

    second = record(laid_out(first, tmp_path / "b"))

    assert second == first


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.stem)
def test_the_record_of_a_machine_gives_the_same_plans(tree: Path, tmp_path: Path) -> None:
    original = laid_out(tree.read_text(encoding="utf-8"), tmp_path / "a")

    again = laid_out(record(original), tmp_path / "b")

    # Who has a GPU open at this moment is nobody's business, and not recorded.
    for name in (name for name in original.list("proc") if name.isdigit()):
        shutil.rmtree(original.path(f"proc/{name}"))
    assert plans(again) == plans(original)


def test_every_gpu_of_a_machine_is_in_its_record(machine: MachineFactory, tmp_path: Path) -> None:
    again = laid_out(record(machine("bmc-and-two-nvidia")), tmp_path / "b")

    assert again.list("sys/bus/pci/devices") == ("0000:03:00.0", "0000:17:00.0", "0000:65:00.0")


def test_a_record_tells_only_the_symbols_that_decide(tmp_path: Path) -> None:
    host = laid_out(
        "f proc/kallsyms\n|ffffffff81000000 T _text\n|ffffffff81234567 T secret_place\n"
        "|0000000000000000 t radeon_pci_remove\t[radeon]",
        tmp_path / "a",
    )

    text = record(host)

    assert "secret_place" not in text
    assert "|0000000000000000 t radeon_pci_remove\t[radeon]" in text.splitlines()


def test_a_record_keeps_only_the_header_of_config_space_and_screen_info(tmp_path: Path) -> None:
    device = "sys/devices/pci0000:00/0000:00:02.0"
    host = laid_out(
        f"f {device}/class = 0x030000\n"
        "l sys/bus/pci/devices/0000:00:02.0 -> ../../../devices/pci0000:00/0000:00:02.0\n"
        f"x {device}/config = {'ab' * 256}\n"
        f"x sys/kernel/boot_params/data = {'cd' * 4096}",
        tmp_path / "a",
    )

    lines = record(host).splitlines()

    assert f"x {device}/config = {'ab' * 64}" in lines
    assert f"x sys/kernel/boot_params/data = {'cd' * 64}" in lines


def test_the_door_of_a_firmware_driver_is_recorded_while_it_has_no_device(
    machine: MachineFactory,
) -> None:
    host = machine("lab-efifb-6.12")
    doors = "sys/bus/platform/drivers/efi-framebuffer"
    host.write(f"{doors}/unbind", "efi-framebuffer.0")

    lines = record(host).splitlines()

    assert [line for line in lines if doors in line] == [
        f"d {doors}", f"f {doors}/bind", f"f {doors}/unbind",
    ]  # fmt: skip


def test_a_card_is_recorded_with_its_connectors_and_its_other_name(
    machine: MachineFactory,
) -> None:
    host = machine("lab-native")
    folder = "sys/devices/pci0000:00/0000:00:05.0/0000:01:00.0/drm"

    lines = record(host).splitlines()

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


def test_links_are_laid_out_as_written(tmp_path: Path) -> None:
    host = unpack("l a/b -> ../c d -> e", str(tmp_path))

    assert os.readlink(host.path("a/b")) == "../c d -> e"


@pytest.mark.parametrize(
    "line",
    ["z a = 1", "f /etc/passwd = x", "f ../x = 1", "d a/../../x", "garbage", "|orphan", "F a",
     " f a", "l /a -> b", "x ../a = 00"],
)  # fmt: skip
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(HostError) as caught:
        unpack(f"# head\n{line}", str(tmp_path))

    assert caught.value.text == f"line 2 of the recorded machine is not an entry: {line!r}"


@pytest.mark.parametrize(
    "text",
    ["x a = 0g", "x a = 012", "f a\nf a/b = 1", "l a -> b\nl a -> c", "f ", "d a\nf a = 1",
     "f a\0b = 1", "f " + "a" * 300, "l a -> "],
    ids=["no-hex", "odd-hex", "file-as-directory", "twice", "no-path", "directory-as-file", "nul",
         "long-name", "empty-link"],
)  # fmt: skip
def test_an_entry_that_cannot_be_laid_out_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(HostError):
        unpack(text, str(tmp_path))


def test_no_machine_writes_into_a_neighbour_whose_name_begins_alike(tmp_path: Path) -> None:
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


def test_a_write_to_a_recorded_machine_never_makes_a_file(tmp_path: Path) -> None:
    host = RecordedHost(str(tmp_path))

    with pytest.raises(HostError) as caught:
        host.write("sys/class/vtconsole/vtcon0/bnid", "0")

    assert caught.value.text == (
        "cannot write '0' to /sys/class/vtconsole/vtcon0/bnid: No such file or directory"
    )
    assert os.listdir(tmp_path) == []


def test_a_write_to_the_machine_never_makes_a_file(tmp_path: Path) -> None:
    host = Host(str(tmp_path))

    with pytest.raises(HostError) as caught:
        host.write("bind", "0")

    assert (caught.value.text, os.listdir(tmp_path)) == (
        "cannot write '0' to /bind: No such file or directory", [],
    )  # fmt: skip


def test_no_program_is_run_for_a_recorded_machine(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        RecordedHost(str(tmp_path)).run("/usr/bin/virsh", "list")

    assert caught.value.text == "cannot run /usr/bin/virsh on a recorded machine"
