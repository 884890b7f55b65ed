"""Rehearsals leave reports, which are machines of the tests: `rehearsed-NAME.tree`.

Each is what `rehearse --report FILE` has written on a real kernel. The rehearsal is done again on
the machine before, on the fake kernel, which must then be as the real one during and after it.
tests/lab/run leaves one with the results of the scenarios opened-*, as report.txt.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests import rehearsed
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost
from tests.rehearsing import GPU, rehearse, stage, the_diary, xml_file
from tests.snapshots import FOLDER
from tests.test_snapshots_of_the_lab import SECRETS
from vfio_console_hook import cli
from vfio_console_hook.claims.ownership import clock_time
from vfio_console_hook.commands.rehearse import command, evidence
from vfio_console_hook.commands.rehearse.report import sections

Capture = pytest.CaptureFixture[str]
REPORTS = sorted(FOLDER.glob("rehearsed-*.tree"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_fake_kernel_does_what_the_real_one_did(path: Path, tmp_path: Path) -> None:
    assert rehearsed.replay(path.read_text(encoding="utf-8"), tmp_path / "replayed") == {}


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_nothing_private_is_in_a_report(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert [name for name, one in SECRETS.items() if re.search(one, text)] == []


# -- how they come to be


def reported(host: FakeHost, tmp_path: Path, *words: str) -> str:
    """What a rehearsal on a machine writes."""
    file = tmp_path / "report.txt"
    rehearse(host, "--report", str(file), *words)
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["efifb-6.12", "native-6.1", "efifb-6.1", "efifb-0380-6.12"])
def test_a_report_can_be_replayed_and_read(
    machine: MachineFactory, tmp_path: Path, capfd: Capture, name: str
) -> None:
    host = stage(machine, name)
    before = cli.main(["plan", "--json", "--xml", _xml(tmp_path)], host), capfd.readouterr().out

    text = reported(host, tmp_path, GPU)

    found = sections(text)
    assert found["rehearsed"] == f"functions {GPU}\nagrees yes\n"
    assert "vfio-pci" in found["during"] and "driver" in found["verdict"] and found["plan"]
    assert "taking 0000:01:00.0" in found["log"]
    assert rehearsed.replay(text, tmp_path / "replayed") == {}
    capfd.readouterr()
    file = str(tmp_path / "report.txt")
    again = cli.main(["--root", file, "plan", "--json", "--xml", _xml(tmp_path)])
    assert (again, capfd.readouterr().out) == before


def _xml(tmp_path: Path) -> str:
    return xml_file(tmp_path / "vm.xml", GPU)


def test_a_report_of_another_machine_is_not_what_the_fake_kernel_does(
    machine: MachineFactory, tmp_path: Path
) -> None:
    text = reported(stage(machine, "efifb-6.12"), tmp_path, GPU)
    swapped = text.replace("# == during", "# == x").replace("# == after", "# == during")
    swapped = swapped.replace("# == x", "# == after")

    assert [*rehearsed.replay(swapped, tmp_path / "replayed")] == ["during", "after"]


def test_one_that_failed_leaves_a_report_by_itself(machine: MachineFactory, capfd: Capture) -> None:
    host = stage(machine, "efifb-6.12")
    host.tree.put(f"fake/after_vm/{GPU}", "silent")

    status = rehearse(host, GPU)

    (name,) = host.list(evidence.REPORTS)
    text = (host.read_bytes(f"{evidence.REPORTS}/{name}") or b"").decode()
    assert (status, f"report: /{evidence.REPORTS}/{name}" in capfd.readouterr().out) == (1, True)
    assert sections(text)["rehearsed"].endswith("agrees no\n")
    assert "!!" in sections(text)["verdict"]
    assert host.list(evidence.FOLDER) == ()


def test_one_that_agreed_leaves_none(machine: MachineFactory) -> None:
    host = stage(machine, "efifb-6.12")

    rehearse(host, GPU)

    assert (host.list(evidence.REPORTS), host.list(evidence.FOLDER)) == ((), ())


def test_the_announced_time_counts_from_the_answer(
    machine: MachineFactory, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = stage(machine, "efifb-6.12")

    def think(_: object) -> bool:
        monkeypatch.setattr(host, "now", lambda: time.time() + 3600)
        return True

    monkeypatch.setattr(command, "_agreed", think)
    rehearse(host, GPU)

    until = the_diary(host).rehearsal().until
    assert until > time.time() + 3600
    assert f"begun; at {clock_time(until)} everything is back" in capfd.readouterr().out


def test_without_room_for_evidence_the_rehearsal_goes_on(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = stage(machine, "efifb-6.12")
    host.tree.put(evidence.FOLDER, "a file in the way")

    status = rehearse(host, GPU)

    assert (status, "there will be no report" in capfd.readouterr().out) == (0, True)
