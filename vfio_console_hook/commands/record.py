"""record: this machine as a text, for a bug report and for tests."""

from __future__ import annotations

import argparse

from .. import recorder, worker
from ..errors import HookError
from ..host import Host
from .command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    text = worker.look(lambda: recorder.record(host))
    try:
        with open(arguments.file, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HookError(f"cannot write {arguments.file}: {error.strerror}") from error
    print(f"wrote {len(text.splitlines())} lines to {arguments.file}")
    return 0


COMMAND = Command(
    "record",
    "write this machine down for a bug report",
    "vfio-console-hook record machine.txt",
    _options,
    _run,
)
