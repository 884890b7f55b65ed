"""The recorded machines in tests/machines, by their names."""

from __future__ import annotations

from pathlib import Path

from tests.lab.predicted import PHASES
from vfio_console_hook.commands.snapshot.writer import SEEN
from vfio_console_hook.machine.snapshot import unpack

FOLDER = Path(__file__).parent / "machines"


def names() -> tuple[str, ...]:
    """All of them, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.tree")))


def beginnings() -> tuple[str, ...]:
    """Those on which no VM has a GPU, or had one."""
    later = tuple(f"-{when}" for when in (*PHASES, "running"))
    return tuple(name for name in names() if not name.endswith(later))


def text(name: str) -> str:
    """The whole recording."""
    return (FOLDER / f"{name}.tree").read_text(encoding="utf-8")


def machine_text(name: str) -> str:
    """The machine alone, without what plan and doctor read beside it."""
    return text(name).partition(SEEN)[0]


def lay_out(name: str, root: Path) -> None:
    """Make root, which may be there already, the machine as it was recorded."""
    root.mkdir(parents=True, exist_ok=True)
    unpack(text(name), str(root))
