"""Builds a package from what install.sh installs: ./install.sh --package deb|rpm|arch [DIR].

Run from a clone, with any Python from 3.9 on and nothing else of this project. install.sh
fills a tree (DESTDIR); `arrange` moves what a package has elsewhere, and one function a kind
packs it, with the texts beside this file. The same clone gives the same bytes: files have
the time of the release.
"""

from __future__ import annotations

import calendar
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLONE = HERE.parent.parent
NAME = "vfio-console-hook"
REVISION = "1"
STANDARD = {
    "etc", "usr", "usr/bin", "usr/lib", "usr/lib/systemd", "usr/lib/systemd/system", "usr/share",
    "usr/share/doc", "usr/share/licenses", "usr/share/man", "usr/share/man/man5",
    "usr/share/man/man8",
}  # fmt: skip
"""The directories that every distribution has; all others belong to the package, too."""


class PackagingError(Exception):
    """Why there is no package, in one sentence."""


@dataclass(frozen=True)
class Release:
    """What all packages say of this version; time_s is in seconds since the epoch."""

    version: str
    summary: str
    time_s: int
    maintainer: str

    @property
    def program(self) -> str:
        """The directory of the program, below the root."""
        return f"usr/lib/{NAME}.{self.version}"

    def fill(self, template: str, **more: str) -> str:
        """The text of a file beside this one, with its @WORDS@ replaced."""
        words = {
            "VERSION": self.version,
            "SUMMARY": self.summary,
            "TITLE": self.summary[0].upper() + self.summary[1:],
            "EPOCH": str(self.time_s),
            "MAINTAINER": self.maintainer,
            "YEAR": time.strftime("%Y", time.gmtime(self.time_s)),
            "DAY": time.strftime("%a %b %d %Y", time.gmtime(self.time_s)),
            **more,
        }
        text = (HERE / template).read_text(encoding="utf-8")
        return re.sub("@([A-Z]+)@", lambda found: words[found[1]], text)


def release() -> Release:
    """What is said by the package's __init__.py, NEWS.md and the environment.

    SOURCE_DATE_EPOCH is that of reproducible-builds.org; DEBFULLNAME and DEBEMAIL are those
    of Debian's tools (debchange(1)), and name who distributes the package.
    """
    text = (CLONE / NAME.replace("-", "_") / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^"""(.+)\."""\n\n__version__ = "([0-9.]+)"$', text, re.MULTILINE)
    if found is None:
        raise PackagingError("vfio_console_hook/__init__.py has no version")
    author = os.environ.get("DEBFULLNAME", f"the {NAME} authors")
    address = os.environ.get("DEBEMAIL", f"{NAME}@localhost")
    when = os.environ.get("SOURCE_DATE_EPOCH") or _day_in_news(found[2])
    # In Debian's form: no article, no capital letter and no full stop.
    summary = "hook of libvirt that frees a GPU from the host's console for VMs"
    return Release(found[2], summary, int(when), f"{author} <{address}>")


def _day_in_news(version: str) -> int:
    """The date in the heading of a version in NEWS.md, at midnight UTC."""
    text = (CLONE / "NEWS.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(version)} \((\d{{4}}-\d\d-\d\d)\)$", text, re.MULTILINE)
    if found is None:
        raise PackagingError(f"NEWS.md has no date of version {version}")
    return calendar.timegm(time.strptime(found[1], "%Y-%m-%d"))


def tool(name: str, package: str) -> str:
    """The path of a program of this host.

    Raises PackagingError if it is missing, with the package that has it.
    """
    found = shutil.which(name)
    if found is None:
        raise PackagingError(f"there is no {name} here: install {package}")
    return found


def run(*argv: str | Path, **environment: str) -> None:
    """Run a program.

    Raises PackagingError with the last line that it has printed when it fails.
    """
    done = subprocess.run(  # noqa: S603  (install.sh and the tools of packagers)
        [str(word) for word in argv],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise PackagingError(f"{Path(argv[0]).name} failed: {last.removeprefix('install.sh: ')}")


# --- the tree that all packages have ----------------------------------------------


def arrange(this: Release, tree: Path) -> None:
    """Fill a tree with what the package of any kind has."""
    run(CLONE / "install.sh", DESTDIR=str(tree))
    program = tree / this.program
    (tree / f"usr/lib/{NAME}").unlink()
    next((tree / "usr/lib").glob(f"{NAME}.*")).rename(program)
    (tree / f"usr/lib/{NAME}").symlink_to(program.name)
    for name in ("made", "packages"):
        (program / name).unlink()
    for cache in program.rglob("__pycache__"):
        shutil.rmtree(cache)
    # package.sh says why the gates are no files of the package.
    (tree / "etc/libvirt/hooks/qemu").rename(program / "gate")
    put(program / "daemon-gate", (CLONE / "hooks/daemon").read_text(encoding="utf-8"), 0o755)
    shutil.rmtree(tree / "etc/libvirt")
    put(program / "package.sh", this.fill("package.sh"))
    _enable_by_preset(tree / "usr/lib/systemd")
    for page in sorted(tree.glob("usr/share/man/*/*")):
        compress(page)
    for path in (path for path in sorted(tree.rglob("*")) if _is_text_of_ours(path)):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(": installed by install.sh", ": from its package"), "utf-8")


def _enable_by_preset(systemd: Path) -> None:
    """Administrators can turn the unit off by presets, too; install.sh runs no systemctl."""
    for wants in systemd.glob("system/*.wants"):
        shutil.rmtree(wants)
    unit = systemd / f"system/{NAME}-recover.service"
    put(unit, unit.read_text(encoding="utf-8") + (HERE / "enabled").read_text(encoding="utf-8"))
    put(systemd / f"system-preset/50-{NAME}.preset", (HERE / "preset").read_text(encoding="utf-8"))


def _is_text_of_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return b": installed by install.sh" in path.read_bytes()


def put(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def compress(path: Path) -> None:
    """Replace a file by FILE.gz without a time in it."""
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
    packed.chmod(0o644)
    path.unlink()


def entries(tree: Path) -> Iterator[tuple[str, Path]]:
    """Everything below a tree, by name, directories before what is in them."""
    for path in sorted(tree.rglob("*")):
        yield str(path.relative_to(tree)), path


def set_times(this: Release, tree: Path) -> None:
    """Give the modes and the time of the release to everything below a tree."""
    for _, path in entries(tree):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (this.time_s, this.time_s), follow_symlinks=False)
    os.utime(tree, (this.time_s, this.time_s))


def _configuration(tree: Path) -> Iterator[str]:
    """The files that administrators change, and that an upgrade keeps."""
    for name, path in entries(tree / "etc"):
        if path.is_file() and not path.is_symlink():
            yield f"etc/{name}"


def size_bytes(tree: Path) -> int:
    return sum(path.lstat().st_size for _, path in entries(tree) if path.is_file())


# --- one function a kind ----------------------------------------------------------


def build_deb(this: Release, tree: Path, directory: Path) -> Path:
    """A .deb, built by dpkg-deb."""
    packer = tool("dpkg-deb", "dpkg")
    # Debian's zsh reads this directory.
    (tree / "usr/share/zsh/site-functions").rename(tree / "usr/share/zsh/vendor-completions")
    documents = tree / f"usr/share/doc/{NAME}"
    licence = "\n".join(
        f" {line}" if line else " ."
        for line in (documents / "LICENSE").read_text(encoding="utf-8").strip().splitlines()[4:]
    )
    (documents / "LICENSE").unlink()
    put(documents / "copyright", this.fill("deb/copyright", LICENSE=licence))
    (documents / "NEWS.md").rename(documents / "changelog")
    compress(documents / "changelog")
    put(documents / "changelog.Debian", this.fill("deb/changelog", DATE=_rfc_2822(this.time_s)))
    compress(documents / "changelog.Debian")
    put(tree / f"usr/share/python3/runtime.d/{NAME}.rtupdate", this.fill("deb/rtupdate"), 0o755)
    put(tree / f"usr/share/lintian/overrides/{NAME}", this.fill("deb/lintian-overrides"))

    control = tree / "DEBIAN"
    put(control / "control", this.fill("deb/control", KIB=str(size_bytes(tree) // 1024)))
    put(control / "conffiles", "".join(f"/{name}\n" for name in _configuration(tree)))
    sums = "".join(
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {name}\n"  # noqa: S324  (dpkg's format)
        for name, path in entries(tree)
        if path.is_file() and not path.is_symlink() and not name.startswith(("DEBIAN/", "etc/"))
    )
    put(control / "md5sums", sums)
    for name in ("preinst", "postinst", "prerm", "postrm"):
        put(control / name, this.fill(f"deb/{name}"), 0o755)
    set_times(this, tree)
    made = directory / f"{NAME}_{this.version}-{REVISION}_all.deb"
    # xz is what all supported releases can unpack. It gives other bytes with several threads.
    options = ("--root-owner-group", "-Zxz", "--threads-max=1")
    run(packer, *options, "--build", tree, made, SOURCE_DATE_EPOCH=str(this.time_s))
    return made


def _rfc_2822(time_s: int) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(time_s))


def build_rpm(this: Release, tree: Path, directory: Path) -> Path:
    """An .rpm, built by rpmbuild."""
    packer = tool("rpmbuild", "rpm-build (Debian: rpm)")
    _move_license(tree)
    set_times(this, tree)
    with tempfile.TemporaryDirectory() as top:
        spec = Path(top) / f"{NAME}.spec"
        put(spec, this.fill("rpm/spec", TREE=str(tree), FILES="\n".join(_rpm_files(tree))))
        settings = {
            "_topdir": top,
            "_rpmdir": f"{top}/made",
            "_buildhost": "localhost",
            "use_source_date_epoch_as_buildtime": "1",
            "clamp_mtime_to_source_date_epoch": "1",
            # The files are as they should be; nothing is compiled or stripped.
            "__os_install_post": "%{nil}",
            # What the rpm of EL8 can still read.
            "_rpmformat": "4",
            "_binary_payload": "w6.xzdio",
        }
        defines = [word for name in settings for word in ("--define", f"{name} {settings[name]}")]
        run(packer, "-bb", *defines, spec, SOURCE_DATE_EPOCH=str(this.time_s))
        (made,) = Path(top).glob("made/*/*.rpm")
        shutil.copy(made, directory)
        return directory / made.name


def _move_license(tree: Path) -> None:
    """Put the licence where all but Debian look for it."""
    target = tree / f"usr/share/licenses/{NAME}/LICENSE"
    target.parent.mkdir(parents=True)
    (tree / f"usr/share/doc/{NAME}/LICENSE").rename(target)


def _rpm_files(tree: Path) -> Iterator[str]:
    configuration = set(_configuration(tree))
    for name, path in entries(tree):
        if name.startswith("usr/share/licenses/"):
            kind = "%license "
        elif name.startswith(("usr/share/doc/", "usr/share/man/")):
            kind = "%doc "
        elif name in configuration:
            kind = "%config(noreplace) "
        else:
            kind = ""
        if path.is_symlink() or path.is_file():
            yield f'{kind}"/{name}"'
        elif name not in STANDARD:
            yield f'%dir "/{name}"'


def build_arch(this: Release, tree: Path, directory: Path) -> Path:
    """An Arch package: a tar file with .PKGINFO and .MTREE (pacman's makepkg is not needed)."""
    _move_license(tree)
    put(tree / f"usr/share/libalpm/hooks/{NAME}.hook", this.fill("arch/hook"))
    backup = "\n".join(f"backup = {name}" for name in _configuration(tree))
    put(tree / ".PKGINFO", this.fill("arch/pkginfo", BYTES=str(size_bytes(tree)), BACKUP=backup))
    put(tree / ".INSTALL", this.fill("arch/install"))
    set_times(this, tree)
    (tree / ".MTREE").write_bytes(gzip.compress(_mtree(tree).encode(), 9, mtime=0))
    set_times(this, tree)
    made = directory / f"{NAME}-{this.version}-{REVISION}-any.pkg.tar.xz"
    with tarfile.open(made, "w:xz", format=tarfile.PAX_FORMAT) as tar:
        for name, path in entries(tree):
            tar.add(path, arcname=name, recursive=False, filter=_as_root)
    return made


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _mtree(tree: Path) -> str:
    """The list by which pacman -Qkk checks files (mtree(5))."""
    lines = ["#mtree", "/set type=file uid=0 gid=0 mode=644"]
    for name, path in entries(tree):
        status = path.lstat()
        words = [f"./{name}", f"time={int(status.st_mtime)}.0"]
        if path.is_symlink():
            words += ["mode=777", "type=link", f"link={os.readlink(path)}"]
        elif path.is_dir():
            words += ["mode=755", "type=dir"]
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            words += [f"mode={status.st_mode & 0o777:o}", f"size={status.st_size}"]
            words += [f"sha256digest={digest}"]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


KINDS: dict[str, Callable[[Release, Path, Path], Path]] = {
    "deb": build_deb,
    "rpm": build_rpm,
    "arch": build_arch,
}


def main(arguments: list[str]) -> int:
    """Build one package; print its path."""
    kind, *rest = arguments
    os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory() as top:
            tree = Path(top) / "tree"
            tree.mkdir()
            this = release()
            arrange(this, tree)
            directory = Path(*rest).resolve()
            directory.mkdir(parents=True, exist_ok=True)
            print(KINDS[kind](this, tree, directory))
    except (PackagingError, OSError) as error:
        print(f"install.sh: no package was made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
