"""Width and colour of the output."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from vfio_console_hook.commands.terminal import Terminal

Opener = Callable[[int], TextIO]


@pytest.fixture
def terminal() -> Iterator[Opener]:
    """terminal(80) is a stream to a real terminal of that many columns."""
    opened: list[int] = []
    streams: list[TextIO] = []

    def make(columns: int) -> TextIO:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        opened.append(master)
        streams.append(os.fdopen(slave, "w"))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()
    for handle in opened:
        os.close(handle)


XTERM = {"TERM": "xterm"}


@pytest.mark.parametrize(
    ("columns", "width"),
    [(80, 80), (100, 100), (40, 60), (59, 60), (110, 110), (300, 110), (0, 80)],
)
def test_lines_are_as_wide_as_the_terminal_within_reason(
    terminal: Opener, columns: int, width: int
) -> None:
    assert Terminal.for_stream(terminal(columns), XTERM) == Terminal(width, colour=True)


@pytest.mark.parametrize(
    ("columns", "width"),
    [("72", 72), ("", 90), ("0", 90), ("wide", 90), ("-5", 90), ("\u0663", 90)],
)
def test_columns_overrides_the_width_of_the_terminal_if_it_is_a_number(
    terminal: Opener, columns: str, width: int
) -> None:
    assert Terminal.for_stream(terminal(90), {**XTERM, "COLUMNS": columns}).width == width


@pytest.mark.parametrize(
    ("environment", "colour"),
    [
        ({}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "0"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour_is_off_if_disabled_or_not_possible(
    terminal: Opener, environment: dict[str, str], colour: bool
) -> None:
    assert Terminal.for_stream(terminal(80), {**XTERM, **environment}).colour == colour


def test_a_file_gets_80_columns_and_no_colour(tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "file"), "w") as file:
        assert Terminal.for_stream(file, {**XTERM, "COLUMNS": "200"}) == Terminal(80, colour=False)


def test_colour_is_around_the_text_and_ends_with_it() -> None:
    assert Terminal(colour=True).paint("PASS", "green") == "\033[32mPASS\033[0m"
    assert Terminal(colour=False).paint("PASS", "green") == "PASS"


def test_long_text_is_wrapped_between_words_one_column_before_the_edge() -> None:
    text = "a " * 39 + "b c-d"

    assert Terminal(80).wrapped(text, "    ") == f"{'a ' * 39}b\n    c-d\n"


def test_a_word_that_is_too_long_is_not_broken() -> None:
    line = "echo x > /sys/bus/pci/devices/0000:01:00.0/driver/" + "unbind" * 10

    assert Terminal(60).wrapped(line, "  ") == f"echo x >\n  {line[9:]}\n"


def test_a_command_to_copy_is_not_broken() -> None:
    command = "`echo 0000:01:00.0 > /sys/bus/pci/drivers/vfio-pci/unbind`"
    text = f"it could not be undone before the deadline of the whole event: run {command} by hand"

    lines = Terminal(60).wrapped(text, "  ").splitlines()

    assert [line.strip() for line in lines if "`" in line] == [command]
