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

from . import __version__, recorded, vms
from .commands import COMMANDS
from .errors import BugError, HookError
from .host import Host


def main(argv: Sequence[str] | None = None, host: Host | None = None) -> int:
    """Run one command; its exit status. host stands in for this machine in tests."""
    arguments = parser().parse_args(argv)
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
    try:
        with open(root, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise HookError(f"cannot read {root}: {error.strerror}") from error
    return recorded.unpack(text, directory)


def parser() -> argparse.ArgumentParser:
    """The whole command line; the manual page and the completions are held to it."""
    whole = argparse.ArgumentParser(
        prog="vfio-console-hook",
        description="Free a GPU from the host's console before a VM takes it, and give it back.",
        epilog=_examples(*(command.example for command in COMMANDS[:2])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=__version__)
    whole.add_argument("--root", metavar="FILE", help="look at a recorded machine, not this one")
    whole.add_argument(
        "--connect", metavar="URI", default=vms.SYSTEM, help="the libvirt to ask (%(default)s)"
    )
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        one = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=_examples(command.example),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.options(one)
        one.set_defaults(act=command.run)
    return whole


def _examples(*lines: str) -> str:
    return "\n".join([f"example{'s' if len(lines) > 1 else ''}:", *(f"  {one}" for one in lines)])


if __name__ == "__main__":
    sys.exit(main())
