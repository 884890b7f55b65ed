"""Checks of the hooks of others, which libvirt runs beside ours."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...machine import holders
from ...machine.host import Host
from .finding import PASS, WARN, Check, Finding, Subject
from .gates import DROPINS, MAIN, HookFile, code, entries, look
from .unknown import titled

# What editors and package managers leave beside a file. libvirt knows no such names:
# whatever is executable runs.
_LEFTOVER = re.compile(
    r"\..*|.*~|#.*#|.*\.(?:bak|backup|old|orig|save|swp|tmp|disabled|off|rpmnew|rpmsave|rpmorig"
    r"|dpkg-(?:old|new|dist|tmp)|ucf-(?:old|new|dist))"
)

# A program that asks libvirt waits for the VM that libvirt has locked until the hook ends.
_ASKS_LIBVIRT = re.compile(rb"\bvirsh\b|^(?:import|from)\s+libvirt\b")
_LONGEST_LINE = 60
# The folders of a dispatcher script are qemu.d/VM/prepare/begin.
_DEPTH = 4


@titled("other hooks")
def other_hooks(subject: Subject) -> Iterator[Finding]:
    """What lies where libvirt looks for hooks, and is not run, or should not be."""
    there = tuple(entries(subject.host))
    dispatched = any(one.path == MAIN and one.runs and not one.ours for one in there)
    whole = any(one.ours and one.runs for one in there)
    found = False
    for one in there:
        if one.ours and not (one.runs or whole):
            continue  # the check of the hook tells
        for text, advice in _oddity(one, dispatched):
            found = True
            yield Finding(WARN, "other hooks", text, advice)
    for path in _dead_links(subject.host):
        found = True
        text = f"/{path} is a link that leads nowhere: libvirt leaves it out"
        yield Finding(WARN, "other hooks", text, f"rm /{path}")
    if not found and there:
        foreign = [f"/{one.path}" for one in there if one.runs and not one.ours]
        yield Finding(PASS, "other hooks", ", ".join(foreign) or "none")


def _oddity(one: HookFile, dispatched: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with an entry, and what to do."""
    path = f"/{one.path}"
    if one.is_folder:
        if one.path == MAIN:
            yield f"{path} is a folder: libvirt leaves it out", f"mv {path} {path}.old"
        elif not dispatched:
            text = f"{path} is a folder, and libvirt looks into none"
            yield text, f"move it away; only a dispatcher script in /{MAIN} would run what is in it"
    elif not one.runs:
        text = f"{path} is not executable: libvirt leaves it out and warns in its log"
        yield text, f"chmod 755 {path}, or move it out of the folder"
    elif one.path != MAIN and _LEFTOVER.fullmatch(one.path.rpartition("/")[2]):
        text = f"{path} looks like a leftover, and libvirt runs it: it is executable"
        yield text, f"rm {path}, or move it out of /{DROPINS}"


def _dead_links(host: Host) -> Iterator[str]:
    for name in host.list(DROPINS):
        path = f"{DROPINS}/{name}"
        if host.readlink(path) is not None and host.stat(path) is None:
            yield path


@titled("virsh in hooks")
def virsh(subject: Subject) -> Iterator[Finding]:
    """Hooks of others that ask libvirt, which waits for them meanwhile.

    Source: libvirt docs/hooks.rst, "Calling libvirt functions from within a hook script".
    """
    looked = found = False
    for one in _foreign(subject.host):
        looked = True
        lines = [(number, line) for number, line in code(one.content) if _ASKS_LIBVIRT.search(line)]
        if not lines:
            continue
        found = True
        number, line = lines[0]
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        yield Finding(
            WARN,
            "virsh in hooks",
            f"/{one.path} line {number}{more} calls libvirt, which waits for the hook:"
            f" `{_shown(line)}`",
            "take it out: both may wait for ever; libvirt detaches managed devices by itself,"
            " and vfio-console-hook frees the GPU",
        )
    if looked and not found:
        yield Finding(PASS, "virsh in hooks", "no other hook calls it")


def _foreign(host: Host) -> Iterator[HookFile]:
    """The scripts of others that are executable, also in the folders of a dispatcher."""
    for one in entries(host):
        yield from _scripts(host, one, _DEPTH)


def _scripts(host: Host, one: HookFile, depth: int) -> Iterator[HookFile]:
    if one.runs and not one.ours and b"\0" not in one.content:
        yield one
    elif one.is_folder and depth:
        for name in host.list(one.path):
            below = look(host, f"{one.path}/{name}")
            if below is not None:
                yield from _scripts(host, below, depth - 1)


def _shown(line: bytes) -> str:
    return holders.printable(line.decode("utf-8", "replace"), _LONGEST_LINE)


CHECKS: tuple[Check, ...] = (other_hooks, virsh)
