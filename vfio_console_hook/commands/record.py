"""record: write a snapshot of this machine, for a bug report and for tests."""

from __future__ import annotations

import argparse
import os
import sys

from ..machine import worker
from ..machine.host import Host
from . import files, vms
from .command import Command
from .snapshot import writer
from .terminal import complain

# plan, status and doctor all run, and more than one of them may wait for a program.
_TIMEOUT_S = 120.0
_MOST_NAMED = 5


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the file to write, - for stdout")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    found = vms.known_vms_or_error(host, arguments.connect)
    text = worker.run(lambda: writer.snapshot_text(host, found), _TIMEOUT_S)
    if arguments.file == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        files.write(arguments.file, text)
        print(f"wrote {len(text.splitlines())} lines to {arguments.file}")
        print("read it before you publish it: the program does not recognise every private name")
    _print_unread(writer.unread(text))
    return 0


def _print_unread(unread: list[str]) -> None:
    """Print what could not be read on stderr, apart from a snapshot on stdout."""
    for remark in unread[:_MOST_NAMED]:
        complain(f"vfio-console-hook: {remark}")
    if len(unread) > _MOST_NAMED:
        more = len(unread) - _MOST_NAMED
        complain(f"vfio-console-hook: and {more} more, listed at the top of the snapshot")
    if unread and os.geteuid() != 0:
        complain("hint: run it as root to record more")


COMMAND = Command(
    "record",
    "write a snapshot of this machine for a bug report",
    "vfio-console-hook record machine.txt",
    _options,
    _run,
)
