"""The VMs that libvirt knows, as far as it answers in time."""

from __future__ import annotations

import json

from ..errors import CutOffError, HookError, HostError
from ..machine import worker
from ..machine.host import Host
from ..machine.libvirtd import Vm

# How long libvirt may take to answer. It does not while it waits for a hook of some VM
# that holds a lock of the driver (virDomainObjListCollect waits for each VM's lock).
_ANSWER_S = 10.0


def known(host: Host, uri: str, name: str = "") -> tuple[Vm, ...]:
    """All VMs, or that of a name or uuid, from a libvirt that may not answer.

    It is asked in a process of its own, for 10 s. Raises HostError.
    """

    def look() -> str:
        return json.dumps([vars(one) for one in host.vms(uri, name)])

    try:
        told = worker.run(look, _ANSWER_S)
    except CutOffError as error:
        raise HostError(
            f"libvirt at {uri} does not answer within {_ANSWER_S:g} s; a hook of some VM may be"
            " at work",
            hint="wait for it, or give the XML: `vfio-console-hook plan --xml FILE`",
        ) from error
    return tuple(Vm(**one) for one in json.loads(told))


def find(host: Host, uri: str, name: str) -> Vm:
    """The VM of this name or uuid. Raises HostError, HookError when there is none."""
    found = known(host, uri, name)
    if found:
        return found[0]
    raise _unknown(uri, name, [one.name for one in known(host, uri)])


def _unknown(uri: str, name: str, known: list[str]) -> HookError:
    import difflib  # only for a mistake

    if not known:
        return HookError(f"libvirt at {uri} has no VM {name}, and no other", hint=_elsewhere(uri))
    folded = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    if near:
        text = f"libvirt at {uri} has no VM {name}, did you mean {folded[near[0]]}?"
        return HookError(text, hint=f"it has {', '.join(known)}" if len(known) > 1 else "")
    return HookError(f"libvirt at {uri} has no VM {name}", hint=f"it has {', '.join(known)}")


def _elsewhere(uri: str) -> str:
    return "name another libvirt with `--connect URI`, or see `virsh list --all`"
