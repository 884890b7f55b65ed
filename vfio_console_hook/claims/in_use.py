"""Whether the GPUs of a claim, or of a VM without one, are in use now."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import RefusedError
from ..machine import holders, pci, vfio
from ..machine.accelerators import gpus_of_host
from ..machine.host import Host
from .claim import Claim
from .directory import Claims
from .ownership import at_work


def refuse_open(host: Host, addresses: Iterable[str]) -> None:
    """Refuse devices that a VM has open for which there is no claim.

    It is no GPU, or was plugged, or was started anyway. libvirt would refuse it too, but only
    after the steps have been taken, below that VM or for nothing.
    """
    for address in addresses:
        held = [holder for holder in vfio.users(host, address) if not holder.unknown]
        if held:
            raise RefusedError(
                f"{address} is in use by {holders.listed(held)}", hint="end that VM first"
            )


def why_in_use(host: Host, claim: Claim) -> str:
    """Why a claim must be left alone: a clause for people, "" when the GPUs are free.

    A GPU on vfio-pci counts as in use as long as its vfio group or device file is
    open; between prepare and QEMU nothing shows that a VM is starting but its phase.
    """
    if at_work(host, claim):
        return f"its hook is running (process {claim.hook[0]})"
    for address in claim.gpus:
        held = vfio.users(host, address)
        if held:
            return f"{address} is in use by {holders.listed(held)}"
    return ""


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
