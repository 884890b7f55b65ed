"""The framebuffer console (Linux drivers/video/fbdev/core/fbcon.c).

Its variables con2fb_map[] lie in ioctl/con2fbmap, as FBIOGET_CON2FBMAP gives
them, and the others in fake/fbcon.

A kernel without /proc/fb is built with FB_DEVICE=n: it has neither /dev/fbN nor
/sys/class/graphics/fbN (drivers/video/fbdev/core/Makefile leaves out fb_chrdev.o, fb_procfs.o
and fbsysfs.o), and fbcon works as ever. There fbcon_registered_fb[] lies in fake/fb/fbN, the
device and the name of each, and con2fb_map[] in fake/con2fbmap.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import asdict, dataclass, replace

from vfio_console_hook.errors import HostError
from vfio_console_hook.machine.host.consoles import CONSOLES
from vfio_console_hook.machine.snapshot import pack_console_map, unpack_console_map

from . import vt
from .tree import Tree

_STATE = "fake/fbcon"
REGISTRY = "fake/fb"
_GRAPHICS = "sys/class/graphics"
_FB_MAX = 32
Map = list["int | None"]


@dataclass
class Variables:
    """info_idx: the framebuffer for consoles without one, -1 for none."""

    info_idx: int
    primary_device: int
    con2fb_map_boot: str
    has_console_bind: bool
    deferred_takeover: bool


def _variables(tree: Tree) -> Variables:
    text = tree.read(_STATE)
    if text is not None:
        return Variables(**json.loads(text))
    fbs = registered(tree)
    # FRAMEBUFFER_CONSOLE_DEFERRED_TAKEOVER: fb_con is registered with the first text.
    graphics = tree.exists(f"{_GRAPHICS}/fbcon")
    deferred = graphics and bool(fbs) and vt.find(tree, vt.FBCON) is None
    mapped = [index for index in con2fb_map(tree) if index in fbs]
    first = mapped[0] if mapped else min(fbs, default=-1)
    primary = next((fb for fb in fbs if _is_primary_device(tree, fb)), -1)
    # Where a primary device was found all consoles boot on it (fbcon_select_primary);
    # else they stay where they were mapped, 0 by default.
    boot: Map = [max(primary, 0) if index is None else index for index in con2fb_map(tree)]
    first = -1 if deferred else first
    bound = vt.is_bound(tree, vt.FBCON)
    return Variables(first, primary, pack_console_map(boot), bound, deferred)


def _keep(tree: Tree, variables: Variables) -> None:
    tree.put(_STATE, json.dumps(asdict(variables)))


def has_devices(tree: Tree) -> bool:
    """FB_DEVICE=y: fb_init_procfs() makes /proc/fb, whether there is a framebuffer or not."""
    return tree.exists("proc/fb")


def registered(tree: Tree) -> list[int]:
    """fbcon_registered_fb[]."""
    names = tree.list(_GRAPHICS if has_devices(tree) else REGISTRY)
    return sorted(int(name[2:]) for name in names if name[:2] == "fb" and name[2:].isdigit())


def device_of(tree: Tree, index: int) -> str:
    """The device of a framebuffer, as a real path in sysfs."""
    if has_devices(tree):
        return tree.real(f"{_GRAPHICS}/fb{index}/device") or ""
    return (tree.read(f"{REGISTRY}/fb{index}") or "").partition("\n")[0]


def learn(tree: Tree) -> None:
    """Write down, before anything changes, which framebuffers a kernel without devices has.

    They are numbered as the drivers came: that of the firmware, which no DRM card shows,
    first. The consoles are on the primary device, or on the first one.
    """
    if has_devices(tree) or tree.exists(REGISTRY):
        return
    tree.make_directory(REGISTRY)
    platform = "sys/bus/platform/devices"
    devices = [
        tree.where(f"{platform}/{name}")
        for name in tree.list(platform)
        if re.match(r"(efi|vesa|simple|vga)-framebuffer", name)
        and tree.link_name(f"{platform}/{name}/driver")
        and not tree.list(f"{platform}/{name}/drm")
    ]
    cards = [name for name in tree.list("sys/class/drm") if re.fullmatch(r"card\d+", name)]
    for card in sorted(cards, key=lambda name: int(name[4:])):
        if any(name.startswith(f"{card}-") for name in tree.list("sys/class/drm")):
            devices.append(tree.where(f"sys/class/drm/{card}/device"))
    for number, device in enumerate(devices):
        tree.put(f"{REGISTRY}/fb{number}", f"{device}\n{device.rpartition('/')[2]}")
    primary = next((n for n in range(len(devices)) if _is_primary_device(tree, n)), 0)
    if vt.is_bound(tree, vt.FBCON):
        _set_map(tree, [primary] * len(CONSOLES))


def _map_file(tree: Tree) -> str:
    return "ioctl/con2fbmap" if has_devices(tree) else "fake/con2fbmap"


def con2fb_map(tree: Tree) -> Map:
    return list(unpack_console_map(tree.read(_map_file(tree)) or ""))


def _set_map(tree: Tree, indices: Map) -> None:
    if registered(tree):
        tree.put(_map_file(tree), pack_console_map(indices))
    else:
        tree.remove(_map_file(tree))  # no framebuffer is left to be asked
    if vt.is_bound(tree, vt.FBCON):
        _show(tree)


def _show(tree: Tree) -> None:
    """fbcon_init(), con2fb_init_display(): set_par of the framebuffer with the visible console.

    drm_fb_helper_set_par() lights every connector with a monitor. Nothing puts one out but
    another DRM client.
    """
    first = con2fb_map(tree)[0]
    device = "" if first is None else device_of(tree, first)
    for card in tree.list(f"{device}/drm") if device else ():
        for name in tree.list(f"{device}/drm/{card}"):
            connector = f"{device}/drm/{card}/{name}"
            if tree.read(f"{connector}/status") in ("connected", "unknown"):
                tree.put(f"{connector}/enabled", "enabled")


def _is_primary_device(tree: Tree, index: int) -> bool:
    """fb_is_primary_device() (arch/x86/video): never a firmware one, whose device is no PCI device.

    5.10 to 6.12: the default VGA device. 6.17 to 6.19: that, or the owner of the
    firmware framebuffer. 7.x: the owner, and the default VGA device without one.
    """
    device = device_of(tree, index)
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
    vt.take_over(tree, vt.FBCON)
    _set_map(tree, [index] * len(CONSOLES))
    _keep(tree, replace(_variables(tree), has_console_bind=True))


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
    if variables.deferred_takeover:
        _keep(tree, variables)
        return
    if variables.info_idx < 0:
        if index in boot:
            variables.info_idx = index
        _keep(tree, variables)
        if index in boot:
            _take_over(tree, index)
        return
    _keep(tree, variables)
    for console, wanted in zip(CONSOLES, boot):
        if wanted == index:
            _set_con2fb_map(tree, console, index)


def fb_unbind(tree: Tree, index: int) -> None:
    """fbcon_fb_unbind(), while the framebuffer is still registered."""
    indices = con2fb_map(tree)
    variables = _variables(tree)
    # Not the same as being bound: store_bind() of vt.c binds fbcon without a word to it, and
    # then the consoles are left where they are (seen on 6.12: the next text is an Oops).
    if not variables.has_console_bind:
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
    if vt.unbind(tree, vt.FBCON):
        _keep(tree, replace(variables, has_console_bind=False))


def fb_unregistered(tree: Tree, index: int) -> None:
    """fbcon_fb_unregistered(), after the framebuffer has left sysfs."""
    variables = _variables(tree)
    left = registered(tree)
    if variables.deferred_takeover:
        _keep(tree, variables)
        return
    if vt.is_bound(tree, vt.FBCON) and index in con2fb_map(tree) and left:
        raise tree.fault("NULL pointer dereference in fbcon_cursor: its framebuffer is gone")
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


def print_text(tree: Tree) -> None:
    """dummycon_putcs() calls fbcon_output_notifier(), and that fbcon_register_existing_fbs()."""
    variables = _variables(tree)
    if not variables.deferred_takeover or not vt.is_bound(tree, vt.DUMMY):
        return
    _keep(tree, replace(variables, deferred_takeover=False))
    for index in registered(tree):
        fb_registered(tree, index)


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
