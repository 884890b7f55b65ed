"""status: what each VM holds, what was refused, and how to undo it by hand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from ...claims.histories import History
from ...claims.losses import Loss
from ...claims.notices import LOGIN, SESSION
from ...log import printable
from ...machine import worker
from ...machine.host import Host
from .. import dismiss
from ..command import Command
from ..rehearse.last import LastRehearsal
from ..rehearse.rehearsal import Switch
from ..terminal import Terminal, moment
from . import metrics, overview
from .overview import HeldClaim, HeldStep, Overview

# A VM starts faster than that; only libvirt knows whether one hangs.
_LONG_START_S = 300
_PLACES = {LOGIN: "at login prompts", SESSION: "in the next desktop session"}
_BY_HAND = "there is no libvirt on this host: `take` and `give` free a GPU and give it back"


def _options(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--prometheus",
        action="store_true",
        help="print metrics for a .prom file in a node exporter's textfile directory",
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    form = _form(arguments)

    def look() -> str:
        found = overview.current(host)
        return f"{int(not found.in_order)}{form(found)}"

    answer = worker.look(look)
    print(answer[1:], end="")
    # Metrics matter most when something is wrong.
    return 0 if arguments.prometheus else int(answer[0])


def _form(arguments: argparse.Namespace) -> Callable[[Overview], str]:
    if arguments.json:
        return _json
    if arguments.prometheus:
        return metrics.text
    terminal = Terminal.for_stream(sys.stdout)
    return lambda found: status_text(found, terminal)


def _json(found: Overview) -> str:
    return json.dumps(overview.to_json(found), indent=2) + "\n"


def status_text(found: Overview, terminal: Terminal) -> str:
    """All of it as text: the claims first, the last event at the end."""
    text = ""
    if found.unseen:
        text += terminal.wrapped(found.unseen, "  ")
    for one in found.unreadable:
        text += terminal.wrapped(one, "  ")
    refusals = {one.uuid: one for one in found.histories if one.refusal}
    for claim in found.claims:
        text += _claim_text(claim, found.time, terminal)
        history = refusals.pop(claim.uuid, None)
        text += _refusal(history, "  ", "", terminal) if history else ""
        text += "\n"
    text = text or ("no VM holds a GPU\n" if found.libvirt else "no GPU is taken\n")
    text += _losses(found.lost, terminal)
    text += "".join(_unclaimed(address, terminal) for address in found.unclaimed)
    text += terminal.wrapped(f"the host's consoles: {_consoles(found)}", "  ")
    if not found.libvirt:
        text += terminal.wrapped(_BY_HAND, "  ")
    for history in refusals.values():
        text += _refusal(history, "", f" of {printable(history.vm)}", terminal)
    text += "".join(_switch(one, terminal) for one in found.switches)
    text += "".join(_rehearsal(one, terminal) for one in found.rehearsals)
    return text + _last(found, terminal)


def _claim_text(one: HeldClaim, now: float, terminal: Terminal) -> str:
    who = "a person" if one.by_hand else f"VM {printable(one.vm)}"
    if one.until:
        who = f"a rehearsal of {printable(one.vm)}"
    text = terminal.wrapped(f"{who} holds {', '.join(one.gpus)}", "  ")
    text = text.replace(who, terminal.paint(who, "bold"), 1)
    until = f", given back by {moment(one.until)}" if one.until and one.hook else ""
    text += f"  {one.phase}; held since {moment(one.since)} ({_long(now - one.since)}){until}\n"
    text += "" if one.by_hand else f"  uuid {one.uuid}\n"
    if one.hook:
        what = "rehearsal" if one.until else "hook"
        text += f"  its {what} is running (process {one.hook})\n"
    text += _warned(_advice(one, now), terminal)
    return text if one.stale else text + _steps(one, terminal)


def _warned(text: str, terminal: Terminal) -> str:
    if not text:
        return ""
    return terminal.paint(terminal.wrapped(f"  {text}", "    ").rstrip("\n"), "yellow") + "\n"


def _advice(one: HeldClaim, now: float) -> str:
    if one.stale:
        return (
            "nothing is held any more since the reboot: `vfio-console-hook recover` removes the"
            " claim"
        )
    if one.stuck:
        return (
            f"stuck: {one.stuck}. Run `vfio-console-hook recover`, with --force if libvirt does not"
            " answer; if the kernel is stuck, only a reboot helps"
        )
    if one.phase == overview.GIVEN_IN_PART:
        return "the rest is still held: fix the cause, then run `vfio-console-hook recover`"
    if one.phase == "starting" and now - one.since > _LONG_START_S:
        return "if it is neither running nor starting, run `vfio-console-hook recover`"
    return ""


def _steps(one: HeldClaim, terminal: Terminal) -> str:
    text = "  done for it:\n" if one.steps else "  nothing had to be done for it\n"
    for number, step in enumerate(one.steps, 1):
        text += terminal.wrapped(f"  {number:2}. {_past(step)}", "      ")
    for lost in one.lost:
        text += _warned(f"cannot be undone: {lost}", terminal)
    for losing in one.losing:
        text += _warned(losing, terminal)
    if one.undo:
        text += terminal.wrapped(f"  {_undone_by(one)}; by hand, once the VM is off:", "  ")
        # A shell line is never wrapped: people copy it.
        text += "".join(f"    {line}\n" for line in one.undo)
    return text


def _past(step: HeldStep) -> str:
    # Without a reason of its own, or without an undo, such as a wait, the past is enough.
    why = "" if step.past == step.why or not step.undo else f": {step.why}"
    return {
        "begun": f"begun, possibly not done: {step.past}{why}",
        "done": f"{step.past}{why}",
        "undone": f"{step.past}, since undone",
    }[step.state]


def _undone_by(one: HeldClaim) -> str:
    if one.until:
        return "the rehearsal undoes it" if one.hook else "`vfio-console-hook recover` undoes it"
    if one.by_hand:
        return f"`vfio-console-hook give {one.gpus[0]}` undoes it"
    return "release undoes it when the VM ends"


def _refusal(history: History, indent: str, whose: str, terminal: Terminal) -> str:
    refusal = history.refusal
    if refusal is None:
        return ""
    what = "refusal" if refusal.prevents_start else "failure"
    head = f"{indent}last {what}{whose}: "
    text = terminal.wrapped(
        f"{head}{moment(refusal.time)} {refusal.event}: {refusal.text}", indent + "  "
    ).replace(head, terminal.paint(head, "yellow"), 1)
    if refusal.hint:
        text += terminal.wrapped(f"{indent}  hint: {refusal.hint}", indent + "  ")
    if refusal.places and history.done_since is None:
        places = " and ".join(_PLACES[one] for one in refusal.places if one in _PLACES)
        until = "until the VM starts" if refusal.prevents_start else "until all is given back"
        until += f", or until `{printable(dismiss.line(history.vm))}`"
        text += terminal.wrapped(f"{indent}  shown {places} {until}", indent + "  ")
    return text


def _losses(lost: tuple[Loss, ...], terminal: Terminal) -> str:
    """What could not be given back after each VM, and what to do about it."""
    text = ""
    for vm in dict.fromkeys(one.vm for one in lost):
        mine = [one for one in lost if one.vm == vm]
        head = f"lost after {printable(vm)}"
        text += f"{terminal.paint(head, 'yellow')} ({moment(mine[0].time)}):\n"
        for one in mine:
            text += terminal.wrapped(f"  {one.text}", "    ")
            if one.hint:
                text += terminal.wrapped(f"    hint: {one.hint}", "    ")
            elif one.by_hand:
                text += f"    by hand: {one.by_hand}\n"
        until = f"until it is back, or until `{printable(dismiss.line(vm))}`"
        text += terminal.wrapped(f"  listed {until}", "    ")
    return text


def _unclaimed(address: str, terminal: Terminal) -> str:
    return terminal.wrapped(
        f"{address} is on vfio-pci, but not through this hook: libvirt runs no hook when a"
        " GPU is hotplugged, and a GPU may have been bound by hand or at boot; `take` and `give`"
        " do the same as the hook by hand",
        "  ",
    )


def _switch(one: Switch, terminal: Terminal) -> str:
    vm = printable(one.vm)
    keep = f"unless `vfio-console-hook keep {vm}` is run"
    return _warned(f"a rehearsal has started {vm}: destroyed by {moment(one.at)}, {keep}", terminal)


def _rehearsal(one: LastRehearsal, terminal: Terminal) -> str:
    """How the last rehearsal of a VM ended, and whether it still says something."""
    how = "all was as plan had said" if one.agrees else f"not as plan had said: {one.why}"
    seen = {"yes": "a person could read the console", "no": "the monitor stayed dark"}
    how += f"; {seen.get(one.eye, 'no person looked at the monitor')}"
    text = f"last rehearsal of {one.vm}: {moment(one.time)}: {how}"
    if not one.changed:
        return terminal.wrapped(text, "  ")
    since = f"since then {' and '.join(one.changed)} changed: rehearse it again"
    return terminal.wrapped(text, "  ") + _warned(since, terminal)


def _consoles(found: Overview) -> str:
    # Without a console driver the kernel has no virtual terminals that could be shown.
    dark = found.vtconsoles and not found.console_alive
    return found.drawing + (", so no monitor shows them" if dark else "")


def _last(found: Overview, terminal: Terminal) -> str:
    if found.last is None:
        return ""
    history, event = found.last
    how = f"failed: {event.failure}" if event.failure else "done"
    if event.failure and history.refusal and history.refusal.time == event.time:
        how = "failed, see above"
    return terminal.wrapped(
        f"last event: {moment(event.time)} ({_long(found.time - event.time)} ago)"
        f" {history.vm} {event.kind}: {how} ({_took(event.took_s)})",
        "  ",
    )


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _long(seconds: float) -> str:
    """A duration in its two largest units; "0 s" for one that is negative, by a clock set back."""
    left = max(int(seconds), 0)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        parts.append((left // size, unit))
        left %= size
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count or len(parts) == 1)


COMMAND = Command(
    "status",
    "which VM holds what, and how to undo it by hand",
    "vfio-console-hook status",
    _options,
    _run,
)
