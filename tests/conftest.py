"""Fixtures of all tests: fake machines made from snapshots, domain XML, golden outputs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests import snapshots
from tests.building import Machine, render
from tests.fakehost import FakeHost
from tests.libvirt_xml import domain_xml
from vfio_console_hook.machine.snapshot import unpack

HERE = Path(__file__).parent
Golden = Callable[[str, str], None]
# A test with that many cases runs on all snapshots, or on all inputs of another kind.
MANY, SAMPLE = 100, 8
MEMORY = "/dev/shm"

__all__ = ["Golden", "MachineFactory", "domain_xml"]

# A PYTHONUNBUFFERED would hide what the installed program shows: it runs with -I.
for _name in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[_name]


class MachineFactory(Protocol):
    """machine("efifb-6.12") or machine(a Machine): a fresh copy that reacts to writes."""

    def __call__(
        self, which: str | Machine, *, crash_before: int = 0, refuse: int = 0
    ) -> FakeHost: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="write the outputs in tests/golden anew"
    )
    parser.addoption(
        "--sample", action="store_true",
        help=f"of a test with {MANY} cases or more, run one in {SAMPLE}",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Put temporary files into memory: a machine is hundreds of files, and a disk is slow.

    Not if TMPDIR is set, as it is for the workers of xdist, nor where nothing may be executed.
    """
    if os.environ.get("TMPDIR") or not os.path.isdir(MEMORY):
        return
    status = os.statvfs(MEMORY)
    if status.f_bavail * status.f_frsize < 1 << 30 or status.f_flag & os.ST_NOEXEC:
        return
    # Paths of sockets are short, and some tests run as another user.
    directory = tempfile.mkdtemp(prefix="t", dir=MEMORY)
    os.chmod(directory, 0o755)
    os.environ["TMPDIR"] = tempfile.tempdir = directory

    def remove() -> None:
        shutil.rmtree(directory, ignore_errors=True)

    config.add_cleanup(remove)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect cases for --sample, and begin with the linters, the longest single tests."""
    items.sort(key=lambda item: item.path.name != "test_style.py")
    if not config.getoption("--sample"):
        return
    names = [item.nodeid.partition("[")[0] for item in items]
    cases, before = Counter(names), Counter[str]()
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for name, item in zip(names, items):
        # Each test begins with another case, so that together they reach more machines.
        turn = (before[name] + len(name)) % SAMPLE
        before[name] += 1
        (left_out if cases[name] >= MANY and turn else chosen).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineFactory]:
    """Makes a FakeHost from a snapshot, each time in a new directory.

    vfio-pci is loaded on it, because few tests are about loading it.
    """
    made = 0

    def make(which: str | Machine, *, crash_before: int = 0, refuse: int = 0) -> FakeHost:
        nonlocal made
        made += 1
        text = snapshots.fake_text(which) if isinstance(which, str) else render(which)
        root = tmp_path / f"machine{made}"
        root.mkdir()
        unpack(text, str(root))
        FakeHost(str(root)).load_module("vfio-pci")
        return FakeHost(str(root), crash_before=crash_before, refuse=refuse)

    yield make


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """golden(name, text) fails when text is not what tests/golden/NAME.txt holds."""

    def compare(name: str, text: str) -> None:
        path = HERE / "golden" / f"{name}.txt"
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists():
            pytest.fail(f"there is no {path}: run pytest --regenerate, and read what it wrote")
        assert text == path.read_text(encoding="utf-8"), "pytest --regenerate writes it anew"

    return compare
