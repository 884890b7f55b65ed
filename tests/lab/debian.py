"""Debian's packages: their versions in a suite, and their files.

apt does the work, in a private root inside the cache: the machine's own package
lists and settings stay as they are. The mirror is the one that the machine's
own apt uses, whatever it is.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from pathlib import Path

from .architectures import AMD64, Architecture
from .cache import BuildError, Cache, command

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FRESH_S = 12 * 3600
# A mirror may be out of date, but its signature must be valid (see Suite).
MMDEBSTRAP = ("mmdebstrap", '--aptopt=Acquire::Check-Valid-Until "false"')
_MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"

# Program -> Debian package that has it.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "depmod": "kmod",
    "xz": "xz-utils",
    "zstd": "zstd",
    "setpriv": "util-linux",
    "git": "git",
}
KERNEL_TOOLS = {"gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc"}
# File -> Debian package that has it, for packages without a program.
FILES = {"/usr/share/seabios/vgabios-stdvga.bin": "seabios", str(KEYRING): "debian-archive-keyring"}
KERNEL_FILES = {"/usr/include/libelf.h": "libelf-dev", "/usr/include/openssl/ssl.h": "libssl-dev"}


def require_tools(
    *, own_kernels: bool, architectures: Collection[Architecture] = (AMD64,)
) -> None:
    """Install the programs that the lab calls, if they are missing.

    Raises BuildError with the command to run when it may not install them.
    """
    programs = {**TOOLS, **(KERNEL_TOOLS if own_kernels else {})}
    programs |= {one.emulator: one.package for one in architectures}
    files = {**FILES, **(KERNEL_FILES if own_kernels else {})}
    missing = [package for program, package in programs.items() if not shutil.which(program)]
    missing += [package for path, package in files.items() if not os.path.exists(path)]
    if not missing:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *sorted(set(missing))]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BuildError(f"missing programs; as root run: {' '.join(install)}")
    print(f"installing {' '.join(sorted(set(missing)))}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.call(["apt-get", "update", "-qq"], env=environment, stdout=subprocess.DEVNULL)
    if subprocess.call([*install, "-qq"], env=environment, stdout=subprocess.DEVNULL) != 0:
        raise BuildError(f"could not install what is missing: {' '.join(install)}")


def mirror() -> str:
    """The address of the Debian mirror that this machine's apt uses."""
    fields = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT) $(CODENAME)"]
    for line in _answer(*fields).stdout.splitlines():
        uri, _, rest = line.partition(" ")
        # The main archive, not its security or third-party siblings: that is
        # the one whose address ends in the distribution's name.
        if rest.startswith("main") and uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    raise BuildError("no Debian mirror in this machine's apt sources; the lab needs one")


def _in_pool(source: str, name: str) -> str:
    return f"{mirror()}/pool/main/{source[0]}/{source}/{name}_amd64.deb"


# Many kernels and roots need the same answers, and each takes apt seconds.
@functools.cache
def _answer(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


class Suite:
    """One suite of the archive for one architecture, with an optional overlay such as backports.

    with_source: its lists have the source packages too, for unpack_source().
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        architecture: Architecture = AMD64,
        *,
        with_source: bool = False,
    ) -> None:
        self.name = name
        self.architecture = architecture
        base = name[: -len("-backports")] if name.endswith("-backports") else name
        place = f"{name}-source" if with_source else name
        if architecture is not AMD64:
            place = f"{place}-{architecture.debian}"
        self._root = cache.root / "apt" / place
        self._log = cache.root / "logs" / f"apt-{place}.log"
        self.sources = [
            f"{kind} [signed-by={KEYRING}] {mirror()} {suite} main"
            for kind in ("deb", "deb-src")[: 1 + with_source]
            for suite in dict.fromkeys((base, name))
        ]
        with cache.locked(f"apt-{place}"):
            self._refresh()

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """What installing these packages on an empty system would bring: name -> version."""
        release = ("-t", self.name)
        argv = self._apt("apt-get", "-s", *release, "--no-install-recommends", "install", *packages)
        answer = _answer(*argv)
        if answer.returncode != 0:
            raise BuildError(f"{self.name} cannot install {' '.join(packages)}: {answer.stderr}")
        return dict(re.findall(r"^Inst (\S+) \((\S+)", answer.stdout, re.MULTILINE))

    def unpack(self, package: str, version: str, directory: Path, log: Path) -> None:
        """Unpack one package below a directory, without installing it."""
        debs = directory / "debs"
        debs.mkdir(parents=True)
        command(self._apt("apt-get", "download", f"{package}={version}"), log=log, cwd=debs)
        for deb in debs.iterdir():
            command(["dpkg-deb", "-x", deb, directory], log=log)
        shutil.rmtree(debs)

    def version_of(self, package: str) -> str:
        """The newest version of a package that the suite lists; "" if it lists none."""
        answer = _answer(*self._apt("apt-cache", "madison", package)).stdout
        return answer.split("|")[1].strip() if "|" in answer else ""

    def extract(self, packages: Sequence[str], root: Path, log: Path) -> None:
        """Make a root with packages and what they depend on, all extracted, none configured."""
        words = [*MMDEBSTRAP, "--variant=extract", f"--hook-dir={_MERGED_USR}"]
        words.append(f"--architectures={self.architecture.debian}")
        words += [f"--include={one}" for one in packages]  # a pattern has to stand alone
        command([*words, self.name, root, *self.sources], log=log)

    def unpack_source(self, package: str, version: str, directory: Path, log: Path) -> None:
        """Unpack a source package of format 3.0 (quilt) and apply its patches.

        A mirror may have no .dsc files, so the tar files are fetched by the digests in the
        signed list, and dpkg-source has nothing to do.
        """
        wanted = f"{package}={version}"
        listing = self._apt("apt-get", "source", "--download-only", "--print-uris", wanted)
        answer = _answer(*listing)
        files = re.findall(r"^'(\S+)' (\S+\.tar\.\S+) \d+ (\S+)$", answer.stdout, re.MULTILINE)
        if not files:
            raise BuildError(f"{self.name} has no source of {wanted}: {answer.stderr}")
        directory.mkdir(parents=True)
        for address, name, digest in sorted(files, key=lambda file: ".debian." in file[1]):
            if name.endswith(".asc"):
                continue
            archive = directory.with_name(name)
            helper = self._apt("/usr/lib/apt/apt-helper", "download-file", address, str(archive))
            command([*helper, digest], log=log)
            strip = [] if ".debian." in name else ["--strip-components=1"]
            command(["tar", "-xf", archive, "-C", directory, *strip], log=log)
            archive.unlink()
        patches = directory / "debian/patches"
        for line in (patches / "series").read_text().splitlines():
            if line and not line.startswith("#"):
                patch = patches / line.split()[0]
                command(["patch", "-s", "-p1", "-i", patch], log=log, cwd=directory)

    def unpack_pooled(self, source: str, name: str, directory: Path, log: Path) -> None:
        """Unpack a package that the pool still has but no list names, without its signature.

        name is PACKAGE_VERSION. Backports keep the metapackages of older kernels, and some
        of what these depend on only in the pool.
        """
        deb = directory / "debs" / f"{name}_amd64.deb"
        deb.parent.mkdir(parents=True)
        address = _in_pool(source, name)
        helper = [*self._apt("/usr/lib/apt/apt-helper"), "download-file", address, str(deb)]
        command(helper, log=log)
        command(["dpkg-deb", "-x", deb, directory], log=log)
        shutil.rmtree(deb.parent)

    def has_pooled(self, source: str, name: str) -> bool:
        """Whether the pool has a package, PACKAGE_VERSION, of a source package.

        Raises BuildError when the mirror cannot be asked.
        """
        address = _in_pool(source, name)
        try:
            request = urllib.request.Request(address, method="HEAD")  # noqa: S310  (apt's mirror)
            urllib.request.urlopen(request, timeout=60).close()  # noqa: S310  (apt's mirror)
        except urllib.error.HTTPError as e:
            if e.code == 404:
                return False
            raise BuildError(f"{address}: {e}") from e
        except OSError as e:
            raise BuildError(f"{address}: {e}") from e
        return True

    def _refresh(self) -> None:
        for name in ("lists/partial", "cache/archives/partial", "etc"):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        listing = self._root / "etc" / "sources.list"
        text = "\n".join(self.sources) + "\n"
        stamp = self._root / "stamp"
        known = listing.exists() and listing.read_text() == text and stamp.exists()
        if known and time.time() - stamp.stat().st_mtime < FRESH_S:
            return
        listing.write_text(text)
        try:
            command(self._apt("apt-get", "update", "--error-on=any"), log=self._log)
        except BuildError:
            if not stamp.exists():
                raise
            print(f"no fresh package lists of {self.name}; going on with the old ones", flush=True)
            return
        stamp.touch()

    def _apt(self, program: str, *arguments: str) -> list[str]:
        options = {
            "Dir::State": self._root,
            "Dir::State::lists": self._root / "lists",
            "Dir::State::status": self._root / "status",
            "Dir::Cache": self._root / "cache",
            "Dir::Etc::sourcelist": self._root / "etc" / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self.architecture.debian,
            "APT::Architectures": self.architecture.debian,
            "APT::Sandbox::User": "root",
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Languages": "none",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return [program, *words, *arguments]
