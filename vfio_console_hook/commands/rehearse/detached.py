"""How the runner and the watchdog run apart from the terminal, the ssh connection, the desktop.

With systemd each is a transient unit of the system, outside of the caller's session, which
logind may end with the desktop. Without it each is a session of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ...errors import HookError
from ...machine import systemd
from ...machine.host import Host
from .rehearsal import SPARE_S, Diary, Rehearsal

RUNNER, WATCHDOG = "runner", "watchdog"
_STOP_S = 30  # what the watchdog needs beside the time for giving back


def begin(host: Host, rehearsal: Rehearsal, work: Callable[[str, str], None]) -> None:
    """Arm the watchdog, then let the runner run. Raises HookError, and then neither is there.

    work does in this process what the command does with `--as`, for hosts without systemd.
    """
    if not systemd.booted(host):
        host.detach(lambda: work(WATCHDOG, rehearsal.own))
        host.detach(lambda: work(RUNNER, rehearsal.own))
        return
    unit = _unit(rehearsal.own)
    in_s = max(rehearsal.give_back_at - host.now(), 0)
    after = " ".join(_command(WATCHDOG, rehearsal.own))
    limit_s = rehearsal.give_back_s + rehearsal.timeout_s * rehearsal.starts + _STOP_S
    _systemd_run(
        host,
        f"--unit={unit}-{WATCHDOG}",
        f"--description=Give back what the rehearsal of {rehearsal.vm} took",
        f"--on-active={in_s:.0f}s",
        "--timer-property=AccuracySec=1s",
        *_limits(rehearsal, limit_s),
        "--property=KillMode=process",
        *_command(WATCHDOG, rehearsal.own),
    )
    Diary(host, rehearsal.own).note(watchdog=f"{unit}-{WATCHDOG}")
    try:
        _systemd_run(
            host,
            f"--unit={unit}",
            f"--description=Rehearse {rehearsal.vm}",
            f"--property=TimeoutStopSec={limit_s + SPARE_S:.0f}",
            "--property=KillMode=process",
            # However the runner ends, by SIGKILL too. A VM that was started has its time then.
            *(() if rehearsal.starts else (f"--property=ExecStopPost={after}",)),
            *_command(RUNNER, rehearsal.own),
        )
    except HookError:
        disarm(host, rehearsal.own)
        raise


def _limits(rehearsal: Rehearsal, limit_s: float) -> tuple[str, ...]:
    """How long the watchdog may take, and what becomes of it if it is killed at its work.

    Only the watchdog of a VM is worth another try: after any other rehearsal the next start,
    or `recover`, gives back. Before systemd 244 a unit of the type oneshot cannot be restarted.
    """
    if not rehearsal.starts:
        return ("--property=Type=oneshot", f"--property=TimeoutStartSec={limit_s:.0f}")
    return (
        f"--property=RuntimeMaxSec={limit_s:.0f}",
        "--property=Restart=on-abnormal",
        "--property=RestartSec=1",
    )


def disarm(host: Host, own: str) -> None:
    """Stop the timer of the watchdog, if there is one: all is over."""
    if not systemd.booted(host):
        return
    try:
        systemd.systemctl(host, "stop", "--no-block", "--", f"{_unit(own)}-{WATCHDOG}.timer")
    except HookError:
        return  # it has fired


def _unit(own: str) -> str:
    return f"vfio-console-hook-rehearsal-{own.partition('-')[0]}"


def _command(role: str, own: str) -> tuple[str, ...]:
    """The command line of this program for one of the two."""
    return (sys.executable, "-IXutf8", os.path.abspath(sys.argv[0]), "rehearse", "--as", role, own)


def _systemd_run(host: Host, *words: str) -> None:
    program = systemd.program_path(host, "systemd-run")
    # --collect: a unit that has failed must not stay in the way of the next one.
    host.run(program, "--quiet", "--collect", *words)
