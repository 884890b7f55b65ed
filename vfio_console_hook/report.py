"""What the commands print: the GPUs, the plan and the claims, in words."""

from __future__ import annotations

import json
import textwrap
import time

from . import console, events, gpu
from .domain import Domain
from .errors import HookError, HostError
from .gpu import Gpu
from .host import Host
from .journal import STATUS, Journal, Record
from .stages import Leaving
from .step import Step

_KINDS = {0x0300: "VGA controller", 0x0302: "3D controller", 0x0380: "display controller"}


def gpus(host: Host, domain: Domain) -> str:
    """The GPUs of a VM as they are now; what cannot be known is left out."""
    try:
        found = gpu.find(host, tuple(hostdev.address for hostdev in domain.hostdevs))
    except HookError:
        return ""
    return "".join(_describe(one) for one in found)


def _describe(one: Gpu) -> str:
    kind = _KINDS.get(one.pci_class, "display device")
    driver = f"driven by {one.driver}" if one.driver else "no driver of its own"
    lines = [f"GPU {one.address}  {kind} (class {one.pci_class:04x}), {driver}"]
    for bar in one.bars:
        lines.append(f"  BAR {bar.number}  {bar.range}")
        inside = [claim for claim in one.claims if claim.bar == bar.number]
        lines += [f"    {claim.name:<12} {claim.range}" for claim in inside]
    if one.framebuffers:
        lines.append(f"  framebuffer {', '.join(one.framebuffers)}")
    return "\n".join(lines) + "\n"


def plan(host: Host, domain: Domain, leaving: Leaving, steps: tuple[Step, ...]) -> str:
    """The GPUs, the steps that prepare takes, and what release gives back."""
    lines = [f"VM {domain.name}"]
    text = "\n".join(lines) + "\n" + "".join(_describe(one) for one in leaving.gpus)
    text += f"consoles: {console.drawing(host)}\n\n"
    if not steps:
        text += "prepare has nothing to do\n"
    for number, step in enumerate(steps, start=1):
        whose = f" {step.gpu}" if len(leaving.gpus) > 1 else ""
        text += _wrapped(f"{number:2}. {step.stage}{whose}: {step.why}", "    ")
        # A shell line is never wrapped: people copy it.
        text += f"    {step.do.shell()}\n" if step.do else ""
        now = step.do.now(host) if step.do else ""
        text += _wrapped(f"    {now}", "    ") if now else ""
    return text + "\n" + _wrapped(f"after the VM: {events.prospect(leaving, steps)}", "  ")


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 79, subsequent_indent=indent, break_on_hyphens=False) + "\n"


def status(host: Host) -> str:
    """The claims, what is left to undo, the last event, and where the consoles are."""
    journal = Journal(host)
    text = ""
    try:
        uuids = journal.uuids()
    except HostError as error:
        return f"{error.text}; root may look at the claims\n" + _last(host)
    for uuid in uuids:
        try:
            record = journal.find(uuid)
        except HookError as error:
            text += f"{error}\n"
            continue
        text += _claim(record) if record else ""
    text = (text or "no VM holds a GPU\n") + _unknown_to_us(host, journal)
    return text + f"consoles: {console.drawing(host)}\n" + _last(host)


def _unknown_to_us(host: Host, journal: Journal) -> str:
    """GPUs on vfio-pci that no claim names: libvirt calls no hook when one is hot-plugged."""
    claimed = {address for record in journal.records() for address in record.gpus}
    return "".join(
        _wrapped(
            f"{address} is on vfio-pci, but not through this hook: libvirt calls none for a GPU"
            " that is plugged into a running VM or that was on vfio-pci before; `take` and `give`"
            " do the same by hand",
            "  ",
        )
        for address in gpu.displays(host)
        if gpu.is_vfio(host, address)
        and address not in claimed
        and not gpu.is_virtual(host, address)
    )


def _claim(record: Record) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.since))
    who = "a person" if record.by_hand else f"{record.name} ({record.uuid})"
    text = f"{who} holds {', '.join(record.gpus)} since {since}\n"
    for number, step in record.open_steps:
        if step.undo is not None:
            state = "done" if number in record.done else "begun"
            text += f"  {state}: {step.why}\n    undo by hand: {step.undo.shell()}\n"
    return text


def _last(host: Host) -> str:
    try:
        word = json.loads(host.read(STATUS) or "null")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(word["time"]))
        what = word["failure"] or "done"
        return f"last event: {when} {word['vm']} {word['event']}: {what}\n"
    except (HookError, ValueError, KeyError, TypeError):
        return ""
