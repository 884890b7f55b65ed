"""Damage to a machine: files, folders and links that are gone, cut off, full of something else.

What is damaged and how follows from a seed, so a test that fails is run again by its number.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

_ERRNOS = ("13", "5", "16", "110")  # EACCES, EIO, EBUSY, ETIMEDOUT
_NUMBERS = ("-1", "9" * 30, "9" * 5000, "0x", "1e9", "\u0663", "\u00b2", "nan")
_WORDS = (b"", b"x", b":", b"-", b"=", b"/", b'"', b"{", b"\n")


def damage(root: str, seed: int, times: int) -> list[str]:
    """Damage the unpacked machine so many times; what was done, for the message of a test."""
    random = Random(seed)  # noqa: S311  (no secret: the seed is in the name of a test)
    paths = sorted(Path(root).rglob("*"))
    done = []
    for _ in range(times):
        path = random.choice(paths)
        if not path.is_symlink() and not path.exists():
            continue  # it went with a folder
        kinds = _OF_LINK if path.is_symlink() else _OF_FOLDER if path.is_dir() else _OF_FILE
        name = random.choice(sorted(kinds))
        kinds[name](random, path, Path(root))
        done.append(f"{name} {path.relative_to(root)}")
    return done


Kinds = dict[str, Callable[[Random, Path, Path], None]]


def _gone(random: Random, path: Path, root: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _another_kind(random: Random, path: Path, root: Path) -> None:
    folder = path.is_dir() and not path.is_symlink()
    _gone(random, path, root)
    if folder:
        path.write_text("x\n")
    else:
        path.mkdir()


def _link_to_nothing(random: Random, path: Path, root: Path) -> None:
    _gone(random, path, root)
    path.symlink_to("nowhere")


def _link_to_itself(random: Random, path: Path, root: Path) -> None:
    _gone(random, path, root)
    path.symlink_to(path.name)


def _refused(random: Random, path: Path, root: Path) -> None:
    place = root / "refused" / path.relative_to(root)
    if path.is_dir():
        place /= ".itself"
    if not any(above.is_file() for above in place.parents):
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.write_text(random.choice(_ERRNOS))


def _changed(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Path, Path], None]:
    def act(random: Random, path: Path, root: Path) -> None:
        path.write_bytes(change(random, path.read_bytes()))

    return act


def _word(random: Random, content: bytes) -> bytes:
    words = content.split(b" ")
    words[random.randrange(len(words))] = random.choice(_WORDS)
    return b" ".join(words)


def _lines(random: Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    random.shuffle(lines)
    return b"\n".join(lines[: random.randrange(len(lines) + 1)])


def _byte(random: Random, content: bytes) -> bytes:
    place = random.randrange(len(content) + 1)
    return content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]


_OF_LINK: Kinds = {
    "gone": _gone, "folder": _another_kind, "nowhere": _link_to_nothing, "loop": _link_to_itself,
}  # fmt: skip
_OF_FOLDER: Kinds = {
    "gone": _gone, "file": _another_kind, "nowhere": _link_to_nothing, "refused": _refused,
}  # fmt: skip
_OF_FILE: Kinds = {
    "gone": _gone,
    "folder": _another_kind,
    "nowhere": _link_to_nothing,
    "refused": _refused,
    "empty": _changed(lambda _, content: b""),
    "noise": _changed(lambda random, _: bytes(random.randrange(256) for _ in range(40))),
    "cut": _changed(lambda random, content: content[: random.randrange(len(content) + 1)]),
    "nul": _changed(lambda random, content: content[:5] + b"\0" + content[5:]),
    "number": _changed(lambda random, _: random.choice(_NUMBERS).encode() + b"\n"),
    "long": _changed(lambda random, content: content * 50),
    "byte": _changed(_byte),
    "word": _changed(_word),
    "lines": _changed(_lines),
}
