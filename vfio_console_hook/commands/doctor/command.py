"""doctor: checks this host, the installation and the VMs, and says how to fix what is wrong."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from ...errors import HookError, StuckError
from ...machine import worker
from ...machine.host import Host
from .. import vms
from ..command import Command
from ..terminal import Terminal
from .areas import AREAS, Area
from .finding import AS_ROOT, FAIL, PASS, WARN, Finding, could_not_check
from .system import System

_COLOURS = {PASS: "green", WARN: "yellow", FAIL: "red"}
_INDENT = " " * 6


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what is wrong")
    parser.add_argument("--json", action="store_true", help="print it as JSON, for programs")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    findings = _all_findings(System.with_vms(host, vms.known_vms_or_error(host, arguments.connect)))
    failed, warned = (sum(one.level == level for one in findings) for level in (FAIL, WARN))
    shown = [one for one in findings if one.level != PASS or not arguments.quiet]
    if arguments.json:
        content = {"findings": [vars(one) for one in shown], "failed": failed, "warnings": warned}
        print(json.dumps(content, indent=2))
    else:
        terminal = Terminal.for_stream(sys.stdout)
        last = summary(failed, warned)
        if len(shown) > failed + warned > 0:
            last += "; `vfio-console-hook doctor -q` prints only these"
        blank = "\n" if shown else ""
        print(text(shown, terminal) + blank + terminal.wrapped(last), end="")
    return 1 if failed else 0


def _all_findings(system: System) -> list[Finding]:
    """What all checks find; each area has a process and a deadline of its own."""
    findings: list[Finding] = []
    for area in AREAS:
        try:
            findings += _found_in_child(area, system)
        except HookError as error:
            findings.append(replace(could_not_check(area.heading, error), area=area.heading))
            if isinstance(error, StuckError):
                break  # another process might get stuck too
    return findings if system.host.privileged else _without_root(findings)


def _without_root(findings: list[Finding]) -> list[Finding]:
    """The findings for a user who is not root: what that prevents is said once, and first."""
    closed = [one for one in findings if one.advice == AS_ROOT]
    titles = ", ".join(dict.fromkeys(one.subject for one in closed))
    text = f"this user is not root; not checked: {titles}" if closed else "this user is not root"
    first = Finding(WARN, "user", text, AS_ROOT, "this run")
    return [first, *(one for one in findings if one not in closed)]


def _found_in_child(area: Area, system: System) -> list[Finding]:
    def found() -> str:
        return json.dumps([vars(one) for one in area.findings(system)])

    return [Finding(**one) for one in json.loads(worker.look(found))]


def text(findings: Sequence[Finding], terminal: Terminal) -> str:
    """A heading for each area, a line for each finding, and below it what to do."""
    blocks: dict[str, str] = {}
    for one in findings:
        heading = terminal.paint(f"{one.area[:1].upper()}{one.area[1:]}", "bold")
        blocks[one.area] = blocks.get(one.area, f"{heading}\n") + _lines(one, terminal)
    return "\n".join(blocks.values())


def _lines(one: Finding, terminal: Terminal) -> str:
    # Wrapped before it is painted: the colours take no room on the screen.
    plain = f"{one.level}  {one.subject}: {one.text}"
    lines = terminal.wrapped(plain, _INDENT)
    lines = terminal.paint(one.level, _COLOURS[one.level]) + lines[len(one.level) :]
    if one.advice:
        lines += terminal.wrapped(f"{_INDENT}do: {one.advice}", f"{_INDENT}    ")
    return lines


def summary(failed: int, warned: int) -> str:
    """The last line: how many checks failed and warned."""
    counts = []
    if failed:
        counts.append(f"{failed} check{'' if failed == 1 else 's'} failed")
    if warned:
        counts.append(f"{warned} warning{'' if warned == 1 else 's'}")
    return ", ".join(counts) or "no problems found"


COMMAND = Command(
    "doctor",
    "check this host, the installation and the VMs",
    "vfio-console-hook doctor",
    _options,
    _run,
)
