"""plan: what prepare would do for a VM, and why."""

from __future__ import annotations

import argparse
import json
import sys

from ... import domain
from ...config import load
from ...domain import Domain
from ...machine import worker
from ...machine.host import Host
from .. import files, vms
from ..command import Command
from ..terminal import Terminal
from . import plan as planning

_STATUS = {planning.START: 0, planning.REFUSE: 1, planning.NOTHING: 2}


def _options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("vm", metavar="VM", nargs="?", help="its name or uuid, known to libvirt")
    which.add_argument("--xml", metavar="FILE", help="its domain XML instead, - for stdin")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--svg", metavar="FILE", help="draw the GPUs' memory before and after")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    parsed, has = _vm(host, arguments)
    settings = load.configuration(host, parsed.name, parsed.uuid)
    terminal = Terminal.of(sys.stdout)

    def look() -> str:
        from . import drawing, text

        made = planning.make(host, parsed, settings, has)
        title = f"VM {made.vm}"
        return json.dumps({
            "status": _STATUS[made.verdict],
            "text": json.dumps(made.to_json(), indent=2) + "\n"
            if arguments.json
            else text.text(made, terminal),
            "svg": drawing.picture(title, made.gpus, made.gpus_after) if arguments.svg else "",
        })  # fmt: skip

    told = json.loads(worker.look(look))
    print(told["text"], end="", flush=True)
    if arguments.svg:
        files.write(arguments.svg, told["svg"])
        print(f"wrote {arguments.svg}", file=sys.stderr if arguments.json else sys.stdout)
    return int(told["status"])


def _vm(host: Host, arguments: argparse.Namespace) -> tuple[Domain, frozenset[str]]:
    """The VM that is meant, and the addresses of what it has now, as far as that is known."""
    if arguments.xml is not None:
        return domain.parse(files.read(arguments.xml)), frozenset()
    vm = vms.find(host, arguments.connect, arguments.vm)
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
