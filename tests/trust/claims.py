"""The claim of a VM torn at every byte, with garbage in it, of another version or boot.

A line that a crash tore is one of which nothing had been done: the program is killed
before each line that prepare writes, part of that line is put there, and what comes next
must make the machine as before. Anything else that cannot be understood is reported in one
sentence with a hint; the machine and the claim are left alone, whatever is asked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.libvirt_xml import UUID
from tests.trust.baseline import Baseline
from tests.trust.every import Tried, check_everywhere
from tests.trust.fault import BOTH, Fault
from tests.trust.life import PREPARE, RELEASE, Machine
from tests.trust.process import Exit
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.errors import ClaimError
from vfio_console_hook.machine.host import Host

CLAIM = f"{CLAIMS}/{UUID}"
RECOVER, STATUS = "recover", "status"

_STEP = {"stage": "s", "gpu": "0000:01:00.0", "why": "w", "do": None, "undo": None, "loses": ""}
_UNBIND = {"kind": "unbind", "device": "efi-framebuffer.0", "driver": "efi-framebuffer"}


def _step(**other: object) -> bytes:
    return json.dumps({"step": {**_STEP, **other}}).encode()


GARBAGE = {
    "nothing": b"",
    "text": b"garbage",
    "zeros": bytes(64),
    "no UTF-8": b"\xff\xfe",
    "half a line": b'{"step": {"stage"',
    "two values": b"{} {}",
    "a list": b"[1]",
    "deep": b"[" * 100_000,
    "a huge number": b'{"done": ' + b"9" * 5000 + b"}",
    "a newer entry": b'{"version": 2}',
    "a newer action": _step(do={"kind": "teleport", "gpu": "0000:01:00.0"}),
    "a newer field of an action": _step(undo={**_UNBIND, "twice": True}),
    "an older action, with less": _step(do={"kind": "unbind", "device": "efi-framebuffer.0"}),
    "an older step, with less": b'{"step": {"stage": "s", "gpu": "g", "why": "w"}}',
    "a number as a word": b'{"done": "1"}',
    "an older worker": b'{"worker": 4711}',
    "no action": _step(undo="unbind"),
}


@dataclass(frozen=True)
class Damage:
    """What is done to a claim that is whole, and what is asked then."""

    name: str
    change: Callable[[bytes], bytes]
    asked: str


def damages(whole: bytes) -> Iterator[Damage]:
    """All that makes a claim one which cannot be understood; what is asked goes round."""
    asked = (RELEASE, RECOVER, PREPARE, STATUS)
    turn = 0
    for place in range(whole.count(b"\n") + 1):
        for name, line in GARBAGE.items():
            turn += 1
            change = _Inserted(place, line)
            yield Damage(f"{name} as line {place + 1}", change, asked[turn % len(asked)])
    for cut in range(whole.index(b"\n") + 1):
        turn += 1
        yield Damage(f"cut at byte {cut}", _Cut(cut), asked[turn % len(asked)])
    for key in ("vm", "boot", "gpus", "since", "by_hand"):
        for one in asked:
            yield Damage(f"without {key}, as of an older version", _Without(key), one)


@dataclass(frozen=True)
class _Inserted:
    place: int
    line: bytes

    def __call__(self, whole: bytes) -> bytes:
        lines = whole.split(b"\n")
        return b"\n".join([*lines[: self.place], self.line, *lines[self.place :]]) + (
            b"" if self.place < len(lines) - 1 else b"\n"
        )


@dataclass(frozen=True)
class _Cut:
    at: int

    def __call__(self, whole: bytes) -> bytes:
        return whole[: self.at]


@dataclass(frozen=True)
class _Without:
    key: str

    def __call__(self, whole: bytes) -> bytes:
        head, _, rest = whole.partition(b"\n")
        values = {key: value for key, value in json.loads(head).items() if key != self.key}
        return json.dumps(values).encode() + b"\n" + rest


def ask(machine: Machine, what: str) -> Exit:
    """Let the program do what is asked."""
    if what == RECOVER:
        return machine.recover()
    return machine.command(what) if what == STATUS else machine.event(what)


def left_alone(baseline: Baseline, damage: Damage, machine: Machine, whole: bytes) -> str:
    """What is wrong when a claim that cannot be understood is met; "" when nothing is.

    machine is prepared, its claim was whole. It is as it was afterwards.
    """
    path, before = machine.directory / CLAIM, machine.seen()
    damaged = damage.change(whole)
    path.write_bytes(damaged)
    ended = ask(machine, damage.asked)
    try:
        if machine.seen() != before:
            return "the machine was changed"
        if not path.exists() or path.read_bytes() != damaged:
            return "the claim is another one now"
    finally:
        path.write_bytes(whole)
    if damage.asked == STATUS:
        reported = ended.status in (0, 1) and "cannot understand" in ended.stderr
    else:
        reported = ended.status == 1 and CLAIM in ended.stderr and "hint:" in ended.stderr
    bug = "Traceback" in ended.stderr or "internal error" in ended.stderr
    return "" if reported and not bug else f"it says {ended}"


def torn(baseline: Baseline, directory: Path, *, quick: bool) -> Iterator[str]:
    """What is wrong after each tear, one for each byte of each line that prepare appends."""
    whole = _whole(baseline, directory)
    yield from _at_any_byte(Machine(baseline.subject, directory, directory), whole, quick)
    lines = [
        number
        for number, access in enumerate(baseline.changes[PREPARE], start=1)
        if access.kind == "file write" and access.what == CLAIM
    ]
    for turn, number in enumerate(lines):
        line = whole.split(b"\n")[turn - len(lines) - 1]
        if quick and _kind(line) in _seen:
            continue
        _seen.add(_kind(line))
        # Opened, but not written yet.
        machine = baseline.begin(PREPARE, directory)
        machine.event(PREPARE, Fault(at=number - 1, kill=BOTH))
        with open(directory / CLAIM, "ab") as file:
            file.write(line[: len(line) * (turn % 7 + 1) // 8])
        ended = ask(machine, (RELEASE, RECOVER)[turn % 2])
        wrong = baseline.held(machine) or baseline.not_as_before(machine)
        yield f"line {turn} of the claim torn: {wrong or ended}" if wrong or ended.status else ""


_seen: set[tuple[str, ...]] = set()


def _kind(line: bytes) -> tuple[str, ...]:
    """The kind of a line: its entry and, of a step, its actions."""
    ((key, value),) = list(json.loads(line).items())[:1]
    actions = (value["do"], value["undo"]) if key == "step" else ()
    return key, *(str(one and one["kind"]) for one in actions)


def _at_any_byte(machine: Machine, whole: bytes, quick: bool) -> Iterator[str]:
    """What is wrong when a line that is cut off is read; the head never is, it is renamed.

    If quick, only with kinds of lines that are not in _seen.
    """
    path, host = machine.directory / CLAIM, machine.host
    lines = whole.splitlines(keepends=True)
    for number in range(1, len(lines)):
        if quick and _kind(lines[number]) in _seen:
            continue
        so_far = b"".join(lines[:number])
        path.write_bytes(so_far)
        expected = _content(host)
        for cut in range(len(lines[number])):
            path.write_bytes(so_far + lines[number][:cut])
            yield "" if _content(host) == expected else f"{lines[number][:cut]!r} is understood"
    path.write_bytes(whole)


def _whole(baseline: Baseline, directory: Path) -> bytes:
    machine = baseline.begin(PREPARE, directory)
    machine.event(PREPARE)
    return (directory / CLAIM).read_bytes()


def _content(host: Host) -> tuple[object, ...]:
    try:
        claim = Claims(host).find(UUID)
    except ClaimError as error:
        return (error.text,)
    assert claim is not None
    return claim.gpus, claim.phase, claim.worker, claim.steps, claim.done, claim.undone


def of_another_boot(baseline: Baseline, directory: Path, asked: Sequence[str]) -> Iterator[str]:
    """What is wrong with each thing that is asked after a reboot; the claim must go."""
    for what in asked:
        machine = baseline.begin(PREPARE, directory)
        machine.event(PREPARE)
        # As if the reboot had kept /run: the machine is as at boot, the claim is there.
        fresh = baseline.begin(PREPARE, directory.with_name("fresh"))
        shutil.rmtree(fresh.directory / "run")
        (directory / "run").rename(fresh.directory / "run")
        (fresh.directory / "proc/sys/kernel/random/boot_id").write_text("another\n")
        before = fresh.seen()
        ended = ask(fresh, what)
        if what == PREPARE and not ended.status:
            ended = fresh.event(RELEASE)
        changed = fresh.seen() != before and not baseline.losses
        wrong = "the machine was changed" if changed else baseline.held(fresh)
        yield f"{what} after a reboot: {wrong or ended}" if wrong or ended.status else ""


def _try(baseline: Baseline, quick: bool, directory: Path) -> Tried:
    if baseline.refused:
        return Tried(0, idle=True)
    place = directory / "machine"
    asked = (RELEASE, RECOVER, PREPARE)
    first = _turn(baseline) % len(asked)
    results = [
        *torn(baseline, place, quick=quick),
        *of_another_boot(baseline, place, asked[first : first + 1] if quick else asked),
    ]
    whole = _whole(baseline, place)
    machine = Machine(baseline.subject, place, directory / "stderr")
    found = list(damages(whole))
    if quick:
        found = found[_turn(baseline) :: _STRIDE]
    for damage in found:
        wrong = left_alone(baseline, damage, machine, whole)
        results.append(wrong and f"{damage.name}, then {damage.asked}: {wrong}")
    failures = tuple(f"{baseline.subject}: {wrong}" for wrong in results if wrong)
    return Tried(len(results), failures)


_STRIDE = 61  # of what a quick run leaves out; each machine begins elsewhere


def _turn(baseline: Baseline) -> int:
    return sum(map(ord, str(baseline.subject))) % _STRIDE


CHECK = check_everywhere(
    "claims",
    "a claim that is torn, garbage, of another version or another boot is undone correctly, or"
    " reported with a hint and left alone",
    _try,
    quick=5_000,
    least=50_000,
)
