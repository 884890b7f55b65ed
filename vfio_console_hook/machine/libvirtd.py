"""libvirt asked for its VMs, read-only, through libvirt-python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import HostError

SYSTEM = "qemu:///system"
"""The connection whose VMs run the hook as root."""


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


def ask(uri: str, name: str = "") -> tuple[Vm, ...]:
    """All VMs of the libvirt at uri, or that of a name or uuid, sorted by name.

    It may take for ever: see vms.known(). While a hook is at work for one VM, the
    others can still be asked for by name, but not all of them at once.

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
            domains = [_named(libvirt, connection, name)] if name else connection.listAllDomains()
            found = [_read(libvirt, one) for one in domains if one is not None]
        finally:
            connection.close()
    # libvirt-python decodes strictly (libvirt-utils.c, PyUnicode_FromString).
    except (libvirt.libvirtError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            reason = "its answer is not UTF-8"
        else:
            reason = " ".join((error.get_error_message() or str(error)).split())
        raise HostError(
            f"cannot ask libvirt at {uri}: {reason}",
            hint=f"see what `virsh -r -c {uri} list --all` says",
        ) from error
    return tuple(sorted((one for one in found if one), key=lambda one: one.name))


def _named(libvirt: Any, connection: Any, name: str) -> Any:
    """The VM of a name, or else of a uuid; None when there is none."""
    for lookup in (connection.lookupByName, connection.lookupByUUIDString):
        try:
            return lookup(name)
        except libvirt.libvirtError as error:
            # What is no uuid at all is an invalid argument.
            if error.get_error_code() not in (
                libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG,
            ):  # fmt: skip
                raise
    return None


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
