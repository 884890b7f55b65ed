"""The hosts that people told of, and stand-ins for the lab's until it has recorded them.

    python -m tests.hosts

writes each to tests/machines/NAME.tree, except those that were recorded, which
are not in MACHINES. What the source tells is kept to the digit; all else, such as
bridges and other BARs, is made up to give a whole machine, and is said so on top.
"""

from __future__ import annotations

from dataclasses import replace

from tests import natives
from tests.building import (
    DUMMY_AND_FBCON,
    IO,
    MEM,
    MEM64,
    PREF,
    VGA_TEXT,
    Firmware,
    G,
    K,
    M,
    Machine,
    Module,
    Pci,
    render,
)  # fmt: skip
from tests.recordings import FOLDER

VGA, DISPLAY, CONTROLLER_3D, AUDIO = 0x0300, 0x0380, 0x0302, 0x0403
AMD, NVIDIA, INTEL, QEMU = 0x1002, 0x10DE, 0x8086, 0x1234
OWN_BUILD = "an own build with SYSFB_SIMPLEFB, bochs not loaded"

# -- what the lab's machines are made of

_PICTURE = 1280 * 800 * 4
LAB = "Stand-in for the lab's own recording: QEMU q35, {what}."
BLACKLISTED = ("f fake/blacklist = bochs",)


def lab_gpu(
    address: str = "0000:01:00.0",
    pci_class: int = VGA,
    base: int = 0xC0000000,
    *,
    bound: bool = False,
) -> Pci:
    """QEMU's VGA (0300) or bochs-display (0380) behind a root port."""
    vga = pci_class == VGA
    bus = int(address[5:7], 16)
    return Pci(
        address, pci_class, (QEMU, 0x1111),
        bars=((0, base, 16 * M, PREF), (2, 0xFEA00000 + bus * M, 4 * K, MEM)),
        bridge=f"0000:00:{bus:02x}.0", group=bus, boot_vga=vga if vga else None, shadow=vga,
        native=natives.BOCHS, bound=bound,
    )  # fmt: skip


def firmware_on(gpu: Pci, driver: str, kernel: str, *, bound: bool = True) -> Firmware:
    """The picture that OVMF leaves in BAR 0, and the platform device for it."""
    kind = {"ef": "efi", "ve": "vesa", "si": "simple"}[driver[:2]]
    major, minor = (int(word) for word in kernel.split(".")[:2])
    quiet = driver in ("simplefb", "simpledrm") and (major, minor) < (5, 18)
    return Firmware(
        f"{kind}-framebuffer.0", driver, gpu.bars[0][1], _PICTURE, 0 if quiet else _PICTURE,
        bound=bound, below=gpu.path if (major, minor) >= (6, 9) else "",
    )  # fmt: skip


def lab(kernel: str, driver: str, pci_class: int = VGA, *, bound: bool = True) -> Machine:
    """One GPU lit by the firmware; its native driver is not loaded, and mostly blacklisted."""
    gpu = lab_gpu(pci_class=pci_class)
    short = {VGA: "0300", DISPLAY: "0380"}[pci_class]
    simple = driver.startswith("simple")
    own = f", {OWN_BUILD}" if simple else ""
    return Machine(
        f"{driver}-{short}-{kernel}",
        (LAB.format(what=f"{driver} on class {short}, Linux {kernel}{own}"),),
        kernel,
        (gpu,),
        (firmware_on(gpu, driver, kernel, bound=bound),),
        extra=() if simple else BLACKLISTED,
    )


def text_mode(kernel: str) -> Machine:
    """A BIOS boot: vgacon on the VGA card, no framebuffer."""
    what = f"SeaBIOS, text mode, Linux {kernel}"
    return Machine(
        f"vgacon-{kernel}", (LAB.format(what=what),), kernel, (lab_gpu(),),
        consoles=VGA_TEXT, extra=BLACKLISTED,
    )  # fmt: skip


def native(kernel: str) -> Machine:
    """One GPU on its native driver, which has taken over from efifb at boot."""
    return Machine(
        f"native-{kernel}", (LAB.format(what=f"bochs-drm on class 0300, Linux {kernel}"),), kernel,
        (lab_gpu(bound=True),),
    )  # fmt: skip


def two_native(kernel: str, consoles: tuple[str, ...] = DUMMY_AND_FBCON) -> Machine:
    """The host's boot GPU and one more, both on the native driver, consoles on the first."""
    second = replace(lab_gpu("0000:02:00.0", base=0xD0000000, bound=True), boot_vga=False)
    return Machine(
        f"two-gpus-{kernel}",
        (LAB.format(what=f"two VGA cards, both on bochs-drm, Linux {kernel}"),),
        kernel, (lab_gpu(bound=True), second), consoles=consoles,
    )  # fmt: skip


def _vesafb() -> Machine:
    gpu = Pci(
        "0000:00:05.0", VGA, (QEMU, 0x1111),
        bars=((0, 0xFD000000, 16 * M, PREF), (2, 0xFEBF0000, 4 * K, MEM)),
        group=5, boot_vga=True, shadow=True, native=natives.BOCHS,
    )  # fmt: skip
    firmware = Firmware("vesa-framebuffer.0", "vesafb", 0xFD000000, 16 * M, 16 * M, (1024, 768))
    return Machine(
        "vesafb-5.10", (LAB.format(what="SeaBIOS with vga=0x317, vesafb, Linux 5.10"),), "5.10",
        (gpu,), (firmware,), extra=BLACKLISTED,
    )  # fmt: skip


def _two_in_one() -> Machine:
    first, second = lab_gpu(), lab_gpu("0000:02:00.0", DISPLAY, 0xD0000000)
    return Machine(
        "two-in-one-6.12",
        (LAB.format(what="efifb on the first GPU (0300), none on the second (0380), Linux 6.12"),),
        "6.12", (first, second), (firmware_on(first, "efifb", "6.12"),), extra=BLACKLISTED,
    )  # fmt: skip


def lit_second(kernel: str) -> Machine:
    """The host's GPU on its native driver, and one that the firmware lit and no driver knows."""
    host = lab_gpu(bound=True)
    leaving = replace(lab_gpu("0000:02:00.0", DISPLAY, 0xD0000000), native="")
    return Machine(
        f"two-gpus-lit-second-{kernel}",
        (
            LAB.format(
                what=f"boot_vga on the first GPU, the firmware lit the second, Linux {kernel}"
            ),
            "The console moved to the first when bochs-drm bound it (fb_is_primary_device).",
        ),
        kernel, (host, leaving), (firmware_on(leaving, "efifb", kernel),), console_fb=1,
    )  # fmt: skip


_LAB_MACHINES = (
    replace(lab("5.10", "efifb"), name="efifb-5.10"),
    replace(lab("6.1", "efifb"), name="efifb-6.1"),
    replace(lab("6.12", "efifb"), name="efifb-6.12"),
    replace(lab("6.12", "efifb", DISPLAY), name="efifb-0380-6.12"),
    replace(lab("7.3", "efidrm", DISPLAY), name="efidrm-7"),
    lab("6.12", "simpledrm", DISPLAY),
    lab("6.12", "simpledrm", VGA),
    _vesafb(),
    text_mode("5.10"),
    native("6.1"),
    two_native("6.12"),
    lit_second("6.12"),
    _two_in_one(),
)

# -- what people posted


def _intel_igpu(ids: tuple[int, int], *, group: int, bound: bool = True) -> Pci:
    return Pci(
        "0000:00:02.0", VGA, ids,
        bars=((0, 0xDD000000, 16 * M, MEM64), (2, 0xB0000000, 256 * M, MEM64), (4, 0xF000, 64, IO)),
        group=group, boot_vga=True, shadow=True,
        native=natives.I915, bound=bound,
    )  # fmt: skip


def _strix_halo() -> Machine:
    gpu = Pci(
        "0000:c3:00.0", DISPLAY, (AMD, 0x1586),
        bars=((0, 0x2800000000, 32 * G, MEM64), (5, 0xB4400000, 512 * K, MEM)),
        bridge="0000:00:08.1", group=21,
        native=natives.AMDGPU,
    )  # fmt: skip
    size = 0x1FA4000
    firmware = Firmware(
        "simple-framebuffer.0", "simpledrm", 0x2800000000, size, size, (3840, 2160), below=gpu.path
    )
    return Machine(
        "amd-strix-halo-0380",
        (
            "AMD Strix Halo (Framework Desktop), one GPU of class 0380, simpledrm.",
            "siderolabs/talos#14356. Told: address, class, BAR 0, BOOTFB and simpledrm in it, the",
            "kernel, the driver's minor 0.",
            "Made up: ids, BAR 5, bridge, IOMMU group, consoles.",
        ),
        "6.18", (gpu,), (firmware,), extra=("f fake/blacklist = amdgpu",),
    )  # fmt: skip


def _nvidia_efifb_bar1() -> Machine:
    gpu = Pci(
        "0000:01:00.0", VGA, (NVIDIA, 0x1C03),
        bars=((0, 0xF6000000, 16 * M, MEM), (1, 0xC0000000, 256 * M, MEM64),
              (3, 0xD0000000, 32 * M, MEM64), (5, 0xE000, 128, IO)),
        bridge="0000:00:01.0", group=1, boot_vga=True, shadow=True,
    )  # fmt: skip
    size = 23040 * K
    return Machine(
        "nvidia-efifb-bar1",
        (
            "NVIDIA, one GPU, efifb in BAR 1. joeknock90/Single-GPU-Passthrough#1",
            "Told: address, BAR 1 for efifb, framebuffer at 0xc0000000 using 23040k, 2560x1440x32.",
            "Made up: ids, sizes of the BARs, bridge, kernel release, consoles.",
        ),
        "5.10", (gpu,),
        (Firmware("efi-framebuffer.0", "efifb", 0xC0000000, size, size, (2560, 1440)),),
    )  # fmt: skip


def _nvidia_efifb_bar3() -> Machine:
    gpu = Pci(
        "0000:42:00.0", VGA, (NVIDIA, 0x1B06),
        bars=((0, 0x92000000, 16 * M, MEM), (1, 0x80000000, 256 * M, MEM64),
              (3, 0x90000000, 32 * M, MEM64), (5, 0x8000, 128, IO)),
        bridge="0000:00:03.1", group=42, boot_vga=True, shadow=True,
    )  # fmt: skip
    sound = Pci(
        "0000:42:00.1", AUDIO, (NVIDIA, 0x10EF), bars=((0, 0x93080000, 16 * K, MEM),),
        bridge="0000:00:03.1", group=42, native=natives.SOUND, bound=True,
    )  # fmt: skip
    size = 5120 * K
    return Machine(
        "nvidia-efifb-bar3",
        (
            "NVIDIA GTX 1080 Ti, efifb in BAR 3. joeknock90/Single-GPU-Passthrough#6",
            "Told: addresses, ids, BAR 3 for efifb, framebuffer at 0x91000000 using 5120k,",
            "1280x1024x32.",
            "Made up: sizes and places of the BARs, bridge, group, kernel release, consoles.",
        ),
        "5.10", (gpu, sound),
        (Firmware("efi-framebuffer.0", "efifb", 0x91000000, size, size, (1280, 1024)),),
    )  # fmt: skip


def _amd_single() -> Machine:
    gpu = Pci(
        "0000:09:00.0", VGA, (AMD, 0x67DF),
        bars=((0, 0xD0000000, 256 * M, MEM64), (2, 0xE0000000, 2 * M, MEM64), (4, 0xE000, 256, IO)),
        bridge="0000:00:03.1", group=23, boot_vga=True, shadow=True,
        native=natives.AMDGPU, bound=True,
    )  # fmt: skip
    sound = Pci(
        "0000:09:00.1", AUDIO, (AMD, 0xAAF0), bars=((0, 0xFCE60000, 16 * K, MEM64),),
        bridge="0000:00:03.1", group=23, native=natives.SOUND, bound=True,
    )  # fmt: skip
    return Machine(
        "amd-single",
        (
            "AMD RX 580, the only GPU, on amdgpu.",
            "README of cosminmocan/vfio-single-amdgpu-passthrough",
            "Told: addresses, regions, drivers, IOMMU group 23.",
            "Made up: ids, bridge, kernel release, consoles.",
        ),
        "6.1", (gpu, sound),
    )  # fmt: skip


def _intel_and_nvidia() -> Machine:
    nvidia = Pci(
        "0000:01:00.0", VGA, (NVIDIA, 0x1C20),
        bars=((0, 0xDC000000, 16 * M, MEM), (1, 0xC0000000, 256 * M, MEM64),
              (3, 0xD0000000, 32 * M, MEM64), (5, 0xE000, 128, IO)),
        bridge="0000:00:01.0", group=1, boot_vga=False,
        native="driver=nouveau fb=nouveaudrmfb bars= render=yes", bound=True,
    )  # fmt: skip
    return Machine(
        "intel-and-nvidia",
        (
            "Laptop: Intel UHD 630 and NVIDIA GTX 1060 Mobile.",
            "T-vK/MobilePassThrough, 1-lsiommu.log",
            "Told: addresses, classes, ids, IOMMU groups 2 and 1.",
            "Made up: BARs, drivers and their framebuffers, kernel release, consoles.",
        ),
        "6.1", (_intel_igpu((INTEL, 0x3E9B), group=2), nvidia),
    )  # fmt: skip


def _muxless() -> Machine:
    nvidia = Pci(
        "0000:01:00.0", CONTROLLER_3D, (NVIDIA, 0x1D10),
        bars=((0, 0xDC000000, 16 * M, MEM), (1, 0xC0000000, 256 * M, MEM64),
              (3, 0xD0000000, 32 * M, MEM64)),
        bridge="0000:00:1c.0", group=8, native="driver=nouveau", bound=True,
    )  # fmt: skip
    return Machine(
        "laptop-3d-controller",
        (
            "Laptop: Intel UHD 620 and NVIDIA MX150 without a display (0302).",
            "T-vK/MobilePassThrough,",
            "6-lsiommu. Told: addresses, classes, ids.",
            "Made up: BARs, groups, drivers, kernel release, consoles.",
        ),
        "6.1", (_intel_igpu((INTEL, 0x5917), group=0), nvidia),
    )  # fmt: skip


def _nvidia_bootfb() -> Machine:
    bridge = "0000:00:01.0"
    gpu = Pci(
        "0000:01:00.0", VGA, (NVIDIA, 0x2182),
        bars=((0, 0x52000000, 16 * M, MEM), (1, 0x40000000, 256 * M, MEM64),
              (3, 0x50000000, 32 * M, MEM64), (5, 0x3000, 128, IO)),
        bridge=bridge, group=1, boot_vga=True, shadow=True, vfio=True,
    )  # fmt: skip
    others = (
        Pci("0000:01:00.1", AUDIO, (NVIDIA, 0x1AEB), ((0, 0x53080000, 16 * K, MEM),), bridge),
        Pci("0000:01:00.2", 0x0C03, (NVIDIA, 0x1AEC), ((0, 0x53000000, 256 * K, MEM64),), bridge,
            native="driver=xhci_hcd module=xhci_pci", bound=True),
        Pci("0000:01:00.3", 0x0C80, (NVIDIA, 0x1AED), ((0, 0x53084000, 4 * K, MEM),), bridge,
            native="driver=nvidia-gpu module=i2c_nvidia_gpu", bound=True),
    )  # fmt: skip
    firmware = Firmware(
        "simple-framebuffer.0", "simplefb", 0x51000000, 3 * M, 0, (1024, 768), bound=False
    )
    return Machine(
        "nvidia-bootfb-bar3",
        (
            "NVIDIA GTX 1660 Ti, BOOTFB in BAR 3, on vfio-pci. A public post on Proxmox VE 7.2",
            "Told: addresses, classes, ids, BAR 3 at 50000000-51ffffff, BOOTFB from 51000000.",
            "Made up: BOOTFB's end, other BARs, that no driver was bound to it, kernel 5.15,",
            "consoles.",
        ),
        "5.15.30-2-pve", (gpu, *others), (firmware,), consoles=("1 (S) dummy device",),
    )  # fmt: skip


def _two_amd() -> Machine:
    words = natives.AMDGPU
    card = Pci(
        "0000:03:00.0", VGA, (AMD, 0x744C),
        bars=((0, 0x7800000000, 32 * G, MEM64), (2, 0x8000000000, 256 * M, MEM64),
              (4, 0xF000, 256, IO), (5, 0xFCB00000, 1 * M, MEM)),
        bridge="0000:00:01.1", group=15, boot_vga=True, shadow=True, native=words, bound=True,
    )  # fmt: skip
    igpu = Pci(
        "0000:13:00.0", VGA, (AMD, 0x164E),
        bars=((0, 0x8020000000, 256 * M, MEM64), (2, 0x8030000000, 2 * M, MEM64),
              (4, 0xE000, 256, IO), (5, 0xFC500000, 512 * K, MEM)),
        bridge="0000:00:08.1", group=29, boot_vga=False, native=words, bound=True,
    )  # fmt: skip
    return Machine(
        "two-amd",
        (
            "AMD Navi 31 card and Raphael iGPU, both on amdgpu. hyprwm/Hyprland#4430",
            "Told: addresses, ids.",
            "Made up: BARs, groups, which is the boot VGA, kernel release, consoles.",
        ),
        "6.12", (card, igpu),
    )  # fmt: skip


def _bmc_and_t400() -> Machine:
    bmc = Pci(
        "0000:03:00.0", VGA, (0x1A03, 0x2000),
        bars=((0, 0x90000000, 64 * M, MEM), (1, 0x94000000, 256 * K, MEM), (2, 0x2000, 128, IO)),
        bridge="0000:00:1c.5", group=30, boot_vga=True, shadow=True,
        native=natives.AST, bound=True,
    )  # fmt: skip
    first = Pci(
        "0000:17:00.0", VGA, (NVIDIA, 0x1FF2),
        bars=((0, 0x9A000000, 16 * M, MEM), (1, 0x383FE0000000, 256 * M, MEM64)),
        bridge="0000:00:02.0", group=40, boot_vga=False, vfio=True,
    )  # fmt: skip
    second = replace(
        first, address="0000:65:00.0", bridge="0000:00:03.0", group=50,
        bars=((0, 0xA0000000, 16 * M, MEM), (1, 0x387FE0000000, 256 * M, MEM64)),
        vfio=False, native="driver=nvidia", bound=True,
    )  # fmt: skip
    return Machine(
        "bmc-and-two-nvidia",
        (
            "ASPEED BMC and two identical NVIDIA T400, one of them on vfio-pci. truenas PR 11397",
            "Told: addresses, ids, drivers.",
            "Made up: BARs, bridges, groups, kernel release, consoles.",
        ),
        "6.12", (bmc, first, second), modules=_NVIDIA[:1] + _NVIDIA[3:],
    )  # fmt: skip


_NVIDIA = (
    Module("nvidia", nodes=("dev/nvidia0", "dev/nvidiactl"), alone=False, driver="nvidia"),
    Module("nvidia_modeset", ("nvidia",), ("dev/nvidia-modeset",)),
    Module("nvidia_drm", ("nvidia_modeset",), shows="nvidia"),
    Module("nvidia_uvm", ("nvidia",), ("dev/nvidia-uvm",)),
)


def _nvidia(address: str, *, boot_vga: bool) -> Pci:
    """A GeForce RTX 3060 on nvidia, nvidia-drm with modeset=1 and fbdev=1."""
    bus = int(address[5:7], 16)
    return Pci(
        address, VGA, (NVIDIA, 0x2503),
        bars=((0, 0xF6000000 + (bus << 24), 16 * M, MEM),
              (1, 0x6000000000 + (bus << 32), 256 * M, MEM64),
              (3, 0x6010000000 + (bus << 32), 32 * M, MEM64), (5, 0xE000 + (bus << 8), 128, IO)),
        bridge=f"0000:00:{bus:02x}.0", group=bus, boot_vga=boot_vga, shadow=boot_vga,
        native=f"{natives.NVIDIA} connectors=HDMI-A-{bus},DP-{bus}",
        bound=True,
    )  # fmt: skip


def _nvidia_single() -> Machine:
    bridge = "0000:00:01.0"
    others = (
        Pci("0000:01:00.1", AUDIO, (NVIDIA, 0x228E), ((0, 0xF8080000, 16 * K, MEM),), bridge,
            native=natives.SOUND, bound=True),
        Pci("0000:01:00.3", 0x0C80, (NVIDIA, 0x228F), ((0, 0xF8084000, 4 * K, MEM),), bridge,
            native="driver=nvidia-gpu module=i2c_nvidia_gpu", bound=True),
    )  # fmt: skip
    return Machine(
        "nvidia-single-desktop",
        (
            "One NVIDIA GPU on the proprietary driver with nvidia-drm.fbdev=1, the default since",
            "570: the console is on it, and its modules are what joeknock90/Single-GPU-Passthrough",
            "#25 and #85 unload. All numbers are made up, nobody holds it.",
        ),
        "6.12", (_nvidia("0000:01:00.0", boot_vga=True), *others), modules=_NVIDIA,
    )  # fmt: skip


def _two_nvidia() -> Machine:
    second = Module("nvidia", nodes=("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl"), alone=False,
                    driver="nvidia")  # fmt: skip
    return Machine(
        "two-nvidia",
        (
            "Two NVIDIA GPUs on one proprietary driver with nvidia-drm.fbdev=1, the console on the",
            "first, as in joeknock90/Single-GPU-Passthrough#63. All numbers are made up.",
        ),
        "6.12",
        (_nvidia("0000:01:00.0", boot_vga=True), _nvidia("0000:02:00.0", boot_vga=False)),
        modules=(second, *_NVIDIA[1:]), symbols=("nvidia_modeset_remove",),
    )  # fmt: skip


def _apu(address: str, bridge: str, *, boot_vga: bool) -> tuple[Pci, ...]:
    """The GPU of an AMD processor, and what shares its slot: sound and the security processor."""
    return (
        Pci(
            address, VGA, (AMD, 0x164E),
            bars=((0, 0x8020000000, 256 * M, MEM64), (2, 0x8030000000, 2 * M, MEM64),
                  (4, 0xE000, 256, IO), (5, 0xFC500000, 512 * K, MEM)),
            bridge=bridge, group=29, boot_vga=boot_vga, shadow=boot_vga,
            native=natives.AMDGPU, bound=True,
        ),
        Pci(f"{address[:-1]}1", AUDIO, (AMD, 0x1640), ((0, 0xFC588000, 16 * K, MEM),), bridge,
            group=30, native=natives.SOUND, bound=True),
        Pci(f"{address[:-1]}2", 0x1080, (0x1022, 0x1649), ((2, 0xFC400000, 1 * M, MEM),), bridge,
            group=31),
    )  # fmt: skip


def _amd_apu() -> Machine:
    return Machine(
        "amd-apu",
        (
            "AMD processor whose GPU is the only one, on amdgpu: the hosts of mroboff/vm-curator",
            "#60 to #62. The ids are those of Raphael and its security processor, all else is made",
            "up.",
        ),
        "6.12", _apu("0000:13:00.0", "0000:00:08.1", boot_vga=True),
    )  # fmt: skip


def _amd_card_and_apu() -> Machine:
    base = _two_amd()
    return replace(
        base,
        name="amd-dgpu-and-apu",
        about=(
            "AMD card and Raphael processor with its GPU, both on amdgpu: two-amd with what shares",
            "the processor GPU's slot, which that report did not tell.",
        ),
        pci=(base.pci[0], *_apu("0000:13:00.0", "0000:00:08.1", boot_vga=False)),
    )


def _radeon(kernel: str) -> Machine:
    gpu = Pci(
        "0000:01:00.0", VGA, (AMD, 0x6779),
        bars=((0, 0xE0000000, 256 * M, MEM64), (2, 0xF7E20000, 128 * K, MEM64),
              (4, 0xE000, 256, IO)),
        bridge="0000:00:01.0", group=1, boot_vga=True, shadow=True,
        native=natives.RADEON, bound=True,
    )  # fmt: skip
    return Machine(
        f"radeon-{kernel}",
        (
            "AMD Radeon HD 6450, the only GPU, on radeon; its driver has no remove from Linux 6.12",
            "on. All numbers but the ids are made up.",
        ),
        kernel, (gpu,), symbols=("radeon_pci_remove",) if kernel == "6.1" else (),
    )  # fmt: skip


def _intel_single() -> Machine:
    return Machine(
        "intel-single",
        (
            "Intel UHD 630 in the processor, the only GPU, on i915.",
            "Its numbers are those of intel-and-nvidia.",
        ),
        "6.12", (_intel_igpu((INTEL, 0x3E9B), group=0),),
    )  # fmt: skip


def _sriov() -> Machine:
    igpu = _intel_igpu((INTEL, 0x46D1), group=1)
    function = Pci(
        "0000:00:02.1", VGA, (INTEL, 0x46D1),
        bars=((0, 0x4010000000, 16 * M, MEM64), (2, 0x4020000000, 512 * M, MEM64)),
        group=18, boot_vga=False, vfio=True, physfn="0000:00:02.0",
    )  # fmt: skip
    return Machine(
        "intel-sriov-vf",
        (
            "Intel iGPU 8086:46d1 with SR-IOV, one virtual function on vfio-pci.",
            "canonical/lxd#18291,",
            "strongtz/i915-sriov-dkms#342. Told: ids, addresses, physfn.",
            "Made up: BARs, groups, the drivers of both functions, kernel release, consoles.",
        ),
        "6.12", (igpu, function),
    )  # fmt: skip


def _intel_bootfb() -> Machine:
    gpu = Pci(
        "0000:00:02.0", VGA, (INTEL, 0x5917),
        bars=((0, 0xC8000000, 16 * M, MEM64), (2, 0xE0000000, 256 * M, MEM64)),
        group=0, boot_vga=True, shadow=True,
    )  # fmt: skip
    firmware = Firmware(
        "simple-framebuffer.0", "simplefb", 0xE0000000, 3 * M, 3 * M, (1024, 768), bound=False
    )
    return Machine(
        "intel-bootfb-no-driver",
        (
            "Intel, BOOTFB in BAR 2 and no driver on it. A public post on the QEMU and edk2 lists",
            "Told: the bus window c8000000-f7ffffff, BAR e0000000-efffffff, BOOTFB",
            "e0000000-e02fffff.",
            "Made up: ids, BAR 0, kernel release, consoles; the window here is a little larger.",
        ),
        "6.1", (gpu,), (firmware,), consoles=("1 (S) dummy device",),
    )  # fmt: skip


def _hidden_iomem() -> Machine:
    base = _nvidia_efifb_bar1()
    return replace(
        base,
        name="iomem-without-root",
        about=(
            "/proc/iomem read without root: all addresses are zero, the names are not.",
            "A public post",
            "Told: 0000:01:00.0 with efifb in it. The rest is that of nvidia-efifb-bar1.",
        ),
        hidden_iomem=True,
    )


def _held_by_plymouth() -> Machine:
    gpu = Pci(
        "0000:00:02.0", VGA, (QEMU, 0x1111),
        bars=((0, 0xC0000000, 16 * M, PREF), (2, 0xFEBF0000, 4 * K, MEM)),
        group=2, boot_vga=True, shadow=True, native=natives.BOCHS,
    )  # fmt: skip
    held = (
        "f proc/412/comm = plymouthd",
        "f proc/412/cgroup = 0::/system.slice/plymouth-start.service",
        "l proc/412/fd/9 -> /dev/fb0",
    )
    return Machine(
        "fb0-held-by-plymouth",
        (
            "QEMU's VGA, /dev/fb0 held open by plymouthd. virtualization list, 2020-01-16",
            "Told: address, BAR 0, fb0 is EFI VGA, bochs-drm cannot reserve BAR 0 until",
            "plymouthd closes.",
            "Made up: the picture's size, process id, kernel release, consoles.",
        ),
        "5.10", (gpu,), (firmware_on(gpu, "efifb", "5.10"),), extra=(*BLACKLISTED, *held),
    )  # fmt: skip


MACHINES = (
    *_LAB_MACHINES,
    _strix_halo(), _nvidia_efifb_bar1(), _nvidia_efifb_bar3(), _amd_single(), _intel_and_nvidia(),
    _muxless(), _nvidia_bootfb(), _two_amd(), _bmc_and_t400(), _sriov(), _intel_bootfb(),
    _hidden_iomem(), _held_by_plymouth(), _nvidia_single(), _two_nvidia(), _amd_apu(),
    _amd_card_and_apu(), _radeon("6.1"), _radeon("6.12"), _intel_single(),
)  # fmt: skip


def main() -> None:
    for machine in MACHINES:
        (FOLDER / f"{machine.name}.tree").write_text(render(machine), encoding="utf-8")


if __name__ == "__main__":
    main()
