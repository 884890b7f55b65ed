"""The VMs that libvirt knows, if it answers in time."""

from __future__ import annotations

import json

from ..config import load
from ..errors import CutOffError, HookError, HostError, nearest
from ..machine import worker
from ..machine.host import Host
from ..machine.libvirtd import Vm

# How long libvirt may take to answer. It does not answer while it waits for the hook of a
# VM and holds that VM's lock (virDomainObjListCollect waits for the lock of each VM).
_ANSWER_S = 10.0
_OTHER_LIBVIRT = "name another libvirt with `--connect URI`, or see `virsh list --all`"


def known_vms(host: Host, uri: str, name: str = "") -> tuple[Vm, ...]:
    """All VMs, or the one with this name or uuid.

    libvirt is asked in a child process, for 10 s at the most. Raises HostError.
    """

    def answer() -> str:
        return json.dumps([vars(one) for one in host.vms(uri, name)])

    try:
        text = worker.run(answer, _ANSWER_S)
    except CutOffError as error:
        raise HostError(
            f"libvirt at {uri} does not answer within {_ANSWER_S:g} s; the hook of a VM may be"
            " running",
            hint="wait for it, or pass the XML: `vfio-console-hook plan --xml FILE`",
        ) from error
    return tuple(Vm(**one) for one in json.loads(text))


def known_vms_or_error(host: Host, uri: str) -> tuple[Vm, ...] | HookError:
    """All VMs, or why libvirt does not list them."""
    try:
        return known_vms(host, uri)
    except HookError as error:
        return error


def vm_named(host: Host, uri: str, name: str) -> Vm:
    """The VM with this name or uuid. Raises HostError; HookError when there is none."""
    found = known_vms(host, uri, name)
    if found:
        return found[0]
    raise _unknown_vm(uri, name, [one.name for one in known_vms(host, uri)])


def name_and_uuid(host: Host, uri: str, vm: str) -> tuple[str, str]:
    """The name and uuid of a VM that was named by either, for its configuration.

    Hosts without libvirt have VMs too: there, and if a file has what was typed as its name,
    libvirt is not asked. Raises HookError when libvirt does not know the VM.
    """
    if any(path.startswith(load.VMS) for path in load.files_for(host, vm, vm)):
        return vm, vm
    known = known_vms_or_error(host, uri)
    if isinstance(known, HookError):
        return vm, vm
    found = vm_named(host, uri, vm)
    return found.name, found.uuid


def _unknown_vm(uri: str, name: str, known: list[str]) -> HookError:
    if not known:
        return HookError(f"libvirt at {uri} has no VM {name}, and no other", hint=_OTHER_LIBVIRT)
    near = nearest(name, known)
    if near:
        text = f"libvirt at {uri} has no VM {name}, did you mean {near}?"
        return HookError(text, hint=f"it has {', '.join(known)}" if len(known) > 1 else "")
    return HookError(f"libvirt at {uri} has no VM {name}", hint=f"it has {', '.join(known)}")
