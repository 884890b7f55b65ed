"""on_refusal: the administrator's command for a VM that is refused, or of which not all came back.

Only loaded where that has happened. Nothing waits for the command, and nothing depends on it.
"""

from __future__ import annotations

from ..config import load
from ..errors import HookError, cut
from ..log import LONGEST, Log, printable
from ..machine import worker

_DEADLINE_S = 60
_ENVIRONMENT = "VFIO_CONSOLE_HOOK_"


def run(command: str, log: Log, error: HookError) -> None:
    """Start the command of a VM's configuration, with the error of an event, and go on.

    log knows the VM and the event. Its standard input is a text for people; the environment
    has the parts. Each is one line, whatever the VM's name is.
    """
    facts = {
        "VM": log.vm, "UUID": log.uuid, "EVENT": log.phase, "GPUS": " ".join(log.gpus),
        "REASON": error.text, "HINT": error.hint,
    }  # fmt: skip
    facts = {name: printable(cut(text, LONGEST)) for name, text in facts.items()}
    what = "not all was given back after it" if log.phase == "release" else "it was not started"
    text = f"VM {facts['VM']}: {what}: {facts['REASON']}\n"
    text += f"hint: {facts['HINT']}\n" if error.hint else ""
    environment = {f"{_ENVIRONMENT}{name}": value for name, value in facts.items()}
    words = command.split()

    def become() -> None:
        try:
            # Since prepare another user may have got hold of it.
            why = load.why_not_run(log.host, words[0])
            if why:
                raise HookError(f"{words[0]} is not run as root: {why}")
            log.host.become(*words, environment=environment, text=text, timeout_s=_DEADLINE_S)
        except HookError as failure:
            log.warning(f"on_refusal: {failure}")

    worker.detach(become)
