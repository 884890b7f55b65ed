"""The command `vfio-console-hook`: what people run to see, and to mend.

Exit status: 0 done, 1 refused or failed, 2 wrong usage or nothing to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence

from . import __version__, config, console, domain, events, recorded, recorder, report, worker
from .errors import BugError, HookError
from .host import Host
from .journal import Journal
from .log import Log

_EPILOG = """examples:
  virsh dumpxml win11 | vfio-console-hook plan --xml -
  vfio-console-hook status
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            return int(arguments.act(_host(arguments.root, stack), arguments))
    except HookError as error:
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
    recover.set_defaults(act=_recover)
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
    try:
        leaving, steps = events.look(host, parsed, settings)
    except HookError:
        print(report.gpus(host, parsed), end="")
        raise
    if not leaving.gpus:
        print(f"{parsed.name} has no GPU of this host: nothing to do")
        return 2
    print(report.plan(host, parsed, leaving, steps), end="")
    return 0


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise HookError(f"cannot read {path}: {error.strerror}") from error


def _status(host: Host, arguments: argparse.Namespace) -> int:
    print(report.status(host), end="")
    return 0


def _recover(host: Host, arguments: argparse.Namespace) -> int:
    journal = Journal(host)
    failed = False
    for uuid in journal.uuids():
        try:
            print(_give_back(host, journal, uuid, arguments.force))
        except HookError as error:
            failed = True
            print(f"{uuid}: {error}", file=sys.stderr)
    print(f"the host's consoles: {console.drawing(host)}")
    return 1 if failed else 0


def _give_back(host: Host, journal: Journal, uuid: str, force: bool) -> str:
    """Give back what a VM holds that does not run; what became of it. Raises HookError."""
    record = journal.find(uuid)
    if record is None:
        return f"{uuid}: gave it back itself meanwhile"
    busy = events.in_use(host, record)
    if not busy and not force and not _inactive(host, uuid):
        busy = "libvirt does not say that it is shut off (--force if you know that it is)"
    if busy:
        return f"{record.name}: left alone, {busy}"
    log = Log(host, record.name)
    worker.run(lambda: events.give_back(host, record, log), config.Config().timeout_s)
    return f"{record.name}: gave back {', '.join(record.gpus)}"


def _inactive(host: Host, uuid: str) -> bool:
    """Whether libvirt says that the VM does not run.

    Between prepare and the start of QEMU nothing else shows that a VM is starting.
    The deadline is for a daemon that is busy with a hook.
    """
    virsh = ("/usr/bin/virsh", "-c", "qemu:///system", "-r")
    try:
        running = host.run(*virsh, "list", "--uuid", timeout_s=10).split()
    except HookError:
        return False
    return uuid not in running


def _check_config(host: Host, arguments: argparse.Namespace) -> int:
    import yaml

    settings = vars(config.load(host, arguments.vm, arguments.vm))
    plain = {key: list(one) if isinstance(one, tuple) else one for key, one in settings.items()}
    plain["holders"] = vars(settings["holders"])
    print(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None), end="")
    return 0


def _record(host: Host, arguments: argparse.Namespace) -> int:
    text = recorder.record(host)
    try:
        with open(arguments.file, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HookError(f"cannot write {arguments.file}: {error.strerror}") from error
    print(f"wrote {len(text.splitlines())} lines to {arguments.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
