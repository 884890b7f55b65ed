"""Standard input, output and error: they may be closed, be full, or have nobody who reads."""

from __future__ import annotations

import os
import sys


def complete() -> None:
    """Open /dev/null for those that are closed.

    The next file to be opened would have their number: what is meant for a person would be
    written into it, and it could be the claim.
    """
    # From 0 on, as each gets the lowest number that is free.
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
    """Let these descriptors be /dev/null from now on, for this process and its children."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)


def give_up_stdout() -> None:
    """Let what is printed go nowhere, and what could not be written so far.

    Python would try that again when it ends, and complain (Python manual, "Note on SIGPIPE").
    """
    lead_nowhere(1)
