"""The claims of VMs as metrics in Prometheus' text exposition format 0.0.4.

For a node exporter's textfile directory, which reads *.prom files. The format:
prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...claims.histories import Event, History
from .overview import Overview

_PREFIX = "vfio_console_hook_"

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """A gauge of one name: its help, and a value for each set of labels."""

    name: str
    help: str
    samples: dict[Labels, float]


def text(found: Overview) -> str:
    """All metrics, each line ended. Those about claims are left out when none can be read."""
    claims = () if found.unseen else _claim_families(found)
    # A kernel without virtual terminals has no consoles that could be dead.
    consoles = (_console_family(found),) if found.vtconsoles else ()
    families = (
        *claims, _loss_family(found), *_event_families(found), *_rehearsal_families(found),
        *consoles,
    )  # fmt: skip
    return "".join(_family_text(family) for family in families)


def _claim_families(found: Overview) -> tuple[Family, ...]:
    held = [one for one in found.claims if not one.stale]
    return (
        Family(
            "claims",
            "1 for each GPU that a VM holds through the hook.",
            {(("vm", one.vm), ("gpu", gpu)): 1 for one in held for gpu in one.gpus},
        ),
        Family(
            "open_steps",
            "Steps that were done for a VM and are not undone.",
            {(("vm", one.vm),): one.open for one in held},
        ),
        Family(
            "lost_steps",
            "Steps done for a VM that cannot be undone before a reboot.",
            {(("vm", one.vm),): sum(bool(step.lost) for step in one.steps) for one in held},
        ),
        Family(
            "stale_claims",
            "Claims of an earlier boot; vfio-console-hook recover removes them.",
            {(): sum(one.stale for one in found.claims)},
        ),
        Family(
            "stuck_claims",
            "Claims whose VM has ended without a release; vfio-console-hook recover helps.",
            {(): sum(bool(one.stuck) for one in found.claims)},
        ),
        Family(
            "unreadable_claims",
            "Claims that cannot be read; vfio-console-hook status names them.",
            {(): len(found.unreadable)},
        ),
    )


def _loss_family(found: Overview) -> Family:
    counts: dict[Labels, float] = {}
    for one in found.lost:
        labels = (("vm", one.vm), ("gpu", one.step.gpu))
        counts[labels] = counts.get(labels, 0) + 1
    return Family(
        "losses",
        "What could not be given back after a VM, until it is mended or dismissed.",
        counts,
    )


def _event_families(found: Overview) -> tuple[Family, ...]:
    # A VM that was defined again under its name has two histories. The later event counts,
    # because two samples with the same labels make the whole file invalid.
    events: dict[Labels, tuple[History, Event]] = {}
    for one in found.histories:
        for event in one.events:
            labels = (("vm", one.vm), ("event", event.kind))
            if labels not in events or events[labels][1].time < event.time:
                events[labels] = (one, event)
    last = {labels: event for labels, (_, event) in events.items()}
    return (
        Family(
            "last_event_timestamp_seconds",
            "When libvirt, or a person by recover or give, last had the hook do this.",
            {labels: event.time for labels, event in last.items()},
        ),
        Family(
            "last_result",
            "1 when the last event of this kind was done, 0 when it failed.",
            {labels: int(not event.failure) for labels, event in last.items()},
        ),
        Family(
            "phase_seconds",
            "How long the hook took for the last event of this kind.",
            {
                (("vm", dict(labels)["vm"]), ("phase", event.kind)): event.took_s
                for labels, event in last.items()
            },
        ),
    )


def _rehearsal_families(found: Overview) -> tuple[Family, ...]:
    # The newest come first. A VM that was defined again under its name has two.
    last = {one.vm: one for one in reversed(found.rehearsals)}
    return (
        Family(
            "rehearsal_agrees",
            "1 when all was as plan had said in the last rehearsal of a VM.",
            {(("vm", name),): int(one.agrees) for name, one in last.items()},
        ),
        Family(
            "rehearsal_outdated",
            "How many things have changed on the host since the last rehearsal of a VM.",
            {(("vm", name),): len(one.changed) for name, one in last.items()},
        ),
    )


def _console_family(found: Overview) -> Family:
    return Family(
        "console_alive",
        "1 when the host's consoles are shown, or will be with the first text; 0 when the dummy"
        " console has them.",
        {(): int(found.console_alive)},
    )


def _family_text(family: Family) -> str:
    name = _PREFIX + family.name
    lines = [f"# HELP {name} {family.help}", f"# TYPE {name} gauge"]
    for labels, value in family.samples.items():
        pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        lines.append(f"{name}{f'{{{pairs}}}' if pairs else ''} {_number(value)}")
    return "".join(line + "\n" for line in lines)


def _number(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{value:.3f}"


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    # A name that is not UTF-8 would make the whole file invalid.
    return escaped.encode("utf-8", "replace").decode()
