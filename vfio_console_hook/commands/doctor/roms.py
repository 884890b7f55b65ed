"""The check of the ROM files that VMs have in place of their GPUs' own ROMs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...machine import rom
from ...machine.host import Host
from .finding import Finding, check, failure, passed, unrecorded, warning
from .system import System

_QEMU_CONF = "etc/libvirt/qemu.conf"
# QEMU's user on distributions: --with-qemu-user in their packages of libvirt.
_USERS = ("libvirt-qemu", "qemu", "nobody")

_ID = re.compile("[0-9]{1,10}")


@check("ROM files")
def rom_files(system: System) -> Iterator[Finding]:
    """Whether each ROM file is there, can be read by QEMU, and is a ROM."""
    host = system.host
    for vm in system.domains:
        for hostdev in vm.hostdevs:
            if hostdev.rom and not unrecorded(host, hostdev.rom.lstrip("/")):
                title = f"ROM of {hostdev.address} in VM {vm.name}"
                yield _finding(host, title, hostdev.rom)


def _finding(host: Host, title: str, path: str) -> Finding:
    missing = rom.why_missing(host, path)
    if missing:
        text = f"{path} {missing}, so QEMU does not start"
        return failure(text, "correct <rom file=...> in its <hostdev>, or remove it", of=title)
    first = host.peek(path.lstrip("/"), 0, len(rom.SIGNATURE))
    user = _user_of_qemu(host)
    closed = _closed_to(host, path.lstrip("/"), user) if user is not None else ""
    if user is not None and closed:
        text = f"QEMU runs as the user {user.name}, who cannot {closed}: it does not start"
        return failure(text, f"move it to /usr/share/vgabios, and chmod 644 {path}", of=title)
    if first != rom.SIGNATURE:
        return warning(
            f"{path} does not begin with 55 aa, so the firmware of the VM ignores it",
            "dump it anew, or cut off what is before 55 aa: nvflash puts a header there",
            of=title,
        )
    who = f"; {user.name} can read it" if user is not None else ""
    return passed(f"{path} begins with 55 aa{who}", of=title)


@dataclass(frozen=True)
class _User:
    """QEMU's user."""

    name: str
    uid: int
    gids: frozenset[int]


def _user_of_qemu(host: Host) -> _User | None:
    """Who reads the ROM, if the host shows that: `user` in qemu.conf, or the package's user."""
    found = re.search(r'^\s*user\s*=\s*"?([^"\s]+)', host.read(_QEMU_CONF) or "", re.MULTILINE)
    wanted = (found[1].lstrip("+"),) if found else _USERS
    users = {words[0]: words for words in _lines(host, "etc/passwd") if len(words) > 3}
    words = next((users[one] for one in wanted if one in users), None)
    if words is None or not (_ID.fullmatch(words[2]) and _ID.fullmatch(words[3])):
        return None
    name = words[0]
    groups = (one[2] for one in _lines(host, "etc/group") if name in one[-1].split(","))
    gids = frozenset(int(one) for one in (words[3], *groups) if _ID.fullmatch(one))
    return _User(name, int(words[2]), gids)


def _lines(host: Host, path: str) -> list[list[str]]:
    """The lines of /etc/passwd or /etc/group in their parts."""
    found = [line.split(":") for line in (host.read(path) or "").splitlines()]
    return [words for words in found if len(words) > 3]


def _closed_to(host: Host, path: str, user: _User) -> str:
    """What the user cannot do on the way to a file, as a clause; "" if all is open."""
    if user.uid == 0:
        return ""
    real = host.real(path) or path
    parts = real.split("/")
    for number in range(1, len(parts)):
        folder = "/".join(parts[:number])
        if not _allowed(host, folder, user, 0o1):
            return f"enter /{folder}"
    return "" if _allowed(host, real, user, 0o4) else f"read /{real}"


def _allowed(host: Host, path: str, user: _User, bit: int) -> bool:
    """Whether the mode of a file lets a user read (4) or enter (1) it (path_resolution(7))."""
    status = host.stat(path)
    if status is None:
        return True
    shift = 6 if status.st_uid == user.uid else 3 if status.st_gid in user.gids else 0
    return bool(status.st_mode >> shift & bit)
