"""Claims: their content on disk, and how they survive a crash and a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import Crash, FakeHost, FakeLibvirt, snapshot
from tests.gate import write_gate
from vfio_console_hook.actions.firmware import Decode, Rebind
from vfio_console_hook.actions.kinds import MODULES, action_of_kind
from vfio_console_hook.actions.vfio import BindVfio, UnbindVfio
from vfio_console_hook.claims import ownership
from vfio_console_hook.claims.claim import Claim, parse
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.claims.step import fits
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import ClaimError, HookError, RefusedError, StepError, StuckError
from vfio_console_hook.events import prepare as preparing
from vfio_console_hook.events import undo
from vfio_console_hook.log import Log
from vfio_console_hook.machine import runfiles, worker

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
GPU = "0000:01:00.0"
RUN = "run/vfio-console-hook"
CLAIM = f"{RUN}/claims/{UUID}"
BOOT = "5c3a7f0e-2c52-4b61-9d7e-0d5d7a1f9b42"
NOW = Config(holders=Holders(wait_s=0))


def vm(name: str = "win11", uuid: str = UUID) -> Domain:
    return Domain(name, uuid, (Hostdev(GPU, True, "hostdev", 0),))


def prepare(host: FakeHost, domain: Domain | None = None) -> None:
    events.prepare(host, domain or vm(), NOW, Log(host, "win11"))


def release(host: FakeHost, uuid: str = UUID) -> None:
    events.release(host, uuid, Log(host, "win11"))


def prepared(machine: MachineFactory, name: str = "efifb-5.10") -> FakeHost:
    host = machine(name)
    prepare(host)
    return host


def lines(host: FakeHost, path: str = CLAIM) -> list[object]:
    return [json.loads(line) for line in (host.read(path) or "").splitlines()]


def keys(host: FakeHost) -> list[str]:
    """Each line of the claim in short, without its head and the lines about workers."""
    return [
        f"step {entry['step']['do']['kind'] if entry['step']['do'] else '-'}"
        if "step" in entry
        else " ".join(f"{key} {value}" for key, value in entry.items() if key != "hook")
        for entry in lines(host)[1:]
        if isinstance(entry, dict) and "worker" not in entry
    ]


def mode(host: FakeHost, path: str) -> int:
    return stat.S_IMODE(os.stat(host.path(path)).st_mode)


def in_a_child(work: Callable[[], None]) -> int:
    """The exit status of work in a forked process: 0, 1 for a HookError, 2 for anything else."""
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            work()
        except HookError:
            status = 1
        except BaseException:
            status = 2
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- the format


def test_a_claim_is_lines_of_json_with_the_vm_and_its_steps(machine: MachineFactory) -> None:
    host = prepared(machine)

    head, *rest = lines(host)

    assert isinstance(head, dict)
    assert {key: head[key] for key in ("vm", "uuid", "boot", "gpus", "by_hand")} == {
        "vm": "win11", "uuid": UUID, "boot": BOOT, "gpus": [GPU], "by_hand": False,
    }  # fmt: skip
    assert keys(host) == [
        "phase prepare", "step await-closed", "done 0", "step -", "done 1", "step unbind", "done 2",
    ]  # fmt: skip
    assert rest[:2] == [
        {"phase": "prepare", "hook": [os.getpid(), 0]}, {"worker": [os.getpid(), 0]},
    ]  # fmt: skip
    assert rest[-1] == {"worker": [0, 0]}


def test_a_step_is_written_so_that_a_person_can_undo_it(machine: MachineFactory) -> None:
    host = prepared(machine)

    unbind = [one for one in lines(host) if isinstance(one, dict) and "step" in one][-1]

    assert unbind["step"] == {
        "stage": "fbdev",
        "gpu": GPU,
        "why": "efifb draws the firmware console in its memory",
        "do": {"kind": "unbind", "device": "efi-framebuffer.0", "driver": "efi-framebuffer"},
        "undo": {
            "kind": "rebind", "device": "efi-framebuffer.0", "driver": "efi-framebuffer",
            "gpu": GPU, "first": 0xC0000000, "last": 0xC0000000 + 4096000 - 1,
            "stays_on_vfio": False,
        },
        "loses": "",
    }  # fmt: skip


def test_a_claim_is_read_back_unchanged(machine: MachineFactory) -> None:
    host = machine("two-gpus-6.12")
    _, planned = events.look(host, vm(), NOW)
    prepare(host)

    claim = Claims(FakeHost(host.root)).find(UUID)

    assert claim is not None
    assert (tuple(claim.steps), claim.gpus, claim.boot, claim.phase, claim.name) == (
        planned, (GPU,), BOOT, "prepare", "win11",
    )  # fmt: skip


def test_each_phase_of_the_vm_is_written_when_it_begins(machine: MachineFactory) -> None:
    host = prepared(machine)
    FakeLibvirt(host).detach(GPU)

    events.start(host, UUID, Log(host, "win11"))
    events.check(host, UUID, Log(host, "win11"))
    events.check(host, UUID, Log(host, "win11"))

    assert keys(host)[7:] == ["phase start", "phase started", "phase started"]


def test_release_leaves_no_claim_and_no_name(machine: MachineFactory) -> None:
    host = prepared(machine)

    release(host)

    assert (host.list(f"{RUN}/claims"), host.list(f"{RUN}/by-name")) == ((), ())


# -- written ahead


@pytest.mark.parametrize(
    ("name", "number", "last"),
    [("efifb-5.10", 1, "step unbind"), ("efifb-6.12", 1, "step unbind"),
     ("efifb-6.12", 2, "step decode"), ("vgacon-5.10", 1, "step quiet-text"),
     ("two-gpus-6.12", 1, "step map-consoles"), ("two-gpus-6.12", 63, "step map-consoles")],
)  # fmt: skip
def test_a_step_is_on_disk_before_its_change(
    machine: MachineFactory, name: str, number: int, last: str
) -> None:
    host = machine(name, crash_before=number)

    with pytest.raises(Crash):
        prepare(host)

    assert keys(host)[-1] == last


def test_a_step_is_marked_done_only_after_its_change(machine: MachineFactory) -> None:
    host = machine("efifb-6.12", crash_before=2)

    with pytest.raises(Crash):
        prepare(host)

    assert keys(host)[-3:] == ["step unbind", "done 2", "step decode"]


def test_the_lock_is_free_while_a_step_is_done(machine: MachineFactory) -> None:
    host = machine("efifb-5.10", crash_before=1)
    with pytest.raises(Crash):
        prepare(host)

    with open(host.path(f"{RUN}/lock"), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the lock is held


def test_a_program_started_under_the_lock_does_not_keep_it(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")
    with Claims(host).lock():
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sleep", ["sleep", "60"])

        inherited = True
        for _ in range(3000):
            try:
                links = [
                    os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
                ]
            except FileNotFoundError:
                continue  # closed meanwhile: the program is just starting
            inherited = any(link.endswith("/lock") for link in links)
            if not inherited:
                break
            time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    assert not inherited


# -- torn, garbage, foreign


def test_a_torn_line_is_cut_off_before_the_next_is_written(machine: MachineFactory) -> None:
    host = prepared(machine)
    with open(host.path(CLAIM), "ab") as file:
        file.write(b'{"pha')
    FakeLibvirt(host).detach(GPU)

    events.start(host, UUID, Log(host, "win11"))

    assert keys(host)[-2:] == ["done 2", "phase start"]


NO_STEP = '{"step": {"stage": "x", "gpu": "y", "why": "z"}}'
FOREIGN = '{"step": {"stage": "s", "gpu": "g", "why": "w", "do": {"kind": "teleport"}, '
FOREIGN += '"undo": null, "loses": ""}}'
OTHER_FIELDS = FOREIGN.replace('"teleport"', '"unbind", "device": "a", "driver": "b", "new": 1')


@pytest.mark.parametrize(
    "garbage",
    ["", "garbage", "\0\0\0", "\udcff\udcfe", "{}x", '{"done": "1"}', '{"version": 2}', NO_STEP,
     FOREIGN, OTHER_FIELDS, '{"step": 1}'],
    ids=["blank", "text", "nul", "not-utf-8", "trailing", "word", "version", "half-a-step",
         "unknown-action", "unknown-field", "number"],
)  # fmt: skip
def test_a_line_that_is_not_ours_is_refused_in_one_sentence(
    machine: MachineFactory, garbage: str
) -> None:
    host = prepared(machine)
    before = snapshot(host)
    with open(host.path(CLAIM), "ab") as file:
        file.write(garbage.encode("utf-8", "surrogateescape") + b"\n")

    with pytest.raises(ClaimError) as caught:
        release(host)

    assert caught.value.text.startswith(f"cannot understand the claim /{CLAIM}: ")
    assert "\n" not in caught.value.text
    assert caught.value.hint == "read it, undo by hand what it names, then remove it"
    assert snapshot(host) == before


@pytest.mark.parametrize(
    "garbage", ["[1]", "null", "1", '"x"', '{"step": {"stage": "s", "gpu": "g", "why": "w", "do":'
                ' "x", "undo": null, "loses": ""}}', "[" * 100000],
    ids=["list", "null", "number", "text", "action-is-text", "deep"],
)  # fmt: skip
def test_json_of_another_shape_is_refused_in_one_sentence(
    machine: MachineFactory, garbage: str
) -> None:
    host = prepared(machine)
    with open(host.path(CLAIM), "a", encoding="utf-8") as file:
        file.write(garbage + "\n")

    with pytest.raises(ClaimError):
        release(host)


@pytest.mark.parametrize(
    "head",
    ["{}", "[]", "null", '{"vm": "a", "boot": "b", "gpus": 1, "since": 0, "worker": 1}',
     '{"vm": "a", "boot": "b", "gpus": [], "since": "now", "worker": 1}',
     '{"vm": "a", "boot": "b", "gpus": [], "since": 0, "worker": 1e999}'],
)  # fmt: skip
def test_a_head_that_is_not_ours_is_refused_in_one_sentence(
    machine: MachineFactory, head: str
) -> None:
    host = machine("efifb-5.10")
    host.tree.put(CLAIM, head)

    with pytest.raises(ClaimError):
        release(host)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "{",
        "[1]",
        "\0",
    ],
)
def test_the_claim_of_one_vm_that_cannot_be_read_does_not_stop_another(
    machine: MachineFactory, garbage: str
) -> None:
    host = machine("efifb-5.10")
    head = {"vm": "b", "boot": BOOT, "gpus": ["0000:02:00.0"], "since": 0, "worker": 1}
    host.tree.put(f"{RUN}/claims/{OTHER_UUID}", f"{json.dumps(head)}\n{garbage}\n")

    prepare(host)

    assert Claims(host).uuids() == (UUID, OTHER_UUID)


def test_the_claim_of_another_boot_is_dropped_and_nothing_is_undone(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    text = (host.read(CLAIM) or "").replace(BOOT, "00000000-0000-4000-8000-000000000000")
    host.tree.put(CLAIM, text)
    before = snapshot(host)

    release(host)

    assert snapshot(host) == before
    assert Claims(host).uuids() == ()


def test_the_claim_of_another_boot_does_not_keep_the_gpu_from_other_vms(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    release(host)
    host.tree.put(
        f"{RUN}/claims/{OTHER_UUID}",
        json.dumps({"vm": "b", "uuid": OTHER_UUID, "boot": "another", "gpus": [GPU], "since": 0,
                    "worker": 1}),
    )  # fmt: skip

    prepare(host)

    assert Claims(host).find(UUID) is not None


# -- names, for the gate


def gate_finds(host: FakeHost, directory: Path, name: str) -> bool:
    """Whether the real gate starts the program for the release of a VM of this name."""
    started = directory / "started"
    program = directory / "program"
    program.write_text(f"open({str(started)!r}, 'w')\n", encoding="utf-8")
    gate = write_gate(
        directory / "gate", python=os.path.realpath("/proc/self/exe"), program=str(program),
        run_dir=host.path(RUN),
    )  # fmt: skip
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(null, standard)
        words = [os.fsencode(word) for word in (str(gate), name, "release", "end", "-")]
        os.execve(str(gate), words, {"LC_ALL": "C", "PATH": "/usr/bin:/bin"})
    os.waitpid(pid, 0)
    return started.exists()


NAMES = (
    "win11", "--help", "..", ".", " ", "two  words", "line\nline\n", "*", "grün-绿", "=",
    "+unnamed", "a" * 250, "b" * 254, "c" * 255, "d" * 1000, "ü" * 128, "a/b", "../../etc", "\\",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_gate_finds_the_claim_of_any_name(
    machine: MachineFactory, tmp_path: Path, name: str
) -> None:
    host = machine("efifb-5.10")
    prepare(host, vm(name))

    assert Claims(host).uuids() == (UUID,)
    # libvirt allows no "/" in the name of a VM, so the gate does not look for one.
    assert gate_finds(host, tmp_path, name) is ("/" not in name)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_directory_of_names(machine: MachineFactory, name: str) -> None:
    host = machine("efifb-5.10")
    prepare(host, vm(name))

    entries = host.list(f"{RUN}/by-name")

    unnamed = "/" in name or len(name.encode()) > 254
    assert entries == (("+unnamed",) if unnamed else (f"={name}",))
    assert sorted(host.list("run")) == ["vfio-console-hook"]


@pytest.mark.parametrize("name", NAMES)
def test_a_vm_of_any_name_leaves_no_entry_behind(machine: MachineFactory, name: str) -> None:
    host = machine("efifb-5.10")
    prepare(host, vm(name))

    release(host)

    left = [entry for entry in host.list(f"{RUN}/by-name") if entry != "+unnamed"]
    assert (left, Claims(host).uuids()) == ([], ())


def test_the_mark_of_unnamed_vms_goes_with_the_last_of_them(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")
    prepare(host, vm("x" * 300))

    release(host)

    assert host.list(f"{RUN}/by-name") == ()


def test_a_claim_and_its_entry_go_together(machine: MachineFactory) -> None:
    host = prepared(machine)
    claim = Claims(host).find(UUID)
    assert claim is not None

    dropping = threading.Thread(target=Claims(host).drop, args=(claim,))
    with Claims(host).lock():  # the same VM may be about to write a new claim
        dropping.start()
        dropping.join(0.2)
        during = (host.list(f"{RUN}/claims"), host.list(f"{RUN}/by-name"))
    dropping.join()

    assert during == ((UUID,), ("=win11",))
    assert (host.list(f"{RUN}/claims"), host.list(f"{RUN}/by-name")) == ((), ())


def test_drafts_of_killed_processes_are_removed_and_block_nothing(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    release(host)
    mine = os.getpid()
    for name in (".kernel.77", f"claims/.{UUID}.{mine}", f"claims/.{OTHER_UUID}.77"):
        host.tree.put(f"{RUN}/{name}", "{")
    for name in (f".{UUID}.{mine}", f".{OTHER_UUID}.77"):
        os.symlink("../claims/x", host.path(f"{RUN}/by-name/{name}"))

    prepare(host)
    held = Claims(host).uuids()
    release(host)

    left = [*host.list(RUN), *host.list(f"{RUN}/claims"), *host.list(f"{RUN}/by-name")]
    assert ([name for name in left if name.startswith(".")], held) == ([], (UUID,))


def test_a_new_vm_with_the_name_of_a_stale_claim_keeps_its_entry(
    machine: MachineFactory,
) -> None:
    host = machine("two-in-one-6.12")
    prepare(host)
    second = Domain("win11", OTHER_UUID, (Hostdev("0000:02:00.0", True, "hostdev", 0),))
    events.prepare(host, second, NOW, Log(host, "win11"))

    release(host)

    assert host.readlink(f"{RUN}/by-name/=win11") == f"../claims/{OTHER_UUID}"


# -- who may read claims


def test_only_root_may_read_claims(machine: MachineFactory) -> None:
    old = os.umask(0)
    host = prepared(machine, "efifb-6.12")
    os.umask(old)

    paths = (RUN, f"{RUN}/claims", f"{RUN}/by-name", CLAIM, f"{RUN}/lock", f"{RUN}/kernel")

    assert {path: oct(mode(host, path)) for path in paths if host.exists(path)} == {
        RUN: "0o700", f"{RUN}/claims": "0o700", f"{RUN}/by-name": "0o700", CLAIM: "0o600",
        f"{RUN}/lock": "0o600",
    } | ({f"{RUN}/kernel": "0o600"} if host.exists(f"{RUN}/kernel") else {})  # fmt: skip


# -- a disk that cannot store the claim


def refusal(host: FakeHost) -> str:
    before = snapshot(host)
    with pytest.raises(ClaimError) as caught:
        prepare(host)
    assert (snapshot(host), host.changes) == (before, [])
    return str(caught.value)


HINT = "(hint: is /run full, or read-only?)"


def left_alone(path: str, kind: str, wanted: str) -> str:
    return (
        f"/{path} is a {kind} instead of a {wanted}, so it is left alone"
        f" (hint: find out who did that; see `ls -ld /{path}`)"
    )


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (RUN, left_alone(RUN, "file", "directory")),
        (f"{RUN}/claims", left_alone(f"{RUN}/claims", "file", "directory")),
        (f"{RUN}/by-name", left_alone(f"{RUN}/by-name", "file", "directory")),
    ],
    ids=["run", "claims", "by-name"],
)
def test_a_file_where_a_directory_should_be_is_reported_and_nothing_is_changed(
    machine: MachineFactory, path: str, sentence: str
) -> None:
    host = machine("efifb-5.10")
    host.tree.put(path, "in the way")

    assert refusal(host) == sentence


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (CLAIM, left_alone(CLAIM, "directory", "file")),
        (f"{RUN}/lock", left_alone(f"{RUN}/lock", "directory", "file")),
        (
            f"{RUN}/by-name/=win11",
            f"cannot link /{RUN}/by-name/=win11: Is a directory {HINT}",
        ),
    ],
    ids=["claim", "lock", "name"],
)  # fmt: skip
def test_a_directory_where_a_file_should_be_is_reported_and_nothing_is_changed(
    machine: MachineFactory, path: str, sentence: str
) -> None:
    host = machine("efifb-5.10")
    host.tree.make_directory(path)

    assert refusal(host) == sentence


def test_without_run_nothing_is_changed(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")
    os.rmdir(host.path("run"))

    assert refusal(host) == f"cannot make /{RUN}: No such file or directory {HINT}"


def test_a_run_in_which_no_directory_can_be_made_is_reported(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")
    os.rmdir(host.path("run"))
    os.symlink("/proc/sys/kernel", host.path("run"))  # the kernel makes no directory there

    assert refusal(host).startswith(f"cannot make /{RUN}: ")


def test_a_cache_that_cannot_be_written_stops_nothing(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")
    host.tree.make_directory(f"{RUN}/kernel")

    prepare(host)

    assert Claims(host).uuids() == (UUID,)


def limited_to(size: int) -> None:
    """Limit files to size bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def size_after_prepare(machine: MachineFactory, name: str) -> int:
    """The size of the claim up to the last thing that is done."""
    claim = prepared(machine, name).read_bytes(CLAIM) or b""
    return claim.index(b"\n", claim.rindex(b'{"done"'))


@pytest.mark.parametrize("percent", [0, 10, 40, 60, 80, 99])
def test_a_disk_that_fills_up_during_prepare_leaves_the_console_as_it_was(
    machine: MachineFactory, percent: int
) -> None:
    size = size_after_prepare(machine, "vgacon-5.10") * percent // 100
    host = machine("vgacon-5.10")
    # The machine's own log of changes is a file too: it must not be what is full.
    before = snapshot(host)

    def work() -> None:
        limited_to(size)
        prepare(FakeHost(host.root))

    status = in_a_child(work)

    assert (status, snapshot(host)) == (1, before)
    release(host)
    assert (snapshot(host), Claims(host).uuids()) == (before, ())


def test_a_disk_that_is_full_at_release_does_not_keep_the_console_dark(
    machine: MachineFactory,
) -> None:
    host = machine("vgacon-5.10")
    before = snapshot(host)
    prepare(host)
    size = len(host.read_bytes(CLAIM) or b"")

    def work() -> None:
        limited_to(size)
        release(FakeHost(host.root))

    status = in_a_child(work)

    assert (status, snapshot(host), Claims(host).uuids()) == (0, before, ())


def test_a_draft_that_could_not_be_written_is_not_left_behind(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")

    def work() -> None:
        limited_to(3)
        runfiles.write(host, CLAIM, "more than three bytes")

    host.tree.make_directory(f"{RUN}/claims")

    status = in_a_child(work)

    assert (status, host.list(f"{RUN}/claims")) == (1, ())


def test_a_draft_of_a_process_that_died_is_no_claim(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")
    host.tree.put(f"{RUN}/claims/.{UUID}.4711", "half")

    assert Claims(host).uuids() == ()


# -- two at once


def test_exactly_one_of_two_vms_gets_a_gpu_that_both_request_at_once(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-5.10")
    reader, writer = os.pipe()
    children = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until all are there
            uuid = (UUID, OTHER_UUID)[number]
            try:
                prepare(FakeHost(host.root), vm(f"vm{number}", uuid))
            except RefusedError:
                os._exit(1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        children.append(pid)
    os.close(reader)

    os.close(writer)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

    assert sorted(statuses) == [0, 1]
    assert Claims(host).uuids() == ((UUID, OTHER_UUID)[statuses.index(0)],)


def test_a_worker_that_is_killed_leaves_no_lock_behind(machine: MachineFactory) -> None:
    host = machine("efifb-5.10")

    def work() -> None:
        with Claims(host).lock():
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(HookError):
        worker.run(work, 10)

    with Claims(host).lock():
        pass


WORKER, ITS_CHILD = 4200, 4201
STAT = (
    "{pid} (py) thon) {state} {parent} {session} {session}"
    " 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0"
)


def run_process(host: FakeHost, pid: int, *, state: str = "S", parent: int = 1, start: int) -> None:
    host.tree.put(
        f"proc/{pid}/stat",
        STAT.format(pid=pid, state=state, parent=parent, session=WORKER, start=start),
    )


def left_by(host: FakeHost, *, hook: tuple[int, int], worker: tuple[int, int]) -> None:
    """Write these processes into the claim as its last hook and worker."""
    with open(host.path(CLAIM), "a", encoding="utf-8") as file:
        file.write(json.dumps({"phase": "prepare", "hook": hook}) + "\n")
        file.write(json.dumps({"worker": worker}) + "\n")


@pytest.mark.parametrize("pid", [WORKER, ITS_CHILD])
def test_nothing_is_undone_below_a_process_that_is_stuck_in_the_kernel(
    machine: MachineFactory, pid: int
) -> None:
    host = prepared(machine)
    left_by(host, hook=(4100, 50), worker=(WORKER, 60))
    run_process(host, pid, state="D", start=60 + pid - WORKER)
    host.tree.put(f"proc/{pid}/environ", f"LC_ALL=C\0VFIO_CONSOLE_HOOK_WORKER={WORKER}.60\0")
    host.tree.put(f"proc/{pid}/wchan", "drm_dev_unplug")
    host.stuck.add(pid)
    stuck = snapshot(host)

    with pytest.raises(StuckError) as caught:
        release(host)

    assert caught.value.text == f"the kernel is stuck (process {pid} in drm_dev_unplug)"
    assert (snapshot(host), Claims(host).uuids()) == (stuck, (UUID,))


@pytest.mark.parametrize(
    ("cut", "line"),
    [
        # the last lines of the claim: step 2, done 2, worker 0
        (2, "echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/unbind"),
        (0, "echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/bind"),
    ],
)
def test_the_change_that_hangs_is_the_last_one_begun(
    machine: MachineFactory, cut: int, line: str
) -> None:
    host = prepared(machine)
    claim = Path(host.path(CLAIM))
    kept = claim.read_bytes().splitlines(keepends=True)
    claim.write_bytes(b"".join(kept[: len(kept) - cut]))

    assert undo.last_change(host, UUID) == line


def test_a_hanging_release_hangs_in_an_undo_wherever_prepare_was_killed(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    claim = Path(host.path(CLAIM))
    # without "done 2, worker 0": the unbind was begun and cut off
    claim.write_bytes(b"".join(claim.read_bytes().splitlines(keepends=True)[:-2]))

    ownership.acquire(host, UUID, "release")

    line = "echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/bind"
    assert undo.last_change(host, UUID) == line


def test_a_process_stuck_in_the_undo_of_prepare_is_not_taken_for_ended(
    machine: MachineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = machine("efifb-6.12")

    def fail(*_: object) -> None:
        raise StepError("the memory is not free")

    def hang(*_: object) -> None:
        raise StuckError("the kernel is stuck")

    monkeypatch.setattr(preparing, "check_free", fail)
    monkeypatch.setattr(Rebind, "apply", hang)

    with pytest.raises(StuckError):
        prepare(host)

    claim = Claims(host).find(UUID)
    assert claim is not None
    assert claim.worker[0] == os.getpid()


def test_start_makes_no_change_that_could_hang(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    FakeLibvirt(host).detach(GPU)

    events.start(host, UUID, Log(host, "win11"))

    assert undo.last_change(host, UUID) == ""


def test_processes_that_a_killed_hook_left_are_killed_before_anything_is_undone(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-5.10")
    before = snapshot(host)
    prepare(host)
    left_by(host, hook=(4100, 50), worker=(WORKER, 60))
    run_process(host, WORKER, start=60)

    release(host)

    assert (snapshot(host), Claims(host).uuids()) == (before, ())


def test_a_worker_that_a_killed_hook_has_just_started_does_not_run_beside_the_next_hook(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    started, go, ended = os.pipe(), os.pipe(), os.pipe()
    worked = Path(host.path("worked"))

    def work(claim: Claim) -> None:
        os.write(started[1], b"s")
        os.read(go[0], 1)
        with claim.work():
            worked.touch()

    hook = os.fork()
    if hook == 0:
        claim = ownership.acquire(host, UUID, "release")
        assert claim is not None
        mine = claim
        worker.run(lambda: work(mine), 60)
        os._exit(0)
    os.close(ended[1])
    os.read(started[0], 1)
    os.kill(hook, signal.SIGKILL)
    os.waitpid(hook, 0)
    assert ownership.acquire(host, UUID, "release") is not None
    os.write(go[1], b"g")
    os.read(ended[0], 1)  # the worker has this pipe until its end

    assert not worked.exists()


def test_a_worker_leaves_a_newer_claim_of_the_vm_alone(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    claim = Claims(host).find(UUID)
    assert claim is not None

    with claim.work():
        Claims(host).drop(claim)
        Claims(host).make(Claim(host, "win11", UUID, BOOT, (GPU,), 0), [])
        made = lines(host)

    assert lines(host) == made


def test_a_process_with_the_pid_of_an_old_worker_is_left_alone(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    left_by(host, hook=(4100, 50), worker=(WORKER, 60))
    run_process(host, WORKER, start=99)

    release(host)

    assert (host.exists(f"proc/{WORKER}/stat"), Claims(host).uuids()) == (True, ())


@pytest.mark.parametrize("environ", ["", "LC_ALL=C\0VFIO_CONSOLE_HOOK_WORKER=4200.59\0"])
def test_a_process_in_a_later_session_with_the_pid_of_an_old_worker_is_left_alone(
    machine: MachineFactory, environ: str
) -> None:
    """The kernel reuses the ID of a session after its last process has ended."""
    host = prepared(machine)
    left_by(host, hook=(4100, 50), worker=(WORKER, 60))
    run_process(host, ITS_CHILD, start=99)
    host.tree.put(f"proc/{ITS_CHILD}/environ", environ)

    release(host)

    assert (host.exists(f"proc/{ITS_CHILD}/stat"), Claims(host).uuids()) == (True, ())


def test_nothing_is_undone_while_another_hook_is_running(machine: MachineFactory) -> None:
    host = prepared(machine)
    left_by(host, hook=(4100, 50), worker=(WORKER, 60))
    host.tree.put("proc/4100/stat", STAT.format(pid=4100, state="S", parent=1, session=9, start=50))
    before = snapshot(host)

    with pytest.raises(RefusedError) as caught:
        release(host)

    assert (caught.value.text, caught.value.hint) == (
        f"another hook for win11 is still at work with {GPU} (process 4100)",
        "wait until it has ended",
    )
    assert (snapshot(host), Claims(host).uuids()) == (before, (UUID,))


def test_a_gpu_is_not_taken_while_it_is_being_released(machine: MachineFactory) -> None:
    host = prepared(machine)
    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    libvirt.reattach(GPU)
    with open(host.path(CLAIM), "a", encoding="utf-8") as file:
        file.write(json.dumps({"phase": "release", "hook": [4100, 50]}) + "\n")
    host.tree.put("proc/4100/stat", STAT.format(pid=4100, state="S", parent=1, session=9, start=50))

    with pytest.raises(RefusedError) as caught:
        prepare(host, vm("b", OTHER_UUID))

    assert caught.value.text == (
        f"another hook for win11 is still at work with {GPU} (process 4100)"
    )
    assert Claims(host).uuids() == (UUID,)


def test_every_field_of_every_action_is_of_a_type_that_a_claim_can_check() -> None:
    examples = ("text", True, 1, 1.5, ("text",), (1,), (1, None))

    for kind in (action_of_kind(one) for kinds in MODULES.values() for one in kinds):
        for name, annotation in getattr(kind, "__annotations__", {}).items():
            fitting = [one for one in examples if fits(annotation, one)]
            assert fitting, f"{kind.kind} has {name}: {annotation}"


def test_actions_are_equal_if_kind_and_fields_are() -> None:
    on, same, off = Decode(GPU, True), Decode(GPU, True), Decode(GPU, False)

    assert (on, hash(on), repr(on)) == (same, hash(same), f"Decode(gpu='{GPU}', on=True)")
    assert on != off
    assert BindVfio(GPU) != UnbindVfio(GPU)


@pytest.mark.parametrize(
    ("action", "wrong"),
    [
        ('"kind": "unbind", "device": "../../../../tmp/a", "driver": "b"', "device"),
        ('"kind": "unbind", "device": "a", "driver": "../.."', "driver"),
        ('"kind": "unbind", "device": "a\\u0000", "driver": "b"', "device"),
        ('"kind": "unbind", "device": ["a"], "driver": "b"', "device"),
        ('"kind": "decode", "gpu": "../x", "on": true', "gpu"),
        ('"kind": "decode", "gpu": "x", "on": 1', "on"),
        ('"kind": "show-consoles", "wait_s": NaN', "wait_s"),
        ('"kind": "show-consoles", "wait_s": 1e999', "wait_s"),
        ('"kind": "show-consoles", "wait_s": -1', "wait_s"),
        ('"kind": "show-consoles", "wait_s": true', "wait_s"),
        ('"kind": "map-consoles", "fb": "fb0", "indices": "fb0"', "indices"),
        ('"kind": "map-consoles", "fb": "fb0", "indices": [1.5]', "indices"),
        ('"kind": "map-consoles", "fb": "../mem", "indices": []', "fb"),
        ('"kind": "start-units", "units": "gdm.service"', "units"),
        ('"kind": "await-closed", "gpu": "x", "nodes": ["dev/../etc"], "wait_s": 1, "strict": true',
         "nodes"),
    ],
)  # fmt: skip
def test_an_action_with_a_wrong_field_is_refused_before_anything_is_undone(
    machine: MachineFactory, action: str, wrong: str
) -> None:
    host = prepared(machine)
    line = '{"step": {"stage": "s", "gpu": "g", "why": "w", "do": null, "undo": {%s}, "loses": ""}}'
    with open(host.path(CLAIM), "a", encoding="utf-8") as file:
        file.write(line % action + "\n")
    before = snapshot(host)

    with pytest.raises(ClaimError, match=f"not a step: [a-z-]+ with a bad '{wrong}'( |$)"):
        release(host)

    assert snapshot(host) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vm", "null"), ("vm", '"a\\u0000b"'), ("vm", '"\\ud800"'), ("gpus", '["a\\u0000b"]'),
        ("gpus", "[1]"), ("since", "NaN"), ("since", "1e999"), ("since", "-1"), ("since", "1e300"),
        ("since", "[]"), ("x" * 5000, "1"),
    ],
)  # fmt: skip
def test_a_head_with_a_wrong_value_is_refused_in_one_short_sentence(
    machine: MachineFactory, key: str, value: str
) -> None:
    host = prepared(machine)
    head, *rest = (host.read(CLAIM) or "").split("\n")
    known = {**json.loads(head), key: "MARK"}
    second = [json.dumps({key: 1})] if key not in json.loads(head) else []
    text = json.dumps(known).replace('"MARK"', value)
    host.tree.put(CLAIM, "\n".join([text, *second, *rest]) + "\n")

    with pytest.raises(ClaimError) as caught:
        release(host)

    assert len(caught.value.text) < 400


@pytest.mark.parametrize("worker", ["[-1, 2]", "[1.5, 2]", '["1", 2]', "[1]", "[true, 2]"])
def test_a_worker_that_is_not_a_process_is_refused(machine: MachineFactory, worker: str) -> None:
    host = prepared(machine)
    with open(host.path(CLAIM), "a", encoding="utf-8") as file:
        file.write(f'{{"worker": {worker}}}\n')

    with pytest.raises(ClaimError):
        release(host)


def test_a_claim_has_the_defaults_and_limits_of_the_configuration(machine: MachineFactory) -> None:
    host = prepared(machine)
    claim = Claims(host).find(UUID)
    assert claim is not None

    for name in ("log_level", "timeout_s", "on_failure"):
        assert Claim.__dataclass_fields__[name].default == getattr(Config(), name)
        assert getattr(claim, name) == getattr(Config(), name)
    for text in ('{"log_level": "loud"}', '{"timeout_s": 601}', '{"timeout_s": true}',
                 '{"on_failure": "wait"}', '{"bootfb": "native"}'):  # fmt: skip
        head = (
            json.dumps(
                {"format": 2, "vm": "a", "boot": BOOT, "gpus": [], "since": 0, "by_hand": False}
            )[:-1]
            + f', "settings": {text}}}\n'
        )
        with pytest.raises(ClaimError):
            parse(host, UUID, head.encode())


def test_a_claim_without_a_format_number_has_the_first_format_and_is_released(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)
    prepare(host)
    file = Path(host.path(CLAIM))
    first, rest = file.read_text().split("\n", 1)
    head = json.loads(first)
    assert (head.pop("format"), sorted(head.pop("settings"))) == (
        2, ["log_level", "on_failure", "timeout_s"],
    )  # fmt: skip
    file.write_text(json.dumps(head) + "\n" + rest)

    release(host)

    assert (snapshot(host), Claims(host).uuids()) == (before, ())


@pytest.mark.parametrize("number", [3, 0, -1, "2", None, 1e400])
def test_a_claim_of_another_format_is_left_alone_and_the_hint_says_what_to_install(
    machine: MachineFactory, number: object
) -> None:
    host = prepared(machine)
    file = Path(host.path(CLAIM))
    first, rest = file.read_text().split("\n", 1)
    file.write_text(json.dumps({**json.loads(first), "format": number}) + "\n" + rest)
    before, content = snapshot(host), file.read_bytes()

    with pytest.raises(ClaimError) as caught:
        release(host)

    assert "another version" in caught.value.text
    assert "install the version" in caught.value.hint
    assert (snapshot(host), file.read_bytes()) == (before, content)


def test_lines_that_two_processes_append_never_mix(machine: MachineFactory) -> None:
    """The lock prevents two writers; without it each line would still be complete."""
    host = prepared(machine)
    claim = Claims(host).find(UUID)
    assert claim is not None
    before = len(Path(host.path(CLAIM)).read_bytes().splitlines())

    def write() -> None:
        for _ in range(200):
            claim.finish(0)

    writer = threading.Thread(target=worker.run, args=(write, 60))
    writer.start()
    write()
    writer.join()

    lines = Path(host.path(CLAIM)).read_bytes().splitlines()
    assert lines[before:] == [b'{"done": 0}'] * 400


def test_the_torn_line_of_a_killed_writer_on_a_full_disk_is_cut_off_before_the_next_is_appended(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)
    prepare(host)
    with open(host.path(CLAIM), "a", encoding="utf-8") as file:
        file.write('{"step": {"stage": "fb')

    release(host)

    assert (snapshot(host), Claims(host).uuids()) == (before, ())


def test_a_claim_whose_writer_was_killed_is_readable_after_another_vm_took_its_steps(
    machine: MachineFactory,
) -> None:
    host = prepared(machine, "efifb-6.12")
    ownership.acquire(host, UUID, "release")
    with open(host.path(CLAIM), "a", encoding="utf-8") as file:
        file.write('{"undone": ')

    prepare(host, vm("other", OTHER_UUID))

    claim = Claims(host).find(UUID)
    assert claim is not None
    assert claim.open_steps == []


def fifo(path: str) -> None:
    os.mkfifo(path)


def dangling(path: str) -> None:
    os.symlink("nowhere", path)


@pytest.mark.parametrize("make", [fifo, dangling])
@pytest.mark.parametrize("place", [RUN, f"{RUN}/by-name"])
def test_a_directory_of_names_that_is_not_ours_is_an_error(
    machine: MachineFactory, make: Callable[[str], None], place: str
) -> None:
    """Without the error, release would end as if the VM held nothing."""
    host = prepared(machine)
    shutil.rmtree(host.path(place))
    make(host.path(place))

    with pytest.raises(ClaimError) as caught:
        Claims(host).named("win11")

    assert f"/{place} is a " in caught.value.text


def test_a_line_that_the_file_system_refuses_is_an_error_and_leaves_the_claim_as_it_was(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    claim = Claims(host).find(UUID)
    assert claim is not None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with pytest.raises(ClaimError) as caught:
            claim.finish(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handled)

    assert caught.value.text == f"cannot write /{CLAIM}: File too large"
    assert Claims(host).uuids() == (UUID,)
