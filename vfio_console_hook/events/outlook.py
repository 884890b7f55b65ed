"""What release will be able to give back: a clause for people."""

from __future__ import annotations

from ..actions.firmware import CONSOLES_BACK
from ..claims.step import Step
from ..machine.host import Host
from ..stages import load
from ..stages.handover import Handover


def outlook(handover: Handover, steps: tuple[Step, ...]) -> str:
    """What release can give back on this kernel, and starts again: a clause for people."""
    undos = [step.undo for step in reversed(steps) if step.undo]
    names = [name for undo in undos for name in undo.services]
    again = f"; {' and '.join(names)} {'starts' if len(names) == 1 else 'start'} again"
    return _consoles_back(handover, steps) + (again if names else "")


def after_vm(host: Host, handover: Handover, steps: tuple[Step, ...]) -> str:
    """The same, with what would give back a console that is lost. Raises HostError."""
    # A driver that prepare binds shows the console instead.
    lost = any(step.loses and not (step.do and step.do.kind == "bind-native") for step in steps)
    advice = load.advice(host, handover) if lost else ""
    return outlook(handover, steps) + (f"; {advice}" if advice else "")


def _consoles_back(handover: Handover, steps: tuple[Step, ...]) -> str:
    done = {step.do.kind for step in steps if step.do}
    undone = {step.undo.kind for step in steps if step.undo}
    losses = [step.loses for step in steps if step.loses]
    if losses and any(step.undo and step.stage == load.NAME for step in steps):
        from ..actions.device import LoadNative
        from ..machine import modules

        loads = [step.undo.module for step in steps if isinstance(step.undo, LoadNative)]
        comes = "may come" if modules.NVIDIA_DRM in loads else "comes"
        return f"the console {comes} back with {' and '.join(loads)}, which release loads"
    if losses:
        return "; ".join(dict.fromkeys(losses))
    undos = (step.undo for step in steps if step.undo and step.undo.kind in CONSOLES_BACK)
    back = [str(vars(undo)["device"]) for undo in undos]
    if back:
        return f"the firmware console comes back on {' and '.join(back)}"
    shown = {step.gpu for step in steps if step.undo and step.undo.kind == "show-consoles"}
    native = [str(one.driver) for one in handover.gpus if one.native and one.address in shown]
    if native:
        return f"the console comes back with {' and '.join(dict.fromkeys(native))}"
    if "leave-framebuffers" in done:
        return "the consoles are where they are now, on a framebuffer that stays"
    if "quiet-text" in undone:
        return "the text console comes back"
    if shown:
        return "the host's console comes back only if a driver takes the GPU again"
    if handover.waits_for_text:
        return "the consoles are not drawn yet, and stay so until the first text"
    return _nothing_back(handover)


def _nothing_back(handover: Handover) -> str:
    if not any(one.displays for one in handover.gpus):
        drivers = [*dict.fromkeys(str(one.driver) for one in handover.gpus if one.native)]
        if drivers:
            return f"{' and '.join(drivers)} {'come' if drivers[1:] else 'comes'} back"
        return "there is nothing to give back"
    return "there is nothing to give back: no console of the host is on it"
