"""The packages that trials install: this version, the next one, and those that stand in."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.gate import ROOT
from tests.lab.cache import BuildError
from vfio_console_hook import __version__

NEXT = "99.0.0"
NEXT_LINE = "# a line of the next version"


@dataclass(frozen=True)
class Packages:
    """This clone, and a package of this version and of the next one, by kind."""

    clone: Path
    now: dict[str, Path]
    later: dict[str, Path]


def build(work: Path, kinds: set[str]) -> Packages:
    """Build the packages of these kinds below work."""
    clone, following = work / "clone", work / "next"
    _copy(clone)
    _copy(following)
    _make_next(following)
    now = {kind: _package(clone, kind, work / "now") for kind in kinds}
    return Packages(clone, now, {kind: _package(following, kind, work / "later") for kind in kinds})


def _copy(target: Path) -> None:
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "build", "dist")
    shutil.copytree(ROOT, target, ignore=ignored)


def _make_next(clone: Path) -> None:
    """What an upgrade changes: the version, the gate, and a module that is gone."""
    init = clone / "vfio_console_hook/__init__.py"
    init.write_text(init.read_text().replace(f'"{__version__}"', f'"{NEXT}"'))
    news = clone / "NEWS.md"
    first, rest = news.read_text().split("\n## ", 1)
    news.write_text(f"{first}\n## {NEXT} (2027-01-01)\n\n## {rest}")
    gate = clone / "hooks/qemu"
    gate.write_text(gate.read_text() + f"{NEXT_LINE}\n")


def _package(clone: Path, kind: str, directory: Path) -> Path:
    done = subprocess.run(
        [clone / "install.sh", "--package", kind, directory], capture_output=True, text=True
    )
    if done.returncode:
        raise BuildError(done.stderr.strip())
    return Path(done.stdout.strip())


def empty_rpm(name: str, provides: tuple[str, ...], directory: Path) -> Path:
    """An rpm without files."""
    spec = directory / f"{name}.spec"
    lines = [f"Name: {name}", "Version: 3.13", "Release: 1", "Summary: stands in", "License: MIT"]
    lines += ["BuildArch: noarch", *(f"Provides: {one}" for one in provides)]
    spec.write_text("\n".join([*lines, "%description", "Empty.", "%files", ""]))
    # Also made by Debian's rpm 4, for the rpm of later releases.
    defines = ("--define", f"_rpmdir {directory}", "--define", "_binary_payload w6.xzdio")
    subprocess.run(
        ["rpmbuild", "-bb", *defines, "--define", f"_topdir {directory}", spec],
        check=True, capture_output=True,
    )  # fmt: skip
    return directory / f"noarch/{name}-3.13-1.noarch.rpm"
