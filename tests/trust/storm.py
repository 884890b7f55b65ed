"""Two hundred VMs start at once, sixteen of them with a GPU each.

libvirt calls the hooks of different VMs at the same time, as many as it has threads. The
gate and the hooks are the real ones, in processes of their own, on one fake machine.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fakehost import FakeHost, close_device, open_device
from tests.trust.check import Check, Effort, Outcome, in_memory
from tests.trust.crowd import GPUS, LIBVIRT_THREADS, TIMEOUT_S, Crowd, Tally, Vm, address
from tests.trust.shared import HANG, SLOW
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME, Claims
from vfio_console_hook.claims.histories import histories
from vfio_console_hook.machine.runfiles import RUN

VMS = tuple(Vm.of(number) for number in range(1, 201))
WITH_GPU = VMS[:GPUS]
_CLAIMS = 1000


@dataclass(frozen=True)
class Part:
    """What came of a part: all events, a clause for the table, and what was wrong.

    ours_s beside theirs_s is what it took beside what it may be compared with. Here that is
    only shown: what else a machine does is in it, so the bars are in tests/bench.
    """

    tally: Tally
    figure: str
    wrong: list[str]
    ours_s: float = 0.0
    theirs_s: float = 0.0


def run(effort: Effort) -> Outcome:
    """Every part on a machine of its own."""
    failures: list[str] = []
    figures: list[str] = []
    events = 0
    for act in (start_and_stop, _want_the_same, one_hangs, _many_claims):
        part = play(act, effort.directory, effort.quick)
        failures += part.wrong
        figures.append(part.figure)
        events += part.tally.events
    return Outcome(events, tuple(failures), "; ".join(figures))


def play(act: Callable[[Crowd, bool], Part], otherwise: Path, quick: bool) -> Part:
    """One part, on a machine in memory: a claim that is synced waits for no disk there."""
    with in_memory(otherwise) as directory:
        crowd = Crowd(directory)
        part = act(crowd, quick)
        part.wrong.extend(f"still runs: {one}" for one in crowd.await_none())
    return part


def start_and_stop(crowd: Crowd, quick: bool) -> Part:
    """All start, then all end. In turns with each of them alone, for the price."""
    wrong: list[str] = []
    before = _gpus(crowd.host)
    alone, together = Tally(), Tally()
    wait_s = 0.0
    for threads in (LIBVIRT_THREADS,) if quick else (LIBVIRT_THREADS, len(VMS)):
        alone.add(crowd.all(crowd.alone, VMS, 1))
        crowd.longest_wait_s()
        started = crowd.all(crowd.start, VMS, threads)
        wrong += _lost_claims(crowd.host)
        wrong += _refused(started) or _blocked(crowd.host)
        together.add(started)
        together.add(crowd.all(crowd.stop, VMS, threads))
        wait_s = max(wait_s, crowd.longest_wait_s())
        alone.add(crowd.all(crowd.alone, VMS, 1))
        wrong += _left_behind(crowd.host)
        if _gpus(crowd.host) != before:
            wrong.append(f"the GPUs were {before} and are {_gpus(crowd.host)}")
    ours_s, theirs_s = together.cpu_s, alone.cpu_s / 2
    figure = (
        f"{len(VMS)} VMs at once, {GPUS} with a GPU: {ours_s / theirs_s:.2f} times the processor"
        f" time of one by one, at most {wait_s * 1000:.0f} ms for the lock"
    )
    together.add(alone)
    return Part(together, figure, wrong + _refused(together), ours_s, theirs_s)


def _want_the_same(crowd: Crowd, quick: bool) -> Part:
    """As many VMs as there are GPUs want one and the same: one gets it, the others are refused."""
    vms = [Vm.of(number, address(3)) for number in range(1, GPUS + 1)]
    tally = Tally()
    crowd.host.tree.put(SLOW, "0.1")
    with ThreadPoolExecutor(len(vms)) as pool:
        list(pool.map(lambda vm: crowd.event(vm, "prepare", "begin", tally), vms))
    won = [vm for vm in vms if vm.name not in tally.refusals]
    wrong = [] if len(won) == 1 else [f"{len(won)} VMs have got the same GPU"]
    for text in tally.refusals.values():
        lines = text.splitlines()
        if f" 1 vfio-console-hook: {address(3)} belongs to the VM " not in lines[0] or lines[2:]:
            wrong.append(f"no sentence about the GPU: {text!r}")
    for vm in won:
        held = [one.name for one in Claims(crowd.host).readable()]
        wrong += [] if held == [vm.name] else [f"{vm.name} has the GPU, and {held} hold it"]
        crowd.stop(vm)
    return Part(tally, f"{len(vms)} want one GPU: 1 gets it", wrong + _left_behind(crowd.host))


def one_hangs(crowd: Crowd, quick: bool) -> Part:
    """The kernel does not come back to one VM's worker: the others do not notice."""
    hung, others = WITH_GPU[-1], VMS[: GPUS - 1] if not quick else VMS[:8]
    others += VMS[-40:]

    def cycle() -> tuple[Tally, float]:
        began = time.monotonic()
        tally = crowd.all(crowd.start, others, LIBVIRT_THREADS - 1)
        tally.add(crowd.all(crowd.stop, others, LIBVIRT_THREADS - 1))
        return tally, time.monotonic() - began

    tally, without_s = cycle()
    crowd.host.tree.put(HANG, hung.gpu)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(crowd.start, hung)
        wrong = _await_worker(crowd.host, hung, start)
        with_hung, with_s = cycle()
        wrong += [one for name in ("lock", "consoles") for one in _lock_kept(crowd.host, name)]
        wrong += [f"{hung.name} does not hang"] if start.done() else []
        took_s = time.monotonic() - began
        crowd.host.tree.remove(HANG)
        last, last_s = cycle()
        for one in (with_hung, last, start.result(), crowd.stop(hung)):
            tally.add(one)
    if took_s >= TIMEOUT_S / 2:
        wrong.append(f"the others took {took_s:.0f} s, until the one that hangs was given up")
    otherwise_s = (without_s + last_s) / 2
    figure = f"while one worker hangs the others take {with_s / otherwise_s:.2f} times as long"
    wrong += _refused(tally) + _left_behind(crowd.host)
    return Part(tally, figure, wrong, with_s, otherwise_s)


def _many_claims(crowd: Crowd, quick: bool) -> Part:
    """A thousand other VMs have claims: no hook waits for the lock too long."""
    host = crowd.host
    tally = Tally()
    crowd.event(WITH_GPU[0], "prepare", "begin", tally)
    example = (crowd.root / CLAIMS / WITH_GPU[0].uuid).read_text()
    crowd.stop(WITH_GPU[0])
    for number in range(_CLAIMS):
        uuid = f"11111111-0000-4000-8000-{number:012x}"
        # On other GPUs, and of hooks that have ended.
        other = example.replace(WITH_GPU[0].gpu, f"0001:{number // 32:02x}:{number % 32:02x}.0")
        path = crowd.root / CLAIMS / uuid
        path.write_text(other.replace(WITH_GPU[0].uuid, uuid).replace('"hook": [', '"hook": [9'))
        path.chmod(0o600)
    crowd.longest_wait_s()
    vms = VMS[:4] + VMS[-40:] if quick else VMS
    for act in (crowd.start, crowd.stop):
        tally.add(crowd.all(act, vms, LIBVIRT_THREADS))
    wait_s = crowd.longest_wait_s()
    left = len(host.list(CLAIMS))
    wrong = _refused(tally)
    if left != _CLAIMS:
        wrong.append(f"{left} claims are left, not those {_CLAIMS} of others")
    figure = f"with {_CLAIMS:,} claims there, at most {wait_s:.2f} s for the lock"
    return Part(tally, figure, wrong)


# -- what must hold


def _refused(tally: Tally) -> list[str]:
    return [f"{name}: {text!r}" for name, text in tally.refusals.items()]


def _lost_claims(host: FakeHost) -> list[str]:
    """All VMs have started: what is wrong with their claims."""
    claims = {one.name: one for one in Claims(host).readable()}
    wrong = []
    if set(claims) != {vm.name for vm in WITH_GPU}:
        wrong.append(f"the claims are those of {sorted(claims)}")
    if set(host.list(CLAIMS)) != {vm.uuid for vm in WITH_GPU}:
        wrong.append(f"the files of claims are {host.list(CLAIMS)}")
    if set(host.list(BY_NAME)) != {f"={vm.name}" for vm in WITH_GPU}:
        wrong.append(f"the links by name are {host.list(BY_NAME)}")
    for vm in WITH_GPU:
        one = claims.get(vm.name)
        if one is None:
            continue
        whole = one.steps and one.done == set(range(len(one.steps))) and not one.undone
        if not whole or (one.gpus, one.phase) != ((vm.gpu,), "started"):
            wrong.append(f"the claim of {vm.name} is not whole: {one}")
    known = {one.vm for one in histories(host)}
    if known != {vm.name for vm in WITH_GPU}:
        wrong.append(f"there is news of {sorted(known)}")
    return wrong


def _blocked(host: FakeHost) -> list[str]:
    """What QEMU could not map of the GPUs."""
    found = {vm.gpu: open_device(host, vm.gpu, pid=50000) for vm in WITH_GPU}
    for vm in WITH_GPU:
        close_device(host, vm.gpu, pid=50000)
    return [f"BARs {bars} of {gpu} cannot be mapped" for gpu, bars in found.items() if bars]


def _left_behind(host: FakeHost) -> list[str]:
    return [f"left in /{path}: {host.list(path)}" for path in (CLAIMS, BY_NAME) if host.list(path)]


def _gpus(host: FakeHost) -> list[tuple[str, str | None, int, int]]:
    """The driver of each GPU, and what it has: its framebuffers and its claims in memory.

    Which number a framebuffer or card gets depends on which came first.
    """
    iomem = host.read("proc/iomem") or ""
    found = []
    for vm in WITH_GPU:
        device = f"sys/bus/pci/devices/{vm.gpu}"
        driver = host.link_name(f"{device}/driver")
        found.append((vm.gpu, driver, len(host.list(f"{device}/graphics")), iomem.count(vm.gpu)))
    return [*found, ("efifb", None, iomem.count(": efifb"), len(iomem.splitlines()))]


def _await_worker(host: FakeHost, vm: Vm, start: Future[Tally]) -> list[str]:
    """Wait until the worker of a VM hangs, which its claim shows: a step begun and not done."""

    def hangs() -> bool:
        claim = Claims(host).find(vm.uuid)
        return claim is not None and len(claim.steps) > len(claim.done)

    end = time.monotonic() + 30
    while time.monotonic() < end and not start.done():
        if hangs():
            return []
        time.sleep(0.02)
    return [f"the worker of {vm.name} did not come to where it should hang"]


def _lock_kept(host: FakeHost, name: str) -> list[str]:
    handle = os.open(Path(host.root) / RUN / name, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return [f"the lock /{RUN}/{name} is kept while a worker hangs"]
    finally:
        os.close(handle)
    return []


CHECK = Check(
    "storm",
    "200 VMs that start at once on 16 GPUs lose no claim, and do not wait for one that hangs",
    run,
    alone=True,
)
