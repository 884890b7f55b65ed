"""The snapshots of machines in tests/machines, by name."""

from __future__ import annotations

import re
from pathlib import Path

from tests.lab.predicted import PHASES
from vfio_console_hook.commands.snapshot.writer import SEEN
from vfio_console_hook.machine.snapshot import unpack

FOLDER = Path(__file__).parent / "machines"


def names() -> tuple[str, ...]:
    """The names of all snapshots, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.tree")))


def before_vms() -> tuple[str, ...]:
    """The names of the snapshots of machines on which no VM has or had a GPU."""
    later = tuple(f"-{when}" for when in (*PHASES, "running"))
    return tuple(name for name in names() if not name.endswith(later))


def text(name: str) -> str:
    """The whole snapshot."""
    return (FOLDER / f"{name}.tree").read_text(encoding="utf-8")


def fake_text(name: str) -> str:
    """The whole snapshot, for a fake kernel.

    What the fake kernel alone knows of a machine stands with the first of its snapshots.
    """
    first = next((name[: -len(one) - 1] for one in PHASES if name.endswith(f"-{one}")), name)
    if first == name or not (FOLDER / f"{first}.tree").exists():
        return text(name)
    facts = re.findall(r"^f fake/.*\n?(?:^\|.*\n?)*", text(first), re.MULTILINE)
    return "\n".join([text(name).rstrip("\n"), *facts])


def machine_text(name: str) -> str:
    """The machine alone, without the further paths that plan and doctor read."""
    return text(name).partition(SEEN)[0]


def unpack_into(name: str, root: Path) -> None:
    """Unpack a whole snapshot into root, which may already exist."""
    root.mkdir(parents=True, exist_ok=True)
    unpack(text(name), str(root))
