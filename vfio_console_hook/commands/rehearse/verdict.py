"""The verdict: what plan had said against what was seen, one row each."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import HookError
from ...machine.host import Host
from ...machine.vfio_access import opened_of
from ..terminal import Terminal
from .promise import Promise
from .rehearsal import Account
from .sight import Sight, sight_of

Things = tuple[str, ...]

_NONE = "none"
_COMING = ("driver", "DRM node", "connectors", "framebuffer", "console", "services")
NOT_TRIED = "not tried"
NO_EYE = "no eye has seen it"
_READ, _NOT_READ = "a person could read it", "a person could not read it"


@dataclass(frozen=True)
class Row:
    """One thing: what plan had said of it, what was seen, and whether that agrees."""

    what: str
    said: str
    seen: str
    agrees: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.seen}" + ("" if self.agrees else f"; plan: {self.said}")


@dataclass(frozen=True)
class Verdict:
    """The rows of one cycle."""

    rows: tuple[Row, ...]

    @property
    def agrees(self) -> bool:
        """Whether everything was as plan had said."""
        return all(row.agrees for row in self.rows)

    @property
    def settled(self) -> bool:
        """Whether nothing is missing that may still come: udev and systemd take their time."""
        return all(row.agrees for row in self.rows if row.what in _COMING)

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {"agrees": self.agrees, "rows": [vars(row) for row in self.rows]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Verdict:
        """What to_json() wrote. Raises KeyError, TypeError."""
        return cls(tuple(Row(**row) for row in value["rows"]))


def verdict_of(host: Host, account: Account) -> Verdict:
    """How the last cycle in a diary compares with the machine now. Raises HookError."""
    rehearsal = account.rehearsal
    if rehearsal is None or not account.cycle:
        raise HookError("nothing was begun")
    promise = Promise.from_json(account.cycle["promise"])
    if account.kept:
        return Verdict((_steps(promise, account.took), _bars(promise, rehearsal.untried, account)))
    before = Sight.from_json(account.cycle["before"])
    after = sight_of(host, rehearsal.addresses)
    return Verdict((
        _steps(promise, account.took),
        _bars(promise, rehearsal.untried, account),
        *_resets(account),
        _same("driver", before.drivers, after.drivers),
        _shown("DRM node", promise, before, before.nodes, after.nodes),
        _shown("connectors", promise, before, before.connectors, after.connectors),
        _shown("framebuffer", promise, before, before.framebuffers, after.framebuffers),
        _console(promise, before, after),
        *_services(host, promise),
        _given_back(account.took),
        _seconds(rehearsal.cycle_s, account.took),
    ))  # fmt: skip


def _listed(things: Things) -> str:
    return ", ".join(things) or _NONE


def _same(what: str, before: Things, after: Things) -> Row:
    return Row(what, _listed(before), _listed(after), before == after)


def _steps(promise: Promise, took: dict[str, Any]) -> Row:
    done, error = took.get("steps", 0), str(took.get("error", ""))
    seen = f"{done} done" + (f", then: {error}" if error else "")
    return Row("steps", str(promise.steps), seen, done == promise.steps and not error)


def _bars(promise: Promise, untried: str, account: Account) -> Row:
    if untried:
        return Row("BARs", NOT_TRIED, f"{NOT_TRIED}: {untried}", True)
    said = f"{len(promise.bars)} mapped"
    if account.opened is None:
        return Row("BARs", said, NOT_TRIED, False)
    opened = opened_of(account.opened)
    why = [f"{one.address}: {one.text}" for one in opened.failures]
    why += [region.why for region in opened.regions if region.why]
    mapped = sum(region.mapped for region in opened.regions)
    beside = len(opened.regions) - mapped - sum(bool(region.why) for region in opened.regions)
    seen = f"{mapped} mapped" + (f", {beside} too small to be" if beside else "")
    whole = not why and len(opened.regions) == len(promise.bars)
    return Row("BARs", said, "; ".join((seen, *why)), whole)


def _resets(account: Account) -> Iterator[Row]:
    """A row for each function that was to be reset; that the kernel cannot is no fault."""
    for one in opened_of(account.opened).resets if account.opened else ():
        yield Row("reset", f"{one.address} answers after it", f"{one.address} {one}", one.answers)


def _shown(what: str, promise: Promise, before: Sight, then: Things, now: Things) -> Row:
    """What the drivers show, of which plan may have said that the firmware's is lost."""
    if not promise.loses:
        return _same(what, then, now)
    firmwares = [one for one in then if one in before.firmwares]
    natives = [one for one in then if one not in firmwares]
    said = _listed(tuple(natives))
    if firmwares:
        said += f"; {'may lose' if promise.uncertain else 'loses'} {_listed(tuple(firmwares))}"
    # A driver that is bound again gets the lowest number that is free, which may be the firmware's.
    lost = _unnumbered(then) - _unnumbered(now)
    new = _unnumbered(now) - _unnumbered(then)
    as_said = not _unnumbered(natives) - _unnumbered(now) and (promise.loads or not new)
    gone = bool(lost) or promise.uncertain or not firmwares
    return Row(what, said, _listed(now), as_said and gone)


def _unnumbered(things: Iterable[str]) -> Counter[str]:
    """How many there are of each, whatever the numbers of DRM nodes and framebuffers are."""
    return Counter(re.sub(r"^(card|renderD|fb)\d+", r"\1", one) for one in things)


def _console(promise: Promise, before: Sight, after: Sight) -> Row:
    if not promise.loses:
        return Row("console", before.console, after.console, before.console == after.console)
    stays = any(one not in before.firmwares for one in before.framebuffers)
    agrees = not after.dark if promise.loads or stays else after.dark or promise.uncertain
    return Row("console", promise.after, after.console, agrees)


def _services(host: Host, promise: Promise) -> Iterator[Row]:
    for step in promise.again:
        if step.undo is not None:
            names = " and ".join(step.undo.services)
            missing = step.undo.missing(host)
            seen = missing.text if missing else f"{names} runs again"
            yield Row("services", f"{names} runs again", seen, missing is None)


def _given_back(took: dict[str, Any]) -> Row:
    error = str(took.get("lost", ""))
    return Row("given back", "all but what plan lists", error or "all of it", not error)


def _seconds(limit_s: float, took: dict[str, Any]) -> Row:
    parts = [f"{name} {took[key]:.1f}" for name, key in _PARTS if key in took]
    total = sum(took[key] for _, key in _PARTS if key in took)
    seen = f"{total:.1f}" + (f" ({', '.join(parts)})" if parts else "")
    return Row("seconds", f"at most {limit_s:.0f}", seen, total <= limit_s)


_PARTS = (("taking", "take_s"), ("having", "have_s"), ("giving back", "give_s"))


def eye_row(eye: str | None) -> Row:
    """What a person has seen on the monitor: "yes", "no", or None or "" if none was asked."""
    seen = {"yes": _READ, "no": _NOT_READ}.get(eye or "", NO_EYE)
    return Row("monitor", "the console can be read", seen, seen != _NOT_READ)


DARK_ROW = Row("monitor", "see console", "the host shows nothing", True)
"""Where the host's consoles are on no monitor, there is nothing to ask."""


# -- for people


def table(verdict: Verdict, terminal: Terminal) -> str:
    """The verdict as a table: what, what plan had said, what was seen."""
    first = max(len(row.what) for row in verdict.rows)
    rest = max(terminal.width - 1 - first - len(_MARK) - 4, 20)
    widths = (rest * 2 // 5, rest - rest * 2 // 5)
    lines = _cells(terminal, "", ("", first), ("plan had said", widths[0]), ("seen", widths[1]))
    for row in verdict.rows:
        mark = "" if row.agrees else _MARK
        cells = ((row.what, first), (row.said, widths[0]), (row.seen, widths[1]))
        lines += _cells(terminal, mark, *cells)
    return lines


_MARK = "!!"


def _cells(terminal: Terminal, mark: str, *cells: tuple[str, int]) -> str:
    columns = [textwrap.wrap(text, width, break_on_hyphens=False) or [""] for text, width in cells]
    height = max(map(len, columns))
    lines = ""
    for number in range(height):
        words = [column[number] if number < len(column) else "" for column in columns]
        padded = "  ".join(word.ljust(width) for word, (_, width) in zip(words, cells))
        line = f"{mark if number == 0 else '':{len(_MARK)}}{padded}".rstrip()
        lines += (terminal.paint(line, "red") if mark else line) + "\n"
    return lines
