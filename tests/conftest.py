"""What all tests share: recorded machines that react, domain XML, golden outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests import recordings
from tests.building import Machine, render
from tests.fakehost import FakeHost
from tests.libvirt_xml import domain_xml
from vfio_console_hook.machine.snapshot import unpack

HERE = Path(__file__).parent
Golden = Callable[[str, str], None]

__all__ = ["Golden", "MachineFactory", "domain_xml"]

# What somebody's PYTHONUNBUFFERED hides, the installed program shows: it runs with -I.
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
        "--sample", type=int, default=1, metavar="N",
        help="of each test marked every_machine, run one case in N",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_machine: the same on machine after machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what --sample leaves out, and begin with the linters, the longest single tests."""
    seen: Counter[str] = Counter()
    left_out = set()
    for item in items:
        if item.get_closest_marker("every_machine"):
            name = item.nodeid.partition("[")[0]
            # Each test begins elsewhere, so that together they reach more of the machines.
            if (seen[name] + len(name)) % config.getoption("--sample"):
                left_out.add(item)
            seen[name] += 1
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.path.name != "test_style.py")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineFactory]:
    """Makes a FakeHost of a recorded machine, each time over a directory of its own.

    vfio-pci is loaded on it: what loads when is not what tests are about.
    """
    made = 0

    def make(which: str | Machine, *, crash_before: int = 0, refuse: int = 0) -> FakeHost:
        nonlocal made
        made += 1
        text = recordings.text(which) if isinstance(which, str) else render(which)
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
