"""The VMs that libvirt knows, read through libvirt-python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import HostError
from .host import Host

SYSTEM = "qemu:///system"
"""The connection whose VMs run the hook as root."""


DAEMONS = ("virtqemud", "libvirtd")
"""Which daemon may have QEMU's VMs: the modular one, or the one for everything.

Each writes /run/NAME.pid (src/remote/remote_daemon.c, daemonPidFilePath).
"""
# NixOS has the last one.
_FOLDERS = ("usr/sbin", "usr/bin", "run/current-system/sw/bin")


def is_here(host: Host) -> bool:
    """Whether one of the daemons is installed, or has been started, perhaps in a container."""
    places = [f"{folder}/{name}" for folder in _FOLDERS for name in DAEMONS]
    return any(host.exists(one) for one in (*places, *(f"run/{name}.pid" for name in DAEMONS)))


def is_session(uri: str) -> bool:
    """Whether a connection is to a user's own libvirt, which runs the hook without root."""
    return uri.partition("?")[0].endswith("/session")


@dataclass(frozen=True)
class Vm:
    """A VM of libvirt's.

    xml is the definition for its next start; live is that of the current run, "" when it
    does not run. A transient VM has only the live one, in both.
    """

    name: str
    uuid: str
    xml: str
    live: str
    autostart: bool


def vms(uri: str, name: str = "") -> tuple[Vm, ...]:
    """All VMs of the libvirt at uri, or that of a name or uuid, sorted by name.

    It may block for ever: see vms.known(). While a hook runs for one VM, libvirt still
    answers for each other VM by name, but not for all of them at once.

    Raises HostError with libvirt's reason, or without libvirt-python.
    """
    try:
        import libvirt  # not on every host, and only some commands need it
    except Exception as error:  # half of it may be there
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
            domains = (
                [_domain_named(libvirt, connection, name)] if name else connection.listAllDomains()
            )
            found = [_vm(libvirt, one) for one in domains if one is not None]
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
            hint=f"see what `virsh -r -c {uri} list --all` prints",
        ) from error
    return tuple(sorted((one for one in found if one), key=lambda one: one.name))


def _domain_named(libvirt: Any, connection: Any, name: str) -> Any:
    """libvirt's object for the VM of a name or else of a uuid; None when there is none."""
    for lookup in (connection.lookupByName, connection.lookupByUUIDString):
        try:
            return lookup(name)
        except libvirt.libvirtError as error:
            # A text that is not a uuid is an invalid argument.
            if error.get_error_code() not in (
                libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG,
            ):  # fmt: skip
                raise
    return None


def _vm(libvirt: Any, domain: Any) -> Vm | None:
    """The VM of libvirt's object for it; None when it no longer exists."""
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
