"""Modules that stand in for drivers whose hardware an emulated machine cannot have.

Their sources are in stand-ins/, one C file a module, and headers with what several share.
They are built for a kernel of the lab and put among its modules, where they come before
modules of the same name, so udev and modprobe load them as they load the others.
To add one, add the file and name it in a scenario's stand_ins.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import kernels
from .cache import Cache, command, sha256
from .debian import Suite
from .kernels import Built

SOURCES = Path(__file__).parent / "stand-ins"
# What the headers of Debian's kernels do not depend on and their build runs.
_BUILD_TOOLS = ("make", "dash", "bash", "coreutils", "findutils", "grep", "mawk", "sed")


def with_modules(cache: Cache, built: Built, names: Sequence[str]) -> Built:
    """The same kernel with these stand-ins among its modules."""
    if not names:
        return built
    sources = [*(SOURCES / f"{name}.c" for name in names), *sorted(SOURCES.glob("*.h"))]
    recipe = {
        "kernel": built.modules.parent.name,
        "sources": {path.name: sha256(path) for path in sources},
    }

    def make(directory: Path, log: Path) -> None:
        tree = directory / "tree"
        library = tree / "usr/lib/modules" / built.release
        library.parent.mkdir(parents=True)
        command(["unsquashfs", "-q", "-n", "-d", library, built.modules], log=log)
        work = directory / "work"
        work.mkdir()
        for path in sources:
            shutil.copy(path, work)
        (work / "Makefile").write_text(f"obj-m := {' '.join(f'{name}.o' for name in names)}\n")
        compile_here = _with_source if built.kernel.fragments else _with_headers
        compile_here(cache, built, work, log)
        (library / "updates").mkdir()
        for name in names:
            shutil.copy(work / f"{name}.ko", library / "updates")
        shutil.rmtree(work)
        kernels.pack_modules(tree, directory, log)

    name = f"kernel-{built.kernel.name}-{'-'.join(names)}"
    return replace(built, modules=cache.build(name, recipe, make) / "modules.squashfs")


def _with_source(cache: Cache, built: Built, work: Path, log: Path) -> None:
    """Build the modules with the source that our own kernel was built from."""
    with kernels.configured_source(cache, built.kernel, log) as tree:
        command(["make", "ARCH=x86_64", "modules_prepare"], log=log, cwd=tree)
        # The tree may have the symbols of another kernel; these modules need none of ours.
        words = ["make", "ARCH=x86_64", f"M={work}", "KBUILD_MODPOST_WARN=1", "modules"]
        command(words, log=log, cwd=tree)


def _with_headers(cache: Cache, built: Built, work: Path, log: Path) -> None:
    """Build the modules in a root of the kernel's suite, with its headers and its compiler.

    Its packages are only extracted, not installed.
    """
    suite = Suite(cache, built.kernel.suites[0])
    root = work.with_name("root")
    suite.extract((*_BUILD_TOOLS, f"linux-headers-{built.release}"), root, log)
    shutil.copytree(work, root / "work")
    # The link "awk" is made when mawk is installed.
    make = ["make", "-C", f"/lib/modules/{built.release}/build", "M=/work", "AWK=mawk", "modules"]
    command(["chroot", root, *make], log=log)
    for module in (root / "work").glob("*.ko"):
        shutil.copy(module, work)
    shutil.rmtree(root)
