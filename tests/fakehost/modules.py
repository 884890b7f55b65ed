"""Kernel modules that can be unloaded: which needs which, and what keeps one in use.

Linux kernel/module/main.c and sysfs.c, kmod's tools/modprobe.c. fake/modules has
what depmod and the modules themselves know, one module a line:

    nvidia_drm needs=nvidia_modeset,nvidia shows=nvidia
    nvidia nodes=dev/nvidia0,dev/nvidiactl alone=no

needs: the modules it calls. nodes: the device nodes it answers to. shows: the
driver to whose devices it adds a card and a framebuffer. alone=no: it does not load
without a device to drive. A module that is not there is never unloaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfio_console_hook.errors import HostError

from . import fbdev, nvidia
from .tree import Tree

_SYS = "sys/module"
_SYMBOLS = "proc/kallsyms"
_KEPT = "fake/unloaded"


@dataclass(frozen=True)
class Module:
    name: str
    needs: tuple[str, ...]
    nodes: tuple[str, ...]
    shows: str
    alone: bool


def known(tree: Tree) -> dict[str, Module]:
    found = {}
    for line in (tree.read("fake/modules") or "").splitlines():
        name, *rest = line.split()
        words = dict(word.split("=", 1) for word in rest)
        found[name] = Module(
            name,
            needs=tuple(one for one in words.get("needs", "").split(",") if one),
            nodes=tuple(one for one in words.get("nodes", "").split(",") if one),
            shows=words.get("shows", ""),
            alone=words.get("alone") != "no",
        )
    return found


def loaded(tree: Tree, name: str) -> bool:
    return tree.exists(f"{_SYS}/{name}/initstate")


def can_show(tree: Tree, driver: str) -> bool:
    """Whether devices of a driver get a card now: its DRM part may be a module of its own."""
    return all(loaded(tree, one.name) for one in known(tree).values() if one.shows == driver)


def add(tree: Tree, name: str) -> None:
    """load_module(), mod_sysfs_setup() and add_usage_links()."""
    tree.put(f"{_SYS}/{name}/initstate", "live")
    tree.put(f"{_SYS}/{name}/refcnt", "0")
    tree.make_directory(f"{_SYS}/{name}/holders")
    for needed in known(tree)[name].needs:
        tree.link(f"{_SYS}/{needed}/holders/{name}", f"{_SYS}/{name}")
    # The options of modprobe's configuration and of the command line are the same again.
    if tree.exists(f"{_KEPT}/{name}/parameters"):
        tree.move(f"{_KEPT}/{name}/parameters", f"{_SYS}/{name}/parameters")
    symbols = tree.read(f"{_KEPT}/{name}/symbols")
    if symbols:
        tree.put(_SYMBOLS, f"{tree.read(_SYMBOLS)}\n{symbols}")
        tree.remove(f"{_KEPT}/{name}/symbols")


def drop(tree: Tree, name: str) -> None:
    """free_module(), after the module's exit function."""
    for needed in known(tree)[name].needs:
        tree.remove(f"{_SYS}/{needed}/holders/{name}")
    if tree.exists(f"{_SYS}/{name}/parameters"):
        tree.move(f"{_SYS}/{name}/parameters", f"{_KEPT}/{name}/parameters")
    tree.remove(f"{_SYS}/{name}")
    lines = (tree.read(_SYMBOLS) or "").split("\n")
    mine = [line for line in lines if line.endswith(f"\t[{name}]")]
    if mine:  # kernel/module/kallsyms.c, module_get_kallsym
        tree.put(_SYMBOLS, "\n".join(line for line in lines if line not in mine))
        tree.put(f"{_KEPT}/{name}/symbols", "\n".join(mine))


def settle(tree: Tree) -> None:
    """Let refcnt show what is so now; others than this machine's programs open nodes too."""
    for name in known(tree):
        if loaded(tree, name):
            text = str(references(tree, name))
            if tree.read(f"{_SYS}/{name}/refcnt") != text:
                tree.put(f"{_SYS}/{name}/refcnt", text)
    nvidia.settle(tree)


def references(tree: Tree, name: str) -> int:
    """module_refcount(): the modules that use it, and the open files.

    fbcon takes no reference on a DRM driver (drm_fbdev_ttm_fb_open asks for `user`), nor on
    the lab's stand-in for nvidia_drm.
    """
    module = known(tree)[name]
    nodes = [*module.nodes, *(f"dev/dri/{card}" for card in _shown(tree, module, "drm"))]
    count = len(tree.list(f"{_SYS}/{name}/holders"))
    count += sum(len(fbdev.holding(tree, node)) for node in nodes)
    for fb in _shown(tree, module, "graphics"):
        count += len(fbdev.holding(tree, f"dev/{fb}"))
    return count


def _shown(tree: Tree, module: Module, kind: str) -> list[str]:
    """The cards or framebuffers that a module has added to devices of its driver."""
    return [
        node
        for device in tree.list("sys/bus/pci/devices")
        if module.shows and tree.link_name(f"sys/bus/pci/devices/{device}/driver") == module.shows
        for node in tree.list(f"sys/bus/pci/devices/{device}/{kind}")
    ]


def failed(arguments: tuple[str, ...], why: str) -> HostError:
    """What the program hears of a modprobe that ends with status 1."""
    return HostError(f"/sbin/modprobe {' '.join(arguments)} failed: modprobe: {why}")
