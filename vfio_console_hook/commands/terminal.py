"""Width and colour of the output: a terminal with or without colour, or a file."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from ..errors import cut
from ..log import printable
from ..machine.host import LAST_S

_WIDTH = 80
_LONGEST = 2000  # characters of one message
# Longer lines are hard to read, and shorter ones cannot hold an address range.
_WIDTHS = range(60, 111)

# SGR numbers (ECMA-48, 8.3.117): the eight colours that every terminal has.
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}

_COMMAND = re.compile("`[^`]*`")
_BLANK = "\0"  # no printable text holds one, and textwrap does not break at it


@dataclass(frozen=True)
class Terminal:
    """Where text is printed. All text must be readable without colour and box characters."""

    width: int = _WIDTH
    colour: bool = False

    @classmethod
    def for_stream(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Terminal:
        """The terminal of a stream; colour only on a terminal, and never with NO_COLOR set."""
        if not stream.isatty():
            return cls()
        plain = bool(environment.get("NO_COLOR")) or environment.get("TERM") == "dumb"
        columns = _columns(stream, environment)
        return cls(min(max(columns, _WIDTHS.start), _WIDTHS.stop - 1), not plain)

    def paint(self, text: str, colour: str) -> str:
        """The text in one of the colours; unchanged without colour."""
        return f"\033[{_COLOURS[colour]}m{text}\033[0m" if self.colour else text

    def wrapped(self, text: str, indent: str = "") -> str:
        """The text as lines that fit, each ended; those after the first begin with indent.

        Control characters are escaped. Text in `backticks` is never broken, even if its
        line gets too long: people copy it.
        """
        unbroken = _COMMAND.sub(lambda found: found[0].replace(" ", _BLANK), printable(text))
        # One column is left free: some terminals wrap a full line by themselves.
        filled = textwrap.fill(
            unbroken,
            self.width - 1,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        return filled.replace(_BLANK, " ") + "\n"


def _columns(stream: TextIO, environment: Mapping[str, str]) -> int:
    """The width of a terminal: COLUMNS, or else what the terminal reports."""
    columns = environment.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns):
        return int(columns)
    try:
        # A serial line does not know its width and reports 0.
        return os.get_terminal_size(stream.fileno()).columns or _WIDTH
    except OSError:
        return _WIDTH


def moment(seconds: float) -> str:
    """A time (seconds since the epoch) such as "2025-11-22 18:28:01".

    What no calendar has, because a file is damaged, becomes the first or the last one.
    """
    known = min(max(seconds, 0), LAST_S)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(known))


def complain(line: str) -> None:
    """Print a line on stderr; wrapped if stderr is a terminal."""
    line = printable(cut(line, _LONGEST))
    if sys.stderr.isatty():
        line = Terminal.for_stream(sys.stderr).wrapped(line, "  ").rstrip("\n")
    with contextlib.suppress(OSError):  # there is no other place to report it
        print(line, file=sys.stderr, flush=True)
