"""Commands print the same for a snapshot as in the lab, where `record` wrote it.

tests/machines/recorded-NAME.tree is what the installed command wrote there, and
tests/golden/recorded-NAME-COMMAND.txt what a command printed there at that moment, with its
exit status and without times. tests/lab/run leaves both with the results of a scenario that
says recorded=NAME, as machine-WHEN.tree and machine-WHEN-COMMAND.txt, and each time fails
unless both outputs are the same. So --regenerate is allowed after a change of wording.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import Golden
from tests.lab.printed import COMMANDS, without_times
from tests.lab.scenarios import SCENARIOS
from tests.snapshots import FOLDER
from vfio_console_hook import __version__, cli

TREES = sorted(FOLDER.glob("recorded-*.tree"))

SECRETS = {
    "a MAC address": r"(?i)\b(?!52:54:00:00:00:)(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b",
    "a network interface": r"(?i)\b(?:enx|wlx)[0-9a-f]{12}\b",
    "a home": r"/home/(?!user\d)\w+",
    "an e-mail address": r"\b[\w.]+@(?!host\b)[\w-]+\.[a-z]{2,}\b",
    "a password": r"(?i)passw(?:or)?d\s*=",
    "a machine-id": r"(?m)^[fx] etc/machine-id",
    "a serial number": r"(?i)<serial>|name='serial'>|(?m:^[fx] sys/.*/serial(?!.*masked))",
    "the name of the host": r"(?m)^[fx] (?:etc/hostname|proc/sys/kernel/hostname)(?!.*masked)",
    "a uuid": r"(?i)\b(?!00000000-0000-4)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",
}


def kernel(tree: Path) -> str:
    (line,) = re.findall(r"(?m)^f proc/sys/kernel/osrelease = (\S+)", tree.read_text())
    return str(line)


def test_there_are_snapshots_of_at_least_three_different_machines() -> None:
    assert len({kernel(one) for one in TREES}) >= 3


def test_each_snapshot_is_left_by_a_scenario() -> None:
    left = {f"recorded-{one.recorded}" for one in SCENARIOS if one.recorded}

    # One machine also has a snapshot of the running VM.
    assert left <= {one.stem for one in TREES} <= left | {f"{one}-running" for one in left}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.stem)
def test_a_command_prints_for_the_snapshot_what_it_printed_on_the_machine(
    tree: Path,
    command: str,
    golden: Golden,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # doctor compares the version that is installed with its own, and both were the same there.
    machine = tmp_path / tree.name
    installed = re.compile(r'(?m)^(\|__version__ = )".*"$')
    machine.write_text(installed.sub(rf'\1"{__version__}"', tree.read_text()))

    status = cli.main(["--root", str(machine), *command.split()])

    out, err = capfd.readouterr()
    name = command.partition(" ")[0]
    golden(f"{tree.stem}-{name}", f"{without_times(out + err)}[{status}]\n")


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.stem)
def test_no_secret_is_in_a_snapshot(tree: Path) -> None:
    text = tree.read_text()

    assert {
        name: re.findall(one, text) for name, one in SECRETS.items() if re.search(one, text)
    } == {}
