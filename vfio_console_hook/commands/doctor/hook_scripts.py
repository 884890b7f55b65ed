"""Checks of what the scripts of other hooks do, and the scripts that these call."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from ...machine import holder, systemd
from ...machine.host import Host
from .finding import Finding, check, passed, warning
from .hook_files import HookFile, code_lines, hook_file, hook_files
from .system import System

# A program that calls libvirt waits for the VM that libvirt keeps locked until the hook ends.
_CALLS_LIBVIRT = re.compile(rb"\bvirsh\b|^(?:import|from)\s+libvirt\b")
_LONGEST_LINE = 60
# The folders of a dispatcher script are qemu.d/VM/prepare/begin.
_DEPTH = 4

_DRIVERS = rb"nvidia\w*|nouveau|amdgpu|radeon|i915|xe|snd_hda_intel|drm\w*"
_DISPLAY_MANAGERS = "|".join(systemd.MANAGER_NAMES).encode()
# What guides for passthrough let a hook do, and this one does itself; and the shortest line
# that does it.
_SAME_WORK = {
    "binds or unbinds consoles": (re.compile(rb"/vtconsole\b|\bvtcon"), "vtcon"),
    "binds or unbinds the firmware's framebuffer": (
        re.compile(rb"\b(?:efi|vesa|simple)-framebuffer\b"), "efi-framebuffer",
    ),
    "unloads the GPU's driver": (
        re.compile(
            rb"\b(?:rmmod|modprobe\b.*\s(?:-\w*r\w*|--remove))\s.*\b(?:" + _DRIVERS + rb")\b"
        ),
        "rmmod nvidia",
    ),
    "binds or unbinds PCI devices": (
        re.compile(
            rb"/sys/bus/pci/\S*/(?:unbind|bind|new_id|remove)\b|\bdriver_override\b"
            rb"|/sys/bus/pci/(?:rescan|drivers_probe)\b"
        ),
        "driver_override",
    ),
    "stops or starts the display manager": (
        re.compile(
            rb"\b(?:systemctl|rc-service|service|sv|loginctl)\b.*\b(?:"
            + _DISPLAY_MANAGERS
            + rb"|(?:multi-user|graphical)\.target)\b"
        ),
        "systemctl stop gdm",
    ),
}  # fmt: skip

# What a line may call. A script is small; what is large, a program, is not read.
_WORD = re.compile(rb"[^\s;|&()<>`\"'=]+")
_LOCAL = ("usr/local/bin", "usr/local/sbin")
_LARGEST = 64 * 1024
_LONGEST_NAME = 255  # NAME_MAX


@check("virsh in hooks")
def virsh_in_hooks(system: System) -> Iterator[Finding]:
    """Other hooks that call libvirt, which is waiting for them.

    Source: libvirt docs/hooks.rst, "Calling libvirt functions from within a hook script".
    """
    scripts = _scripts(system.host)
    calling = False
    for one in scripts:
        lines = [found for found in code_lines(one.content) if _CALLS_LIBVIRT.search(found[1])]
        if not lines:
            continue
        calling = True
        (number, line), *others = lines
        more = f" and {len(others)} more" if others else ""
        yield warning(
            f"/{one.path} line {number}{more} calls libvirt, which is waiting for the hook:"
            f" `{holder.printable(line.decode('utf-8', 'replace'), _LONGEST_LINE)}`",
            "remove the call, since both can wait forever; libvirt detaches managed devices"
            " itself, and vfio-console-hook frees the GPU",
        )
    if scripts and not calling:
        yield passed("no other hook calls libvirt")


@check("same work in hooks")
def same_work(system: System) -> Iterator[Finding]:
    """Other hooks that take a GPU from the host themselves, as guides for passthrough do."""
    scripts = _scripts(system.host)
    found = False
    for one in scripts:
        done = sorted(_same_work(one))
        if not done:
            continue
        found = True
        lines = "; ".join(f"line {number} {what}" for number, what in done)
        yield warning(
            f"/{one.path} does the work of this hook too: {lines}",
            "remove these lines, or do not use both: each undoes what the other relies on;"
            " units to stop belong into `services` of the configuration",
        )
    if scripts and not found:
        yield passed("no other hook does what this one does")


def _same_work(script: HookFile) -> Iterator[tuple[int, str]]:
    """The first line in which the script does something that this hook does too, and what."""
    lines = tuple(code_lines(script.content))
    for what, (pattern, _) in _SAME_WORK.items():
        for number, line in lines:
            if pattern.search(line):
                yield number, what
                break


def examples(line: bytes) -> tuple[str, ...]:
    """The shortest lines that do what a line of a script does, for a snapshot of it."""
    return tuple(short for pattern, short in _SAME_WORK.values() if pattern.search(line))


# -- which scripts there are


def _scripts(host: Host) -> tuple[HookFile, ...]:
    """The scripts of other hooks, and those that they call, each once. Raises HostError."""
    found: dict[str, HookFile] = {}
    left = [one for hook in hook_files(host) for one in _foreign_scripts(host, hook, _DEPTH)]
    while left:
        one = left.pop(0)
        if one.path not in found:
            found[one.path] = one
            left += _called(host, one)
    return tuple(found.values())


def _foreign_scripts(host: Host, one: HookFile, depth: int) -> Iterator[HookFile]:
    """The executable scripts that are not ours, also in the folders of a dispatcher."""
    if one.runs and not one.ours and b"\0" not in one.content:
        yield one
    elif one.is_folder and depth:
        for name in host.list(one.path):
            below = hook_file(host, f"{one.path}/{name}")
            if below is not None:
                yield from _foreign_scripts(host, below, depth - 1)


def _called(host: Host, script: HookFile) -> Iterator[HookFile]:
    """The scripts that the words of a script lead to."""
    folder = script.path.rpartition("/")[0]
    for _, line in code_lines(script.content):
        for word in _WORD.findall(line):
            for path in _paths(word.decode("utf-8", "surrogateescape"), folder):
                found = _script_at(host, path)
                if found is not None:
                    yield found


def _paths(word: str, folder: str) -> Iterator[str]:
    """Where the script may be that a word names: a variable is taken for the script's folder."""
    name = word.rpartition("/")[2]
    if not name or max(map(len, word.split("/"))) > _LONGEST_NAME:
        return
    if word.startswith("/"):
        yield word.strip("/")
    elif "/" in word:
        yield f"{folder}/{name}"
    else:
        yield from (f"{place}/{name}" for place in _LOCAL)


def _script_at(host: Host, path: str) -> HookFile | None:
    """The script of another program at a path; None for all else."""
    if ".." in path.split("/") or path.startswith(("dev/", "proc/", "sys/")):
        return None
    status = host.stat(path)
    if status is None or status.st_size > _LARGEST or not stat.S_ISREG(status.st_mode):
        return None
    if host.peek(path, 0, 2) != b"#!":
        return None
    found = hook_file(host, path)
    return None if found is None or found.ours or b"\0" in found.content else found
