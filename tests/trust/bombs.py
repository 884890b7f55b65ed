"""Hostile inputs written by hand, each given to the real program as a process of its own.

Right is: one sentence and perhaps a hint on stderr, exit status 1 (0 where the input is odd but
harmless), nothing of a traceback, the machine as before, at most 2 s of processor time and
200 MiB of memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tests import events, snapshots
from tests.fakehost import FakeHost
from tests.gate import ROOT
from tests.libvirt_xml import UUID, domain_xml
from tests.trust import hostile, hostile_xml
from tests.trust.check import Check, Effort, Outcome
from vfio_console_hook import domain
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.config import load
from vfio_console_hook.config.settings import Config
from vfio_console_hook.log import Log
from vfio_console_hook.machine import runfiles

PYTHON = "/usr/bin/python3"
MACHINE = "efifb-6.12"
LIMIT_S = 2.0
LIMIT_MIB = 200.0
_TRIES = 3
_HANGS_S = 60.0
_LONGEST = 4096
_NEVER = ("Traceback", "internal error", "this is a bug")
# Of the command; the hook has none but its sentence and its hint.
_USUAL_LINES = 10


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status (128 and a signal's number), its output, what it took."""

    status: int
    out: bytes
    err: bytes
    cpu_s: float
    mib: float


def run(argv: Sequence[bytes], given: bytes = b"") -> Ended:
    """Run the launcher with these words, and given on its stdin.

    Up to three times, while it takes too long: what else the machine does can only add to that.
    """
    for _ in range(_TRIES):
        ended = _run_once(argv, given)
        if ended.cpu_s <= LIMIT_S:
            break
    return ended


def _run_once(argv: Sequence[bytes], given: bytes) -> Ended:
    words = [PYTHON.encode(), b"-I", os.fsencode(ROOT / "tests/trust/launch.py"), *argv]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
        into, out, err, peak = files
        into.write(given)
        into.seek(0)
        actions = [(os.POSIX_SPAWN_DUP2, one.fileno(), number) for number, one in enumerate(files)]
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        pid = os.posix_spawn(PYTHON, words, environment, file_actions=actions)
        status, usage = _await(pid)
        for one in (out, err, peak):
            one.seek(0)
        mib = int(peak.read() or b"0") / 1024
        return Ended(status, out.read(), err.read(), usage.ru_utime + usage.ru_stime, mib)


def _await(pid: int) -> tuple[int, os.struct_rusage]:  # type: ignore[name-defined]  # private
    deadline = time.monotonic() + _HANGS_S
    while True:
        done, code, usage = os.wait4(pid, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(code):
                return 128 + os.WTERMSIG(code), usage
            return os.WEXITSTATUS(code), usage
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline += _HANGS_S
        time.sleep(0.002)


def wrong(ended: Ended, statuses: Sequence[int], lines: int) -> str:
    """What is wrong with how a process ended, or ""."""
    text = ended.err.decode("utf-8", "replace")
    shown = text.rstrip("\n").split("\n")
    for word in _NEVER:
        if word in text or word.encode() in ended.out:
            return f"printed: {text.strip()[-300:]!r}"
    if ended.status not in statuses:
        return f"exit status {ended.status}: {text[:200]!r}"
    if ended.status and not ended.err and not ended.out:
        return "failed without a word"
    if len(shown) > lines or len(text) > _LONGEST or not all(one.isprintable() for one in shown):
        return f"{len(shown)} lines, {len(text)} characters: {text[:200]!r}"
    if ended.cpu_s > LIMIT_S:
        return f"took {ended.cpu_s:.1f} s"
    if ended.mib > LIMIT_MIB:
        return f"took {ended.mib:.0f} MiB"
    return ""


class _Range:
    """Where the bombs go off: a machine, and what is noted of each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.machine = directory / "machine"
        snapshots.unpack_into(MACHINE, self.machine)
        for pid in (1, 77):
            process = self.machine / f"proc/{pid}"
            process.mkdir(parents=True, exist_ok=True)
            (process / "stat").write_text(f"{pid} (x) S 0 {pid} {pid}" + " 0" * 30)
        self.before = snapshot(directory)
        self.failures: list[str] = []
        self.cases = 0
        self.worst_s = 0.0
        self.worst_mib = 0.0

    def hook(self, what: str, given: bytes, statuses: Sequence[int], *words: bytes) -> None:
        """Let the hook handle an event."""
        argv = (b"hook", os.fsencode(self.machine), *words)
        ended = run(argv, given)
        self._judge(what, ended, statuses, 2)
        if ended.out:
            self.failures.append(f"{what}: the hook printed {ended.out[:80]!r} for libvirt")

    def command(
        self, what: str, statuses: Sequence[int], *words: bytes, given: bytes = b""
    ) -> None:
        """Let a person type a command."""
        self._judge(what, run((b"command", *words), given), statuses, _USUAL_LINES)

    def _judge(self, what: str, ended: Ended, statuses: Sequence[int], lines: int) -> None:
        self.cases += 1
        self.worst_s = max(self.worst_s, ended.cpu_s)
        self.worst_mib = max(self.worst_mib, ended.mib)
        mistake = wrong(ended, statuses, lines)
        if mistake:
            self.failures.append(f"{what}: {mistake}")
        after = snapshot(self.directory)
        if after != self.before:
            changed = sorted(path for path in {*after, *self.before}
                             if after.get(path) != self.before.get(path))  # fmt: skip
            self.failures.append(f"{what}: changed {', '.join(changed[:3])}")
            self.before = after

    def place(self, path: str, content: bytes, *, link: bool = False) -> bytes | str | None:
        """Put a file, or a link, there; what was there, for put_back()."""
        full = self.machine / path
        was: bytes | str | None = None
        if full.is_symlink():
            was = os.readlink(full)
        elif full.exists():
            was = full.read_bytes()
        if was is not None:
            full.unlink()
        full.parent.mkdir(parents=True, exist_ok=True)
        if link:
            full.symlink_to(os.fsdecode(content))
        else:
            full.write_bytes(content)
        self.before = snapshot(self.directory)
        return was

    def put_back(self, path: str, was: bytes | str | None) -> None:
        full = self.machine / path
        full.unlink()
        if isinstance(was, bytes):
            full.write_bytes(was)
        elif was is not None:
            full.symlink_to(was)
        self.before = snapshot(self.directory)


def snapshot(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Every file but those below run and var, which the hook may write: size, time and link."""
    found = {}
    for above, folders, files in os.walk(directory):
        if above == str(directory / "machine"):
            folders[:] = [one for one in folders if one not in ("run", "var")]
        for name in (*files, *folders):
            path = os.path.join(above, name)
            status = os.lstat(path)
            link = os.readlink(path) if os.path.islink(path) else ""
            size = 0 if name in folders else status.st_size
            changed = 0 if name in folders else status.st_mtime_ns
            found[path] = (size, changed, link)
    return found


def _expected(name: str) -> tuple[int, ...]:
    return {"+": (0,), "*": (0, 1)}.get(name[0], (1,))


def _xml(place: _Range, quick: bool) -> None:
    bombs = {**hostile_xml.bombs(), **hostile_xml.truncated(60 if quick else 1)}
    file = place.directory / "bomb.xml"
    for name, make in bombs.items():
        content = make()
        place.hook(f"XML, {name}", content, _expected(name), b"x", b"prepare", b"begin", b"-")
        if not quick:
            file.write_bytes(content)
            place.before = snapshot(place.directory)
            expected = tuple(2 if one == 0 else one for one in _expected(name))
            root = os.fsencode(place.machine)
            words = (b"--root", root, b"plan", b"--xml", os.fsencode(file))
            place.command(f"plan --xml, {name}", expected, *words)


def _yaml(place: _Range, quick: bool) -> None:
    file = place.directory / "bomb.yaml"
    etc = f"{load.DIRECTORY}/default.yaml"
    for name, content in hostile.yaml().items():
        file.write_bytes(content)
        file.chmod(0o644)
        place.before = snapshot(place.directory)
        place.command(f"check-config, {name}", _expected(name), b"check-config", os.fsencode(file))
        if quick or name.startswith("+"):
            continue
        was = place.place(etc, content)
        place.hook(
            f"YAML, {name}", domain_xml(hostile.GPU), (1,), b"win11", b"prepare", b"begin", b"-"
        )
        place.put_back(etc, was)


def _claims(place: _Range, quick: bool) -> None:
    path = f"{CLAIMS}/{UUID}"
    claim = _claim(place.directory / "claimed")
    place.before = snapshot(place.directory)
    root = os.fsencode(place.machine)
    every = 19 if quick else 1  # no divisor of how many wrong values there are
    for number, (name, content) in enumerate(islice(hostile.claims(claim), 0, None, every)):
        _lay_claim(place.machine, path, content)
        if number % 2:
            # What it asks for is done to the machine, and that is right.
            argv = (b"hook", root, b"win11", b"release", b"end", b"-")
            place.cases += 1
            mistake = wrong(run(argv, domain_xml(hostile.GPU, event="release")), (0, 1), 2)
            if mistake:
                place.failures.append(f"claim, {name}: {mistake}")
            place.before = snapshot(place.directory)
        else:
            place.command(f"status, {name}", (0, 1), b"--root", root, b"status")
    _lay_claim(place.machine, path, None)


def _lay_claim(machine: Path, path: str, content: bytes | None) -> None:
    for folder in ("", "/claims", "/by-name"):
        (machine / f"{runfiles.RUN}{folder}").mkdir(mode=0o700, parents=True, exist_ok=True)
    file = machine / path
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)


def _claim(directory: Path) -> bytes:
    """What prepare leaves on the machine that is used here."""
    snapshots.unpack_into(MACHINE, directory)
    host = FakeHost(str(directory))
    vm = domain.parse(domain_xml(hostile.GPU))
    events.prepare(host, vm, Config(), Log(host, "win11", "error"))
    claim = host.read_bytes(f"{CLAIMS}/{UUID}")
    assert claim is not None, "prepare made no claim"
    return claim


def _sysfs(place: _Range, quick: bool) -> None:
    root = os.fsencode(place.machine)
    file = place.directory / "vm.xml"
    file.write_bytes(domain_xml(hostile.GPU))
    words = (b"--root", root, b"plan", b"--xml", os.fsencode(file))
    files = hostile.FILES
    cases = [(path, *one, False) for path in files for one in hostile.CONTENTS.items()]
    cases += [("proc/iomem", *one, False) for one in hostile.IOMEM.items()]
    cases += [(path, f"link to {to}", to.encode(), True) for path in files for to in hostile.LINKS]
    for path, name, content, link in cases[:: 7 if quick else 1]:
        path = path.replace("GPU", hostile.GPU)
        was = place.place(path, content, link=link)
        place.command(f"/{path}, {name}", (0, 1, 2), *words)
        place.put_back(path, was)


def _argv(place: _Range, quick: bool) -> None:
    here = place.directory / "here"
    here.mkdir()
    os.chdir(here)
    place.before = snapshot(place.directory)
    root = os.fsencode(place.machine)
    for name in hostile.NAMES:
        xml = domain_xml("0000:99:00.0")
        shown = f"hook of {name!r:.60}"
        place.hook(shown, xml, (1,), name, b"prepare", b"begin", b"-")
        place.hook(f"{shown}, alone", xml, (0,), name)
        place.hook(f"{shown}, as an event", xml, (0,), b"x", name, name, name)
    for words in hostile.COMMANDS:
        typed = b" ".join(words)
        place.before = snapshot(place.directory)
        rooted = words if words[0] == b"--root" else (b"--root", root, *words)
        place.command(f"command {typed!r:.60}", (0, 1, 2), *rooted)
    os.chdir(place.directory)


def _trees(place: _Range, quick: bool) -> None:
    file = place.directory / "bomb.tree"
    for name, content in hostile.TREES.items():
        file.write_bytes(content)
        place.before = snapshot(place.directory)
        for words in ((b"status",), (b"plan", b"--xml", b"-"), (b"plan", b"a"), (b"doctor",)):
            if quick and words[0] == b"doctor":
                continue
            place.command(
                f"{words[0].decode()} of a machine, {name}", (0, 1, 2),
                b"--root", os.fsencode(file), *words, given=domain_xml(hostile.GPU),
            )  # fmt: skip
        if os.path.lexists("/tmp/harm"):
            place.failures.append(f"machine, {name}: wrote /tmp/harm")


_KINDS = (_xml, _yaml, _claims, _sysfs, _argv, _trees)


def _run(effort: Effort) -> Outcome:
    place = _Range(effort.directory)
    counts = []
    for kind in _KINDS:
        before = place.cases
        kind(place, effort.quick)
        tried = place.cases - before
        counts.append(tried)
        if tried < 25:
            place.failures.append(f"only {tried} cases of {kind.__name__}")
    figures = "{} XML, {} YAML, {} claim, {} sysfs, {} argv, {} machine".format(*counts)
    figures += f"; at most {place.worst_s:.1f} s and {place.worst_mib:.0f} MiB"
    return Outcome(place.cases, tuple(place.failures), figures)


CHECK = Check(
    "bombs",
    "for any input it prints one sentence, within 2 s and 200 MiB",
    _run,
)
