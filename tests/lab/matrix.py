"""The matrix: kernels of Debian's suites with each kind of console, under their libvirt.

A cell is a scenario (cell.py). The matrix itself runs with our hook. For the comparison
the same cells run without a hook, and with the script that guides recommend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import kernels
from .architectures import AMD64
from .cache import Cache
from .scenarios import BOCHS, BOCHS_DRM, EFIFB, VGA, After, Scenario


@dataclass(frozen=True)
class Configuration:
    """A kind of machine: its name in names of scenarios, its title, and a scenario to copy."""

    name: str
    words: str
    template: Scenario


CONFIGURATIONS = (
    Configuration("efifb-0300", "efifb, class 0300", Scenario("", "", EFIFB)),
    Configuration("efifb-0380", "efifb, class 0380", Scenario("", "", EFIFB, gpus=(BOCHS,))),
    Configuration("native", "native driver", Scenario("", "", BOCHS_DRM, native_driver=True)),
    Configuration(
        "dual",
        "two GPUs, the boot one leaves",
        Scenario("", "", BOCHS_DRM, gpus=(VGA, BOCHS), native_driver=True, stays=(1,)),
    ),
)


@dataclass(frozen=True)
class Hook:
    """What is installed as libvirt's hook: its name in names of scenarios, and its title."""

    name: str
    words: str


OURS = Hook("matrix", "vfio-console-hook")
NONE = Hook("none", "no hook")
SCRIPT = Hook("script", "the script of the guides")
HOOKS = (NONE, SCRIPT, OURS)

# One kernel before vfio-pci removed consoles, one that removes those of class 0300, and
# two that look for the firmware's device.
COMPARED = ("5.10", "6.1", "6.12", "trixie-backports")
# The cells that continuous integration runs: the newest libvirt and the newest kernel.
IN_CI = ("matrix-forky-efifb-0300", "matrix-trixie-backports-dual")


@dataclass(frozen=True)
class Cell:
    """A scenario and its place in the tables."""

    kernel: str
    configuration: Configuration
    hook: Hook

    @property
    def words(self) -> str:
        """Its kernel and configuration."""
        return f"{self.kernel} {self.configuration.name}"

    def scenario(self) -> Scenario:
        """The scenario of this cell."""
        return replace(
            self.configuration.template,
            name=f"{self.hook.name}-{self.kernel}-{self.configuration.name}",
            kernel=self.kernel,
            hook=self.hook is OURS,
            script=self.hook is SCRIPT,
            after=After.EITHER,
            cycles=1,
            kind="cell",
        )


def _cells(names: Sequence[str], hooks: Sequence[Hook]) -> tuple[Cell, ...]:
    return tuple(
        Cell(kernel, configuration, hook)
        for hook in hooks
        for kernel in names
        for configuration in CONFIGURATIONS
    )


DEBIAN_KERNELS = tuple(
    kernel.name
    for kernel in kernels.KERNELS
    if not kernel.fragments and kernel.architecture is AMD64
)
MATRIX = _cells(DEBIAN_KERNELS, (OURS,))
AGAINST = _cells(COMPARED, (NONE, SCRIPT))
CELLS = {cell.scenario().name: cell for cell in (*MATRIX, *AGAINST)}
# The same, each with a rehearsal before the VM's start; the lab runs them only by name.
REHEARSED = tuple(
    replace(cell.scenario(), name=f"rehearsed-{cell.scenario().name}", kind="rehearsed-cell")
    for cell in MATRIX
)


def suite(kernel: str) -> str:
    """The suite of a kernel of the matrix."""
    return kernels.named(kernel).suites[0]


def scenarios(cells: Sequence[Cell]) -> list[Scenario]:
    """The scenarios of these cells."""
    return [cell.scenario() for cell in cells]


def offered(chosen: Sequence[Scenario], cache: Cache) -> tuple[list[Scenario], dict[str, str]]:
    """The scenarios without cells whose kernel no suite offers; those kernels and the reasons.

    Only cells are left out: the kernel of any other scenario has to exist.
    """
    missing = {
        kernel.name: why
        for kernel in kernels.KERNELS
        if any(s.kernel == kernel.name and s.name in CELLS for s in chosen)
        and (why := kernels.not_offered(cache, kernel))
    }
    return [s for s in chosen if not (s.name in CELLS and s.kernel in missing)], missing
