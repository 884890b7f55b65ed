"""A machine on which install.sh has installed vfio-console-hook, and on which libvirt runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakehost import FakeHost
from tests.gate import ROOT
from vfio_console_hook import __version__
from vfio_console_hook.machine.snapshot import answer_path

BOOTED = 1_700_000_000
INSTALLED = BOOTED + 1000
STARTED = BOOTED + 2000
"""When the machine was started, the hook installed, and the daemon started."""

GATE = "etc/libvirt/hooks/qemu"
DROPIN = "etc/libvirt/hooks/qemu.d/50-vfio-console-hook"
CHAINED = "etc/libvirt/hooks/vfio-console-hook"
DAEMON = "etc/libvirt/hooks/daemon"
UNIT = "usr/lib/systemd/system/vfio-console-hook-recover.service"


@contextmanager
def in_utc() -> Iterator[None]:
    """Print times in UTC, independent of the time zone of this machine."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def file(host: FakeHost, path: str, text: str, *, mode: int = 0o755, at: int = INSTALLED) -> None:
    """A file of root's, and the folders above it."""
    host.tree.put(path, text)
    host.tree.put(f"stat/{path}", f"{0o100000 | mode:o} 0 0 {at}")
    parts = path.split("/")[:-1]
    for number in range(len(parts)):
        folder(host, "/".join(parts[: number + 1]))


def folder(host: FakeHost, path: str, *, mode: int = 0o755) -> None:
    host.tree.make_directory(path)
    host.tree.put(f"stat/{path}/.itself", f"{0o40000 | mode:o} 0 0 {BOOTED}")


def gate_text() -> str:
    return (ROOT / "hooks/qemu").read_text(encoding="utf-8")


def daemon_gate_text() -> str:
    return (ROOT / "hooks/daemon").read_text(encoding="utf-8")


def hook(host: FakeHost, gate: str = GATE) -> FakeHost:
    """Install the hook at the time INSTALLED, with the gate for the daemon's own events."""
    file(host, gate, gate_text())
    file(host, DAEMON, daemon_gate_text())
    file(host, "usr/bin/sh", "")
    host.tree.text_link("bin", "usr/bin")
    host.tree.put("stat/bin/sh", f"100755 0 0 {BOOTED}")
    file(host, "usr/bin/python3.11", "")
    host.tree.link("usr/bin/python3", "usr/bin/python3.11")
    file(host, "usr/bin/vfio-console-hook", "")
    file(host, "usr/lib/vfio-console-hook.1/hook", "", mode=0o644)
    package = "usr/lib/vfio-console-hook.1/vfio_console_hook"
    file(host, f"{package}/__init__.py", f'"""..."""\n\n__version__ = "{__version__}"', mode=0o644)
    host.tree.link("usr/lib/vfio-console-hook", "usr/lib/vfio-console-hook.1")
    host.tree.link("stat/usr/lib/vfio-console-hook", "stat/usr/lib/vfio-console-hook.1")
    return host


def process(host: FakeHost, pid: int, name: str, *, at: int, user: int = 0) -> None:
    """A process with this start time, in ticks of a hundredth of a second (proc(5))."""
    rest = f"S 1 {pid} {pid} 0 -1 4194560 {'0 ' * 8}20 0 1 0 {(at - BOOTED) * 100} 0 0"
    host.tree.put(f"proc/{pid}/stat", f"{pid} ({name}) {rest}")
    host.tree.put(f"proc/{pid}/comm", name)
    host.tree.put(f"proc/{pid}/status", f"Name:\t{name}\nUid:\t{user}\t{user}\t{user}\t{user}")
    host.tree.put("proc/stat", f"cpu  1 2 3\nbtime {BOOTED}\nprocesses 4711")


def daemon(host: FakeHost, name: str = "libvirtd", *, pid: int = 700, at: int = STARTED) -> None:
    """Start one of libvirt's daemons at a given time."""
    process(host, pid, name, at=at)
    host.tree.put(f"run/{name}.pid", str(pid))
    file(host, f"usr/sbin/{name}", "")


def answer(host: FakeHost, command: tuple[str, ...], text: str) -> None:
    """Set the output of a program."""
    host.tree.put(answer_path(command), text)


def failure(host: FakeHost, command: tuple[str, ...], text: str) -> None:
    """Let a program fail with this message."""
    host.tree.put(f"{answer_path(command)}.failed", f"{' '.join(command)} failed: {text}")


def refuse(host: FakeHost, path: str) -> None:
    """Let a path fail with EACCES, as for a user other than root."""
    host.tree.put(f"refused/{path}", "13")
