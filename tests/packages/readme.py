"""The lines of the README that people give to a package manager, and those that were not tried."""

from __future__ import annotations

import re

from tests.gate import ROOT

MANAGERS = (
    "apt", "apt-get", "dnf", "zypper", "pacman", "apk", "xbps-install", "rpm-ostree",
    "transactional-update",
)  # fmt: skip
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def lines() -> dict[str, str]:
    """Each line with a command of a package manager, and its comment."""
    found = re.findall(rf"^ +((?:{'|'.join(MANAGERS)}) .*?) *(?:#(.*))?$", TEXT, re.MULTILINE)
    return dict(found)


def line(program: str, word: str) -> str:
    """The one line of this package manager that has this word. Raises ValueError."""
    (found,) = [one for one in lines() if one.split()[0] == program and word in one]
    return found


def not_tried() -> set[str]:
    """The package managers of which the README says that they were not tried."""
    (sentence,) = re.findall(r"Not tried: (.*?)\.\n", TEXT, re.DOTALL)
    return {one for one in MANAGERS if re.search(rf"\b{one}\b", sentence)}
