"""The command `vfio-console-hook`: what people run to inspect and to repair.

Exit status: 0 done, 1 refused or failed, 2 wrong usage or nothing to do, 130 ended by
Ctrl-C. A command may define 0 to 2 more exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NoReturn

from . import __version__
from .commands import check_config, dismiss, files, give, keep, notify, record, recover, take
from .commands.doctor import command as doctor
from .commands.plan import command as plan
from .commands.rehearse import command as rehearse
from .commands.status import command as status
from .commands.terminal import complain
from .errors import BugError, HookError, nearest, understood
from .machine import libvirtd, snapshot, streams
from .machine.host import Host

NAME = "vfio-console-hook"

# In the order of --help: first those that change nothing.
COMMANDS = (
    plan.COMMAND,
    status.COMMAND,
    doctor.COMMAND,
    check_config.COMMAND,
    record.COMMAND,
    rehearse.COMMAND,
    keep.COMMAND,
    recover.COMMAND,
    dismiss.COMMAND,
    notify.COMMAND,
    take.COMMAND,
    give.COMMAND,
)
_INTERRUPTED = 130  # what a shell reports: 128 and the number of SIGINT


def main(argv: Sequence[str] | None = None, host: Host | None = None) -> int:
    """Run one command; returns the exit status. host replaces this machine in tests."""
    streams.complete()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name can hold bytes that no encoding knows.
        sys.stdout.reconfigure(errors="backslashreplace")
    ending: SystemExit | None = None
    try:
        status = _run(argv, host)
    except SystemExit as after_help_or_wrong_usage:
        ending = after_help_or_wrong_usage
    # Asked once: what could not be written may be gone after that.
    error = streams.unwritten()
    if error is None:
        if ending is not None:
            raise ending
        return status
    streams.give_up_stdout()
    if not isinstance(error, BrokenPipeError):  # a reader that has gone is not reported
        _print_error(f"{error.strerror}: not all could be written to stdout")
    return 1


def _run(argv: Sequence[str] | None, host: Host | None) -> int:
    try:
        arguments = parser().parse_args(argv)
        if arguments.changes and arguments.root is not None:
            _print_error(
                "this command changes a machine, and that of --root is only a record",
                "run it on the machine itself, without --root",
            )
            return 2
        with contextlib.ExitStack() as stack:
            return int(arguments.act(host or _machine(arguments.root, stack), arguments))
    except (HookError, ImportError) as error:
        known = understood(error)
        if isinstance(known, BugError):
            print(known.trace, file=sys.stderr)
        _print_error(known.text, known.hint)
    except KeyboardInterrupt as error:
        # The advice comes with it (commands/progress.py).
        _print_error(f"interrupted{f': {error}' if str(error) else ''}")
        return _INTERRUPTED
    except Exception as error:
        if streams.unwritten() is None:
            print(BugError.of(error).trace, file=sys.stderr)
            _print_error("this is a bug, please report it")
    return 1


def _print_error(text: str, hint: str = "") -> None:
    complain(f"{NAME}: {text}")
    if hint:
        complain(f"hint: {hint}")


def _machine(root: str | None, stack: contextlib.ExitStack) -> Host:
    """This machine, or a snapshot: a file that `record` wrote, or a directory."""
    if root is None:
        return Host()
    if os.path.isdir(root):
        return snapshot.SentHost(root)
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    snapshot.unpack(files.content(root).decode(errors="replace"), directory)
    return snapshot.SentHost(directory)


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage in one sentence and a hint."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )
        self.color = False  # Python 3.14 and later colour the help by default

    def error(self, message: str) -> NoReturn:
        hint = f"see `{self.prog} --help`"
        if message.endswith("required: COMMAND"):
            message = f"name a command: {', '.join(command.name for command in COMMANDS)}"
        stray = message.partition("unrecognized arguments: ")[2].partition("=")[0].split(" ")[0]
        if stray in ("--root", "--connect"):
            hint = f"{stray} comes before the command"
        _print_error(message, hint)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse would list all commands; the nearest one is enough.
        known = action.choices
        if isinstance(action, argparse._SubParsersAction) and known and value not in known:
            near = nearest(str(value), known)
            meant = f", did you mean {near}?" if near else ""
            raise argparse.ArgumentError(None, f"there is no command {value}{meant}")
        super()._check_value(action, value)


def parser() -> argparse.ArgumentParser:
    """The whole command line; tests compare the manual page and the completions with it."""
    main_parser = _Parser(
        prog=NAME,
        description="Inspect and repair what the libvirt hook does with the GPUs of VMs.",
        epilog=_examples(*(command.example for command in COMMANDS[:2]))
        + f"\n\n{NAME} COMMAND --help and `man {NAME}` have details.",
    )
    main_parser.add_argument("--version", action="version", version=__version__)
    main_parser.add_argument(
        "--root", metavar="MACHINE", help="inspect a machine that `record` wrote, not this one"
    )
    main_parser.add_argument(
        "--connect",
        metavar="URI",
        default=libvirtd.SYSTEM,
        help="the libvirt that knows the VMs (%(default)s)",
    )
    commands = main_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=_examples(command.example),
        )
        command.options(subparser)
        subparser.set_defaults(act=command.run, changes=command.changes)
    return main_parser


def _examples(*lines: str) -> str:
    return "\n".join([f"example{'s' if len(lines) > 1 else ''}:", *(f"  {one}" for one in lines)])


if __name__ == "__main__":
    sys.exit(main())
