"""Firmware consoles of GPUs that stay, which vfio-pci removes together with this one's.

The kernel cannot tell which GPU a firmware device without a parent in sysfs is on. Linux
6.0 to 6.8 remove it with a GPU whose ROM is shadowed, or with any, and later ones with
any (drivers/firmware/sysfb.c, sysfb_disable). The person then loses the console of a GPU
that no VM has asked for, until a reboot.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..errors import RefusedError
from ..machine import console, firmware, kernel, memory
from ..machine.gpu import Gpu, gpus_among
from ..machine.host import Host
from ..machine.pci import displays
from .handover import Handover

NAME = "collateral"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """For each console that vfio-pci removes: the loss, or a driver for the GPU that stays.

    For most GPUs there is none. Raises RefusedError where the configuration allows neither.
    """
    for device, owner in _removed_with(host, gpu, handover):
        if handover.config.keep_console == "never" or owner is None or not _draws(host, device):
            yield Step(
                stage=NAME,
                gpu=gpu.address,
                why=f"vfio-pci of this kernel also removes {device}, which is not on this GPU",
                do=None,
                undo=None,
                loses="the console of another GPU will not come back before a reboot: vfio-pci of"
                f" this kernel removes {device} when it binds to {gpu.address}",
            )
        # A driver for a GPU that another VM is taking just now would not save its console.
        elif handover.config.host_driver == "load" and owner not in handover.taken:
            yield from _load_driver(host, gpu, owner, device)
        else:
            raise _refusal(host, gpu, owner, device)


def _load_driver(host: Host, gpu: Gpu, owner: str, device: str) -> Iterator[Step]:
    """The bind of the own driver of the GPU that stays, and what keeps it off the other one."""
    # These take 5 ms to load, and hardly any host needs them.
    from ..actions.device import BindNative
    from ..actions.modules import Reserve, Unreserve
    from ..machine import modules

    module = _driver_for(host, owner, device, gpu)
    also = ""
    if gpu.driver is None:
        yield Step(
            stage=NAME,
            gpu=gpu.address,
            why=f"{module} is about to be loaded, may support this GPU and must not bind to it",
            do=Reserve(gpu.address),
            undo=Unreserve(gpu.address),
        )
        if module in modules.modules_for(host, gpu.address).allowed:
            also = f", and later binds to {gpu.address} too"
    yield Step(
        stage=NAME,
        gpu=gpu.address,
        why=f"vfio-pci of this kernel also removes {device}, so {owner}, which stays, needs its"
        f" own driver {module} for the console",
        do=BindNative(owner, host.read(f"sys/bus/pci/devices/{owner}/modalias") or ""),
        undo=None,
        loses=f"the firmware console of {owner} does not come back; {module} shows the console"
        f" instead{also}",
    )


def _removed_with(host: Host, gpu: Gpu, handover: Handover) -> Iterator[tuple[str, str | None]]:
    """The firmware devices of other GPUs that go when vfio-pci binds to gpu: (name, owner).

    Each draws now, or will draw again when the VM ends that has the owner.
    """
    if gpu.vfio or not handover.kernel_removes_from(gpu) or not _removes_others(host, gpu):
        return
    ours = {device.name for one in handover.gpus for device in one.firmware}
    for name in firmware.devices(host):
        if name in ours or console.pci_ancestor(host, f"sys/bus/platform/devices/{name}"):
            continue
        owner = _owner(host, name, handover)
        if owner in handover.taken or _draws(host, name):
            yield name, owner


def _draws(host: Host, device: str) -> bool:
    return host.link_name(f"sys/bus/platform/devices/{device}/driver") is not None


def _removes_others(host: Host, gpu: Gpu) -> bool:
    """Whether vfio-pci on this GPU removes firmware devices without a parent in sysfs."""
    release = kernel.release(host)
    # 6.9 and later have put the device below its GPU, and one without a parent may be on
    # any. Linux 6.0.3 to 6.1.46 do not look at all ("video/aperture: Only remove sysfb on
    # the default vga pci device", 5ae3716cfdcd, in 6.1.47); only the version shows it,
    # which distributions with their own numbers hide.
    takes_any = release >= (6, 9) or ((6, 0, 3) <= release < (6, 1, 47) and release[2] > 0)
    return takes_any or memory.rom_shadowed(host, gpu.address)


def _owner(host: Host, device: str, handover: Handover) -> str | None:
    """The address of the GPU that a firmware device draws on, among those that stay."""
    staying = tuple(one for one in displays(host) if one not in handover.addresses)
    for one in gpus_among(host, staying):
        if any(firmware_device.name == device for firmware_device in one.firmware):
            return one.address
    return None


def _driver_for(host: Host, owner: str, device: str, gpu: Gpu) -> str:
    """The module to load for the GPU that stays. Raises RefusedError when there is none."""
    from ..machine import modules  # takes 1 ms to load, and hardly any host needs it

    wanted = modules.modules_for(host, owner)
    if not wanted.allowed:
        raise RefusedError(
            f"`host_driver: load` cannot save the console on {owner}, which {device} shows and"
            f" vfio-pci would remove with {gpu.address}: {wanted.why_none}",
            hint="install or allow its driver, or set `keep_console: never` to give that console"
            " up",
        )
    return wanted.allowed[0]


def _refusal(host: Host, gpu: Gpu, owner: str, device: str) -> RefusedError:
    from ..machine import modules  # as above

    wanted = modules.modules_for(host, owner)
    load = ""
    for module in wanted.found[:1]:
        how = "(it is blacklisted)" if module in wanted.blacklisted else "or by `host_driver: load`"
        load = f"load {module} for {owner} at boot {how}, or "
    return RefusedError(
        f"the host's console on {owner} would be gone until a reboot: vfio-pci of this kernel"
        f" removes {device} when it binds to {gpu.address}",
        hint=f"{load}set `keep_console: never` to give that console up",
    )
