"""Whether the GPUs of a claim, or of a VM without one, are in use now."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import HookError, RefusedError
from ..machine import holders, pci, processes, vfio
from ..machine.accelerators import gpus_of_host
from ..machine.host import Host, seconds
from . import history
from .claim import Claim
from .directory import Claims
from .ownership import at_work, clock_time


def refuse_open(host: Host, addresses: Iterable[str]) -> None:
    """Refuse devices that a VM has open for which there is no claim, or others of their groups.

    It is no GPU, or was plugged, or was started anyway. libvirt would refuse it too, but only
    after the steps have been taken, below that VM or for nothing.
    """
    for address in addresses:
        held = [holder for holder in vfio.users_of_group(host, address) if not holder.unknown]
        if held:
            what = address if pci.is_vfio(host, address) else f"the IOMMU group of {address}"
            raise RefusedError(
                f"{what} is in use by {holders.listed(held)}", hint="end that VM first"
            )


def why_in_use(host: Host, claim: Claim) -> str:
    """Why a claim must be left alone: a clause for people, "" when the GPUs are free.

    A GPU on vfio-pci counts as in use as long as its vfio group or device file is
    open; between prepare and QEMU nothing shows that a VM is starting but its phase. A
    rehearsal's own worker has it open, too, and ends with it.
    """
    if at_work(host, claim):
        if claim.until:
            until = clock_time(claim.until)
            return f"its rehearsal gives it back by {until} (process {claim.hook[0]})"
        return f"its hook is running (process {claim.hook[0]})"
    for address in claim.gpus:
        held = [one for one in vfio.users(host, address) if one.pid != claim.worker[0]]
        if held:
            return f"{address} is in use by {holders.listed(held)}"
    return ""


def why_stuck(host: Host, claim: Claim) -> str:
    """Why a claim waits for a release that may never come: a clause, "" when it does not wait.

    libvirt calls release some moments after stopped, when it has re-attached the GPU, which can
    hang in the kernel. If libvirtd was killed it calls neither.
    """
    if claim.boot != host.boot_id or at_work(host, claim):
        return ""
    if claim.until:
        return "its rehearsal was killed"
    if claim.by_hand:
        return ""
    if claim.phase == "stopped":
        since = _stopped_at(host, claim)
        if since is None:
            return "its VM has stopped, and libvirt has not called release since"
        for_s = host.now() - since
        if for_s <= claim.timeout_s:
            return ""
        return f"its VM stopped {for_s:.0f} s ago, and libvirt has not called release since"
    if claim.phase != "started" or _qemu_runs(host, claim):
        return ""
    return "its QEMU has ended, and libvirt has called neither stopped nor release"


def _stopped_at(host: Host, claim: Claim) -> float | None:
    """When libvirt called stopped for a VM; None when that could not be written down."""
    try:
        word = history.read(host, claim.uuid) or {}
        return seconds(word["events"]["stopped"]["time"])
    except (HookError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _qemu_runs(host: Host, claim: Claim) -> bool:
    """Whether the VM's QEMU is there, as its pid file and the open GPUs show.

    A VM may go on without its GPU, which was unplugged (libvirt src/qemu/qemu_conf.c, stateDir;
    src/util/virpidfile.c, virPidFileBuildPath).
    """
    file = "" if "/" in claim.name else f"run/libvirt/qemu/{claim.name}.pid"
    pid = processes.pid_of(host.read(file) or "") if file else None
    if pid is not None and processes.find(host, pid) is not None:
        return True
    return any(vfio.users(host, address) for address in claim.gpus)


def unclaimed(host: Host) -> tuple[str, ...]:
    """GPUs on vfio-pci that no claim of this boot names. Raises HostError."""
    boot = host.boot_id
    claimed = {name for one in Claims(host).readable() if one.boot == boot for name in one.gpus}
    return tuple(
        address
        for address in gpus_of_host(host)
        if pci.is_vfio(host, address)
        and address not in claimed
        and not pci.is_virtual(host, address)
    )
