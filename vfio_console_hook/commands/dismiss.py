"""dismiss: hide what could not be given back, once a person knows of it."""

from __future__ import annotations

import argparse
import shlex

from ..claims import losses
from ..claims.losses import Loss
from ..errors import HookError
from ..machine import pci
from ..machine.host import Host
from .command import Command
from .progress import say


def line(vm: str) -> str:
    """What a person types to dismiss the losses of a VM, or of a `take`."""
    return f"vfio-console-hook dismiss {shlex.quote(vm)}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="the name or uuid of a VM, or the PCI address of a GPU; without it, all losses",
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    known = losses.current(host)
    chosen = [one for one in known if not arguments.what or _is_meant(one, arguments.what)]
    for what in arguments.what:
        if not any(_is_meant(one, [what]) for one in known):
            raise HookError(
                f"nothing was lost of {what}", hint="`vfio-console-hook status` lists the losses"
            )
    losses.forget(host, chosen)
    for one in chosen:
        say(f"dismissed: {one.vm}: {one.text}")
    if not chosen:
        say("nothing to dismiss: nothing was lost, or all of it is back")
    return 0


def _is_meant(one: Loss, words: list[str]) -> bool:
    names = {one.vm, one.uuid, one.step.gpu}
    return any(word in names or pci.full_address(word) in names for word in words)


COMMAND = Command(
    "dismiss",
    "hide what could not be given back after a VM",
    "vfio-console-hook dismiss win11",
    _options,
    _run,
    changes=True,
)
