"""The report of a rehearsal: one text that shows what happened, and is a machine for tests.

    # vfio-console-hook machine           the snapshot before, whole: so `--root FILE` reads it
    ...
    # == rehearsed
    #| functions 0000:01:00.0             what took part, and
    #| agrees yes                         whether all was as plan had said
    #| started yes                        if the VM itself was started, whose guest wrote, too
    # == plan, # == verdict, # == log, # == kernel
    #| a line
    # == during, # == after
    #| f sys/...                          a line of a snapshot of the machine

A reader of snapshots skips all that is behind a "#". Names and numbers are replaced everywhere
in the same way, as `record` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...log import printable
from ..snapshot.replacements import Replacements
from ..snapshot.writer import without_names

REHEARSED, PLAN, VERDICT, LOG, KERNEL = "rehearsed", "plan", "verdict", "log", "kernel"
DURING, AFTER = "during", "after"
_SECTION, _LINE = "# == ", "#| "

# Who writes a line of the kernel's log that is about neither a GPU nor a console, and may say
# what people have plugged in, or where they are: "usb 1-2: SerialNumber: ...". The time is
# in brackets, if it is there.
_PRIVATE_SOURCE = re.compile(
    r"^(?:\[[^]]*\] *)?(?:kernel: )?(?:audit|usb|hid|input|wlan|wl|eth|en[opsx]|br-|veth|virbr"
    r"|vnet|tap|tun|wg|docker|bluetooth|ipv6|ext4|xfs|btrfs|zfs|nfs|cifs|sd |scsi|nvme|ata\d|md\d"
    r"|dm-|device-mapper|systemd|kauditd|iptables|nft|\[?UFW)",
    re.IGNORECASE,
)
_SERIAL = re.compile(r"(?i)\b(serial(?: ?number)?|uuid|s/n)\b[:= ]+[^\s,;]+")


@dataclass(frozen=True)
class Evidence:
    """What a report is made of. before is a whole snapshot without names; names replaced them.

    during and after are what machine_text() wrote; "" if the rehearsal did not come so far.
    """

    before: str
    names: Replacements
    functions: tuple[str, ...]
    agrees: bool
    plan: str = ""
    verdict: str = ""
    log: str = ""
    kernel: str = ""
    during: str = ""
    after: str = ""
    started: bool = False


def report_text(evidence: Evidence) -> str:
    """The report. Raises HostError when a snapshot in it is none."""
    names = evidence.names
    rehearsed = [
        *(f"functions {' '.join(evidence.functions)}" for _ in evidence.functions[:1]),
        f"agrees {'yes' if evidence.agrees else 'no'}",
        *("started yes" for _ in range(evidence.started)),
    ]
    parts = {
        REHEARSED: "\n".join(rehearsed),
        PLAN: names.text(evidence.plan),
        VERDICT: names.text(evidence.verdict),
        LOG: names.text(evidence.log),
        KERNEL: "\n".join(_kernel_lines(evidence.kernel, names)),
        DURING: evidence.during and without_names(evidence.during, names),
        AFTER: evidence.after and without_names(evidence.after, names),
    }
    lines = {name: text.splitlines() for name, text in parts.items()}
    for name in (PLAN, VERDICT, LOG, KERNEL):
        lines[name] = [printable(line.expandtabs()).rstrip() for line in lines[name]]
    return evidence.before + "".join(_section(name, found) for name, found in lines.items())


def with_row(report: str, row: str) -> str:
    """A report with one more line at the end of its verdict."""
    end = f"\n{_SECTION}{LOG}\n"
    return report.replace(end, f"\n{_LINE}{row}{end}", 1)


def sections(report: str) -> Mapping[str, str]:
    """The texts of the parts of a report by their names; empty for a snapshot."""
    found: dict[str, list[str]] = {}
    here: list[str] = []
    for line in report.split("\n"):
        if line.startswith(_SECTION):
            here = found.setdefault(line[len(_SECTION) :], [])
        elif line.startswith(_LINE.rstrip()):
            here.append(line[len(_LINE) :])
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in found.items()}


def _section(name: str, lines: Iterable[str]) -> str:
    return "\n".join([f"{_SECTION}{name}", *(f"{_LINE}{line}" for line in lines)]) + "\n"


def _kernel_lines(log: str, names: Replacements) -> Iterator[str]:
    """The lines of the kernel's log without those that are about other things."""
    for line in log.splitlines():
        if not _PRIVATE_SOURCE.match(line):
            yield names.text(_SERIAL.sub(r"\1 ...", line))


def since(log: str, began_s: float) -> str:
    """The lines of `dmesg` from a time on, in seconds since boot; all without times."""
    return "\n".join(_since(log.splitlines(), began_s))


def _since(lines: Iterable[str], began_s: float) -> Iterator[str]:
    for line in lines:
        when = re.match(r"(?:<\d+>)?\[ *(\d+\.\d+)\]", line)
        if when is None or float(when[1]) >= began_s:
            yield line
