"""Stopping and starting services: units of systemd, or by commands, such as an init script's.

A stop is waited for. A start is not: release runs inside libvirtd, and a unit that is
ordered after libvirtd would wait for it while libvirtd waits for the hook.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from ..errors import HostError, LostError, RefusedError
from ..machine import systemd
from ..machine.host import Host
from .action import Action

# How long a command may take to answer whether a service runs, and how long a start is
# waited for: release must not take long, because libvirt shuts all guests down in one thread.
_ANSWER_S = 10
_START_S = 10


@dataclass(frozen=True, eq=False, repr=False)
class StopUnits(Action):
    """Stop units of systemd that depend on each other, and wait at most wait_s for all of them."""

    units: tuple[str, ...]
    wait_s: float
    kind = "stop-units"

    def apply(self, host: Host) -> None:
        def down() -> bool:
            up[:] = [unit.name for unit in systemd.units(host, self.units) if unit.running]
            return not up

        up: list[str] = []
        if down():
            return
        # --no-block, because systemd's own timeout is too long: TimeoutStopSec= is 90 s by
        # default. A stop also cancels a queued start.
        error = _systemctl_error(host, "stop", "--no-block", "--", *self.units)
        # A transient unit is unknown as soon as it has stopped with another one.
        stays = [unit.name for unit in systemd.units(host, self.units) if unit.up] if error else []
        if stays:
            raise RefusedError(f"{' and '.join(stays)} cannot be stopped: {error}")
        wait_s = host.time_for(self.wait_s)
        if not host.wait(down, wait_s):
            raise RefusedError(
                f"{' and '.join(up)} did not stop within {round(wait_s, 1):g} s",
                hint=f"see `systemctl status {up[0]}`; if it needs more time, increase `timeout_s`,"
                " half of which it gets",
            )

    def shell(self) -> str:
        return f"systemctl stop {_line(self.units)}"

    def past(self) -> str:
        return f"stopped {' and '.join(self.units)}"


@dataclass(frozen=True, eq=False, repr=False)
class StartUnits(Action):
    """Ask systemd to start units again, in this order, without waiting for them.

    detached: not only after the VM, but as soon as its GPUs have left (start_detached).
    """

    units: tuple[str, ...]
    detached: bool = False
    kind = "start-units"

    @property
    def services(self) -> tuple[str, ...]:
        return self.units

    def apply(self, host: Host) -> None:
        going_down, units = systemd.going_down(host, self.units)
        wanted = [unit.name for unit in units if not unit.up]
        if not wanted:
            return
        if going_down:
            raise LostError(f"{_are(wanted)} not started again: the system is shutting down")
        # A unit that was started too often recently would not start (StartLimitBurst=). The
        # error is ignored: systemd may have unloaded a unit that has not failed.
        _systemctl_error(host, "reset-failed", "--", *wanted)
        error = _systemctl_error(host, "start", "--no-block", "--", *wanted)
        down = [unit.name for unit in systemd.units(host, wanted) if not unit.running]
        if down:
            # Another try would not help: the unit is gone or masked by now, or one of its
            # conditions does not hold.
            raise _not_running(down, f": {error}" if error else "")

    def missing(self, host: Host) -> LostError | None:
        going_down, units = systemd.going_down(host, self.units)
        down = [unit.name for unit in units if not unit.running]
        return _not_running(down) if down and not going_down else None

    def shell(self) -> str:
        names = _line(self.units)
        return f"systemctl reset-failed {names}; systemctl start {names}"

    def past(self) -> str:
        return f"asked systemd to start {' and '.join(self.units)}"


def _not_running(units: list[str], why: str = "") -> LostError:
    return LostError(
        f"{_are(units)} not running again{why}", hint=f"see `systemctl status {units[0]}`"
    )


def _line(words: tuple[str, ...]) -> str:
    """The words of a command as they are typed in a shell."""
    return shlex.join(words)


def _are(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _systemctl_error(host: Host, verb: str, *words: str) -> str:
    """Run systemctl; the first line of its error, or ""."""
    try:
        systemd.systemctl(host, verb, *words)
    except HostError as error:
        return error.text.split(" failed: ", 1)[-1].splitlines()[0]
    return ""


@dataclass(frozen=True, eq=False, repr=False)
class StopByCommand(Action):
    """Stop a service by a command, and wait until the command active reports that it is down.

    wait_s: how long both together may take.
    """

    name: str
    active: tuple[str, ...]
    stop: tuple[str, ...]
    wait_s: float
    kind = "stop-by-command"

    def apply(self, host: Host) -> None:
        if not is_running(host, self.active):
            return
        wait_s = host.time_for(self.wait_s)
        end = host.clock() + wait_s
        status = host.exit_status(*self.stop, timeout_s=wait_s)
        if status:
            raise RefusedError(
                f"{self.name} cannot be stopped: `{self.shell()}` failed with exit status {status}",
                hint="run it by hand to see why",
            )
        if not host.wait(lambda: not is_running(host, self.active), max(end - host.clock(), 0)):
            raise RefusedError(
                f"{self.name} did not stop within {round(wait_s, 1):g} s",
                hint=f"try `{self.shell()}`; if it needs more time, increase `timeout_s`, half of"
                " which it gets",
            )

    def shell(self) -> str:
        return _line(self.stop)

    def past(self) -> str:
        return f"stopped {self.name}"


@dataclass(frozen=True, eq=False, repr=False)
class StartByCommand(Action):
    """Start a service by a command, unless the command active reports that it runs.

    detached is as in StartUnits.
    """

    name: str
    active: tuple[str, ...]
    start: tuple[str, ...]
    detached: bool = False
    kind = "start-by-command"

    @property
    def services(self) -> tuple[str, ...]:
        return (self.name,)

    def apply(self, host: Host) -> None:
        if _goes_down(host):
            raise LostError(f"{self.name} is not started again: the system is shutting down")
        try:
            status = 0 if is_running(host, self.active) else self._start(host)
        except HostError as error:
            raise LostError(f"{self.name} is not started again: {error.text}") from error
        if status:
            raise LostError(
                f"{self.name} is not started again: `{self.shell()}` failed with exit status"
                f" {status}",
                hint="run it by hand to see why",
            )

    def missing(self, host: Host) -> LostError | None:
        if _goes_down(host) or is_running(host, self.active):
            return None
        return LostError(f"{self.name} is not running again", hint=f"try `{self.shell()}`")

    def _start(self, host: Host) -> int | None:
        # A command that takes longer is left running: it may be the service itself.
        return host.exit_status(*self.start, timeout_s=_START_S)

    def shell(self) -> str:
        return _line(self.start)

    def past(self) -> str:
        return f"started {self.name} again"


def _goes_down(host: Host) -> bool:
    return systemd.booted(host) and systemd.going_down(host, ())[0]


def is_running(host: Host, active: tuple[str, ...]) -> bool:
    """Whether a service runs, by the exit status of a command. Raises HostError on a timeout."""
    status = host.exit_status(*active, timeout_s=_ANSWER_S)
    if status is None:
        raise HostError(f"`{_line(active)}` did not answer within {_ANSWER_S} s")
    return status == 0
