"""Modules unloaded instead of unbinding their driver, and loaded again: NVIDIA's own driver."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HostError, LostError, StepError
from ..machine import console, modules
from ..machine.gpu import gpus_among, is_vfio
from ..machine.host import Host
from .action import Action
from .consoles import LeaveFramebuffers
from .native import VFIO, override_of, take_back

_PCI = "sys/bus/pci"
_MODPROBE = "/sbin/modprobe"


@dataclass(frozen=True)
class Reserve(Action):
    """Let only vfio-pci take the GPU from now on, whatever is loaded meanwhile.

    A program that asks for the GPU may make modprobe load the driver again
    (nvidia-modprobe), and the kernel would give it the GPU before libvirt comes.
    """

    gpu: str
    kind = "reserve"

    def apply(self, host: Host) -> None:
        if is_vfio(host, self.gpu) or override_of(host, self.gpu):
            return
        # A driver takes what is reserved for it as soon as it is loaded (Linux dd.c,
        # driver_attach), and libvirt does not give back what it found bound already.
        if not host.exists(f"{_PCI}/drivers/{VFIO}"):
            host.run(_MODPROBE, "-b", VFIO)
        host.write(f"{_PCI}/devices/{self.gpu}/driver_override", VFIO)
        if override_of(host, self.gpu) != VFIO:
            raise StepError(f"driver_override of {self.gpu} does not keep {VFIO}")

    def shell(self) -> str:
        return f"modprobe {VFIO}; echo {VFIO} > /{_PCI}/devices/{self.gpu}/driver_override"

    def past(self) -> str:
        return f"reserved {self.gpu} for {VFIO}"


@dataclass(frozen=True)
class Unreserve(Action):
    """Let any driver take the GPU again, if vfio-pci has not got it yet."""

    gpu: str
    kind = "unreserve"

    def apply(self, host: Host) -> None:
        take_back(host, self.gpu)

    def shell(self) -> str:
        return f"echo > /{_PCI}/devices/{self.gpu}/driver_override"

    def past(self) -> str:
        return f"let any driver have {self.gpu} again"


@dataclass(frozen=True)
class FreeFramebuffers(Action):
    """Unbind fbcon if a console is still on one of these framebuffers.

    Where the consoles have moved to one that stays, there is nothing to do.
    """

    framebuffers: tuple[str, ...]
    kind = "free-framebuffers"

    def apply(self, host: Host) -> None:
        here = [fb for fb in console.framebuffers(host) if fb.name in self.framebuffers]
        mapped = [host.console_map(fb.name) for fb in here]
        # Without a node nobody can be asked: then they count as being on it.
        if any(indices is None or fb.index in indices for fb, indices in zip(here, mapped)):
            LeaveFramebuffers().apply(host)

    def shell(self) -> str:
        return LeaveFramebuffers().shell()

    def past(self) -> str:
        return f"took the consoles off {' and '.join(self.framebuffers)}"


@dataclass(frozen=True)
class UnloadModules(Action):
    """Unload modules, each once and in this order, which takes their driver off all its GPUs.

    gpus are those that leave. An unload that is refused is believed: nothing is
    tried a second time.
    """

    gpus: tuple[str, ...]
    modules: tuple[str, ...]
    kind = "unload-modules"

    def apply(self, host: Host) -> None:
        for module in self.modules:
            # modprobe has taken along what nothing else needs (kmod, rmmod_do_module).
            if not modules.loaded(host, module):
                continue
            try:
                host.run(_MODPROBE, "-r", module)
            except HostError as error:
                raise StepError(
                    f"{module} cannot be unloaded, {self._why(host, module)}: {error.text}",
                    hint="stop what uses it; `lsof /dev/nvidia* /dev/dri/*` may tell more",
                ) from error
            if modules.loaded(host, module):
                raise StepError(f"{module} is still loaded after `modprobe -r {module}`")

    def _why(self, host: Host, module: str) -> str:
        # Only after a failure: it looks at all processes.
        from ..machine import holders, nodes

        held = holders.holders_of(host, nodes.nodes_to_close(host, gpus_among(host, self.gpus)))
        told = [holders.listed(held)] if held else []
        return "; ".join([modules.usage(host, module), *told])

    def shell(self) -> str:
        return f"modprobe -r {' '.join(self.modules)}"

    def past(self) -> str:
        return f"unloaded {', '.join(self.modules)}"


@dataclass(frozen=True)
class LoadModules(Action):
    """Load modules in this order, with the options that the administrator gave them.

    gpus are those that they are for, reserved those of them that Reserve was done to.
    """

    gpus: tuple[str, ...]
    reserved: tuple[str, ...]
    modules: tuple[str, ...]
    kind = "load-modules"

    def apply(self, host: Host) -> None:
        for gpu in self.reserved:
            take_back(host, gpu)
        # nvidia does not load without a GPU to drive (nv.c, nvidia_init_module: ENODEV).
        if all(is_vfio(host, gpu) or not host.exists(f"{_PCI}/devices/{gpu}") for gpu in self.gpus):
            raise LostError(f"{self.modules[0]} is not loaded again: there is no GPU left for it")
        for module in self.modules:
            if modules.loaded(host, module):
                continue
            host.run(_MODPROBE, module)
            if not modules.loaded(host, module):
                raise StepError(f"{module} is not loaded after `modprobe {module}`")

    def shell(self) -> str:
        clear = [f"echo > /{_PCI}/devices/{gpu}/driver_override" for gpu in self.reserved]
        return "; ".join([*clear, *(f"modprobe {module}" for module in self.modules)])

    def past(self) -> str:
        return f"loaded {', '.join(self.modules)} again"
