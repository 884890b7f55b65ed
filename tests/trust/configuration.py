"""Every way in which the configuration can lie on a host, and whether root obeys it.

It says `enabled: false`, so whether it was obeyed can be seen: the GPU is left alone.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.trust.vm import OTHER_UID, event, fresh
from vfio_console_hook.config.load import DIRECTORY, VMS

PLACE = f"{VMS}/win11.yaml"
OFF = "enabled: false\n"
_BELONGS, _WRITABLE = "belongs to user", "can be written by others than root"

Maker = Callable[[Path], object]
"""Lays something out below the root of a machine."""


@dataclass(frozen=True)
class Way:
    """How it lies there; why it must be refused, "" where it must be obeyed."""

    name: str
    make: Maker
    why: str = ""


# By name: where a link is, what it says, and where the file is then.
_LINKS = {
    "absolute": (PLACE, "/srv/win11.yaml", "srv/win11.yaml"),
    "relative": (PLACE, "../../../srv/a/win11.yaml", "srv/a/win11.yaml"),
    "of stow": (DIRECTORY, "../opt/dots/our", "opt/dots/our/vms/win11.yaml"),
    "of vms": (VMS, "/srv/vms", "srv/vms/win11.yaml"),
}
_NIX = "nix/store/abc-etc/etc/vfio-console-hook/vms/win11.yaml"


def ways() -> Iterator[Way]:
    """All that are tried; without root, files cannot be given away."""
    plain = partial(_file, path=PLACE)
    yield Way("a plain file", plain)
    yield from _spoilt(plain, (DIRECTORY, VMS, PLACE), (0o020, 0o002, 0o1002), "")
    for name, (path, text, end) in _LINKS.items():
        made = partial(_linked, path=path, text=text, end=end)
        yield Way(f"a link, {name}", made)
        yield from _spoilt(made, (end, os.path.dirname(end)), (0o020, 0o002), f", {name}")
        if not os.geteuid():
            yield Way(f"a link of another user's, {name}", _given(made, path), _BELONGS)
    yield Way("as on NixOS", _nixos)
    yield Way("as on NixOS, not sticky", _opened(_nixos, "nix/store", 0o775), _WRITABLE)
    yield Way("a fifo", partial(_replaced, path=PLACE, make=os.mkfifo), "not a regular file")
    yield Way("a link to a fifo", _link_to_fifo, "not a regular file")
    yield Way("a circle", partial(_replaced, path=PLACE, make=_circle), "a link to nothing")
    for mode, why in ((0o755, ""), (0o775, _WRITABLE), (0o757, _WRITABLE)):
        for path in ("opt/tool", "opt"):
            yield Way(f"a command, /{path} of mode {mode:o}", _command(path, mode), why)


def _spoilt(made: Maker, paths: tuple[str, ...], bits: tuple[int, ...], how: str) -> Iterator[Way]:
    for path in paths:
        for one in bits:
            yield Way(f"/{path} of mode {one:o}{how}", _opened(made, path, one), _WRITABLE)
        if not os.geteuid():
            yield Way(f"/{path} of another user{how}", _given(made, path), _BELONGS)


def _file(root: Path, path: str, text: str = OFF) -> None:
    full = root / path
    full.parent.mkdir(parents=True, exist_ok=True)
    for one in full.parents:
        if root in one.parents:
            one.chmod(0o755)
    full.write_text(text)
    full.chmod(0o644)


def _linked(root: Path, path: str, text: str, end: str) -> None:
    _file(root, end)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(text)


def _nixos(root: Path) -> None:
    _linked(root, DIRECTORY, "/etc/static/vfio-console-hook", _NIX)
    (root / "etc/static").symlink_to("/nix/store/abc-etc/etc")
    # Its builders may write there, and replace nothing of each other's.
    (root / "nix/store").chmod(0o1775)


def _given(made: Maker, path: str) -> Maker:
    def make(root: Path) -> None:
        made(root)
        os.lchown(root / path, OTHER_UID, OTHER_UID)

    return make


def _opened(made: Maker, path: str, bits: int) -> Maker:
    def make(root: Path) -> None:
        made(root)
        full = root / path
        full.chmod(bits if bits & 0o700 else stat.S_IMODE(full.stat().st_mode) | bits)

    return make


def _replaced(root: Path, path: str, make: Callable[[str], None]) -> None:
    _file(root, path)
    (root / path).unlink()
    make(str(root / path))


def _circle(path: str) -> None:
    os.symlink(os.path.basename(path), path)


def _link_to_fifo(root: Path) -> None:
    _replaced(root, "srv/fifo", os.mkfifo)
    _replaced(root, PLACE, partial(os.symlink, "/srv/fifo"))


def _command(path: str, mode: int) -> Maker:
    def make(root: Path) -> None:
        _file(root, "opt/tool", "#!/bin/sh\n")
        (root / "opt/tool").chmod(0o755)
        (root / path).chmod(mode)
        words = ", ".join(f"{key}: /opt/tool x" for key in ("active", "stop", "start"))
        _file(root, PLACE, f"{OFF}services:\n  - {{name: tool, {words}}}\n")

    return make


def tried(quick: bool, directory: Path) -> Iterator[tuple[str, str]]:
    """Each way, with what was wrong, "" for nothing."""
    for way in ways():
        host = fresh("efifb-6.12", directory)
        root = Path(host.root)
        shutil.rmtree(root / DIRECTORY, ignore_errors=True)
        _file(root, "etc/hostname", "x\n")
        way.make(root)
        before = _shown(root)
        ended = event(host, "prepare")
        wrong = ended.wrong(1, way.why, "prepare") if way.why else ended.wrong(0)
        # Obeyed or refused, the GPU is left to libvirt alone.
        if not wrong and _shown(root) != before:
            wrong = "it was not obeyed: the GPU was taken"
        yield f"/{DIRECTORY}: {way.name}", wrong


def _shown(root: Path) -> dict[str, str]:
    """What the kernel shows: a fifo in the configuration would never be read to its end."""
    return {
        str(one): one.read_bytes().hex() if one.is_file() else str(one.is_dir())
        for top in ("proc", "sys")
        for one in sorted((root / top).rglob("*"))
        if not one.is_symlink() or one.name == "driver"
    }
