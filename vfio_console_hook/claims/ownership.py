"""Who may work on a claim: one hook at a time, and nobody below a running VM.

The claim decides, never a guess from processes: between prepare and the start of
QEMU nothing else shows that a VM is starting.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import RefusedError
from ..machine import gpu, holders, kernel, processes, worker
from ..machine.host import Host
from .claim import Claim, Claims

EARLIER_HOOK_S = 10.0
"""How long an earlier hook for the same VM or GPU may take to end by itself."""


def take_up(host: Host, uuid: str, phase: str, *, forgotten: bool = False) -> Claim | None:
    """The claim of a VM, for this process alone to go on with; None when it holds nothing.

    phase and forgotten are what is written into it (claim.py, Claim).
    An earlier hook that still works on it is waited for; what is left of one that
    was killed is killed too. Raises RefusedError when it goes on working, StuckError
    when the kernel does not let go of it: nothing may be done below its feet.
    """
    claims = Claims(host)
    claim = claims.find(uuid)
    if claim is None:
        return None
    _await_hook(host, claims, uuid)
    with claims.lock():
        claim = claims.find(uuid)
        if claim is None:
            return None
        if at_work(host, claim):
            raise _at_work(claim)
        claim.reach(phase, forgotten=forgotten)
    if not _is_left(host, claim):
        return claim
    worker.stop_session(host, claim.worker[0])
    return claims.find(uuid)  # it has written on until it was killed


def _await_hook(host: Host, claims: Claims, uuid: str) -> None:
    def gone() -> bool:
        claim = claims.find(uuid)
        return claim is None or not at_work(host, claim)

    host.wait(gone, EARLIER_HOOK_S)


def await_others(host: Host, address: str, uuid: str) -> None:
    """Wait a while for hooks that are giving back a GPU which the VM with uuid wants."""
    claims = Claims(host)
    for other in claims.others(uuid, kernel.boot_id(host), (address,)):
        if address in other.gpus and other.phase == "release":
            _await_hook(host, claims, other.uuid)


def refuse_busy(host: Host, other: Claim) -> None:
    """Raise RefusedError when somebody works on the claim of another VM."""
    if at_work(host, other) or _is_left(host, other):
        raise _at_work(other)


def _at_work(claim: Claim) -> RefusedError:
    return RefusedError(
        f"another hook for {claim.name} is still at work with {', '.join(claim.gpus)}"
        f" (process {claim.hook[0]})",
        hint="wait until it has ended",
    )


def at_work(host: Host, claim: Claim) -> bool:
    """Whether another hook than this one works on a claim."""
    if claim.boot != kernel.boot_id(host) or claim.hook == processes.this(host):
        return False
    return processes.lives(host, claim.hook)


def _is_left(host: Host, claim: Claim) -> bool:
    """Whether the claim's worker still runs without its hook: itself, or what it started."""
    pid, started = claim.worker
    if not started or claim.boot != kernel.boot_id(host):
        return False
    process = processes.find(host, pid)
    if process is not None:
        return process.started == started
    return any(one.started >= started for one in processes.in_session(host, pid))


def holds(host: Host, claim: Claim, address: str) -> bool:
    """Whether a VM still has a GPU of its claim, or is about to; not so what release has left."""
    return claim.phase != "release" or gpu.is_vfio(host, address) or at_work(host, claim)


def refuse_open(host: Host, addresses: tuple[str, ...]) -> None:
    """Refuse devices that a VM has open of which there is no claim.

    It is no GPU, or was plugged, or was started anyway. libvirt would refuse it too, but only
    after the steps have been taken, below that VM or for nothing.
    """
    for address in addresses:
        if not gpu.is_vfio(host, address):
            continue
        found = holders.holders_of(host, vfio_nodes(host, address))
        held = [holder for holder in found if not holder.unknown]
        if held:
            raise RefusedError(
                f"{address} is in use by {holders.listed(held)}", hint="end that VM first"
            )


def refuse_taken(host: Host, addresses: Iterable[str], others: list[Claim]) -> None:
    """Raise RefusedError when another VM, or a person, has one of these GPUs now."""
    for other in others:
        for address in addresses:
            if address in other.gpus and (
                other.by_hand or other.phase == "prepare" or gpu.is_vfio(host, address)
            ):
                raise _taken(address, other)


def _taken(address: str, other: Claim) -> RefusedError:
    if other.by_hand:
        return RefusedError(
            f"{address} was taken by hand, so no VM may have it through this hook",
            hint=f"run `vfio-console-hook give {address}`",
        )
    return RefusedError(
        f"{address} belongs to the VM {other.name}, which has it now",
        hint=f"shut {other.name} down; if it does not run, `vfio-console-hook recover`",
    )


def in_use(host: Host, claim: Claim) -> str:
    """Why a claim must be left alone: a clause for people, "" when the GPUs are free.

    A GPU on vfio-pci counts as in use as long as its vfio group or device file is
    open; between prepare and QEMU nothing shows that a VM is starting but its phase.
    """
    if at_work(host, claim):
        return f"its hook is at work (process {claim.hook[0]})"
    for address in claim.gpus:
        if not gpu.is_vfio(host, address):
            continue
        held = holders.holders_of(host, vfio_nodes(host, address))
        if held:
            return f"{address} is in use by {holders.listed(held)}"
    return ""


def unclaimed(host: Host) -> tuple[str, ...]:
    """GPUs that are on vfio-pci without us: no claim of this boot names them. Raises HostError."""
    boot = kernel.boot_id(host)
    claimed = {name for one in Claims(host).readable() if one.boot == boot for name in one.gpus}
    return tuple(
        address
        for address in gpu.displays(host)
        if gpu.is_vfio(host, address)
        and address not in claimed
        and not gpu.is_virtual(host, address)
    )


def vfio_nodes(host: Host, address: str) -> list[str]:
    """What QEMU opens of a device on vfio-pci, such as "dev/vfio/1"."""
    device = f"sys/bus/pci/devices/{address}"
    group = host.link_name(f"{device}/iommu_group")
    nodes = [f"dev/vfio/devices/{name}" for name in host.list(f"{device}/vfio-dev")]
    return [*nodes, f"dev/vfio/{group}"] if group else nodes
