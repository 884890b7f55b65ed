"""The VM itself instead of the bare mapping: started through libvirt, destroyed unless it is kept.

The dead man's switch is the watchdog's timer, armed before the start; the runner does the same
a little earlier, if it is still there. Each line that decides is one write to the diary, so of
`keep` and the switch the first one wins.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ...claims.directory import Claims
from ...domain import Domain, Hostdev
from ...errors import CutOffError, HookError
from ...log import Log
from ...machine import memory, processes, virsh, worker
from ...machine.host import Host
from ...machine.processes import Process
from ...machine.vfio_access import Opened, Region
from .rehearsal import Account, Diary, Rehearsal

# QEMU has its devices before it runs; libvirt's hook "started" comes then.
_POLL_S = 1.0
_ASK_AGAIN_S = 2.0
_KILL_AFTER_S = 20.0


@dataclass(frozen=True)
class RealVm:
    """The libvirt that has the VM, and the devices in its definition."""

    uri: str
    hostdevs: tuple[dict[str, Any], ...]

    def domain(self, rehearsal: Rehearsal) -> Domain:
        """The VM as libvirt's hook gets it."""
        hostdevs = tuple(Hostdev(**one) for one in self.hostdevs)
        return Domain(rehearsal.vm, rehearsal.uuid, hostdevs)

    @classmethod
    def in_diary(cls, account: Account) -> RealVm | None:
        """The VM that this rehearsal starts, if it starts one."""
        real = account.real
        return None if real is None else cls(real["uri"], tuple(real["hostdevs"]))


def start(host: Host, rehearsal: Rehearsal, vm: RealVm, diary: Diary, stop: int) -> None:
    """Start the VM. Raises HookError, and then it is off, or was on already."""
    if virsh.is_off(host, vm.uri, rehearsal.uuid) is not True:
        raise HookError(f"{rehearsal.vm} is not off", hint=f"see `virsh domstate {rehearsal.vm}`")
    diary.say(f"starting {rehearsal.vm}")
    began = host.clock()
    diary.note(starting=True)

    def begin() -> None:
        virsh.start(host, vm.uri, rehearsal.uuid)

    try:
        worker.run(begin, rehearsal.timeout_s + rehearsal.opening_s, stop)
    except CutOffError:
        raise  # virsh was killed, and libvirt may start the VM all the same
    except HookError:
        diary.note(starting=False)
        raise
    finally:
        claim = Claims(host).find(rehearsal.uuid)
        steps = len(claim.done) if claim else 0
        diary.note(took={"take_s": host.clock() - began, "steps": steps})
    qemu = virsh.qemu_of(host, rehearsal.vm)
    if qemu is None:
        log = f"/var/log/libvirt/qemu/{rehearsal.vm}.log"
        raise HookError(f"{rehearsal.vm} ended at once", hint=f"see {log}")
    diary.note(qemu=[qemu.pid, qemu.started])
    diary.note(opened=mapped_by(host, qemu, rehearsal.addresses).to_json())


def mapped_by(host: Host, qemu: Process, addresses: tuple[str, ...]) -> Opened:
    """The BARs of the functions, and whether QEMU has an area of each mapped. Raises HostError.

    Only sizes are compared: where an area begins in the file of a device shows its BAR, but old
    kernels show the memory's own address there (6.1, vfio_pci_core_mmap, vm_pgoff).
    """
    free = _areas(host.mappings(qemu.pid))
    regions = []
    for address in addresses:
        for bar in memory.memory_bars(host, address):
            size = max(bar.range.last - bar.range.first + 1, _PAGE)
            mapped = size in free
            if mapped:
                free.remove(size)
            why = "" if mapped else f"QEMU has no area of BAR {bar.number} mapped"
            regions.append(Region(address, bar.number, bar.range, mapped, why))
    return Opened(tuple(regions))


_PAGE = 0x1000


def _areas(maps: bytes) -> list[int]:
    """The sizes of the areas of vfio devices in the text of /proc/PID/maps."""
    found = []
    for line in maps.splitlines():
        if b"vfio" in line:
            first, _, last = line.split(b" ", 1)[0].partition(b"-")
            found.append(int(last, 16) - int(first, 16))
    return found


def wait(host: Host, rehearsal: Rehearsal, diary: Diary, stop: int) -> None:
    """Wait until the VM is kept, ends, or has had its time."""
    account = diary.account()
    began = host.clock()
    end = began + rehearsal.seconds
    name = (int(account.qemu[0]), int(account.qemu[1]))
    handle = host.open_process(name[0])
    try:
        while host.clock() < end and not diary.account().kept and not worker.stopped(stop):
            if handle is None or not processes.lives(host, name):
                diary.say(f"{rehearsal.vm} has ended")
                break
            host.wait_for_end([handle], min(_POLL_S, max(end - host.clock(), 0)))
    finally:
        if handle is not None:
            host.close_process(handle)
        diary.note(took={"have_s": host.clock() - began})


def destroy(host: Host, rehearsal: Rehearsal, vm: RealVm, diary: Diary, log: Log) -> bool:
    """Destroy the VM unless it is kept or off, and wait for libvirt's release; False if kept."""
    began = host.clock()
    diary.note(destroying=True)
    account = diary.account()
    if account.kept:
        return False
    if account.starting:
        _power_off(host, rehearsal, vm, account, log)
        released = host.wait(lambda: _released(host, rehearsal, account), rehearsal.timeout_s)
        if not _is_over(host, rehearsal, vm, account):
            diary.note(took={"lost": f"libvirt does not say whether {rehearsal.vm} is off"})
        elif not released:
            diary.note(took={"lost": f"libvirt has not given back what {rehearsal.vm} had"})
    diary.note(took={"give_s": host.clock() - began})
    return True


def _released(host: Host, rehearsal: Rehearsal, account: Account) -> bool:
    """Whether libvirt has given back what this run had; a later run has a claim of its own."""
    later = virsh.qemu_of(host, rehearsal.vm) is not None and bool(account.qemu)
    return later or Claims(host).find(rehearsal.uuid) is None


def _power_off(host: Host, rehearsal: Rehearsal, vm: RealVm, account: Account, log: Log) -> None:
    """End this run of the VM, also one that is only about to start.

    QEMU is killed where libvirt does not end it.
    """
    began = host.clock()
    while not _is_over(host, rehearsal, vm, account):
        qemu = _this_run(host, rehearsal, account)
        if qemu is None:
            if host.clock() >= began + rehearsal.give_back_s:
                return  # the timer looks once more (runs())
            time.sleep(_ASK_AGAIN_S)
            continue
        try:
            virsh.destroy(host, vm.uri, rehearsal.uuid)
            log.warning(f"destroyed {rehearsal.vm}, which was not kept")
        except HookError as error:
            # libvirtd is down or hangs. Once it is back, it sees that QEMU has ended.
            if host.clock() >= began + _KILL_AFTER_S:
                log.warning(f"killed QEMU of {rehearsal.vm}: {error.text}")
                processes.kill(host, qemu)
        if _this_run(host, rehearsal, account) is not None:
            time.sleep(_ASK_AGAIN_S)


def _is_over(host: Host, rehearsal: Rehearsal, vm: RealVm, account: Account) -> bool:
    """Whether this run has ended: a VM whose QEMU is not known may be about to start."""
    if _this_run(host, rehearsal, account) is not None:
        return False
    return bool(account.qemu) or virsh.is_off(host, vm.uri, rehearsal.uuid) is True


def runs(host: Host, rehearsal: Rehearsal, account: Account) -> bool:
    """Whether a run goes on that could not be ended in time, as libvirt did not answer."""
    undone = account.real is not None and account.starting and bool(account.took.get("lost"))
    return undone and not account.kept and _this_run(host, rehearsal, account) is not None


def _this_run(host: Host, rehearsal: Rehearsal, account: Account) -> Process | None:
    """The QEMU that was started by this rehearsal, if it still runs.

    Where its process could not be written down any more, it is the one that runs now.
    """
    found = virsh.qemu_of(host, rehearsal.vm)
    if found is None or not account.qemu:
        return found
    return found if [found.pid, found.started] == list(account.qemu) else None
