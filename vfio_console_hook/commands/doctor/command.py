"""doctor: what of this host, the installation and the VMs is in order, and what is not."""

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
from .areas import FAIL, PASS, WARN, Check, Finding, Subject, areas, cannot_look, examine_area

_COLOURS = {PASS: "green", WARN: "yellow", FAIL: "red"}
_INDENT = " " * 6


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="only what is not in order")
    parser.add_argument("--json", action="store_true", help="for programs")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    subject = _subject(host, arguments.connect)
    findings = _examine(subject)
    failed, warned = (sum(one.level == level for one in findings) for level in (FAIL, WARN))
    shown = [one for one in findings if one.level != PASS or not arguments.quiet]
    if arguments.json:
        content = {"findings": [vars(one) for one in shown], "failed": failed, "warnings": warned}
        print(json.dumps(content, indent=2))
    else:
        terminal = Terminal.for_stream(sys.stdout)
        told = text(shown, terminal)
        last = summary(failed, warned)
        if len(shown) > failed + warned > 0:
            last += "; `vfio-console-hook doctor -q` shows nothing else"
        print(told + ("\n" if told else "") + terminal.wrapped(last), end="")
    return 1 if failed else 0


def _subject(host: Host, uri: str) -> Subject:
    """The host with its VMs, or with why libvirt does not tell of them."""
    try:
        return Subject.of(host, vms.known_vms(host, uri))
    except HookError as error:
        return Subject(host, unasked=error.text, remedy=error.hint)


def _examine(subject: Subject) -> list[Finding]:
    """What all checks find; each area has a process and a deadline of its own."""
    findings: list[Finding] = []
    for area, those in areas():
        try:
            findings += _in_child(subject, area, those)
        except HookError as error:
            findings.append(replace(cannot_look(area, error), area=area))
            if isinstance(error, StuckError):
                break  # another one might get stuck too
    return findings


def _in_child(subject: Subject, area: str, those: tuple[Check, ...]) -> list[Finding]:
    def look() -> str:
        return json.dumps([vars(one) for one in examine_area(subject, area, those)])

    return [Finding(**one) for one in json.loads(worker.look(look))]


def text(findings: Sequence[Finding], terminal: Terminal) -> str:
    """A heading for each area, a line for each finding, and below it what to do."""
    told = ""
    area = ""
    for one in findings:
        if one.area != area:
            area = one.area
            told += "\n" if told else ""
            told += terminal.paint(f"{area[:1].upper()}{area[1:]}", "bold") + "\n"
        told += _line(one, terminal)
    return told


def _line(one: Finding, terminal: Terminal) -> str:
    # Wrapped before it is painted: the colours take no room on the screen.
    plain = f"{one.level}  {one.subject}: {one.text}"
    lines = terminal.wrapped(plain, _INDENT)
    lines = terminal.paint(one.level, _COLOURS[one.level]) + lines[len(one.level) :]
    if one.advice:
        lines += terminal.wrapped(f"{_INDENT}do: {one.advice}", f"{_INDENT}    ")
    return lines


def summary(failed: int, warned: int) -> str:
    """How many checks failed and warned: the last line."""
    counts = []
    if failed:
        counts.append(f"{failed} check{'' if failed == 1 else 's'} failed")
    if warned:
        counts.append(f"{warned} warning{'' if warned == 1 else 's'}")
    return ", ".join(counts) or "everything is in order"


COMMAND = Command(
    "doctor",
    "check this host, the installation and the VMs",
    "vfio-console-hook doctor",
    _options,
    _run,
)
