"""The command line itself: help, wrong usage, and readers that stop."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.gate import ROOT
from tests.test_completion import commands
from vfio_console_hook import __version__, cli
from vfio_console_hook.cli import COMMANDS
from vfio_console_hook.commands.command import Command

Capture = pytest.CaptureFixture[str]
EVERY = ((), *((name,) for name in commands()))


def ended(*words: str) -> int | str | None:
    """The status with which the command line ends the program."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return caught.value.code


def program(*words: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with 80 columns and FORCE_COLOR.

    As the installed one it does not heed variables of Python.
    """
    return subprocess.run(
        [sys.executable, "-E", "-m", "vfio_console_hook.cli", *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80", "FORCE_COLOR": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_help_fits_into_80_columns_and_ends_with_an_example(words: tuple[str, ...]) -> None:
    done = program(*words, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    assert re.search(r"^examples?:\n(  (virsh|vfio-console-hook) .*\n)+", done.stdout, re.MULTILINE)
    assert "\033" not in done.stdout


def test_the_help_gives_each_command_one_line() -> None:
    done = program("--help")

    found = re.findall(r"^    (\S+) +(.*)$", done.stdout, re.MULTILINE)
    assert [list(line) for line in found] == [
        [command.name, command.summary] for command in COMMANDS
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_parser_accepts_the_example_of_each_command(command: Command) -> None:
    example = command.example.rpartition("| ")[2]

    words = shlex.split(example)

    assert words[0] == "vfio-console-hook"
    assert cli.parser().parse_args(words[1:]).act == command.run


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            [],
            "name a command: plan, status, doctor, check-config, record, rehearse, keep, recover,"
            " dismiss, notify, take, give\n"
            "hint: see `vfio-console-hook --help`",
        ),
        (
            ["plam"],
            "there is no command plam, did you mean plan?\nhint: see `vfio-console-hook --help`",
        ),
        (
            ["Recover"],
            "there is no command Recover, did you mean recover?\n"
            "hint: see `vfio-console-hook --help`",
        ),
        (["xyz"], "there is no command xyz\nhint: see `vfio-console-hook --help`"),
        (
            ["status", "--nonsense"],
            "unrecognized arguments: --nonsense\nhint: see `vfio-console-hook --help`",
        ),
        (
            ["status", "--root", "x"],
            "unrecognized arguments: --root x\nhint: --root comes before the command",
        ),
        (
            ["status", "--jso"],
            "unrecognized arguments: --jso\nhint: see `vfio-console-hook --help`",
        ),
        (
            ["take"],
            "the following arguments are required: ADDRESS\n"
            "hint: see `vfio-console-hook take --help`",
        ),
        (
            ["take", "1"],
            "argument ADDRESS: 1 is not a PCI address, such as 0000:01:00.0\n"
            "hint: see `vfio-console-hook take --help`",
        ),
        (
            ["recover", "--wait", "nan"],
            "argument --wait: nan is not a number of seconds, such as 10\n"
            "hint: see `vfio-console-hook recover --help`",
        ),
        (
            ["recover", "--wait", "-1"],
            "argument --wait: -1 is not a number of seconds, such as 10\n"
            "hint: see `vfio-console-hook recover --help`",
        ),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_sentence_and_status_2(
    capsys: Capture, words: list[str], error: str
) -> None:
    status = ended(*words)

    assert (status, capsys.readouterr()) == (2, ("", f"vfio-console-hook: {error}\n"))


MACHINE = ROOT / "tests/machines/efifb-6.12.tree"


@pytest.mark.parametrize("words", ["take 01:00.0", "give 01:00.0", "recover --force"])
def test_what_changes_a_machine_is_not_done_to_a_recorded_one(
    capsys: Capture, words: str
) -> None:
    status = cli.main(["--root", str(MACHINE), *words.split()])

    error = (
        "vfio-console-hook: this command changes a machine, and that of --root is only a record\n"
        "hint: run it on the machine itself, without --root\n"
    )
    assert (status, capsys.readouterr()) == (2, ("", error))


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:
    status = ended("--version")

    assert (status, capsys.readouterr().out) == (0, f"{__version__}\n")


PRINTING = pytest.mark.parametrize("words", ["--help", "take --help", "--root {} status"])


@PRINTING
def test_a_reader_that_has_ended_causes_no_message(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    done = program(*words.format(MACHINE).split(), stdout=writer)
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, "")


@PRINTING
def test_a_full_disk_is_reported_in_one_sentence(words: str) -> None:
    with open("/dev/full", "w") as full:
        done = program(*words.format(MACHINE).split(), stdout=full.fileno())

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("vfio-console-hook: No space left on device")


@PRINTING
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_cause_no_message(words: str, closed: str) -> None:
    command = [sys.executable, "-m", "vfio_console_hook.cli", *words.format(MACHINE).split()]

    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
        cwd=ROOT, capture_output=True,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (" >&-" not in f" {closed}")
