"""The parts of a command of `vfio-console-hook`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..machine.host import Host


@dataclass(frozen=True)
class Command:
    """One command. summary is one line, and so is the example, as it is typed.

    options adds its arguments to a parser; run does it and returns the exit status:
    0 done, 1 refused or failed, 2 wrong usage or nothing to do. changes: whether it changes
    the machine, so that it is not for a recorded one.
    """

    name: str
    summary: str
    example: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Host, argparse.Namespace], int]
    changes: bool = False


def attributes(value: object, *names: str) -> dict[str, Any]:
    """These attributes of a value by their names, for JSON."""
    return {name: getattr(value, name) for name in names}
