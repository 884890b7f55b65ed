"""One class a package manager: how it installs, upgrades and removes a package in a root."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from pathlib import Path

from . import readme, versions
from .roots import Answer, Root

NAME = "vfio-console-hook"


class Manager:
    """What all have in common; a package lies in /repo of the root."""

    kind = ""
    program = ""
    line = ""
    """The line of the README that installs the package from a file."""
    assent = "yes |"
    """What is written before it, in sh, where a person would say yes."""
    libraries: tuple[str, ...] = ()
    """lxml and PyYAML, as this distribution calls them."""
    older: tuple[str, ...] = ()
    """Python 3.11 with them, for hosts whose own Python is older than 3.9."""
    libvirt = ""
    """libvirt's module for Python."""

    def __init__(self, root: Root) -> None:
        self.root = root
        (root.top / "repo").mkdir()
        self.set_up()

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """The packages of the distribution for which empty ones stand in, but Python."""
        return (*self.libraries, *self.older, self.libvirt)

    def set_up(self) -> None:
        """Make a repository with what the package depends on."""

    def bring(self, package: Path) -> str:
        """Put a package into the root; its path there."""
        shutil.copy(package, self.root.top / "repo")
        return f"/repo/{package.name}"

    def install(self, package: Path) -> Answer:
        """Install a package from a file by the line of the README, or upgrade to it."""
        alone = f"rm -rf /repo/new && mkdir /repo/new && cp {self.bring(package)} /repo/new"
        return self.root.shell(f"{alone} && cd /repo/new && {self.assent} {self.line}")

    def remove(self) -> Answer:
        raise NotImplementedError

    def purge(self) -> Answer:
        """Remove it, with the configuration where this package manager knows that."""
        return self.remove()

    def version(self) -> str:
        """The version that is installed, "" if there is none."""
        raise NotImplementedError

    def has(self, name: str) -> bool:
        """Whether a package of this name is installed."""
        raise NotImplementedError

    def verify(self) -> Answer:
        """Compare the installed files with the package."""
        raise NotImplementedError


class Apt(Manager):
    kind = "deb"
    program = "apt-get"
    line = readme.line("apt", "./")
    libraries = ("python3-lxml", "python3-yaml")
    libvirt = "python3-libvirt"
    assent = ""  # dpkg would take a yes for an answer, too

    def set_up(self) -> None:
        self.root.put("etc/apt/apt.conf.d/90yes", 'APT::Get::Assume-Yes "true";\n')

    def remove(self) -> Answer:
        return self.root.run("apt-get", "remove", "-y", NAME)

    def purge(self) -> Answer:
        return self.root.run("apt-get", "purge", "-y", NAME)

    def has(self, name: str) -> bool:
        return self.root.run("dpkg", "--status", name).status == 0

    def version(self) -> str:
        script = f"dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' {NAME}"
        return self.root.shell(script).text.partition("installed ")[2]

    def verify(self) -> Answer:
        return self.root.run("dpkg", "--verify", NAME)


class _Rpm(Manager):
    kind = "rpm"

    def set_up(self) -> None:
        # Of the package filesystem of Fedora and openSUSE.
        (self.root.top / "usr/share/licenses").mkdir()
        repository = self.root.top / "repo/base"
        repository.mkdir()
        with tempfile.TemporaryDirectory() as work:
            base = ("python3 = 3.13", "/bin/sh", "glibc")  # zypper wants a glibc
            for name, provides in (("base", base), *((one, ()) for one in self.stand_ins)):
                shutil.copy(versions.empty_rpm(name, provides, Path(work)), repository)
        self.root.run("createrepo_c", "--quiet", "/repo/base")

    def has(self, name: str) -> bool:
        return self.root.run("rpm", "-q", name).status == 0

    def version(self) -> str:
        found = self.root.run("rpm", "-q", "--queryformat", "%{VERSION}-%{RELEASE}", NAME)
        return found.text if found.status == 0 else ""

    def verify(self) -> Answer:
        return self.root.run("rpm", "--verify", "--nodeps", NAME)


class Dnf(_Rpm):
    program = "dnf"
    line = readme.line("dnf", "./")
    libraries = ("python3-lxml", "python3-pyyaml")
    older = ("python3.11", "python3.11-lxml", "python3.11-pyyaml")
    libvirt = "python3-libvirt"

    def set_up(self) -> None:
        super().set_up()
        # As on Fedora; Debian's dnf is another program.
        (self.root.top / "usr/bin/dnf").symlink_to("dnf5")
        text = "[base]\nname=base\nbaseurl=file:///repo/base\ngpgcheck=0\n"
        self.root.put("etc/yum.repos.d/base.repo", text)

    def remove(self) -> Answer:
        return self.root.run("dnf5", "remove", "-y", "--no-autoremove", NAME)


class Zypper(_Rpm):
    program = "zypper"
    line = readme.line("zypper", "./")
    assent = 'zypper() { command zypper --non-interactive "$@"; };'  # it reads from a terminal
    libraries = ("python3-lxml", "python3-PyYAML")
    older = ("python311", "python311-lxml", "python311-PyYAML")
    libvirt = "python3-libvirt-python"

    def set_up(self) -> None:
        super().set_up()
        options = ("--non-interactive", "addrepo", "--no-gpgcheck")
        self.root.run("zypper", *options, "/repo/base", "base")

    def remove(self) -> Answer:
        return self.root.run("zypper", "--non-interactive", "remove", NAME)


class Pacman(Manager):
    kind = "arch"
    program = "pacman"
    line = readme.line("pacman", "./")
    libraries = ("python-lxml", "python-yaml")
    libvirt = "libvirt-python"

    def set_up(self) -> None:
        for name in ("python", *self.stand_ins):
            self._empty(name)
        self.root.shell("repo-add -q /repo/base.db.tar.gz /repo/*.pkg.tar.gz")
        self.root.put(
            "etc/pacman.conf",
            "[options]\nArchitecture = auto\nSigLevel = Never\n[base]\nServer = file:///repo\n",
        )
        self.root.run("pacman", "-Sy", "--noconfirm")

    def _empty(self, name: str) -> None:
        """An Arch package without files."""
        fields = {"pkgname": name, "pkgbase": name, "pkgver": "3.13-1", "arch": "any"}
        text = "".join(f"{field} = {value}\n" for field, value in fields.items())
        target = self.root.top / f"repo/{name}-3.13-1-any.pkg.tar.gz"
        with tarfile.open(target, "w:gz") as tar:
            member = tarfile.TarInfo(".PKGINFO")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))

    def remove(self) -> Answer:
        return self.root.run("pacman", "-R", "--noconfirm", NAME)

    def purge(self) -> Answer:
        return self.root.run("pacman", "-Rn", "--noconfirm", NAME)

    def has(self, name: str) -> bool:
        return self.root.run("pacman", "-Q", name).status == 0

    def version(self) -> str:
        found = self.root.run("pacman", "-Q", NAME)
        return found.text.split()[1] if found.status == 0 else ""

    def verify(self) -> Answer:
        return self.root.run("pacman", "-Qkkq", NAME)
