"""A plan as text for a terminal."""

from __future__ import annotations

from ...claims.step import Step
from ...log import printable
from ..terminal import Terminal
from . import memory_map
from .plan import NOTHING, REFUSE, START, Device, Plan

_MAX_HOLDERS = 12


def text(plan: Plan, terminal: Terminal) -> str:
    """The GPUs and the processes that have them open, the steps, and the verdict."""
    if not plan.gpus:
        return _verdict(plan, terminal)
    lines = f"{heading(plan)}\n"
    lines += terminal.wrapped(plan.note, "  ") if plan.note else ""
    for device in plan.devices:
        lines += _device(device, terminal)
    for one in plan.left:
        on = f", on {one.driver}" if one.driver else ""
        which = f"{one.kind} (class {one.pci_class:04x}){on}"
        lines += terminal.wrapped(f"{one.address} is not assigned: {which}; {one.why}", "  ")
    if any(one.displays for one in plan.gpus):
        lines += terminal.wrapped(f"consoles: {plan.consoles}", "  ")
    lines += _holders(plan, terminal)
    steps = _steps(plan, terminal)
    if steps:
        lines += f"\n{steps}"
    lines += "\n" + _verdict(plan, terminal)
    if plan.after:
        lines += terminal.wrapped(f"after the VM: {plan.after}", "  ")
    return lines


def _device(device: Device, terminal: Terminal) -> str:
    one, which = device.gpu, f"{device.kind} (class {device.pci_class:04x})"
    if one is None:
        return terminal.wrapped(f"{device.address} is assigned too: {which}", "  ")
    driver = f"driven by {one.driver}" if one.driver else "no driver of its own"
    lines = terminal.wrapped(f"GPU {device.address}  {which}, {driver}", "  ")
    marks = [f"assigned by the {device.origin}"]
    marks += [f"framebuffer {', '.join(one.framebuffers)}"] if one.framebuffers else []
    marks += ["a virtual function"] if one.virtual else []
    return lines + terminal.wrapped(f"  {'; '.join(marks)}", "  ") + memory_map.text(one, terminal)


def _holders(plan: Plan, terminal: Terminal) -> str:
    if not plan.holders:
        return "processes that have it open now: none\n"
    lines = "processes that have it open now:\n"
    for one in plan.holders[:_MAX_HOLDERS]:
        becomes = f": {one.becomes}" if one.becomes else ""
        lines += terminal.wrapped(f"  {one.holder}{becomes}", "    ")
    more = len(plan.holders) - _MAX_HOLDERS
    return lines + (f"  and {more} more\n" if more > 0 else "")


def _steps(plan: Plan, terminal: Terminal) -> str:
    if not plan.steps:
        return "before the VM: nothing to do\n" if plan.verdict == START else ""
    several = len(plan.gpus) > 1
    lines = (_step(n, step, several, terminal) for n, step in enumerate(plan.steps, start=1))
    return "before the VM:\n" + "".join(lines)


def _step(number: int, step: Step, several: bool, terminal: Terminal) -> str:
    gpu = f" {step.gpu}" if several else ""
    lines = terminal.wrapped(f"{number:2}. {step.stage}{gpu}: {step.why}", "    ")
    # A shell line is never wrapped: people copy it.
    return lines + (f"    {step.do.shell()}\n" if step.do else "")


def heading(plan: Plan) -> str:
    """Who gets the GPUs: a VM, or a person with `take`."""
    return f"{'take --vfio' if plan.by_hand else 'VM'} {printable(plan.vm)}"


def _verdict(plan: Plan, terminal: Terminal) -> str:
    """Whether the VM would start, or the GPU be taken, with the reason and a hint if not."""
    verdict, colour = "it would be taken" if plan.by_hand else "the VM would start", "green"
    if plan.verdict == REFUSE:
        who = "take" if plan.by_hand else "the VM"
        verdict, colour = f"{who} would be refused", "red"
    elif plan.verdict == NOTHING:
        verdict, colour = "nothing to do", "bold"
    elif plan.unless:
        verdict, colour = "the VM would start if libvirt ran the hook", "red"
    elif plan.reason:
        verdict, colour = "the VM would start anyway (on_failure: start)", "yellow"
    reason, hint = plan.unless or plan.reason, plan.unless_hint or plan.hint
    text = f"{verdict}{', but ' if plan.unless else ': '}{reason}" if reason else verdict
    # Coloured after it is wrapped, because colours take no columns.
    lines = terminal.wrapped(text, "  ").replace(verdict, terminal.paint(verdict, colour), 1)
    return lines + (terminal.wrapped(f"hint: {hint}", "  ") if hint else "")
