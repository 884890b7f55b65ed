"""hooks/daemon, the gate for events of libvirt's daemon, where there is no systemd."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gate import ENVIRONMENT, ROOT, RUN_DIR

COMMAND = "/usr/bin/vfio-console-hook"
STARTED = ("-", "start", "-", "start")
"""What libvirt's daemons call it with; libvirt src/remote/remote_daemon.c, main."""


@dataclass(frozen=True)
class Gate:
    """A copy of the gate, with other paths, whose recover takes a while and whose log is a file."""

    top: Path

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        # Its output goes to pipes, and libvirt waits for their ends as well.
        return subprocess.run(
            [self.top / "gate", *words],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )

    def claim(self) -> None:
        (self.top / "run/claims/0f0e0d0c-0b0a-4908-8706-050403020100").write_text("{}")

    def log(self) -> str:
        """What recover has said, once it has ended."""
        for _ in range(200):
            if (self.top / "log").exists() and "badly" in (self.top / "log").read_text():
                break
            time.sleep(0.05)
        return (self.top / "log").read_text()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    text = (ROOT / "hooks/daemon").read_text(encoding="utf-8")
    for installed, instead in (
        (f"{RUN_DIR}/", f"{tmp_path}/run/"),
        (COMMAND, str(tmp_path / "command")),
        ("logger -t vfio-console-hook", f"cat >{tmp_path}/log"),
    ):
        assert text.count(installed) == 1
        text = text.replace(installed, instead)
    command = '#!/bin/sh\necho started >"${0%/*}/begun"\nsleep 1\necho "ran $*"\necho badly >&2\n'
    for name, content in (("gate", text), ("command", command)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run/claims").mkdir(parents=True)
    return Gate(tmp_path)


def test_a_daemon_that_starts_does_not_wait_for_recover(gate: Gate) -> None:
    gate.claim()

    began = time.monotonic()
    done = gate(*STARTED)
    took_s = time.monotonic() - began

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert took_s < 1
    assert gate.log() == "ran recover --wait 120\nbadly\n"


@pytest.mark.parametrize("there", [True, False])
def test_without_a_claim_nothing_is_started(gate: Gate, there: bool) -> None:
    if not there:
        (gate.top / "run/claims").rmdir()

    done = gate(*STARTED)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    time.sleep(0.3)
    assert not (gate.top / "begun").exists()


@pytest.mark.parametrize(
    "words", [("-", "shutdown", "-", "shutdown"), ("-", "reload", "begin", "SIGHUP"), ()]
)
def test_no_other_event_starts_recover(gate: Gate, words: tuple[str, ...]) -> None:
    gate.claim()

    done = gate(*words)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    time.sleep(0.3)
    assert not (gate.top / "begun").exists()
