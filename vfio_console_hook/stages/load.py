"""Loading the GPU's own driver after the VM, where something keeps it off the host.

Where vfio-pci removes the firmware's console, only a native driver shows one again. People
blacklist that driver, or give the GPU to vfio-pci at boot (vfio-pci.ids), because
guides tell them to. `release: {native: load}` loads it all the same once the VM has
ended and the firmware's console is not back; the next VM takes the GPU from it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..machine.gpu import Gpu
from ..machine.host import Host
from .handover import Handover

NAME = "load"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """The load of the driver, as an undo, for a GPU that has none of its own."""
    if handover.config.release.native != "load" or gpu.native or gpu.virtual:
        return
    # These take 2 ms to load.
    from ..actions.device import LoadNative
    from ..machine import modules

    module = modules.modules_for(host, gpu.address).console
    if module:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"if no console is back on it after the VM, release loads {module} for one",
            do=None,
            undo=LoadNative(gpu.address, module),
        )
    else:
        why = "no driver for it is installed, so release can load none"
        yield Step(stage=NAME, gpu=gpu.address, why=why, do=None, undo=None)


def advice(host: Host, handover: Handover) -> str:
    """What would give a console after a VM that loses it, as a clause; "" if nothing would."""
    if handover.config.release.native == "load":
        return ""
    from ..machine import modules

    for gpu in handover.gpus:
        if gpu.native or gpu.virtual:
            continue
        wanted = modules.modules_for(host, gpu.address)
        module = wanted.console
        if module:
            state = "blacklisted" if module in wanted.blacklisted else "installed"
            would = "may" if module == modules.NVIDIA_DRM else "would"
            return (
                f"{module}, which is {state}, {would} show a console if it is loaded then"
                " (`release: {native: load}`)"
            )
    return ""
