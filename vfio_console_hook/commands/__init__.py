"""The commands of `vfio-console-hook`, one module each, with a COMMAND."""

from __future__ import annotations

from . import check_config, doctor, give, plan, record, recover, status, take
from .command import Command

__all__ = ["COMMANDS", "Command"]

# As --help lists them: first what only looks.
COMMANDS = (
    plan.COMMAND,
    status.COMMAND,
    doctor.COMMAND,
    check_config.COMMAND,
    record.COMMAND,
    recover.COMMAND,
    take.COMMAND,
    give.COMMAND,
)
