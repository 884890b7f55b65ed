"""Whether what VMs hold is held rightly."""

from __future__ import annotations

from collections.abc import Iterator

from ...claims import ownership
from ...claims.claim import Journal, Record
from ...errors import JournalError
from ...machine import kernel
from .finding import FAIL, PASS, WARN, Check, Finding, Subject

_RECOVER = "run `vfio-console-hook recover`"


def records(subject: Subject) -> Iterator[Finding]:
    """Each record of claims: whose it is, and whether it was left behind."""
    journal = Journal(subject.host)
    uuids = journal.uuids()
    if not uuids:
        yield Finding(PASS, "records", "no VM holds a GPU through this hook, and none was left")
    for uuid in uuids:
        try:
            record = journal.find(uuid)
        except JournalError as error:
            yield Finding(FAIL, f"record {uuid}", error.text, error.hint)
            continue
        if record is not None:
            yield _judge(subject, record)


def _judge(subject: Subject, record: Record) -> Finding:
    title = f"record of {record.name}"
    holds = f"holds {' and '.join(record.gpus)}"
    if record.boot != kernel.boot_id(subject.host):
        return Finding(WARN, title, "left behind by an earlier boot", _RECOVER)
    if record.by_hand:
        give = f"`vfio-console-hook give {record.gpus[0]}`"
        return Finding(PASS, title, f"{holds}, taken by hand; {give} gives it back")
    vm = subject.vm(record.uuid)
    if vm is not None and vm.live:
        return Finding(PASS, title, f"{holds}, and it runs")
    used = ownership.in_use(subject.host, record)
    if used:
        return Finding(PASS, title, f"{holds}; {used}")
    if subject.unasked:
        text = f"{holds}; libvirt does not say whether it runs"
        return Finding(WARN, title, text, f"if it does not: {_RECOVER}")
    state = "libvirt says that it is off" if vm else "libvirt does not know it any more"
    return Finding(WARN, title, f"{holds}, but {state}", _RECOVER)


CHECKS: tuple[Check, ...] = (records,)
