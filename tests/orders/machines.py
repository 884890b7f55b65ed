"""The machines that stories are about: recorded ones, and drawn ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from hypothesis import strategies as st

from tests import natives, snapshots
from tests.building import (
    DUMMY_AND_FBCON,
    MEM,
    PREF,
    VGA_TEXT,
    Firmware,
    K,
    M,
    Machine,
    Module,
    Pci,
    render,
)  # fmt: skip
from tests.hosts import AMD, AUDIO, DISPLAY, INTEL, NVIDIA, QEMU, VGA, firmware_on

_CLASS = re.compile(r"^f (?:.*/)?([0-9a-f:]+\.[0-7])/class = (0x\w+)$", re.MULTILINE)
_VENDOR = re.compile(r"^f (?:.*/)?([0-9a-f:]+\.[0-7])/vendor = (0x\w+)$", re.MULTILINE)

_DRIVERS = {
    "bochs-drm": natives.BOCHS,
    "amdgpu": natives.AMDGPU,
    "i915": natives.I915,
    "nouveau": "driver=nouveau fb=nouveaudrmfb render=yes",
    "ast": natives.AST,
    "radeon": natives.RADEON,
    "nvidia": natives.NVIDIA,
}
_LAB = {
    ("0x0300", "0x1234"): natives.BOCHS,
    ("0x0380", "0x1234"): natives.BOCHS,
    ("0x0403", "0x8086"): natives.SOUND,
}
_VENDORS = {"amdgpu": AMD, "radeon": AMD, "i915": INTEL, "nouveau": NVIDIA, "nvidia": NVIDIA}
_FIRMWARE = {
    "5.10": ("efifb", "vesafb"),
    "6.1": ("efifb", "vesafb", "simpledrm"),
    "6.12": ("efifb", "vesafb", "simpledrm"),
    "7.3": ("efidrm", "efifb", "simpledrm"),
}
_TEXT_AND_FBCON = ("0 (S) VGA+", "1 (M) frame buffer device")


@dataclass(frozen=True)
class Card:
    """A GPU to be built in.

    driver is the one that matches it, "" for none; state is "bound" to that, "vfio" or ""
    for without a driver. bridged: behind a root port of its own. virtual: it has a
    virtual function, which is on vfio-pci.
    """

    vga: bool = True
    driver: str = ""
    state: str = ""
    bridged: bool = True
    sound: bool = False
    virtual: bool = False


@dataclass(frozen=True)
class Sketch:
    """What a machine is made of. lit is the card that the firmware draws on, -1 for none."""

    kernel: str
    cards: tuple[Card, ...]
    lit: int = -1
    firmware: str = ""
    blacklist: bool = False


@dataclass(frozen=True)
class Setting:
    """A machine by its name, or by its sketch if it has none."""

    name: str = ""
    sketch: Sketch | None = None

    @property
    def text(self) -> str:
        return _recorded(self.name) if self.sketch is None else render(built(self.sketch))

    @property
    def gpus(self) -> tuple[str, ...]:
        """The addresses of all functions of display class that a VM may get."""
        return _gpus(self.text)

    @property
    def others(self) -> tuple[str, ...]:
        """The functions that share a slot with one of them, and may go along with it."""
        slots = {address[:-1] for address in self.gpus}
        functions = _functions(self.text)
        return tuple(a for a, kind in functions if a[:-1] in slots and kind[:4] != "0x03")


@cache
def _recorded(name: str) -> str:
    """A recording, without what was so only at that moment."""
    text = snapshots.machine_text(name)
    if not name.startswith(("lab-", "recorded-")):
        return text
    # What the lab's devices are, which no snapshot shows where no driver has them.
    vendors = dict(_VENDOR.findall(text))
    lines = [
        f"f fake/native/{address} = {native}"
        for address, kind in _functions(text)
        if (native := _LAB.get((kind[:6], vendors.get(address, ""))))
        and f"f fake/native/{address} = " not in text  # a stand-in of the lab's
    ]
    return text + "\n".join([*lines, ""])


def _functions(text: str) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in _CLASS.finditer(text)]


def _gpus(text: str) -> tuple[str, ...]:
    vendors = dict(_VENDOR.findall(text))
    return tuple(
        address
        for address, kind in _functions(text)
        # What virtio-gpu shows hangs below a virtio device, which the fake machine does not know.
        if kind[:4] == "0x03" and vendors.get(address) != "0x1af4"
    )


def recorded() -> tuple[str, ...]:
    """The names of the recorded machines that can begin a story."""
    return tuple(
        name
        for name in snapshots.before_vms()
        # Where /proc/iomem shows nothing, every prepare is refused.
        if name != "iomem-without-root" and _gpus(_recorded(name))
    )


# -- drawn


_cards = st.builds(
    Card,
    vga=st.booleans(),
    driver=st.sampled_from((*_DRIVERS, "")),
    state=st.sampled_from(("bound", "", "bound", "bound", "vfio")),
    bridged=st.booleans(),
    sound=st.booleans(),
    virtual=st.sampled_from((False, False, False, True)),
)


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    """Machines with up to four GPUs, made possible where what was drawn is not."""
    kernel = draw(st.sampled_from(tuple(_FIRMWARE)))
    cards = draw(st.lists(_cards, min_size=1, max_size=4))
    lit = draw(st.integers(-1, len(cards) - 1))
    firmware = draw(st.sampled_from(_FIRMWARE[kernel]))
    return possible(Sketch(kernel, tuple(cards), lit, firmware, draw(st.booleans())))


settings = st.one_of(
    st.sampled_from(recorded()).map(lambda name: Setting(name=name)),
    sketches().map(lambda sketch: Setting(sketch=sketch)),
)


def possible(sketch: Sketch) -> Sketch:
    """The nearest machine that a kernel could have booted to."""
    # A driver that is loaded has all GPUs that it matches; nvidia's without one does not load.
    loaded = {one.driver for one in sketch.cards if one.state == "bound"}
    cards = []
    for number, card in enumerate(sketch.cards):
        if number == sketch.lit:
            card = replace(card, state="")  # a driver would have taken over
        if not card.driver or (card.state != "bound" and card.driver in {*loaded, "nvidia"}):
            card = replace(card, driver="", state=card.state.replace("bound", ""))
        if card.bridged or card.state != "bound":
            card = replace(card, virtual=False)
        cards.append(card)
    return replace(sketch, cards=tuple(cards), firmware=sketch.firmware if sketch.lit >= 0 else "")


# -- built


def built(sketch: Sketch) -> Machine:
    """The machine of a sketch that is possible."""
    boot = _boot_card(sketch)
    functions: list[Pci] = []
    for number, card in enumerate(sketch.cards):
        functions += _built_in(card, number, boot_vga=number == boot)
    gpus = [one for one in functions if one.pci_class != AUDIO and not one.physfn]
    firmware: tuple[Firmware, ...] = ()
    if sketch.lit >= 0:
        firmware = (firmware_on(gpus[sketch.lit], sketch.firmware, sketch.kernel),)
    drawing = [one for one in gpus if one.bound and one.words.get("fb")]
    modules, symbols = _modules(sketch)
    # Kernels that boot with simpledrm have vmwgfx; fake/modules is written for nvidia's already.
    has_vmwgfx = sketch.firmware == "simpledrm" and not modules
    extra = ("d sys/module", "f fake/modules = vmwgfx") if has_vmwgfx else ()
    blacklist = sorted({one.words.get("module", one.words["driver"]) for one in gpus if one.native})
    if sketch.blacklist:
        extra = (*extra, f"f fake/blacklist = {' '.join(blacklist)}")
    return Machine(
        "sketch", (repr(sketch),), sketch.kernel, tuple(functions), firmware,
        consoles=_consoles(sketch, boot, drawing=bool(drawing or firmware)),
        console_fb=_primary(gpus, drawing, firmware),
        extra=extra, modules=modules, symbols=symbols,
    )  # fmt: skip


def _boot_card(sketch: Sketch) -> int:
    """The default VGA device (vgaarb.c, vga_is_boot_device): the one that the firmware lit."""
    if sketch.lit >= 0 and sketch.cards[sketch.lit].vga:
        return sketch.lit
    return next((number for number, card in enumerate(sketch.cards) if card.vga), -1)


def _built_in(card: Card, number: int, *, boot_vga: bool) -> list[Pci]:
    bus = number + 1
    slot = f"0000:{bus:02x}:00" if card.bridged else f"0000:00:{0x10 + number:02x}"
    bridge = f"0000:00:{bus:02x}.0" if card.bridged else ""
    gpu = Pci(
        f"{slot}.0", VGA if card.vga else DISPLAY, _ids(card),
        bars=((0, 0xC0000000 + number * 0x8000000, 16 * M, PREF),
              (2, 0xFEA00000 + number * M, 4 * K, MEM)),
        bridge=bridge, group=bus, boot_vga=boot_vga if card.vga else None, shadow=boot_vga,
        native=_DRIVERS.get(card.driver, ""),
        bound=card.state == "bound", vfio=card.state == "vfio",
    )  # fmt: skip
    found = [gpu]
    if card.sound:
        bars = ((0, 0xFE400000 + number * M, 16 * K, MEM),)
        found += [Pci(f"{slot}.1", AUDIO, (AMD, 0xAAF0), bars, bridge, bus,
                      bound=card.state != "vfio", vfio=card.state == "vfio",
                      native=natives.SOUND)]  # fmt: skip
    if card.virtual:
        bars = ((0, 0xE8000000 + number * 0x1000000, 16 * M, PREF),)
        found += [Pci(f"{slot}.2", VGA, (INTEL, 0x46D1), bars, group=0x20 + bus, boot_vga=False,
                      vfio=True, physfn=gpu.address)]  # fmt: skip
    return found


def _ids(card: Card) -> tuple[int, int]:
    """Its vendor and device: of their own for each driver, by them modprobe finds it."""
    return _VENDORS.get(card.driver, QEMU), 0x1111 + ["", *_DRIVERS].index(card.driver)


def _modules(sketch: Sketch) -> tuple[tuple[Module, ...], tuple[str, ...]]:
    """The modules that can be unloaded, and the functions that decide what is refused."""
    drivers = [one.driver for one in sketch.cards if one.state == "bound"]
    symbols = ("radeon_pci_remove",) if sketch.kernel in ("5.10", "6.1") else ()
    count = drivers.count("nvidia")
    if not count:
        return (), symbols
    nodes = (*(f"dev/nvidia{number}" for number in range(count)), "dev/nvidiactl")
    return (
        Module("nvidia", nodes=nodes, alone=False, driver="nvidia"),
        Module("nvidia_modeset", ("nvidia",), ("dev/nvidia-modeset",)),
        Module("nvidia_drm", ("nvidia_modeset",), shows="nvidia"),
    ), (*symbols, "nvidia_modeset_remove")


def _consoles(sketch: Sketch, boot: int, *, drawing: bool) -> tuple[str, ...]:
    """vgacon stays until a driver takes the default VGA device or the firmware drew there."""
    text = boot >= 0 and sketch.cards[boot].state != "bound" and sketch.lit < 0
    if drawing:
        return _TEXT_AND_FBCON if text else DUMMY_AND_FBCON
    return VGA_TEXT if text else ("1 (S) dummy device",)


def _primary(gpus: list[Pci], drawing: list[Pci], firmware: tuple[Firmware, ...]) -> int:
    """The number of the framebuffer that the consoles boot on (fbcon.c, fbcon_select_primary)."""
    for number, gpu in enumerate(drawing, start=len(firmware)):
        if gpu.boot_vga:
            return number
    return 0
