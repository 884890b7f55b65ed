"""virtqemud, libvirt's daemon for QEMU alone, which no package of Debian's has.

Fedora, RHEL, openSUSE and Arch run it instead of libvirtd. It is built from the source of
the very libvirt that the root has: its few own files are compiled, and linked with the
libraries of the packages, whose private symbols it needs in exactly that version. The driver
for QEMU, which does the work, is the packaged one in both daemons.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from .cache import Cache, command
from .debian import Suite

# What is extracted, not installed: the build's own tools, then what it links with.
_PACKAGES = (
    "dash", "bash", "coreutils", "sed", "grep", "mawk", "gcc", "libc6-dev", "meson", "ninja-build",
    "pkgconf", "python3", "perl", "xsltproc", "libxml2-utils", "python3-docutils", "gettext",
    "libglib2.0-dev", "libgnutls28-dev", "libxml2-dev", "libtirpc-dev", "libjson-c-dev", "libvirt0",
)  # fmt: skip
# As in Debian's own build where the daemon or its units depend on it.
_OPTIONS = (
    "--prefix=/usr", "--libdir=lib/x86_64-linux-gnu", "--sysconfdir=/etc", "--localstatedir=/var",
    "-Dauto_features=disabled", "-Dno_git=true", "-Drunstatedir=/run", "-Dinit_script=systemd",
    "-Dinitconfdir=/etc/default", "-Dunitdir=/usr/lib/systemd/system", "-Ddriver_remote=enabled",
    "-Ddriver_libvirtd=enabled", "-Ddriver_qemu=enabled", "-Djson_c=enabled", "-Dpolkit=enabled",
    "-Dremote_default_mode=legacy", "-Dtls_priority=NORMAL",
)  # fmt: skip
# In the build's own directory.
_BUILD = r"""set -e
meson setup /work/build /work/source "$@"
cd /work/build
objects=$(ninja -t inputs src/virtqemud | grep '^src/virtqemud\.p/')
ninja $objects src/admin/libvirt_admin_driver.a
gcc -s -pie -o src/virtqemud $objects src/admin/libvirt_admin_driver.a \
    -Wl,--as-needed,-z,relro,-z,now,--allow-shlib-undefined \
    -l:libvirt.so.0 -l:libvirt-lxc.so.0 -l:libvirt-qemu.so.0 \
    -lgnutls -lglib-2.0 -lgobject-2.0 -lgio-2.0 -lxml2 -ltirpc
"""
UNITS = ("virtqemud.service", "virtqemud.socket", "virtqemud-ro.socket", "virtqemud-admin.socket")
_MASKED = ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
_WANTED_BY = {"service": "multi-user.target.wants", "socket": "sockets.target.wants"}


def build(cache: Cache, suite_name: str) -> Path:
    """A tree with virtqemud, its units enabled and those of libvirtd masked."""
    suite = Suite(cache, suite_name, with_source=True)
    packages = suite.versions(_PACKAGES)
    version = re.sub(r"\+b\d+$", "", packages["libvirt0"])  # a rebuild has the same source
    recipe = {"packages": packages, "options": _OPTIONS, "build": _BUILD, "units": UNITS}

    def make(directory: Path, log: Path) -> None:
        root = directory / "root"
        suite.extract(_PACKAGES, root, log)
        (root / "work").mkdir()
        suite.unpack_source("libvirt", version, root / "work/source", log)
        packager = ("-Dpackager=Debian", f"-Dpackager_version={version}")
        command(["chroot", root, "sh", "-c", _BUILD, "sh", *_OPTIONS, *packager], log=log)
        place(root / "work/build/src", directory / "tree")
        shutil.rmtree(root)

    return cache.build(f"virtqemud-{suite_name}", recipe, make) / "tree"


def place(built: Path, tree: Path) -> None:
    """Put what was built where a package would have it."""
    units = tree / "usr/lib/systemd/system"
    settings = tree / "etc/systemd/system"
    for directory in (units, settings, tree / "usr/sbin", tree / "etc/libvirt"):
        directory.mkdir(parents=True)
    shutil.copy(built / "virtqemud", tree / "usr/sbin")
    shutil.copy(built / "virtqemud.conf", tree / "etc/libvirt")
    for unit in UNITS:
        shutil.copy(built / unit, units)
        wants = settings / _WANTED_BY[unit.rpartition(".")[2]]
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")
    for unit in _MASKED:
        (settings / unit).symlink_to("/dev/null")
