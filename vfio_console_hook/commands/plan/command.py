"""plan: what prepare would do for a VM, and why."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from ... import domain
from ...config import load
from ...domain import Domain
from ...machine import libvirtd, worker
from ...machine.host import Host
from .. import files, vms
from ..command import Command
from ..doctor import areas
from ..doctor.system import System
from ..terminal import Terminal
from . import plan as planning

_STATUS = {planning.START: 0, planning.REFUSE: 1, planning.NOTHING: 2}


def _options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "vm", metavar="VM", nargs="?", help="the name or uuid of a VM that libvirt knows"
    )
    which.add_argument("--xml", metavar="FILE", help="read its domain XML from a file, - for stdin")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--svg", metavar="FILE", help="draw a picture of the GPUs' memory before and after"
    )


def _run(host: Host, arguments: argparse.Namespace) -> int:
    parsed, assigned = _vm(host, arguments)
    settings = load.configuration(host, parsed.name, parsed.uuid)
    terminal = Terminal.for_stream(sys.stdout)

    def output() -> str:
        from . import drawing, text

        session = libvirtd.is_session(arguments.connect)
        plan = planning.plan_for(host, parsed, settings, assigned, session=session)
        plan = _unless_not_run(host, plan)
        as_json = json.dumps(plan.to_json(), indent=2) + "\n"
        picture = drawing.picture(f"VM {plan.vm}", plan.gpus, plan.gpus_after)
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
    if plan.verdict != planning.START or not plan.steps or not host.complete:
        return plan
    found = areas.why_not_run(System(host))
    return replace(plan, unless=found.text, unless_hint=found.advice) if found else plan


def _vm(host: Host, arguments: argparse.Namespace) -> tuple[Domain, frozenset[str]]:
    """The VM, and the addresses of the devices that libvirt has assigned to it now."""
    if arguments.xml is not None:
        return domain.parse(files.content(arguments.xml)), frozenset()
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
