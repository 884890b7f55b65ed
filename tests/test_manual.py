"""The manual pages: they match the program, and man shows them without a warning."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gate import ROOT
from tests.test_completion import commands, options
from tests.test_style import tool
from vfio_console_hook import cli
from vfio_console_hook.config import load
from vfio_console_hook.config.keys import KEYS
from vfio_console_hook.stages import order

MANUAL = ROOT / "config/share/man"
COMMAND = MANUAL / "man8/vfio-console-hook.8"
SETTINGS = MANUAL / "man5/vfio-console-hook.yaml.5"
PAGES = (COMMAND, SETTINGS)


def sections(page: Path, kind: str) -> dict[str, str]:
    """The text of a page below each `.Sh` or `.Ss`, by its title."""
    parts = re.split(rf"^\.{kind} (.*)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    own = [re.split(r"^\.S[hs] ", text, flags=re.MULTILINE)[0] for text in parts[2::2]]
    return dict(zip(parts[1::2], own))


def documented(section: str) -> set[str]:
    """The options that a section explains, in a list of its own."""
    items = re.findall(r"^\.It (Fl .*)$", section, flags=re.MULTILINE)
    # "Fl q , -quiet" is -q and --quiet.
    words = [word for item in items for word in re.findall(r"(?:Fl|,) (\S+)", item)]
    return {f"-{word}" for word in words}


def arguments(parser: argparse.ArgumentParser) -> set[str]:
    """The arguments besides options, such as "FILE"."""
    return {
        str(action.metavar or action.dest)
        for action in parser._actions
        if not action.option_strings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_has_no_objection(page: Path) -> None:
    done = subprocess.run(
        [tool("mandoc"), "-T", "lint", "-W", "warning", page], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_shows_it_without_a_warning_in_80_columns(page: Path) -> None:
    done = subprocess.run(
        [tool("man"), "--warnings", "-l", page],
        env={"MANWIDTH": "80", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TERM": "dumb"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if len(re.sub(".\b", "", line)) > 80] == []


def test_every_command_is_in_the_manual_in_the_order_of_the_help() -> None:
    assert list(sections(COMMAND, "Ss")) == list(commands())


@pytest.mark.parametrize("name", commands())
def test_the_options_of_a_command_are_in_the_manual_and_no_others(name: str) -> None:
    section = sections(COMMAND, "Ss")[name]

    assert documented(section) == set(options(commands()[name]))
    items = re.findall(r"^\.It Ar (\S+)$", section, flags=re.MULTILINE)
    assert set(items) == arguments(commands()[name])


def test_the_options_before_a_command_are_in_the_manual() -> None:
    assert documented(sections(COMMAND, "Sh")["DESCRIPTION"]) == set(options(cli.parser()))


def as_written(value: Any) -> str:
    """A default as it is written into a file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_key_is_in_the_manual_with_its_values_and_its_default() -> None:
    found = {name: text.splitlines()[:6] for name, text in sections(SETTINGS, "Ss").items()}

    assert found == {
        key.name: [
            key.doc,
            '.Bl -tag -width "Default:" -compact',
            ".It Value:",
            key.wanted,
            ".It Default:",
            as_written(key.default),
        ]
        for key in KEYS
    }
    assert list(found) == [key.name for key in KEYS]


def examples() -> list[str]:
    text = SETTINGS.read_text(encoding="utf-8")
    return re.findall(r"^\.Bd -literal -offset indent\n(.*?)^\.Ed$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", examples())
def test_the_examples_are_good_configuration(example: str) -> None:
    assert load.mistakes_in("example", example.encode()) == ()


def test_every_example_of_a_command_line_can_be_parsed() -> None:
    lines = re.findall(
        r"^(?:\.Dl )?vfio-console-hook (.*)$", COMMAND.read_text(encoding="utf-8"), re.MULTILINE
    )

    assert len(lines) > 5
    for line in lines:
        cli.parser().parse_args(line.split())


def test_every_stage_is_in_the_manual_in_the_order_of_prepare() -> None:
    items = re.findall(r"^\.It Li (\S+)$", sections(COMMAND, "Sh")["STAGES"], flags=re.MULTILINE)

    assert items == [*order.NAMES]


def test_the_manual_names_the_exit_statuses() -> None:
    section = sections(COMMAND, "Sh")["EXIT STATUS"]

    assert re.findall(r"^\.It (\d+)$", section, flags=re.MULTILINE) == ["0", "1", "2", "130"]
