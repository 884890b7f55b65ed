"""A holder: a process that has a node of a GPU open or mapped. holders.py finds them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import cut

# They watch for cards that come and go. The kernel cuts a command to 15 characters.
_SOUND_SERVERS = frozenset(
    ("pipewire", "pipewire-media-", "pipewire-pulse", "pulseaudio", "wireplumber")
)
_KEEPERS = ("systemd-logind", "elogind", "elogind-daemon", "seatd")
_MAX_NAME = 64
# The kernel knows no containers. Docker, podman, CRI-O and containerd name a cgroup after the id
# (daemon/daemon_unix.go; libpod/oci_conmon_linux.go; Kubernetes' "cgroupfs" has the bare id); LXC
# after the container (src/lxc/cgroups/cgfsng.c), and Proxmox puts all of them below lxc.
_CONTAINER = re.compile(
    r"/((?:docker|libpod|crio|cri-containerd|nerdctl)-[0-9a-f]+\.scope|[0-9a-f]{64}"
    r"|lxc/[^/]+|lxc\.payload[./][^/]+)(?![^/])"
)


@dataclass(frozen=True)
class Holder:
    """A process and the nodes that it holds; without nodes it could not be inspected.

    cgroup is its path, such as "/system.slice/gdm.service". started, in clock ticks since
    boot, distinguishes it from a later process of the same number.
    """

    pid: int
    command: str
    cgroup: str
    nodes: tuple[str, ...]
    started: int = field(default=0, compare=False)

    @property
    def unknown(self) -> bool:
        return not self.nodes

    @property
    def sound_server(self) -> bool:
        """Whether it closes by itself what it has open when that disappears: only sound."""
        sound = all(node.startswith("/dev/snd/") for node in self.nodes)
        return bool(self.nodes) and sound and self.command in _SOUND_SERVERS

    @property
    def keeper(self) -> bool:
        """Whether it has the cards open for a login session, and closes them with it.

        That is logind, and systemd itself, with which logind stores its files
        (systemd src/login/logind-session-device.c, session_device_save); and seatd
        (seatd/seat.c, seat_remove_client).
        """
        cards = all(node.startswith("/dev/dri/") for node in self.nodes)
        keeps = self.command in _KEEPERS or (self.pid, self.command) == (1, "systemd")
        return bool(self.nodes) and cards and keeps

    @property
    def unit(self) -> str:
        """The innermost unit of the host's systemd that it is part of, or ""."""
        match = _CONTAINER.search(self.cgroup)
        parts = (self.cgroup[: match.end()] if match else self.cgroup).split("/")
        return next((part for part in reversed(parts) if _is_unit(part)), "")

    @property
    def container(self) -> str:
        """The container that it is in, such as "docker-0123456789ab" or "lxc/101", or ""."""
        match = _CONTAINER.search(self.cgroup)
        return re.sub(r"([0-9a-f]{12})[0-9a-f]*(?:\.scope)?$", r"\1", match[1]) if match else ""

    @property
    def name(self) -> str:
        """Such as "Xorg (1234) [gdm.service]"."""
        inside = self.container or self.unit
        place = f" [{printable(inside)}]" if inside else ""
        return f"{printable(self.command)} ({self.pid}){place}"

    def __str__(self) -> str:
        if self.unknown:
            return f"{self.name}, which cannot be inspected"
        more = len(self.nodes) - 1
        nodes = f"{self.nodes[0]} and {more} more" if more > 1 else " and ".join(self.nodes)
        return f"{self.name} with {nodes} open"


def _is_unit(part: str) -> bool:
    return part.endswith((".service", ".scope"))


def printable(text: str, most: int = _MAX_NAME) -> str:
    """A text that any user may have chosen (prctl, PR_SET_NAME), as a part of one line."""
    return cut("".join(sign if sign.isprintable() else "?" for sign in text), most)
