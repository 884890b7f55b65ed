"""What every change of the machine has in common."""

from __future__ import annotations

from ..host import Host


class Action:
    """One change of the machine. apply() does nothing where it is so already."""

    kind = ""

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
