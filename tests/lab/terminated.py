"""A process that has the GPU open is ended if the configuration lists it."""

from __future__ import annotations

from .trial import Trial


class Terminated(Trial):
    """Without the configuration the VM is refused; with it, the process ends and the VM runs."""

    def run(self) -> None:
        """Have the VM refused, then configure and start it, each time beside the holder."""
        holder = self.scenario.holder
        assert holder is not None
        if not self.set_up():
            return
        holder.begin(self.machine)
        for number in range(1, self.scenario.cycles + 1):
            self.refused_start(number)
            self.demand(holder.left(self.machine) == holder.count, f"{holder.name} was ended")
        super().configure()
        for number in range(1, self.scenario.cycles + 1):
            if not holder.left(self.machine):
                holder.begin(self.machine)
            self.cycle(number)

    def configure(self) -> None:
        """Write nothing yet: first the VM must be refused."""

    def check_running(self, name: str) -> None:
        """The VM has the GPU, and the holder has ended."""
        super().check_running(name)
        holder = self.scenario.holder
        assert holder is not None
        self.demand(not holder.left(self.machine), f"{name}: {holder.name} runs beside the VM")
