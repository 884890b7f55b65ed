"""The worker: its result is passed on, and its deadline holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gate import ROOT
from vfio_console_hook.errors import (
    BugError,
    ConfigError,
    CutOffError,
    HookError,
    HostError,
    RefusedError,
    StepError,
    StuckError,
)
from vfio_console_hook.machine import processes, worker
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.snapshot import SnapshotHost, unpack


def nothing() -> None:
    return None


def sleep_long() -> None:
    time.sleep(60)


def fail(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def children() -> list[str]:
    """The processes that this one has not waited for yet."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()


def test_work_that_is_done_in_time_is_done_in_another_process(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def work() -> None:
        mark.write_text(str(os.getpid()), encoding="utf-8")

    worker.run(work, 10)

    assert int(mark.read_text()) not in (0, os.getpid())


@pytest.mark.parametrize("kind", [HookError, RefusedError, StepError, ConfigError, HostError])
def test_a_sentence_and_its_hint_are_passed_on(kind: type[HookError]) -> None:
    with pytest.raises(HookError) as caught:
        worker.run(fail(kind("what, why\nand '\udcff' grün", "one thing to try")), 10)

    assert (caught.value.text, caught.value.hint) == (
        "what, why\nand '\udcff' grün", "one thing to try",
    )  # fmt: skip


def test_a_sentence_longer_than_a_pipe_is_passed_on() -> None:
    text = "x" * 1_000_000

    with pytest.raises(HookError) as caught:
        worker.run(fail(HookError(text)), 30)

    assert caught.value.text == text


def test_a_bug_becomes_one_sentence_and_keeps_its_traceback() -> None:
    with pytest.raises(BugError) as caught:
        worker.run(fail(ZeroDivisionError("by zero")), 10)

    assert (caught.value.text, caught.value.hint) == (
        "internal error: ZeroDivisionError: by zero",
        "this is a bug, please report it with `journalctl -t vfio-console-hook`",
    )
    assert caught.value.trace.startswith("Traceback (most recent call last):\n")
    assert caught.value.trace.endswith("ZeroDivisionError: by zero\n")


def test_the_deadline_kills_the_worker_and_is_reported() -> None:
    began = time.monotonic()

    with pytest.raises(CutOffError) as caught:
        worker.run(sleep_long, 0.3)

    assert (caught.value.text, caught.value.hint) == (
        "timed out after 0.3 s", "increase `timeout_s`, or look into `journalctl -k`",
    )  # fmt: skip
    assert time.monotonic() - began < 10


def test_work_that_ignores_every_signal_it_can_is_killed_too() -> None:
    def work() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)

    with pytest.raises(CutOffError):
        worker.run(work, 0.3)


def test_programs_that_the_work_started_are_killed_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def work() -> None:
        child = subprocess.Popen(["/bin/sleep", "60"])
        pid_file.write_text(str(child.pid), encoding="utf-8")
        child.wait()

    with pytest.raises(CutOffError):
        worker.run(work, 1)

    assert processes.find(Host(), int(pid_file.read_text())) is None


def test_a_program_that_cannot_be_killed_is_reported_as_stuck(tmp_path: Path) -> None:
    class Stubborn(SnapshotHost):
        def open_process(self, pid: int) -> int | None:
            return 1

        def close_process(self, handle: int) -> None:
            return

        def signal_process(self, handle: int, number: int) -> None:
            return  # what SIGKILL does to a process in state D

    host = Stubborn(str(tmp_path))
    unpack(
        "f proc/77/stat = 77 (modprobe (x)) D 1 70 70 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0\n"
        "f proc/77/wchan = nv_pci_remove",
        str(tmp_path),
    )
    mark = b"PATH=/bin\0VFIO_CONSOLE_HOOK_WORKER=70.4000\0"
    (tmp_path / "proc/77/environ").write_bytes(mark)

    with pytest.raises(StuckError) as caught:
        worker.stop(host, (70, 4000))

    assert (caught.value.text, caught.value.hint) == (
        "the kernel is stuck (process 77 in nv_pci_remove)",
        "save your work and reboot the host; the GPU is in an unknown state",
    )


def test_a_stuck_error_is_passed_on_as_one() -> None:
    with pytest.raises(StuckError) as caught:
        worker.run(fail(StuckError("the kernel is stuck", "reboot")), 10)

    assert (caught.value.text, caught.value.hint) == ("the kernel is stuck", "reboot")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGXCPU, signal.SIGTERM])
def test_a_child_that_a_signal_killed_is_reported_and_not_taken_for_done(number: int) -> None:
    with pytest.raises(HookError) as caught:
        worker.run(lambda: os.kill(os.getpid(), number), 10)

    assert (caught.value.text, caught.value.hint) == (
        "the worker process died before it was done", "look into `journalctl -k`",
    )  # fmt: skip


def test_an_answer_that_was_cut_off_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(work: Callable[[], str], writer: int) -> None:
        os.write(writer, b'{"text": "a long')
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(worker, "_child", die)

    with pytest.raises(CutOffError):
        worker.run(lambda: "", 10)


def test_work_that_leaves_the_process_is_not_taken_for_done() -> None:
    with pytest.raises(HookError) as caught:
        worker.run(lambda: os._exit(0), 10)

    assert caught.value.text == "the worker process died before it was done"


def test_work_that_raises_systemexit_does_not_run_on_as_a_second_supervisor(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"
    program = (
        "import sys\nfrom vfio_console_hook.machine import worker\n"
        "try:\n    worker.run(lambda: sys.exit(3), 10)\nexcept BaseException:\n    pass\n"
        f"open({str(mark)!r}, 'a').write('x')\n"
    )

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)

    assert mark.read_text() == "x"


@pytest.mark.parametrize(
    "work",
    [nothing, fail(HookError("x")), fail(ValueError()), sleep_long, lambda: os._exit(9)],
    ids=["done", "refused", "bug", "late", "gone"],
)
def test_no_zombie_is_left(work: Callable[[], None]) -> None:
    before = children()

    try:
        worker.run(work, 0.5)
    except HookError:
        pass

    assert children() == before


@pytest.mark.parametrize("work", [nothing, sleep_long], ids=["done", "late"])
def test_no_descriptor_is_left_open(work: Callable[[], None]) -> None:
    before = os.listdir("/proc/self/fd")

    try:
        worker.run(work, 0.3)
    except HookError:
        pass

    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_output_of_the_work_is_discarded() -> None:
    program = (
        "import os, sys\nfrom vfio_console_hook.machine import worker\n"
        "def work():\n"
        "    os.write(1, b'out')\n    os.write(2, b'err')\n    print('buffered', flush=True)\n"
        "    assert os.read(0, 10) == b''\n"
        "worker.run(work, 10)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, input=b"the xml", capture_output=True
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_buffered_output_is_printed_once() -> None:
    program = (
        "import sys\nfrom vfio_console_hook.machine import worker\n"
        "sys.stdout.write('once')\nworker.run(lambda: None, 10)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)

    assert done.stdout == b"once"


def test_libvirt_gets_end_of_file_although_the_worker_still_sleeps(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        "import os, time\nfrom vfio_console_hook.machine import worker\n"
        "def work():\n"
        f"    open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if os.fork() == 0:\n    worker.run(work, 50)\n    os._exit(0)\n"
        f"while not (os.path.exists({str(pid_file)!r}) and os.path.getsize({str(pid_file)!r})):\n"
        "    time.sleep(0.01)\n"
    )
    # The supervisor is killed by SIGKILL, which it cannot handle.
    program = program.replace("if os.fork() == 0:", "supervisor = os.fork()\nif supervisor == 0:")
    program += "os.kill(supervisor, 9)\nos.waitpid(supervisor, 0)\n"

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=30
    )

    pid = int(pid_file.read_text())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    os.kill(pid, 0)  # raises after the process has ended
    os.kill(pid, signal.SIGKILL)
