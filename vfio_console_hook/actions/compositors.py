"""Compositors that open every GPU at their start, and the setting of each to leave one alone.

They keep a GPU open even if no monitor of theirs is on it. None of them takes the setting
while it runs. Sources: KWin, Environment Variables in its wiki, and wlroots,
docs/env_vars.md: lists of the cards that they may use, separated by colons, so a path with
colons cannot stand there; aquamarine (Hyprland) has the same under its own name, and reads
it before its configuration. mutter, src/backends/native/meta-udev.c: a tag of udev. niri's
wiki, Debug Options. cosmic-comp, src/backend/kms/mod.rs: cards that it must not use.

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
from ..machine.holders import Search
from ..machine.host import Host

_LISTS = {
    "kwin_wayland": "KWIN_DRM_DEVICES",
    "Hyprland": "AQ_DRM_DEVICES",
    "sway": "WLR_DRM_DEVICES",
    "labwc": "WLR_DRM_DEVICES",
    "wayfire": "WLR_DRM_DEVICES",
    "river": "WLR_DRM_DEVICES",
}
_DROP = ("kwin_wayland",)
KNOWN = frozenset((*_LISTS, "gnome-shell", "mutter", "niri", "cosmic-comp"))
"""The commands of the compositors that are known here."""
_UDEV = "/etc/udev/rules.d/61-vm-gpu.rules"


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
    obeying = [one.command for one in found if one.command in _DROP and not _has_list(host, one)]
    return tuple(dict.fromkeys(obeying))


def _rank(host: Host, card: drm.Card, statuses: tuple[str, ...]) -> tuple[int, int, int]:
    shown = [one.name for one in card.connectors if one.status in statuses]
    internal = sum("-eDP-" in name or "-LVDS-" in name or "-DSI-" in name for name in shown)
    return internal, len(shown), host.read(f"sys/bus/pci/devices/{card.pci}/boot_vga") == "1"


def _outranks(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    shows = one[1] > 0
    return shows and all(mine >= its for mine, its in zip(one, other)) and one[2] > other[2]


def _has_list(host: Host, one: Holder) -> bool:
    """Whether a process has a list of the cards that it may use, or may have one."""
    try:
        environment = host.read_bytes(f"proc/{one.pid}/environ") or b""
    except HostError:
        return True
    return f"{_LISTS[one.command]}=".encode() in environment


def setting(host: Host, holders: Sequence[Holder], leaving: Collection[str]) -> str:
    """What keeps a compositor off the GPUs that leave, as a hint.

    "" if none of these processes is one that we know, or no monitor of the host is on
    another GPU: then it would have nothing left to show.
    """
    others = [card for card in drm.cards(host) if card.pci not in leaving and card.has_monitor]
    if not others:
        return ""
    staying = ":".join(f"/dev/dri/{card.name}" for card in others)
    for one in holders:
        line = _line(host, one.command, staying, leaving)
        if line:
            return f"so that {one.command}, whose screen is on another GPU, leaves it alone, {line}"
    return ""


def _line(host: Host, command: str, staying: str, leaving: Collection[str]) -> str:
    if command in _LISTS:
        variable = f"{_LISTS[command]}={staying}"
        return f"add {variable} to /etc/environment, and log in again"
    address = next(iter(leaving))
    if command == "gnome-shell":
        rule = f'SUBSYSTEM=="drm", KERNELS=="{address}", TAG+="mutter-device-ignore"'
        return f"put `{rule}` into {_UDEV}, and reboot"
    if command == "niri":
        path = f"/dev/dri/by-path/pci-{address}-card"
        return f'add `debug {{ ignore-drm-device "{path}" }}` to its config.kdl, and log in again'
    if command == "cosmic-comp":
        device = f"sys/bus/pci/devices/{address}"
        ids = [host.read(f"{device}/{name}") or "" for name in ("vendor", "device")]
        blocked = f"COSMIC_DRM_BLOCK_DEVICES={':'.join(ids)}"
        return f"add {blocked} to /etc/environment, and log in again"
    return ""
