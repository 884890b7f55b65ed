"""install.sh, run for real into a DESTDIR."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gate as gate_paths
from tests.gate import ROOT
from tests.test_style import tool
from vfio_console_hook.claims import history, notices
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME
from vfio_console_hook.machine import runfiles

PARTS = ("install.sh", "hooks", "config", "vfio_console_hook", "README.md", "NEWS.md", "LICENSE")
LIB = "usr/lib/vfio-console-hook"
COMMAND = "usr/bin/vfio-console-hook"
ETC = "etc/vfio-console-hook"
MAIN = "etc/libvirt/hooks/qemu"
DROPIN = "etc/libvirt/hooks/qemu.d/50-vfio-console-hook"
CHAINED = "etc/libvirt/hooks/vfio-console-hook"
DAEMON = "etc/libvirt/hooks/daemon"
DAEMON_DROPIN = "etc/libvirt/hooks/daemon.d/50-vfio-console-hook"
UNITS = "usr/lib/systemd/system"
UNIT = f"{UNITS}/vfio-console-hook-recover.service"
TAKE = f"{UNITS}/vfio-console-hook-take@.service"
UNIT_LINKS = tuple(
    f"{UNITS}/{daemon}.service.wants/vfio-console-hook-recover.service"
    for daemon in ("libvirtd", "virtqemud")
)
ISSUE = "etc/issue.d/vfio-console-hook.issue"
AUTOSTART = "etc/xdg/autostart/vfio-console-hook.desktop"
# Where they are below config and below /usr.
SHARED = (
    "share/man/man8/vfio-console-hook.8",
    "share/man/man5/vfio-console-hook.yaml.5",
    "share/bash-completion/completions/vfio-console-hook",
    "share/fish/vendor_completions.d/vfio-console-hook.fish",
    "share/zsh/site-functions/_vfio-console-hook",
)
ZSH = f"usr/{SHARED[-1]}"
ZSH_DEBIAN = "usr/share/zsh/vendor-completions/_vfio-console-hook"
FOREIGN = "#!/bin/sh\n# another project's\n"

# Replacements for the program itself, because only the installer is tested here.
STUBS = {
    "vfio_console_hook/hook.py": "def main(argv):\n    return 0\n",
    "vfio_console_hook/cli.py": "def main(argv=None):\n    print('stub')\n    return 0\n",
    "config/default.yaml": "enabled: true\n",
}


def tree(top: Path) -> dict[str, str]:
    """Every path below top: the text of a file, the target of a link, "/" for a directory."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        elif path.is_dir():
            found[name] = "/"
        else:
            found[name] = f"{path.stat().st_mode & 0o777:o} {path.read_bytes()!r}"
    return found


def names(top: Path) -> set[str]:
    """Every path below top, without the number in the directory of the program."""
    return {re.sub(rf"(?<={LIB})\.\d+", ".N", name) for name in tree(top)}


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Clone:
    """A copy of this repository, and a tree to install it into."""

    directory: Path
    dest: Path

    def __call__(self, *arguments: str, **environment: str) -> Result:
        done = subprocess.run(
            [self.directory / "install.sh", *arguments],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "DESTDIR": str(self.dest), **environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to its process group stays with it
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def put(self, name: str, text: str, mode: int = 0o755) -> Path:
        """Writes a file below the tree."""
        path = self.dest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def link(self, name: str, target: str) -> None:
        """Makes a symbolic link below the tree."""
        (self.dest / name).parent.mkdir(parents=True, exist_ok=True)
        (self.dest / name).symlink_to(target)

    def edit(self, line: str, instead: str) -> None:
        """Replace a line in the clone's install.sh, for a path that no option or variable sets."""
        script = self.directory / "install.sh"
        text = script.read_text()
        assert text.count(f"\n{line}\n") == 1
        script.write_text(text.replace(f"\n{line}\n", f"\n{instead}\n"))

    def install_as_before_the_unit(self) -> None:
        """Installs, and removes the files that earlier versions did not have."""
        self.install_as_before_the_link()
        shutil.rmtree(self.dest / "usr/lib/systemd")
        made = self.dest / LIB / "made"
        lines = made.read_text().splitlines()
        for name in SHARED:
            (self.dest / "usr" / name).unlink()
        # The directories made for them, inner ones first; that of the documents stays.
        for line in reversed(lines):
            if line.startswith("/usr/share/") and not line.startswith("/usr/share/doc"):
                (self.dest / line[1:]).rmdir()
        old = [
            line
            for line in lines
            if "systemd" not in line
            and (not line.startswith("/usr/share/") or line.startswith("/usr/share/doc"))
        ]
        made.write_text("".join(f"{line}\n" for line in old))

    def program(self) -> Path:
        """The directory of the version that is installed."""
        return (self.dest / LIB).resolve(strict=True)

    def programs(self) -> list[str]:
        """The directories of all versions that are there."""
        return sorted(path.name for path in (self.dest / LIB).parent.glob("vfio-console-hook.*"))

    def install_as_before_the_link(self) -> None:
        """Installs as earlier versions did, which had one directory instead of a link to it."""
        self()
        program = self.program()
        (self.dest / LIB).unlink()
        program.rename(self.dest / LIB)

    def libvirt(self, version: str, daemon: str = "usr/sbin/libvirtd") -> None:
        """Puts a daemon of this version into the tree."""
        self.put(daemon, f"#!/bin/sh\necho 'libvirtd (libvirt) {version}'\n")

    def shipped(self) -> str:
        return (self.directory / "config/default.yaml").read_text()

    def ship(self, text: str) -> None:
        """The next version of the program comes with another default.yaml."""
        (self.directory / "config/default.yaml").write_text(text)


def copy_parts(directory: Path) -> None:
    """What install.sh installs, and install.sh."""
    directory.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, directory / part)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    directory = tmp_path / "the clone"
    copy_parts(directory)
    for name, text in STUBS.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    dest = tmp_path / "the tree"
    dest.mkdir()
    return Clone(directory, dest)


def test_the_gate_looks_where_the_program_writes() -> None:
    paths = (f"/{runfiles.RUN}", f"/{BY_NAME}")

    assert paths == (gate_paths.RUN_DIR, gate_paths.RUN_DIR + "/by-name")


def test_the_installer_and_the_gate_agree_on_paths() -> None:
    lines = (ROOT / "install.sh").read_text().splitlines()
    lines += (ROOT / "hooks/setup.sh").read_text().splitlines()

    wanted = {
        f"PYTHON={gate_paths.PYTHON}",
        f"LIB={os.path.dirname(gate_paths.PROGRAM)}",
        f"RUN=/{runfiles.RUN}",
        f"ISSUE=/{notices.LINK}",
    }

    assert wanted <= set(lines)
    assert f"/{history.STATUS}" == f"/{runfiles.RUN}.status"


def test_install_prints_what_it_did_and_installs_every_file(clone: Clone) -> None:
    result = clone()

    dest = clone.dest
    assert result == Result(
        0,
        "vfio-console-hook is installed:\n"
        f"  program  {dest}/{LIB}\n"
        f"  command  {dest}/{COMMAND}\n"
        f"  hook     {dest}/{MAIN}\n"
        f"  unit     {dest}/{UNIT}\n"
        "  manual   man vfio-console-hook, man vfio-console-hook.yaml\n"
        f"  config   {dest}/{ETC}/default.yaml\n",
        "",
    )
    assert (dest / MAIN).read_bytes() == (clone.directory / "hooks/qemu").read_bytes()
    assert (dest / MAIN).stat().st_mode & 0o7777 == 0o755
    assert (dest / COMMAND).stat().st_mode & 0o7777 == 0o755
    assert (dest / ETC / "default.yaml").read_text() == clone.shipped()
    assert (dest / ETC / "vms").is_dir()
    assert (dest / UNIT).read_bytes() == (clone.directory / "hooks" / Path(UNIT).name).read_bytes()
    assert (dest / TAKE).read_bytes() == (clone.directory / "hooks" / Path(TAKE).name).read_bytes()
    assert [(dest / one).stat().st_mode & 0o7777 for one in (UNIT, TAKE)] == [0o644, 0o644]
    assert sorted(path.name for path in (dest / "etc/libvirt/hooks").iterdir()) == ["qemu"]
    assert not list(dest.rglob(".new-*"))


def test_both_daemons_want_the_unit_by_links_that_are_valid_at_any_root(clone: Clone) -> None:
    clone()

    links = {name: text for name, text in tree(clone.dest).items() if text.startswith("->")}
    assert links == {
        LIB: "-> vfio-console-hook.1",
        ISSUE: f"-> /{history.ISSUE}",
        **dict.fromkeys(UNIT_LINKS, "-> ../vfio-console-hook-recover.service"),
    }
    for name in UNIT_LINKS:
        assert (clone.dest / name).samefile(clone.dest / UNIT)


def test_the_unit_starts_what_is_installed_and_looks_where_claims_are(clone: Clone) -> None:
    clone()

    unit = set((clone.dest / UNIT).read_text().splitlines())
    readme = "usr/share/doc/vfio-console-hook/README.md"
    assert {
        f"ExecStart=/{COMMAND} recover --wait 120",
        f"ConditionDirectoryNotEmpty=/{CLAIMS}",
        f"Documentation=file:///{readme}",
    } <= unit
    assert (clone.dest / readme).is_file()


def test_all_users_can_read_the_installed_manual_and_completions(clone: Clone) -> None:
    clone()

    for name in SHARED:
        installed = clone.dest / "usr" / name
        assert installed.read_bytes() == (clone.directory / "config" / name).read_bytes()
        assert installed.stat().st_mode & 0o7777 == 0o644


def test_the_zsh_of_debian_reads_another_directory(clone: Clone) -> None:
    clone()
    (clone.dest / ZSH_DEBIAN).parent.mkdir()

    clone()

    files = {name for name in tree(clone.dest) if name.endswith("_vfio-console-hook")}
    assert files == {ZSH_DEBIAN}
    clone("--uninstall")
    left = tree(clone.dest)
    assert {name for name in left if name.startswith("usr/share/zsh")} == {
        "usr/share/zsh",
        "usr/share/zsh/vendor-completions",
    }


@pytest.mark.parametrize("name", SHARED)
def test_uninstall_keeps_a_foreign_manual_or_completion(clone: Clone, name: str) -> None:
    clone()
    clone.put(f"usr/{name}", "theirs\n", 0o644)

    clone("--uninstall")

    left = {path: text for path, text in tree(clone.dest).items() if text != "/"}
    assert left == {f"usr/{name}": "644 b'theirs\\n'"}


PLATFORMS = ("libvirtd", "virtqemud", "pve-guests", "rke2-server", "k3s", "display-manager")


def test_systemd_has_no_objection_to_the_units(clone: Clone) -> None:
    analyze = tool("systemd-analyze")
    clone()
    for name in ("sysinit.target", "basic.target", "shutdown.target", "multi-user.target"):
        clone.put(f"{UNITS}/{name}", f"[Unit]\nDescription={name}\n", 0o644)
    for name in (*PLATFORMS, "systemd-udev-settle"):
        clone.put(f"{UNITS}/{name}.service", f"[Service]\nExecStart=/{COMMAND}\n", 0o644)

    # With the platforms, so that systemd finds a cycle.
    done = subprocess.run(
        [analyze, "verify", "--man=no", f"--root={clone.dest}", Path(UNIT).name]
        # To this command a colon begins an alias, as in an address.
        + ["vfio-console-hook-take@x.service", *(f"{one}.service" for one in PLATFORMS)],
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_gpu_is_taken_at_boot_before_the_platform_starts_vms(clone: Clone) -> None:
    clone()

    lines = (clone.dest / TAKE).read_text().splitlines()
    before = {word for line in lines if line.startswith("Before=") for word in line[7:].split()}
    assert {f"{one}.service" for one in PLATFORMS} <= before
    assert f"ExecStart=/{COMMAND} take --vfio %i" in lines
    assert "WantedBy=multi-user.target" in lines


def test_a_desktop_starts_the_notifications_only_if_there_is_something_to_show(
    clone: Clone, tmp_path: Path
) -> None:
    clone()
    entry = configparser.ConfigParser(interpolation=None)
    entry.optionxform = str  # type: ignore[assignment, method-assign]
    entry.read_string((clone.dest / AUTOSTART).read_text())
    shown = tmp_path / "shown"
    # The one in the tree is called by its path on a host.
    line = entry["Desktop Entry"]["Exec"].replace(f"/{COMMAND}", f"echo started >{shown}; :")
    words = shlex.split(line.replace(f"/{history.ISSUE}", str(tmp_path / "issue")))

    without = subprocess.run(words)
    before = shown.exists()
    (tmp_path / "issue").touch()
    subprocess.run(words)

    assert (without.returncode, before, shown.exists()) == (0, False, True)
    if shutil.which("desktop-file-validate"):
        subprocess.run(["desktop-file-validate", clone.dest / AUTOSTART], check=True)
    assert entry["Desktop Entry"]["TryExec"] == f"/{COMMAND}"


def test_uninstall_keeps_another_link_in_place_of_the_login_prompts(clone: Clone) -> None:
    clone()
    (clone.dest / ISSUE).unlink()
    clone.link(ISSUE, "/etc/motd")

    clone("--uninstall")

    left = {name: text for name, text in tree(clone.dest).items() if text != "/"}
    assert left == {ISSUE: "-> /etc/motd"}


def test_uninstall_disables_the_gpus_that_were_taken_at_boot(clone: Clone) -> None:
    before = tree(clone.dest)
    clone()
    wants = "etc/systemd/system/multi-user.target.wants"
    clone.link(f"{wants}/vfio-console-hook-take@0000:01:00.0.service", f"/{TAKE}")
    other = TAKE.removeprefix("usr")
    clone.link(f"{wants}/vfio-console-hook-take@0000:02:00.0.service", other)
    clone.link(f"{wants}/vfio-console-hook-take@theirs.service", "/opt/theirs.service")

    clone("--uninstall")

    left = set(tree(clone.dest)) - set(before)
    assert {name for name in left if "take@" in name} == {
        f"{wants}/vfio-console-hook-take@theirs.service"
    }


def test_the_installed_readme_points_to_what_is_installed(clone: Clone) -> None:
    clone()

    doc = clone.dest / "usr/share/doc/vfio-console-hook"
    text = (doc / "README.md").read_text()
    links = [one.partition("#")[0] for one in re.findall(r"\]\(([^)]+)\)", text)]
    targets = [clone.dest / one[1:] if one.startswith("/") else doc / one for one in links]
    assert [str(one) for one in targets if not one.exists()] == []
    assert len([one for one in links if one.startswith("examples/")]) > 3
    assert re.findall(r"tests/\S*|CONTRIBUTING\S*|only in the source", text) == []


def test_every_module_is_compiled_and_carries_its_installed_path(clone: Clone) -> None:
    clone()

    package = clone.program() / "vfio_console_hook"
    modules = set(package.rglob("*.py"))
    compiled = {
        path.parent.parent / (path.name.split(".")[0] + ".py") for path in package.rglob("*.pyc")
    }
    assert compiled == modules
    code = next((package / "__pycache__").glob("errors.*.pyc")).read_bytes()
    assert f"/{LIB}.1/vfio_console_hook/errors.py".encode() in code


def test_the_installed_launcher_finds_the_installed_package(clone: Clone) -> None:
    (clone.directory / "vfio_console_hook/hook.py").write_text(
        "import sys\ndef main(argv):\n    print(argv, __file__)\n    return 0\n"
    )
    clone()
    before = tree(clone.dest)

    done = subprocess.run(
        ["/usr/bin/python3", "-I", clone.dest / LIB / "hook", "win11", "start", "begin", "-"],
        capture_output=True,
        text=True,
    )

    file = clone.program() / "vfio_console_hook/hook.py"
    assert done.stdout == f"['win11', 'start', 'begin', '-'] {file}\n"
    assert tree(clone.dest) == before


def test_the_installed_command_finds_the_installed_package(clone: Clone) -> None:
    (clone.directory / "vfio_console_hook/cli.py").write_text(
        "def main(argv=None):\n    print(argv)\n    return 3\n"
    )
    clone()

    done = subprocess.run([clone.dest / COMMAND, "plan", "--json"], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (3, "['plan', '--json']\n", "")


def test_the_program_as_it_is_can_be_installed_and_started(clone: Clone) -> None:
    for name in STUBS:
        shutil.copy(ROOT / name, clone.directory / name)

    result = clone()

    assert (result.status, result.stderr) == (0, "")
    done = subprocess.run([clone.dest / COMMAND, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_installing_again_changes_nothing(clone: Clone) -> None:
    clone()
    before = tree(clone.dest)
    program = tree(clone.program())

    result = clone()

    assert result.status == 0
    rest = {name: text for name, text in tree(clone.dest).items() if not name.startswith(LIB)}
    assert rest == {name: text for name, text in before.items() if not name.startswith(LIB)}
    # The bytecode holds the time of its source.
    changed = {name for name, text in tree(clone.program()).items() if program.get(name) != text}
    assert {name for name in changed if not name.endswith(".pyc")} == set()
    assert tree(clone.program()).keys() == program.keys()
    assert len(clone.programs()) == 1


def test_an_upgrade_leaves_no_module_of_the_old_version(clone: Clone) -> None:
    extra = clone.directory / "vfio_console_hook/gone_soon.py"
    extra.write_text("")
    clone()
    extra.unlink()

    clone()

    assert not list(clone.dest.rglob("*gone_soon*"))


# Waits between its first modules and one that it loads late.
WAITING = """\
import sys
def main(argv=None):
    print("begun", flush=True)
    sys.stdin.readline()
    from vfio_console_hook.late import VERSION
    print(VERSION, flush=True)
    return 0
"""


@contextmanager
def waiting(clone: Clone, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The program of a version "old" while it waits; the clone is at "new" then."""
    late = clone.directory / "vfio_console_hook/late/__init__.py"
    late.parent.mkdir()
    for name in ("hook", "cli"):
        (clone.directory / f"vfio_console_hook/{name}.py").write_text(WAITING)
    late.write_text("VERSION = 'old'\n")
    clone()
    late.write_text("VERSION = 'new'\n")
    command = [str(clone.dest / word) for word in words]
    with subprocess.Popen(
        ["/usr/bin/python3", "-I", "-X", "utf8", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        yield process


@pytest.mark.parametrize("words", [f"{LIB}/hook", COMMAND], ids=["hook", "command"])
def test_a_waiting_program_continues_with_its_own_version(clone: Clone, words: str) -> None:
    with waiting(clone, words) as process:
        clone()
        clone()

        assert process.communicate("\n")[0] == "old\n"
    clone()
    assert clone.programs() == [clone.program().name]
    done = subprocess.run(
        ["/usr/bin/python3", "-I", clone.dest / words],
        input="\n",
        capture_output=True,
        text=True,
    )
    assert done.stdout == "begun\nnew\n"


def test_uninstall_refuses_while_the_program_runs(clone: Clone) -> None:
    with waiting(clone, f"{LIB}/hook") as process:
        clone()
        before = tree(clone.dest)

        result = clone("--uninstall")

        assert result == Result(
            1,
            "",
            f"install.sh: process {process.pid} still runs the program; nothing was removed\n"
            "hint: wait until it has ended\n",
        )
        assert tree(clone.dest) == before
        process.communicate("\n")
    assert clone("--uninstall").status == 0
    assert tree(clone.dest) == {}


@pytest.mark.parametrize("program", ["mv", "ln", "sed", "rm"])
def test_the_program_works_wherever_an_upgrade_is_killed(
    clone: Clone, tmp_path: Path, program: str
) -> None:
    hook = clone.directory / "vfio_console_hook/hook.py"
    hook.write_text("def main(argv):\n    print('old')\n    return 0\n")
    before = tree(clone.dest)
    clone()
    installed = names(clone.dest)
    hook.write_text("def main(argv):\n    print('new')\n    return 0\n")
    clone.edit("PYTHON=/usr/bin/python3", "PYTHON=/usr/bin/true")  # to compile takes long
    fail = count_calls(clone, tmp_path, program, "kill -9 0")
    killed = []

    for number in range(1, 60):
        fail(number)
        result = clone()
        if result.status == 0:
            break
        done = subprocess.run(
            ["/usr/bin/python3", "-I", clone.dest / LIB / "hook"], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) in (("old\n", ""), ("new\n", ""))
        killed.append(done.stdout)

    assert "old\n" in killed
    assert result.status == 0
    assert {name for name in names(clone.dest) if "__pycache__" not in name} == {
        name for name in installed if "__pycache__" not in name
    }
    fail(0)
    clone("--uninstall")
    assert tree(clone.dest) == before


def test_uninstall_leaves_no_trace(clone: Clone) -> None:
    clone.put("etc/hosts", "")
    before = tree(clone.dest)
    clone()
    clone.put(f"{runfiles.RUN}/kernel", "{}")
    clone.put(f"{history.STATUS}/0b0e", "{}")
    (clone.dest / CLAIMS).mkdir()
    (clone.dest / "run/other").mkdir()

    result = clone("--uninstall")

    shutil.rmtree(clone.dest / "run")
    assert result == Result(0, f"vfio-console-hook is removed from {clone.dest}\n", "")
    assert tree(clone.dest) == before


def test_uninstall_after_an_upgrade_leaves_no_trace(clone: Clone) -> None:
    before = tree(clone.dest)
    clone()
    clone.ship("enabled: false\n")
    clone()

    clone("--uninstall")

    assert tree(clone.dest) == before


def test_uninstall_keeps_the_files_of_others(clone: Clone) -> None:
    clone.put(MAIN, FOREIGN)
    clone.put("etc/libvirt/hooks/qemu.d/10-other", FOREIGN)
    clone.put(f"{UNITS}/libvirtd.service", "", 0o644)
    clone.link(f"{UNITS}/libvirtd.service.wants/other.service", "../other.service")
    clone.libvirt("9.0.0")
    before = tree(clone.dest)
    clone()

    clone("--uninstall")

    assert tree(clone.dest) == before


def test_uninstall_keeps_and_lists_the_files_of_the_administrator(clone: Clone) -> None:
    clone()
    changed = clone.put(f"{ETC}/default.yaml", "mine: true\n", 0o644)
    own = clone.put(f"{ETC}/vms/win11.yaml", "mine: too\n", 0o644)

    result = clone("--uninstall")

    assert result.stdout == (
        f"vfio-console-hook is removed from {clone.dest}\n"
        + "".join(f"  kept, because it is yours: {path}\n" for path in (changed, own))
    )
    assert {name for name, text in tree(clone.dest).items() if text != "/"} == {
        f"{ETC}/default.yaml",
        f"{ETC}/vms/win11.yaml",
    }


def test_uninstall_refuses_while_a_vm_holds_a_gpu(clone: Clone) -> None:
    clone()
    claim = clone.put(f"{CLAIMS}/0b0e", "{}")
    before = tree(clone.dest)

    result = clone("--uninstall")

    assert result == Result(
        1,
        "",
        f"install.sh: a VM still holds a GPU of this host ({claim}); nothing was removed\n"
        "hint: shut the VM down, or see vfio-console-hook status\n",
    )
    assert tree(clone.dest) == before


def test_uninstall_of_nothing_is_no_error(clone: Clone) -> None:
    result = clone("--uninstall")

    assert result == Result(0, f"vfio-console-hook is not installed in {clone.dest}\n", "")


def test_uninstall_removes_a_gate_and_a_unit_whose_program_is_gone(clone: Clone) -> None:
    clone()
    shutil.rmtree(clone.program())

    result = clone("--uninstall")

    assert result.stdout == (
        f"vfio-console-hook is removed from {clone.dest}\n"
        f"  kept, because it is yours: {clone.dest}/{ETC}/default.yaml\n"
    )
    left = tree(clone.dest)
    assert {name for name, text in left.items() if text != "/"} == {f"{ETC}/default.yaml"}


@pytest.mark.parametrize("gone", [UNIT, *UNIT_LINKS])
def test_a_missing_file_of_the_unit_is_installed_again_and_uninstalled(
    clone: Clone, gone: str
) -> None:
    before = tree(clone.dest)
    clone()
    whole = names(clone.dest)
    (clone.dest / gone).unlink()

    clone()

    assert names(clone.dest) == whole
    (clone.dest / gone).unlink()
    clone("--uninstall")
    assert tree(clone.dest) == before


@pytest.mark.parametrize("name", [UNIT, *UNIT_LINKS])
def test_uninstall_keeps_a_foreign_link_in_place_of_the_unit(clone: Clone, name: str) -> None:
    clone()
    (clone.dest / name).unlink()
    clone.link(name, "/dev/null")

    result = clone("--uninstall")

    assert result.status == 0
    left = {name: text for name, text in tree(clone.dest).items() if text != "/"}
    assert left == {name: "-> /dev/null"}


def test_an_upgrade_adds_the_unit_to_an_installation_without_it(clone: Clone) -> None:
    clone.put("usr/lib/systemd/system/other.service", "")
    before = tree(clone.dest)
    clone()
    whole = names(clone.dest)
    clone("--uninstall")
    clone.install_as_before_the_unit()
    (clone.dest / "usr/lib/systemd").mkdir()  # an existing directory is not removed
    clone.put("usr/lib/systemd/system/other.service", "")

    result = clone()

    assert f"  unit     {clone.dest}/{UNIT}\n" in result.stdout
    assert names(clone.dest) == whole
    clone("--uninstall")
    assert tree(clone.dest) == before


@pytest.mark.parametrize(
    ("version", "daemon"),
    [
        ("6.5.0", "usr/sbin/libvirtd"),
        ("6.10.0", "usr/sbin/virtqemud"),
        ("9.0.0", "usr/bin/virtqemud"),
        ("12.8.0-rc1", "usr/bin/libvirtd"),
    ],
)
def test_beside_a_foreign_hook_ours_is_a_drop_in(clone: Clone, version: str, daemon: str) -> None:
    clone.put(MAIN, FOREIGN)
    clone.libvirt(version, daemon)

    result = clone()

    assert result.stdout.endswith(f"  the hook in {clone.dest}/{MAIN} was left as it is\n")
    assert (clone.dest / MAIN).read_text() == FOREIGN
    assert tree(clone.dest / DROPIN.rpartition("/")[0]).keys() == {"50-vfio-console-hook"}
    assert (clone.dest / DROPIN).stat().st_mode & 0o7777 == 0o755


def test_a_libvirt_of_unknown_version_reads_drop_ins_if_the_directory_exists(clone: Clone) -> None:
    clone.put(MAIN, FOREIGN)
    (clone.dest / DROPIN).parent.mkdir()

    result = clone()

    assert result.status == 0
    assert (clone.dest / DROPIN).exists()


@pytest.mark.parametrize("version", ["6.4.0", "5.0.0", ""])
def test_a_foreign_hook_on_an_old_libvirt_is_refused_with_a_remedy(
    clone: Clone, version: str
) -> None:
    clone.put(MAIN, FOREIGN)
    if version:
        clone.libvirt(version)
    before = tree(clone.dest)

    result = clone()

    assert result == Result(
        1,
        "",
        f"install.sh: {clone.dest}/{MAIN} is not ours, and libvirt "
        f"{version or '(not found)'} reads no qemu.d (6.5 does); nothing was installed\n"
        "hint: add this line to it, after its first line, and install vfio-console-hook again:\n"
        f'    [ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1\n',
    )
    assert tree(clone.dest) == before


def test_a_foreign_hook_that_calls_ours_is_kept_and_ours_is_installed(clone: Clone) -> None:
    theirs = f'#!/bin/sh\n[ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1\n'
    clone.put(MAIN, theirs)
    clone.libvirt("6.4.0")
    before = tree(clone.dest)

    result = clone()

    assert f"  hook     {clone.dest}/{CHAINED}\n" in result.stdout
    assert (clone.dest / MAIN).read_text() == theirs
    clone("--uninstall")
    assert tree(clone.dest) == before


def test_one_event_never_reaches_the_hook_twice(clone: Clone) -> None:
    clone()
    shutil.copy(clone.dest / MAIN, clone.put(DROPIN, ""))

    clone()

    assert (clone.dest / MAIN).exists()
    assert not (clone.dest / DROPIN).exists()


def test_a_drop_in_stays_one_after_the_foreign_hook_is_removed(clone: Clone) -> None:
    clone.put(MAIN, FOREIGN)
    clone.libvirt("9.0.0")
    clone()
    (clone.dest / MAIN).unlink()

    clone()

    assert (clone.dest / DROPIN).exists()
    assert not (clone.dest / MAIN).exists()


def test_a_dangling_link_is_a_foreign_hook(clone: Clone) -> None:
    clone.libvirt("9.0.0")
    (clone.dest / MAIN).parent.mkdir(parents=True)
    (clone.dest / MAIN).symlink_to("/nowhere")

    clone()

    assert os.readlink(clone.dest / MAIN) == "/nowhere"
    assert (clone.dest / DROPIN).exists()


def test_a_changed_config_is_kept_and_the_new_one_is_put_beside_it(clone: Clone) -> None:
    clone()
    mine = clone.put(f"{ETC}/default.yaml", "mine: true\n", 0o644)
    clone.ship("enabled: false\n")

    result = clone()

    assert result.stdout.endswith(
        f"{ETC}/default.yaml (yours was kept; the new one is beside it as default.yaml.new)\n"
    )
    assert mine.read_text() == "mine: true\n"
    assert (clone.dest / ETC / "default.yaml.new").read_text() == "enabled: false\n"


def test_a_changed_config_is_kept_silently_when_nothing_new_is_shipped(clone: Clone) -> None:
    clone()
    mine = clone.put(f"{ETC}/default.yaml", "mine: true\n", 0o644)

    result = clone()

    assert result.stdout.endswith("default.yaml (kept)\n")
    assert mine.read_text() == "mine: true\n"
    assert not (clone.dest / ETC / "default.yaml.new").exists()


def test_a_new_config_that_is_out_of_date_is_removed(clone: Clone) -> None:
    clone()
    mine = clone.put(f"{ETC}/default.yaml", "mine: true\n", 0o644)
    clone.ship("enabled: false\n")
    clone()
    mine.write_text("apu: allow\n")
    clone.ship("apu: allow\n")

    clone()

    assert not (clone.dest / ETC / "default.yaml.new").exists()


@pytest.mark.parametrize("name", [f"{ETC}/default.yaml.new", f"{ETC}/.new-default.yaml.old",
                                  "etc/libvirt/hooks/.new-qemu", "etc/libvirt/hooks/.new-daemon.d",
                                  "usr/bin/.new-vfio-console-hook",
                                  "usr/lib/.new-vfio-console-hook.7"])
def test_uninstall_removes_what_installations_have_left(clone: Clone, name: str) -> None:
    before = tree(clone.dest)
    clone()
    clone.put(name, "# of an earlier version\n")

    clone("--uninstall")

    assert tree(clone.dest) == before


def test_an_unchanged_config_is_replaced(clone: Clone) -> None:
    clone()
    clone.ship("enabled: false\n")

    clone()

    assert (clone.dest / ETC / "default.yaml").read_text() == "enabled: false\n"


def test_a_removed_config_is_not_put_back(clone: Clone) -> None:
    clone()
    (clone.dest / ETC / "default.yaml").unlink()

    result = clone()

    assert result.stdout.endswith("default.yaml (was removed, and is not put back)\n")
    assert not (clone.dest / ETC / "default.yaml").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (MAIN, "{} is a directory; nothing was installed\nhint: libvirt ignores it: move it away"),
        (COMMAND, "{} is a directory; nothing was installed"),
        (UNIT, "{} is a directory; nothing was installed"),
        (UNIT_LINKS[0], "{} is a directory; nothing was installed"),
        (f"usr/{SHARED[0]}", "{} is a directory; nothing was installed"),
        (f"{ETC}/default.yaml", "{} is a directory; nothing was installed"),
    ],
)
def test_a_directory_where_a_file_should_be_is_reported_in_one_sentence(
    clone: Clone, name: str, sentence: str
) -> None:
    (clone.dest / name).mkdir(parents=True)
    before = tree(clone.dest)

    result = clone()

    assert result == Result(1, "", f"install.sh: {sentence.format(clone.dest / name)}\n")
    assert tree(clone.dest) == before


@pytest.mark.parametrize(
    "name",
    ["usr", "usr/share", "usr/lib/systemd", "etc", ETC, f"{ETC}/vms", "etc/libvirt/hooks", UNITS]
    + [os.path.dirname(name) for name in (*UNIT_LINKS, *(f"usr/{one}" for one in SHARED))],
)
def test_a_file_where_a_directory_should_be_is_reported_in_one_sentence(
    clone: Clone, name: str
) -> None:
    path = clone.put(name, "")
    before = tree(clone.dest)

    result = clone()

    assert result == Result(
        1, "", f"install.sh: {path} is not a directory; nothing was installed\n"
    )
    assert tree(clone.dest) == before


@pytest.mark.parametrize(
    "name", [COMMAND, UNIT, *UNIT_LINKS, ISSUE, AUTOSTART, *(f"usr/{n}" for n in SHARED)]
)
def test_a_foreign_file_of_our_name_is_not_overwritten(clone: Clone, name: str) -> None:
    path = clone.put(name, "#!/bin/sh\n")
    before = tree(clone.dest)

    result = clone()

    assert result == Result(1, "", f"install.sh: {path} is not ours; nothing was installed\n")
    assert tree(clone.dest) == before


@pytest.mark.parametrize("name", [COMMAND, UNIT, *UNIT_LINKS, ISSUE, f"usr/{SHARED[0]}"])
@pytest.mark.parametrize("target", ["/nowhere", "/dev/null"])
def test_a_foreign_link_of_our_name_is_not_overwritten(
    clone: Clone, name: str, target: str
) -> None:
    clone.link(name, target)
    before = tree(clone.dest)

    result = clone()

    assert result == Result(
        1,
        "",
        f"install.sh: {clone.dest}/{name} is not ours; nothing was installed\n",
    )
    assert tree(clone.dest) == before


@pytest.mark.parametrize("name", [f"{LIB}/vfio_console_hook/__init__.py", LIB])
def test_a_program_from_a_package_is_not_overwritten(clone: Clone, name: str) -> None:
    clone.put(name, "")
    before = tree(clone.dest)

    result = clone()

    assert result == Result(
        1,
        "",
        f"install.sh: {clone.dest}/{LIB} is there and was not made by install.sh; nothing was "
        "installed\nhint: remove the package that brought it\n",
    )
    assert tree(clone.dest) == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def main(:\n", "cannot compile the program: SyntaxError: "),
        ("import nothing_of_this_name\n", "the program does not load here: ModuleNotFoundError: "),
    ],
)
def test_a_program_that_does_not_load_leaves_the_installed_one_alone(
    clone: Clone, text: str, sentence: str
) -> None:
    clone()
    before = tree(clone.dest)
    (clone.directory / "vfio_console_hook/hook.py").write_text(text)

    result = clone()

    assert result.status == 1
    assert result.stderr.startswith(f"install.sh: {sentence}")
    assert result.stderr.endswith("; nothing was installed\n")
    assert tree(clone.dest) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a file immutable")
@pytest.mark.parametrize("name", [COMMAND, UNIT, MAIN, ZSH])
def test_everything_is_restored_if_a_target_cannot_be_replaced(clone: Clone, name: str) -> None:
    clone()
    clone.ship("enabled: false\n")
    before = tree(clone.dest)
    if subprocess.run(["chattr", "+i", clone.dest / name], capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        result = clone()
    finally:
        subprocess.run(["chattr", "-i", clone.dest / name], check=True)

    assert result.status == 1
    assert result.stderr.endswith(": Operation not permitted; nothing was installed\n")
    assert tree(clone.dest) == before


# The n-th call of a program that changes files fails.
FAILING = """\
#!/bin/sh
echo >>'{calls}'
[ "$(wc -l <'{calls}')" != "$(cat '{fail}')" ] || {{ {then}; }}
exec {program} "$@"
"""


def count_calls(clone: Clone, tmp_path: Path, program: str, then: str) -> Callable[[int], None]:
    """Replaces a program by one whose n-th call runs then; returns a function that sets n.

    The calls are counted from the last use of that function.
    """
    calls, fail, directory = tmp_path / "calls", tmp_path / "fail", tmp_path / "bin"
    directory.mkdir()
    real = shutil.which(program)
    text = FAILING.format(calls=calls, fail=fail, program=real, then=then)
    (directory / program).write_text(text)
    (directory / program).chmod(0o755)
    clone.edit(
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"PATH={directory}:/usr/sbin:/usr/bin:/sbin:/bin"
    )

    def set_call(number: int) -> None:
        calls.write_text("")
        fail.write_text(f"{number}\n")

    return set_call


@pytest.mark.parametrize("program", ["mkdir", "sed", "ln", "mv"])
@pytest.mark.parametrize("before_it", ["nothing", "this version", "an earlier version"])
def test_everything_is_restored_after_any_step_that_fails(
    clone: Clone, tmp_path: Path, program: str, before_it: str
) -> None:
    if before_it == "this version":
        clone()
    elif before_it == "an earlier version":
        clone.install_as_before_the_unit()
        # A link to another copy is replaced by a file, unless the installation fails.
        (clone.dest / COMMAND).unlink()
        clone.link(COMMAND, str(clone.directory / "hooks/command.py"))
    before = tree(clone.dest)
    clone.edit("PYTHON=/usr/bin/python3", "PYTHON=/usr/bin/true")  # to compile takes long
    fail = count_calls(clone, tmp_path, program, "echo 'no room' >&2; exit 1")

    for number in range(1, 60):
        fail(number)
        result = clone()
        if result.status == 0:
            break
        assert result.stderr.endswith("; nothing was installed\n")
        assert tree(clone.dest) == before

    # It was called once for each link at least, and each time its failure was reported.
    assert result.status == 0
    assert number > (1 if before_it == "this version" else len(UNIT_LINKS))
    assert len((tmp_path / "calls").read_text().splitlines()) == number - 1


def test_a_clone_with_crlf_line_ends_installs_scripts_that_run(clone: Clone) -> None:
    unit = f"hooks/{os.path.basename(UNIT)}"
    shared = [f"config/{name}" for name in SHARED]
    for name in ("hooks/qemu", "hooks/launch.py", "hooks/command.py", unit, *shared):
        path = clone.directory / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    clone()

    for name in (MAIN, f"{LIB}/hook", COMMAND, UNIT, *(f"usr/{one}" for one in SHARED)):
        assert b"\r" not in (clone.dest / name).read_bytes()


def test_an_old_python_is_refused(clone: Clone, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    clone.edit("PYTHON=/usr/bin/python3", f"PYTHON='{old}'")

    result = clone()

    assert result == Result(
        1, "", f"install.sh: {old} is missing or older than Python 3.9; nothing was installed\n"
    )
    assert tree(clone.dest) == {}


@dataclass(frozen=True)
class Chroot:
    """A root directory to install into without DESTDIR: busybox, and stubs of other programs."""

    top: Path

    def __call__(self, *arguments: str, **environment: str) -> Result:
        done = subprocess.run(
            ["chroot", self.top, "/bin/busybox", "sh", "/clone/install.sh", *arguments],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to its process group stays with it
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def put(self, name: str, text: str) -> None:
        """Write an executable file."""
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def systemd(self, then: str = "exit 0") -> None:
        """Let systemd run here; then is the shell code of systemctl for all verbs but is-active."""
        (self.top / "run/systemd/system").mkdir(parents=True)
        (self.top / UNITS).mkdir(parents=True)
        systemctl = self.top / "usr/bin/systemctl"
        systemctl.write_text(
            f'#!/bin/sh\necho "$*" >>/asked\ncase $1 in is-active) exit 1 ;; *) {then} ;; esac\n'
        )
        systemctl.chmod(0o755)

    def asked(self) -> list[str]:
        """The calls of systemctl since the last use of this method."""
        calls = self.top / "asked"
        text = calls.read_text() if calls.exists() else ""
        calls.unlink(missing_ok=True)
        return [line for line in text.splitlines() if not line.startswith("is-active ")]


@pytest.fixture
def chroot(tmp_path: Path) -> Chroot:
    if os.geteuid() != 0:
        pytest.skip("only root may change its root directory")
    busybox = tool("busybox")
    top = tmp_path / "host"
    for name in ("bin", "usr/bin", "usr/share/doc", "etc", "run", "dev", "tmp"):
        (top / name).mkdir(parents=True)
    libraries = subprocess.run(["ldd", busybox], capture_output=True, text=True).stdout
    for file in (busybox, *(word for word in libraries.split() if word.startswith("/"))):
        target = top / ("bin/busybox" if file == busybox else file[1:])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    subprocess.run(["chroot", top, "/bin/busybox", "--install", "-s", "/usr/bin"], check=True)
    (top / "bin/sh").symlink_to("busybox")
    copy_parts(top / "clone")
    # The program is not started in there.
    (top / "usr/bin/python3").write_text("#!/bin/sh\nexit 0\n")
    (top / "usr/bin/python3").chmod(0o755)
    return Chroot(top)


def test_without_systemd_there_is_no_unit_and_no_message_about_it(chroot: Chroot) -> None:
    result = chroot()

    assert result == Result(
        0,
        "vfio-console-hook is installed:\n"
        f"  program  /{LIB}\n"
        f"  command  /{COMMAND}\n"
        f"  hook     /{MAIN}\n"
        f"  hook     /{DAEMON}\n"
        "  manual   man vfio-console-hook, man vfio-console-hook.yaml\n"
        f"  config   /{ETC}/default.yaml\n"
        "  there is no libvirt here: see HOSTS WITHOUT LIBVIRT in man vfio-console-hook\n",
        "",
    )
    assert not (chroot.top / "usr/lib/systemd").exists()
    assert chroot("--uninstall") == Result(0, "vfio-console-hook is removed\n", "")


def test_without_systemd_libvirts_daemon_runs_the_second_gate(chroot: Chroot) -> None:
    before = tree(chroot.top)

    chroot()
    chroot()

    assert (chroot.top / DAEMON).read_bytes() == (ROOT / "hooks/daemon").read_bytes()
    assert (chroot.top / DAEMON).stat().st_mode & 0o7777 == 0o755
    chroot("--uninstall")
    # The scripts have made /dev/null, which the directory lacks.
    assert {**tree(chroot.top), "dev/null": ""} == {**before, "dev/null": ""}


@pytest.mark.parametrize("sign", ["run/systemd/system", "sbin/init"])
def test_where_systemd_runs_the_host_a_second_gate_goes(chroot: Chroot, sign: str) -> None:
    chroot()
    if sign == "sbin/init":
        (chroot.top / "sbin").mkdir(exist_ok=True)
        (chroot.top / sign).symlink_to("../lib/systemd/systemd")
    else:
        chroot.systemd()

    result = chroot()

    assert result.status == 0
    assert DAEMON not in result.stdout
    assert not (chroot.top / DAEMON).exists()


def test_beside_other_hooks_both_gates_are_drop_ins(chroot: Chroot) -> None:
    chroot.put("usr/sbin/libvirtd", "#!/bin/sh\necho 'libvirtd (libvirt) 6.5.0'\n")
    chroot.put(MAIN, FOREIGN)
    chroot.put(DAEMON, FOREIGN)
    before = tree(chroot.top)

    result = chroot()

    assert (result.status, result.stderr) == (0, "")
    gates = [(chroot.top / one).read_bytes() for one in (DROPIN, DAEMON_DROPIN)]
    assert gates == [(ROOT / one).read_bytes() for one in ("hooks/qemu", "hooks/daemon")]
    assert f"  hook     /{DAEMON_DROPIN}\n" in result.stdout
    chroot("--uninstall")
    assert {**tree(chroot.top), "dev/null": ""} == {**before, "dev/null": ""}


def test_another_hook_of_the_daemon_on_an_old_libvirt_is_no_reason_to_refuse(
    chroot: Chroot,
) -> None:
    chroot.put("usr/sbin/libvirtd", "#!/bin/sh\necho 'libvirtd (libvirt) 6.4.0'\n")
    chroot.put(DAEMON, FOREIGN)

    result = chroot()

    assert (result.status, result.stderr) == (0, "")
    assert f"as /{DAEMON} is not ours: let it run\n" in result.stdout
    assert (chroot.top / DAEMON).read_text() == FOREIGN
    assert not (chroot.top / DAEMON_DROPIN).exists()


def test_busybox_is_enough_to_keep_a_changed_config(chroot: Chroot) -> None:
    chroot()
    mine = chroot.top / ETC / "default.yaml"
    mine.write_text(mine.read_text() + "\n")

    results = [chroot(), chroot("--uninstall")]

    assert f"  config   /{ETC}/default.yaml (kept)\n" in results[0].stdout
    assert results[1].stdout.endswith(f"  kept, because it is yours: /{ETC}/default.yaml\n")
    assert [result.stderr for result in results] == ["", ""]


@pytest.mark.parametrize("sign", ["run/systemd/system", UNITS, "lib/systemd/system"])
def test_the_unit_is_installed_at_each_sign_of_systemd(chroot: Chroot, sign: str) -> None:
    (chroot.top / sign).mkdir(parents=True)
    before = tree(chroot.top)

    result = chroot()

    assert f"  unit     /{UNIT}\n" in result.stdout
    assert {UNIT, *UNIT_LINKS} <= tree(chroot.top).keys()
    chroot("--uninstall")
    # The scripts have made /dev/null, which the directory lacks.
    assert {**tree(chroot.top), "dev/null": ""} == {**before, "dev/null": ""}


def test_systemd_reads_the_unit_and_does_not_start_it(chroot: Chroot) -> None:
    chroot.systemd()

    results = [chroot(), chroot(), chroot("--uninstall")]

    assert [result.status for result in results] == [0, 0, 0]
    reset = "reset-failed vfio-console-hook-recover.service"
    assert chroot.asked() == ["daemon-reload"] * 3 + [reset]


@pytest.mark.parametrize("trouble", ["echo no >&2; exit 1", "sleep 60"])
def test_a_systemd_that_fails_or_hangs_blocks_nothing(chroot: Chroot, trouble: str) -> None:
    script = chroot.top / "clone/hooks/setup.sh"
    text = script.read_text()
    assert text.count("\nRELOAD_S=60 ") == 1
    script.write_text(text.replace("\nRELOAD_S=60 ", "\nRELOAD_S=1 "))
    chroot.systemd(f"[ $1 = reset-failed ] || {{ {trouble}; }}")

    installed, removed = chroot(), chroot("--uninstall")

    note = "  systemd did not read its units again: run systemctl daemon-reload\n"
    assert (installed.status, removed.status, installed.stderr, removed.stderr) == (0, 0, "", "")
    assert note in installed.stdout
    assert removed.stdout == f"{note}vfio-console-hook is removed\n"
    assert not (chroot.top / UNIT).exists()


def pretend_daemon(chroot: Chroot, pid: str) -> None:
    """Let libvirtd run with this main PID, as a service that systemd cannot reload."""
    chroot.systemd()
    (chroot.top / "usr/bin/systemctl").write_text(
        "#!/bin/sh\n"
        f'case "$*" in "is-active --quiet libvirtd.service") ;; show*) echo {pid} ;; '
        "daemon-reload) ;; *) exit 1 ;; esac\n"
    )


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends by any signal."""
    # Under nohup SIGHUP is ignored, and what ignores a signal hands that on.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with subprocess.Popen(["sleep", "600"]) as started:
        signal.signal(signal.SIGHUP, before)
        yield started
        started.kill()


def pretend_comm(chroot: Chroot, pid: int, comm: str) -> None:
    """/proc as the installer sees it."""
    (chroot.top / f"proc/{pid}").mkdir(parents=True)
    (chroot.top / f"proc/{pid}/comm").write_text(f"{comm}\n")


NOT_RELOADED = "  libvirtd cannot be reloaded: restart it, so that it finds the hook\n"


@pytest.mark.parametrize("pid", ["0", "00", "''", "libvirtd"])
def test_an_invalid_main_pid_is_not_signalled(chroot: Chroot, pid: str) -> None:
    pretend_daemon(chroot, pid)

    result = chroot()

    # SIGHUP to process 0 would have ended install.sh itself.
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.endswith(NOT_RELOADED)


def test_a_main_pid_of_another_program_is_not_signalled(
    chroot: Chroot, process: subprocess.Popen[bytes]
) -> None:
    pretend_daemon(chroot, str(process.pid))
    pretend_comm(chroot, process.pid, "sleep")

    result = chroot()

    assert result.stdout.endswith(NOT_RELOADED)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)


def test_the_pid_file_of_a_program_that_has_ended_is_ignored(
    chroot: Chroot, process: subprocess.Popen[bytes]
) -> None:
    (chroot.top / "run/libvirtd.pid").write_text(str(process.pid))
    pretend_comm(chroot, process.pid, "sleep")

    result = chroot()

    assert result.stdout.endswith("see HOSTS WITHOUT LIBVIRT in man vfio-console-hook\n")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)


@pytest.mark.parametrize("systemd", [False, True])
def test_the_daemon_itself_is_signalled(
    chroot: Chroot, process: subprocess.Popen[bytes], systemd: bool
) -> None:
    if systemd:
        pretend_daemon(chroot, str(process.pid))
    else:
        (chroot.top / "run/libvirtd.pid").write_text(str(process.pid))
    pretend_comm(chroot, process.pid, "libvirtd")

    result = chroot()

    assert result.stdout.endswith("  libvirtd was reloaded and finds the hook\n")
    assert process.wait(10) == -signal.SIGHUP


# Lists the files that restorecon -R would relabel (restorecon(8)).
RESTORECON = """\
#!/bin/sh
if [ "$1" = -R ]; then shift; find "$@"; else printf '%s\\n' "$@"; fi >>/relabelled
"""


@pytest.mark.parametrize("upgrade", [False, True], ids=["first", "upgrade"])
def test_selinux_labels_are_set_on_installed_files_and_no_others(
    chroot: Chroot, upgrade: bool
) -> None:
    chroot.systemd()
    restorecon = chroot.top / "usr/sbin/restorecon"
    restorecon.parent.mkdir()
    for name in ("etc/libvirt/hooks/network", "etc/libvirt/hooks/qemu.d/10-other"):
        (chroot.top / name).parent.mkdir(parents=True, exist_ok=True)
        (chroot.top / name).write_text(FOREIGN)
    if upgrade:
        chroot()
        (chroot.top / ETC / "vms/mine.yaml").write_text("{}\n")
    # A new directory has a new inode, and so has a file that was put into place.
    before = inodes(chroot.top)
    restorecon.write_text(RESTORECON)
    restorecon.chmod(0o755)

    chroot()

    log = chroot.top / "relabelled"
    relabelled = sorted(line[1:] for line in log.read_text().splitlines())
    log.unlink()
    restorecon.unlink()
    (chroot.top / "asked").unlink()
    new = {name for name, inode in inodes(chroot.top).items() if before.get(name) != inode}
    assert set(relabelled) == new - {"dev/null"}


DENIED = "it does not allow virtd_t to run /etc/libvirt/hooks/qemu"


def pretend_selinux(chroot: Chroot, semodule: str = "exit 0") -> None:
    """A policy that denies the hook until the module is loaded; semodule runs this before it."""
    programs = {
        "usr/bin/python3": f"""\
case "$*" in
    *selinux_policy*) [ ! -e /deny ] || [ -e /loaded ] || printf '{DENIED}' ;;
esac""",
        "usr/sbin/semodule": f"""\
echo "semodule $*" >>/asked
case $1 in -l) [ ! -e /loaded ] || echo vfio_console_hook; exit 0 ;; esac
({semodule}) || exit
case $1 in -i) cp "$2" /loaded ;; -r) rm /loaded ;; esac""",
        "usr/sbin/restorecon": 'echo "restorecon $*" >>/asked',
    }
    (chroot.top / "usr/sbin").mkdir(exist_ok=True)
    for name, text in programs.items():
        (chroot.top / name).write_text(f"#!/bin/sh\n{text}\n")
        (chroot.top / name).chmod(0o755)
    for name in ("sys/fs/selinux/enforce", "etc/selinux/config", "deny"):
        (chroot.top / name).parent.mkdir(parents=True, exist_ok=True)
        (chroot.top / name).write_text("1")


def test_the_selinux_module_is_loaded_where_the_policy_denies_the_hook(chroot: Chroot) -> None:
    pretend_selinux(chroot)

    result = chroot()

    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.endswith(
        f"  SELinux: {DENIED}\n  the SELinux module vfio_console_hook is loaded, which allows it\n"
    )
    shipped = ROOT / "config/selinux/vfio_console_hook.cil"
    assert (chroot.top / "loaded").read_bytes() == shipped.read_bytes()
    after = chroot.asked()
    after = after[after.index(f"semodule -i /{LIB}/vfio_console_hook.cil") + 1 :]
    assert after == [f"restorecon -R /{MAIN}"]


def test_the_selinux_module_is_not_loaded_where_nothing_is_denied(chroot: Chroot) -> None:
    pretend_selinux(chroot)
    (chroot.top / "deny").unlink()

    result = chroot()

    assert "SELinux" not in result.stdout
    assert not (chroot.top / "loaded").exists()


def test_an_upgrade_loads_the_selinux_module_again_if_it_is_loaded(chroot: Chroot) -> None:
    pretend_selinux(chroot)
    (chroot.top / "loaded").write_text("of an older version")

    chroot()

    shipped = ROOT / "config/selinux/vfio_console_hook.cil"
    assert (chroot.top / "loaded").read_bytes() == shipped.read_bytes()


def test_the_selinux_module_is_removed_with_the_program(chroot: Chroot) -> None:
    pretend_selinux(chroot)
    chroot()

    result = chroot("--uninstall")

    assert (result.status, result.stderr) == (0, "")
    assert not (chroot.top / "loaded").exists()


@pytest.mark.parametrize(
    ("semodule", "then"),
    [
        ("echo 'Failed to resolve x' >&2; exit 1", "  semodule failed: Failed to resolve x\n"),
        (None, "  there is no semodule to allow it: see vfio-console-hook doctor\n"),
    ],
    ids=["fails", "is missing"],
)
def test_the_hook_is_installed_without_a_selinux_module_that_cannot_be_loaded(
    chroot: Chroot, semodule: str | None, then: str
) -> None:
    pretend_selinux(chroot, semodule or "exit 0")
    if semodule is None:
        (chroot.top / "usr/sbin/semodule").unlink()

    result = chroot()

    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.endswith(f"  SELinux: {DENIED}\n{then}")


def inodes(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): path.lstat().st_ino for path in top.rglob("*")}


def pretend_packages(chroot: Chroot, then: str) -> None:
    """Install libvirt without its module for Python, and an apt-get that runs this code."""
    for name, text in {
        "usr/sbin/libvirtd": "echo 'libvirtd (libvirt) 9.0.0'",
        "usr/bin/python3": '[ "$*" != "-I -c import libvirt" ] || [ -e /module ]',
        "usr/bin/apt-get": f'echo "apt-get $*" >>/asked; {then}',
    }.items():
        (chroot.top / name).parent.mkdir(exist_ok=True)
        (chroot.top / name).unlink(missing_ok=True)
        (chroot.top / name).write_text(f"#!/bin/sh\n{text}\n")
        (chroot.top / name).chmod(0o755)


INSTALLING = (
    "installing libvirt's module for /usr/bin/python3 with the package manager of this host\n"
)


def pretend_pythons(chroot: Chroot, **pythons: str) -> None:
    """Install Pythons; each says "new" if it is new enough, and "lxml" if it has the libraries."""
    for name, can in pythons.items():
        new, libraries = ("exit 0" if word in can else "exit 1" for word in ("new", "lxml"))
        path = chroot.top / "usr/bin" / name.replace("_", ".")
        path.unlink(missing_ok=True)
        path.write_text(
            f'#!/bin/sh\ncase "$*" in *version_info*) {new} ;;\n'
            f"*'import lxml.etree'*) {libraries} ;; esac\n"
        )
        path.chmod(0o755)


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": "new lxml", "python3_14": "new lxml"}, "python3"),
        ({"python3": "old", "python3_11": "new lxml"}, "python3.11"),
        ({"python3": "new", "python3_9": "new lxml"}, "python3.9"),
        ({"python3": "old", "python3_9": "new lxml", "python3_14": "new lxml"}, "python3.14"),
        ({"python3": "old", "python3_9": "new lxml", "python3_14": "new"}, "python3.9"),
    ],
)
def test_the_python_that_can_run_the_hook_is_written_into_gate_and_command(
    chroot: Chroot, pythons: dict[str, str], chosen: str
) -> None:
    pretend_pythons(chroot, **pythons)

    result = chroot()

    assert (result.status, result.stderr) == (0, "")
    assert f"\nPYTHON=/usr/bin/{chosen}\n" in (chroot.top / MAIN).read_text()
    assert (chroot.top / COMMAND).read_text().startswith(f"#!/usr/bin/{chosen} -IXutf8\n")


LEAP = ("python311-lxml", "python311-PyYAML")


@pytest.mark.parametrize(
    ("manager", "pythons", "asked"),
    [
        ("zypper", {"python3": "old", "python3_11": "new"}, LEAP),
        ("zypper", {"python3": "old"}, ("python311", *LEAP)),
        ("dnf", {"python3": "old"}, ("python3.11", "python3.11-lxml", "python3.11-pyyaml")),
        ("dnf", {"python3": "new"}, ("python3-lxml", "python3-pyyaml")),
        ("pacman", {"python3": "new"}, ("python-lxml", "python-yaml")),
    ],
)
def test_the_libraries_of_the_python_that_is_new_enough_are_asked_for(
    chroot: Chroot, manager: str, pythons: dict[str, str], asked: tuple[str, ...]
) -> None:
    pretend_pythons(chroot, **pythons)
    program = chroot.top / "usr/bin" / manager
    program.write_text('#!/bin/sh\necho "$*" >>/asked\nexit 1\n')
    program.chmod(0o755)

    result = chroot()

    assert result.status == 1
    assert result.stderr.splitlines()[0].endswith("; nothing was installed")
    assert chroot.asked()[0].endswith(" " + " ".join(asked))


@pytest.mark.parametrize(
    ("manager", "words"),
    [
        ("apt-get", "install -y --no-install-recommends python3-lxml python3-yaml"),
        ("dnf", "install -y python3-lxml python3-pyyaml"),
        ("zypper", "--non-interactive install python3-lxml python3-PyYAML"),
        ("pacman", "-S --noconfirm --needed python-lxml python-yaml"),
        ("apk", "add py3-lxml py3-yaml"),
        # It has no verbs: xbps-install(1).
        ("xbps-install", "-Sy python3-lxml python3-yaml"),
    ],
)
def test_each_package_manager_is_called_by_its_own_options(
    chroot: Chroot, manager: str, words: str
) -> None:
    pretend_pythons(chroot, python3="new")
    chroot.put(f"usr/bin/{manager}", '#!/bin/sh\necho "$*" >>/asked\n')

    result = chroot()

    assert result.status == 1
    assert chroot.asked()[0] == words


def test_a_host_without_a_known_package_manager_is_told_what_to_install(chroot: Chroot) -> None:
    pretend_pythons(chroot, python3="new")

    result = chroot()

    assert (result.status, result.stderr) == (
        1,
        "install.sh: cannot install lxml and PyYAML for /usr/bin/python3: no package for it is "
        "known here; nothing was installed\nhint: install them by hand "
        "(Debian: python3-lxml python3-yaml; Fedora: python3-lxml python3-pyyaml)\n",
    )


@pytest.mark.parametrize("manager", ["apt-get", "pacman", "apk", "xbps-install"])
def test_no_package_is_installed_for_a_python_that_is_too_old(
    chroot: Chroot, manager: str
) -> None:
    pretend_pythons(chroot, python3="old")
    program = chroot.top / "usr/bin" / manager
    program.unlink(missing_ok=True)
    program.write_text('#!/bin/sh\necho "$*" >>/asked\n')
    program.chmod(0o755)

    result = chroot()

    assert result == Result(
        1, "", "install.sh: there is no Python from 3.9 on in /usr/bin; nothing was installed\n"
    )
    assert chroot.asked() == []


def test_no_package_is_installed_if_something_is_in_the_way(chroot: Chroot) -> None:
    pretend_packages(chroot, ">/module")
    pretend_pythons(chroot, python3="new")
    (chroot.top / COMMAND).write_text("#!/bin/sh\n")

    result = chroot()

    assert result == Result(1, "", f"install.sh: /{COMMAND} is not ours; nothing was installed\n")
    assert chroot.asked() == []


def test_packages_that_were_installed_are_named_if_the_rest_fails(chroot: Chroot) -> None:
    pretend_packages(chroot, ">/module")
    (chroot.top / "usr/bin/python3").write_text(
        "#!/bin/sh\ncase \"$*\" in *'import l'*) [ -e /module ] ;; *compileall*) exit 1 ;; esac\n"
    )

    result = chroot()

    assert (result.status, result.stderr) == (
        1,
        "install.sh: cannot compile the program: ; of vfio-console-hook nothing was installed, "
        "but these packages were: python3-lxml python3-yaml\n",
    )
    assert not (chroot.top / LIB).exists()


@pytest.mark.parametrize(
    ("sign", "sentence", "hint"),
    [
        ("etc/NIXOS", "NixOS has no /usr to install into", "virtualisation.libvirtd.hooks.qemu"),
        ("run/current-system/profile/bin/guix", "Guix System has no /usr", "package definition"),
        ("etc/unraid-version", "unRAID has its system in memory", "/boot/config/go"),
        ("run/ostree-booted", "the /usr of this host is an image", "rpm-ostree install"),
    ],
)
def test_a_host_whose_usr_is_an_image_is_told_what_to_do(
    chroot: Chroot, sign: str, sentence: str, hint: str
) -> None:
    (chroot.top / sign).parent.mkdir(parents=True, exist_ok=True)
    (chroot.top / sign).touch()
    before = tree(chroot.top)

    result = chroot()

    said = result.stderr.splitlines()
    assert (result.status, result.stdout, len(said)) == (1, "", 2)
    assert said[0].startswith(f"install.sh: {sentence}")
    assert said[0].endswith("; nothing was installed")
    assert hint in said[1]
    assert {**tree(chroot.top), "dev/null": ""} == {**before, "dev/null": ""}


def test_what_unraid_is_told_to_do_installs(chroot: Chroot) -> None:
    (chroot.top / "etc/unraid-version").touch()
    assert "run DESTDIR=/ ./install.sh in " in chroot().stderr

    result = chroot(DESTDIR="/")

    assert (result.status, result.stderr) == (0, "")
    assert (chroot.top / MAIN).exists()


@pytest.mark.parametrize("transactional", [True, False])
def test_a_read_only_usr_is_recognized(chroot: Chroot, transactional: bool) -> None:
    if transactional:
        (chroot.top / "usr/bin/transactional-update").write_text("#!/bin/sh\n")
        (chroot.top / "usr/bin/transactional-update").chmod(0o755)
    if subprocess.run(["chattr", "+i", chroot.top / "usr"], capture_output=True).returncode:
        pytest.skip("this file system has no immutable directories")
    try:
        result = chroot()
    finally:
        subprocess.run(["chattr", "-i", chroot.top / "usr"], check=True)

    said = result.stderr.splitlines()
    assert said[0] == "install.sh: the /usr of this host is read-only; nothing was installed"
    assert ("transactional-update pkg install" in said[1]) is transactional


def test_what_a_package_has_installed_is_left_to_the_package_manager(clone: Clone) -> None:
    clone.put(f"{LIB}.0.2.0/package.sh", "", 0o644)
    clone.link(LIB, "vfio-console-hook.0.2.0")
    before = tree(clone.dest)

    installed, removed = clone(), clone("--uninstall")

    for result, done in ((installed, "installed"), (removed, "removed")):
        assert result == Result(
            1,
            "",
            f"install.sh: vfio-console-hook is installed as a package; nothing was {done}\n"
            "hint: upgrade or remove it with the package manager\n",
        )
    assert tree(clone.dest) == before


def test_libvirts_module_for_python_is_installed_if_libvirt_is(chroot: Chroot) -> None:
    pretend_packages(chroot, ">/module")

    result = chroot()

    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{INSTALLING}vfio-console-hook is installed:\n")
    assert chroot.asked() == ["apt-get install -y --no-install-recommends python3-libvirt"]
    assert INSTALLING not in chroot().stdout


def test_a_module_for_python_that_cannot_be_installed_is_a_note(chroot: Chroot) -> None:
    pretend_packages(chroot, "echo 'E: no network' >&2; exit 100")

    result = chroot()

    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(
        f"{INSTALLING}  it cannot be installed: E: no network\n"
        "  everything works without it but doctor's look at VMs, and plan wants --xml\n"
        "vfio-console-hook is installed:\n"
    )


def test_uninstall_says_which_packages_stay(chroot: Chroot) -> None:
    pretend_packages(chroot, ">/module")
    (chroot.top / "usr/bin/python3").write_text(
        "#!/bin/sh\ncase \"$*\" in *'import l'*) [ -e /module ] ;; esac\n"
    )
    chroot()
    (chroot.top / "module").unlink()
    chroot()
    asked = [line.partition("recommends ")[2] for line in chroot.asked()]

    removed = chroot("--uninstall")

    assert asked == ["python3-lxml python3-yaml"] * 2
    assert removed.stdout == (
        "vfio-console-hook is removed\n"
        "  install.sh has installed these packages, which stay: python3-lxml python3-yaml\n"
    )


def test_the_demo_needs_no_network_where_the_distribution_has_the_libraries(
    chroot: Chroot,
) -> None:
    pretend_packages(chroot, ">/module")
    (chroot.top / "usr/bin/python3").write_text(
        "#!/bin/sh\ncase \"$*\" in\n*'import lxml'*) [ -e /module ] ;;\n"
        "*tests.demo) echo shown ;;\n*pip*|*venv*) echo \"$*\" >>/asked ;;\nesac\n"
    )

    shown = chroot("--demo")

    assert (shown.status, shown.stdout.splitlines()[-1]) == (0, "shown")
    assert chroot.asked() == [
        "apt-get install -y --no-install-recommends python3-lxml python3-yaml"
    ]


def test_the_demo_takes_any_python_that_has_the_libraries(chroot: Chroot) -> None:
    (chroot.top / "usr/bin/python3").write_text("#!/bin/sh\nexit 1\n")
    newer = chroot.top / "usr/bin/python3.11"
    newer.write_text("#!/bin/sh\ncase \"$*\" in *tests.demo) echo shown by 3.11 ;; esac\n")
    newer.chmod(0o755)

    shown = chroot("--demo")

    assert shown == Result(0, "shown by 3.11\n", "")


def test_a_package_is_made_by_any_python_that_is_new_enough(chroot: Chroot) -> None:
    pretend_pythons(chroot, python3="old")
    newer = chroot.top / "usr/bin/python3.11"
    newer.write_text("#!/bin/sh\ncase \"$*\" in *version_info*) ;; *) echo \"$*\" ;; esac\n")
    newer.chmod(0o755)

    made = chroot("--package", "deb", "/tmp")

    assert made.stderr == ""
    assert made.stdout.splitlines()[-1] == "-I -B /clone/config/packaging/build.py deb /tmp"


def test_with_destdir_no_package_is_installed(chroot: Chroot) -> None:
    pretend_packages(chroot, "exit 1")

    result = chroot(DESTDIR="/a tree")

    assert (result.status, chroot.asked()) == (0, [])


def test_with_destdir_systemctl_is_not_called(chroot: Chroot) -> None:
    chroot.systemd()

    installed = chroot(DESTDIR="/a tree")
    removed = chroot("--uninstall", DESTDIR="/a tree")

    assert f"  unit     /a tree/{UNIT}\n" in installed.stdout
    assert removed.stdout == "vfio-console-hook is removed from /a tree\n"
    assert chroot.asked() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("option", [(), ("--uninstall",)])
def test_without_root_and_without_destdir_it_refuses(option: tuple[str, ...]) -> None:
    script = (ROOT / "install.sh").read_text()
    setup = (ROOT / "hooks/setup.sh").read_text()

    done = subprocess.run(
        ["/bin/sh", "-s", "--", *option],
        # The clone may be where only root can read.
        input=script.replace('. "$here/hooks/setup.sh"', setup),
        capture_output=True,
        text=True,
        env={},
        user=65534,
    )

    word, hint = ("remove what is in", "") if option else ("install into", ", or set DESTDIR")
    what = "removed" if option else "installed"
    assert done.returncode == 1
    assert done.stderr == (
        f"install.sh: only root can {word} /usr and /etc; nothing was {what}\n"
        f"hint: use sudo{hint}\n"
    )


@pytest.mark.parametrize("arguments", [("--frobnicate",), ("--uninstall", "x"), ("",)])
def test_wrong_usage_is_reported_with_status_2(clone: Clone, arguments: tuple[str, ...]) -> None:
    result = clone(*arguments)

    assert (result.status, result.stdout, tree(clone.dest)) == (2, "", {})
    assert result.stderr.startswith("usage: ./install.sh ")


def test_help_is_no_error(clone: Clone) -> None:
    result = clone("--help")

    assert (result.status, result.stderr, tree(clone.dest)) == (0, "", {})
