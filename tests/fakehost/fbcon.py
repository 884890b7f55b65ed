"""The framebuffer console (Linux drivers/video/fbdev/core/fbcon.c).

Its variables con2fb_map[] lie in ioctl/con2fbmap, as FBIOGET_CON2FBMAP gives
them, and info_idx, primary_device and con2fb_map_boot[] in fake/fbcon.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass

from vfio_console_hook.errors import HostError
from vfio_console_hook.machine.host.consoles import CONSOLES
from vfio_console_hook.machine.snapshot import pack_console_map, unpack_console_map

from . import vt
from .tree import Tree

_STATE = "fake/fbcon"
_MAP = "ioctl/con2fbmap"
_FB_MAX = 32
Map = list["int | None"]


@dataclass
class Variables:
    """info_idx: the framebuffer for consoles without one, -1 for none."""

    info_idx: int
    primary_device: int
    con2fb_map_boot: str


def _variables(tree: Tree) -> Variables:
    text = tree.read(_STATE)
    if text is not None:
        return Variables(**json.loads(text))
    fbs = registered(tree)
    mapped = [index for index in con2fb_map(tree) if index in fbs]
    first = mapped[0] if mapped else min(fbs, default=-1)
    primary = next((fb for fb in fbs if _is_primary_device(tree, fb)), -1)
    # Where a primary device was found all consoles boot on it (fbcon_select_primary);
    # else they stay where they were mapped, 0 by default.
    boot: Map = [max(primary, 0) if index is None else index for index in con2fb_map(tree)]
    return Variables(first, primary, pack_console_map(boot))


def _keep(tree: Tree, variables: Variables) -> None:
    tree.put(_STATE, json.dumps(asdict(variables)))


def registered(tree: Tree) -> list[int]:
    names = tree.list("sys/class/graphics")
    return sorted(int(name[2:]) for name in names if name[:2] == "fb" and name[2:].isdigit())


def con2fb_map(tree: Tree) -> Map:
    return list(unpack_console_map(tree.read(_MAP) or ""))


def _set_map(tree: Tree, indices: Map) -> None:
    if registered(tree):
        tree.put(_MAP, pack_console_map(indices))
    else:
        tree.remove(_MAP)  # no framebuffer is left to be asked


def _is_primary_device(tree: Tree, index: int) -> bool:
    """fb_is_primary_device() (arch/x86/video): never a firmware one, whose device is no PCI device.

    5.10 to 6.12: the default VGA device. 6.17 to 6.19: that, or the owner of the
    firmware framebuffer. 7.x: the owner, and the default VGA device without one.
    """
    device = tree.real(f"sys/class/graphics/fb{index}/device") or ""
    boot_vga = tree.read(f"{device}/boot_vga") == "1"
    owner = tree.read("fake/owner") or None
    owns = owner is not None and device.endswith(owner)
    if tree.link_name(f"{device}/subsystem") != "pci" or tree.release() < (6, 17, 0):
        return boot_vga
    if tree.release() < (7, 0, 0) or owner is None:
        return boot_vga or owns
    return owns


def _take_over(tree: Tree, index: int) -> None:
    """do_fbcon_takeover(): all consoles, whichever driver had them."""
    _set_map(tree, [index] * len(CONSOLES))
    vt.take_over(tree, vt.FBCON)


def fb_registered(tree: Tree, index: int) -> None:
    """fbcon_fb_registered(), after the framebuffer is in sysfs."""
    variables = _variables(tree)
    boot = unpack_console_map(variables.con2fb_map_boot)
    if variables.primary_device < 0 and _is_primary_device(tree, index):
        variables.primary_device = index
        boot = (index,) * len(CONSOLES)
        variables.con2fb_map_boot = pack_console_map(boot)
        if vt.is_bound(tree, vt.FBCON):
            variables.info_idx = index
    if variables.info_idx < 0:
        if index in boot:
            variables.info_idx = index
            _take_over(tree, index)
        _keep(tree, variables)
        return
    _keep(tree, variables)
    for console, wanted in zip(CONSOLES, boot):
        if wanted == index:
            _set_con2fb_map(tree, console, index)


def fb_unbind(tree: Tree, index: int) -> None:
    """fbcon_fb_unbind(), while the framebuffer is still registered."""
    indices = con2fb_map(tree)
    if not vt.is_bound(tree, vt.FBCON):
        return
    other = next((one for one in indices if one not in (index, None)), None)
    if other is not None:
        for console, mapped in zip(CONSOLES, indices):
            if mapped == index:
                _set_con2fb_map(tree, console, other)
        return
    # The kernel does not look for another framebuffer: all consoles are mapped to none, and
    # fbcon gives them up.
    _set_map(tree, [None] * len(CONSOLES))
    vt.unbind(tree, vt.FBCON)


def fb_unregistered(tree: Tree, index: int) -> None:
    """fbcon_fb_unregistered(), after the framebuffer has left sysfs."""
    variables = _variables(tree)
    left = registered(tree)
    indices: Map = [None if one == index else one for one in con2fb_map(tree)]
    if variables.info_idx == index:
        variables.info_idx = left[0] if left else -1
    if variables.info_idx >= 0:
        # The map says that framebuffer from now on, and nothing is bound to it.
        indices = [variables.info_idx if one is None else one for one in indices]
    if variables.primary_device == index:
        variables.primary_device = -1
    _set_map(tree, indices)
    _keep(tree, variables)
    if not left and vt.find(tree, vt.FBCON) is not None and not vt.unregister(tree, vt.FBCON):
        raise tree.fault("NULL pointer dereference in fbcon_cursor: the last framebuffer is gone")


def _set_con2fb_map(tree: Tree, console: int, index: int) -> None:
    """set_con2fb_map()."""
    indices = con2fb_map(tree)
    if indices[console - 1] == index:
        return
    variables = _variables(tree)
    if not any(one is not None for one in indices) or not vt.is_bound(tree, vt.FBCON):
        variables.info_idx = index
        _keep(tree, variables)
        _take_over(tree, index)
        return
    indices[console - 1] = index
    boot = list(unpack_console_map(variables.con2fb_map_boot))
    boot[console - 1] = index
    variables.con2fb_map_boot = pack_console_map(boot)
    _keep(tree, variables)
    _set_map(tree, indices)


def put_con2fb_map(tree: Tree, fb: str, console: int, index: int) -> None:
    """FBIOPUT_CON2FBMAP (fbcon_set_con2fb_map_ioctl). Raises HostError."""
    if not tree.exists(f"dev/{fb}"):
        raise HostError(f"cannot map console {console}: no /dev/{fb}", path=f"/dev/{fb}")
    known = console in CONSOLES and 0 <= index < _FB_MAX and index in registered(tree)
    if not known:
        refused = OSError(errno.EINVAL, "")
        raise HostError.of("ask (ioctl 0x4610)", f"/dev/{fb}", refused)
    _set_con2fb_map(tree, console, index)


def write_bind(tree: Tree, node: str, text: str) -> None:
    """store_bind(): whatever becomes of it, the write succeeds."""
    title = tree.read(f"{vt.CLASS}/{node}/name") or ""
    name = title.partition(" ")[2]
    digits = text.strip()
    if digits.isdigit() and int(digits):
        _bind(tree, name)
    elif not title.startswith("(S)"):
        _unbind(tree, name)


def _bind(tree: Tree, name: str) -> None:
    variables = _variables(tree)
    if name == vt.FBCON and variables.info_idx < 0:
        return  # fbcon_startup() finds no framebuffer
    if vt.bind(tree, name) and name == vt.FBCON:
        # fbcon_init() maps a console that has none. In truth only consoles that
        # are open; the rest follows when it is opened.
        _set_map(tree, [variables.info_idx if i is None else i for i in con2fb_map(tree)])


def _unbind(tree: Tree, name: str) -> None:
    if vt.is_bound(tree, name) and vt.unbind(tree, name) and name == vt.FBCON:
        _set_map(tree, [None] * len(CONSOLES))  # fbcon_deinit(), fbcon_release_all()
