"""What the running kernel does by itself, found by looking at the kernel."""

from __future__ import annotations

import json
import re

from ..errors import ClaimError
from . import runfiles
from .host import Host
from .runfiles import RUN

_CACHE = f"{RUN}/kernel"
SYMBOLS = {
    "removes_consoles": "aperture_remove_conflicting_pci_devices",
    "vga_helper": "__aperture_remove_legacy_vga_devices",
}
"""The functions that show what vfio-pci does, by their names in the cache."""


def removes_consoles(host: Host) -> bool:
    """Whether vfio-pci of this kernel removes console drivers itself, for class 0300.

    It does where it can call aperture_remove_conflicting_pci_devices: Linux
    commit d17378062079 ("vfio/pci: Remove console drivers") (in v6.0) and its
    backports. A vendor's vfio-pci may differ, so start looks again. removal.py knows what
    it removes.
    """
    answer = _shown(host)["removes_consoles"]
    # No symbol table in this kernel: only its version is left to ask.
    return release(host) >= (6, 0) if answer is None else answer


def has_vga_helper(host: Host) -> bool | None:
    """Whether legacy VGA is removed by a function of its own; None when that is not known.

    Source: "video/aperture: Provide a VGA helper for gma500 and internal use" (116b1c5a364b)
    (in v6.5), in one series with 5ae3716cfdcd. Debian's 6.1.176 does not have it, its 6.12 does.
    """
    return _shown(host)["vga_helper"]


def release(host: Host) -> tuple[int, int, int]:
    """The kernel's version, such as (6, 12, 107); zeros for what is not known.

    Distributions with numbers of their own have 0 in the last place. Debian's 6.1.176
    calls itself "6.1.0-50-amd64", and only `uname -v` has "Debian 6.1.176-1".
    """
    text = host.read("proc/sys/kernel/osrelease") or ""
    numbers = re.match(r"([0-9]{1,9})\.([0-9]{1,9})(?:\.([0-9]{1,9}))?", text)
    major, minor, patch = numbers.groups() if numbers else ("0", "0", "0")
    if numbers and not int(patch or 0):
        version = host.read("proc/sys/kernel/version") or ""
        debian = re.search(rf"\bDebian {major}\.{minor}\.([0-9]{{1,9}})-", version)
        patch = debian[1] if debian else "0"
    return int(major), int(minor), int(patch or 0)


def locked_down(host: Host) -> bool:
    """Whether PCI config space is closed to us (Linux security/lockdown, LOCKDOWN_PCI_ACCESS)."""
    state = host.read("sys/kernel/security/lockdown")
    return state is not None and "[none]" not in state


# A quote is part of a word, and blanks up to the next one are too.
_WORD = r'(?:[^\s"]|"[^"]*(?:"|$))+'


def command_line(host: Host) -> tuple[tuple[str, str, str], ...]:
    """The options on the kernel command line, as options() has them."""
    return options(host.read("proc/cmdline") or "")


def options(line: str) -> tuple[tuple[str, str, str], ...]:
    """Each option of a command line: its text as it is there, its name and its value.

    name has "_" for "-", which are the same to the kernel (kernel/params.c, parameq). Quotes
    around a value or a whole option are left out of both, and what follows "--" is for init
    (lib/cmdline.c, next_arg; kernel/params.c, parse_args).
    """
    found = []
    for text in re.findall(_WORD, line):
        if text == "--":
            break
        quoted = text.startswith('"')
        name, _, value = text[quoted:].partition("=")
        if value.startswith('"'):
            quoted, value = True, value[1:]
        if quoted and value:
            value = value.removesuffix('"')
        elif quoted:
            name = name.removesuffix('"')
        found.append((text, name.replace("-", "_"), value))
    return tuple(found)


def parameter(host: Host, name: str) -> tuple[str, ...] | None:
    """The values of a parameter on the kernel command line, split at commas; None without it."""
    found = None
    for _, key, value in command_line(host):
        if key == name:
            found = (*(found or ()), *(one for one in value.split(",") if one))
    return found


def has_symbol(host: Host, name: str) -> bool | None:
    """Whether the kernel or a loaded module has this function; None when that is not known."""
    return _has(host.read_bytes("proc/kallsyms"), name)


def _has(symbols: bytes | None, name: str) -> bool | None:
    if not symbols:
        return None
    wanted = f" {name}".encode()
    return wanted + b"\n" in symbols or wanted + b"\t" in symbols


def _shown(host: Host) -> dict[str, bool | None]:
    """Which functions the kernel has, by the names in the cache; None when that is not known."""
    # /proc/kallsyms takes 30 ms to read, and its answer holds for the whole boot.
    cached = _read_cache(host)
    if cached is not None:
        return cached
    symbols = host.read_bytes("proc/kallsyms")
    found = {name: _has(symbols, symbol) for name, symbol in SYMBOLS.items()}
    _write_cache(host, found)
    return found


def _read_cache(host: Host) -> dict[str, bool | None] | None:
    try:
        cached = json.loads(runfiles.read(host, _CACHE) or "null")
    except (ClaimError, ValueError, RecursionError):
        return None
    if not isinstance(cached, dict) or cached.pop("boot", None) != host.boot_id:
        return None
    known = all(one is None or isinstance(one, bool) for one in cached.values())
    return cached if known and set(cached) == set(SYMBOLS) else None


def _write_cache(host: Host, found: dict[str, bool | None]) -> None:
    if not host.exists(RUN):
        return  # no VM has held anything yet, and a look must leave no trace
    try:
        runfiles.write(host, _CACHE, json.dumps({"boot": host.boot_id, **found}))
    except ClaimError:
        return  # only slower next time; the claim reports what is wrong with the directory
