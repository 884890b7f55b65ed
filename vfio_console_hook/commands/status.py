"""status: which VM holds what, and how to undo it by hand."""

from __future__ import annotations

import argparse

from .. import report, worker
from ..host import Host
from .command import Command, no_options


def _run(host: Host, arguments: argparse.Namespace) -> int:
    print(worker.look(lambda: report.status(host)), end="")
    return 0


COMMAND = Command(
    "status",
    "which VM holds what, and how to undo it by hand",
    "vfio-console-hook status",
    no_options,
    _run,
)
