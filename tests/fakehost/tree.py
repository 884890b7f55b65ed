"""The directory of a recorded machine, changed from the inside: as the kernel does it.

What sysfs does not show lies below fake/:

    fake/kernel              the stable release, where osrelease hides it ("6.1.176")
    fake/sysfb/DEVICE        what the firmware says about a framebuffer (sysfb.py)
    fake/native/ADDRESS      the native driver of a PCI device (pci.py)
    fake/blacklist           modules that are not loaded by modalias, one a line
    fake/modules             modules that can be unloaded, and what they need (modules.py)
    fake/fbcon               variables of fbcon.c (fbcon.py)
    fake/fb/fbN              framebuffers of a kernel without fb devices, and
    fake/con2fbmap           which of them each console is on (fbcon.py)
    fake/held                memory of framebuffers that are gone but still open
    fake/removed/ADDRESS     a PCI device that is off the bus
    fake/saved/ADDRESS       config space as vfio saved it, while a VM has the device open
    fake/sysfb_disabled      sysfb_disable() has been called
    fake/dmesg               what the kernel logged
    fake/fault               why the kernel is dead
    fake/changes             every change made through a FakeHost, one a line
    fake/lock                held while one of them is made, by any process
"""

from __future__ import annotations

import os
import re
import shutil
import threading

from vfio_console_hook.errors import HostError
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.snapshot import SnapshotHost


class KernelFault(Exception):
    """The kernel would have crashed here: no test may ever see this from the program."""


class Tree(SnapshotHost):
    """A recorded machine whose files can be made, changed and removed."""

    def poke(self, path: str, offset: int, content: bytes) -> None:
        Host.poke(self, path, offset, content)

    def write(self, path: str, text: str) -> None:
        # The file keeps the text, because a read of an attribute returns what was written.
        if not self.exists(path):
            raise HostError(f"cannot write '{text.strip()}' to /{path}: No such file or directory")
        with open(self.path(path), "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")

    def put(self, path: str, text: str) -> None:
        # Another process that reads it meanwhile finds the old or the new text.
        full, draft = self.path(path), self.path(f"fake/draft-{threading.get_native_id()}")
        for one in (full, draft):
            os.makedirs(os.path.dirname(one), exist_ok=True)
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") or not text else text + "\n")
        os.rename(draft, full)

    def make_directory(self, path: str) -> None:
        os.makedirs(self.path(path), exist_ok=True)

    def link(self, path: str, target: str) -> None:
        """A link from path to target, both below the root, with the text that sysfs gives it."""
        full = self.path(path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        os.symlink(self.link_text(path, target), full)

    def text_link(self, path: str, text: str) -> None:
        """A link with any text, as /proc has them: it need not lead anywhere."""
        full = self.path(path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        os.symlink(text, full)

    @staticmethod
    def link_text(path: str, target: str) -> str:
        """Linux fs/kernfs/symlink.c, kernfs_get_target_path.

        The common directory is looked for above the target, it is never the target.
        """
        here, there = os.path.dirname(path), os.path.dirname(target)
        base = os.path.commonpath([here, there])
        up, down = os.path.relpath(base, here), os.path.relpath(target, base)
        return os.path.normpath(os.path.join(up, down))

    def remove(self, path: str) -> None:
        """Remove a file, a link or a directory with all in it; nothing if it is not there."""
        full = self.path(path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        elif os.path.lexists(full):
            os.unlink(full)

    def remove_if_empty(self, path: str) -> None:
        if os.path.isdir(self.path(path)) and not os.listdir(self.path(path)):
            os.rmdir(self.path(path))

    def move(self, source: str, target: str) -> None:
        os.makedirs(os.path.dirname(self.path(target)), exist_ok=True)
        os.rename(self.path(source), self.path(target))

    def where(self, path: str) -> str:
        """The path with its links resolved. Raises LookupError when it is not there."""
        real = self.real(path)
        if real is None:
            raise LookupError(path)
        return real

    # -- the kernel's log and end

    def log(self, line: str) -> None:
        full = self.path("fake/dmesg")
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def fault(self, why: str) -> KernelFault:
        """The crash of the kernel, to be raised; this machine does nothing any more."""
        self.put("fake/fault", why)
        self.log(f"BUG: {why}")
        return KernelFault(why)

    # -- what kernel it is

    def release(self) -> tuple[int, int, int]:
        """The stable release, such as (6, 12, 107).

        Debian's 5.10.0-41-amd64 and 6.1.0-49-amd64 do not show it; these count
        as the newest of their series.
        """
        text = self.read("fake/kernel") or self.read("proc/sys/kernel/osrelease") or ""
        match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(-\d)?", text)
        if match is None:
            raise LookupError(f"no kernel release in {text!r}")
        patch = 999 if match[3] == "0" and match[4] else int(match[3] or 0)
        return int(match[1]), int(match[2]), patch

    def has_symbol(self, name: str) -> bool:
        return any(
            line.split()[2:3] == [name] for line in (self.read("proc/kallsyms") or "").splitlines()
        )


def snapshot(host: SnapshotHost) -> dict[str, str]:
    """Everything that a person could see of the machine: each path with what is there.

    fake/ (the kernel's own state), run/ and var/ (the program's) are left out.
    """
    seen = {}
    for folder, directories, files in os.walk(host.root):
        below = os.path.relpath(folder, host.root)
        if below == ".":
            directories[:] = [name for name in directories if name not in ("fake", "run", "var")]
        for name in directories + files:
            full = os.path.join(folder, name)
            if os.path.islink(full):
                what = "-> " + os.readlink(full)
            elif os.path.isdir(full):
                what = "directory"
            else:
                with open(full, "rb") as file:
                    content = file.read()
                what = content.decode() if content.isascii() else content.hex()
            seen[os.path.normpath(os.path.join(below, name))] = what
    return seen
