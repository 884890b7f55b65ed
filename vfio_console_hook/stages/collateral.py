"""Firmware consoles of GPUs that stay, which vfio-pci removes together with this one's.

Before Linux 6.10.8 the kernel does not ask which GPU a firmware device is on, and later ones
cannot tell of a device without a parent in sysfs (machine/removal.py). The person then
loses the console of a GPU that no VM has asked for, until a reboot.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..claims.step import Step
from ..errors import RefusedError
from ..machine import console, firmware
from ..machine.gpu import Gpu, gpus_among
from ..machine.host import Host
from ..machine.pci import displays
from ..machine.removal import Removed
from .handover import Handover

NAME = "collateral"


def plan(host: Host, gpu: Gpu, handover: Handover) -> Iterator[Step]:
    """For each console that vfio-pci removes: the loss, or a driver for the GPU that stays.

    For most GPUs there is none. Raises RefusedError where the configuration allows neither.
    """
    for device, owner, removed in _removed_with(host, gpu, handover):
        if handover.config.keep_console == "never" or owner is None or not _draws(host, device):
            yield _loss_step(gpu, device, removed)
        # A driver for a GPU that another VM is taking just now would not save its console.
        elif handover.config.host_driver == "load" and owner not in handover.taken:
            yield from _load_driver(host, gpu, owner, device, removed)
        else:
            raise _refusal(host, gpu, owner, device, removed)


def _why(device: str, removed: Removed) -> str:
    removes = "also removes" if removed is Removed.YES else "may also remove"
    return f"vfio-pci of this kernel {removes} {device}, which is not on this GPU"


def _loss_step(gpu: Gpu, device: str, removed: Removed) -> Step:
    """The loss, known or possible; release reports what has become of a possible one."""
    why, undo = _why(device, removed), None
    loses = (
        "the console of another GPU will not come back before a reboot: vfio-pci of this"
        f" kernel removes {device} when it binds to {gpu.address}"
    )
    if removed is Removed.MAY:
        from ..actions.look import LookFor  # hardly any host needs it

        undo = LookFor(device, gpu.address)
        loses = (
            "the console of another GPU may not come back before a reboot: nothing shows whether"
            f" vfio-pci of this kernel removes {device} when it binds to {gpu.address}"
        )
    return Step(stage=NAME, gpu=gpu.address, why=why, do=None, undo=undo, loses=loses)


def _load_driver(
    host: Host, gpu: Gpu, owner: str, device: str, removed: Removed
) -> Iterator[Step]:
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
        why=f"{_why(device, removed)}, so {owner}, which stays, needs its own driver {module} for"
        " the console",
        do=BindNative(owner, host.read(f"sys/bus/pci/devices/{owner}/modalias") or ""),
        undo=None,
        loses=f"the firmware console of {owner} does not come back; {module} shows the console"
        f" instead{also}",
    )


def _removed_with(
    host: Host, gpu: Gpu, handover: Handover
) -> Iterator[tuple[str, str | None, Removed]]:
    """The firmware devices of other GPUs that go when vfio-pci binds to gpu, or may.

    Each as (name, owner, whether it goes). Each draws now, or will draw again when the VM
    ends that has the owner.
    """
    if gpu.vfio or not handover.removal.acts_on(gpu):
        return
    ours = {device.name for one in handover.gpus for device in one.firmware}
    for name in firmware.devices(host):
        if name in ours:
            continue
        if firmware.is_coreboots(host, name):
            continue  # sysfb_disable() is for the device of the kernel itself
        owner = _owner(host, name, handover)
        parent = console.pci_ancestor(host, f"sys/bus/platform/devices/{name}")
        removed = handover.removal.of_sysfb(
            host, gpu, name, parent, placed=owner is not None
        )
        if removed and (owner in handover.taken or _draws(host, name)):
            yield name, owner, removed


def _draws(host: Host, device: str) -> bool:
    return host.link_name(f"sys/bus/platform/devices/{device}/driver") is not None


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


def _refusal(host: Host, gpu: Gpu, owner: str, device: str, removed: Removed) -> RefusedError:
    from ..machine import modules  # as above

    wanted = modules.modules_for(host, owner)
    load = ""
    for module in wanted.found[:1]:
        how = "(it is blacklisted)" if module in wanted.blacklisted else "or by `host_driver: load`"
        load = f"load {module} for {owner} at boot {how}, or "
    text = (
        f"the host's console on {owner} would be gone until a reboot: vfio-pci of this kernel"
        f" removes {device} when it binds to {gpu.address}"
    )
    if removed is Removed.MAY:
        text = (
            f"the host's console on {owner} may be gone until a reboot: nothing shows whether"
            f" vfio-pci of this kernel removes {device} when it binds to {gpu.address}"
        )
    return RefusedError(text, hint=f"{load}set `keep_console: never` to give that console up")
