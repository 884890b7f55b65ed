"""The scenarios: what is booted, what is done, and what must come of it.

To add one, write one more literal; trial.py says what every scenario demands
beyond these lines. The order is the order of priority under a time budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .machine import Gpu

VGA = Gpu("VGA")  # class 0300
BOCHS = Gpu("bochs-display")  # class 0380
VIRTIO_GPU = Gpu("virtio-gpu-pci")  # class 0380
ROOT_BUS_VGA = Gpu("VGA", on_root_bus=True)

EFIFB, VESAFB, VGACON = "EFI VGA", "VESA VGA", "text"
SIMPLEDRM, EFIDRM, BOCHS_DRM = "simpledrm", "efidrm", "bochs-drm"
VIRTIO = "virtio_gpudrmfb"


class After(Enum):
    """What becomes of the host's console once the VM is gone."""

    BACK = "back"  # the monitor shows it, and it is alive
    GONE = "said to be gone"  # it is dead, and the plan and the log said so
    EITHER = "not looked at"


@dataclass(frozen=True)
class Scenario:
    """One machine and what must happen on it.

    console is what must draw on the GPU before the first run: the start of the
    framebuffer's name in /proc/fb, or "text" for vgacon. config is the YAML of
    the VM. refused is a regular expression that virsh's error must match: the
    VM must not start, and the console must not notice. With holder a process
    keeps /dev/fb0 open during that, ends, and the VM must start then. told are
    places ("plan", "log", "error") and regular expressions that must be found
    there in the first cycle. stays: so many of the last GPUs stay on the host;
    while the VM runs, the last one's monitor must show a living console, and
    without the hook a dead one. monitor is the number of the GPU whose monitor
    shows the console before and after. kind is a name in trials.py, for scenarios
    that do something else than starting and destroying one VM.
    """

    name: str
    kernel: str
    console: str
    gpus: tuple[Gpu, ...] = (VGA,)
    firmware: str = "ovmf"
    kernel_line: str = ""
    native_driver: bool = False
    config: str = ""
    hook: bool = True
    holder: bool = False
    refused: str = ""
    mapped: bool = True
    after: After = After.BACK
    told: tuple[tuple[str, str], ...] = ()
    stays: int = 0
    monitor: int = 0
    cycles: int = 2
    smoke: bool = False
    kind: str = "cycles"

    def seconds(self) -> float:
        """About how long it takes, for a time budget (two machines on two cores)."""
        return 100.0 + 35.0 * self.cycles + (30.0 if self.refused else 0.0)


GONE_SENTENCE = r"will not come back before a reboot"
TOLD_GONE = (("plan", GONE_SENTENCE), ("log", GONE_SENTENCE))
# The own kernels have the native driver as a module that is not to load by itself.
OWN = "lab.noautoload"

SCENARIOS = (
    Scenario("efifb-5.10", "5.10", EFIFB, smoke=True),
    Scenario("efifb-6.12", "6.12", EFIFB, smoke=True),
    Scenario("control-5.10", "5.10", EFIFB, hook=False, mapped=False, after=After.EITHER),
    Scenario("efifb-6.1", "6.1", EFIFB, after=After.GONE, told=TOLD_GONE, smoke=True),
    Scenario("efifb-0380", "6.12", EFIFB, gpus=(BOCHS,)),
    Scenario(
        "control-6.12-0380",
        "6.12",
        EFIFB,
        gpus=(BOCHS,),
        hook=False,
        mapped=False,
        after=After.EITHER,
    ),
    Scenario(
        "held-fb0-5.10",
        "5.10",
        EFIFB,
        holder=True,
        refused=r"fb-holder \(\d+\)",
    ),
    Scenario(
        "simpledrm-0380-refuse",
        "own-6.12",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=OWN,
        refused=r"bootfb",
    ),
    Scenario(
        "simpledrm-0380-native",
        "own-6.12",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=OWN,
        config="bootfb: native\n",
    ),
    Scenario(
        "simpledrm-0380-rescan",
        "own-6.12",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=OWN,
        config="bootfb: rescan\n",
        after=After.GONE,
        told=TOLD_GONE,
    ),
    Scenario("efidrm", "own-7", EFIDRM, gpus=(BOCHS,), kernel_line=OWN),
    Scenario("efidrm-0300", "own-7", EFIDRM, kernel_line=OWN),
    Scenario("native", "6.1", BOCHS_DRM, native_driver=True),
    Scenario("two-native", "6.1", BOCHS_DRM, gpus=(VGA, BOCHS), native_driver=True, stays=1),
    Scenario(
        "text-and-native",
        "6.1",
        VIRTIO,
        gpus=(VGA, VIRTIO_GPU),
        firmware="seabios",
        stays=1,
        monitor=1,
    ),
    Scenario(
        "control-two-native",
        "6.1",
        BOCHS_DRM,
        gpus=(VGA, BOCHS),
        native_driver=True,
        hook=False,
        stays=1,
        cycles=1,
    ),
    Scenario("two-in-one", "6.12", EFIFB, gpus=(VGA, BOCHS)),
    Scenario(
        "held-fb0-6.1",
        "6.1",
        EFIFB,
        holder=True,
        refused=r"fb-holder \(\d+\)",
        after=After.GONE,
    ),
    Scenario(
        "vesafb",
        "5.10",
        VESAFB,
        gpus=(ROOT_BUS_VGA,),
        firmware="seabios",
        kernel_line="vga=0x317",
    ),
    Scenario("vgacon", "5.10", VGACON, firmware="seabios"),
    Scenario(
        "simpledrm-0300",
        "own-6.12",
        SIMPLEDRM,
        kernel_line=OWN,
        after=After.EITHER,
    ),
)


def named(name: str) -> Scenario:
    """The scenario of that name; KeyError when there is none."""
    return {scenario.name: scenario for scenario in SCENARIOS}[name]
