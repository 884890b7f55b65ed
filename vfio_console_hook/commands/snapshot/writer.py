"""Writes a snapshot that machine/snapshot.py reads: for bug reports and tests.

First the GPUs, drivers and consoles, as machine_text() finds them on any machine; then
everything else that plan, status and doctor read on this one, so that they print the same
for the snapshot. Serial numbers, names and addresses of people are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from ... import __version__
from ...config import load
from ...domain import Domain, Hostdev
from ...errors import HookError, HostError
from ...log import printable
from ...machine import drivers, modules
from ...machine.host import Host
from ...machine.libvirtd import Vm
from ...machine.pci import displays
from ...machine.snapshot import Entry
from ..doctor.areas import AREAS
from ..doctor.system import System
from ..plan import plan
from ..status import overview
from . import answers, redact
from .answers import text_file
from .replacements import Replacements
from .tracing import TracingHost, failure_text

# Attributes that plan reads, and files that prepare only writes to.
_DEVICE_FILES = (
    "boot_vga", "class", "device", "driver_override", "enable", "modalias", "power_state",
    "resource", "subsystem_device", "subsystem_vendor", "vendor",
)  # fmt: skip
_PLAIN_FILES = (
    "proc/iomem", "proc/ioports", "proc/fb", "proc/sys/kernel/osrelease",
    "proc/sys/kernel/random/boot_id", "sys/kernel/security/lockdown",
    "sys/class/tty/tty0/active",
)  # fmt: skip
_VIRTIO = re.compile(r"virtio\d+")
_FIRMWARE_DEVICE = re.compile(r"(?:.*-framebuffer|vga16fb|of-display)\.\d+")
# _text is in every table: it shows that the table can be read.
SYMBOLS = (
    "_text",
    "aperture_remove_conflicting_pci_devices",
    "sysfb_disable",
    "nvidia_modeset_remove",
    "radeon_pci_remove",
)


_HEAD = "# vfio-console-hook machine"
SEEN = "# what plan and doctor read beside that"
"""The line between the part that every machine has and the rest."""

_NO_VM = "00000000-0000-0000-0000-000000000000"


def snapshot_text(host: Host, vms: tuple[Vm, ...] | HookError) -> str:
    """A snapshot for which plan, status and doctor print the same as for the machine.

    vms are the VMs that libvirt knows, or the reason why it could not be asked. Comments
    at the top list what could not be read.
    """
    machine, commands = TracingHost(host, forgiving=True), TracingHost(host)
    common = list(_machine(machine))
    remarks = _run_commands(commands, vms)
    rest = [*_libvirt(vms), *answers.entries(host, commands.trace)]
    if host.complete:
        rest.append(text_file("recorded/now", f"{commands.now():.0f}"))
    known = {entry.path for entry in common}
    # A directory that is a link on the machine may be a real one in the common part.
    known |= {path[: slash.start()] for path in known for slash in re.finditer("/", path)}
    rest = [entry for entry in rest if entry.path not in known]
    names = _replacements(host, [*common, *rest])
    refused = {**machine.trace.refused, **commands.trace.refused}
    remarks += [f"could not be read: {names.text(error.text)}" for error in refused.values()]
    lines = _lines(redact.redacted(common, names), remarks)
    # Sorted by their new names, so that a snapshot of a snapshot is the same.
    ordered = sorted(redact.redacted(rest, names), key=lambda entry: entry.path)
    lines += [SEEN, *_lines(ordered, remarks)]
    return "\n".join([*_top(host, remarks), *lines]) + "\n"


def unread(text: str) -> list[str]:
    """The remarks of a snapshot about what could not be read."""
    return re.findall(r"^# (could not be .*)", text.partition(SEEN)[0], re.MULTILINE)


def _top(host: Host, remarks: Iterable[str]) -> Iterator[str]:
    release = host.read("proc/sys/kernel/osrelease") or "unknown"
    yield _HEAD
    yield f"# vfio-console-hook {__version__}, Linux {release}"
    yield "# Names, serial numbers and addresses were removed by the program. It knows many"
    yield "# places where they occur, not all: read this before you publish it."
    for remark in dict.fromkeys(remarks):
        yield f"# {printable(remark)}"


def _lines(found: Iterable[Entry], remarks: list[str]) -> list[str]:
    lines = []
    for entry in found:
        try:
            lines += entry.lines()
        except ValueError as error:
            remarks.append(f"could not be written: {error}")
    return lines


def _replacements(host: Host, found: list[Entry]) -> Replacements:
    # Without the right to read these, only names that could be read are in the snapshot.
    readable = TracingHost(host, forgiving=True)
    hostname = readable.read("proc/sys/kernel/hostname") or readable.read("etc/hostname") or ""
    hosts = (hostname, hostname.partition(".")[0])
    users = redact.user_names(found, readable.read("etc/passwd") or "")
    return Replacements(
        vms=tuple(redact.vm_names(found)),
        users=(*users, *readable.list("home")),
        hosts=tuple(filter(None, hosts)),
    )


def _libvirt(vms: tuple[Vm, ...] | HookError) -> Iterator[Entry]:
    yield Entry("d", "libvirt")
    if isinstance(vms, HookError):
        yield text_file("libvirt/unasked", failure_text(vms))
        return
    for number, vm in enumerate(vms, start=1):
        parts = {**vars(vm), "autostart": "1" if vm.autostart else "0"}
        for part, text in parts.items():
            yield text_file(f"libvirt/{number}/{part}", text)


# -- what plan, status and doctor read


def _run_commands(host: TracingHost, vms: tuple[Vm, ...] | HookError) -> list[str]:
    """Let plan, doctor and status read what they need; remarks about unexpected failures."""
    known = () if isinstance(vms, HookError) else vms
    system = System.with_vms(host, known)
    commands: list[Callable[[], object]] = [
        partial(_plan, host, one) for one in (*system.domains, *_gpu_owners(host))
    ]
    commands += [partial(area.findings, system) for area in AREAS]
    commands.append(partial(overview.current, host))
    remarks = []
    for command in commands:
        try:
            command()
        except HookError:
            continue  # the command fails for the snapshot in the same way
        except Exception as error:
            remarks.append(f"a command failed: {type(error).__name__}: {error}")
    return remarks


def _plan(host: Host, one: Domain) -> None:
    plan.plan_for(host, one, load.configuration(host, one.name, one.uuid))


def _gpu_owners(host: Host) -> Iterator[Domain]:
    """A VM for each GPU, for plans of GPUs that no VM has."""
    try:
        addresses = displays(host)
    except HookError:
        return
    for address in addresses:
        yield Domain(address, _NO_VM, (Hostdev(address, True, "hostdev", 0),))


# -- what every machine has


def machine_text(host: Host) -> str:
    """The GPUs, drivers and consoles of a machine as a snapshot.

    Serial numbers, names and addresses of people are left out. Raises HostError when
    something that is there cannot be read.
    """
    lines = [line for entry in _machine(TracingHost(host)) for line in entry.lines()]
    return "\n".join([_HEAD, *lines]) + "\n"


def _machine(host: TracingHost) -> Iterator[Entry]:
    yield from _files(host, "", *_PLAIN_FILES)
    yield from _symbols(host)
    yield from _screen_info(host)
    drivers_seen: set[str] = set()
    for bus in ("pci", "platform"):
        for name in host.list(f"sys/bus/{bus}/devices"):
            yield from _device(host, bus, name, drivers_seen)
    yield from _doors(host, "sys/bus/pci", "drivers_probe", "rescan")
    yield from _driver(host, "pci", "vfio-pci", drivers_seen)
    yield from _modules(host)
    yield from _nvidia(host)
    yield from _beside_apus(host)
    yield from _consoles(host)
    yield from _other_nodes(host)


def _files(host: Host, folder: str, *names: str) -> Iterator[Entry]:
    """Those of the files that are there."""
    for path in (f"{folder}/{name}".lstrip("/") for name in names):
        if not host.exists(path):
            continue
        try:
            content = host.read_bytes(path) or b""
        except HostError:
            if not path.startswith("sys/devices"):
                raise
            content = b""  # an attribute for writing only
        if content.isascii() and b"\0" not in content:
            yield text_file(path, content.decode().rstrip("\n"))
        else:
            yield Entry("f", path, content)


def _doors(host: Host, folder: str, *names: str) -> Iterator[Entry]:
    """Those of the files, which are only written to, that are there."""
    paths = (f"{folder}/{name}" for name in names)
    return (Entry("f", path) for path in paths if host.exists(path))


def _links(host: Host, folder: str, names: Iterable[str]) -> Iterator[Entry]:
    """Those of the names that are links."""
    for path in (f"{folder}/{name}" for name in names):
        target = host.readlink(path)
        if target is not None:
            yield Entry("l", path, target.encode("utf-8", "surrogateescape"))


def _symbols(host: Host) -> Iterator[Entry]:
    """Only the kernel symbols that decide something: the whole table has megabytes."""
    table = host.read_bytes("proc/kallsyms")
    if table is not None:
        lines = table.decode().split("\n")
        kept = (line for line in lines if line.partition("\t")[0].rsplit(" ", 1)[-1] in SYMBOLS)
        yield text_file("proc/kallsyms", "\n".join(kept))


def _screen_info(host: Host) -> Iterator[Entry]:
    data = host.read_bytes("sys/kernel/boot_params/data")
    if data is not None:
        # struct screen_info is the first 64 bytes; the rest contains the command line.
        yield Entry("f", "sys/kernel/boot_params/data", data[:64])


def _device(host: Host, bus: str, name: str, drivers_seen: set[str]) -> Iterator[Entry]:
    if bus == "platform" and not _FIRMWARE_DEVICE.fullmatch(name):
        return
    if bus == "pci" and not _is_display_or_sound(host, name):
        return
    real = host.real(f"sys/bus/{bus}/devices/{name}")
    if real is None:
        return
    yield from _links(host, f"sys/bus/{bus}/devices", [name])
    yield Entry("d", real)
    yield from _files(host, real, *_DEVICE_FILES)
    yield from _doors(host, real, "remove")
    if host.exists(f"{real}/config"):
        # Only the standard header: capabilities can contain a serial number.
        yield Entry("f", f"{real}/config", host.peek(f"{real}/config", 0, 64))
    below = host.list(real)
    functions = [one for one in below if one.startswith("virtfn")]
    yield from _links(host, real, ("driver", "subsystem", "iommu_group", "physfn", *functions))
    # A firmware device without a driver still needs bind, through which it comes back.
    unbound = name.partition(".")[0] if bus == "platform" else ""
    driver = host.link_name(f"{real}/driver") or unbound
    yield from _driver(host, bus, driver, drivers_seen) if driver else ()
    # Up to Linux 5.10 or so the framebuffer of virtio-gpu is below virtioN, which is here.
    for place in (real, *(f"{real}/{one}" for one in below if _VIRTIO.fullmatch(one))):
        for kind in ("graphics", "drm", "vfio-dev"):
            for child in host.list(f"{place}/{kind}"):
                yield from _child(host, f"{place}/{kind}", child)


def _is_display_or_sound(host: Host, name: str) -> bool:
    pci_class = host.read(f"sys/bus/pci/devices/{name}/class") or ""
    return pci_class.startswith(("0x03", "0x0403"))


def _child(host: Host, folder: str, name: str) -> Iterator[Entry]:
    """A framebuffer, a card with its connectors, or a device of vfio."""
    path = f"{folder}/{name}"
    if host.readlink(path) is not None:
        yield from _links(host, folder, [name])  # drm/controlD64 is another name of drm/card0
        return
    yield Entry("d", path)
    yield from _links(host, path, ["device"])
    yield from _files(host, path, "name")
    connectors = (one for one in host.list(path) if one.startswith(f"{name}-"))
    yield from (Entry("d", f"{path}/{one}") for one in connectors)


def _driver(host: Host, bus: str, driver: str, drivers_seen: set[str]) -> Iterator[Entry]:
    folder = f"sys/bus/{bus}/drivers/{driver}"
    if folder in drivers_seen or not host.exists(folder):
        return
    drivers_seen.add(folder)
    yield Entry("d", folder)
    yield from _doors(host, folder, "bind", "unbind")
    yield from _links(host, folder, ["module"])


def _modules(host: Host) -> Iterator[Entry]:
    """The modules of drivers that are unloaded rather than unbound, and their holders."""
    driven = [(one, host.link_name(f"sys/bus/pci/devices/{one}/driver")) for one in displays(host)]
    wanted = sorted(
        {driver for _, driver in driven if driver and drivers.driver_named(driver).unload}
    )
    for module in (one for driver in wanted for one in modules.unload_order(host, driver)):
        folder = f"sys/module/{module}"
        yield from _files(host, folder, "initstate", "refcnt")
        yield Entry("d", f"{folder}/holders")
        yield from _links(host, f"{folder}/holders", host.list(f"{folder}/holders"))


def _nvidia(host: Host) -> Iterator[Entry]:
    """The nodes of NVIDIA's own driver, and which of them belongs to which GPU."""
    for name in (one for one in host.list("dev") if one.startswith("nvidia")):
        below = host.list(f"dev/{name}")
        yield from (Entry("f", f"dev/{name}/{one}".rstrip("/")) for one in below or ("",))
    for address in host.list("proc/driver/nvidia/gpus"):
        path = f"proc/driver/nvidia/gpus/{address}/information"
        lines = (host.read(path) or "").splitlines()
        yield from (text_file(path, line) for line in lines if line.startswith("Device Minor:"))


def _beside_apus(host: Host) -> Iterator[Entry]:
    """Vendor and class of the other functions in the slot of the GPU of an AMD processor."""
    found: dict[str, None] = {}
    for address in displays(host):
        if drivers.is_apu(host, address):
            found.update(dict.fromkeys(drivers.functions(host, address)))
    for name in (one for one in found if not _is_display_or_sound(host, one)):
        yield from _links(host, "sys/bus/pci/devices", [name])
        yield from _files(host, host.real(f"sys/bus/pci/devices/{name}") or "", "class", "vendor")


def _other_nodes(host: Host) -> Iterator[Entry]:
    """The links of other nodes that processes may have open: they lead to the GPU."""
    yield from _doors(host, "dev", "kfd")
    for kind in ("i2c-dev", "backlight", "sound"):
        yield from _links(host, f"sys/class/{kind}", host.list(f"sys/class/{kind}"))


def _consoles(host: TracingHost) -> Iterator[Entry]:
    for kind in ("graphics", "drm"):
        if host.exists(f"sys/class/{kind}"):
            yield Entry("d", f"sys/class/{kind}")
        yield from _links(host, f"sys/class/{kind}", host.list(f"sys/class/{kind}"))
    if host.exists("sys/class/vtconsole"):
        yield Entry("d", "sys/class/vtconsole")
    for console in host.list("sys/class/vtconsole"):
        yield from _links(host, "sys/class/vtconsole", [console])
        real = host.real(f"sys/class/vtconsole/{console}") or ""
        yield Entry("d", real)
        yield from _files(host, real, "name", "bind")
    for fb in (name for name in host.list("sys/class/graphics") if re.fullmatch(r"fb\d+", name)):
        if host.framebuffer_memory(fb) is not None:
            host.console_map(fb)
    tty = host.read("sys/class/tty/tty0/active")
    if tty:
        host.text_mode(tty)
        yield text_file("ioctl/consoles", "unlocked")
    yield from answers.texts(host.trace)
