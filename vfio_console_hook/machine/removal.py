"""What vfio-pci of this kernel removes for good when it binds to a GPU of class 0300.

Nothing else in the program knows the rule. vfio-pci calls
aperture_remove_conflicting_pci_devices() (Linux drivers/video/aperture.c), and that
unregisters

1. the firmware device that sysfb has made, with a driver or without, whichever GPU it is
   on, if the GPU is *selected*; how, differs by release, see _BY_RELEASE;
2. every firmware device whose driver is bound and draws in a memory BAR of the GPU;
3. legacy VGA, vgacon included, if the GPU is the default VGA device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from ..value import Value
from . import kernel, memory
from .firmware import FirmwareDevice
from .gpu import Gpu
from .host import Host
from .pci import VGA


class Removed(IntEnum):
    """Whether something goes; MAY where nothing shows which rule the kernel has."""

    NO = 0
    MAY = 1
    YES = 2


# Whether a GPU that vfio-pci binds to is selected: (host, GPU, the device's parent in sysfs,
# whether the GPU decodes memory).
Selector = Callable[[Host, Gpu, "str | None", bool], bool]


def _none(host: Host, gpu: Gpu, parent: str | None, decodes: bool) -> bool:
    return False


def _any(host: Host, gpu: Gpu, parent: str | None, decodes: bool) -> bool:
    return True


def _shadowed(host: Host, gpu: Gpu, parent: str | None, decodes: bool) -> bool:
    # Not the same as the default VGA device: one behind a bridge without VGA routing is not
    # shadowed, and one on the root bus is (arch/x86/pci/fixup.c, pci_fixup_video). Other
    # architectures shadow nothing.
    return memory.rom_shadowed(host, gpu.address)


def _default(host: Host, gpu: Gpu, parent: str | None, decodes: bool) -> bool:
    return gpu.boot_vga


def _owner(host: Host, gpu: Gpu, parent: str | None, decodes: bool) -> bool:
    # Without a parent it may be on any GPU. While its owner does not decode memory,
    # sysfb_parent_dev() gives an error, which is neither the device nor none.
    return parent is None or (parent == gpu.address and decodes)


_BY_RELEASE: tuple[tuple[tuple[int, int, int], tuple[Selector, ...]], ...] = (
    # b49420d6a1ae ("video/aperture: optionally match the device in sysfb_disable()")
    ((6, 10, 8), (_owner,)),
    # 5ae3716cfdcd ("video/aperture: Only remove sysfb on the default vga pci device") and
    # its series, in v6.5. From v6.9 on the device has a parent, but it is not asked for.
    ((6, 5, 0), (_default,)),
    # Whether and how a late 6.4.y has it was not found out.
    ((6, 4, 0), (_any, _shadowed, _default)),
    ((6, 2, 0), (_any,)),
    # 5ae3716cfdcd without its series: the older `primary` is a shadowed ROM.
    ((6, 1, 47), (_shadowed,)),
    # 5e0137612430 ("video/aperture: Disable and unregister sysfb devices via aperture
    # helpers"), in v6.1
    ((6, 0, 3), (_any,)),
    ((6, 0, 0), (_none, _any)),
    # A vendor's backport: it may be of any release.
    ((0, 0, 0), (_none, _any, _shadowed, _default, _owner)),
)
# Two things show one of these, whatever the release: the symbol of the same series, and the
# device's parent in sysfs, which 9eac534db001 ("firmware/sysfb: Set firmware-framebuffer
# parent device") (in v6.9) has added and _owner needs.
_SINCE_6_5 = (_default, _owner)


@dataclass(frozen=True, eq=False, repr=False)
class Removal(Value):
    """The selectors that this kernel may have; none where vfio-pci removes nothing."""

    selectors: tuple[Selector, ...]

    @property
    def never(self) -> bool:
        """Whether vfio-pci of this kernel removes nothing from any GPU."""
        return not self.selectors

    @property
    def knows_owners(self) -> bool:
        """Whether this kernel may ask whose a device is, so that decoding matters."""
        return _owner in self.selectors

    def acts_on(self, gpu: Gpu) -> bool:
        """Whether vfio-pci removes anything when it binds to this GPU (Linux vfio_pci_is_vga)."""
        return bool(self.selectors) and gpu.pci_class == VGA

    def of_device(
        self, host: Host, gpu: Gpu, device: FirmwareDevice, *, bound: bool, decodes: bool = True
    ) -> Removed:
        """Whether a firmware device on a GPU of the VM goes when vfio-pci binds to gpu.

        bound and decodes say how it will be by then: whether the device has a driver, and
        whether gpu decodes memory. gpu need not be the one that the device is on.
        """
        if bound and self.acts_on(gpu) and device in gpu.firmware:
            return Removed.YES
        if device.coreboots:
            return Removed.NO
        placed = device.range is not None
        return self.of_sysfb(host, gpu, device.name, device.parent, placed=placed, decodes=decodes)

    def of_sysfb(
        self,
        host: Host,
        gpu: Gpu,
        device: str,
        parent: str | None,
        *,
        placed: bool,
        decodes: bool = True,
    ) -> Removed:
        """Whether a firmware device, by its name, goes because gpu is selected; see selects()."""
        if not self.acts_on(gpu) or device.startswith(("coreboot-", "of-")):
            return Removed.NO  # the latter are not sysfb's
        return self.selects(host, gpu, parent, placed=placed, decodes=decodes)

    def selects(
        self, host: Host, gpu: Gpu, parent: str | None, *, placed: bool, decodes: bool = True
    ) -> Removed:
        """Whether a driver of gpu that calls the kernel's helper unregisters sysfb's device.

        vfio-pci calls it for class 0300, DRM drivers for any. parent is the PCI device above
        sysfb's in sysfs. placed: that draws in a BAR of a display device, so a kernel that
        gives it a parent would have given it one.
        """
        likely = self.selectors
        if parent is not None:
            likely = tuple(one for one in likely if one in _SINCE_6_5)
        elif placed:
            likely = tuple(one for one in likely if one is not _owner)
        return _agreed(one(host, gpu, parent, decodes) for one in likely or self.selectors)

    def of_text(self, host: Host, gpu: Gpu) -> Removed:
        """Whether vgacon goes when vfio-pci binds to gpu."""
        if not self.acts_on(gpu) or not gpu.boot_vga:
            return Removed.NO
        # 6.1.50 and later 6.1.y ask for the shadowed ROM beside that.
        return _agreed(
            one is not _shadowed or _shadowed(host, gpu, None, True) for one in self.selectors
        )


def _agreed(answers: Iterable[bool]) -> Removed:
    """What all rules say that the kernel may have."""
    found = set(answers)
    return Removed.MAY if len(found) > 1 else Removed.YES if found == {True} else Removed.NO


def of_kernel(host: Host) -> Removal:
    """What vfio-pci of the running kernel removes, as far as can be seen."""
    if not kernel.removes_consoles(host):
        return Removal(())
    possible = _by_release(kernel.release(host))
    helper = kernel.has_vga_helper(host) if len(possible) > 1 else None
    shown = tuple(one for one in possible if (one in _SINCE_6_5) is helper)
    return Removal(shown or possible)


def _by_release(release: tuple[int, int, int]) -> tuple[Selector, ...]:
    """The selectors of a release; of its whole series where its last number is not known."""
    at_least = [(first, selectors) for first, selectors in _BY_RELEASE if first <= release]
    found = at_least[0][1]
    if release[2] == 0 and release >= (6, 0, 0):
        for first, selectors in _BY_RELEASE:
            if first[:2] == release[:2]:
                found += tuple(one for one in selectors if one not in found)
    return found
