"""No command shows a traceback for a state of the host, however damaged it is.

A refusal in a sentence is right, and so is "could not be checked"; that a command ends with
a bug is not.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import events, private
from tests.conftest import MachineFactory
from tests.damage import damage
from tests.doctoring import OTHER_UUID
from tests.fakehost import selinux
from tests.gate import ROOT
from tests.installed import file
from tests.libvirt_xml import domain_xml
from vfio_console_hook import cli
from vfio_console_hook.claims import losses
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands import notify
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import parse
from vfio_console_hook.log import Log
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.snapshot import SnapshotHost

Capture = pytest.CaptureFixture[str]
VM, GPU = private.NAME, private.GPU
COMMANDS = (
    ("plan", VM), ("plan", "--json", VM), ("status",), ("status", "--prometheus"), ("doctor",),
    ("check-config",), ("check-config", "--vm", VM), ("record", "-"), ("recover",),
    ("dismiss",), ("notify",), ("rehearse", GPU), ("keep", VM),
    ("take", GPU), ("take", "--vfio", "--for", VM, GPU), ("give", GPU),
)  # fmt: skip
# Many at once hide what follows the first; few reach little.
DAMAGE = 40


def installed_machine(machine: MachineFactory) -> str:
    """The folder of a machine with all that the commands read: VMs, a claim and its losses."""
    host = machine("efifb-6.12")
    other = parse(domain_xml(GPU, name="linux", uuid=OTHER_UUID))
    events.prepare(host, other, Config(), Log(host, "linux"))
    claim = Claims(host).find(OTHER_UUID)
    assert claim is not None and claim.steps
    private.add_data(host)
    lost = [losses.Loss("linux", OTHER_UUID, 1.0, one, "it is gone") for one in claim.steps]
    found = {"boot": host.boot_id, "losses": [one.to_json() for one in lost]}
    host.tree.put(losses.FILE, json.dumps(found))
    host.tree.put("proc/cmdline", 'quiet video="efifb:of" vfio-pci.ids=10de:1b80 intel_iommu=on')
    host.tree.put("proc/self/mountinfo", "26 24 8:1 / / rw - ext4 /dev/sda1 rw")
    host.tree.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2")
    host.tree.put(f"proc/{700}/attr/current", "system_u:system_r:virtqemud_t:s0")
    host.tree.put("label/usr/bin/python3", "system_u:object_r:bin_t:s0")
    selinux.install(host.tree, "allow virtqemud_t user_home_t:file read open execute")
    file(host, "usr/bin/systemctl", "")
    return host.root


def complaint(capsys: Capture, words: tuple[str, ...], host: Host) -> str:
    """What a command printed that ended with a bug; "" for any other end."""
    capsys.readouterr()
    status = cli.main(words, host)
    out, err = capsys.readouterr()
    text = " ".join((out + err).split())
    bug = re.search("Traceback|internal error|is a bug", text)
    if bug is None and status <= 2:
        return ""
    place = bug.start() if bug else 0
    return f"{' '.join(words)} ended with {status}: {text[max(place - 200, 0) : place + 3000]}"


@pytest.mark.parametrize("seed", range(104))
def test_no_command_shows_a_traceback_on_a_damaged_host(
    machine: MachineFactory, capsys: Capture, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(notify, "_TRY_S", 0)  # nothing shows notifications here
    root = installed_machine(machine)
    done = damage(root, seed, DAMAGE)

    found = [complaint(capsys, words, SnapshotHost(root)) for words in COMMANDS]

    assert [one for one in found if one] == [], done


def test_every_command_is_run_on_damaged_hosts() -> None:
    assert {words[0] for words in COMMANDS} == {one.name for one in cli.COMMANDS}


# -- libraries and the program itself


def installed_command(folder: Path) -> Path:
    """The command where install.sh puts it, with its package."""
    command = folder / "usr/bin/vfio-console-hook"
    package = folder / "usr/lib/vfio-console-hook/vfio_console_hook"
    command.parent.mkdir(parents=True)
    shutil.copy(ROOT / "hooks/command.py", command)
    shutil.copytree(
        ROOT / "vfio_console_hook", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    return command


def gone(path: Path) -> None:
    shutil.rmtree(path)


def cut_off(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("", gone),
        ("vfio_console_hook", gone),
        ("vfio_console_hook/machine", gone),
        ("vfio_console_hook/config/settings.py", cut_off),
        ("vfio_console_hook/errors.py", cut_off),
        ("vfio_console_hook/largexml.py", Path.unlink),
        ("vfio_console_hook/stages/load.py", Path.unlink),
    ],
)
def test_half_a_program_says_so(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    command = installed_command(tmp_path)
    harm(tmp_path / "usr/lib/vfio-console-hook" / name)
    large = domain_xml(GPU).replace(b"<devices>", b"<!--" + b"x" * 300_000 + b"--><devices>")
    (tmp_path / "vm.xml").write_bytes(large)
    root = ROOT / "tests/machines/efifb-6.12.tree"
    words = ("--root", root, "plan", "--xml", tmp_path / "vm.xml")

    done = subprocess.run(
        [sys.executable, "-IXutf8", command, *words], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert done.stderr.startswith("vfio-console-hook: cannot load the program: ")
    assert done.stderr.endswith("hint: install vfio-console-hook again\n")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("library", ["yaml", "lxml", "libvirt"])
def test_without_a_library_no_command_shows_a_traceback(
    machine: MachineFactory, capsys: Capture, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    root = installed_machine(machine)
    for name in [one for one in sys.modules if one.partition(".")[0] == library] or [library]:
        monkeypatch.setitem(sys.modules, name, None)

    found = [complaint(capsys, words, SnapshotHost(root)) for words in COMMANDS]

    assert [one for one in found if one] == []


@pytest.mark.parametrize(("library", "package"), [("yaml", "PyYAML"), ("lxml", "lxml")])
def test_a_library_that_is_missing_is_a_failure_of_doctor(
    machine: MachineFactory, capsys: Capture, monkeypatch: pytest.MonkeyPatch, library: str,
    package: str,
) -> None:  # fmt: skip
    root = installed_machine(machine)
    for name in [one for one in sys.modules if one.partition(".")[0] == library] or [library]:
        monkeypatch.setitem(sys.modules, name, None)

    status = cli.main(("doctor", "--quiet"), SnapshotHost(root))

    text = capsys.readouterr().out
    failures = [block for block in text.split("FAIL  ") if f"cannot load {package}" in block]
    assert status == 1
    assert failures
    assert f"install the package python3-{library}" in " ".join(failures[0].split())
