"""Changes of the GPU as a whole: who uses it, who drives it, where its memory is."""

from __future__ import annotations

from dataclasses import dataclass

from .. import holders
from ..errors import RefusedError, StepError
from ..gpu import blocking_nodes, find
from ..host import Host
from .action import Action


@dataclass(frozen=True)
class BindNative(Action):
    """Let the GPU's own driver take over from the firmware driver, which the kernel then drops."""

    gpu: str
    modalias: str
    kind = "bind-native"

    def apply(self, host: Host) -> None:
        host.run("/sbin/modprobe", "-b", self.modalias)
        if host.link_name(f"sys/bus/pci/devices/{self.gpu}/driver") is None:
            host.write("sys/bus/pci/drivers_probe", self.gpu)
        if host.link_name(f"sys/bus/pci/devices/{self.gpu}/driver") is None:
            raise StepError(f"no driver took {self.gpu} after modprobe {self.modalias}")

    def shell(self) -> str:
        return f"modprobe -b {self.modalias} && echo {self.gpu} > /sys/bus/pci/drivers_probe"

    def past(self) -> str:
        return f"bound {self.gpu} to its own driver"


@dataclass(frozen=True)
class Rescan(Action):
    """Remove the GPU from the PCI bus and find it again, at another address in memory."""

    gpu: str
    kind = "rescan"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if host.exists(device):
            host.write(f"{device}/remove", "1")
        host.write("sys/bus/pci/rescan", "1")
        if not host.wait(lambda: host.exists(f"{device}/resource"), 5):
            raise StepError(f"{self.gpu} did not come back on the PCI bus after a rescan")

    def shell(self) -> str:
        return f"echo 1 > /sys/bus/pci/devices/{self.gpu}/remove; echo 1 > /sys/bus/pci/rescan"

    def past(self) -> str:
        return f"removed {self.gpu} from the PCI bus and found it again"


@dataclass(frozen=True)
class AwaitClosed(Action):
    """Wait until no process has the GPU's nodes open; name those that still do.

    nodes are those of its driver, such as "dev/fb0"; none means those it has when
    the step is taken. strict: a process that may not be looked into counts too.
    """

    gpu: str
    nodes: tuple[str, ...]
    wait_s: float
    strict: bool
    kind = "await-closed"

    def apply(self, host: Host) -> None:
        def closed() -> bool:
            holding = holders.find(host, self.nodes or blocking_nodes(find(host, (self.gpu,))[0]))
            found[:] = [one for one in holding if one.pid or self.strict]
            return not found

        found: list[holders.Holder] = []
        if not host.wait(closed, self.wait_s):
            who = ", ".join(str(holder) for holder in found)
            raise RefusedError(
                f"{self.gpu} is in use by {who}",
                hint="stop what is named, or raise `holders: {wait_s: N}`",
            )

    def shell(self) -> str:
        return f"# wait up to {self.wait_s:g} s until nobody has {self._what()} open"

    def _what(self) -> str:
        return " or ".join(f"/{node}" for node in self.nodes) or "its nodes"

    def past(self) -> str:
        return f"nobody has {self._what()} open"
