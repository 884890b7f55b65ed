"""SELinux: what its policy allows, asked of the kernel.

The files of selinuxfs take a question in one write and have the answer for the read that
follows (Linux security/selinux/selinuxfs.c, sel_write_access and sel_write_create). A class
and a permission are numbers there, which the policy that is loaded decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import HostError, UnrecordedError
from .host import Host

SELINUX = "sys/fs/selinux"
ACCESS, CREATE = f"{SELINUX}/access", f"{SELINUX}/create"
_PERMISSIVE = 0x1  # AVD_FLAGS_PERMISSIVE, of the domain


def enforcing(host: Host) -> bool | None:
    """Whether SELinux enforces its policy, None where it is not in use. Raises HostError.

    Some kernels have it without any policy on the host; libselinux decides by the
    configuration (src/enabled.c, is_selinux_enabled).
    """
    text = host.read(f"{SELINUX}/enforce")
    if text is None or not host.exists("etc/selinux/config"):
        return None
    return text != "0"


def type_of(label: str) -> str:
    """The type in a label "USER:ROLE:TYPE:LEVEL", or ""."""
    return (label.split(":") + ["", "", ""])[2]


def denied(
    host: Host, source: str, target: str, kind: str, permissions: Collection[str]
) -> tuple[str, ...]:
    """Which of the permissions the policy denies a process in source for an object of target.

    kind is the class of the object, such as "file". None is denied to a permissive domain,
    and none that this policy does not know. Raises HostError.
    """
    answer = host.ask(ACCESS, f"{source} {target} {_number(host, kind)}").split()
    try:
        allowed, flags = int(answer[0], 16), int(answer[5], 16)
    except (ValueError, IndexError) as error:
        raise HostError.unclear(f"/{ACCESS}", " ".join(answer)) from error
    if flags & _PERMISSIVE:
        return ()
    bits = ((one, _bit(host, kind, one)) for one in permissions)
    return tuple(one for one, bit in bits if bit and not allowed & bit)


def created(host: Host, source: str, target: str, kind: str, name: str = "") -> str:
    """The label of what a process in source makes of target: a new process, by executing it.

    For a directory as target, that of a new object of class kind in it; a policy may have a
    type for one of that name. Raises HostError.
    """
    question = f"{source} {target} {_number(host, kind)}"
    return host.ask(CREATE, f"{question} {name}" if name else question).rstrip("\0")


def _number(host: Host, kind: str) -> int:
    return _read_number(host, f"{SELINUX}/class/{kind}/index")


def _bit(host: Host, kind: str, permission: str) -> int:
    """The bit of a permission, 0 if the policy does not know it (sel_make_perm_files)."""
    path = f"{SELINUX}/class/{kind}/perms/{permission}"
    return 1 << _read_number(host, path) >> 1 if host.exists(path) else 0


def _read_number(host: Host, path: str) -> int:
    text = host.read(path)
    if text is None and not host.complete:
        raise UnrecordedError(f"/{path} is not in this snapshot")
    if text is None:
        raise HostError(f"the policy has no /{path}")
    if not re.fullmatch("[0-9]{1,5}", text):
        raise HostError.unclear(f"/{path}", text)
    return int(text)
