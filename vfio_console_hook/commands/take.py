"""take: free GPUs by hand, where libvirt calls no hook."""

from __future__ import annotations

import argparse
import uuid
from dataclasses import replace

from .. import domain
from ..actions.holders import AwaitClosed
from ..claims import ownership
from ..claims.directory import Claims
from ..config import load
from ..config.settings import Config
from ..domain import Domain
from ..errors import HookError, RefusedError
from ..events import prepare
from ..events.assignment import assignment_of
from ..machine import card, iommu, pci, worker
from ..machine.accelerators import gpus_of_host, is_gpu
from ..machine.holders import listed
from ..machine.host import Host
from ..machine.host_use import host_use
from . import vms
from .command import Command
from .plan import plan as planning
from .progress import ProgressLog, interruptible, say, say_consoles

# The uuid of a claim that a person made is derived from the addresses with this one.
_BY_HAND = uuid.UUID("5d3c1c1e-6a8e-4f0e-9a55-1f1f7c0e6b0a")


def _address(text: str) -> str:
    """The PCI address that was typed, in the form that the kernel uses."""
    address = pci.full_address(text)
    if address is None:
        raise argparse.ArgumentTypeError(f"{text} is not a PCI address, such as 0000:01:00.0")
    return address


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
    parser.add_argument(
        "--for", dest="vm", metavar="VM", help="use the configuration of this VM, by name or uuid"
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    """Prepare GPUs by hand: with the same steps, claim and guarantees as for a VM."""
    named = tuple(dict.fromkeys(arguments.address))
    _refuse_taken(host, named)
    with interruptible(lambda: "nothing was taken"):
        _await_hooks(host, named)
    taker = taker_of(host, named, vfio=arguments.vfio)
    name, own = taker.name, taker.uuid
    addresses = tuple(one.address for one in taker.hostdevs)
    configured_as, settings = _configuration(host, arguments, addresses[0])
    taker = replace(taker, configured_as=configured_as)
    with interruptible(lambda: _interrupted(host, own, addresses)):
        after = _announce(host, taker, settings)
        deadline = worker.Deadline(host, settings.timeout_s)
        log = ProgressLog(host, name, settings.log_level)
        prepare.prepare_within(deadline, host, assignment_of(host, taker), settings, log)
    say(f"took {name}; release it with `vfio-console-hook give {named[0]}`")
    if after:
        say(f"afterwards: {after}")
    if pci.any_display(host, addresses):
        say_consoles(host)
    return 0


def taker_of(host: Host, named: tuple[str, ...], *, vfio: bool) -> Domain:
    """Who takes these devices by hand, with what has to leave the host with them, GPUs first.

    The configuration is that of the first GPU. Raises HookError for what cannot be taken, or
    is taken by hand.
    """
    _refuse_taken(host, named)
    addresses = _leaving(host, named)
    name = " ".join(addresses)
    hostdevs = tuple(domain.Hostdev(one, True, "take", 0) for one in addresses)
    own = str(uuid.uuid5(_BY_HAND, name))
    return Domain(name, own, hostdevs, True, vfio, addresses[0])


def _configuration(host: Host, arguments: argparse.Namespace, gpu: str) -> tuple[str, Config]:
    """Whose configuration applies, and what it is: that of a VM that was named, or the GPU's."""
    name, own = gpu, gpu
    if arguments.vm:
        name, own = vms.name_and_uuid(host, arguments.connect, arguments.vm)
        files = [f"/{path}" for path in load.files_for(host, name, own)]
        say(f"configuration: {' and '.join(files) or 'none, so the defaults'}")
    return name, load.configuration(host, name, own, by_hand=True)


# -- what leaves


def _await_hooks(host: Host, named: tuple[str, ...]) -> None:
    """Wait for hooks that are releasing one of the GPUs: then it shows what is on a driver."""
    for other in Claims(host).others("", host.boot_id):
        for one in set(named).intersection(other.gpus):
            if other.phase == "release" and ownership.at_work(host, other):
                say(
                    f"waiting up to {ownership.EARLIER_HOOK_S:g} s: the hook of {other.name} is"
                    f" releasing {one} (process {other.hook[0]})"
                )
                ownership.await_others(host, "", (one,))


def _refuse_taken(host: Host, named: tuple[str, ...]) -> None:
    for claim in Claims(host).readable():
        again = [one for one in named if one in claim.gpus]
        if claim.by_hand and not claim.until and claim.boot == host.boot_id and again:
            raise HookError(
                f"{' and '.join(again)} {'are' if again[1:] else 'is'} already taken by hand",
                hint="see `vfio-console-hook status`",
            )


def _leaving(host: Host, named: tuple[str, ...]) -> tuple[str, ...]:
    """The devices that leave the host with those that were named, the GPUs first.

    Raises HookError when one of them is on no card with a GPU, or the host uses it.
    """
    gpus: dict[str, None] = {}
    for one in named:
        if pci.pci_class_of(host, one) is None:
            raise pci.no_device(one)
        if pci.is_virtual(host, one):
            raise HookError(
                f"{one} is a virtual function: no console of the host is on it, so there is"
                " nothing to take",
                hint="let libvirt bind it to vfio-pci, or bind it yourself",
            )
        gpus.update(dict.fromkeys((one,) if is_gpu(host, one) else card.gpus_of(host, one)))
    found = card.leaving_with(host, (*gpus, *(one for one in named if one not in gpus)))
    groups = {iommu.group_of(host, one) for one in gpus}
    for one in found:
        if one in gpus:
            continue
        if not card.gpus_of(host, one) and iommu.group_of(host, one) not in groups - {None}:
            raise _no_gpu(host, one)
        use = host_use(host, one)
        if use:
            raise RefusedError(f"{use} {one}, which has to leave the host with the GPU")
    return found


def _no_gpu(host: Host, address: str) -> HookError:
    """The error for a device that leaves with no GPU that was named."""
    group = iommu.group_of(host, address)
    beside = [one for one in gpus_of_host(host) if group and iommu.group_of(host, one) == group]
    if beside:
        return HookError(
            f"{address} is not a GPU, but in the IOMMU group of {' and '.join(beside)}",
            hint="name that GPU, and this device beside it if the VM gets both",
        )
    return HookError(
        f"{address} is not a GPU, and it is neither on a card nor in an IOMMU group with one",
        hint="compare with `lspci -D`",
    )


# -- before it does


def _announce(host: Host, taker: Domain, settings: Config) -> str:
    """Print how many steps follow and which processes are waited for.

    Returns what releasing the GPUs will restore, as a clause.
    """

    def summary() -> str:
        plan = planning.plan_for(host, taker, settings)
        if plan.verdict == planning.REFUSE and not plan.steps:
            return "\n\n"  # prepare says why
        waits = [step.do.wait_s for step in plan.steps if isinstance(step.do, AwaitClosed)]
        held = listed(one.holder for one in plan.holders)
        wait = f"waiting up to {max(waits):g} s for {held}" if waits and held else ""
        return f"{len(plan.steps)}\n{wait}\n{plan.after}"

    count, wait, after = worker.look(summary).split("\n")
    if not count:
        return ""
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
