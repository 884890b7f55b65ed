"""The files a machine boots from: root file systems, firmware, initrd, the program.

mmdebstrap makes a root file system from a list of packages and adds nothing. The lab's
own files come with the initrd (guest/), so a change to the lab does not need a new root.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import foreign, modular
from .architectures import AMD64, Architecture
from .cache import Cache, command, sha256
from .debian import MMDEBSTRAP, Suite

GUEST = Path(__file__).parent / "guest"

SYSTEMD = ("systemd", "systemd-sysv")
PACKAGES = (
    "udev",
    "kmod",
    "dbus",
    "libvirt-daemon-system",
    "libvirt-clients",
    "python3",
    "python3-lxml",
    "python3-yaml",
    "python3-libvirt",
    "pciutils",
    "procps",  # libvirtd.service needs /bin/kill to reload, up to Debian 12
    "psmisc",
    "less",
    "strace",  # shows the hook's system calls
)
# Packages for some scenarios. None of them runs unless the kernel line asks for it
# (guest/init), so other scenarios can use the same root.
EXTRAS = {
    "bookworm": (
        "apparmor",  # the profiles that confine libvirtd come with libvirt
        # A desktop: a display server, which has its own driver for any DRM device, and
        # a display manager whose login box stands still.
        "xserver-xorg-core",
        "xdm",
    ),
    "forky": ("kmscon",),  # which draws the console once its unit is started
    "trixie": (
        # For the newcomer at a terminal, with manual pages and completion.
        "tmux",
        "man-db",
        "bash-completion",
        # A user's sound server.
        "pipewire",
        "wireplumber",
        "libpam-systemd",
        "dbus-user-session",
    ),
}
# Not every release of OVMF lights these GPUs; this one does.
FIRMWARE_SUITE = "bookworm"
U_BOOT_SUITE = "trixie"
SQUASHED = "root.squashfs"
_SQUASH = ("-no-progress", "-comp", "zstd", "-Xcompression-level", "6")


@dataclass(frozen=True)
class Variant:
    """A root for some scenarios: packages instead of EXTRAS, commands at the end of the build.

    suite is that of the root if it is not the kernel's; modular is whether virtqemud is built
    for it; init has the packages of what runs the machine.
    """

    packages: tuple[str, ...] = ()
    suite: str = ""
    hooks: tuple[str, ...] = ()
    modular: bool = False
    init: tuple[str, ...] = SYSTEMD


# What a desktop on Wayland needs beside its compositor.
_SESSION = (
    "greetd",
    "foot",
    "fonts-dejavu-core",
    "libpam-systemd",
    "dbus-user-session",
    "pipewire",
    "wireplumber",
)
# The labels go into the squashfs: the machine would take minutes to set them. setfiles would
# leave out file systems which this kernel shows without labels, but for -m.
_CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"
_LABEL = f"setfiles -F -m -e /proc -e /sys -e /dev {_CONTEXTS} /"
VARIANTS = {
    "apparmor-trixie": Variant(("apparmor",)),
    "apparmor-sid": Variant(("apparmor",), suite="sid"),
    "selinux": Variant(
        ("selinux-policy-default", "policycoreutils"), hooks=(f'chroot "$1" {_LABEL}',)
    ),
    "gnome": Variant((*_SESSION[1:], "gdm3", "gnome-shell", "gnome-session", "dconf-cli")),
    "openrc": Variant(
        ("busybox", "busybox-syslogd"),
        # OpenRC has init scripts and runlevels; sysvinit's init starts it. polkit wants a logind.
        init=("openrc", "sysvinit-core", "libpam-elogind"),
    ),
    "kwin": Variant((*_SESSION, "kwin-wayland")),
    "plasma": Variant((*_SESSION[1:], "sddm", "plasma-desktop", "plasma-workspace")),
    "sway": Variant((*_SESSION, "sway", "swaybg", "mako-notifier")),
    "virtqemud": Variant(modular=True),
}


def root(
    cache: Cache, suite_name: str, variant_name: str = "", architecture: Architecture = AMD64
) -> Path:
    """A squashfs with a Debian release that has libvirtd, QEMU and Python; or a variant of it.

    That of another architecture has no variants.
    """
    if architecture is not AMD64:
        return _foreign_root(Suite(cache, suite_name, architecture), cache)
    plain = Variant(EXTRAS.get(suite_name, ()))
    variant = VARIANTS[variant_name] if variant_name else plain
    suite = Suite(cache, variant.suite or suite_name)
    packages = (*variant.init, *PACKAGES, architecture.package, *variant.packages)
    recipe: dict[str, object] = {"suite": suite.name, "packages": suite.versions(packages)}
    hooks = list(variant.hooks)
    if variant.modular:
        hooks.append(f"sync-in {modular.build(cache, suite.name)} /")
    if hooks:
        recipe["hooks"] = hooks

    def make(directory: Path, log: Path) -> None:
        tree = directory / "root.tar"
        argv = [*MMDEBSTRAP, "--variant=minbase", f"--include={','.join(packages)}"]
        argv += [f"--customize-hook={hook}" for hook in hooks]
        command([*argv, suite.name, tree, *suite.sources], log=log)
        command(["mksquashfs", "-", directory / SQUASHED, "-tar", *_SQUASH], log=log, stdin=tree)
        tree.unlink()

    return cache.build(root_name(suite_name, variant_name), recipe, make) / SQUASHED


def root_name(suite: str, variant: str = "", architecture: Architecture = AMD64) -> str:
    """The name of a root in the cache."""
    of = "" if architecture is AMD64 else architecture.debian
    return "-".join(filter(None, ("root", suite, variant, of)))


def _foreign_root(suite: Suite, cache: Cache) -> Path:
    packages = (*SYSTEMD, *PACKAGES, suite.architecture.package)
    recipe = {
        "suite": suite.name,
        "packages": suite.versions((foreign.ESSENTIAL, *packages)),
        "by": sha256(Path(foreign.__file__)),
    }

    def make(directory: Path, log: Path) -> None:
        tree = directory / "tree"
        foreign.unpack(suite, packages, tree, log)
        command(["mksquashfs", tree, directory / SQUASHED, *_SQUASH], log=log)
        shutil.rmtree(tree)

    name = root_name(suite.name, architecture=suite.architecture)
    return cache.build(name, recipe, make) / SQUASHED


def u_boot(cache: Cache) -> Path:
    """U-Boot for QEMU's board of arm64, one that has a driver for bochs-display (u_boot.py)."""
    suite = Suite(cache, U_BOOT_SUITE)
    version = suite.versions(["u-boot-qemu"])["u-boot-qemu"]

    def make(directory: Path, log: Path) -> None:
        suite.unpack("u-boot-qemu", version, directory / "unpacked", log)
        shutil.copy(directory / "unpacked/usr/lib/u-boot/qemu_arm64/u-boot.bin", directory)
        shutil.rmtree(directory / "unpacked")

    return cache.build("u-boot", {"u-boot-qemu": version}, make) / "u-boot.bin"


def ovmf(cache: Cache) -> Path:
    """A directory with OVMF_CODE_4M.fd and OVMF_VARS_4M.fd."""
    suite = Suite(cache, FIRMWARE_SUITE)
    version = suite.versions(["ovmf"])["ovmf"]

    def make(directory: Path, log: Path) -> None:
        suite.unpack("ovmf", version, directory / "unpacked", log)
        for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"):
            shutil.copy(directory / "unpacked" / "usr/share/OVMF" / name, directory)
        shutil.rmtree(directory / "unpacked")

    return cache.build("ovmf", {"ovmf": version}, make)


def initrd(
    cache: Cache,
    name: str,
    modules: Sequence[tuple[str, bytes]],
    architecture: Architecture = AMD64,
) -> Path:
    """An initrd that mounts the root, copies guest/ into it and starts its init.

    modules are kernel modules (name, uncompressed content) in loading order.
    """
    suite = Suite(cache, FIRMWARE_SUITE, architecture)
    busybox = suite.versions(["busybox-static"])["busybox-static"]
    guest = {path.name: sha256(path) for path in sorted(GUEST.iterdir()) if path.is_file()}
    early = [[module, hashlib.sha256(content).hexdigest()] for module, content in modules]
    recipe = {"busybox": busybox, "guest": guest, "modules": early}

    def make(directory: Path, log: Path) -> None:
        tree = directory / "tree"
        suite.unpack("busybox-static", busybox, directory / "unpacked", log)
        for path in ("bin", "modules", "guest"):
            (tree / path).mkdir(parents=True)
        shutil.copy(directory / "unpacked/bin/busybox", tree / "bin/busybox")
        for number, (module, content) in enumerate(modules):
            (tree / "modules" / f"{number:02}-{module}.ko").write_bytes(content)
        for file in guest:
            shutil.copy(GUEST / file, tree / "guest" / file)
        shutil.move(str(tree / "guest" / "init"), tree / "init")
        (tree / "init").chmod(0o755)
        (directory / "initrd").write_bytes(gzip.compress(_cpio(tree), 6))
        shutil.rmtree(tree)
        shutil.rmtree(directory / "unpacked")

    return cache.build(f"initrd-{name}", recipe, make) / "initrd"


def program(repository: Path) -> bytes:
    """The working tree as a tar file: what git tracks and what it does not ignore."""
    listing = ["git", "-C", str(repository), "ls-files", "-z", "-c", "-o", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, check=True).stdout.split(b"\0")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in sorted(set(filter(None, names))):
            path = repository / name.decode()
            # git also lists a deleted file whose deletion is not committed.
            if path.exists() or path.is_symlink():
                tar.add(path, arcname=name.decode(), recursive=False, filter=_as_root)
    return buffer.getvalue()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _cpio(tree: Path) -> bytes:
    """The tree as a cpio archive in the "newc" form that Linux unpacks, all owned by root."""
    out = io.BytesIO()
    for number, path in enumerate(sorted(tree.rglob("*")), start=1):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        _cpio_entry(out, str(path.relative_to(tree)), (number, status.st_mode), content)
    _cpio_entry(out, "TRAILER!!!", (0, 0), b"")
    return out.getvalue()


def _cpio_entry(out: io.BytesIO, name: str, number_mode: Iterable[int], content: bytes) -> None:
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    # (Linux Documentation/driver-api/early-userspace/buffer-format.rst)
    fields = [*number_mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    out.write(b"070701" + b"".join(b"%08x" % field for field in fields))
    out.write(name.encode() + b"\0")
    out.write(b"\0" * (-out.tell() % 4))
    out.write(content)
    out.write(b"\0" * (-out.tell() % 4))
