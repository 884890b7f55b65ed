"""Debian roots to install packages into, and what has changed in them.

A root is a squashfs in the lab's cache, below an overlay in memory: what was changed is what lies
in the upper directory. Everything is mounted in the mount namespace of this process (see
__main__.py), so nothing is left when it ends.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import BuildError, Cache, command
from tests.lab.debian import MMDEBSTRAP, Suite

# What the .deb depends on: downloaded beforehand, and installed by apt in the trial.
NEEDED = ("python3", "python3-lxml", "python3-yaml")
MANAGERS_SUITE = "forky"
MANAGERS = (
    "dnf5", "zypper", "rpm", "createrepo-c", "pacman-package-manager", "makepkg", "systemd",
    "libarchive-tools", "mount", *NEEDED,
)  # fmt: skip

# What package managers write for themselves, and Python and the tests leave behind.
OWN_STATE = re.compile(
    r"(var/(lib/(apt|dpkg|rpm|dnf|zypp|pacman|systemd|PackageKit)|cache|log)|tmp|root|run|dev|repo"
    r"|usr/lib/sysimage|etc/(yum\.repos\.d|zypp|dnf|pacman\.(conf|d)|ld\.so\.cache|pki))(/|$)"
)


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it has printed on both streams."""

    status: int
    text: str


@dataclass(frozen=True)
class Root:
    """A root that is mounted at top; what is below lower is how it was."""

    top: Path
    lower: Path
    upper: Path
    log: Path

    def argv(self, *argv: str) -> tuple[str | Path, ...]:
        """The command line that runs a command in the root.

        It is the root of a mount namespace, as on a host, and not of a chroot: rpm gives its
        scripts a namespace of their own, from which a file that a process outside has open
        would have another path (Linux fs/d_path.c).
        """
        script = 'cd "$0" && pivot_root . mnt && cd / && umount -l mnt && exec "$@"'
        apart = ("unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script)
        return (*apart, self.top, *argv)

    def run(self, *argv: str) -> Answer:
        """Run a command in the root, which cannot ask anything."""
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            self.argv(*argv),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": path, "LC_ALL": "C.UTF-8", "HOME": "/root"},
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        with self.log.open("a", encoding="utf-8") as out:
            out.write(f"$ {' '.join(argv)}\n{done.stdout}[{done.returncode}]\n")
        return Answer(done.returncode, done.stdout)

    def shell(self, script: str) -> Answer:
        return self.run("/bin/sh", "-c", script)

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def text(self, path: str) -> str:
        """A file of the root; "" if there is none."""
        file = self.top / path
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def changes(self) -> set[str]:
        """What differs from the root as it was: "+path", "-path" or "~path", without OWN_STATE."""
        return set(self._changes(self.upper))

    def _changes(self, directory: Path) -> Iterator[str]:
        for path in sorted(directory.iterdir()):
            name = str(path.relative_to(self.upper))
            if OWN_STATE.match(name):
                continue
            before = self.lower / name
            status = path.lstat()
            there = os.path.lexists(before)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                # A whiteout (Linux Documentation/filesystems/overlayfs.rst).
                if there:
                    yield f"-{name}"
            elif not there:
                yield f"+{name}"
            elif not _same(path, before):
                yield f"~{name}"
            if path.is_dir() and not path.is_symlink():
                yield from self._changes(path)


def _same(one: Path, other: Path) -> bool:
    """Whether two files, links or directories are the same, but for the time."""
    if one.lstat().st_mode != other.lstat().st_mode:
        return False
    if one.is_symlink():
        return os.readlink(one) == os.readlink(other)
    return one.is_dir() or one.read_bytes() == other.read_bytes()


@contextmanager
def mounted(image: Path, work: Path, log: Path) -> Iterator[Root]:
    """A root from a squashfs, with an overlay in memory, below the directory work."""
    root = Root(work / "root", work / "lower", work / "memory/upper", log)
    for path in (root.top, root.lower, work / "memory"):
        path.mkdir(parents=True)
    _mount("-t", "squashfs", "-o", "loop,ro", image, root.lower)
    _mount("-t", "tmpfs", "-o", "size=3g", "packages", work / "memory")
    for path in (root.upper, work / "memory/work"):
        path.mkdir()
    layers = f"lowerdir={root.lower},upperdir={root.upper},workdir={work / 'memory/work'}"
    _mount("-t", "overlay", "-o", layers, "packages", root.top)
    _mount("-t", "proc", "packages", root.top / "proc")
    try:
        yield root
    finally:
        for path in (root.top / "proc", root.top, work / "memory", root.lower):
            subprocess.run(["umount", path], check=False)
        shutil.rmtree(work, ignore_errors=True)


def _mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"cannot mount a root: {done.stderr.strip()}")


def small(cache: Cache, name: str) -> Path:
    """A squashfs with apt and what it needs; what the .deb needs is downloaded, and no more."""
    suite = Suite(cache, name)
    recipe = {"suite": name, "packages": suite.versions(("apt", "mount", *NEEDED))}
    download = "apt-get install -y --download-only --no-install-recommends"
    hook = f'--customize-hook=chroot "$1" {download} {" ".join(NEEDED)}'
    options = ("--variant=apt", "--include=mount", "--skip=cleanup/apt", hook)
    return make(cache, f"packages-{name}", recipe, suite, options)


def managers(cache: Cache) -> Path:
    """A squashfs with the package managers of other distributions."""
    suite = Suite(cache, MANAGERS_SUITE)
    recipe = {"suite": MANAGERS_SUITE, "packages": suite.versions(MANAGERS)}
    options = ("--variant=minbase", f"--include={','.join(MANAGERS)}")
    return make(cache, "packages-managers", recipe, suite, options)


def make(
    cache: Cache, name: str, recipe: object, suite: Suite, options: tuple[str, ...]
) -> Path:
    """A squashfs of what mmdebstrap makes with these options; from the cache, if it is there."""

    def fill(directory: Path, log: Path) -> None:
        tree = directory / "root.tar"
        argv = [*MMDEBSTRAP, *options, suite.name, str(tree), *suite.sources]
        command(argv, log=log)
        squash = ["mksquashfs", "-", str(directory / "root.squashfs"), "-tar", "-no-progress"]
        command([*squash, "-comp", "zstd", "-Xcompression-level", "6"], log=log, stdin=tree)
        tree.unlink()

    return cache.build(name, recipe, fill) / "root.squashfs"
