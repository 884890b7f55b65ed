"""Unloading modules instead of unbinding their driver, and loading them again: for NVIDIA."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine import console, holders, modules, nodes, power
from ..machine.gpu import gpus_among
from ..machine.host import Host
from ..machine.pci import is_vfio
from .action import Action
from .console_moves import LeaveFramebuffers
from .native import VFIO, bound_driver, clear_reservation, driver_override, reset

_PCI = "sys/bus/pci"
_MODPROBE = "/sbin/modprobe"
# modprobe -r goes on with what nothing needs any more (kmod, rmmod_do_module): with nvidia.
_RMMOD = "/sbin/rmmod"


@dataclass(frozen=True, eq=False, repr=False)
class Reserve(Action):
    """Let only vfio-pci bind to the GPU from now on, whichever modules are loaded.

    A program that wants the GPU may load the driver again (nvidia-modprobe), and the
    kernel would bind it before libvirt binds vfio-pci.
    """

    gpu: str
    kind = "reserve"

    def apply(self, host: Host) -> None:
        if is_vfio(host, self.gpu) or driver_override(host, self.gpu):
            return
        # A driver binds to what is reserved for it as soon as it is loaded (Linux dd.c,
        # driver_attach), and libvirt does not re-attach what it found bound already.
        if not host.exists(f"{_PCI}/drivers/{VFIO}"):
            host.run(_MODPROBE, "-b", VFIO)
        host.write(f"{_PCI}/devices/{self.gpu}/driver_override", VFIO)
        if driver_override(host, self.gpu) != VFIO:
            raise StepError(f"driver_override of {self.gpu} is not {VFIO} after writing it")

    def shell(self) -> str:
        return f"modprobe {VFIO}; echo {VFIO} > /{_PCI}/devices/{self.gpu}/driver_override"

    def past(self) -> str:
        return f"reserved {self.gpu} for {VFIO}"


@dataclass(frozen=True, eq=False, repr=False)
class Unreserve(Action):
    """Let any driver bind to the GPU again, unless vfio-pci is bound to it."""

    gpu: str
    kind = "unreserve"

    def apply(self, host: Host) -> None:
        clear_reservation(host, self.gpu)

    def shell(self) -> str:
        return f"echo > /{_PCI}/devices/{self.gpu}/driver_override"

    def past(self) -> str:
        return f"allowed any driver to bind to {self.gpu} again"


@dataclass(frozen=True, eq=False, repr=False)
class FreeFramebuffers(Action):
    """Unbind fbcon if a console is still on one of these framebuffers.

    If the consoles have moved to one that stays, nothing is done.
    """

    framebuffers: tuple[str, ...]
    kind = "free-framebuffers"

    def apply(self, host: Host) -> None:
        here = [fb for fb in console.framebuffers(host) if fb.name in self.framebuffers]
        mapped = [host.console_map(fb.name) for fb in here]
        # A framebuffer without a node cannot be asked: it counts as having consoles.
        if any(indices is None or fb.index in indices for fb, indices in zip(here, mapped)):
            LeaveFramebuffers().apply(host)

    def shell(self) -> str:
        return LeaveFramebuffers().shell()

    def past(self) -> str:
        return f"moved the consoles off {' and '.join(self.framebuffers)}"


@dataclass(frozen=True, eq=False, repr=False)
class UnloadModules(Action):
    """Unload modules, each once and in this order, which unbinds their driver from all its GPUs.

    gpus are those that leave. An unload that fails is not tried again.
    """

    gpus: tuple[str, ...]
    modules: tuple[str, ...]
    kind = "unload-modules"

    def apply(self, host: Host) -> str:
        remark = ""
        for module in self.modules:
            if not modules.loaded(host, module):
                continue
            if module == self.modules[-1] and not modules.references(host, module):
                from . import usage_count  # only for nvidia

                remark = usage_count.require_none(host, self._bound(host), f"unloading {module}")
            try:
                host.run(_RMMOD, module)
            except HostError as error:
                raise StepError(
                    f"{module} cannot be unloaded, {self._users(host, module)}: {error.text}",
                    hint="stop what uses it; `lsof /dev/nvidia* /dev/dri/*` may show more",
                ) from error
            if modules.loaded(host, module):
                raise StepError(f"{module} is still loaded after `rmmod {module}`")
        return remark

    def _bound(self, host: Host) -> list[str]:
        """The GPUs that the driver still has."""
        return [one for one in self.gpus if bound_driver(host, one) and not is_vfio(host, one)]

    def _users(self, host: Host, module: str) -> str:
        """What uses a module, as a clause; looks at all processes."""
        held = holders.holders_of(host, nodes.nodes_to_close(host, gpus_among(host, self.gpus)))
        usage = modules.usage(host, module)
        return f"{usage}; {holders.listed(held)}" if held else usage

    def shell(self) -> str:
        return f"rmmod {' '.join(self.modules)}"

    def past(self) -> str:
        return f"unloaded {', '.join(self.modules)}"


@dataclass(frozen=True, eq=False, repr=False)
class LoadModules(Action):
    """Load modules in this order, with the options from modprobe's configuration.

    gpus are the GPUs that they drive, reserved those of them that Reserve was done to. reset:
    whether the GPUs are reset once if the first module finds none of them.
    """

    gpus: tuple[str, ...]
    reserved: tuple[str, ...]
    modules: tuple[str, ...]
    reset: bool = False
    kind = "load-modules"

    def apply(self, host: Host) -> None:
        for gpu in self.reserved:
            clear_reservation(host, gpu)
        # nvidia does not load without a GPU to drive (nv.c, nvidia_init_module: ENODEV).
        if all(is_vfio(host, gpu) or not host.exists(f"{_PCI}/devices/{gpu}") for gpu in self.gpus):
            raise LostError(f"{self.modules[0]} is not loaded again: there is no GPU left for it")
        for module in self.modules:
            if modules.loaded(host, module):
                continue
            self._load(host, module)
            if not modules.loaded(host, module):
                raise StepError(f"{module} is not loaded after `modprobe {module}`")

    def _load(self, host: Host, module: str) -> None:
        """Load a module. Raises HostError, and LostError where its GPU does not answer."""
        try:
            host.run(_MODPROBE, module)
        except HostError as error:
            if module != self.modules[0] or os.strerror(errno.ENODEV) not in error.text:
                raise
            # A guest has left the GPU so that its probe fails.
            done = [reset(host, gpu) for gpu in self.gpus] if self.reset else []
            if any(done):
                host.run(_MODPROBE, module)
                return
            if not any(power.is_silent(host, gpu) for gpu in self.gpus):
                raise
            raise LostError(f"{module} is not loaded again: {error.text}") from error

    def missing(self, host: Host) -> LostError | None:
        left = [one for one in self.modules if not modules.loaded(host, one)]
        if not left:
            return None
        are = "is" if len(left) == 1 else "are"
        return LostError(f"{', '.join(left)} {are} not loaded again", hint=f"try `{self.shell()}`")

    def shell(self) -> str:
        clear = [f"echo > /{_PCI}/devices/{gpu}/driver_override" for gpu in self.reserved]
        return "; ".join([*clear, *(f"modprobe {module}" for module in self.modules)])

    def past(self) -> str:
        are = "is" if len(self.modules) == 1 else "are"
        return f"made sure that {', '.join(self.modules)} {are} loaded"
