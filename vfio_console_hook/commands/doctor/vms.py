"""Which VMs have a GPU of this host, and which of them this hook does not serve."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from ... import domain
from ...claims import ownership
from ...config import load
from ...domain import Domain, Hostdev
from ...errors import HookError
from ...machine.host import Host
from ...machine.libvirtd import Vm
from .finding import FAIL, NOT_RECORDED, PASS, WARN, Check, Finding, Subject, gpus_among, unrecorded

_PCI = "sys/bus/pci/devices"
# Where libvirt keeps the VMs of a user's own connection (qemu:///session).
_SESSION = ".config/libvirt/qemu"
# A dead server behind one of these would hold us for ever.
_REMOTE = ("nfs", "cifs", "smb", "autofs", "fuse", "9p", "ceph", "afs")
_BY_HAND = "`vfio-console-hook take ADDRESS` before and `give ADDRESS` after do the same by hand"


def libvirt_answers(subject: Subject) -> Iterator[Finding]:
    """Whether libvirt could be asked, and what of its answer cannot be read."""
    if subject.unasked:
        text = f"{subject.unasked}; so nothing here is about its VMs"
        yield Finding(WARN, "libvirt", text, subject.remedy)
        return
    running = sum(1 for vm in subject.vms if vm.live)
    count = f"{len(subject.vms)} VM{'' if len(subject.vms) == 1 else 's'}"
    yield Finding(PASS, "libvirt", f"it answers: {count}, {running} of them running")
    for vm in subject.vms:
        try:
            domain.parse(vm.xml.encode())
        except HookError as error:
            advice = f"compare with `virsh dumpxml --inactive {quote(vm.name)}`"
            yield Finding(FAIL, f"VM {vm.name}", error.text, advice)


def vms_with_gpus(subject: Subject) -> Iterator[Finding]:
    """Each VM that has a GPU, and how it is written in its XML."""
    with_gpus = [one for one in subject.domains if subject.gpus_of(one)]
    for one in with_gpus:
        gpus = subject.gpus_of(one)
        vm = subject.vm(one.uuid)
        state = "running" if vm and vm.live else "off"
        auto = ", starts with the host" if vm and vm.autostart else ""
        shown = " and ".join(_shown(subject.host, address) for address in gpus)
        yield Finding(PASS, f"VM {one.name}", f"{shown}; {state}{auto}")
        for hostdev in one.hostdevs:
            if hostdev.address in gpus and not hostdev.managed:
                yield _unmanaged(one, hostdev)
    if not with_gpus and not subject.unasked:
        advice = "add one as a PCI host device in virt-manager, or as <hostdev> by `virsh edit VM`"
        yield Finding(WARN, "VMs with a GPU", "no VM has a GPU of this host", advice)


def _shown(host: Host, address: str) -> str:
    driver = host.link_name(f"{_PCI}/{address}/driver")
    return f"{address} (on {driver})" if driver else f"{address} (no driver of its own)"


def _unmanaged(one: Domain, hostdev: Hostdev) -> Finding:
    title = f"{hostdev.address} in VM {one.name}"
    if hostdev.origin == "hostdev":
        text = "managed='no': libvirt neither gives it to vfio-pci nor back"
        return Finding(WARN, title, text, "write managed='yes' in its <hostdev>")
    text = f"it stands in <{hostdev.origin}>: libvirt does not know of it"
    return Finding(WARN, title, text, "give it to the VM as a <hostdev> with managed='yes'")


def missing_devices(subject: Subject) -> Iterator[Finding]:
    """PCI devices in a VM's XML that this host does not have."""
    host = subject.host
    for one in subject.domains:
        for hostdev in one.hostdevs:
            path = f"{_PCI}/{hostdev.address}"
            # A recorded machine has only its displays and what belongs to them.
            if host.exists(path) or unrecorded(host, path):
                continue
            text = f"{hostdev.address} in its XML is no device of this host"
            advice = "see `lspci -D`: adding or moving a card changes addresses"
            yield Finding(FAIL, f"VM {one.name}", text, advice)


def hot_plugged_gpus(subject: Subject) -> Iterator[Finding]:
    """GPUs that came to a VM while it ran: libvirt calls no hook then (qemu_hotplug.c)."""
    host = subject.host
    plugged: dict[str, Vm] = {}
    for vm in subject.vms:
        kept = set(_addresses(vm.xml))
        extra = tuple(address for address in _addresses(vm.live) if address not in kept)
        plugged.update(dict.fromkeys(gpus_among(host, extra), vm))
    for address, vm in plugged.items():
        text = f"{vm.name} was given it while it ran, and libvirt calls no hook then"
        yield Finding(WARN, f"{address} in VM {vm.name}", text, _BY_HAND)
    for address in () if subject.unasked else ownership.unclaimed(host):
        if address not in plugged:
            yield _judge_unclaimed(subject, address)
    if not plugged and not subject.unasked:
        yield Finding(PASS, "hot-plugged GPUs", "none")


def _addresses(xml: str) -> tuple[str, ...]:
    try:
        return domain.hostdev_addresses(xml.encode()) if xml else ()
    except HookError:
        return ()


def _judge_unclaimed(subject: Subject, address: str) -> Finding:
    title = f"{address} on vfio-pci"
    for vm in subject.vms:
        if address in _addresses(vm.live):
            if _left_alone(subject.host, vm):
                return Finding(PASS, title, f"{vm.name} has it, and `enabled: false` for that VM")
            text = f"{vm.name} runs with it, but this hook has no claim for it"
            advice = "see above whether the hook is called; the VM may have been started before"
            return Finding(WARN, title, text, advice)
    text = "no VM runs with it, and nobody took it by `take`: it was reserved at boot, or by hand"
    return Finding(WARN, title, text, f"leave it there, or: {_BY_HAND}")


def _left_alone(host: Host, vm: Vm) -> bool:
    try:
        return not load.configuration(host, vm.name, vm.uuid).enabled
    except HookError:
        return False


def shared_gpus(subject: Subject) -> Iterator[Finding]:
    """GPUs that more than one VM has: only one of them can run at a time."""
    owners: dict[str, list[Domain]] = {}
    for one in subject.domains:
        for address in subject.gpus_of(one):
            owners.setdefault(address, []).append(one)
    for address, those in owners.items():
        if len(those) < 2:
            continue
        names = " and ".join(one.name for one in those)
        auto = [one.name for one in those if (vm := subject.vm(one.uuid)) and vm.autostart]
        if len(auto) > 1:
            text = f"{' and '.join(auto)} both start with the host, and only one can have it"
            advice = f"`virsh autostart --disable {quote(auto[-1])}`"
            yield Finding(FAIL, f"{address} in {names}", text, advice)
        else:
            text = "only one of them can run at a time"
            yield Finding(PASS, f"{address} in {names}", text)


def session_vms(subject: Subject) -> Iterator[Finding]:
    """VMs of a user's own libvirt with a PCI device: for them the hook runs without any right."""
    if unrecorded(subject.host, "root", "home"):
        yield Finding(WARN, "VMs of qemu:///session", NOT_RECORDED)
        return
    found, unread = [], 0
    for home in _homes(subject.host):
        try:
            found += _with_hostdevs(subject.host, f"{home}/{_SESSION}")
        except HookError:
            unread += 1
    for path, addresses in found:
        text = f"a VM of qemu:///session with {' and '.join(addresses)}: its hook is not root"
        advice = "define it in qemu:///system (virt-manager: the connection called QEMU/KVM)"
        yield Finding(WARN, f"/{path}", text, advice)
    if not found:
        rest = f"; {unread} of the home directories may not be read" if unread else ""
        yield Finding(PASS, "VMs of qemu:///session", f"none with a PCI device{rest}")


def _homes(host: Host) -> Iterator[str]:
    """The home directories that are on this machine."""
    mounts = [line.split() for line in (host.read("proc/mounts") or "").splitlines()]
    remote = {words[1] for words in mounts if len(words) > 2 and words[2].startswith(_REMOTE)}
    users = () if "/home" in remote else host.list("home")
    homes = ("root", *(f"home/{user}" for user in users))
    return (home for home in homes if f"/{home}" not in remote)


def _with_hostdevs(host: Host, folder: str) -> list[tuple[str, tuple[str, ...]]]:
    """The files of VMs in a directory that have PCI host devices, and which. Raises HostError."""
    found = []
    for name in host.list(folder):
        if name.endswith(".xml"):
            text = host.read_bytes(f"{folder}/{name}") or b""
            addresses = _addresses(text.decode("utf-8", "replace"))
            found += [(f"{folder}/{name}", addresses)] if addresses else []
    return found


CHECKS: tuple[Check, ...] = (
    libvirt_answers, vms_with_gpus, missing_devices, hot_plugged_gpus, shared_gpus, session_vms,
)  # fmt: skip
