"""dismiss: hide what was refused or could not be given back, once a person knows of it."""

from __future__ import annotations

import argparse
import shlex

from ..claims import history, losses
from ..claims.histories import History, histories
from ..claims.losses import Loss
from ..errors import HookError
from ..machine import pci
from ..machine.host import Host
from .command import Command
from .progress import say


def line(vm: str) -> str:
    """What a person types to dismiss what is shown of a VM, or of a `take`."""
    return f"vfio-console-hook dismiss {shlex.quote(vm)}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="the name or uuid of a VM, or the PCI address of a GPU; without it, all that is shown",
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    lost = losses.current(host)
    refused = [one for one in histories(host) if one.refusal is not None]
    for what in arguments.what:
        names = [*map(_names_of_loss, lost), *map(_names_of_vm, refused)]
        if not any(_is_meant(one, [what]) for one in names):
            raise HookError(
                f"nothing was refused or lost of {what}",
                hint="`vfio-console-hook status` lists what was",
            )
    gone = [one for one in lost if _is_meant(_names_of_loss(one), arguments.what)]
    hidden = [one for one in refused if _is_meant(_names_of_vm(one), arguments.what)]
    losses.forget(host, gone)
    for loss in gone:
        say(f"dismissed: {loss.vm}: {loss.text}")
    for vm in hidden:
        history.dismiss_refusal(host, vm.uuid)
        say(f"dismissed: {vm.vm}: {vm.refusal.text if vm.refusal else ''}")
    unseen = history.update_notices(host)
    if unseen:
        raise HookError(unseen)
    if not (gone or hidden):
        say("nothing to dismiss: nothing was refused or lost, or all of it is back")
    return 0


def _names_of_loss(one: Loss) -> set[str]:
    return {one.vm, one.uuid, one.step.gpu}


def _names_of_vm(one: History) -> set[str]:
    return {one.vm, one.uuid}


def _is_meant(names: set[str], words: list[str]) -> bool:
    """Whether one of the words, if there are any, is one of the names."""
    return not words or any(word in names or pci.full_address(word) in names for word in words)


COMMAND = Command(
    "dismiss",
    "hide what was refused, or not given back after a VM",
    "vfio-console-hook dismiss win11",
    _options,
    _run,
    changes=True,
)
