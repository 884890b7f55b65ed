"""What a rehearsal leaves as evidence, on disk until the report is written.

    /run/vfio-console-hook/evidence/ID.PART     for root only

PART is before (a whole snapshot, without names), names (by what they were replaced), plan,
during, after (the machine then, with names). The command writes the first three, before anything
is changed; the runner and the watchdog the others. Evidence that cannot be kept never keeps a
GPU from being given back: the report is without it.

    /var/lib/vfio-console-hook/reports/UUID.txt     the last report of each VM
"""

from __future__ import annotations

import json
import re

from ...errors import HookError
from ...machine import runfiles, systemd, worker
from ...machine.host import Host
from ...machine.libvirtd import Vm
from ...machine.runfiles import RUN
from ..snapshot.replacements import Replacements
from ..snapshot.writer import machine_text, text_and_names
from . import report
from .last import STATE
from .rehearsal import Account, Rehearsal
from .report import AFTER, DURING, Evidence
from .verdict import Row

FOLDER = f"{RUN}/evidence"
REPORTS = f"{STATE}/reports"
REPORTED = "report: /"
"""How the diary says where the report of this rehearsal is."""
_BEFORE, _NAMES, _PLAN = "before", "names", "plan"
_PARTS = (_BEFORE, _NAMES, _PLAN, DURING, AFTER)
# As for `record`: plan, status and doctor all run.
_LOOK_S = 120.0
_LOG_S = 10.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def begin(host: Host, own: str, plan: str, vms: tuple[Vm, ...] | HookError) -> None:
    """Write the machine down as it is. Raises HookError."""

    def look() -> str:
        text, names = text_and_names(host, vms)
        return json.dumps([text, names.to_json()])

    before, names = json.loads(worker.run(look, _LOOK_S))
    for path in (RUN, FOLDER):
        runfiles.make_directory(host, path)
    plain = _COLOUR.sub("", plan)
    for part, text in ((_BEFORE, before), (_NAMES, json.dumps(names)), (_PLAN, plain)):
        runfiles.write(host, f"{FOLDER}/{own}.{part}", text)


def keep(host: Host, own: str, when: str) -> None:
    """Write the machine down, during the rehearsal or after it; in a worker, as it may hang.

    Nothing if the rehearsal keeps no evidence, or if it cannot be kept.
    """
    try:
        if runfiles.read(host, f"{FOLDER}/{own}.{_BEFORE}") is not None:
            runfiles.write(host, f"{FOLDER}/{own}.{when}", machine_text(host))
    except HookError:
        return


def write_report(
    host: Host, rehearsal: Rehearsal, agrees: bool, verdict: list[str], account: Account
) -> str:
    """Write the report of a rehearsal that is over; its path, "" if there is no evidence.

    Raises HookError.
    """

    def write() -> str:
        parts = {part: _text(host, rehearsal.own, part) for part in _PARTS}
        if not parts[_BEFORE] or not parts[_NAMES]:
            return ""
        text = report.report_text(Evidence(
            parts[_BEFORE], Replacements.from_json(json.loads(parts[_NAMES])),
            rehearsal.addresses, agrees, parts[_PLAN], "\n".join(verdict), "\n".join(account.said),
            kernel_log(host, rehearsal.began), parts[DURING], parts[AFTER],
            account.real is not None,
        ))  # fmt: skip
        for path in (STATE, REPORTS):
            runfiles.make_directory(host, path, 0o755)
        runfiles.write(host, path_of(rehearsal.uuid), text)
        return path_of(rehearsal.uuid)

    return worker.look(write)


def path_of(uuid: str) -> str:
    """Where the last report of a VM is; for root only, until a person has read it through."""
    return f"{REPORTS}/{uuid}.txt"


def report_of(host: Host, uuid: str) -> str:
    """The last report of a VM, "" if there is none. Raises HookError."""
    return (runfiles.read(host, path_of(uuid)) or b"").decode("utf-8", "surrogateescape")


def add_row(host: Host, uuid: str, row: Row) -> None:
    """Write one more row of the verdict into the last report of a VM. Raises HookError."""
    text = report_of(host, uuid)
    if text:
        runfiles.write(host, path_of(uuid), report.with_row(text, verdict_line(row)))


def verdict_line(row: Row) -> str:
    """A row as a report has it; one that differs is marked."""
    return f"{'  ' if row.agrees else '!!'}{row}"


def drop(host: Host, own: str) -> None:
    """Remove what has been kept; it is in the report, or it is not wanted."""
    for part in _PARTS:
        try:
            runfiles.remove(host, f"{FOLDER}/{own}.{part}")
        except HookError:
            continue


def _text(host: Host, own: str, part: str) -> str:
    content = runfiles.read(host, f"{FOLDER}/{own}.{part}")
    return (content or b"").decode("utf-8", "surrogateescape")


def kernel_log(host: Host, began: float) -> str:
    """The kernel's lines since a time, in seconds since 1970; why there are none, if so."""
    try:
        if systemd.booted(host):
            options = (
                "--dmesg", "--boot", "--quiet", "--no-pager", "--no-hostname",
                "--output=short-monotonic",
            )  # fmt: skip
            since = f"--since=@{began:.0f}"
            return host.run(
                systemd.program_path(host, "journalctl"), *options, since, timeout_s=_LOG_S
            )
        up_s = float((host.read("proc/uptime") or "0").split()[0])
        place = "bin/dmesg" if host.exists("bin/dmesg") else "usr/bin/dmesg"
        text = host.run(f"/{place}", timeout_s=_LOG_S)
        return report.since(text, up_s - (host.now() - began))
    except HookError as error:
        return f"the kernel's log could not be read: {error.text}"
