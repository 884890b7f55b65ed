"""Standard input, output and error, which may be closed, full, or a pipe without a reader."""

from __future__ import annotations

import os
import sys


def complete() -> None:
    """Open /dev/null for those that are closed.

    The next file to be opened would get their number: messages would be written into it,
    and it could be the claim.
    """
    # In this order, as each gets the lowest number that is free.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (it stays open)


def unwritten() -> OSError | None:
    """Why what was printed cannot be written to stdout; None when all of it has been."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def lead_nowhere(*numbers: int) -> None:
    """Make these descriptors /dev/null from now on, for this process and its children."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)


def give_up_stdout() -> None:
    """Send to /dev/null what is printed from now on, and what could not be written so far.

    Python would write that again when it ends, and print an error (Python manual, "Note on
    SIGPIPE").
    """
    lead_nowhere(1)
