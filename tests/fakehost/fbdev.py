"""Framebuffers and DRM cards as devices (Linux drivers/video/fbdev/core/fbmem.c, drm_drv.c)."""

from __future__ import annotations

import os

from . import fbcon, resources
from .tree import Tree

_HELD = "fake/held"


def _lowest_free(tree: Tree, kind: str, prefix: str, start: int) -> str:
    taken = tree.list(f"sys/class/{kind}")
    return next(f"{prefix}{n}" for n in range(start, 256) if f"{prefix}{n}" not in taken)


def _add_node(tree: Tree, device: str, kind: str, name: str) -> None:
    folder = f"{device}/{kind}/{name}"
    tree.make_directory(folder)
    tree.link(f"{folder}/device", device)
    tree.link(f"sys/class/{kind}/{name}", folder)


def _remove_node(tree: Tree, device: str, kind: str, name: str, node: str) -> None:
    tree.remove(f"sys/class/{kind}/{name}")
    tree.remove(f"{device}/{kind}/{name}")
    tree.remove_if_empty(f"{device}/{kind}")
    if tree.exists(node):
        tree.remove(node)
        # devtmpfs unlinks the node below processes that have it open.
        for link in holding(tree, node):
            tree.remove(link)
            os.symlink(f"/{node} (deleted)", tree.path(link))


def register(tree: Tree, device: str, title: str, memory: tuple[int, int]) -> str:
    """register_framebuffer() for a device, a real path in sysfs; returns its name, "fb0".

    memory is start and size as FBIOGET_FSCREENINFO gives them.
    """
    taken = fbcon.registered(tree)
    fb = next(f"fb{n}" for n in range(256) if n not in taken)
    if not fbcon.has_devices(tree):
        tree.put(f"{fbcon.REGISTRY}/{fb}", f"{device}\n{title}")
        fbcon.fb_registered(tree, int(fb[2:]))
        return fb
    _add_node(tree, device, "graphics", fb)
    tree.put(f"{device}/graphics/{fb}/name", title)
    tree.put(f"dev/{fb}", "")
    tree.put(f"ioctl/{fb}/memory", f"{memory[0]:#x} {memory[1]}")
    lines = [line for line in (tree.read("proc/fb") or "").splitlines() if line]
    lines = sorted([*lines, f"{fb[2:]} {title}"], key=lambda line: int(line.split()[0]))
    tree.put("proc/fb", "\n".join(lines))
    fbcon.fb_registered(tree, int(fb[2:]))
    return fb


def unregister(tree: Tree, device: str, fb: str) -> None:
    """unregister_framebuffer(): the consoles leave first, then the nodes go."""
    fbcon.fb_unbind(tree, int(fb[2:]))
    if not fbcon.has_devices(tree):
        tree.remove(f"{fbcon.REGISTRY}/{fb}")
        fbcon.fb_unregistered(tree, int(fb[2:]))
        return
    _remove_node(tree, device, "graphics", fb, f"dev/{fb}")
    tree.remove(f"ioctl/{fb}")
    lines = (tree.read("proc/fb") or "").splitlines()
    tree.put("proc/fb", "\n".join(line for line in lines if line.split()[:1] != [fb[2:]]))
    fbcon.fb_unregistered(tree, int(fb[2:]))


def framebuffers(tree: Tree, device: str) -> tuple[str, ...]:
    """Those of a device, a real path in sysfs."""
    fbs = (f"fb{n}" for n in fbcon.registered(tree) if fbcon.device_of(tree, n) == device)
    return tuple(fbs)


_STATUSES = "fake/connectors"


def add_card(
    tree: Tree,
    device: str,
    *,
    render: bool = False,
    connectors: tuple[str, ...] = (),
    unplugged: bool = False,
) -> None:
    """drm_dev_register() of a driver that shows pictures; unplugged: on no monitor."""
    card = _lowest_free(tree, "drm", "card", 0)
    names = [card] + ([_lowest_free(tree, "drm", "renderD", 128)] if render else [])
    for name in names:
        _add_node(tree, device, "drm", name)
        if tree.exists("dev/dri"):
            tree.put(f"dev/dri/{name}", "")
    # create_compat_control_link
    tree.link(f"{device}/drm/controlD{int(card[4:]) + 64}", f"{device}/drm/{card}")
    for connector in connectors:  # drm_sysfs_connector_add
        name = f"{card}-{_next_connector(tree, connector.rpartition('-')[0])}"
        tree.make_directory(f"{device}/drm/{card}/{name}")
        tree.link(f"sys/class/drm/{name}", f"{device}/drm/{card}/{name}")
        # Some machines with fb devices were recorded without these.
        before = tree.read(f"{_STATUSES}/{os.path.basename(device)}/{connector}")
        if before or not fbcon.has_devices(tree):
            status = "disconnected" if unplugged else before or "connected"
            tree.put(f"{device}/drm/{card}/{name}/status", status)
            tree.put(f"{device}/drm/{card}/{name}/enabled", "disabled")


def _next_connector(tree: Tree, kind: str) -> str:
    """drm_connector_init(): the lowest number that no connector of that kind has on any card."""
    # card0-HDMI-A-1 is the first of the kind HDMI-A.
    taken = {name.partition("-")[2] for name in tree.list("sys/class/drm")}
    return next(f"{kind}-{n}" for n in range(1, 256) if f"{kind}-{n}" not in taken)


def remove_cards(tree: Tree, device: str) -> None:
    """drm_dev_unplug()."""
    for name in tree.list(f"{device}/drm"):
        for connector in tree.list("sys/class/drm"):
            if connector.startswith(f"{name}-"):
                status = tree.read(f"sys/class/drm/{connector}/status")
                kept = f"{_STATUSES}/{os.path.basename(device)}/{connector.partition('-')[2]}"
                if status and not tree.exists(kept):  # the monitor stays where it is
                    tree.put(kept, status)
                tree.remove(f"sys/class/drm/{connector}")
        _remove_node(tree, device, "drm", name, f"dev/dri/{name}")


def holding(tree: Tree, node: str) -> list[str]:
    """The links in /proc that show which process has a node open, such as "dev/fb0"."""
    return [
        f"proc/{pid}/fd/{number}"
        for pid in tree.list("proc")
        if pid.isdigit()
        for number in tree.list(f"proc/{pid}/fd")
        if tree.readlink(f"proc/{pid}/fd/{number}") == f"/{node}"
    ]


def destroy_at_last_close(tree: Tree, node: str, first: int, last: int, name: str) -> None:
    """put_fb_info(): the driver's fb_destroy frees the memory when no process has it open.

    Called after unregister().
    """
    if holding(tree, f"{node} (deleted)"):
        lines = [*(tree.read(_HELD) or "").splitlines(), f"{node} {first:x} {last:x} {name}"]
        tree.put(_HELD, "\n".join(lines))
    else:
        resources.release(tree, first, last, name)


def unsettled(tree: Tree) -> bool:
    """Whether there may be something for settle() to do."""
    return bool(tree.read(_HELD))


def settle(tree: Tree) -> None:
    """Free the memory of framebuffers that are gone and have been closed since."""
    lines = (tree.read(_HELD) or "").splitlines()
    still = [line for line in lines if holding(tree, line.split()[0] + " (deleted)")]
    for line in lines:
        if line not in still:
            _, first, last, name = line.split()
            resources.release(tree, int(first, 16), int(last, 16), name)
    if still != lines:
        tree.put(_HELD, "\n".join(still))
