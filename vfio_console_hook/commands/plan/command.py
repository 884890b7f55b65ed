"""plan: what prepare would do for a VM, and why."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from ... import domain
from ...config import load
from ...domain import Domain
from ...errors import HookError
from ...machine import libvirtd, pci, worker
from ...machine.host import Host
from .. import files, take, vms
from ..command import Command
from ..doctor import areas
from ..doctor.system import System
from ..terminal import Terminal
from . import plan as planning

_STATUS = {planning.START: 0, planning.REFUSE: 1, planning.NOTHING: 2}


def _options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "vm",
        metavar="VM",
        nargs="?",
        help="the name or uuid of a VM that libvirt knows, or a GPU's PCI address: what"
        " `take --vfio` would do",
    )
    which.add_argument("--xml", metavar="FILE", help="read its domain XML from a file, - for stdin")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--svg", metavar="FILE", help="draw a picture of the GPUs' memory before and after"
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    parsed, assigned = _vm(host, arguments)
    configured_as = parsed.configured_as or parsed.name
    settings = load.configuration(host, configured_as, parsed.uuid, by_hand=parsed.by_hand)
    terminal = Terminal.for_stream(sys.stdout)

    def output() -> str:
        from . import drawing, text

        session = libvirtd.is_session(arguments.connect) and not parsed.by_hand
        plan = planning.plan_for(host, parsed, settings, assigned, session=session)
        plan = _unless_not_run(host, plan)
        as_json = json.dumps(plan.to_json(), indent=2) + "\n"
        picture = drawing.picture(text.heading(plan), plan.gpus, plan.gpus_after)
        return json.dumps({
            "status": _STATUS[planning.REFUSE if plan.unless else plan.verdict],
            "text": as_json if arguments.json else text.text(plan, terminal),
            "svg": picture if arguments.svg else "",
        })  # fmt: skip

    answer = json.loads(worker.look(output))
    print(answer["text"], end="", flush=True)
    if arguments.svg:
        files.write(arguments.svg, answer["svg"])
        print(f"wrote {arguments.svg}", file=sys.stderr if arguments.json else sys.stdout)
    return int(answer["status"])


def _unless_not_run(host: Host, plan: planning.Plan) -> planning.Plan:
    """The plan with the reason why libvirt may not run the hook, if the VM depends on it.

    Nothing is known of a snapshot that has the machine alone.
    """
    if plan.by_hand or plan.verdict != planning.START or not plan.steps or not host.complete:
        return plan
    found = areas.why_not_run(System(host))
    return replace(plan, unless=found.text, unless_hint=found.advice) if found else plan


def _vm(host: Host, arguments: argparse.Namespace) -> tuple[Domain, frozenset[str]]:
    """The VM, and the addresses of the devices that libvirt has assigned to it now."""
    if arguments.xml is not None:
        return domain.parse(files.content(arguments.xml)), frozenset()
    address = pci.full_address(arguments.vm)
    if address is not None:
        return take.taker_of(host, (address,), vfio=True), frozenset()
    if host.complete and not libvirtd.is_here(host):
        raise HookError(
            f"there is no libvirt on this host that knows {arguments.vm}",
            hint="name the GPU instead: `vfio-console-hook plan ADDRESS`",
        )
    vm = vms.vm_named(host, arguments.connect, arguments.vm)
    live = domain.hostdev_addresses(_encoded(vm.live)) if vm.live else ()
    return domain.parse(_encoded(vm.xml)), frozenset(live)


def _encoded(xml: str) -> bytes:
    return xml.encode("utf-8", "surrogateescape")


COMMAND = Command(
    "plan",
    "what prepare would do for a VM, and why",
    "vfio-console-hook plan win11",
    _options,
    _run,
)
