"""take: free GPUs by hand, for what calls no libvirt hook."""

from __future__ import annotations

import argparse
import re
import uuid

from .. import config, console, domain, events, gpu, worker
from ..errors import HookError
from ..host import Host
from ..journal import Journal
from ..log import Log
from .command import Command

# Makes the uuid of what is taken by hand from its addresses.
_BY_HAND = uuid.UUID("5d3c1c1e-6a8e-4f0e-9a55-1f1f7c0e6b0a")


def say(line: str) -> None:
    """Print a line at once, for a person who waits."""
    print(line, flush=True)


def say_consoles(host: Host) -> None:
    """Print where the host's consoles are now."""
    where = worker.look(lambda: console.drawing(host))
    say(f"the host's consoles: {where}")


def address(text: str) -> str:
    """A PCI address as the kernel writes it, of what a person typed."""
    parts = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text} is not a PCI address, such as 0000:01:00.0")
    return f"{parts[1] or '0000'}:{parts[2]}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="+", type=address, help="PCI address, such as 01:00.0")
    parser.add_argument("--vfio", action="store_true", help="and bind them to vfio-pci")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    """Prepare GPUs for a person: the same steps, record and guarantees as for a VM."""
    addresses = tuple(dict.fromkeys(arguments.address))
    name = " ".join(addresses)
    own = str(uuid.uuid5(_BY_HAND, name))
    if Journal(host).find(own) is not None:
        raise HookError(f"{name} is taken by hand already", hint="see `vfio-console-hook status`")
    hostdevs = tuple(domain.Hostdev(one, True, "take", 0) for one in addresses)
    taker = domain.Domain(name, own, hostdevs, by_hand=True, bind_vfio=arguments.vfio)
    for one in addresses:
        if gpu.display_class(host, one) is None:
            raise HookError(f"{one} is no GPU", hint="compare with `lspci -D`")
    settings = config.load(host, name, own)
    log = Log(host, name, settings.log_level)
    run = worker.Deadline(settings.timeout_s).run_but_spare
    events.prepare(host, taker, settings, log, run)
    say(f"took {name}; give it back with `vfio-console-hook give {addresses[0]}`")
    say_consoles(host)
    return 0


COMMAND = Command(
    "take",
    "free GPUs by hand, for what calls no libvirt hook",
    "vfio-console-hook take --vfio 01:00.0",
    _options,
    _run,
)
