"""The kernels: Debian's own, and builds of its source shaped like those of other distributions.

A kernel is an image, a squashfs of its modules, and an initrd; it runs on the
root file system of one Debian release. To add one, add a line to KERNELS.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import images
from .architectures import AMD64, ARM64, Architecture
from .cache import UNUSED_AFTER_S, BuildError, Cache, command, sha256
from .debian import Suite

CONFIG = Path(__file__).parent / "config"
# The modules that find and mount the root file system, where they are not built in.
EARLY_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "squashfs", "overlay")


@dataclass(frozen=True)
class Kernel:
    """A kernel of the lab: where it comes from and which root it runs on.

    suites are tried in this order; the first that has the packages is used.
    fragments is empty for Debian's own image, otherwise names files in config/ that are
    merged over base.config, in this order, for a build from linux-source. abi is that of one
    release of Debian's, such as "6.16.12+deb13-amd64"; "" means the newest of the suite.
    Only Debian's own image can be of another architecture.
    """

    name: str
    root: str
    suites: tuple[str, ...]
    fragments: tuple[str, ...] = ()
    abi: str = ""
    architecture: Architecture = AMD64


@dataclass(frozen=True)
class Built:
    """Files of a kernel that is ready to boot."""

    kernel: Kernel
    release: str
    image: Path
    modules: Path
    initrd: Path
    root: Path


LINUX = "linux"  # Debian's source package
NEWEST = ("trixie-backports", "forky", "sid")

KERNELS = (
    Kernel("5.10", root="bullseye", suites=("bullseye",)),
    Kernel("6.1", root="bookworm", suites=("bookworm",)),
    Kernel("6.12", root="trixie", suites=("trixie",)),
    Kernel("bookworm-backports", root="bookworm", suites=("bookworm-backports",)),
    Kernel("trixie-backports", root="trixie", suites=("trixie-backports",)),
    Kernel("forky", root="forky", suites=("forky",)),
    # Each is on one side of a change: efidrm in the source (6.16), boot_display (6.18), BARs
    # reserved when the device is opened (7.1).
    *(
        Kernel(name, "trixie", ("trixie-backports",), abi=f"{name}+deb13-amd64")
        for name in ("6.16.12", "6.17.13", "6.18.15", "6.19.14", "7.0.13", "7.1.13")
    ),
    Kernel("arm64-6.12", root="trixie", suites=("trixie",), architecture=ARM64),
    Kernel("own-6.12", root="trixie", suites=("trixie",), fragments=("simpledrm",)),
    Kernel("own-7", root="trixie", suites=NEWEST, fragments=("efidrm",)),
    # For BOOTFB, which Debian's 6.1 never has.
    Kernel("own-6.1", root="bookworm", suites=("bookworm",), fragments=("distribution", "ubuntu")),
    *(
        Kernel(f"{shape}-{name}", "trixie", suites, ("distribution", shape))
        for name, suites in (("6.12", ("trixie",)), ("7", NEWEST))
        for shape in ("fedora", "ubuntu", "rhel", "arch")
    ),
)


def named(name: str) -> Kernel:
    """The kernel of that name; KeyError when there is none."""
    return {kernel.name: kernel for kernel in KERNELS}[name]


def build(cache: Cache, kernel: Kernel) -> Built:
    """Everything that a machine with this kernel boots from."""
    directory = _from_source(cache, kernel) if kernel.fragments else _from_package(cache, kernel)
    release = (directory / "release").read_text().strip()
    modules = [(p.stem.partition("-")[2], p.read_bytes()) for p in sorted(directory.glob("*.ko"))]
    return Built(
        kernel,
        release,
        image=directory / "vmlinuz",
        modules=directory / "modules.squashfs",
        initrd=images.initrd(cache, kernel.name, modules, kernel.architecture),
        root=images.root(cache, kernel.root, architecture=kernel.architecture),
    )


def not_offered(cache: Cache, kernel: Kernel) -> str:
    """Why a kernel of Debian is not in its suite, as a sentence; "" if it is."""
    try:
        if kernel.abi:
            suite = Suite(cache, kernel.suites[0])
            _, pooled = _packages_of(suite, kernel.abi)
            gone = [name for name in pooled if not suite.has_pooled(LINUX, name)]
            return f"the mirror no longer has {' and '.join(gone)}" if gone else ""
        here = Suite(cache, kernel.suites[0]).versions(["linux-image-amd64"])
        below = Suite(cache, kernel.root).versions(["linux-image-amd64"])
    except BuildError as e:
        # The last of apt's error lines has the reason.
        errors = [line for line in str(e).splitlines() if line.startswith("E: ")]
        return errors[-1].removeprefix("E: ") if errors else str(e)
    if kernel.suites[0] != kernel.root and here == below:
        return f"{kernel.suites[0]} has nothing newer than {kernel.root}"
    return ""


def seconds_to_build(cache: Cache, kernel: Kernel, before: Collection[str] = ()) -> float:
    """An estimate for a time budget: 0 when any build of it is in the cache.

    before are the names of kernels that will be built earlier. One of the same source costs
    no more than what its options change (35 to 50 s were seen, 834 s for the first).
    """
    cost = 60.0
    if kernel.fragments:
        built = [other.suites for other in map(named, before) if other.fragments]
        cost = 120.0 if kernel.suites in built else 900.0
    root = images.root_name(kernel.root, "", kernel.architecture)
    names = {f"kernel-{kernel.name}": cost, root: 120.0}
    return sum(cost for name, cost in names.items() if not _built(cache, name))


def seconds_to_build_root(cache: Cache, kernel: Kernel, variant: str) -> float:
    """The same for a variant of the kernel's root; 0 for none."""
    return 0.0 if not variant or _built(cache, f"root-{kernel.root}-{variant}") else 240.0


def _built(cache: Cache, name: str) -> bool:
    """Whether any build of that name is in the cache; a name may begin as another one does."""
    found = (cache.root / "builds").glob(f"{name}-*/manifest.json")
    return any(one.parent.name.rpartition("-")[0] == name for one in found)


def _from_package(cache: Cache, kernel: Kernel) -> Path:
    """Debian's kernel, taken out of its packages without installing them.

    Up to 6.18 one linux-image package holds all; later it is spread over
    linux-base, linux-binary and linux-modules, with the image beside the modules.
    """
    suite = Suite(cache, kernel.suites[0], kernel.architecture)
    packages, pooled = _packages_of(suite, kernel.abi)

    def make(directory: Path, log: Path) -> None:
        tree = directory / "tree"
        for name, version in packages.items():
            suite.unpack(name, version, tree, log)
        for name in pooled:
            suite.unpack_pooled(LINUX, name, tree, log)
        library = tree / "usr/lib/modules"
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            (tree / "lib/modules").rename(library)
            shutil.rmtree(tree / "lib")
        image = [*tree.glob("boot/vmlinuz-*"), *library.glob("*/vmlinuz")][0]
        shutil.copy(image, directory / "vmlinuz")
        pack_modules(tree, directory, log)

    recipe: dict[str, object] = {"packages": packages, "early": EARLY_MODULES}
    if pooled:
        recipe["pooled"] = pooled
    return cache.build(f"kernel-{kernel.name}", recipe, make)


def _packages_of(suite: Suite, abi: str) -> tuple[dict[str, str], list[str]]:
    """The packages of a kernel with their versions, and those that only the pool has.

    Raises BuildError.
    """
    if not abi:
        found = suite.versions([f"linux-image-{suite.architecture.debian}"])
        kinds = ("linux-image-", "linux-base-", "linux-binary-", "linux-modules-")
        return {
            name: version
            for name, version in found.items()
            if name.startswith(kinds) and name[len("linux-") :].split("-")[1][0].isdigit()
        }, []
    binary, image = f"linux-binary-{abi}", f"linux-image-{abi}"
    version = suite.version_of(binary)
    if version:
        return {binary: version}, [f"linux-{kind}-{abi}_{version}" for kind in ("modules", "base")]
    version = suite.version_of(image)
    if not version:
        raise BuildError(f"{suite.name} no longer has {image}")
    return {image: version}, []


def _from_source(cache: Cache, kernel: Kernel) -> Path:
    """A build of Debian's linux-source: tinyconfig, base.config and the fragments.

    All builds of one source share its tree with the objects, so that the second shape
    compiles only what its options change: a few minutes instead of a quarter of an hour.
    """
    _, package, version = _source(cache, kernel.suites)
    fragments = _fragments(kernel)

    def make(directory: Path, log: Path) -> None:
        with configured_source(cache, kernel, log) as tree:
            jobs = f"-j{os.cpu_count() or 1}"
            command(["make", "ARCH=x86_64", jobs, "bzImage", "modules"], log=log, cwd=tree)
            staging = directory / "tree"
            install = ["make", "ARCH=x86_64", f"INSTALL_MOD_PATH={staging}/usr", "modules_install"]
            command([*install, "INSTALL_MOD_STRIP=1"], log=log, cwd=tree)
            shutil.copy(tree / "arch/x86/boot/bzImage", directory / "vmlinuz")
            shutil.copy(tree / ".config", directory / "config")
        pack_modules(staging, directory, log)

    recipe = {
        "package": [package, version],
        "fragments": [sha256(path) for path in fragments],
        "early": EARLY_MODULES,
    }
    return cache.build(f"kernel-{kernel.name}", recipe, make)


@contextlib.contextmanager
def configured_source(cache: Cache, kernel: Kernel, log: Path) -> Iterator[Path]:
    """The source of one of our own kernels with its configuration, for one build at a time."""
    suite, package, version = _source(cache, kernel.suites)
    with cache.locked(package):
        tree = _source_tree(cache, suite, package, version, log)
        _configure(tree, _fragments(kernel), log)
        yield tree


def _fragments(kernel: Kernel) -> list[Path]:
    return [CONFIG / f"{name}.config" for name in ("base", *kernel.fragments)]


def _source(cache: Cache, suites: Sequence[str]) -> tuple[Suite, str, str]:
    for name in suites:
        suite = Suite(cache, name)
        for package, version in suite.versions(["linux-source"]).items():
            if package.startswith("linux-source-"):
                return suite, package, version
    raise BuildError(f"no linux-source in {', '.join(suites)}")


def _source_tree(cache: Cache, suite: Suite, package: str, version: str, log: Path) -> Path:
    """The unpacked source with the objects of earlier builds; that of other versions goes."""
    tree = cache.root / "sources" / f"{package}_{version}"
    for other in tree.parent.glob("*/.config"):
        # Written by each build. A package's name has the release, so the next one has another.
        if other.parent != tree and time.time() - other.stat().st_mtime > UNUSED_AFTER_S:
            shutil.rmtree(other.parent)
    if (tree / "Makefile").exists():
        return tree
    for old in tree.parent.glob(f"{package}_*"):
        shutil.rmtree(old)
    unpacked = tree.with_name(f"{package}_deb")
    suite.unpack(package, version, unpacked, log)
    archive = next((unpacked / "usr/src").glob("*.tar.xz"))
    partial = tree.with_name(f"{package}_partial")
    partial.mkdir()
    command(["tar", "-xf", archive, "-C", partial, "--strip-components=1"], log=log)
    partial.rename(tree)
    shutil.rmtree(unpacked)
    return tree


def _configure(tree: Path, fragments: Sequence[Path], log: Path) -> None:
    """Write .config; BuildError when Kconfig dropped one of our options."""
    command(["make", "ARCH=x86_64", "tinyconfig"], log=log, cwd=tree)
    merge: list[str | Path] = ["scripts/kconfig/merge_config.sh", "-m", ".config", *fragments]
    command(merge, log=log, cwd=tree)
    command(["make", "ARCH=x86_64", "olddefconfig"], log=log, cwd=tree)
    have = (tree / ".config").read_text().splitlines()
    lines = [line for path in fragments for line in path.read_text().splitlines()]
    # Of two lines for one option the later one holds.
    wanted = {_option(line): line for line in lines if "CONFIG_" in line}.values()
    # An option that a newer kernel no longer has is ignored; one that it has and
    # refuses lacks a dependency.
    known = {_option(line) for line in have if "CONFIG_" in line}
    for line in wanted:
        if line not in have and _option(line) in known:
            raise BuildError(f"the kernel's configuration refuses {line}; a dependency is missing")


def _option(line: str) -> str:
    """The option that a line sets, or says that it is not set."""
    return line.split("=")[0].removeprefix("# ").split()[0]


def pack_modules(tree: Path, directory: Path, log: Path) -> None:
    """From tree/usr/lib/modules/RELEASE: the squashfs, early modules, the release's name."""
    release = next((tree / "usr/lib/modules").iterdir()).name
    # depmod looks below lib/.
    if not (tree / "lib").exists():
        (tree / "lib").symlink_to("usr/lib")
    command(["depmod", "-b", tree, release], log=log)
    library = tree / "usr/lib/modules" / release
    for number, path in enumerate(_early_modules(library)):
        name = path.name.partition(".")[0]
        (directory / f"{number:02}-{name}.ko").write_bytes(_decompressed(path))
    squashed = directory / "modules.squashfs"
    command(["mksquashfs", library, squashed, "-comp", "zstd", "-no-progress"], log=log)
    (directory / "release").write_text(release + "\n")
    shutil.rmtree(tree)


def _early_modules(library: Path) -> list[Path]:
    """The files of EARLY_MODULES and their dependencies, in loading order."""
    needs: dict[str, list[str]] = {}
    for line in (library / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
    order: list[str] = []
    for name in EARLY_MODULES:
        for file in needs:
            # No match means built in. modules.dep lists a dependency after its users.
            if Path(file).name.partition(".")[0].replace("-", "_") == name:
                order += [*reversed(needs[file]), file]
    return [library / file for file in dict.fromkeys(order)]


def _decompressed(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    return content
