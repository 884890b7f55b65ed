"""record: this machine as a text, for a bug report and for tests."""

from __future__ import annotations

import argparse
import os
import sys

from ..errors import HookError
from ..machine import worker
from ..machine.host import Host
from ..machine.libvirtd import Vm
from . import files, vms
from .command import Command
from .snapshot import writer
from .terminal import complain

# Everything that plan and doctor read is read, and more than one of them may wait for
# a program: longer than for one look.
_TIMEOUT_S = 120.0
_MOST_NAMED = 5


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="where to write it, - for stdout")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    found = _vms(host, arguments.connect)
    text = worker.run(lambda: writer.whole(host, found), _TIMEOUT_S)
    if arguments.file == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        files.write(arguments.file, text)
        print(f"wrote {len(text.splitlines())} lines to {arguments.file}")
        print("look through it before others see it: not every name can be known as one")
    _tell_unread(writer.unread(text))
    return 0


def _vms(host: Host, uri: str) -> tuple[Vm, ...] | HookError:
    """The VMs of libvirt, or why it cannot be asked."""
    try:
        return vms.known(host, uri)
    except HookError as error:
        return error


def _tell_unread(unread: list[str]) -> None:
    """On stderr, so that it is seen beside a text on stdout."""
    for remark in unread[:_MOST_NAMED]:
        complain(f"vfio-console-hook: {remark}")
    if len(unread) > _MOST_NAMED:
        more = len(unread) - _MOST_NAMED
        complain(f"vfio-console-hook: and {more} more, named at the top of it")
    if unread and os.geteuid() != 0:
        complain("hint: run as root it would hold more")


COMMAND = Command(
    "record",
    "write this machine down for a bug report",
    "vfio-console-hook record machine.txt",
    _options,
    _run,
)
