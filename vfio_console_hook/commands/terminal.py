"""What text is written for: a terminal of some width, with or without colour, or a file."""

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

_WIDTH = 80
_LONGEST = 2000  # of one complaint
# Longer lines are hard to read, and shorter ones cannot hold an address range.
_WIDTHS = range(60, 111)

# SGR numbers (ECMA-48, 8.3.117): the eight colours that every terminal has.
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}

_COMMAND = re.compile("`[^`]*`")
_BLANK = "\0"  # no printable text holds one, and textwrap does not break at it


@dataclass(frozen=True)
class Terminal:
    """Where text goes. Nothing may need colour or box characters to be understood."""

    width: int = _WIDTH
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Terminal:
        """What stream writes to; colour only on a terminal, and never with NO_COLOR set."""
        if not stream.isatty():
            return cls()
        plain = bool(environment.get("NO_COLOR")) or environment.get("TERM") == "dumb"
        columns = _columns(stream, environment)
        return cls(min(max(columns, _WIDTHS.start), _WIDTHS.stop - 1), not plain)

    def paint(self, text: str, colour: str) -> str:
        """The text in one of the colours; as it is where there is no colour."""
        return f"\033[{_COLOURS[colour]}m{text}\033[0m" if self.colour else text

    def wrapped(self, text: str, indent: str = "") -> str:
        """The text as lines that fit, each ended; those after the first begin with indent.

        Nothing in it can steer the terminal, whoever has chosen its words.

        What stands in `backticks` stays whole, even if its line gets too long: people
        copy it.
        """
        shown = printable(text)
        whole = _COMMAND.sub(lambda found: found[0].replace(" ", _BLANK), shown)
        # One column is left free: some terminals wrap a full line by themselves.
        filled = textwrap.fill(
            whole,
            self.width - 1,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        return filled.replace(_BLANK, " ") + "\n"


def _columns(stream: TextIO, environment: Mapping[str, str]) -> int:
    """How wide a terminal is: what COLUMNS says, or else what it says itself."""
    told = environment.get("COLUMNS", "")
    if told.isascii() and told.isdigit() and int(told):
        return int(told)
    try:
        # 0 is what a serial line says, which does not know.
        return os.get_terminal_size(stream.fileno()).columns or _WIDTH
    except OSError:
        return _WIDTH


def moment(seconds: float) -> str:
    """A time (seconds since the epoch) as people read it: "2025-11-22 18:28:01"."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def complain(line: str) -> None:
    """Print a line on stderr: wrapped for a person, whole for whoever else reads it."""
    terminal = Terminal.of(sys.stderr)
    line = printable(cut(line, _LONGEST))
    told = terminal.wrapped(line, "  ") if sys.stderr.isatty() else f"{line}\n"
    with contextlib.suppress(OSError):  # there is nobody else who could be told
        print(told, end="", file=sys.stderr, flush=True)
