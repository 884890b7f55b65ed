"""Checks of the VMs: which have a GPU of this host, and which of them this hook does not serve."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from ... import domain
from ...claims import in_use
from ...config import load
from ...domain import Domain, Hostdev
from ...errors import HookError, InstallationError
from ...machine.host import Host
from ...machine.libvirtd import Vm
from ..rehearse import last
from .finding import Finding, check, failure, need_recorded, passed, unrecorded, warning
from .system import System, driver_of, gpus_among

_PCI = "sys/bus/pci/devices"
# Where libvirt keeps the VMs of a user's own connection (qemu:///session).
_SESSION = ".config/libvirt/qemu"
# A dead server behind one of these would block us forever.
_REMOTE = ("nfs", "cifs", "smb", "autofs", "fuse", "9p", "ceph", "afs")
_BY_HAND = (
    "to attach a GPU to a running VM, run `vfio-console-hook take ADDRESS` before, and"
    " `give ADDRESS` after you detach it"
)


@check("libvirt")
def libvirt_answers(system: System) -> Iterator[Finding]:
    """Whether libvirt lists its VMs, and whether their XML can be read."""
    if system.libvirt_error:
        text = f"{system.libvirt_error}; its VMs were not checked"
        if system.without_lxml:
            yield failure(text, system.libvirt_hint, of="XML of the VMs")
        else:
            yield warning(text, system.libvirt_hint)
        return
    running = sum(1 for vm in system.vms if vm.live)
    count = f"{len(system.vms)} VM{'' if len(system.vms) == 1 else 's'}"
    yield passed(f"it lists {count}, {running} of them running")
    for vm in system.vms:
        try:
            domain.parse(vm.xml.encode("utf-8", "surrogateescape"))
        except HookError as error:
            advice = f"compare with `virsh dumpxml --inactive {quote(vm.name)}`"
            yield failure(error.text, advice, of=f"VM {vm.name}")


@check("VMs with a GPU")
def vms_with_gpus(system: System) -> Iterator[Finding]:
    """Each VM that has a GPU, and how its XML has it."""
    with_gpus = [(one, gpus) for one in system.domains if (gpus := system.gpus_of(one))]
    for one, gpus in with_gpus:
        vm = system.vm(one.uuid)
        state = "running" if vm and vm.live else "off"
        auto = ", starts with the host" if vm and vm.autostart else ""
        drivers = ((address, driver_of(system.host, address)) for address in gpus)
        shown = [f"{gpu} ({f'on {driver}' if driver else 'no driver'})" for gpu, driver in drivers]
        yield passed(f"{' and '.join(shown)}; {state}{auto}", of=f"VM {one.name}")
        for hostdev in one.hostdevs:
            if hostdev.address in gpus and not hostdev.managed:
                yield _unmanaged(one, hostdev)
    if not with_gpus and not system.libvirt_error:
        advice = "add one as a PCI host device in virt-manager, or as <hostdev> with `virsh edit`"
        yield warning("no VM has a GPU of this host", advice)


def _unmanaged(one: Domain, hostdev: Hostdev) -> Finding:
    title = f"{hostdev.address} in VM {one.name}"
    if hostdev.origin == "hostdev":
        text = "managed='no', so libvirt neither binds it to vfio-pci nor gives it back"
        return warning(text, "write managed='yes' in its <hostdev>", of=title)
    text = f"it is in <{hostdev.origin}>, where libvirt does not manage devices"
    advice = "bind it to vfio-pci before the VM starts, for example with `driverctl set-override`"
    return warning(text, advice, of=title)


@check("rehearsals")
def rehearsals(system: System) -> Iterator[Finding]:
    """Whether the start of each VM with a GPU was tried on this host as it is now."""
    known = {one.uuid: one for one in last.all_last(system.host)}
    for one in system.domains if system.host.complete else ():
        if not system.gpus_of(one):
            continue
        title = f"rehearsal of {one.name}"
        again = f"`vfio-console-hook rehearse {quote(one.name)}`"
        found = known.get(one.uuid)
        if found is None:
            yield passed(f"none yet; {again} tries its start and stop without it", of=title)
        elif not found.agrees:
            advice = f"try {again} with `--report FILE`, and send that with a bug report"
            yield warning(f"not as plan had said: {found.why}", advice, of=title)
        elif found.changed:
            text = f"since it {' and '.join(found.changed)} changed; {again} tries it anew"
            yield passed(text, of=title)
        else:
            yield passed("all was as plan had said", of=title)


@check("missing devices")
def missing_devices(system: System) -> Iterator[Finding]:
    """PCI devices in a VM's XML that this host does not have."""
    host = system.host
    for one in system.domains:
        for hostdev in one.hostdevs:
            path = f"{_PCI}/{hostdev.address}"
            # A snapshot has only the displays and what belongs to them.
            if not host.exists(path) and not unrecorded(host, path):
                text = f"its XML has {hostdev.address}, but this host has no such device"
                advice = "see `lspci -D`; adding or moving a card changes addresses"
                yield failure(text, advice, of=f"VM {one.name}")


@check("hot-plugged GPUs")
def hot_plugged_gpus(system: System) -> Iterator[Finding]:
    """GPUs that a VM got while it ran: libvirt calls no hook then (qemu_hotplug.c)."""
    host = system.host
    plugged: dict[str, Vm] = {}
    for vm in system.vms:
        kept = set(_hostdev_addresses(vm.xml))
        extra = tuple(one for one in _hostdev_addresses(vm.live) if one not in kept)
        plugged.update(dict.fromkeys(gpus_among(host, extra), vm))
    for address, vm in plugged.items():
        text = "attached while the VM was running; libvirt does not call the hook then"
        yield warning(text, _BY_HAND, of=f"{address} in VM {vm.name}")
    for address in () if system.libvirt_error else in_use.unclaimed(host):
        if address not in plugged:
            yield _unclaimed(system, address)
    if not plugged and not system.libvirt_error:
        yield passed("no VM has one")


def _hostdev_addresses(xml: str) -> tuple[str, ...]:
    """The PCI devices in an XML; none when it cannot be read. Raises InstallationError."""
    try:
        return domain.hostdev_addresses(xml.encode("utf-8", "surrogateescape")) if xml else ()
    except InstallationError:
        raise
    except HookError:
        return ()


def _unclaimed(system: System, address: str) -> Finding:
    title = f"{address} on vfio-pci"
    for vm in system.vms:
        if address in _hostdev_addresses(vm.live):
            if _is_disabled(system.host, vm):
                return passed(
                    f"{vm.name} has it, and `enabled: false` is set for {vm.name}", of=title
                )
            text = f"{vm.name} is running with it, but this hook has no claim for it"
            advice = "see above whether the hook is called; the VM may have been started before"
            return warning(text, advice, of=title)
    text = "no VM is running with it, and no claim has it; it was bound at boot or by hand"
    return warning(text, f"nothing if that is intended; {_BY_HAND}", of=title)


def _is_disabled(host: Host, vm: Vm) -> bool:
    try:
        return not load.configuration(host, vm.name, vm.uuid).enabled
    except HookError:
        return False


@check("shared GPUs")
def shared_gpus(system: System) -> Iterator[Finding]:
    """GPUs that more than one VM has: only one of them can run at a time."""
    owners: dict[str, list[Domain]] = {}
    for one in system.domains:
        for address in system.gpus_of(one):
            owners.setdefault(address, []).append(one)
    for address, those in owners.items():
        if len(those) < 2:
            continue
        title = f"{address} in {' and '.join(one.name for one in those)}"
        auto = [one.name for one in those if (vm := system.vm(one.uuid)) and vm.autostart]
        if len(auto) > 1:
            text = f"{' and '.join(auto)} start with the host, but only one of them can have it"
            yield failure(text, f"`virsh autostart --disable {quote(auto[-1])}`", of=title)
        else:
            yield passed("only one of them can run at a time", of=title)


@check("VMs of qemu:///session")
def session_vms(system: System) -> Iterator[Finding]:
    """VMs of a user's own libvirt with a PCI device: the hook does not run as root for them."""
    host = system.host
    need_recorded(host, "root", "home")
    found: dict[str, tuple[str, ...]] = {}
    unread = 0
    for home in _homes(host):
        try:
            found.update(_session_hostdevs(host, f"{home}/{_SESSION}"))
        except HookError:
            unread += 1
    for path, addresses in found.items():
        devices = " and ".join(addresses)
        text = f"a VM of qemu:///session with {devices}; its hook does not run as root"
        advice = "define it in qemu:///system (virt-manager: the connection called QEMU/KVM)"
        yield warning(text, advice, of=f"/{path}")
    if not found:
        rest = f"; {unread} of the home directories could not be read" if unread else ""
        yield passed(f"no such VM has a PCI device{rest}")


def _homes(host: Host) -> Iterator[str]:
    """The home directories that are on this machine."""
    mounts = [line.split() for line in (host.read("proc/mounts") or "").splitlines()]
    remote = {words[1] for words in mounts if len(words) > 2 and words[2].startswith(_REMOTE)}
    users = () if "/home" in remote else host.list("home")
    homes = ("root", *(f"home/{user}" for user in users))
    return (home for home in homes if f"/{home}" not in remote)


def _session_hostdevs(host: Host, folder: str) -> dict[str, tuple[str, ...]]:
    """The PCI host devices of the VMs in a directory, by file. Raises HostError."""
    found = {}
    for name in host.list(folder):
        if name.endswith(".xml"):
            text = host.read_bytes(f"{folder}/{name}") or b""
            addresses = _hostdev_addresses(text.decode("utf-8", "replace"))
            if addresses:
                found[f"{folder}/{name}"] = addresses
    return found
