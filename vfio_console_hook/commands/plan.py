"""plan: what prepare would do for a VM, and why."""

from __future__ import annotations

import argparse
import sys

from .. import config, domain, events, report, worker
from ..errors import HookError, StuckError
from ..host import Host
from .command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--xml", metavar="FILE", required=True, help="its domain XML, - for stdin")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    parsed = domain.parse(_read(arguments.xml))
    settings = config.load(host, parsed.name, parsed.uuid)

    def look() -> str:
        leaving, steps = events.look(host, parsed, settings)
        return report.plan(host, parsed, leaving, steps) if leaving.gpus else ""

    try:
        text = worker.look(look)
    except HookError as error:
        if not isinstance(error, StuckError):
            print(worker.look(lambda: report.gpus(host, parsed)), end="")
        raise
    print(text or f"{parsed.name} has no GPU of this host: nothing to do\n", end="")
    return 0 if text else 2


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise HookError(f"cannot read {path}: {error.strerror}") from error


COMMAND = Command(
    "plan",
    "what prepare would do for a VM, and why",
    "virsh dumpxml win11 | vfio-console-hook plan --xml -",
    _options,
    _run,
)
