"""The README and the manual quote the messages, options and settings of the program."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gate import ROOT
from tests.test_manual import COMMAND, sections
from vfio_console_hook.config.keys import KEYS

README = ROOT / "README.md"
PACKAGE = ROOT / "vfio_console_hook"
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", ROOT / "tests/README.md")
# A value that the program puts into a message; "..." where people read it.
VALUE = "\0"


def chapter(title: str) -> list[str]:
    """The lines of the README below a heading of the second level."""
    _, text = README.read_text(encoding="utf-8").split(f"\n## {title}\n")
    return text.split("\n## ")[0].splitlines()


def rows(title: str) -> list[list[str]]:
    """The cells of the table below a heading of the README, without its head."""
    lines = [line for line in chapter(title) if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def messages() -> list[str]:
    """The program's messages that the README and the manual quote."""
    in_readme = [cell for row in rows("Messages") for cell in re.findall(r'"(.+?)"', row[0])]
    manual = sections(COMMAND, "Sh")["DIAGNOSTICS"]
    return [*in_readme, *re.findall(r"^\.It Dq (.+)$", manual, flags=re.MULTILINE)]


def template(node: ast.AST) -> str:
    """A string in the source; "" for any other node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or VALUE for part in node.values)
    return ""


def templates() -> Iterator[str]:
    """All strings of the program but docstrings, whichever module they are in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        yield from (template(node) for node in nodes if id(node) not in documentation)


@pytest.fixture(scope="module")
def source() -> list[str]:
    return list(templates())


def test_a_template_has_a_place_for_each_value() -> None:
    (message,) = ast.parse('f"{a} still claims " f"{b:x} in BAR {c}"').body

    assert isinstance(message, ast.Expr)
    assert template(message.value) == f"{VALUE} still claims {VALUE} in BAR {VALUE}"


def test_the_readme_has_eight_messages_and_the_manual_these_and_more() -> None:
    assert len(rows("Messages")) == 8
    assert len(messages()) > 14


@pytest.mark.parametrize("message", dict.fromkeys(messages()))
def test_a_message_that_is_quoted_is_one_of_the_program(message: str, source: list[str]) -> None:
    quoted = message.replace("...", VALUE)

    assert any(quoted in text for text in source)


def test_the_plan_in_the_readme_is_that_of_a_machine() -> None:
    text = "\n".join(chapter("The first VM"))
    block = text.split("    # vfio-console-hook plan win11\n")[1].split("\n\n")[0]
    golden = (ROOT / "tests/golden/plan-efifb-6.12.txt").read_text(encoding="utf-8").splitlines()

    shown = [line.removeprefix("    ") for line in block.splitlines()]
    places = [golden.index(line) for line in shown if line != "..."]

    assert len(places) > 5
    assert places == sorted(places)


def as_shown(default: object) -> str:
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, tuple):
        return ", ".join(default) or "none"
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_key_is_in_the_readme_with_its_default_first() -> None:
    table = rows("Configuration")

    assert [row[0] for row in table] == [f"`{key.name}`" for key in KEYS]
    for row, key in zip(table, KEYS):
        assert f"{row[1]}, ".startswith(f"{as_shown(key.default)}, ")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_targets_of_links_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)

    assert [link for link in links if not (document.parent / link.partition("#")[0]).exists()] == []


def test_every_module_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+\.py)`", text))

    missing = [
        name
        for name in sorted(named)
        if not any((top / name).exists() for top in (ROOT, PACKAGE)) and not list(ROOT.rglob(name))
    ]

    assert (len(named) > 30, missing) == (True, [])
