"""The check of what else lies where libvirt looks for hooks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .finding import Finding, check, passed, warning
from .hook_files import DROPIN, DROPINS, MAIN, HookFile, hook_files
from .system import System

# What editors and package managers leave beside a file. libvirt ignores no such name:
# whatever is executable runs.
_LEFTOVER = re.compile(
    r"\..*|.*~|#.*#|.*\.(?:bak|backup|old|orig|save|swp|tmp|disabled|off|rpmnew|rpmsave|rpmorig"
    r"|dpkg-(?:old|new|dist|tmp)|ucf-(?:old|new|dist))"
)


@check("other hooks")
def other_hooks(system: System) -> Iterator[Finding]:
    """What lies where libvirt looks for hooks and is not run, or should not be."""
    there = tuple(hook_files(system.host))
    dispatched = any(one.path == MAIN and one.runs and not one.ours for one in there)
    installed = any(one.ours and one.runs for one in there)
    wrong = False
    for one in there:
        if not installed and (one.ours or (one.dangling and one.path in (MAIN, DROPIN))):
            continue  # the check of the hook reports it
        for text, advice in _problems(one, dispatched):
            wrong = True
            yield warning(text, advice)
    if not wrong and there:
        foreign = [f"/{one.path}" for one in there if one.runs and not one.ours]
        yield passed(
            f"libvirt also runs {', '.join(foreign)}" if foreign else "no other hook is installed"
        )


def _problems(one: HookFile, dispatched: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with a file, and what to do."""
    path = f"/{one.path}"
    if one.dangling:
        yield f"{path} is a dangling link; libvirt ignores it", f"rm {path}"
    elif one.is_folder:
        if one.path == MAIN:
            yield f"{path} is a directory; libvirt ignores it", "move it away"
        elif not dispatched:
            text = f"{path} is a directory, and libvirt runs no hook inside a directory"
            yield text, f"move it away; only a dispatcher script in /{MAIN} would run what is in it"
    elif not one.runs:
        text = f"{path} is not executable; libvirt logs a warning and ignores it"
        yield text, f"chmod 755 {path}, or move it out of the directory"
    elif one.path != MAIN and _LEFTOVER.fullmatch(one.path.rpartition("/")[2]):
        text = f"{path} looks like a backup copy, but it is executable, so libvirt runs it"
        yield text, f"rm {path}, or move it out of /{DROPINS}"
