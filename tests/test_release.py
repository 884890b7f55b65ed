"""Whether everything that says which version this is agrees, and the forms for reports."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gate import ROOT
from tests.test_completion import commands, options
from tests.test_manual import PAGES
from vfio_console_hook import __version__

HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def versions_in_news() -> list[tuple[str, datetime.date]]:
    """The versions in NEWS.md with their days, the newest first."""
    headings = HEADING.findall((ROOT / "NEWS.md").read_text(encoding="utf-8"))
    matches = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", one) for one in headings]
    assert all(matches), headings
    return [(one[1], datetime.date.fromisoformat(one[2])) for one in matches if one]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_newest_heading_of_the_news_is_this_version() -> None:
    assert versions_in_news()[0][0] == __version__


def test_versions_and_days_in_the_news_fall() -> None:
    found = versions_in_news()

    assert [numbers(one) for one, _ in found] == sorted((numbers(one) for one, _ in found))[::-1]
    assert [day for _, day in found] == sorted((day for _, day in found))[::-1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_manual_is_of_this_version(page: Path) -> None:
    assert re.findall(r"^\.Os (.*)$", page.read_text(), re.MULTILINE) == [
        f"vfio-console-hook {__version__}"
    ]


def test_this_version_is_supported() -> None:
    rows = re.findall(r"^\| (\d+\.\d+) \| (yes|no)", (ROOT / "SECURITY.md").read_text(), re.M)

    assert rows[0] == (".".join(__version__.split(".")[:2]), "yes")
    assert len(dict(rows)) == len(rows)


def elements(form: Path) -> list[dict[str, Any]]:
    read = yaml.safe_load(form.read_text(encoding="utf-8"))
    body = read.get("body", [])
    assert isinstance(body, list)
    return body


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_its_syntax_demands(form: Path) -> None:
    """As in GitHub's documentation, "Syntax for GitHub's form schema"."""
    read = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.name == "config.yml":
        assert read.keys() == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= read.keys()
    ids = [one["id"] for one in elements(form) if one["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    for one in elements(form):
        assert one["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        needed = "value" if one["type"] == "markdown" else "label"
        assert one["attributes"][needed]


@pytest.mark.parametrize("name", ["problem", "machine"])
def test_a_form_asks_for_the_machine_by_commands_that_there_are(name: str) -> None:
    texts = [
        text
        for one in elements(ROOT / f".github/ISSUE_TEMPLATE/{name}.yml")
        if one.get("validations", {}).get("required")
        for text in re.findall("`vfio-console-hook ([^`]+)`", one["attributes"]["description"])
    ]

    assert {text.split()[0] for text in texts} >= {"record", "rehearse"}
    for text in (text for text in texts if not text.startswith("-")):
        command, *words = text.split()
        known = options(commands()[command])
        assert {word for word in words if word.startswith("-")} <= set(known)
