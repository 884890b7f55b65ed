"""What an unbind does in each display driver: one row a driver.

libvirt unbinds a managed device with its locks held and without a timeout (virpci.c,
virPCIDeviceUnbind). So prepare unbinds a driver whose remove function can block, in a
process with a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass

from .host import Host
from .pci import slot

_VENDOR_ATI, _VENDOR_AMD = "0x1002", "0x1022"

UNPLUGS = "unplugs"
"""An unbind while a node is open is safe: calls on it then fail (drm_drv.c, drm_dev_unplug)."""
STAYS = "stays"
"""After an unbind a node that is still open reaches the driver, whose card is gone."""
BLOCKS = "blocks"
"""An unbind waits until the last node is closed, and cannot be killed."""


@dataclass(frozen=True)
class Driver:
    """One driver, by its name in sysfs; the defaults are for a driver without a row.

    while_open: what an unbind does while a process has a node open. may_hang: whether its
    remove function can block for another reason. unload: whether its modules are unloaded
    instead of unbinding it. remove: a function that some kernels lack, and without which an
    unbind leaves the card's state behind. remove_shown: a function that some releases lack,
    and without which an unbind blocks while the card has a DRM node. hangs_apu: whether an
    unbind is known to hang on GPUs that are part of an AMD processor. accelerates: whether a
    device of any class on it is an accelerator, such as AMD's MI300X, whose class is 1200.
    """

    name: str
    while_open: str = BLOCKS
    may_hang: bool = True
    unload: bool = False
    remove: str = ""
    remove_shown: str = ""
    hangs_apu: bool = False
    accelerates: bool = False

    @property
    def comes_off_easily(self) -> bool:
        """Whether it can be bound for a moment and then unbound again."""
        return not (self.unload or self.remove)


ROWS = (
    # amdgpu_pci_remove unplugs, then stops the hardware blocks one by one and waits
    # for the firmware of each. Users report hangs, on APUs up to a power-off.
    Driver("amdgpu", UNPLUGS, hangs_apu=True, accelerates=True),
    # radeon_pci_remove ends in drm_put_dev up to 6.1. 6.12 has no remove: the link
    # goes, but card, interrupt and framebuffer stay behind on freed memory.
    Driver("radeon", STAYS, remove="radeon_pci_remove"),
    # i915_driver_remove unplugs, then waits for the engines to be idle and for all wake
    # references (intel_wakeref_wait_for_idle). SIGKILL ends that wait, and the removal goes on.
    Driver("i915", UNPLUGS, accelerates=True),
    # xe_device_remove unplugs (xe_device_remove_display); what it has registered then waits
    # 5 s for the queues to be gone, and for all their work (guc_submit_fini, drain_workqueue).
    Driver("xe", UNPLUGS, accelerates=True),
    # nouveau_drm_remove unplugs, then waits for its channels to be idle
    # (nouveau_channel_idle) and for the processors in the GPU to halt.
    Driver("nouveau", UNPLUGS, accelerates=True),
    # nv_pci_remove (open-gpu-kernel-modules, nv-pci.c) sleeps in a loop until the usage
    # count is 0: "Attempting to remove device with non-zero usage count". Unloading
    # fails at once instead, with a reason, while anything uses the module; a count that is
    # of no process does not (actions/usage_count.py). A signal only turns the sleep into a busy
    # loop (nv-time.h, nv_sleep_ms). Releases whose remove does not call nvidia_modeset_remove wait
    # for their own nvidia_drm.
    Driver("nvidia", BLOCKS, unload=True, remove_shown="nvidia_modeset_remove", accelerates=True),
    # hl_device_fini (drivers/accel/habanalabs/common/device.c) waits for the processes that
    # have the device open, and ends them with SIGKILL in the end.
    Driver("habanalabs", accelerates=True),
    # The remove functions of the NPUs in processors unplug (ivpu_dev_fini, amdxdna_remove), then
    # wait for the firmware.
    Driver("intel_vpu", UNPLUGS, accelerates=True),
    Driver("amdxdna", UNPLUGS, accelerates=True),
    # Simple scan-out without engines to wait for. ast_pci_remove, mgag200_pci_remove,
    # qxl_pci_remove and vmw_remove end in drm_dev_unregister, not in an unplug.
    Driver("ast", STAYS, may_hang=False),
    Driver("mgag200", STAYS, may_hang=False),
    Driver("qxl", STAYS, may_hang=False),
    Driver("vmwgfx", STAYS, may_hang=False),
    # bochs_pci_remove, cirrus_pci_remove and virtio_gpu_remove unplug; virtio-gpu's
    # PCI driver is virtio-pci.
    Driver("bochs-drm", UNPLUGS, may_hang=False),
    Driver("bochs", UNPLUGS, may_hang=False),
    Driver("cirrus", UNPLUGS, may_hang=False),
    Driver("cirrus-qemu", UNPLUGS, may_hang=False),
    Driver("virtio-pci", UNPLUGS, may_hang=False),
    # It only reserves the device, and its remove is empty (drivers/pci/pci-stub.c).
    Driver("pci-stub", UNPLUGS, may_hang=False),
)
_BY_NAME = {row.name: row for row in ROWS}


def driver_named(name: str | None) -> Driver:
    """The row of the driver of this name, or one that assumes the worst."""
    return _BY_NAME.get(name or "") or Driver(name or "")


def driver_of_module(module: str) -> Driver:
    """The row of the driver that a module belongs to, such as nvidia for nvidia_drm."""
    name = module.replace("_", "-")
    return next((row for row in ROWS if f"{name}-".startswith(f"{row.name}-")), Driver(name))


def is_apu(host: Host, address: str) -> bool:
    """Whether the GPU is part of an AMD processor: then its security processor is in its slot."""
    vendors = {host.read(f"sys/bus/pci/devices/{name}/vendor") for name in functions(host, address)}
    return {_VENDOR_ATI, _VENDOR_AMD} <= vendors


def functions(host: Host, address: str) -> tuple[str, ...]:
    """The functions of the PCI slot that a device is in, itself included."""
    names = host.list("sys/bus/pci/devices")
    return tuple(name for name in names if slot(name) == slot(address))
