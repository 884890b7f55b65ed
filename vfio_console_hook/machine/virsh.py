"""A VM is started and destroyed through libvirt, by virsh: a program that hangs can be killed.

libvirt-python would wait for a libvirtd that hangs, beyond any signal that Python handles.
"""

from __future__ import annotations

from ..errors import HostError
from . import processes
from .host import Host
from .processes import Process

_VIRSH = "/usr/bin/virsh"
# The hook of the VM has its own deadline (timeout_s, 600 at most); QEMU may allocate memory.
_START_S = 900.0
# libvirt sends SIGTERM, and SIGKILL after 10 s (src/qemu/qemu_process.c, qemuProcessKill).
_DESTROY_S = 60.0
_ANSWER_S = 10.0


def start(host: Host, uri: str, vm: str) -> None:
    """Start a VM, by name or uuid. Raises HostError with what libvirt says."""
    _virsh(host, uri, "start", vm, timeout_s=_START_S)


def destroy(host: Host, uri: str, vm: str) -> None:
    """Take the power of a VM away. Raises HostError, and if it is off already."""
    _virsh(host, uri, "destroy", vm, timeout_s=_DESTROY_S)


def is_off(host: Host, uri: str, vm: str) -> bool | None:
    """Whether libvirt says that a VM is off; None when it does not answer."""
    try:
        state = _virsh(host, uri, "domstate", vm, timeout_s=_ANSWER_S)
    except HostError:
        return None
    # With -r nothing is asked of the VM itself. A VM that crashed may be kept for a dump.
    return state.split("\n")[0].strip() in ("shut off", "crashed")


def qemu_of(host: Host, name: str) -> Process | None:
    """The QEMU of a VM that runs.

    Source: libvirt src/util/virpidfile.c, virPidFileBuildPath; src/qemu/qemu_command.c,
    qemuBuildNameCommandLine: "-name guest=NAME,...", with each comma of the name twice.
    """
    text = "" if "/" in name else host.read(f"run/libvirt/qemu/{name}.pid") or ""
    pid = processes.pid_of(text)
    if not pid:
        return None
    # The file of a QEMU that was killed may still be there, and its number another process's.
    words = (host.read_bytes(f"proc/{pid}/cmdline") or b"").split(b"\0")
    guest = f"guest={name.replace(',', ',,')}".encode("utf-8", "surrogateescape")
    named = any(word == guest or word.startswith(guest + b",") for word in words)
    return processes.find(host, pid) if named else None


def _virsh(host: Host, uri: str, command: str, vm: str, *, timeout_s: float) -> str:
    """The output of a command of virsh. Raises HostError with its reason alone."""
    words = (_VIRSH, "-c", uri, command, "--domain", vm)
    try:
        return host.run(*words, timeout_s=timeout_s)
    except HostError as error:
        text = error.text.removeprefix(f"{' '.join(words)} failed: ")
        text = text.removeprefix("error: ").replace(" error: ", ": ")
        raise HostError(text or error.text, error.hint) from error
