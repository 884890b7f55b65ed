"""Host, the access to the running machine: programs and their output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from tests.gate import ROOT
from vfio_console_hook.errors import HostError
from vfio_console_hook.log import printable
from vfio_console_hook.machine import libvirtd
from vfio_console_hook.machine.host import Host


def script(directory: Path, *lines: bytes) -> str:
    """The path of a program of sh."""
    path = directory / "program"
    path.write_bytes(b"\n".join((b"#!/bin/sh", *lines, b"")))
    path.chmod(0o755)
    return str(path)


def test_a_program_gets_an_environment_that_no_caller_chooses() -> None:
    program = "from vfio_console_hook.machine.host import Host; print(Host().run('/usr/bin/env'))"

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "MODPROBE_OPTIONS": "-n", "PATH": "/nowhere"},
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]


def test_output_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    """`modprobe --showconfig` prints the lines of /etc/modprobe.d as they are, in Latin-1, too."""
    program = script(tmp_path, rb"printf 'options snd id=B\374ro\r\nblacklist nouveau\n'")

    output = Host().run(program)

    assert os.fsencode(output) == b"options snd id=B\xfcro\r\nblacklist nouveau"


def test_an_error_that_is_not_utf8_is_one_line_that_a_terminal_can_show(tmp_path: Path) -> None:
    program = script(tmp_path, rb"printf 'no module \374\033[2J\n\tgiven up\n' >&2", b"exit 1")

    with pytest.raises(HostError) as caught:
        Host().run(program)

    text = f"{program} failed: no module \\xfc\x1b[2J given up"
    assert (caught.value.text, printable(text)) == (text, text.replace("\x1b", "\\x1b"))


def test_an_error_of_megabytes_is_cut(tmp_path: Path) -> None:
    program = script(tmp_path, b"head -c 3000000 /dev/zero | tr '\\0' x >&2", b"exit 1")

    with pytest.raises(HostError) as caught:
        Host().run(program)

    assert caught.value.text == f"{program} failed: {'x' * 1000}..."


def test_arguments_of_any_bytes_reach_a_command_of_the_administrator(tmp_path: Path) -> None:
    program = script(tmp_path, b'[ "$1" = "$(printf "\\374")" ] && exit 3')

    assert Host().exit_status(program, os.fsdecode(b"\xfc"), timeout_s=60) == 3


@pytest.mark.parametrize("call", ["openReadOnly", "listAllDomains"])
def test_an_answer_of_libvirt_that_is_not_utf8_is_an_error_of_the_host(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """libvirt-python decodes strictly (libvirt-utils.c, PyUnicode_FromString)."""

    def not_utf8(*words: object) -> None:
        b"\xfc".decode()

    owner = libvirt if call == "openReadOnly" else libvirt.virConnect
    monkeypatch.setattr(owner, call, not_utf8)

    with pytest.raises(HostError) as caught:
        libvirtd.vms("test:///default")

    assert caught.value.text == "cannot ask libvirt at test:///default: its answer is not UTF-8"


def test_text_that_was_read_can_be_written_back_byte_for_byte(tmp_path: Path) -> None:
    attribute = tmp_path / "driver_override"
    attribute.write_bytes(b"B\xfcro")
    host = Host(str(tmp_path))

    host.write("driver_override", f"{host.read('driver_override')}\n")

    assert attribute.read_bytes() == b"B\xfcro\n"
