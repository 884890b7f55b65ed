"""The tables of the matrix and of the comparison, from the results of each cell.

Each cell leaves a cell.json beside its pictures, so cells of several runs are in one table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import matrix
from .matrix import CONFIGURATIONS, HOOKS, OURS, Cell, Configuration, Hook
from .observation import Console
from .result import Outcome, Result

CELL_FILE = "cell.json"
LONGEST_FAULT = 110
NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """A cell and its result. mapped is None, and a console "", if it could not be observed."""

    cell: Cell
    kernel: str
    libvirt: str
    outcome: str
    seconds: int
    mapped: bool | None
    meanwhile: str
    after: str
    faults: tuple[str, ...]


def keep(result: Result, directory: Path) -> None:
    """Write the result of a cell into its directory; do nothing for other scenarios."""
    if result.scenario.name not in matrix.CELLS:
        return
    seen = result.observation
    passed = result.outcome is Outcome.PASS
    value = {
        "outcome": seen.outcome if passed and seen else result.outcome.value,
        "seconds": round(result.seconds),
        "failures": result.failures,
        "notes": result.notes,
        "observation": asdict(seen) if seen else None,
    }
    text = json.dumps(value, indent=1, default=lambda member: member.value)
    (directory / CELL_FILE).write_text(text + "\n")


def forget(out: Path) -> None:
    """Remove the results of earlier runs, so that a table does not contain them."""
    for name in matrix.CELLS:
        (out / name / CELL_FILE).unlink(missing_ok=True)


def read(out: Path, cells: Sequence[Cell]) -> list[Row]:
    """The rows of the cells that were run, in their order."""
    return [
        _row(cell, json.loads(path.read_text()))
        for cell in cells
        for path in [out / cell.scenario().name / CELL_FILE]
        if path.exists()
    ]


def _row(cell: Cell, result: dict[str, object]) -> Row:
    seen = result["observation"]
    seen = seen if isinstance(seen, dict) else {}
    unknown = Console.UNKNOWN.value
    after = seen.get("after", unknown)
    return Row(
        cell,
        kernel=seen.get("kernel", cell.kernel),
        libvirt=seen.get("libvirt", "?"),
        outcome=str(result["outcome"]),
        seconds=int(str(result["seconds"])),
        mapped=seen.get("mapped"),
        meanwhile=seen.get("meanwhile") or "",
        after="" if after == unknown else after,
        faults=tuple(seen.get("faults", ())),
    )


def write(out: Path) -> str:
    """Write the tables that have rows; their text."""
    texts = []
    rows = read(out, matrix.MATRIX)
    if rows:
        texts.append(_lines(_matrix(rows)))
        (out / "matrix.txt").write_text(texts[-1])
        (out / "matrix.md").write_text(_markdown(_matrix(rows)))
        (out / "matrix.json").write_text(_json(rows))
    others = read(out, matrix.AGAINST)
    if others:
        rows = [*others, *(row for row in rows if row.cell.kernel in matrix.COMPARED)]
        both = [_summary(rows), _against(rows)]
        texts.append("\n".join(_lines(table) for table in both))
        (out / "against.txt").write_text(texts[-1])
        (out / "against.md").write_text("\n".join(_markdown(table) for table in both))
        (out / "against-short.md").write_text(_markdown(_troubles(rows)))
        (out / "against.json").write_text(_json(rows))
    return "\n".join(texts)


# A table is a list of rows of words; the first is its head.
Table = list[list[str]]


def _matrix(rows: Sequence[Row]) -> Table:
    table = [["kernel", "from", "libvirt", *(c.words for c in CONFIGURATIONS)]]
    for kernel in dict.fromkeys(row.cell.kernel for row in sorted(rows, key=_age)):
        of_kernel = {row.cell.configuration: row for row in rows if row.cell.kernel == kernel}
        one = next(iter(of_kernel.values()))
        suite = matrix.suite(kernel)
        words = [_outcome(of_kernel.get(configuration)) for configuration in CONFIGURATIONS]
        table.append([one.kernel, suite, one.libvirt, *words])
    return table


def _age(row: Row) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", row.kernel)]


def _outcome(row: Row | None) -> str:
    return f"{row.outcome} ({row.seconds} s)" if row else NOT_RUN


def _summary(rows: Sequence[Row]) -> Table:
    table = [["with", "BAR mapped", "console meanwhile", "console afterwards", "no fault"]]
    for hook in HOOKS:
        of_hook = [row for row in rows if row.cell.hook == hook]
        dual = [row for row in of_hook if row.cell.configuration.template.stays]
        table.append([
            hook.words,
            _share(sum(bool(row.mapped) for row in of_hook), of_hook),
            _share(sum(row.meanwhile == Console.VISIBLE.value for row in dual), dual),
            _share(sum(row.after == Console.VISIBLE.value for row in of_hook), of_hook),
            _share(sum(not row.faults for row in of_hook), of_hook),
        ])  # fmt: skip
    return table


def _share(number: int, rows: Sequence[Row]) -> str:
    return f"{number} of {len(rows)}" if rows else NOT_RUN


def _against(rows: Sequence[Row]) -> Table:
    head = ["kernel", "configuration", "with", "BAR mapped", "meanwhile", "afterwards", "faults"]
    table = [head]
    by_cell = {row.cell: row for row in rows}
    for kernel in matrix.COMPARED:
        for configuration in CONFIGURATIONS:
            if any(Cell(kernel, configuration, hook) in by_cell for hook in HOOKS):
                table += _compared(by_cell, kernel, configuration)
    return table


def _compared(by_cell: dict[Cell, Row], kernel: str, configuration: Configuration) -> Table:
    found = {hook: by_cell.get(Cell(kernel, configuration, hook)) for hook in HOOKS}
    version = next((row.kernel for row in found.values() if row), kernel)
    return [[version, configuration.words, *_looks(hook, row)] for hook, row in found.items()]


def _looks(hook: Hook, row: Row | None) -> list[str]:
    if row is None:
        return [hook.words, *[NOT_RUN] * 4]
    mapped = {True: "yes", False: "NO", None: "-"}[row.mapped]
    after = row.after or "?"
    if hook is OURS and row.outcome.startswith("gone"):
        after += ", announced"
    faults = "; ".join(_short(fault) for fault in row.faults) or "none"
    return [hook.words, mapped, row.meanwhile or "-", after, faults]


def _troubles(rows: Sequence[Row]) -> Table:
    """The comparison with one line a machine, and only what was wrong there."""
    table = [["kernel", "configuration", *(hook.words for hook in HOOKS)]]
    machines = dict.fromkeys((row.cell.kernel, row.cell.configuration) for row in rows)
    in_order = [(k, c) for k in matrix.COMPARED for c in CONFIGURATIONS if (k, c) in machines]
    by_cell = {row.cell: row for row in rows}
    for kernel, configuration in in_order:
        found = [by_cell.get(Cell(kernel, configuration, hook)) for hook in HOOKS]
        version = next(row.kernel for row in found if row)
        table.append([version, configuration.words, *map(_trouble, found)])
    return table


def _trouble(row: Row | None) -> str:
    if row is None:
        return NOT_RUN
    words = ["BAR not mapped"] if row.mapped is False else []
    if row.meanwhile not in ("", Console.VISIBLE.value):
        words.append(f"console {row.meanwhile} meanwhile")
    if row.after != Console.VISIBLE.value:
        announced = ", announced" if row.outcome.startswith("gone") else ""
        words.append(f"console {row.after or '?'} afterwards{announced}")
    return "; ".join([*words, *(_short(fault) for fault in row.faults)]) or "well"


def _short(fault: str) -> str:
    return fault if len(fault) <= LONGEST_FAULT else fault[: LONGEST_FAULT - 3] + "..."


def _lines(table: Table) -> str:
    widths = [max(len(row[number]) for row in table) for number in range(len(table[0]))]
    lines = [" ".join(word.ljust(width) for word, width in zip(row, widths)) for row in table]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _markdown(table: Table) -> str:
    head, *rows = ([word.replace("|", "\\|") for word in row] for row in table)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(words)} |" for words in lines) + "\n"


def _json(rows: Sequence[Row]) -> str:
    cells = [
        {
            **asdict(row),
            "cell": row.cell.scenario().name,
            "suite": matrix.suite(row.cell.kernel),
            "configuration": row.cell.configuration.name,
            "with": row.cell.hook.words,
        }
        for row in rows
    ]
    return json.dumps(cells, indent=1) + "\n"
