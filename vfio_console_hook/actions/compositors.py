"""Compositors that open every GPU at their start, and the setting of each to leave one alone.

They keep a GPU open even if no monitor of theirs is on it. None of them takes the setting
while it runs. Sources: KWin, Environment Variables in its wiki, and wlroots,
docs/env_vars.md: lists of the cards that they may use, separated by colons, so a path with
colons cannot stand there; aquamarine (Hyprland) has the same under its own name, and reads
it before its configuration. mutter, src/backends/native/meta-udev.c: a tag of udev. niri's
wiki, Debug Options. cosmic-comp, src/backend/kms/mod.rs: cards that it must not use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..machine import drm
from ..machine.holders import Holder
from ..machine.host import Host

_LISTS = {
    "kwin_wayland": "KWIN_DRM_DEVICES",
    "Hyprland": "AQ_DRM_DEVICES",
    "sway": "WLR_DRM_DEVICES",
    "labwc": "WLR_DRM_DEVICES",
    "wayfire": "WLR_DRM_DEVICES",
    "river": "WLR_DRM_DEVICES",
}
_UDEV = "/etc/udev/rules.d/61-vm-gpu.rules"


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
