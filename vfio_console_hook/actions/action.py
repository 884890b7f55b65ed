"""What every change of the machine has in common."""

from __future__ import annotations

from ..errors import LostError
from ..machine.host import Host
from ..value import Value


def require_on_bus(host: Host, gpu: str) -> None:
    """Raise LostError if the GPU was pulled out of the PCI bus: then nothing can be undone."""
    if not host.exists(f"sys/bus/pci/devices/{gpu}"):
        raise LostError(f"{gpu} is no longer on the PCI bus")


class Action(Value):
    """One change of the machine. apply() does nothing where the change is made already."""

    kind = ""

    @property
    def concerns(self) -> str:
        """The address of the one GPU that the change is about, or ""."""
        return str(getattr(self, "gpu", ""))

    detached: bool = False
    """Whether it is done as soon as vfio-pci has the GPUs, and not only at release."""

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services that it starts."""
        return ()

    def apply(self, host: Host) -> str | None:
        """Make the change and read it back. Returns a remark for the log to add to past(), if any.

        Raises HostError, StepError or LostError.
        """
        raise NotImplementedError

    def missing(self, host: Host) -> LostError | None:
        """What is not there of what the change was to bring back, as its LostError; None if all is.

        It only looks, at once. An action that brings nothing back has nothing to miss.
        """
        return None

    def shell(self) -> str:
        """The same change as a line that root can type."""
        raise NotImplementedError

    def past(self) -> str:
        """What was done, for the log."""
        raise NotImplementedError
