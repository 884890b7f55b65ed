"""Writes the snapshot of a machine from a few facts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fakehost.nvidia import information as nvidia_information
from tests.fakehost.tree import Tree

MEM, PREF, MEM64, IO = 0x40200, 0x42208, 0x14220C, 0x40101
K, M, G = 1 << 10, 1 << 20, 1 << 30
Bars = tuple["tuple[int, int, int, int]", ...]

DUMMY_AND_FBCON = ("0 (S) dummy device", "1 (M) frame buffer device")
VGA_TEXT = ("1 (S) VGA+",)

DEBIAN = {
    "5.10": "5.10.0-41-amd64",
    "6.1": "6.1.0-50-amd64",
    "6.12": "6.12.107+deb13-amd64",
    "7.3": "7.3.4+deb14-amd64",
}
UNAME_V = {"6.1.0-50-amd64": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)"}


@dataclass(frozen=True)
class Pci:
    """A PCI function. bars are (number, start, size, flags); ids are vendor and device.

    native is the text of fake/native/ADDRESS; bound: that driver is bound to the device.
    """

    address: str
    pci_class: int
    ids: tuple[int, int]
    bars: Bars = ()
    bridge: str = ""
    group: int = 1
    boot_vga: bool | None = None
    shadow: bool = False
    native: str = ""
    bound: bool = False
    vfio: bool = False
    physfn: str = ""

    @property
    def path(self) -> str:
        bridge = f"/{self.bridge}" if self.bridge else ""
        return f"sys/devices/pci0000:00{bridge}/{self.address}"

    @property
    def words(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in self.native.split())


@dataclass(frozen=True)
class Firmware:
    """A platform device; start and size are those of the picture.

    reservation is the range that the driver reserves.

    size 0 means that nothing draws, as in text mode. coreboot is the name of what the
    device itself reserves if coreboot's driver has registered it.
    """

    device: str
    driver: str
    start: int
    size: int
    reservation: int
    mode: tuple[int, int] = (1280, 800)
    bound: bool = True
    below: str = ""
    coreboot: str = ""

    @property
    def path(self) -> str:
        return f"{self.below or 'sys/devices/platform'}/{self.device}"

    @property
    def owned_as(self) -> str:
        """What the device itself reserves."""
        return self.coreboot or ("BOOTFB" if self.device.startswith("simple-") else "")


@dataclass(frozen=True)
class Module:
    """A loaded module that can be unloaded, as tests/fakehost/modules.py has it.

    driver is the PCI driver that it registers.
    """

    name: str
    needs: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    shows: str = ""
    alone: bool = True
    driver: str = ""

    @property
    def line(self) -> str:
        words = [self.name, f"needs={','.join(self.needs)}", f"nodes={','.join(self.nodes)}"]
        words += [f"shows={self.shows}"] if self.shows else []
        return " ".join(words if self.alone else [*words, "alone=no"])


@dataclass(frozen=True)
class Machine:
    """about: comments for the top of the text, one line each.

    fb_device: the kernel shows its framebuffers. deferred: fbcon waits for the first text.
    """

    name: str
    about: tuple[str, ...]
    kernel: str
    pci: tuple[Pci, ...]
    firmware: tuple[Firmware, ...] = ()
    consoles: tuple[str, ...] = DUMMY_AND_FBCON
    console_fb: int = 0
    extra: tuple[str, ...] = field(default=())
    modules: tuple[Module, ...] = ()
    symbols: tuple[str, ...] = ()
    fb_device: bool = True
    deferred: bool = False

    @property
    def on_framebuffers(self) -> bool:
        """Whether fbcon draws."""
        return any(console.startswith("1 (M) frame") for console in self.consoles)

    @property
    def series(self) -> tuple[int, int]:
        major, minor = self.kernel.split(".")[:2]
        return int(major), int(minor)


_TITLES = {
    "efifb": "EFI VGA", "vesafb": "VESA VGA", "simplefb": "simple", "vga16fb": "VGA16 VGA",
    "efidrm": "efidrmdrmfb", "simpledrm": "simpledrmdrmfb", "vesadrm": "vesadrmdrmfb",
    "corebootdrm": "corebootdrmdrmf",
}  # fmt: skip


def render(machine: Machine) -> str:
    """The machine as the text that snapshot.unpack() reads."""
    lines = [f"# {line}" for line in ("vfio-console-hook machine", *machine.about)]
    release = DEBIAN.get(machine.kernel, machine.kernel)
    lines += [f"f proc/sys/kernel/osrelease = {release}"]
    lines += [f"f proc/sys/kernel/version = {UNAME_V[release]}"] if release in UNAME_V else []
    lines += ["f proc/sys/kernel/random/boot_id = 5c3a7f0e-2c52-4b61-9d7e-0d5d7a1f9b42"]
    lines += ["f sys/kernel/security/lockdown = [none] integrity confidentiality"]
    lines += ["f sys/class/tty/tty0/active = tty1", "f dev/tty1"]
    lines += ["f ioctl/tty1/mode = text", "f ioctl/consoles = unlocked"]
    lines += ["d sys/class/graphics", "d sys/class/drm", "d dev/dri"]
    lines += ["f sys/bus/pci/drivers_probe", "f sys/bus/pci/rescan"]
    lines += _driver("pci", "vfio-pci")
    lines += ["f proc/kallsyms", *(f"|0000000000000000 T {s}" for s in _symbols(machine))]
    lines += ["f proc/iomem", *("|" + line for line in _iomem(machine))]
    lines += ["f proc/ioports", *("|" + line for line in _ioports(machine))]
    lines += _screen(machine)
    for device in machine.pci:
        lines += _pci(device, machine.series)
    for firmware in machine.firmware:
        lines += _platform(firmware)
    lines += _nodes(machine) + _consoles(machine) + _modules(machine) + list(machine.extra)
    return "\n".join(_without_doubles(lines)) + "\n"


def _without_doubles(lines: list[str]) -> Iterator[str]:
    seen = set()
    for line in lines:
        if line.startswith("|") or line not in seen:
            yield line
        seen.add(line)


def _link(path: str, target: str) -> str:
    """A link with the text that sysfs gives it."""
    return f"l {path} -> {Tree.link_text(path, target)}"


def _driver(bus: str, name: str) -> list[str]:
    folder = f"sys/bus/{bus}/drivers/{name}"
    return [f"d {folder}", f"f {folder}/bind", f"f {folder}/unbind"]


def _symbols(machine: Machine) -> list[str]:
    found = ["vga_remove_vgacon"]
    if machine.series >= (6, 0):
        found += ["aperture_remove_conflicting_pci_devices", "sysfb_disable"]
    if machine.series >= (6, 5):
        found += ["__aperture_remove_legacy_vga_devices"]
    return [*found, *machine.symbols]


def _ranges(machine: Machine) -> list[tuple[int, int, str]]:
    """All regions: parents before children."""
    found = [(0x1000, 0x9FFFF, "System RAM"), (0xA0000, 0xBFFFF, "PCI Bus 0000:00")]
    found += [(0x100000, 0x3FFFFFFF, "System RAM")]
    memory = [(d, bar) for d in machine.pci for bar in d.bars if bar[3] != IO]
    for low in (True, False):
        spans = [bar for _, bar in memory if (bar[1] < 4 * G) == low]
        if spans:
            first = min(start for _, start, _, _ in spans) // (256 * M) * (256 * M)
            last = -(-max(start + size for _, start, size, _ in spans) // (256 * M)) * (256 * M)
            found.append((first, min(last, 0xFEBFFFFF + 1 if low else last) - 1, "PCI Bus 0000:00"))
    for device, (_, start, size, _) in memory:
        if device.bridge:
            bus = device.address[:7]
            found.append((start // M * M, -(-(start + size) // M) * M - 1, f"PCI Bus {bus}"))
    # One that fills a BAR is above it (kernel/resource.c, __insert_resource).
    found += [
        (one.start, one.start + _pages(one.size) - 1, one.owned_as)
        for one in machine.firmware
        if one.owned_as
    ]
    for device, (number, start, size, _) in memory:
        found.append((start, start + size - 1, device.address))
        if device.bound and str(number) in device.words.get("bars", "").split(","):
            found.append((start, start + size - 1, device.words["driver"]))
    for firmware in machine.firmware:
        if firmware.bound and firmware.reservation:
            found.append(
                (firmware.start, firmware.start + firmware.reservation - 1, firmware.driver)
            )
    return found


def _pages(size: int) -> int:
    return -(-size // 4096) * 4096


def _iomem(machine: Machine) -> list[str]:
    ranges = list(dict.fromkeys(_ranges(machine)))
    ranges.sort(key=lambda one: (one[0], -one[1]))  # stable: parents stay first
    above: list[int] = []
    lines = []
    for first, last, name in _merged(ranges):
        while above and above[-1] < last:
            above.pop()
        lines.append(f"{'  ' * min(len(above), 5)}{first:08x}-{last:08x} : {name}")
        above.append(last)
    return lines


def _merged(ranges: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Bridge windows of one bus that overlap, such as those of two small BARs, made one."""
    merged: list[tuple[int, int, str]] = []
    for first, last, name in ranges:
        same = [i for i, one in enumerate(merged) if one[2] == name and one[1] >= first]
        if name.startswith("PCI Bus") and name != "PCI Bus 0000:00" and same:
            merged[same[0]] = (merged[same[0]][0], max(last, merged[same[0]][1]), name)
        else:
            merged.append((first, last, name))
    return merged


def _ioports(machine: Machine) -> list[str]:
    ports = ["0000-0cf7 : PCI Bus 0000:00"]
    if any(firmware.driver == "vesafb" and firmware.bound for firmware in machine.firmware):
        ports.append("  03c0-03df : vesafb")
    elif any("VGA+" in console for console in machine.consoles):
        ports.append("  03c0-03df : vga+")
    return ports


def _screen(machine: Machine) -> list[str]:
    """struct screen_info, the first 64 bytes of boot_params."""
    data = bytearray(64)
    # sysfb_handles_screen_info(): coreboot's driver does nothing if this has a picture.
    firmware = next((one for one in machine.firmware if one.size and not one.coreboot), None)
    data[0x07], data[0x0E], data[0x0F] = 80, 25, 1
    if firmware is not None:
        vesa = firmware.device.startswith("vesa")
        data[0x0F] = 0x23 if vesa else 0x70
        width, height = firmware.mode
        size = -(-firmware.size // 65536) if vesa else firmware.size
        struct.pack_into("<HHH", data, 0x12, width, height, 32)
        struct.pack_into("<II", data, 0x18, firmware.start & 0xFFFFFFFF, size)
        struct.pack_into("<H", data, 0x24, width * 4)
        high = firmware.start >> 32
        struct.pack_into("<II", data, 0x36, 2 if high else 0, high)
    return [f"x sys/kernel/boot_params/data = {data.hex()}"]


def _pci(device: Pci, series: tuple[int, int]) -> list[str]:
    path, vendor, number = device.path, *device.ids
    modalias = (
        f"pci:v{vendor:08X}d{number:08X}sv00000000sd00000000bc{device.pci_class >> 8:02X}"
        f"sc{device.pci_class & 0xFF:02X}i00"
    )
    # A device that was never enabled is "unknown", since 6.16 D0 (pci_pm_init).
    known = "D0" if device.bound or device.vfio or series >= (6, 16) else "unknown"
    power_state = [f"f {path}/power_state = {known}"] if series >= (5, 11) else []
    lines = [f"d {path}", _link(f"sys/bus/pci/devices/{device.address}", path)]
    if device.boot_vga is not None:
        lines.append(f"f {path}/boot_vga = {int(device.boot_vga)}")
    lines += [
        f"f {path}/class = {device.pci_class << 8:#08x}",
        f"f {path}/vendor = {vendor:#06x}",
        f"f {path}/device = {number:#06x}",
        f"f {path}/modalias = {modalias}",
        f"f {path}/driver_override = (null)",
        f"f {path}/enable = {int(device.bound)}",
        *power_state,
        f"f {path}/remove",
        f"x {path}/config = {_config(device)}",
        f"f {path}/resource",
    ]
    bars = {bar: (start, start + size - 1, flags) for bar, start, size, flags in device.bars}
    bars[6] = (0xC0000, 0xDFFFF, 0x212) if device.shadow else (0, 0, 0)
    lines += ["|{:#018x} {:#018x} {:#018x}".format(*bars.get(n, (0, 0, 0))) for n in range(13)]
    lines += [_link(f"{path}/subsystem", "sys/bus/pci")]
    group = f"sys/kernel/iommu_groups/{device.group}"
    lines += [f"d {group}", _link(f"{path}/iommu_group", group)]
    if device.physfn:
        parent = f"sys/devices/pci0000:00/{device.physfn}"
        number = int(device.address[-1]) - int(device.physfn[-1]) - 1
        lines += [_link(f"{path}/physfn", parent), _link(f"{parent}/virtfn{number}", path)]
    if device.native:
        lines += [f"f fake/native/{device.address} = {device.native}"]
    driver = "vfio-pci" if device.vfio else device.words.get("driver") if device.bound else None
    if driver:
        lines += _driver("pci", driver) + [_link(f"{path}/driver", f"sys/bus/pci/drivers/{driver}")]
    if device.vfio:
        lines += [f"f dev/vfio/{device.group}"]
    if device.vfio and series >= (6, 1):
        folder = f"{path}/vfio-dev/vfio0"
        lines += [f"d {folder}", _link(f"{folder}/device", path)]
    return lines


def _config(device: Pci) -> str:
    """The standard header, all decoding as the firmware left it."""
    ports = any(flags == IO for _, _, _, flags in device.bars)
    header = struct.pack("<HHHH", *device.ids, 3 if ports or device.boot_vga else 2, 0x10)
    header += bytes((0, 0, device.pci_class & 0xFF, device.pci_class >> 8))
    return header.ljust(64, b"\0").hex()


def _platform(firmware: Firmware) -> list[str]:
    path, name = firmware.path, firmware.device
    driver = name.rsplit(".", 1)[0]
    memory = f"{firmware.start:#x} {firmware.size} {firmware.start:#x} {firmware.reservation}"
    lines = [f"d {path}", _link(f"sys/bus/platform/devices/{name}", path)]
    lines += [f"f {path}/driver_override = (null)", f"f {path}/modalias = platform:{driver}"]
    lines += [_link(f"{path}/subsystem", "sys/bus/platform")]
    lines += _driver("platform", driver) if firmware.bound or not firmware.coreboot else []
    lines += _coreboot() if firmware.coreboot else []
    lines += [f"f fake/sysfb/{name} = {firmware.driver} {memory}"]
    if firmware.bound:
        lines += [_link(f"{path}/driver", f"sys/bus/platform/drivers/{driver}")]
    return lines


COREBOOT = "sys/devices/platform/BOOT0000:00/coreboot5"


def _coreboot() -> list[str]:
    """The framebuffer's entry of the coreboot table, as a device, and one for something else."""
    other = COREBOOT.replace("coreboot5", "coreboot4")
    lines = []
    for path in (other, COREBOOT):
        lines += [f"d {path}", _link(f"{path}/subsystem", "sys/bus/coreboot")]
        lines += [_link(f"sys/bus/coreboot/devices/{path.rpartition('/')[2]}", path)]
    driver = "sys/bus/coreboot/drivers/framebuffer"
    return [*lines, *_driver("coreboot", "framebuffer"), _link(f"{COREBOOT}/driver", driver)]


def _nodes(machine: Machine) -> list[str]:
    """Framebuffers and cards, numbered in the order of the firmware's and then the PCI devices."""
    lines: list[str] = []
    fbs: list[str] = []
    cards = renders = 0
    lit = [firmware for firmware in machine.firmware if firmware.bound]
    unknown: tuple[str, ...] = ("Unknown-1",)
    drawing = [(one.path, _TITLES[one.driver], one.start, one.size, False, unknown) for one in lit]
    for device in machine.pci:
        if device.bound and device.words.get("fb"):
            render = device.words.get("render") == "yes"
            connectors = tuple(filter(None, device.words.get("connectors", "").split(",")))
            drawing.append((device.path, device.words["fb"], 0, 4096000, render, connectors))
    for path, title, start, size, render, connectors in drawing:
        if title.endswith(("drmfb", "drmdrmf")):
            lines += _card(path, cards, connectors)
            if not machine.fb_device:
                on_it = machine.on_framebuffers and len(fbs) == machine.console_fb
                lines += _monitors(path, cards, connectors, on_it)
            start, cards = 0, cards + 1
        if render:
            lines += _node(path, "drm", f"renderD{128 + renders}")
            renders += 1
        fb = f"fb{len(fbs)}"
        fbs.append(f"{len(fbs)} {title}")
        if not machine.fb_device:
            continue
        lines += [*_node(path, "graphics", fb), f"f {path}/graphics/{fb}/name = {title}"]
        lines += [f"f dev/{fb}", f"f ioctl/{fb}/memory = {start:#x} {size}"]
    if not machine.fb_device:
        return lines
    lines += ["f proc/fb" + (f" = {fbs[0]}" if len(fbs) == 1 else "")]
    lines += [f"|{fb}" for fb in fbs] if len(fbs) > 1 else []
    return lines


def _node(path: str, kind: str, name: str) -> list[str]:
    folder = f"{path}/{kind}/{name}"
    lines = [f"d {folder}", _link(f"{folder}/device", path)]
    lines += [_link(f"sys/class/{kind}/{name}", folder)]
    return lines + ([f"f dev/dri/{name}"] if kind == "drm" else [])


def _card(path: str, number: int, connectors: tuple[str, ...]) -> list[str]:
    card = f"card{number}"
    lines = [*_node(path, "drm", card)]
    lines += [_link(f"{path}/drm/controlD{number + 64}", f"{path}/drm/{card}")]
    for connector in connectors:
        folder = f"{path}/drm/{card}/{card}-{connector}"
        lines += [f"d {folder}", _link(f"sys/class/drm/{card}-{connector}", folder)]
    return lines


def _monitors(path: str, number: int, connectors: tuple[str, ...], lit: bool) -> list[str]:
    lines = []
    for connector in connectors:
        folder = f"{path}/drm/card{number}/card{number}-{connector}"
        lines += [f"f {folder}/status = connected"]
        lines += [f"f {folder}/enabled = {'enabled' if lit else 'disabled'}"]
    return lines


def _modules(machine: Machine) -> list[str]:
    lines = ["f fake/modules", *(f"|{module.line}" for module in machine.modules)]
    on_screen = machine.on_framebuffers
    for module in machine.modules:
        folder = f"sys/module/{module.name}"
        users = [other.name for other in machine.modules if module.name in other.needs]
        lines += [f"f {folder}/initstate = live", f"d {folder}/holders"]
        lines += [f"f {folder}/refcnt = {len(users) + bool(module.shows and on_screen)}"]
        lines += [_link(f"{folder}/holders/{user}", f"sys/module/{user}") for user in users]
        lines += [f"f {node}" for node in module.nodes]
        if module.driver:
            lines += [_link(f"sys/bus/pci/drivers/{module.driver}/module", folder)]
    nvidia = (one for one in machine.pci if one.bound and one.words.get("driver") == "nvidia")
    for minor, device in enumerate(nvidia):
        information = f"proc/driver/nvidia/gpus/{device.address}/information"
        lines += [f"f {information} = {nvidia_information(minor)}"]
    return lines if machine.modules else []


def _consoles(machine: Machine) -> list[str]:
    lines = []
    for slot, console in enumerate(machine.consoles):
        bound, _, name = console.partition(" ")
        node = f"sys/devices/virtual/vtconsole/vtcon{slot}"
        lines += [f"d {node}", _link(f"sys/class/vtconsole/vtcon{slot}", node)]
        lines += [f"f {node}/name = {name}", f"f {node}/bind = {bound}"]
    if not machine.fb_device or machine.deferred:
        folder = "sys/devices/virtual/graphics/fbcon"
        lines += [f"d {folder}", _link("sys/class/graphics/fbcon", folder)]
    if not machine.fb_device:
        return lines
    if machine.deferred:
        lines += ["f ioctl/con2fbmap = 1-63 0"]  # con2fb_map[] is zeros
    elif any("frame buffer" in console for console in machine.consoles):
        where = machine.console_fb if machine.on_framebuffers else "-"
        lines += [f"f ioctl/con2fbmap = 1-63 {where}"]
    return lines
