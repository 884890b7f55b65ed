"""take: free GPUs by hand, where libvirt calls no hook."""

from __future__ import annotations

import argparse
import re
import uuid
from dataclasses import replace

from .. import domain
from ..actions.holders import AwaitClosed
from ..claims import ownership
from ..claims.directory import Claims
from ..config import load
from ..config.settings import Config
from ..domain import Domain
from ..errors import HookError
from ..events import prepare
from ..events.assignment import assignment_of
from ..machine import pci, worker
from ..machine.holders import listed
from ..machine.host import Host
from .command import Command
from .plan import plan as planning
from .progress import ProgressLog, interruptible, say, say_consoles

# The uuid of a claim that a person made is derived from the addresses with this one.
_BY_HAND = uuid.UUID("5d3c1c1e-6a8e-4f0e-9a55-1f1f7c0e6b0a")


def _address(text: str) -> str:
    """The PCI address that was typed, in the form that the kernel uses."""
    parts = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text} is not a PCI address, such as 0000:01:00.0")
    return f"{parts[1] or '0000'}:{parts[2]}"


def add_addresses(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name GPUs."""
    parser.add_argument(
        "address",
        nargs="+",
        type=_address,
        metavar="ADDRESS",
        help="the GPU's PCI address, such as 01:00.0",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    add_addresses(parser)
    parser.add_argument("--vfio", action="store_true", help="also bind them to vfio-pci")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    """Prepare GPUs by hand: with the same steps, claim and guarantees as for a VM."""
    addresses = tuple(dict.fromkeys(arguments.address))
    name = " ".join(addresses)
    own = str(uuid.uuid5(_BY_HAND, name))
    if Claims(host).find(own) is not None:
        raise HookError(f"{name} is already taken by hand", hint="see `vfio-console-hook status`")
    hostdevs = tuple(domain.Hostdev(one, True, "take", 0) for one in addresses)
    taker = Domain(name, own, hostdevs, by_hand=True, bind_vfio=arguments.vfio)
    for one in addresses:
        if pci.display_class(host, one) is None:
            raise HookError(f"{one} is not a GPU", hint="compare with `lspci -D`")
        if pci.is_virtual(host, one):
            raise HookError(
                f"{one} is a virtual function: no console of the host is on it, so there is"
                " nothing to take",
                hint="let libvirt bind it to vfio-pci, or bind it yourself",
            )
    # `enabled: false` is about VMs that libvirt starts; this was requested by hand.
    settings = replace(load.configuration(host, name, own), enabled=True)
    with interruptible(lambda: _interrupted(host, own, addresses)):
        _await_hooks(host, taker)
        after = _announce(host, taker, settings)
        deadline = worker.Deadline(host, settings.timeout_s)
        log = ProgressLog(host, name, settings.log_level)
        prepare.prepare_within(deadline, host, assignment_of(host, taker), settings, log)
    say(f"took {name}; release it with `vfio-console-hook give {addresses[0]}`")
    if after:
        say(f"afterwards: {after}")
    say_consoles(host)
    return 0


def _await_hooks(host: Host, taker: Domain) -> None:
    """Wait for hooks that are releasing one of the GPUs."""
    addresses = {hostdev.address for hostdev in taker.hostdevs}
    for other in Claims(host).others(taker.uuid, host.boot_id):
        for one in addresses.intersection(other.gpus):
            if other.phase == "release" and ownership.at_work(host, other):
                say(
                    f"waiting up to {ownership.EARLIER_HOOK_S:g} s: the hook of {other.name} is"
                    f" releasing {one} (process {other.hook[0]})"
                )
                ownership.await_others(host, taker.uuid, (one,))


def _announce(host: Host, taker: Domain, settings: Config) -> str:
    """Print how many steps follow and which processes are waited for.

    Returns what releasing the GPUs will restore, as a clause.
    """

    def summary() -> str:
        plan = planning.plan_for(host, taker, settings)
        waits = [step.do.wait_s for step in plan.steps if isinstance(step.do, AwaitClosed)]
        held = listed(one.holder for one in plan.holders)
        wait = f"waiting up to {max(waits):g} s for {held}" if waits and held else ""
        return f"{len(plan.steps)}\n{wait}\n{plan.after}"

    count, wait, after = worker.look(summary).split("\n")
    say(f"taking {taker.name}: {count} step{'s' if count != '1' else ''}")
    if wait:
        say(wait)
    return after


def _interrupted(host: Host, own: str, addresses: tuple[str, ...]) -> str:
    """What to do after Ctrl-C."""
    if Claims(host).find(own) is None:
        return "nothing was taken"
    return f"`vfio-console-hook give {addresses[0]}` releases what was taken"


COMMAND = Command(
    "take",
    "free GPUs by hand, where libvirt calls no hook",
    "vfio-console-hook take --vfio 01:00.0",
    _options,
    _run,
    changes=True,
)
