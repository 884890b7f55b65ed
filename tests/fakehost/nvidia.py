"""NVIDIA's driver: who counts as a user of a GPU, and what its removal waits for.

open-gpu-kernel-modules 595.45.04, kernel-open/nvidia: nv.c, nv-pci.c, nv-procfs.c. A GPU that
has irq=N among the words of fake/native/ADDRESS shows this interrupt while it is started.

    fake/leak/ADDRESS   a user is counted that is not there
    fake/persistent     persistence mode is on, without its daemon
"""

from __future__ import annotations

import re

from vfio_console_hook.errors import HostError

from . import fbdev
from .tree import Tree

SMI = "/usr/bin/nvidia-smi"
_GPUS = "proc/driver/nvidia/gpus"
_DEVICES = "sys/bus/pci/devices"
_PERSISTENT = "fake/persistent"
_MODESET = "sys/module/nvidia_drm/parameters/modeset"


def probe(tree: Tree, address: str) -> None:
    """nv_pci_probe(): the lowest free minor, shown in /proc."""
    taken = {tree.read(f"{_GPUS}/{one}/information") for one in tree.list(_GPUS)}
    minor = next(n for n in range(32) if information(n) not in taken)
    tree.put(f"{_GPUS}/{address}/information", information(minor))


def information(minor: int) -> str:
    """The last line of what nv_procfs_read_gpu_info() shows."""
    return f"Device Minor: \t {minor}"


def remove(tree: Tree, address: str) -> None:
    """nv_pci_remove(): it sleeps, and cannot be killed, until the usage count is 0.

    nvidia_modeset_remove() has taken the card's use off it by then.
    """
    device = f"{_DEVICES}/{address}"
    nodes = _nodes(tree, address)
    nodes += [f"dev/dri/{card}" for card in tree.list(f"{device}/drm")]
    nodes += [f"dev/{fb}" for fb in tree.list(f"{device}/graphics")]
    held = any(fbdev.holding(tree, node) for node in nodes)
    if held or tree.exists(f"fake/leak/{address}"):
        tree.log(f"NVRM: Attempting to remove device {address} with non-zero usage count!")
        why = "one of its nodes is open" if held else "a usage count has leaked"
        raise tree.fault(f"nv_pci_remove of {address} never returns: {why}")
    tree.remove(f"{_GPUS}/{address}")
    tree.remove(f"{tree.where(device)}/msi_irqs")


def leave(tree: Tree) -> None:
    """nvidia_exit_module(): nv_procfs_exit(), and the flags of the devices go with them."""
    tree.remove("proc/driver/nvidia")
    tree.remove(_PERSISTENT)


def settle(tree: Tree) -> None:
    """nv_start_device() and nv_stop_device(): the first user and the last close."""
    for address in tree.list(_GPUS):
        irq = re.search(r"\birq=(\d+)", tree.read(f"fake/native/{address}") or "")
        if irq is None:
            continue
        file = f"{tree.where(f'{_DEVICES}/{address}')}/msi_irqs/{irq[1]}"
        used = _used(tree, address) or tree.exists(_PERSISTENT) or _starts_at_probe(tree)
        if used and not tree.exists(file):
            tree.put(file, "msi")
        elif not used and tree.exists(file):
            tree.remove(file)


def _starts_at_probe(tree: Tree) -> bool:
    """nvl->init_on_probe: nv_pci_probe() starts the device, and only nv_pci_remove() stops it."""
    return "NVreg_GpuInitOnProbe=1" in (tree.read("fake/options") or "")


def _used(tree: Tree, address: str) -> bool:
    """The usage count: open files, nvidia_drm with modeset=1, and what nobody gives back."""
    return (
        any(fbdev.holding(tree, node) for node in _nodes(tree, address))
        or (bool(tree.list(f"{_DEVICES}/{address}/drm")) and tree.read(_MODESET) != "N")
        or tree.exists(f"fake/leak/{address}")
    )


def _nodes(tree: Tree, address: str) -> list[str]:
    text = tree.read(f"{_GPUS}/{address}/information") or ""
    return [f"dev/nvidia{text.split()[-1]}"] if text else []


def smi(tree: Tree, command: tuple[str, ...]) -> str:
    """nvidia-smi -i ADDRESS -pm 0: opens the GPU and closes it again. Raises HostError."""
    if not tree.exists("sys/module/nvidia/initstate"):
        raise HostError(f"{' '.join(command)} failed: couldn't communicate with the driver")
    if command[-2:] == ("-pm", "0"):
        tree.remove(_PERSISTENT)
    settle(tree)
    return ""
