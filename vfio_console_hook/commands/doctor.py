"""doctor: what of this host, the installation and the VMs is in order, and what is not."""

from __future__ import annotations

import argparse

from ..host import Host
from .command import Command, no_options


def _run(host: Host, arguments: argparse.Namespace) -> int:
    return 0


COMMAND = Command(
    "doctor",
    "whether this host, the installation and the VMs are in order",
    "vfio-console-hook doctor",
    no_options,
    _run,
)
