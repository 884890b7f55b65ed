"""install.sh, run for real into a DESTDIR."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gate as gate_paths
from tests.gate import ROOT
from vfio_console_hook import journal

PARTS = ("install.sh", "hooks", "config", "vfio_console_hook", "README.md", "NEWS.md", "LICENSE")
LIB = "usr/lib/vfio-console-hook"
COMMAND = "usr/bin/vfio-console-hook"
ETC = "etc/vfio-console-hook"
MAIN = "etc/libvirt/hooks/qemu"
DROPIN = "etc/libvirt/hooks/qemu.d/50-vfio-console-hook"
CHAINED = "etc/libvirt/hooks/vfio-console-hook"
FOREIGN = "#!/bin/sh\n# somebody else's\n"

# Stand in for the program itself, so that what is tested here is the installer.
STUBS = {
    "vfio_console_hook/hook.py": "def main(argv):\n    return 0\n",
    "vfio_console_hook/cli.py": "def main(argv=None):\n    print('stub')\n    return 0\n",
    "config/default.yaml": "enabled: true\n",
}


def tree(top: Path) -> dict[str, str]:
    """Every path below top: what a file says, where a link points, "/" for a directory."""
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
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def put(self, name: str, text: str, mode: int = 0o755) -> Path:
        """Writes a file below the tree."""
        path = self.dest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def libvirt(self, version: str, daemon: str = "usr/sbin/libvirtd") -> None:
        """Puts a daemon of this version into the tree."""
        self.put(daemon, f"#!/bin/sh\necho 'libvirtd (libvirt) {version}'\n")

    def shipped(self) -> str:
        return (self.directory / "config/default.yaml").read_text()

    def ship(self, text: str) -> None:
        """The next version of the program comes with another default.yaml."""
        (self.directory / "config/default.yaml").write_text(text)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    directory = tmp_path / "the clone"
    directory.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, directory / part)
    for name, text in STUBS.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    dest = tmp_path / "the tree"
    dest.mkdir()
    return Clone(directory, dest)


def test_the_gate_looks_where_the_program_writes() -> None:
    paths = (f"/{journal.RUN}", f"/{journal.BY_NAME}")

    assert paths == (gate_paths.RUN_DIR, gate_paths.RUN_DIR + "/by-name")


def test_the_installer_and_the_gate_agree_on_paths() -> None:
    installer = (ROOT / "install.sh").read_text()

    wanted = {
        f"PYTHON={gate_paths.PYTHON}",
        f"LIB={os.path.dirname(gate_paths.PROGRAM)}",
        f"RUN=/{journal.RUN}",
    }

    assert wanted <= set(installer.splitlines())
    assert f"/{journal.STATUS}" == f"/{journal.RUN}.status"


def test_install_says_what_it_did_and_puts_everything_in_place(clone: Clone) -> None:
    result = clone()

    dest = clone.dest
    assert result == Result(
        0,
        "vfio-console-hook is installed:\n"
        f"  program  {dest}/{LIB}\n"
        f"  command  {dest}/{COMMAND}\n"
        f"  hook     {dest}/{MAIN}\n"
        f"  config   {dest}/{ETC}/default.yaml\n",
        "",
    )
    assert (dest / MAIN).read_bytes() == (clone.directory / "hooks/qemu").read_bytes()
    assert (dest / MAIN).stat().st_mode & 0o7777 == 0o755
    assert (dest / COMMAND).stat().st_mode & 0o7777 == 0o755
    assert (dest / ETC / "default.yaml").read_text() == clone.shipped()
    assert (dest / ETC / "vms").is_dir()
    assert sorted(path.name for path in (dest / "etc/libvirt/hooks").iterdir()) == ["qemu"]
    assert not list(dest.rglob(".new-*"))


def test_every_module_is_compiled_and_carries_its_installed_path(clone: Clone) -> None:
    clone()

    package = clone.dest / LIB / "vfio_console_hook"
    modules = set(package.rglob("*.py"))
    compiled = {
        path.parent.parent / (path.name.split(".")[0] + ".py") for path in package.rglob("*.pyc")
    }
    assert compiled == modules
    code = next((package / "__pycache__").glob("errors.*.pyc")).read_bytes()
    assert f"/{LIB}/vfio_console_hook/errors.py".encode() in code


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

    file = clone.dest / LIB / "vfio_console_hook/hook.py"
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

    result = clone()

    assert result.status == 0
    # The bytecode holds the time of its source.
    changed = {name for name, text in tree(clone.dest).items() if before.get(name) != text}
    assert {name for name in changed if not name.endswith(".pyc")} == set()
    assert tree(clone.dest).keys() == before.keys()


def test_an_upgrade_leaves_no_module_of_the_old_version(clone: Clone) -> None:
    extra = clone.directory / "vfio_console_hook/gone_soon.py"
    extra.write_text("")
    clone()
    extra.unlink()

    clone()

    assert not list(clone.dest.rglob("*gone_soon*"))


def test_uninstall_leaves_no_trace(clone: Clone) -> None:
    clone.put("etc/hosts", "")
    before = tree(clone.dest)
    clone()
    clone.put(f"{journal.RUN}/kernel", "{}")
    clone.put(journal.STATUS, "{}")
    (clone.dest / journal.CLAIMS).mkdir()
    (clone.dest / "run/somebody").mkdir()

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
    clone.libvirt("9.0.0")
    before = tree(clone.dest)
    clone()

    clone("--uninstall")

    assert tree(clone.dest) == before


def test_uninstall_keeps_what_the_admin_wrote_and_says_so(clone: Clone) -> None:
    clone()
    changed = clone.put(f"{ETC}/default.yaml", "mine: true\n", 0o644)
    own = clone.put(f"{ETC}/vms/win11.yaml", "mine: too\n", 0o644)

    result = clone("--uninstall")

    assert result.stdout == (
        f"vfio-console-hook is removed from {clone.dest}\n"
        + "".join(
            f"  kept, because it is yours: {path}\n"
            for path in (changed, own)
        )
    )
    assert {name for name, text in tree(clone.dest).items() if text != "/"} == {
        f"{ETC}/default.yaml",
        f"{ETC}/vms/win11.yaml",
    }


def test_uninstall_refuses_while_a_vm_holds_a_gpu(clone: Clone) -> None:
    clone()
    claim = clone.put(f"{journal.CLAIMS}/0b0e", "{}")
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


def test_uninstall_removes_a_gate_whose_program_is_gone(clone: Clone) -> None:
    clone()
    shutil.rmtree(clone.dest / LIB)

    clone("--uninstall")

    assert not (clone.dest / MAIN).exists()


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


def test_a_libvirt_that_cannot_be_asked_reads_drop_ins_where_the_directory_is(clone: Clone) -> None:
    clone.put(MAIN, FOREIGN)
    (clone.dest / DROPIN).parent.mkdir()

    result = clone()

    assert result.status == 0
    assert (clone.dest / DROPIN).exists()


@pytest.mark.parametrize("version", ["6.4.0", "5.0.0", ""])
def test_a_foreign_hook_on_an_old_libvirt_is_refused_with_the_way_out(
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
        f"install.sh: {clone.dest}/{MAIN} belongs to somebody else, and libvirt "
        f"{version or '(not found)'} reads no qemu.d (6.5 does); nothing was installed\n"
        "hint: add this line to it, after its first line, and run install.sh again:\n"
        f'    [ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1\n',
    )
    assert tree(clone.dest) == before


def test_a_foreign_hook_that_calls_ours_gets_it(clone: Clone) -> None:
    theirs = f'#!/bin/sh\n[ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1\n'
    clone.put(MAIN, theirs)
    clone.libvirt("6.4.0")
    before = tree(clone.dest)

    result = clone()

    assert f"  hook     {clone.dest}/{CHAINED}\n" in result.stdout
    assert (clone.dest / MAIN).read_text() == theirs
    clone("--uninstall")
    assert tree(clone.dest) == before


def test_one_event_never_reaches_us_twice(clone: Clone) -> None:
    clone()
    shutil.copy(clone.dest / MAIN, clone.put(DROPIN, ""))

    clone()

    assert (clone.dest / MAIN).exists()
    assert not (clone.dest / DROPIN).exists()


def test_a_drop_in_stays_one_when_the_foreign_hook_has_gone(clone: Clone) -> None:
    clone.put(MAIN, FOREIGN)
    clone.libvirt("9.0.0")
    clone()
    (clone.dest / MAIN).unlink()

    clone()

    assert (clone.dest / DROPIN).exists()
    assert not (clone.dest / MAIN).exists()


def test_a_dangling_link_is_somebody_elses_hook(clone: Clone) -> None:
    clone.libvirt("9.0.0")
    (clone.dest / MAIN).parent.mkdir(parents=True)
    (clone.dest / MAIN).symlink_to("/nowhere")

    clone()

    assert os.readlink(clone.dest / MAIN) == "/nowhere"
    assert (clone.dest / DROPIN).exists()


def test_a_changed_config_is_kept_and_the_new_one_put_beside(clone: Clone) -> None:
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
        (f"{ETC}/default.yaml", "{} is a directory; nothing was installed"),
    ],
)
def test_a_directory_where_a_file_should_be_is_told_in_one_sentence(
    clone: Clone, name: str, sentence: str
) -> None:
    (clone.dest / name).mkdir(parents=True)
    before = tree(clone.dest)

    result = clone()

    assert result == Result(1, "", f"install.sh: {sentence.format(clone.dest / name)}\n")
    assert tree(clone.dest) == before


@pytest.mark.parametrize("name", [LIB, ETC, f"{ETC}/vms", "etc/libvirt/hooks"])
def test_a_file_where_a_directory_should_be_is_told_in_one_sentence(
    clone: Clone, name: str
) -> None:
    path = clone.put(name, "")
    before = tree(clone.dest)

    result = clone()

    assert result == Result(
        1, "", f"install.sh: {path} is not a directory; nothing was installed\n"
    )
    assert tree(clone.dest) == before


@pytest.mark.parametrize("name", ["usr", "usr/share", "etc"])
def test_a_file_in_the_way_half_way_leaves_nothing_half_done(clone: Clone, name: str) -> None:
    clone.put(name, "")
    before = tree(clone.dest)

    result = clone()

    assert result.status == 1
    assert result.stderr.startswith("install.sh: cannot make the directory ")
    assert result.stderr.endswith(": File exists; nothing was installed\n")
    assert tree(clone.dest) == before


def test_a_foreign_command_of_our_name_is_not_overwritten(clone: Clone) -> None:
    path = clone.put(COMMAND, "#!/bin/sh\n")
    before = tree(clone.dest)

    result = clone()

    assert result == Result(
        1, "", f"install.sh: {path} belongs to somebody else; nothing was installed\n"
    )
    assert tree(clone.dest) == before


def test_a_program_that_a_package_brought_is_not_overwritten(clone: Clone) -> None:
    clone.put(f"{LIB}/vfio_console_hook/__init__.py", "")
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
@pytest.mark.parametrize("name", [COMMAND, MAIN])
def test_a_target_that_cannot_be_replaced_puts_everything_back(clone: Clone, name: str) -> None:
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


def test_a_clone_with_crlf_line_ends_installs_scripts_that_run(clone: Clone) -> None:
    for name in ("hooks/qemu", "hooks/launch.py", "hooks/command.py"):
        path = clone.directory / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    clone()

    for name in (MAIN, f"{LIB}/hook", COMMAND):
        assert b"\r" not in (clone.dest / name).read_bytes()


def test_an_old_python_is_refused(clone: Clone, tmp_path: Path) -> None:
    script = clone.directory / "install.sh"
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    text = script.read_text()
    assert text.count("\nPYTHON=/usr/bin/python3\n") == 1
    script.write_text(text.replace("\nPYTHON=/usr/bin/python3\n", f"\nPYTHON='{old}'\n"))

    result = clone()

    assert result == Result(
        1, "", f"install.sh: {old} is older than Python 3.9; nothing was installed\n"
    )
    assert tree(clone.dest) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("option", [(), ("--uninstall",)])
def test_without_root_and_without_destdir_it_refuses(option: tuple[str, ...]) -> None:
    script = (ROOT / "install.sh").read_text()

    done = subprocess.run(
        ["/bin/sh", "-s", "--", *option],
        input=script.replace('$(dirname "$0")', str(ROOT)),
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
def test_wrong_usage_is_told_with_status_2(clone: Clone, arguments: tuple[str, ...]) -> None:
    result = clone(*arguments)

    assert (result.status, result.stdout, tree(clone.dest)) == (2, "", {})
    assert result.stderr.startswith("usage: ./install.sh ")


def test_help_is_no_error(clone: Clone) -> None:
    result = clone("--help")

    assert (result.status, result.stderr, tree(clone.dest)) == (0, "", {})
