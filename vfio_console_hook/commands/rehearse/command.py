"""rehearse: try a VM's start and stop on this host, without the VM, and come back by itself."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from dataclasses import replace
from typing import Any

from ... import domain
from ...claims import ownership
from ...config import load
from ...domain import Domain
from ...errors import HookError, RefusedError
from ...machine import card, console, gpu, iommu, libvirtd, pci, worker
from ...machine.accelerators import is_gpu
from ...machine.host import Host
from .. import files, progress, take, vms
from ..command import Command, attributes
from ..plan import plan as planning
from ..plan import text as plan_text
from ..terminal import Terminal
from . import detached, evidence, follow, runner, watchdog
from .promise import promise_of
from .rehearsal import Diary, Rehearsal

_SECONDS = range(1, 601)
_TIMES = range(1, 101)
_MINUTES, _MINUTE_S = range(1, 121), 60


def _whole(text: str, among: range) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) in among):
        raise argparse.ArgumentTypeError(f"{text} is not a number from {among[0]} to {among[-1]}")
    return int(text)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="*",
        metavar="VM",
        help="the name or uuid of a VM that libvirt knows, or PCI addresses of GPUs",
    )
    parser.add_argument("--xml", metavar="FILE", help="read its XML from a file, - for stdin")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--seconds", metavar="N", type=lambda text: _whole(text, _SECONDS), default=10,
        help="how long the GPU is away (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--times", metavar="N", type=lambda text: _whole(text, _TIMES), default=1,
        help="repeat all of it, until something differs (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--reset", action="store_true", help="let vfio reset the GPU, too, as QEMU does"
    )
    parser.add_argument(
        "--start", action="store_true",
        help="start the VM itself, and destroy it unless `keep VM` is run meanwhile",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", metavar="N", type=lambda text: _whole(text, _MINUTES), default=5,
        help="how long it has with --start (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--report", metavar="FILE",
        help="write a report for developers, as by itself after one that failed",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON; needs --yes")
    parser.add_argument(
        "--as", dest="role", choices=(detached.RUNNER, detached.WATCHDOG), help=argparse.SUPPRESS
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    if arguments.role:
        (own,) = arguments.what
        return _act(host, arguments.role, own)
    if bool(arguments.what) is bool(arguments.xml):
        raise HookError("name a VM, or GPUs, or a file with --xml")
    if arguments.start and (arguments.times > 1 or arguments.reset):
        raise HookError("the VM itself is started once, and QEMU resets the GPU: only --minutes")
    if not host.privileged:
        raise HookError("only root can rehearse", hint="run it with sudo")
    wanted = _wanted(host, arguments)
    terminal = Terminal.for_stream(sys.stdout)
    found = json.loads(worker.look(lambda: json.dumps(_look(host, arguments, wanted, terminal))))
    if not arguments.json:
        print(found["text"], end="", flush=True)
    if found["verdict"] != planning.START or found["reason"]:
        text = f"nothing was rehearsed: {found['reason']}"
        raise RefusedError(text, found["hint"])
    rehearsal = Rehearsal.from_json(found["rehearsal"])
    if not _agreed(arguments):
        progress.say("nothing was changed")
        return 2
    _keep_evidence(host, rehearsal, found["text"], arguments)
    # It took a person some time to answer, and this program some to write the machine down.
    rehearsal = replace(rehearsal, began=host.now())
    diary = _diary(host, rehearsal, wanted, arguments)
    if not arguments.json:
        until = ownership.clock_time(rehearsal.until)
        progress.say(f"begun; at {until} everything is back at the latest")
    asks = not arguments.yes and found["shown"]
    detached.begin(host, rehearsal, lambda role, own: _detached(host, role, own))
    return follow.follow(host, rehearsal, diary, arguments, asks=asks)


def _diary(
    host: Host, rehearsal: Rehearsal, wanted: Domain, arguments: argparse.Namespace
) -> Diary:
    """The diary of a rehearsal that can begin."""
    diary = Diary(host, rehearsal.own)
    diary.begin(rehearsal)
    if arguments.report:
        diary.note(report=True)
    if arguments.start:
        hostdevs = [vars(one) for one in wanted.hostdevs]
        diary.note(real={"uri": arguments.connect, "hostdevs": hostdevs})
    return diary


def _keep_evidence(
    host: Host, rehearsal: Rehearsal, plan: str, arguments: argparse.Namespace
) -> None:
    """Write the machine down as it is, for a report; a rehearsal goes on without it."""
    try:
        known = vms.known_vms_or_error(host, arguments.connect)
        evidence.begin(host, rehearsal.own, plan, known)
    except HookError as error:
        if arguments.report:
            raise
        if not arguments.json:
            progress.say(f"there will be no report: {error.text}")


def _act(host: Host, role: str, own: str) -> int:
    """What the detached processes do."""
    if role == detached.RUNNER:
        return runner.run(host, own)
    return watchdog.give_back(host, own)


def _detached(host: Host, role: str, own: str) -> None:
    """The runner or the watchdog, where this process has been forked for it."""
    if role == detached.RUNNER:
        runner.run(host, own)
    else:
        watchdog.wait(host, own)


# -- what is rehearsed


def _look(
    host: Host, arguments: argparse.Namespace, wanted: Domain, terminal: Terminal
) -> dict[str, Any]:
    """What plan says of the VM, and what will be rehearsed, as JSON values."""
    settings = load.configuration(
        host, wanted.configured_as or wanted.name, wanted.uuid, by_hand=wanted.by_hand
    )
    session = libvirtd.is_session(arguments.connect) and not wanted.by_hand
    plan = planning.plan_for(host, wanted, settings, session=session)
    found = attributes(plan, "verdict", "reason", "hint")
    found["text"] = plan_text.text(plan, terminal)
    if plan.verdict == planning.START and not plan.reason:
        rehearsal = _rehearsal(host, arguments, wanted)
        found["rehearsal"] = vars(rehearsal)
        if not arguments.start:
            found |= _refusal(host, rehearsal)
        found["shown"] = any(one.displays for one in plan.gpus) and not console.dark(host)
        found["text"] += "\n" + _outlook(host, arguments, rehearsal, plan, terminal)
    return found


def _refusal(host: Host, rehearsal: Rehearsal) -> dict[str, str]:
    """Why this cannot be rehearsed although the VM would start, such as that it runs."""
    try:
        settings = runner.configuration_of(host, rehearsal)
        promise_of(host, rehearsal, rehearsal.domain, settings)
    except RefusedError as error:
        return {"reason": error.text, "hint": error.hint}
    return {}


def _wanted(host: Host, arguments: argparse.Namespace) -> Domain:
    """Who would get the GPU: a VM, or a person with `take --vfio`."""
    if arguments.start and (arguments.xml or len(arguments.what) != 1):
        raise HookError("name one VM that libvirt knows for --start")
    if arguments.xml:
        return domain.parse(files.content(arguments.xml))
    addresses = tuple(pci.full_address(one) for one in arguments.what)
    known = tuple(one for one in addresses if one is not None)
    if len(known) == len(addresses) and not arguments.start:
        return take.taker_of(host, known, vfio=True)
    if len(arguments.what) > 1:
        raise HookError("name one VM, or PCI addresses only")
    vm = vms.vm_named(host, arguments.connect, arguments.what[0])
    return domain.parse(vm.xml.encode("utf-8", "surrogateescape"))


def _rehearsal(host: Host, arguments: argparse.Namespace, wanted: Domain) -> Rehearsal:
    """What takes part: the functions of the cards of the VM's GPUs that the VM gets."""
    configured_as = wanted.configured_as or wanted.name
    settings = load.configuration(host, configured_as, wanted.uuid, by_hand=True)
    assigned = tuple(one.address for one in wanted.hostdevs)
    gpus = tuple(one for one in assigned if is_gpu(host, one) and not pci.is_virtual(host, one))
    beside = tuple(
        one
        for one in assigned
        if one not in gpus and any(card.same_card(host, each, one) for each in gpus)
    )
    addresses = (*gpus, *beside)
    if wanted.by_hand:
        addresses = assigned
    spared = tuple(one for one in assigned if one not in addresses)
    return Rehearsal(
        own=str(uuid.uuid4()),
        vm=wanted.name,
        uuid=wanted.uuid,
        configured_as=configured_as,
        addresses=addresses,
        spared=spared,
        untried="" if arguments.start else _untried(host, gpus, addresses),
        seconds=float(arguments.minutes * _MINUTE_S if arguments.start else arguments.seconds),
        times=arguments.times,
        timeout_s=settings.timeout_s,
        began=host.now(),
        reset=arguments.reset,
        starts=arguments.start,
    )


def _untried(host: Host, gpus: tuple[str, ...], addresses: tuple[str, ...]) -> str:
    """Why vfio cannot open one of the GPUs without what stays with the host; "" if it can."""
    for one in gpus:
        group = iommu.group_of(host, one)
        if group is None:
            if iommu.comes_with_driver(host, one):
                continue
            return f"{one} is in no IOMMU group"
        others = iommu.blocking(host, group, addresses)
        if others:
            stays = "stays" if len(others) == 1 else "stay"
            return (
                f"{iommu.described(host, others)} {stays} with the host in a rehearsal, and"
                f" {'is' if len(others) == 1 else 'are'} in the IOMMU group of {one}"
            )
    return ""


# -- before it


def _outlook(
    host: Host, arguments: argparse.Namespace, rehearsal: Rehearsal, plan: planning.Plan,
    terminal: Terminal,
) -> str:  # fmt: skip
    """What the person will see, in three lines."""
    gpus = gpu.gpus_at(host, tuple(one.address for one in plan.gpus))
    shown = any(one.framebuffers for one in gpus) or console.waits_for_text(host)
    names = " and ".join(one.address for one in gpus)
    each = f", {rehearsal.times} times" if rehearsal.times > 1 else ""
    first = (
        f"the monitor on {names} shows nothing of the host for some"
        f" {rehearsal.seconds + 3:.0f} s{each};"
        if shown
        else f"nothing changes on a monitor; {names} is away for {rehearsal.seconds:.0f} s{each};"
    )
    services = [name for step in plan.steps if step.undo for name in step.undo.services]
    ends = f"{' and '.join(services)} ends first, and what runs in it; " if services else ""
    until = ownership.clock_time(rehearsal.until)
    last = (
        f"at {until} it is off and everything is back at the latest, even if this terminal or this"
        f" program is gone by then, unless `vfio-console-hook keep {rehearsal.vm}` was run"
        if arguments.start
        else f"at {until} everything is back at the latest, even if this terminal or this program"
        " is gone by then"
    )
    lines: tuple[str, ...] = (
        f"{first} {ends}ssh goes on, and Ctrl-C here gives all back at once",
        f"afterwards: {plan.after}",
        last,
    )
    if rehearsal.untried:
        lines = (*lines, f"the GPU's memory cannot be mapped as QEMU does: {rehearsal.untried}")
    return "".join(terminal.wrapped(line, "  ") for line in lines)


def _agreed(arguments: argparse.Namespace) -> bool:
    if arguments.yes:
        return True
    if arguments.json or not sys.stdin.isatty():
        raise HookError("there is no terminal to ask on", hint="say --yes")
    return progress.ask("rehearse this now?")


COMMAND = Command(
    "rehearse",
    "try what a VM's start and stop do here, without the VM",
    "vfio-console-hook rehearse win11",
    _options,
    _run,
    changes=True,
)
