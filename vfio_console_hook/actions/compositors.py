"""Compositors that open every GPU at their start, and what keeps them off one.

They keep a GPU open even if no monitor of theirs is on it. All of them, and Xorg, leave out cards
of another seat than their own, and logind opens none of these for them, also when a card comes
back after a VM. A seat without a "master-of-seat" never exists, so no login screen appears on it.
Sources: KWin, src/backends/drm/drm_backend.cpp; mutter, src/backends/native/meta-udev.c (muffin
of Cinnamon has it too); aquamarine (Hyprland), src/backend/drm/DRM.cpp, scanGPUs; wlroots,
backend/session/session.c; smithay (niri, COSMIC), src/backend/udev.rs; Xorg, config/udev.c,
check_seat; systemd, src/login/logind-core.c, manager_process_seat_device. The second screen of
Apple's laptops is kept from compositors by the same rule (tiny-dfr, 99-touchbar-seat.rules).
Only Xorg has the boot VGA device open all the same [lab], which it finds on the PCI bus too
(hw/xfree86/common/xf86pciBus.c).

Their own settings are no way for all: KWIN_DRM_DEVICES, WLR_DRM_DEVICES and AQ_DRM_DEVICES list
the cards to use by names whose numbers may be others after a boot, separated by colons, which the
lasting names in /dev/dri/by-path have too. aquamarine opens a card that comes back whatever its
list says (src/backend/Backend.cpp, onNewGpu). COSMIC_DRM_BLOCK_DEVICES takes ids, which two cards
may share. Only mutter's tag ("mutter-device-ignore") is as good, for mutter.

Beside its card NVIDIA's driver has nodes of its own, which belong to no seat. libEGL asks
every vendor's library for a display (libglvnd, README.md, EGL dispatching, and
src/EGL/icd_enumeration.md), and NVIDIA's opens them. Its X driver looks at all its GPUs (README,
X Config Options, ProbeAllGpus).

After a remove event of a card (cards.py) KWin closes it, and after an add event it opens it. Seen
in the lab, with Debian 13: KWin 6.3 closed all its files after 1.2 to 1.8 s, and opened the card
again after 1.1 to 2.3. sway and labwc (wlroots 0.18) keep one file open, for
they never end Mesa's EGL display (render/egl.c, wlr_egl_destroy, without
EGL_KHR_display_reference); mutter 48 ended. So only KWin gets them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import HostError
from ..machine import drm
from ..machine.holder import Holder
from ..machine.holders import COMM, Search
from ..machine.host import Host

_KWIN, _LIST = "kwin_wayland", "KWIN_DRM_DEVICES"
_NAMES = (
    *("cage", "cinnamon", "cosmic-comp", "gala", "gnome-shell", "Hyprland", _KWIN, "labwc"),
    *("mutter", "niri", "phoc", "river", "sway", "wayfire", "Xorg"),
)
# NixOS runs a program NAME through a wrapper, as .NAME-wrapped.
_COMMANDS = {
    command[:COMM]: name for name in _NAMES for command in (name, f".{name}-wrapped")
}  # fmt: skip
# Screens that another GPU draws: DisplayLink's and others at USB, and one that is not there.
_WITHOUT_GPU = ("evdi", "gud", "udl", "vkms")
_EGL, _EGL_FILES = "__EGL_VENDOR_LIBRARY_FILENAMES", "usr/share/glvnd/egl_vendor.d"
# systemd gives out seats and their masters in 71-seat.rules.
_UDEV = "/etc/udev/rules.d/72-vm-gpu.rules"


def is_known(command: str) -> bool:
    """Whether the processes of a command are compositors that leave out cards of other seats."""
    return command in _COMMANDS


def that_drop(host: Host, card: str, leaving: Collection[str]) -> tuple[str, ...]:
    """The compositors that have the card open and will close it after a remove event.

    Without its primary card KWin ends (src/backends/drm/drm_backend.cpp, handleUdevEvent).
    That is the first of its list; else the one with the internal screen, then the one with
    the most screens, then the boot VGA device. So all that must be on a GPU that stays.
    """
    cards = drm.cards(host)
    may_be = ("connected", "unknown")
    ours = next((_rank(host, one, may_be) for one in cards if one.name == card), None)
    staying = (one for one in cards if one.pci and one.pci not in leaving)
    others = [_rank(host, one, ("connected",)) for one in staying]
    if ours is None or not any(_outranks(one, ours) for one in others):
        return ()
    found = Search(host, [f"dev/dri/{card}"]).holders()
    running = [one for one in found if is_known(one.command)]
    obeying = [
        one.command for one in running
        if _COMMANDS[one.command] == _KWIN and _has_list(host, one) is False
    ]  # fmt: skip
    # The event is for all. Of another compositor it might end the session, and no VM would start.
    return tuple(dict.fromkeys(obeying)) if len(obeying) == len(running) else ()


def _rank(host: Host, card: drm.Card, statuses: tuple[str, ...]) -> tuple[int, int, int]:
    shown = [one.name for one in card.connectors if one.status in statuses]
    internal = sum("-eDP-" in name or "-LVDS-" in name or "-DSI-" in name for name in shown)
    return internal, len(shown), _is_boot_vga(host, card.pci)


def _is_boot_vga(host: Host, gpu: str | None) -> bool:
    """What KWin and Xorg go by: the file alone, whatever the class (unlike pci.is_boot_vga())."""
    return host.read(f"sys/bus/pci/devices/{gpu}/boot_vga") == "1"


def _outranks(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    shows = one[1] > 0
    return shows and all(mine >= its for mine, its in zip(one, other)) and one[2] > other[2]


def _has_list(host: Host, one: Holder) -> bool | None:
    """Whether a KWin has a list of the cards that it may use; None if that is not known."""
    try:
        environment = host.read_bytes(f"proc/{one.pid}/environ") or b""
    except HostError:
        return None
    return f"{_LIST}=".encode() in environment


def setting(host: Host, holders: Sequence[Holder], leaving: Collection[str]) -> str:
    """What keeps a compositor off the GPUs that leave, as a hint.

    "" if none of these processes is one that we know and has another GPU open, on which the
    host has a monitor: then it would have nothing left to show.
    """
    elsewhere = Search(host, [f"dev/dri/{card.name}" for card in with_screen(host, leaving)])
    for one in holders:
        if is_known(one.command) and elsewhere.among([one.pid]):
            changes = _changes(host, one, leaving)
            if changes:
                why = f"so that {_COMMANDS[one.command]}, which has a screen on another GPU, leaves"
                return f"{why} it alone, {changes}"
    return ""


def with_screen(host: Host, leaving: Collection[str]) -> list[drm.Card]:
    """The cards that stay and have a monitor, on which a desktop could be."""
    return [
        card
        for card in drm.cards(host)
        if card.pci not in leaving and card.has_monitor and card.driver not in _WITHOUT_GPU
    ]


def _changes(host: Host, one: Holder, leaving: Collection[str]) -> str:
    """What keeps one compositor off these GPUs, and when it takes effect; "" if nothing does."""
    name = _COMMANDS[one.command]
    nodes = [node for node in one.nodes if node.startswith("/dev/nvidia")]
    if nodes == list(one.nodes):
        return _off_nvidia(host, name, leaving)
    if name == "Xorg" and any(_is_boot_vga(host, gpu) for gpu in leaving):
        return ""
    if name == _KWIN and _has_list(host, one):  # then it does not look at seats
        change = f"take its card out of {_LIST}, and log in again"
    else:
        rule = (
            f'SUBSYSTEM=="drm", KERNEL=="card*", KERNELS=="{"|".join(leaving)}",'
            ' TAG-="master-of-seat", ENV{ID_SEAT}="seat-vm"'
        )
        change = f"put `{rule}` into {_UDEV}, and reboot"
    also = _off_nvidia(host, name, leaving) if nodes else ""
    return f"{change}; if it still has {nodes[0]} open then, {also}" if also else change


def _off_nvidia(host: Host, name: str, leaving: Collection[str]) -> str:
    """What keeps a compositor off NVIDIA's own nodes; "" if nothing is known.

    With its screen on another GPU of NVIDIA's it needs that library.
    """
    on_nvidia = any(
        card.driver == "nvidia" and card.pci not in leaving for card in drm.cards(host)
    )
    if name != "Xorg" and not on_nvidia:
        return f"add {_EGL}={_mesa(host)} to /etc/environment, and log in again"
    # On another driver Xorg has it of libEGL too, but what starts it may not read that file.
    if name == "Xorg" and on_nvidia:
        option = 'Option "ProbeAllGpus" "false"'
        return f"set `{option}` in the section Device of xorg.conf, and log in again"
    return ""


def _mesa(host: Host) -> str:
    """The file by which libEGL finds Mesa's library."""
    found = [name for name in host.list(_EGL_FILES) if "mesa" in name]
    return f"/{_EGL_FILES}/{found[0] if found else '50_mesa.json'}"
