"""NVIDIA's usage count of a GPU: refusing what would never return because of a user that is gone.

The driver's remove function waits until the count is 0, and no signal ends that; an unload of
its module waits there too, once nothing holds the module (open-gpu-kernel-modules 595, nv-pci.c,
nv_pci_remove_helper). The count is shown nowhere. But the driver starts a GPU with its first
user, with an interrupt, and stops it after the last (nv.c, nv_start_device and nv_stop_device).
Only persistence mode without its daemon leaves it started with a count of 0
(NV_FLAG_PERSISTENT_SW_STATE), so that is switched off before anything is concluded. With the
option NVreg_GpuInitOnProbe, new in 595, it is started all the time, and nothing can be.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import HostError, StepError
from ..machine.holders import holders_of, listed
from ..machine.host import Host

_SMI = "/usr/bin/nvidia-smi"
# Through these a program uses a GPU of which it has no node open (nv.c, NV_ESC_ATTACH_GPUS_TO_FD;
# uvm_ioctl.h, UVM_REGISTER_GPU). For one of two GPUs they are not waited for: others use them too.
_FOR_ALL_GPUS = ("dev/nvidiactl", "dev/nvidia-modeset", "dev/nvidia-uvm")
_STOPS_IN_S = 5


def require_none(host: Host, gpus: Collection[str], doing: str) -> str:
    """Raise StepError if the driver counts a user of a GPU that nothing uses; a remark, or "".

    Only to be asked when no process and no other module has any of them open. doing is what
    would not return. A GPU without message-signaled interrupts cannot be asked.
    """
    started = [gpu for gpu in gpus if is_started(host, gpu)]
    if not started or _starts_at_probe(host):
        return ""
    if host.exists(_SMI[1:]):
        for gpu in started:
            _leave_persistence_mode(host, gpu)
        if host.wait(lambda: not any(is_started(host, one) for one in started), _STOPS_IN_S):
            return "persistence mode was switched off"
    held = listed(holders_of(host, _FOR_ALL_GPUS))
    if held:
        raise StepError(
            f"nvidia counts a user of {started[0]}, maybe {held}, so {doing} would never return",
            hint="stop it, or reboot the host if that does not help",
        )
    raise StepError(
        f"nvidia counts a user of {started[0]} although nothing has it open, so {doing} would"
        " never return",
        hint="reboot the host, or if persistence mode was set without nvidia-persistenced, set"
        " `nvidia-smi -pm 0`",
    )


def is_started(host: Host, gpu: str) -> bool:
    """Whether the driver of a GPU has an interrupt of it (Linux kernel/irq/msi.c, msi_irqs)."""
    return bool(host.list(f"sys/bus/pci/devices/{gpu}/msi_irqs"))


def _starts_at_probe(host: Host) -> bool:
    """Whether the driver starts each GPU that it finds (nv-pci.c, nv_pci_probe: init_on_probe).

    /proc/driver/nvidia/params does not have that option, and /sys has none of the driver's.
    """
    try:
        settings = host.run("/sbin/modprobe", "--showconfig")
    except HostError:
        return False
    found = re.search(r"^options .*\bNVreg_GpuInitOnProbe=(\w+)", settings, re.MULTILINE)
    return found is not None and found[1].strip("0x") != ""


def _leave_persistence_mode(host: Host, gpu: str) -> None:
    try:
        host.run(_SMI, "-i", gpu, "-pm", "0")
    except HostError:
        return  # the GPU is looked at anyway
