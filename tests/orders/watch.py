"""What a machine looks like without the program's help: by sysfs, /proc and the claims."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tests.fakehost import FakeHost, snapshot
from vfio_console_hook.claims.step import Step
from vfio_console_hook.machine.snapshot import unpack_console_map

CLAIMS = "run/vfio-console-hook/claims"
ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
PLATFORM = re.compile(r"\b(?:efi|vesa|simple|vga)-framebuffer\.\d+")
_NODE = re.compile(r"\b(?:fb|card|renderD|controlD|vtcon|vfio-dev/vfio)\d+\b")
_REGION = re.compile(r"\s*([0-9a-f]+)-([0-9a-f]+) : (.*)")
# What comes and goes with programs, and what was configured.
_PASSING = re.compile(r"(proc/(\d+|driver)|etc|usr|dev/vfio)(/|$)")
# What sysfb_init registers where nothing draws (Linux drivers/firmware/sysfb.c).
_EMPTY = re.compile(r"/(platform|ega)-framebuffer\.\d+")
_PCI = "sys/bus/pci/devices"
# What the firmware's drivers, and what they leave behind, are called in /proc/iomem.
FIRMWARE_RESERVATIONS = ("efifb", "efidrm", "vesafb", "vesadrm", "simplefb", "simpledrm", "BOOTFB")


# -- one GPU


@dataclass(frozen=True)
class Portrait:
    """A device of the host as others see it. Numbers of nodes are left out: they change hands."""

    driver: str | None
    override: str
    nodes: tuple[str, ...]
    reservations: tuple[str, ...]
    decodes: bool


def portraits(host: FakeHost) -> dict[str, Portrait]:
    """All PCI functions, and all firmware devices, by address or name."""
    regions = _regions(host)
    found = {}
    for address in host.list(_PCI):
        bars = _bars(host, address)
        reservations = [
            name
            for first, last, name in regions
            if any(low <= first and last <= high for low, high in bars)
            and name != address
            and not name.startswith(("PCI Bus", "vfio"))
        ]
        found[address] = _portrait(host, f"{_PCI}/{address}", tuple(reservations))
    for name in host.list("sys/bus/platform/devices"):
        if PLATFORM.fullmatch(name):
            found[name] = _portrait(host, f"sys/bus/platform/devices/{name}", ())
    return found


def _portrait(host: FakeHost, device: str, reservations: tuple[str, ...]) -> Portrait:
    override = host.read(f"{device}/driver_override") or ""
    kinds = ("graphics", "drm", "vfio-dev")
    nodes = (re.sub(r"\d+$", "", one) for kind in kinds for one in host.list(f"{device}/{kind}"))
    command = (host.read_bytes(f"{device}/config") or b"\0" * 8)[4]
    return Portrait(
        host.link_name(f"{device}/driver"),
        "" if override == "(null)" else override,
        tuple(sorted(nodes)),
        reservations,
        bool(command & 2),
    )


def _regions(host: FakeHost) -> list[tuple[int, int, str]]:
    matches = map(_REGION.match, (host.read("proc/iomem") or "").splitlines())
    return [(int(one[1], 16), int(one[2], 16), one[3]) for one in matches if one]


def _bars(host: FakeHost, address: str) -> list[tuple[int, int]]:
    lines = (host.read(f"{_PCI}/{address}/resource") or "").splitlines()[:6]
    words = [[int(word, 16) for word in line.split()] for line in lines]
    return [(first, last) for first, last, flags in words if flags & 0x200 and last > first]


def firmware_owners(host: FakeHost) -> dict[str, str]:
    """On which PCI device each firmware framebuffer draws: its picture lies in a BAR of that."""
    owners = {}
    for name in host.list("fake/sysfb"):
        start = int((host.read(f"fake/sysfb/{name}") or "x 0").split()[1], 0)
        for address in host.list(_PCI):
            if any(first <= start <= last for first, last in _bars(host, address)) and start:
                owners[name] = address
    return owners


# -- the whole machine


def whole(host: FakeHost) -> dict[str, str]:
    """snapshot(), with nodes named by their devices and without the processes of the moment.

    Numbers of framebuffers, cards and console drivers depend on which comes first.
    """
    names = _names(host)

    def named(text: str) -> str:
        text = _NODE.sub(lambda match: names.get(match[0], match[0]), text)
        # drm_connector_init numbers connectors over all cards, at their arrival.
        return re.sub(r"(card\([^)]*\)-[A-Za-z-]+?)-?\d+\b", r"\1", text)

    seen = {}
    for path, what in snapshot(host).items():
        if _PASSING.match(path) or _EMPTY.search(path):
            continue
        if path.endswith("/driver_override"):
            what = what.strip().replace("(null)", "")
        elif path == "ioctl/con2fbmap":
            what = _console_map(what, names)
        elif path in ("proc/fb", "proc/iomem", "proc/ioports"):
            number = r"^\d+ " if path == "proc/fb" else r"^ +"
            what = "\n".join(sorted(re.sub(number, "", line) for line in what.splitlines()))
        elif path.endswith(("/refcnt", "/power_state", "/enabled")):
            continue  # what uses a module, what woke a device up, what has shown consoles once
        elif path.endswith("/enable"):
            what = "0" if what.strip() == "0" else "on"  # how often: some drivers never give back
        elif path.endswith("/config"):
            what = _without_mastering(host.read_bytes(path) or b"").hex()
        seen[named(path)] = named(what).strip()
    return seen


def _names(host: FakeHost) -> dict[str, str]:
    names = {}
    for kind in ("graphics", "drm"):
        for node in host.list(f"sys/class/{kind}"):
            device = (host.readlink(f"sys/class/{kind}/{node}") or "").partition(f"/{kind}/")[0]
            names[node] = f"{node.rstrip('0123456789')}({os.path.basename(device)})"
            if re.fullmatch(r"card\d+", node):
                control = f"controlD{int(node[4:]) + 64}"
                names[control] = f"controlD({os.path.basename(device)})"
    for console in host.list("sys/class/vtconsole"):
        title = host.read(f"sys/class/vtconsole/{console}/name") or ""
        names[console] = f"vtcon({title})"
    return names


def _without_mastering(header: bytes) -> bytes:
    """Config space without the bit that drivers set as they like (PCI_COMMAND_MASTER)."""
    return header[:4] + bytes(byte & ~4 for byte in header[4:5]) + header[5:]


def _console_map(text: str, names: dict[str, str]) -> str:
    indices = unpack_console_map(text)
    shown = sorted({names.get(f"fb{one}", "no fb") for one in indices if one is not None})
    return " ".join(shown) or "-"


_LISTS = ("proc/fb", "proc/iomem", "proc/ioports")
_WHERE_CONSOLES_ARE = re.compile(
    r"(sys/(class|devices/virtual)/vtconsole|ioctl|sys/class/(graphics|drm)|dev)(/|$)|proc/fb$"
)


def differences(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Each path that is not the same, with what was there and what is now; of lists, the lines.

    A device may come into its IOMMU group with its first driver, for good (Linux of_iommu.c).
    """
    found = {}
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path, "nothing"), after.get(path, "nothing")
        if old != new and path in _LISTS:
            both = Counter(old.splitlines()), Counter(new.splitlines())
            old, new = ("\n".join((one - two).elements()) for one, two in (both, both[::-1]))
        if old != new and not ("/iommu_group" in path and old == "nothing"):
            found[path] = (old, new)
    return found


def unexcused(
    found: dict[str, tuple[str, str]], excused: Collection[str]
) -> dict[str, tuple[str, str]]:
    """Those differences that none of the excused devices explains.

    When anything is excused, so is where the consoles are: they were on it, or cannot be
    moved back without it.
    """
    return {
        path: (old, new)
        for path, (old, new) in found.items()
        if not (excused and _is_excused(path, old, new, excused))
    }


def _is_excused(path: str, old: str, new: str, excused: Collection[str]) -> bool:
    if path in ("proc/iomem", "proc/ioports"):
        owners = {line.partition(" : ")[2] for line in f"{old}\n{new}".splitlines() if line}
        return all(one.startswith((*FIRMWARE_RESERVATIONS, "vga+", *excused)) for one in owners)
    if _WHERE_CONSOLES_ARE.match(path):
        return True
    return any(name in f"{path} {old} {new}" for name in excused)


# -- the claims


@dataclass(frozen=True)
class Claim:
    """A claim as it is in its file."""

    uuid: str
    boot: str
    gpus: tuple[str, ...]
    by_hand: bool
    steps: tuple[Step, ...]
    open: tuple[Step, ...]


def claims(host: FakeHost) -> dict[str, Claim]:
    """The claims on disk, by uuid, read line by line."""
    found = {}
    for uuid in host.list(CLAIMS):
        lines = [json.loads(line) for line in (host.read(f"{CLAIMS}/{uuid}") or "").splitlines()]
        head = lines[0]
        steps = [Step.from_json(one["step"]) for one in lines if "step" in one]
        undone = {one["undone"] for one in lines if "undone" in one}
        left = tuple(step for number, step in enumerate(steps) if number not in undone)
        found[uuid] = Claim(
            uuid, head["boot"], tuple(head["gpus"]), head["by_hand"], tuple(steps), left
        )
    return found


def listed_losses(steps: Iterable[Step]) -> set[str]:
    """The devices that these steps say will not be as before: by name, or by what was done."""
    lost: set[str] = set()
    for step in steps:
        if "removes vgacon" in f"{step.why} {step.loses}":
            lost |= {"vgacon"}
        if step.loses:
            lost |= set(PLATFORM.findall(step.loses))
            # A driver that was loaded for it, and for other GPUs, or its memory that has moved.
            if step.do is not None and step.do.kind == "bind-native":
                lost |= set(ADDRESS.findall(f"{step.do.shell()} {step.loses}"))
                lost |= set(PLATFORM.findall(step.why))
                lost |= set(re.findall(r"; (\S+) shows the console instead", step.loses))
        if step.do is not None and step.do.kind == "rescan":
            lost |= {step.gpu}
    return lost
