"""A root of another architecture than this machine's: none of its programs can run here.

So its packages are unpacked and not configured, and what their own scripts would have done for
the lab is done here. The rest systemd does in the machine: it makes the users of sysusers.d, and
the linker's cache (systemd.unit(5), ConditionNeedsUpdate=).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .debian import Suite

ESSENTIAL = "?essential"  # apt-patterns(7)
_LINKS = {
    "usr/bin/awk": "mawk",
    # libvirtd ends without them (src/network/bridge_driver_conf.c).
    "usr/sbin/iptables": "iptables-nft",
    "usr/sbin/ip6tables": "ip6tables-nft",
    "var/run": "/run",
    **{
        f"etc/systemd/system/{wants}.wants/{unit}": f"/usr/lib/systemd/system/{unit}"
        for wants, unit in (
            ("sockets.target", "libvirtd.socket"),
            ("sockets.target", "virtlogd.socket"),
            ("multi-user.target", "libvirtd.service"),
        )
    },
    # They take 20 s in the machine, and nothing there needs them.
    "etc/systemd/system/systemd-hwdb-update.service": "/dev/null",
    "etc/systemd/system/systemd-journal-catalog-update.service": "/dev/null",
}
_USERS = """\
g libvirt -
g libvirt-qemu 64055
u libvirt-qemu 64055:kvm "Libvirt Qemu" /var/lib/libvirt
"""


def unpack(suite: Suite, packages: Sequence[str], root: Path, log: Path) -> None:
    """Make a root with packages and what they depend on."""
    suite.extract((ESSENTIAL, *packages), root, log)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "usr/lib/sysusers.d/lab.conf").write_text(_USERS)
    (root / "var/run").rmdir()  # empty, in the package
    for path, target in _LINKS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
