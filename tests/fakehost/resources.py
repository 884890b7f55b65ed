"""The resource trees /proc/iomem and /proc/ioports (Linux kernel/resource.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .tree import Tree

IOMEM = "proc/iomem"
IOPORTS = "proc/ioports"

# What the driver of /sys/bus/coreboot registers reserves (framebuffer_probe).
COREBOOT_NAMES = ("Coreboot Framebuffer", "coreboot-framebuffer.0", "simple-framebuffer.0")
_LINE = re.compile(r"( *)([0-9a-f]+)-([0-9a-f]+) : (.*)")
# r_show stops indenting at MAX_IORES_LEVEL.
_DEEPEST = 5
_WINDOW = re.compile(r"PCI Bus |pcie@|PCI ECAM |[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")


@dataclass
class Region:
    """One line: first and last are inclusive, depth is that of the tree, not of the text."""

    first: int
    last: int
    name: str
    depth: int
    line: str

    def holds(self, first: int, last: int) -> bool:
        return self.first <= first and last <= self.last


def regions(tree: Tree, path: str) -> list[Region]:
    """The lines in order; what lies inside an earlier line is below it."""
    found: list[Region] = []
    above: list[Region] = []
    for match in map(_LINE.fullmatch, (tree.read_bytes(path) or b"").decode().splitlines()):
        if match is None:
            continue
        first, last = int(match[2], 16), int(match[3], 16)
        while above and not above[-1].holds(first, last):
            above.pop()
        region = Region(first, last, match[4], len(above), match[0])
        found.append(region)
        above.append(region)
    return found


def _store(tree: Tree, path: str, lines: list[Region]) -> None:
    tree.put(path, "".join(region.line + "\n" for region in lines))


def _busy(tree: Tree, region: Region) -> bool:
    """IORESOURCE_BUSY, which /proc/iomem does not show."""
    if region.name == "BOOTFB":
        # Linux 5.10 arch/x86/kernel/sysfb_simplefb.c marks it, 6.1
        # drivers/firmware/sysfb_simplefb.c does not (changed in 5.18).
        return tree.release() < (5, 18, 0)
    if region.name in COREBOOT_NAMES:
        # Until "firmware: google: framebuffer: Do not mark framebuffer as busy", which came
        # together with the change that dropped the remove function.
        return tree.has_symbol("framebuffer_remove")
    return _WINDOW.match(region.name) is None


def request(tree: Tree, first: int, last: int, name: str, path: str = IOMEM) -> bool:
    """Reserve a range; False when it is taken (kernel/resource.c, __request_region).

    The search goes down through what is not busy. When it meets a region that
    is not busy and too small, __request_resource gives back that region itself,
    and the request fails: so a BOOTFB that is not busy blocks a whole BAR.
    """
    lines = regions(tree, path)
    if _hidden(lines):
        return True
    start, end, depth = 0, len(lines), 0
    while True:
        at = end
        for index in range(start, end):
            region = lines[index]
            if region.depth != depth or region.last < first:
                continue
            if region.first > last:
                at = index
                break
            if _busy(tree, region) or not region.holds(first, last):
                return False
            # Down into it: its children are the deeper lines that follow.
            start = index + 1
            end = next((i for i in range(start, end) if lines[i].depth <= depth), end)
            depth += 1
            at = -1
            break
        if at >= 0:
            break
    width = 4 if path == IOPORTS else 8
    text = f"{'  ' * min(depth, _DEEPEST)}{first:0{width}x}-{last:0{width}x} : {name}"
    lines.insert(at, Region(first, last, name, depth, text))
    _store(tree, path, lines)
    return True


def release(tree: Tree, first: int, last: int, name: str, path: str = IOMEM) -> None:
    """Give a range back (__release_region). Its children move up, as a BOOTFB's do."""
    lines = regions(tree, path)
    for index, region in enumerate(lines):
        if (region.first, region.last, region.name) == (first, last, name):
            del lines[index]
            _store(tree, path, lines)
            return
    if not _hidden(lines):
        tree.log(f"Trying to free nonexistent resource <{first:016x}-{last:016x}>")


def release_with_children(tree: Tree, first: int, last: int, name: str) -> None:
    """Take a BAR out of the tree with all below it.

    pci_free_resources ends in __release_resource(old, release_child=true).
    """
    lines = regions(tree, IOMEM)
    for index, region in enumerate(lines):
        if (region.first, region.last, region.name) == (first, last, name):
            after = index + 1
            while after < len(lines) and lines[after].depth > region.depth:
                after += 1
            del lines[index:after]
            _store(tree, IOMEM, lines)
            return


def in_the_way(tree: Tree, first: int, last: int) -> Region | None:
    """What keeps a BAR from being here: anything but bridge windows that hold it whole."""
    for region in regions(tree, IOMEM):
        window = region.name.startswith("PCI Bus ") and region.holds(first, last)
        if region.first <= last and first <= region.last and not window:
            return region
    return None


def named(tree: Tree, name: str, path: str = IOMEM) -> list[Region]:
    return [region for region in regions(tree, path) if region.name == name]


def _hidden(lines: list[Region]) -> bool:
    """Read without CAP_SYS_ADMIN: all addresses are zero, and nothing can be learned."""
    return bool(lines) and not any(region.last for region in lines)
