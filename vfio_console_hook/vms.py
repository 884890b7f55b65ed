"""The VMs that libvirt knows, by its own word, asked read-only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from . import worker
from .errors import HookError, HostError
from .host import Host

SYSTEM = "qemu:///system"
"""The connection whose VMs run the hook as root."""

# How long libvirt may take to answer. It does not while it waits for a hook of some VM
# that holds a lock of the driver (virDomainObjListCollect waits for each VM's lock).
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Vm:
    """A VM of libvirt's.

    xml is what it starts with next time; live is what it runs with now, "" when it
    does not run. xml is that of the run for a VM that exists only while it runs.
    """

    name: str
    uuid: str
    xml: str
    live: str
    autostart: bool


def ask(uri: str) -> tuple[Vm, ...]:
    """All VMs of the libvirt at uri, by name. It may take for ever: see known().

    Raises HostError with libvirt's reason, or without libvirt-python.
    """
    try:
        import libvirt  # not on every host, and only some commands ask
    except ImportError as error:
        raise HostError(
            f"cannot ask libvirt for its VMs: there is no libvirt-python ({error})",
            hint="install python3-libvirt, as Debian and Fedora call it, or pipe"
            " `virsh dumpxml VM | vfio-console-hook plan --xml -`",
        ) from error
    # Otherwise the library prints each error by itself.
    libvirt.registerErrorHandler(lambda context, error: None, None)
    try:
        connection = libvirt.openReadOnly(uri)
        try:
            found = [_read(libvirt, one) for one in connection.listAllDomains()]
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        reason = " ".join((error.get_error_message() or str(error)).split())
        raise HostError(
            f"cannot ask libvirt at {uri}: {reason}",
            hint=f"see what `virsh -r -c {uri} list --all` says",
        ) from error
    return tuple(sorted((one for one in found if one), key=lambda one: one.name))


def _read(libvirt: Any, domain: Any) -> Vm | None:
    """What libvirt tells of one VM; None when it is gone by now."""
    try:
        return Vm(
            name=domain.name(),
            uuid=domain.UUIDString(),
            xml=domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
            live=domain.XMLDesc(0) if domain.isActive() else "",
            autostart=bool(domain.isPersistent() and domain.autostart()),
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def known(host: Host, uri: str) -> tuple[Vm, ...]:
    """All VMs, from a libvirt that may not answer: asked in a process of its own, for 10 s.

    Raises HostError.
    """

    def look() -> str:
        return json.dumps([vars(one) for one in host.vms(uri)])

    try:
        told = worker.run(look, _ANSWER_S)
    except worker.CutOffError as error:
        raise HostError(
            f"libvirt at {uri} does not answer within {_ANSWER_S:g} s; a hook of some VM may be"
            " at work",
            hint="wait for it, or give the XML: `vfio-console-hook plan --xml FILE`",
        ) from error
    return tuple(Vm(**one) for one in json.loads(told))


def find(host: Host, uri: str, name: str) -> Vm:
    """The VM of this name or uuid. Raises HostError, HookError when there is none."""
    found = known(host, uri)
    wanted = name.replace("-", "").lower()
    for one in found:
        if one.name == name:
            return one
    for one in found:
        if one.uuid.replace("-", "") == wanted:
            return one
    raise _unknown(uri, name, [one.name for one in found])


def _unknown(uri: str, name: str, known: list[str]) -> HookError:
    import difflib  # only for a mistake

    if not known:
        return HookError(f"libvirt at {uri} has no VM {name}, and no other", hint=_elsewhere(uri))
    folded = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    if near:
        text = f"libvirt at {uri} has no VM {name}, did you mean {folded[near[0]]}?"
        return HookError(text, hint=f"it has {', '.join(known)}")
    return HookError(f"libvirt at {uri} has no VM {name}", hint=f"it has {', '.join(known)}")


def _elsewhere(uri: str) -> str:
    return "name another libvirt with `--connect URI`, or see `virsh list --all`"
