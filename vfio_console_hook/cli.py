"""The command `vfio-console-hook`: what people run to see, and to mend.

Exit status: 0 done, 1 refused or failed, 2 wrong usage or nothing to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Sequence

from . import (
    __version__,
    config,
    console,
    domain,
    events,
    gpu,
    ownership,
    recorded,
    recorder,
    recovery,
    report,
    worker,
)
from .errors import BugError, HookError, StuckError
from .host import Host
from .journal import Journal
from .log import Log

# Even a look at console state can block for ever, when a driver holds the console lock.
_LOOK_S = 30.0

# Makes the uuid of what is taken by hand from its addresses.
_BY_HAND = uuid.UUID("5d3c1c1e-6a8e-4f0e-9a55-1f1f7c0e6b0a")

_EPILOG = """examples:
  virsh dumpxml win11 | vfio-console-hook plan --xml -
  vfio-console-hook status
"""


def main(argv: Sequence[str] | None = None, host: Host | None = None) -> int:
    """Run one command; its exit status. host stands in for this machine in tests."""
    arguments = _parser().parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            return int(arguments.act(host or _host(arguments.root, stack), arguments))
    except HookError as error:
        if isinstance(error, BugError):
            print(error.trace, file=sys.stderr)
        print(f"vfio-console-hook: {error.text}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on; that is no failure to tell
    except Exception as error:
        print(BugError.of(error).trace, file=sys.stderr)
        print("vfio-console-hook: this is a bug, please report it", file=sys.stderr)
    return 1


def _host(root: str | None, stack: contextlib.ExitStack) -> Host:
    """This machine, or a recorded one: a file that `record` wrote, or a directory."""
    if root is None:
        return Host()
    if os.path.isdir(root):
        return recorded.RecordedHost(root)
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    return recorded.unpack(_read(root).decode(errors="replace"), directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfio-console-hook",
        description="Free a GPU from the host's console before a VM takes it, and give it back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--root", metavar="FILE", help="look at a recorded machine, not this one")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    plan = commands.add_parser("plan", help="what prepare would do for a VM, and why")
    plan.add_argument("--xml", metavar="FILE", required=True, help="its domain XML, - for stdin")
    plan.set_defaults(act=_plan)
    status = commands.add_parser("status", help="which VM holds what, and how to undo it by hand")
    status.set_defaults(act=_status)
    recover = commands.add_parser("recover", help="give back what VMs hold that do not run")
    recover.add_argument("--force", action="store_true", help="do not ask libvirt if they run")
    recover.add_argument(
        "--wait", metavar="S", type=float, default=10, help="seconds to wait for libvirt and hooks"
    )
    recover.set_defaults(act=_recover)
    take = commands.add_parser("take", help="free GPUs by hand, for what calls no libvirt hook")
    take.add_argument("address", nargs="+", type=_address, help="PCI address, such as 01:00.0")
    take.add_argument("--vfio", action="store_true", help="and bind them to vfio-pci")
    take.set_defaults(act=_take)
    give = commands.add_parser("give", help="give back GPUs that were taken by hand")
    give.add_argument("address", nargs="+", type=_address)
    give.set_defaults(act=_give)
    check = commands.add_parser("check-config", help="read the configuration of a VM")
    check.add_argument("vm", nargs="?", default="", help="its name or uuid")
    check.set_defaults(act=_check_config)
    record = commands.add_parser("record", help="write this machine down for a bug report")
    record.add_argument("file", metavar="FILE")
    record.set_defaults(act=_record)
    return parser


def _plan(host: Host, arguments: argparse.Namespace) -> int:
    parsed = domain.parse(_read(arguments.xml))
    settings = config.load(host, parsed.name, parsed.uuid)

    def look() -> str:
        leaving, steps = events.look(host, parsed, settings)
        return report.plan(host, parsed, leaving, steps) if leaving.gpus else ""

    try:
        text = worker.run(look, _LOOK_S)
    except HookError as error:
        if not isinstance(error, StuckError):
            print(worker.run(lambda: report.gpus(host, parsed), _LOOK_S), end="")
        raise
    print(text or f"{parsed.name} has no GPU of this host: nothing to do\n", end="")
    return 0 if text else 2


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise HookError(f"cannot read {path}: {error.strerror}") from error


def _status(host: Host, arguments: argparse.Namespace) -> int:
    print(worker.run(lambda: report.status(host), _LOOK_S), end="")
    return 0


def _print_consoles(host: Host) -> None:
    where = worker.run(lambda: console.drawing(host), _LOOK_S)
    print(f"the host's consoles: {where}")


def _recover(host: Host, arguments: argparse.Namespace) -> int:
    settled = recovery.recover(host, _say, force=arguments.force, wait_s=arguments.wait)
    _print_consoles(host)
    return 0 if settled else 1


def _say(line: str) -> None:
    print(line, flush=True)


def _address(text: str) -> str:
    """A PCI address as the kernel writes it, of what a person typed."""
    parts = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text} is not a PCI address, such as 0000:01:00.0")
    return f"{parts[1] or '0000'}:{parts[2]}"


def _take(host: Host, arguments: argparse.Namespace) -> int:
    """Prepare GPUs for a person: the same steps, record and guarantees as for a VM."""
    addresses = tuple(dict.fromkeys(arguments.address))
    name = " ".join(addresses)
    own = str(uuid.uuid5(_BY_HAND, name))
    if Journal(host).find(own) is not None:
        raise HookError(f"{name} is taken by hand already", hint="see `vfio-console-hook status`")
    hostdevs = tuple(domain.Hostdev(one, True, "take", 0) for one in addresses)
    taker = domain.Domain(name, own, hostdevs, by_hand=True, bind_vfio=arguments.vfio)
    for address in addresses:
        if gpu.display_class(host, address) is None:
            raise HookError(f"{address} is no GPU", hint="compare with `lspci -D`")
    settings = config.load(host, name, own)
    log = Log(host, name, settings.log_level)
    run = worker.Deadline(settings.timeout_s).run_but_spare
    events.prepare(host, taker, settings, log, run)
    print(f"took {name}; give it back with `vfio-console-hook give {addresses[0]}`")
    _print_consoles(host)
    return 0


def _give(host: Host, arguments: argparse.Namespace) -> int:
    taken = [one for one in Journal(host).records() if one.by_hand]
    for address in arguments.address:
        if not any(address in one.gpus for one in taken):
            raise HookError(
                f"{address} was not taken by hand", hint="see `vfio-console-hook status`"
            )
    for record in taken:
        if set(record.gpus) & set(arguments.address):
            busy = ownership.in_use(host, record)
            if busy:
                raise HookError(f"{record.name} cannot be given back: {busy}")
            print(recovery.give_back(host, record))
    _print_consoles(host)
    return 0


def _check_config(host: Host, arguments: argparse.Namespace) -> int:
    import yaml

    settings = config.load(host, arguments.vm, arguments.vm)
    plain = {key: _plain(value) for key, value in vars(settings).items()}
    print(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None), end="")
    return 0


def _plain(value: object) -> object:
    """A value of the configuration as it is written in YAML."""
    if isinstance(value, config.Service):
        if not value.stop:
            return value.name
        return {
            key: words if key == "name" else " ".join(words) for key, words in vars(value).items()
        }
    if isinstance(value, config.Holders):
        return {key: _plain(one) for key, one in vars(value).items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _record(host: Host, arguments: argparse.Namespace) -> int:
    text = worker.run(lambda: recorder.record(host), _LOOK_S)
    try:
        with open(arguments.file, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HookError(f"cannot write {arguments.file}: {error.strerror}") from error
    print(f"wrote {len(text.splitlines())} lines to {arguments.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
