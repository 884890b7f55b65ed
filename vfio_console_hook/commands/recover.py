"""recover: give back what VMs hold that do not run."""

from __future__ import annotations

import argparse

from .. import recovery
from ..host import Host
from .command import Command
from .take import say, say_consoles


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="do not ask libvirt if they run")
    parser.add_argument(
        "--wait", metavar="S", type=float, default=10, help="seconds to wait for libvirt and hooks"
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    settled = recovery.recover(host, say, force=arguments.force, wait_s=arguments.wait)
    say_consoles(host)
    return 0 if settled else 1


COMMAND = Command(
    "recover",
    "give back what VMs hold that do not run",
    "vfio-console-hook recover",
    _options,
    _run,
)
