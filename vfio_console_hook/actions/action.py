"""What every change of the machine has in common."""

from __future__ import annotations

from ..errors import LostError
from ..machine.host import Host


def see_on_bus(host: Host, gpu: str) -> None:
    """Raise LostError for a GPU that has been pulled out: nothing can be given back to it."""
    if not host.exists(f"sys/bus/pci/devices/{gpu}"):
        raise LostError(f"{gpu} is no longer on the PCI bus")


class Action:
    """One change of the machine. apply() does nothing where it is so already."""

    kind = ""

    @property
    def concerns(self) -> str:
        """The address of the one GPU that it is all about, "" where there is none."""
        return str(getattr(self, "gpu", ""))

    def apply(self, host: Host) -> str | None:
        """Make the change and read it back; what the log should tell besides past(), if anything.

        Raises HostError, StepError or LostError.
        """
        raise NotImplementedError

    def shell(self) -> str:
        """The same as a line that root can type."""
        raise NotImplementedError

    def past(self) -> str:
        """What has been done, for the log."""
        raise NotImplementedError
