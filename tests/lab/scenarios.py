"""The scenarios: what is booted, what is done, and what must result.

To add one, write one more literal; trial.py has the demands of every scenario.
The order is the order of priority under a time budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from .holder import Holder, Reservation
from .kernels import KERNELS
from .machine import Gpu

T = TypeVar("T")

VGA = Gpu("VGA")  # class 0300
BOCHS = Gpu("bochs-display")  # class 0380
BOCHS_WITH_SOUND = Gpu("bochs-display", sound=True)
# Its firmware framebuffer fills BAR 0: 2048 x 2048 pixels of 4 bytes.
BOCHS_FILLED = Gpu("bochs-display,vgamem=16M,xres=2048,yres=2048")
VIRTIO_GPU = Gpu("virtio-gpu-pci")  # class 0380
VGA_WITH_SOUND = Gpu("VGA", sound=True)
VGA_CARD = Gpu("VGA", sound=True, usb=True)
ROOT_BUS_VGA = Gpu("VGA", on_root_bus=True)

EFIFB, VESAFB, VGACON = "EFI VGA", "VESA VGA", "text"
SIMPLEDRM, EFIDRM, BOCHS_DRM = "simpledrm", "efidrm", "bochs-drm"
VIRTIO = "virtio_gpudrmfb"
AMDGPU, I915, NVIDIA_DRM = "amdgpudrmfb", "i915drmfb", "nvidia-drmdrmfb"


class After(Enum):
    """The host's console after the VM."""

    BACK = "back"  # the monitor shows it, and it is alive
    GONE = "gone, announced"  # it is dead, as the plan and the log have announced
    EITHER = "not demanded"


@dataclass(frozen=True)
class Scenario:
    """One machine and what must happen on it.

    console is what must draw on the GPU before the first run: the start of the
    framebuffer's name in /proc/fb, or of its driver's where the kernel has no fb
    devices (trial.CONSOLE), or "text" for vgacon. config is the YAML of
    the VM. refused is a regular expression that virsh's error must match: the
    VM must not start, and the console must not change. The processes of holder
    run during that; after they have ended the VM must start. texts are places
    ("plan", "log", "error") and regular expressions that must match there in the
    first cycle. stays are the numbers of the GPUs that stay on the host; while the VM
    runs, the last one's monitor must show a console that is alive, or dead if
    alive_meanwhile is False. rom_shadowed is whether the kernel must have marked
    the ROM of the VM's GPU as shadowed. monitor is the number of the GPU whose monitor
    shows the console before and after. recorded is the NAME of tests/machines/recorded-NAME.tree,
    for a scenario that leaves this snapshot and the output of commands with it. kind
    is a name in trials.py, for scenarios that do something other than starting and
    destroying one VM. script is for the comparison: instead of the program, the script
    that guides recommend is libvirt's hook (guest/generic-hook.sh); then hook is False.
    stand_ins are names of modules in stand-ins/ that the kernel gets. root is the name of a
    variant of the kernel's root (images.VARIANTS).
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
    script: bool = False
    holder: Holder | None = None
    refused: str = ""
    mapped: bool = True
    after: After = After.BACK
    texts: tuple[tuple[str, str], ...] = ()
    stays: tuple[int, ...] = ()
    alive_meanwhile: bool = True
    rom_shadowed: bool | None = None
    monitor: int = 0
    recorded: str = ""
    cycles: int = 2
    smoke: bool = False
    kind: str = "cycles"
    stand_ins: tuple[str, ...] = ()
    root: str = ""
    memory_mib: int = 2048

    def seconds(self) -> float:
        """An estimate of its duration for a time budget (two machines on two cores)."""
        calls = 1800.0 if self.stays else 400.0  # consoles that move are 63 more
        kinds = {"newcomer": 300.0, "killed-probe": 900.0, "every-call": calls * self.cycles}
        kinds["started"] = 1200.0
        kinds |= {"rehearsed": 60.0 * self.cycles, "rehearsal-killed": 900.0}
        kinds |= {"nvidia-two": 150.0, "nvidia-counted": 120.0}
        more = kinds.get(self.kind, 0.0)
        more += 400.0 if self.firmware == "u-boot" else 0.0  # a VM of arm64 in arm64
        return 100.0 + 35.0 * self.cycles + (30.0 if self.refused else 0.0) + more


def leaving(scenario: Scenario, gpus: Sequence[T]) -> tuple[T, ...]:
    """The GPUs that the VM gets, of all GPUs in the order of the scenario."""
    return tuple(gpu for number, gpu in enumerate(gpus) if number not in scenario.stays)


GONE_SENTENCE = r"will not come back before a reboot"
LOSS_ANNOUNCED = (("plan", GONE_SENTENCE), ("log", GONE_SENTENCE))
# The native driver is a module that is not loaded automatically.
NOAUTOLOAD = "lab.noautoload"
NVIDIA = ("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm")
# nvidia then leaves the firmware's console alone.
WITHOUT_FB = "nvidia_drm.fbdev=0"
FB_HOLDER = Holder("fb-holder", "/dev/fb0")
CARD_HOLDER = Holder("card-holder", "/dev/dri/card0")
# On the GPU that stays, of two. One with its card open would be master there, and the console
# could set no mode (drm_fb_helper_set_par).
STAYING = (Holder("compute", "/dev/nvidia1"), Holder("draws", "/dev/dri/renderD129"))
MIXER = Holder("mixer", "/dev/snd/controlC0")
NAMED_FB_HOLDER = r"fb-holder \(\d+\)"
# Nothing is drawn on the consoles, so that fbcon has no reason to take them over.
QUIET = (
    "quiet loglevel=0 systemd.show_status=false"
    " vt.global_cursor_default=0"
)
# The loss of the host's GPU when another GPU leaves, and the remedies.
OTHERS_CONSOLE = r"(?s)the host's console on \S+ would be gone until a reboot.*bochs.*keep_console"


def _killed(kernel: str) -> Scenario:
    return Scenario(
        f"killed-{kernel}",
        kernel,
        BOCHS_DRM,
        native_driver=True,
        holder=FB_HOLDER,
        config="services:\n  - lab-service\nholders:\n  wait_s: 60\ntimeout_s: 120\n",
        kind="killed",
        cycles=12,
    )


def _apparmor(name: str, kernel: str, root: str = "") -> Scenario:
    """libvirtd confined by the profile of its package, and a service to stop."""
    return Scenario(
        name,
        kernel,
        EFIFB,
        gpus=(BOCHS,),
        kernel_line="apparmor=1",
        holder=FB_HOLDER,
        refused=NAMED_FB_HOLDER,
        config="services:\n  - lab-service\nholders:\n  wait_s: 10\n",
        kind="apparmor",
        root=root,
    )


SHAPED = tuple(
    kernel.name
    for kernel in KERNELS
    if "distribution" in kernel.fragments and not kernel.name.startswith("own-")
)


def _simpledrm(name: str, kernel: str, gpu: Gpu = VGA) -> Scenario:
    """One GPU without a native driver, whose console is lost.

    Class 0380 needs no configuration for its BOOTFB: vmwgfx is a module of the kernel.
    """
    probe = () if gpu is VGA else (("plan", r"vmwgfx"),)
    return Scenario(
        name,
        kernel,
        SIMPLEDRM,
        gpus=(gpu,),
        kernel_line=NOAUTOLOAD,
        after=After.GONE,
        texts=(*LOSS_ANNOUNCED, *probe),
    )


def _native(name: str, kernel: str) -> Scenario:
    """One GPU with its native driver."""
    return Scenario(name, kernel, BOCHS_DRM, native_driver=True)


def _boot_gpu_leaves(name: str, kernel: str) -> Scenario:
    """Two GPUs with native drivers; the one with the consoles leaves."""
    return replace(_native(name, kernel), gpus=(VGA, BOCHS), stays=(1,))


def _prompt(kernel: str) -> Scenario:
    """A refusal at the login prompt, and the command that is told of it."""
    return replace(
        _native(f"prompt-{kernel}", kernel),
        holder=FB_HOLDER,
        config="on_refusal: /usr/local/sbin/told\nholders:\n  wait_s: 1\n",
        kind="prompt",
    )


def _kmscon(scenario: Scenario) -> Scenario:
    """The same beside kmscon, which has all cards open."""
    return replace(
        scenario,
        kind="kmscon",
        texts=(
            ("plan", r"kmscon on tty1 has\s+the\s+GPU\s+open"),
            ("log", r"stopped kmsconvt@tty1\.service"),
            ("log", r"asked systemd to start kmsconvt@tty1\.service"),
        ),
    )


def _second_leaves(name: str, kernel: str) -> Scenario:
    """Two GPUs with native drivers; the one without the consoles leaves."""
    return replace(_native(name, kernel), gpus=(VGA, BOCHS), stays=(0,), kind="untouched")


def _overlapping(name: str, kernel: str) -> Scenario:
    """Three GPUs with native drivers, of which two leave with a VM each."""
    gpus = (VGA, BOCHS, BOCHS)
    return replace(_native(name, kernel), gpus=gpus, stays=(1, 2), kind="overlapping")


def _without_hook(name: str, of: Scenario) -> Scenario:
    """A control: what the same machine does without the program, in one cycle."""
    return replace(of, name=name, hook=False, alive_meanwhile=not of.stays, cycles=1, kind="cycles")


def _of_shape(kernel: str) -> tuple[Scenario, ...]:
    """What must work on every kernel with the options of a distribution."""
    return (
        _boot_gpu_leaves(f"dual-boot-leaves-{kernel}", kernel),
        _simpledrm(f"simpledrm-0380-{kernel}", kernel, BOCHS),
        _native(f"native-{kernel}", kernel),
        _simpledrm(f"simpledrm-0300-{kernel}", kernel),
        _second_leaves(f"dual-second-leaves-{kernel}", kernel),
    )


def _nvidia() -> tuple[Scenario, ...]:
    """NVIDIA's four modules, with a framebuffer of their own; nvidia.py has what is done."""
    one = Scenario("nvidia", "6.12", NVIDIA_DRM, kind="nvidia", stand_ins=NVIDIA)
    counted = r"nvidia counts a user of 0000:01:00\.0 although nothing has it open"
    return (
        one,
        replace(
            one,
            name="nvidia-daemon",
            kernel="6.1",
            config="services:\n  - nvidia-persistenced\n",
            kind="nvidia-daemon",
        ),
        replace(one, name="nvidia-counted", refused=counted, kind="nvidia-counted"),
        replace(
            one,
            name="nvidia-two",
            gpus=(VGA, VGA),
            stays=(1,),
            config="timeout_s: 40\n",
            kind="nvidia-two",
        ),
        replace(one, name="every-call-nvidia", kind="every-call", cycles=1),
        replace(one, name="control-nvidia", hook=False, kind="nvidia-control", cycles=1),
    )


def _stand_ins() -> tuple[Scenario, ...]:
    """Stand-ins for the drivers that users have; stand-ins/ says how each behaves."""
    return (
        Scenario(
            "amdgpu-desktop",
            "6.1",
            AMDGPU,
            kernel_line="lab.desktop",
            config="services:\n  - display-manager\n",
            kind="desktop",
            stand_ins=("amdgpu",),
        ),
        Scenario("amdgpu", "6.12", AMDGPU, stand_ins=("amdgpu",)),
        Scenario("i915", "6.12", I915, gpus=(BOCHS,), stand_ins=("i915",)),
        # The hook's SIGKILL ends the wait, and the removal goes on.
        Scenario(
            "i915-never-idle",
            "6.12",
            I915,
            gpus=(BOCHS,),
            kernel_line="i915.parks_ms=0",
            config="timeout_s: 20\n",
            refused=r"timed out after",
            kind="hangs",
            stand_ins=("i915",),
        ),
        *_nvidia(),
    )


def _desktop(name: str, kind: str, gpus: tuple[Gpu, ...], config: str = "") -> Scenario:
    """A Wayland desktop on native drivers; of two GPUs the second one leaves."""
    return replace(
        _native(name, "6.12"),
        gpus=gpus,
        stays=(0,) if gpus[1:] else (),
        config=config,
        kind=kind,
        root="sway",
    )


STOP_DESKTOP = "services:\n  - display-manager\n"


def _whole(name: str) -> Scenario:
    """A whole desktop of Debian's on one GPU."""
    scenario = _desktop(name, name, (VGA_WITH_SOUND,), STOP_DESKTOP)
    return replace(scenario, root=name, memory_mib=4096)


def _whole_beside(name: str, root: str) -> Scenario:
    """A whole desktop on two GPUs, without configuration; the second one leaves."""
    scenario = _desktop(name, name, (VGA, BOCHS_WITH_SOUND))
    return replace(scenario, root=root, memory_mib=4096)


DESKTOPS = (
    _desktop("sway-beside", "wayland-beside", (VGA, BOCHS_WITH_SOUND)),
    replace(_desktop("kwin-told", "wayland-told", (VGA, BOCHS_WITH_SOUND)), root="kwin"),
    _desktop("sway", "wayland", (VGA_WITH_SOUND,), STOP_DESKTOP),
    _desktop("sway-inside", "wayland-inside", (VGA_WITH_SOUND,), STOP_DESKTOP),
    _desktop("sway-notified", "notified", (VGA_WITH_SOUND,)),
    _whole("gnome"),
    _whole("plasma"),
    _whole_beside("gnome-beside", "gnome"),
    _whole_beside("plasma-beside", "plasma"),
    replace(
        _whole_beside("plasma-listed", "plasma"), gpus=(VGA_WITH_SOUND, BOCHS), stays=(1,)
    ),
    _desktop("sway-both", "wayland-both", (VGA, BOCHS_WITH_SOUND)),
    _desktop(
        "sway-detached",
        "wayland-detached",
        (VGA, BOCHS_WITH_SOUND),
        "services:\n  - name: display-manager\n    start_again: detached\n",
    ),
    _desktop("sway-outlives", "wayland-outlives", (VGA_WITH_SOUND,), STOP_DESKTOP),
    replace(_desktop("sway-terminate", "wayland-terminate", (VGA_WITH_SOUND,)), cycles=4),
)


SCENARIOS = (
    Scenario("efifb-5.10", "5.10", EFIFB, smoke=True),
    Scenario("efifb-6.12", "6.12", EFIFB, smoke=True),
    Scenario("efifb-6.1", "6.1", EFIFB, after=After.GONE, texts=LOSS_ANNOUNCED, smoke=True),
    replace(_boot_gpu_leaves("dual-boot-leaves", "6.1"), kind="moved"),
    Scenario(
        "holder-card",
        "6.1",
        BOCHS_DRM,
        native_driver=True,
        holder=CARD_HOLDER,
        refused=r"card-holder \(\d+\)",
        config="holders:\n  wait_s: 1\n  terminate: [card-holder]\n",
        kind="terminated",
    ),
    Scenario(
        "second-vga-leaves",
        "6.1",
        EFIFB,
        gpus=(VGA, ROOT_BUS_VGA),
        stays=(0,),
        rom_shadowed=True,
        refused=OTHERS_CONSOLE,
    ),
    _second_leaves("dual-second-leaves-6.12", "6.12"),
    Scenario(
        "dual-boot-leaves-efifb-6.12",
        "6.12",
        EFIFB,
        gpus=(VGA, VIRTIO_GPU),
        stays=(1,),
    ),
    Scenario(
        "old-distro",
        "5.10",
        EFIFB,
        holder=replace(FB_HOLDER, count=30),
        refused=NAMED_FB_HOLDER,
    ),
    Scenario(
        "dual-bios",
        "6.1",
        VIRTIO,
        gpus=(VGA, VIRTIO_GPU),
        firmware="seabios",
        stays=(1,),
        monitor=1,
        recorded="two-gpus-bios-6.1",
        kind="rebound",
    ),
    Scenario("qemu.d", "6.12", EFIFB, kind="dropin"),
    Scenario("packaged-6.12", "6.12", EFIFB, kind="packaged", cycles=3),
    Scenario("packaged-6.1", "6.1", EFIFB, gpus=(BOCHS,), kind="packaged", cycles=3),
    Scenario("packaged-forky", "forky", EFIFB, kind="packaged", cycles=3),
    Scenario(
        "second-vga-never",
        "6.1",
        EFIFB,
        gpus=(VGA, ROOT_BUS_VGA),
        stays=(0,),
        rom_shadowed=True,
        config="keep_console: never\n",
        alive_meanwhile=False,
        after=After.GONE,
        texts=LOSS_ANNOUNCED,
    ),
    Scenario(
        "dual-boot-leaves-efifb-5.10",
        "5.10",
        EFIFB,
        gpus=(VGA, VIRTIO_GPU),
        stays=(1,),
    ),
    Scenario(
        "second-vga-harmless",
        "6.1",
        EFIFB,
        gpus=(VGA, VGA),
        stays=(0,),
        rom_shadowed=False,
        kind="untouched",
    ),
    Scenario(
        "second-vga-load",
        "6.1",
        EFIFB,
        gpus=(VGA, ROOT_BUS_VGA),
        kernel_line=NOAUTOLOAD,
        stays=(0,),
        rom_shadowed=True,
        config="host_driver: load\n",
    ),
    _second_leaves("dual-second-leaves-6.1", "6.1"),
    Scenario(
        "desktop",
        "6.1",
        BOCHS_DRM,
        native_driver=True,
        kernel_line="lab.desktop",
        config="services:\n  - display-manager\n",
        kind="desktop",
    ),
    _apparmor("apparmor", "6.1"),
    Scenario("two-vms", "6.12", BOCHS_DRM, native_driver=True, kind="two-vms"),
    _overlapping("overlapping", "6.12"),
    _killed("6.12"),
    replace(_killed("6.12"), name="virtqemud", root="virtqemud", kind="virtqemud", cycles=6),
    # That of bookworm has AppArmor 3, that of trixie 4.1.
    _apparmor("apparmor-4", "6.12", root="apparmor-trixie"),
    _apparmor("apparmor-5", "forky", root="apparmor-sid"),
    Scenario("every-call-6.12", "6.12", EFIFB, kind="every-call"),
    Scenario(
        "held-sound",
        "6.1",
        BOCHS_DRM,
        gpus=(VGA_WITH_SOUND,),
        native_driver=True,
        holder=MIXER,
        refused=r"mixer \(\d+\)",
        kind="sound",
    ),
    replace(_native("no-program", "6.12"), gpus=(VGA_WITH_SOUND,), kind="no-program"),
    replace(
        _native("sound-server", "6.12"), gpus=(VGA_WITH_SOUND,), cycles=3, kind="sound-server"
    ),
    Scenario(
        "stuck",
        "6.1",
        BOCHS_DRM,
        gpus=(VGA_WITH_SOUND,),
        native_driver=True,
        config="timeout_s: 20\n",
        kind="stuck",
        cycles=1,
    ),
    Scenario("by-hand", "6.12", EFIFB, gpus=(VGA_CARD,), kind="by-hand"),
    Scenario(
        "rehearsed-efifb-6.1",
        "6.1",
        EFIFB,
        after=After.GONE,
        texts=LOSS_ANNOUNCED,
        kind="rehearsed",
    ),
    replace(_native("rehearsed-native", "6.1"), kind="rehearsed"),
    Scenario("opened-6.1", "6.1", EFIFB, gpus=(BOCHS,), kind="opened"),
    Scenario("opened-6.12", "6.12", EFIFB, gpus=(BOCHS_WITH_SOUND,), kind="opened"),
    Scenario("loss", "6.12", BOCHS_DRM, native_driver=True, kind="loss"),
    _prompt("6.1"),
    _kmscon(_native("kmscon", "forky")),
    Scenario("unprivileged", "6.12", EFIFB, kind="unprivileged", cycles=1),
    Scenario(
        "newcomer",
        "6.12",
        EFIFB,
        holder=FB_HOLDER,
        recorded="efifb-6.12",
        kind="newcomer",
    ),
    Scenario(
        "control-held-sound",
        "6.1",
        BOCHS_DRM,
        gpus=(VGA_WITH_SOUND,),
        native_driver=True,
        hook=False,
        holder=MIXER,
        kind="sound",
        cycles=1,
    ),
    Scenario("control-5.10", "5.10", EFIFB, hook=False, mapped=False, after=After.EITHER),
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
        "simpledrm-0380-refuse",
        "own-6.12",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=NOAUTOLOAD,
        refused=r"bootfb",
    ),
    replace(
        _simpledrm("dual-aperture", "ubuntu-6.12", BOCHS),
        gpus=(BOCHS, VIRTIO_GPU),
        kernel_line="",
        stays=(1,),
    ),
    replace(
        _simpledrm("simpledrm-0302", "ubuntu-6.12", BOCHS),
        kernel_line="",
        stand_ins=("class_0302",),
    ),
    # Here the unbind of simpledrm is enough, and the console comes back.
    *(
        replace(
            _simpledrm(f"bootfb-fills-bar-{kernel}", kernel, BOCHS_FILLED),
            after=After.BACK,
            texts=(),
        )
        for kernel in ("ubuntu-6.12", "fedora-7")
    ),
    replace(
        _without_hook(
            "control-bootfb-fills-bar", _simpledrm("", "ubuntu-6.12", BOCHS_FILLED)
        ),
        mapped=False,
        after=After.BACK,
    ),
    _simpledrm("simpledrm-0380-6.1", "own-6.1", BOCHS),
    # The kills have removed BOOTFB before the first cycle.
    replace(_simpledrm("killed-probe", "ubuntu-6.12", BOCHS), kind="killed-probe", texts=()),
    Scenario(
        "simpledrm-0380-native",
        "own-6.12",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=NOAUTOLOAD,
        config="bootfb: native\n",
    ),
    Scenario(
        "simpledrm-0380-rescan",
        "own-6.12",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=NOAUTOLOAD,
        config="bootfb: rescan\n",
        after=After.GONE,
        texts=LOSS_ANNOUNCED,
    ),
    Scenario(
        "reserved-0380-rescan",
        "own-6.12",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=NOAUTOLOAD,
        config="bootfb: rescan\n",
        after=After.GONE,
        texts=LOSS_ANNOUNCED,
        kind="reserved",
    ),
    Scenario("efidrm", "own-7", EFIDRM, gpus=(BOCHS,), kernel_line=NOAUTOLOAD),
    Scenario("efidrm-0300", "own-7", EFIDRM, kernel_line=NOAUTOLOAD),
    _native("native", "6.1"),
    *(scenario for kernel in SHAPED for scenario in _of_shape(kernel)),
    *(_overlapping(f"overlapping-{kernel}", kernel) for kernel in ("fedora-6.12", "fedora-7")),
    _without_hook(
        "control-dual-boot-leaves-fedora-6.12", _boot_gpu_leaves("", "fedora-6.12")
    ),
    # The native driver removes vgacon, the (S) driver: nothing takes the consoles back.
    replace(
        _boot_gpu_leaves("dual-bios-fedora-6.12", "fedora-6.12"),
        firmware="seabios",
        alive_meanwhile=False,
        texts=(("plan", r"until\s+then no monitor shows them"),),
    ),
    *(
        replace(_boot_gpu_leaves(f"quiet-{kernel}", kernel), kernel_line=QUIET, kind="quiet")
        for kernel in ("fedora-6.12", "fedora-7")
    ),
    Scenario("beside-nvidia-6.12", "6.12", EFIFB, kernel_line=WITHOUT_FB, stand_ins=NVIDIA),
    Scenario(
        "beside-nvidia-6.1",
        "6.1",
        EFIFB,
        kernel_line=WITHOUT_FB,
        stand_ins=NVIDIA,
        after=After.GONE,
        texts=LOSS_ANNOUNCED,
    ),
    Scenario(
        "beside-nvidia-simpledrm",
        "ubuntu-6.12",
        SIMPLEDRM,
        kernel_line=WITHOUT_FB,
        stand_ins=NVIDIA,
        after=After.GONE,
        texts=LOSS_ANNOUNCED,
    ),
    _without_hook("control-dual-boot-leaves", _boot_gpu_leaves("", "6.1")),
    Scenario(
        "control-second-vga",
        "6.1",
        EFIFB,
        gpus=(VGA, ROOT_BUS_VGA),
        hook=False,
        stays=(0,),
        rom_shadowed=True,
        alive_meanwhile=False,
        after=After.GONE,
        cycles=1,
    ),
    Scenario("two-in-one", "6.12", EFIFB, gpus=(VGA, BOCHS)),
    Scenario(
        "held-fb0-6.1",
        "6.1",
        EFIFB,
        holder=FB_HOLDER,
        refused=NAMED_FB_HOLDER,
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
    Scenario("vgacon", "5.10", VGACON, firmware="seabios", recorded="vgacon-5.10"),
    replace(_simpledrm("simpledrm-0300", "own-6.12"), after=After.EITHER, texts=()),
    *(
        Scenario(
            f"release-load-{kernel}",
            kernel,
            console,
            kernel_line=NOAUTOLOAD,
            config="release:\n  native: load\n",
            texts=(("plan", r"comes back with bochs, which\s+release loads"),),
        )
        for kernel, console in (("ubuntu-6.12", SIMPLEDRM), ("6.1", EFIFB))
    ),
    Scenario(
        "control-desktop",
        "6.1",
        BOCHS_DRM,
        native_driver=True,
        kernel_line="lab.desktop",
        hook=False,
        kind="desktop",
        cycles=1,
    ),
    *_stand_ins(),
    _prompt("6.12"),
    _kmscon(_boot_gpu_leaves("kmscon-two-gpus", "forky")),
    _killed("6.1"),
    *DESKTOPS,
    # With a second GPU the consoles move; otherwise the machine changes while libvirt acts.
    replace(_boot_gpu_leaves("every-call-6.1", "6.1"), kind="every-call", cycles=1),
    Scenario(
        "rehearsed-efifb-6.12",
        "6.12",
        EFIFB,
        holder=FB_HOLDER,
        refused=NAMED_FB_HOLDER,
        config="holders:\n  wait_s: 1\n",
        kind="rehearsed",
    ),
    # The first rehearsal loads vmwgfx and loses the firmware's console: a VM's plan has neither.
    replace(
        _simpledrm("rehearsed-0380", "ubuntu-6.12", BOCHS), kind="rehearsed", texts=LOSS_ANNOUNCED
    ),
    Scenario("opened-7", "trixie-backports", EFIFB, gpus=(BOCHS,), kind="opened"),
    # With iommufd, and BOOTFB.
    Scenario(
        "opened-arch-7",
        "arch-7",
        SIMPLEDRM,
        gpus=(BOCHS,),
        kernel_line=NOAUTOLOAD,
        after=After.GONE,
        kind="opened",
        cycles=1,
    ),
    Scenario("started-6.12", "6.12", EFIFB, kind="started", cycles=1),
    Scenario(
        "rehearsed-reserved",
        "6.12",
        EFIFB,
        holder=Reservation("foreign", ""),
        refused=r"foreign reserves c0c00000-c0c0ffff",
        stand_ins=("foreign",),
        cycles=1,
        kind="rehearsed",
    ),
    Scenario(
        "rehearsal-killed",
        "6.12",
        EFIFB,
        config="services:\n  - lab-service\nholders:\n  wait_s: 3\ntimeout_s: 45\n",
        kind="rehearsal-killed",
    ),
    replace(
        _killed("6.12"),
        name="openrc-6.12",
        root="openrc",
        kind="openrc",
        cycles=6,
        texts=(
            ("plan", r"/etc/init\.d/lab-service stop"),
            ("log", r"stopped lab-service"),
            ("log", r"started lab-service again"),
        ),
    ),
    Scenario("arm64-efifb", "arm64-6.12", EFIFB, gpus=(BOCHS,), firmware="u-boot", cycles=1),
    replace(_boot_gpu_leaves("rehearsed-two-gpus", "6.12"), kind="rehearsed"),
    Scenario(
        "selinux",
        "6.12",
        BOCHS_DRM,
        native_driver=True,
        kernel_line="security=selinux selinux=1 enforcing=0",
        root="selinux",
        config="services:\n  - lab-service\nholders:\n  wait_s: 10\n",
        kind="selinux",
    ),
)


def named(name: str) -> Scenario:
    """The scenario of that name; KeyError when there is none."""
    return {scenario.name: scenario for scenario in SCENARIOS}[name]
