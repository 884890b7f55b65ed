"""The packages: what is in them, what linters say, and that two builds are the same."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gate import ROOT
from tests.packages import readme
from tests.packages.managers import Apt, Dnf, Manager
from tests.packages.trials import HOST_LINE, TRIALS, clone, host, life
from tests.test_style import check, tool
from vfio_console_hook import __version__

PACKAGING = ROOT / "config/packaging"
PROGRAM = f"usr/lib/vfio-console-hook.{__version__}"
DOC = "usr/share/doc/vfio-console-hook"
KINDS = ("deb", "rpm", "arch")

# What a package has and install.sh does not install, and the reverse; see build.py.
ADDED = {
    f"{PROGRAM}/gate",
    f"{PROGRAM}/daemon-gate",
    f"{PROGRAM}/package.sh",
    "usr/lib/systemd/system-preset/50-vfio-console-hook.preset",
}
ONLY_INSTALLED = {
    "etc/libvirt/hooks/qemu",
    f"{PROGRAM}/made",
    f"{PROGRAM}/packages",
    *(
        f"usr/lib/systemd/system/{daemon}.service.wants/vfio-console-hook-recover.service"
        for daemon in ("libvirtd", "virtqemud")
    ),
}
LICENSE = "usr/share/licenses/vfio-console-hook/LICENSE"
OF_KIND = {
    "deb": {
        f"{DOC}/copyright",
        f"{DOC}/changelog.gz",
        f"{DOC}/changelog.Debian.gz",
        "usr/share/lintian/overrides/vfio-console-hook",
        "usr/share/python3/runtime.d/vfio-console-hook.rtupdate",
        "usr/share/zsh/vendor-completions/_vfio-console-hook",
    },
    "rpm": {LICENSE},
    "arch": {LICENSE, "usr/share/libalpm/hooks/vfio-console-hook.hook"},
}
LEFT_OUT = {
    "deb": {
        f"{DOC}/LICENSE",
        f"{DOC}/NEWS.md",
        "usr/share/zsh/site-functions/_vfio-console-hook",
    },
    "rpm": {f"{DOC}/LICENSE"},
    "arch": {f"{DOC}/LICENSE"},
}


def build(kind: str, directory: Path) -> Path:
    done = subprocess.run(
        [ROOT / "install.sh", "--package", kind, directory],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Path(done.stdout.strip())


@dataclass(frozen=True)
class Built:
    """A package of each kind, and the list of files that is in it."""

    deb: Path
    rpm: Path
    arch: Path

    def files(self, kind: str) -> set[str]:
        if kind == "deb":
            listing = run("dpkg-deb", "--fsys-tarfile", self.deb)
            done = subprocess.run(["tar", "-t"], input=listing, capture_output=True, check=True)
            names = done.stdout.decode().splitlines()
        elif kind == "rpm":
            names = run("rpm", "-qp", "--list", self.rpm).decode().splitlines()
        else:
            with tarfile.open(self.arch) as tar:
                names = [name for name in tar.getnames() if not name.startswith(".")]
        return {name.removeprefix(".").strip("/") for name in names} - {""}


def run(*words: str | Path) -> bytes:
    return subprocess.run(words, capture_output=True, check=True).stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    for program in ("dpkg-deb", "rpmbuild"):
        tool(program)
    directory = tmp_path_factory.mktemp("packages")
    return Built(*(build(kind, directory) for kind in KINDS))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What install.sh installs, but bytecode, by the names that it has in a package."""
    dest = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [ROOT / "install.sh"], env={"DESTDIR": str(dest)}, check=True, stdout=subprocess.DEVNULL
    )
    names = {
        str(path.relative_to(dest))
        for path in dest.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path.suffix != ".pyc"
    }
    names = {name.replace("usr/lib/vfio-console-hook.1", PROGRAM) for name in names}
    return {f"{name}.gz" if "/man/" in name else name for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_has_what_install_sh_installs(
    built: Built, installed: set[str], kind: str
) -> None:
    found = built.files(kind)

    files = {name for name in found if not any(other.startswith(f"{name}/") for other in found)}
    files -= {"etc/vfio-console-hook/vms"}  # an empty directory
    assert files == (installed - ONLY_INSTALLED - LEFT_OUT[kind]) | ADDED | OF_KIND[kind]
    assert "etc/vfio-console-hook/vms" in found


@pytest.mark.parametrize("kind", KINDS)
def test_two_builds_are_the_same_bytes(built: Built, tmp_path: Path, kind: str) -> None:
    again = build(kind, tmp_path)

    first: Path = getattr(built, kind)
    assert again.name == first.name
    assert digest(again) == digest(first)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_from_another_place_and_umask_is_the_same(built: Built, tmp_path: Path) -> None:
    clone = tmp_path / "another clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    for path in clone.rglob("*"):
        os.utime(path, (1, 1))

    script = 'umask 077; exec "$0" --package arch "$1"'
    subprocess.run(
        ["/bin/sh", "-c", script, clone / "install.sh", tmp_path],
        check=True,
        stdout=subprocess.DEVNULL,
    )

    assert digest(tmp_path / built.arch.name) == digest(built.arch)


def test_lintian_has_no_objection(built: Built) -> None:
    check(tool("lintian"), "--allow-root", "--fail-on", "error,warning", str(built.deb))


def test_rpmlint_has_no_objection(built: Built) -> None:
    check(tool("rpmlint"), "--strict", "-c", str(PACKAGING / "rpm/rpmlint.toml"), str(built.rpm))


@pytest.mark.parametrize(
    "template", ["deb/lintian-overrides", "rpm/rpmlint.toml"], ids=["lintian", "rpmlint"]
)
def test_every_objection_that_is_left_out_says_why(template: str) -> None:
    previous = ""
    for line in (PACKAGING / template).read_text().splitlines():
        if "vfio-console-hook: " in line or line.startswith('    "'):
            assert previous.strip().startswith(("#", "vfio-console-hook: ", '"')), line
        previous = line


def test_all_packages_have_the_version_of_the_program(built: Built) -> None:
    assert run("dpkg-deb", "-f", built.deb, "Version").decode().strip() == f"{__version__}-1"
    asked = run("rpm", "-qp", "--queryformat", "%{VERSION}-%{RELEASE}", built.rpm)
    assert asked.decode() == f"{__version__}-1"
    assert f"pkgver = {__version__}-1" in member(built.arch, ".PKGINFO").decode().splitlines()


def member(package: Path, name: str) -> bytes:
    with tarfile.open(package) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def test_the_configuration_is_one_for_every_package_manager(built: Built) -> None:
    config = ["/etc/vfio-console-hook/default.yaml", "/etc/xdg/autostart/vfio-console-hook.desktop"]
    assert run("dpkg-deb", "-I", built.deb, "conffiles").decode().split() == config
    assert run("rpm", "-qp", "--configfiles", built.rpm).decode().split() == config
    # RPMFILE_CONFIG and RPMFILE_NOREPLACE (rpm, rpmfiles.h)
    flags = run("rpm", "-qp", "--queryformat", "[%{FILENAMES} %{FILEFLAGS}\n]", built.rpm).decode()
    assert {f"{one} 17" for one in config} <= set(flags.splitlines())
    kept = re.findall("^backup = (.*)$", member(built.arch, ".PKGINFO").decode(), re.MULTILINE)
    assert [f"/{one}" for one in kept] == config


def test_everything_belongs_to_root(built: Built) -> None:
    listing = run("dpkg-deb", "-c", built.deb).decode().splitlines()
    assert {line.split()[1] for line in listing} == {"root/root"}
    owners = run("rpm", "-qp", "--queryformat", "[%{FILEUSERNAME}/%{FILEGROUPNAME}\n]", built.rpm)
    assert set(owners.decode().split()) == {"root/root"}
    with tarfile.open(built.arch) as tar:
        assert {(one.uid, one.gid) for one in tar} == {(0, 0)}


def test_pacman_can_check_every_file_by_the_digest(built: Built) -> None:
    lines = subprocess.run(
        ["gzip", "-d"], input=member(built.arch, ".MTREE"), capture_output=True, check=True
    ).stdout.decode()

    digests = dict(re.findall(r"^\./(\S+) .*sha256digest=(\w+)", lines, re.MULTILINE))
    with tarfile.open(built.arch) as tar:
        files = {one.name for one in tar if one.isfile()} - {".MTREE"}
    assert digests.keys() == files
    for name, wanted in digests.items():
        assert hashlib.sha256(member(built.arch, name)).hexdigest() == wanted


@pytest.mark.parametrize(
    "template",
    ["deb/preinst", "deb/postinst", "deb/prerm", "deb/postrm", "deb/rtupdate", "arch/install"],
)
def test_shellcheck_has_no_objection_to_the_scripts(template: str) -> None:
    # SC1091: what a script reads is only there where the package is installed.
    options = ("--external-sources", "--shell=sh", "--exclude=SC1091")

    check(tool("shellcheck"), *options, str(PACKAGING / template))


def test_every_word_of_a_template_was_replaced(built: Built, tmp_path: Path) -> None:
    run("dpkg-deb", "--control", built.deb, tmp_path / "control")
    texts = [path.read_text() for path in (tmp_path / "control").iterdir()]
    texts += [run("rpm", "-qp", "--scripts", "--info", built.rpm).decode()]
    texts += [member(built.arch, name).decode() for name in (".PKGINFO", ".INSTALL")]

    assert [found for text in texts for found in re.findall("@[A-Z]+@", text)] == []


@pytest.mark.parametrize(("kind", "missing"), [("deb", "dpkg-deb"), ("rpm", "rpmbuild")])
def test_a_tool_that_is_missing_is_named(tmp_path: Path, kind: str, missing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-B", PACKAGING / "build.py", kind, tmp_path / "made"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"install.sh: no package was made: there is no {missing} here: ")
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("snap",), ("deb", "a", "b")])
def test_wrong_usage_makes_no_package(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [ROOT / "install.sh", "--package", *arguments], capture_output=True, cwd=tmp_path
    )

    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])


def test_the_rpm_of_el8_can_unpack_it(built: Built) -> None:
    """It is rpm 4.14, which can be built without zstd, and knows no format 6."""
    payload = run("rpm", "-qp", "--queryformat", "%{PAYLOADCOMPRESSOR}", built.rpm)

    assert payload == b"xz"
    # The lead begins with its magic number and the format's (rpm, lib/rpmlead.c).
    assert built.rpm.read_bytes()[:5] == b"\xed\xab\xee\xdb\x03"


# --- what was run


def tried(what: Callable[..., None]) -> set[type[Manager]]:
    """The package managers that do this in a trial."""
    return {one.manager for one in TRIALS if one.do is what}


def test_each_line_of_the_readme_was_run_by_its_package_manager_or_says_that_it_was_not() -> None:
    run_by_a_trial = {one.line for one in tried(life)} | ({HOST_LINE} if tried(host) else set())

    untried = {line for line, comment in readme.lines().items() if comment.endswith("not tried")}

    assert run_by_a_trial | untried == set(readme.lines())
    assert run_by_a_trial & untried == set()


def test_each_package_manager_of_install_sh_was_run_by_it_or_is_said_not_to_be() -> None:
    script = (ROOT / "install.sh").read_text(encoding="utf-8")
    known = re.findall(r"^([a-z-]+) python3? .*-?lxml", script, re.MULTILINE)
    named = {one for one in readme.MANAGERS if re.search(rf"(?<![\w-]){one}(?![\w-])", script)}

    assert known
    assert set(known) <= named
    assert {one.program for one in tried(clone)} | readme.not_tried() == named
    assert {one.program for one in tried(clone)} & readme.not_tried() == set()


@pytest.mark.parametrize("manager", [Apt, Dnf], ids=["Debian", "Fedora"])
def test_the_libraries_are_named_as_they_were_installed(manager: type[Manager]) -> None:
    names = " ".join(manager.libraries)

    assert manager in tried(clone)
    for file in ("install.sh", "vfio_console_hook/commands/doctor/installation.py"):
        assert names in (ROOT / file).read_text(encoding="utf-8")
