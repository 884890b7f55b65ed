"""What another user could have put where the hook's files are, and what must come of it.

Each case is one thing in one place, before one event. A follower would find there what it
looks for: the real file or directory is moved elsewhere, and what is planted leads to it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.fakehost import FakeHost, snapshot
from tests.libvirt_xml import UUID
from tests.trust.process import Exit
from tests.trust.vm import OTHER_UID, event, fresh
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME
from vfio_console_hook.claims.history import STATUS
from vfio_console_hook.machine.runfiles import RUN

# The hook goes on without these, and they do not make it fail.
_NEWS = (STATUS, f"{STATUS}/{UUID}", f"{RUN}/kernel")
DIRECTORIES = (RUN, CLAIMS, BY_NAME, STATUS)
FILES = (f"{RUN}/lock", f"{CLAIMS}/{UUID}", f"{RUN}/kernel", f"{STATUS}/{UUID}")


def _link(place: Path, elsewhere: Path) -> None:
    place.rename(elsewhere)
    place.symlink_to(elsewhere)


def _link_to_nothing(place: Path, elsewhere: Path) -> None:
    place.rename(elsewhere)
    place.symlink_to(elsewhere.with_name("nothing"))


def _fifo(place: Path, elsewhere: Path) -> None:
    place.rename(elsewhere)
    os.mkfifo(place, 0o600)


def _hard_link(place: Path, elsewhere: Path) -> None:
    os.link(place, elsewhere)


def _of_another_user(place: Path, elsewhere: Path) -> None:
    os.chown(place, OTHER_UID, OTHER_UID)


def _written_by(bits: int) -> Callable[[Path, Path], None]:
    def plant(place: Path, elsewhere: Path) -> None:
        place.chmod(stat.S_IMODE(place.stat().st_mode) | bits)

    return plant


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "a link": _link,
    "a link to nothing": _link_to_nothing,
    "a fifo": _fifo,
    "a hard link": _hard_link,
    "another user's": _of_another_user,
    "writable by a group": _written_by(0o020),
    "writable by all": _written_by(0o002),
}


def tried(quick: bool, directory: Path) -> Iterator[tuple[str, str]]:
    """Each case, with what was wrong, "" for nothing."""
    machines = ("efifb-6.12",) if quick else ("efifb-6.12", "native-6.1", "vgacon-5.10")
    for machine in machines:
        for name, plant in PLANTS.items():
            if plant is _of_another_user and os.geteuid():
                continue  # only root can give a file away
            for path in (*DIRECTORIES, *FILES):
                if plant is _hard_link and path in DIRECTORIES:
                    continue
                for operation in ("prepare", "release"):
                    case = f"{machine}: /{path} is {name} at {operation}"
                    yield case, _one(machine, path, plant, operation, directory)
        yield from _drafts(machine, directory)
    yield from _modes(machines[0], directory)


def _one(
    machine: str, path: str, plant: Callable[[Path, Path], None], operation: str, directory: Path
) -> str:
    host = fresh(machine, directory)
    before = snapshot(host)
    event(host, "prepare")
    if operation == "prepare":
        event(host, "release")
        _lay_out(host, path)
    place, elsewhere = Path(host.path(path)), directory / "elsewhere"
    if not place.exists():
        return "" if path.endswith("/kernel") else f"there is no /{path} to plant anything for"
    plant(place, elsewhere)
    then, known = snapshot(host), looks(place, elsewhere)
    ended = event(host, operation)
    wrong = _wrong_ending(ended, path, operation, changed=snapshot(host) != then)
    if looks(place, elsewhere) != known and not (ended.status == 0 and path not in DIRECTORIES):
        wrong = wrong or "what was planted, or what it leads to, was changed"
    if looks(elsewhere) != _below(elsewhere, known):
        wrong = wrong or "what is elsewhere was changed"
    if not wrong and operation == "release" and path not in _NEWS:
        wrong = _mended(host, place, elsewhere, before)
    _clean(elsewhere)
    return wrong


def _wrong_ending(ended: Exit, path: str, operation: str, *, changed: bool) -> str:
    if path in _NEWS:
        return ended.wrong(0)
    if changed:
        return "the machine was changed"
    return ended.wrong(1, f"/{path} ", operation)


def _mended(host: FakeHost, place: Path, elsewhere: Path, before: dict[str, str]) -> str:
    """Once it is put right again, release gives everything back."""
    if place.is_symlink() or stat.S_ISFIFO(place.lstat().st_mode):
        place.unlink()
        elsewhere.rename(place)
    else:
        os.chown(place, os.geteuid(), os.getegid())
        place.chmod(0o700 if place.is_dir() else 0o600)
        _clean(elsewhere)
    ended = event(host, "release")
    if ended.wrong(0):
        return f"put right again: {ended.wrong(0)}"
    return "" if snapshot(host) == before else "put right again, the machine is not as before"


def _lay_out(host: FakeHost, path: str) -> None:
    """What a follower would use at prepare; a claim there would be one that was not released."""
    full = Path(host.path(path))
    if path in FILES and not full.exists():
        full.write_text("")
        full.chmod(0o600)


def _clean(elsewhere: Path) -> None:
    if elsewhere.is_dir() and not elsewhere.is_symlink():
        shutil.rmtree(elsewhere)
    elif os.path.lexists(elsewhere):
        elsewhere.unlink()


Look = dict[str, tuple[int, int, int, bytes]]


def looks(*places: Path) -> Look:
    """Each file in and at these places: number, mode, owner and content."""
    seen: Look = {}
    for place in places:
        below = [place] if os.path.lexists(place) else []
        below += sorted(place.rglob("*")) if place.is_dir() and not place.is_symlink() else []
        for one in below:
            status = one.lstat()
            content = b""
            if one.is_symlink():
                content = os.fsencode(os.readlink(one))
            elif one.is_file():
                content = one.read_bytes()
            seen[str(one)] = (status.st_ino, status.st_mode, status.st_uid, content)
    return seen


def _below(elsewhere: Path, known: Look) -> Look:
    return {path: one for path, one in known.items() if Path(path).is_relative_to(elsewhere)}


def _drafts(machine: str, directory: Path) -> Iterator[tuple[str, str]]:
    """The names under which claims are prepared: nothing that lies there is opened."""
    for kind in ("link", "fifo", "file"):
        host = fresh(machine, directory)
        elsewhere = directory / "elsewhere"
        elsewhere.write_text("untouched")
        event(host, "prepare")
        event(host, "release")

        ended = event(host, "prepare", first=partial(_plant_drafts, host, kind, elsewhere))
        wrong = ended.wrong(0)
        if elsewhere.read_text() != "untouched":
            wrong = "what the draft leads to was written"
        yield f"{machine}: a {kind} where the draft goes", wrong
        _clean(elsewhere)


def _plant_drafts(host: FakeHost, kind: str, elsewhere: Path) -> None:
    """In the process that will write: its number is in the name."""
    for folder in (CLAIMS, STATUS):
        draft = Path(host.path(f"{folder}/.{UUID}.{os.getpid()}"))
        if kind == "link":
            draft.symlink_to(elsewhere)
        elif kind == "fifo":
            os.mkfifo(draft)
        else:
            os.link(elsewhere, draft)


def _modes(machine: str, directory: Path) -> Iterator[tuple[str, str]]:
    """Whatever the umask, and whatever root itself has opened for reading."""
    for umask in (0o000, 0o022, 0o027, 0o077, 0o777):
        host = fresh(machine, directory)
        for operation in ("prepare", "start"):
            event(host, operation, first=partial(os.umask, umask))
        yield f"{machine}: umask {umask:03o}", _wrong_modes(host)
    host = fresh(machine, directory)
    event(host, "prepare")
    for path in (RUN, CLAIMS, BY_NAME, f"{RUN}/lock"):
        Path(host.path(path)).chmod(0o755)
    event(host, "release")
    event(host, "prepare")
    yield f"{machine}: opened for reading", _wrong_modes(host)


def _wrong_modes(host: FakeHost) -> str:
    found = {}
    for top, folder_mode, file_mode in ((RUN, 0o700, 0o600), (STATUS, 0o755, 0o644)):
        for one in (Path(host.path(top)), *Path(host.path(top)).rglob("*")):
            mode = stat.S_IMODE(one.lstat().st_mode)
            wanted = folder_mode if one.is_dir() and not one.is_symlink() else file_mode
            if not one.is_symlink() and mode != wanted:
                found[str(one.relative_to(host.root))] = oct(mode)
    claimed = os.path.exists(host.path(f"{CLAIMS}/{UUID}"))
    return f"{found}" if found else "" if claimed else "nothing was claimed"
