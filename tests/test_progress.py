"""The output of take, give and recover while they run, and what Ctrl-C leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, snapshot
from tests.fakehost.userspace import hold, let_go
from tests.gate import ROOT
from vfio_console_hook import cli
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.log import Log

GPU = "0000:01:00.0"
UUID = "0b0e6f6c-5b5a-4f0e-8a55-1f1f7c0e6b0a"
Capture = pytest.CaptureFixture[str]

# A command on a machine that reacts, in a process of its own.
# A shell ignores SIGINT in its background jobs, which the tests may be.
PROGRAM = """\
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.fakehost import FakeHost
from vfio_console_hook import cli
terminal = os.dup(1)
class Busy(FakeHost):
    "A machine on which waiting takes time, and with a libvirt that may be busy."
    patient = True
    def vms(self, uri, name=""):
        os.write(terminal, b"libvirt is asked\\n")
        time.sleep(float(self.read("libvirt/busy") or 0))
        return super().vms(uri, name)
host = Busy(sys.argv[1])
sys.exit(cli.main(sys.argv[2:], host))
"""
PLAIN = """\
import sys
from tests.fakehost import FakeHost
from vfio_console_hook import cli
sys.exit(cli.main(sys.argv[2:], FakeHost(sys.argv[1])))
"""


def begin(host: FakeHost, *words: str, until: str) -> subprocess.Popen[str]:
    """Start a command, and return after it has printed this."""
    begun = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, host.root, *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert begun.stdout is not None
    while until not in (line := begun.stdout.readline()):
        assert line, f"it ended without {until!r}: {begun.communicate()}"
    return begun


def interrupt(begun: subprocess.Popen[str]) -> tuple[int, str]:
    """Send Ctrl-C; return the exit status and stderr."""
    begun.send_signal(signal.SIGINT)
    status = begun.wait(60)
    # Not communicate(): the worker may continue, and has stdout open.
    assert begun.stdin and begun.stdout and begun.stderr
    err = begun.stderr.read()
    for stream in (begun.stdin, begun.stdout, begun.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    return status, err


def configure(host: FakeHost, text: str) -> None:
    host.tree.put("etc/vfio-console-hook/default.yaml", text)
    for name in ("etc", "etc/vfio-console-hook", "etc/vfio-console-hook/default.yaml"):
        Path(host.path(name)).chmod(0o755)


def test_each_step_is_printed_when_it_has_been_done(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")

    cli.main(["take", GPU], host)
    took = capfd.readouterr()
    cli.main(["give", GPU], host)
    gave = capfd.readouterr()

    assert (took.err, gave.err) == ("", "")
    # Steps are indented; each names what it changed.
    took_lines, gave_lines = took.out.splitlines(), gave.out.splitlines()
    assert took_lines[0] == f"taking {GPU}: 4 steps"
    for line, name in zip(took_lines[1:4], ("/dev/fb0", "efi-framebuffer.0", GPU)):
        assert line.startswith("  ") and name in line
    assert took_lines[4:] == [
        f"took {GPU}; release it with `vfio-console-hook give {GPU}`",
        "afterwards: the firmware console comes back on efi-framebuffer.0",
        "the host's consoles: dummy device",
    ]
    for line, name in zip(gave_lines[:3], (GPU, "efi-framebuffer.0", "console")):
        assert line.startswith("  ") and name in line
    assert gave_lines[3].startswith(f"{GPU}: ")
    assert gave_lines[4:] == ["the host's consoles: framebuffer console on fb0 (EFI VGA)"]


def test_a_holder_is_named_before_the_wait(machine: MachineFactory, capfd: Capture) -> None:
    host = machine("efifb-6.12")
    configure(host, "holders: {wait_s: 0.25}\n")
    hold(host, "dev/fb0", pid=77, command="plymouthd")

    status = cli.main(["take", GPU], host)

    out, err = capfd.readouterr()
    assert (status, Claims(host).uuids()) == (1, ())
    assert out.splitlines() == [
        f"taking {GPU}: 4 steps",
        "waiting up to 0.25 s for plymouthd (77) with /dev/fb0 open",
    ]
    assert err.startswith(f"vfio-console-hook: {GPU} is in use by plymouthd (77)")


@pytest.mark.parametrize("stdout", ["| :", ">/dev/full", ">&-", "<&- >&- 2>&-"])
def test_the_work_continues_if_the_output_is_not_read(machine: MachineFactory, stdout: str) -> None:
    host = machine("efifb-6.12")

    done = subprocess.run(
        # The reader of the pipe has ended before the first line.
        ["sh", "-c", f'{{ sleep 0.2; exec "$@"; }} {stdout}', "sh",
         sys.executable, "-c", PLAIN, host.root, "take", GPU],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    assert done.stderr == ""
    assert [claim.gpus for claim in Claims(host).readable()] == [(GPU,)]
    assert "efifb" not in (host.read("proc/iomem") or "")


def test_ctrl_c_while_taking_leaves_a_claim_that_give_undoes(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    configure(host, "holders: {wait_s: 40}\ntimeout_s: 120\n")
    before = snapshot(host)
    hold(host, "dev/fb0", pid=77, command="plymouthd")

    begun = begin(host, "take", GPU, until="waiting up to 40 s for plymouthd")
    while not any(claim.worker[0] for claim in Claims(host).readable()):
        assert begun.poll() is None
    status, err = interrupt(begun)
    (claim,) = Claims(host).readable()
    # On a real machine give ends the processes that are left; the fake one has none.
    os.kill(claim.worker[0], signal.SIGKILL)
    let_go(host, 77)
    gave = cli.main(["give", GPU], host)

    assert (status, err.count("\n")) == (130, 1)
    assert f"interrupted: `vfio-console-hook give {GPU}`" in err
    assert (claim.by_hand, claim.gpus, gave) == (True, (GPU,), 0)
    assert snapshot(host) == before


def test_ctrl_c_while_recovering_leaves_the_claim_and_prints_what_to_run(
    machine: MachineFactory,
) -> None:
    host = machine("vgacon-5.10")
    vm = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))
    before = snapshot(host)

    begun = begin(host, "recover", "--wait", "40", until="win11: waiting up to 40 s: libvirt")
    status, err = interrupt(begun)

    assert (status, err) == (
        130, "vfio-console-hook: interrupted: run `vfio-console-hook recover` again\n",
    )  # fmt: skip
    assert (snapshot(host), Claims(host).uuids()) == (before, (UUID,))


def test_ctrl_c_while_nothing_is_changed_is_one_word(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    host.tree.put("libvirt/busy", "20")

    begun = begin(host, "plan", "win11", until="libvirt is asked")
    status, err = interrupt(begun)

    assert (status, err) == (130, "vfio-console-hook: interrupted\n")


def test_give_waits_for_a_running_hook_and_prints_that(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    cli.main(["take", GPU], host)
    capfd.readouterr()
    (claim,) = Claims(host).readable()
    stat = "4100 (hook) S 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 50 0"
    host.tree.put("proc/4100/stat", stat)
    with open(host.path(claim.path), "a", encoding="utf-8") as file:
        file.write('{"phase": "prepare", "hook": [4100, 50]}\n')

    status = cli.main(["give", GPU], host)

    out, err = capfd.readouterr()
    assert (status, out.count("\n"), err.count("\n")) == (1, 1, 2)
    assert out.startswith("waiting up to 10 s") and "(process 4100)" in out
    assert f"{GPU} cannot be released" in err and "(process 4100)" in err
    assert Claims(host).uuids() == (claim.uuid,)


def test_take_waits_for_a_hook_that_is_releasing_the_gpu_and_prints_that(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    vm = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))
    (claim,) = Claims(host).readable()
    stat = "4100 (hook) S 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 50 0"
    host.tree.put("proc/4100/stat", stat)
    with open(host.path(claim.path), "a", encoding="utf-8") as file:
        file.write('{"phase": "release", "hook": [4100, 50]}\n')

    class Waiting(FakeHost):
        waits: tuple[float, ...] = ()

        def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
            self.waits += (timeout_s,)
            return super().wait(condition, timeout_s)

    waiting = Waiting(host.root)
    status = cli.main(["take", GPU], waiting)

    out, err = capfd.readouterr()
    assert (status, waiting.waits[:1]) == (1, (10,))
    assert out.startswith("waiting up to 10 s") and "(process 4100)" in out
    assert "another hook for win11 is still at work" in err
