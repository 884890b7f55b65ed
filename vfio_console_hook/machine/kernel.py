"""What the running kernel does by itself, found by looking at the kernel."""

from __future__ import annotations

import json
import re

from ..errors import ClaimError
from . import runfiles
from .host import Host
from .runfiles import RUN

_CACHE = f"{RUN}/kernel"


def removes_consoles(host: Host) -> bool:
    """Whether vfio-pci of this kernel removes console drivers itself, for class 0300.

    It does where it can call aperture_remove_conflicting_pci_devices: Linux
    commit d17378062079 ("vfio/pci: Remove console drivers") (in v6.0) and its
    backports. A vendor's vfio-pci may differ, so start looks again.
    """
    cached = _read_cache(host)
    if cached is not None:
        return cached
    answer = has_symbol(host, "aperture_remove_conflicting_pci_devices")
    if answer is None:
        # No symbol table in this kernel: only its version is left to ask.
        answer = release(host) >= (6, 0)
    _write_cache(host, answer)
    return answer


def release(host: Host) -> tuple[int, int, int]:
    """The kernel's version, such as (6, 12, 107); zeros for what is not known.

    Distributions with numbers of their own have 0 in the last place: Debian's
    6.1.176 calls itself "6.1.0-44-amd64".
    """
    text = host.read("proc/sys/kernel/osrelease") or ""
    numbers = re.match(r"([0-9]{1,9})\.([0-9]{1,9})(?:\.([0-9]{1,9}))?", text)
    major, minor, patch = numbers.groups() if numbers else ("0", "0", "0")
    return int(major), int(minor), int(patch or 0)


def locked_down(host: Host) -> bool:
    """Whether PCI config space is closed to us (Linux security/lockdown, LOCKDOWN_PCI_ACCESS)."""
    state = host.read("sys/kernel/security/lockdown")
    return state is not None and "[none]" not in state


def parameter(host: Host, name: str) -> tuple[str, ...] | None:
    """The values of a parameter on the kernel command line, split at commas; None without it.

    name has "_" for "-", which are the same to the kernel (kernel/params.c, parameq).
    """
    found = None
    for word in (host.read("proc/cmdline") or "").split():
        key, _, value = word.partition("=")
        if key.replace("-", "_") == name:
            found = (*(found or ()), *(one for one in value.split(",") if one))
    return found


def has_symbol(host: Host, name: str) -> bool | None:
    """Whether the kernel or a loaded module has this function; None when that is not known."""
    symbols = host.read_bytes("proc/kallsyms")
    if not symbols:
        return None
    wanted = f" {name}".encode()
    return wanted + b"\n" in symbols or wanted + b"\t" in symbols


def _read_cache(host: Host) -> bool | None:
    # /proc/kallsyms takes 30 ms to read, and its answer holds for the whole boot.
    try:
        cached = json.loads(runfiles.read(host, _CACHE) or "null")
    except (ClaimError, ValueError, RecursionError):
        return None
    if not isinstance(cached, dict) or cached.get("boot") != host.boot_id:
        return None
    answer = cached.get("removes_consoles")
    return answer if isinstance(answer, bool) else None


def _write_cache(host: Host, answer: bool) -> None:
    if not host.exists(RUN):
        return  # no VM has held anything yet, and a look must leave no trace
    try:
        content = json.dumps({"boot": host.boot_id, "removes_consoles": answer})
        runfiles.write(host, _CACHE, content)
    except ClaimError:
        return  # only slower next time; the claim reports what is wrong with the directory
