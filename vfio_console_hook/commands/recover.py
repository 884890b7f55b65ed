"""recover: release GPUs that are still claimed by VMs that are not running."""

from __future__ import annotations

import argparse
import re

from ..claims.directory import Claims
from ..events import recovery
from ..machine.host import Host
from .command import Command
from .progress import interruptible, say, say_consoles


def _seconds(text: str) -> float:
    # float() would also accept nan and inf.
    if re.fullmatch(r"[0-9]{1,6}([.][0-9]{1,6})?", text) is None:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, such as 10")
    return float(text)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="do not ask libvirt whether the VMs run"
    )
    parser.add_argument(
        "--wait",
        metavar="S",
        type=_seconds,
        default=10.0,
        help="seconds to wait for libvirt and for running hooks (%(default)g)",
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    if not Claims(host).uuids():
        say("nothing to release: no VM holds a GPU")
    with interruptible(lambda: "run `vfio-console-hook recover` again"):
        settled = recovery.recover(host, say, force=arguments.force, wait_s=arguments.wait)
    say_consoles(host)
    return 0 if settled else 1


COMMAND = Command(
    "recover",
    "release GPUs still claimed by VMs that are not running",
    "vfio-console-hook recover",
    _options,
    _run,
    changes=True,
)
