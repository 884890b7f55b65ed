"""Writes a machine down as a text that snapshot.py reads: for bug reports and tests.

First the GPUs, drivers and consoles, as record() finds them on any machine; then, in
whole(), what else plan and doctor read on this one, so that both say the same of the
text. No serial numbers, no names, no addresses of people.
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
from ...machine.gpu import displays
from ...machine.host import Host
from ...machine.libvirtd import Vm
from ...machine.snapshot import Entry, entries, pack_console_map
from ..doctor.areas import AREAS
from ..doctor.system import System
from ..plan import plan
from ..status import overview
from . import answers, redact
from .pseudonyms import Pseudonyms
from .tracing import TracingHost

# Attributes that plan reads, and the doors that prepare writes to (which have no
# content to read).
_DEVICE_FILES = (
    "boot_vga", "class", "device", "driver_override", "enable", "modalias", "power_state",
    "resource", "subsystem_device", "subsystem_vendor", "vendor", "remove",
)  # fmt: skip
_PLAIN_FILES = (
    "proc/iomem", "proc/ioports", "proc/fb", "proc/sys/kernel/osrelease",
    "proc/sys/kernel/random/boot_id", "sys/kernel/security/lockdown",
    "sys/class/tty/tty0/active",
)  # fmt: skip
_DOORS = ("bind", "unbind")
_VIRTIO = re.compile(r"virtio\d+")
_FIRMWARE_DEVICE = re.compile(r"(?:.*-framebuffer|vga16fb|of-display)\.\d+")
# _text is in every table: it shows that there is one.
SYMBOLS = (
    "_text",
    "aperture_remove_conflicting_pci_devices",
    "sysfb_disable",
    "nvidia_modeset_remove",
    "radeon_pci_remove",
)


_HEAD = "# vfio-console-hook machine"
SEEN = "# what plan and doctor read beside that"
"""The line between what every machine has and what was read on this one."""

# Whom a GPU would go to that no VM has.
_NOBODY = "00000000-0000-0000-0000-000000000000"


def whole(host: Host, found: tuple[Vm, ...] | HookError) -> str:
    """The machine as a text of which plan and doctor say the same as of the machine.

    found are the VMs that libvirt knows, or why it could not be asked for them. What
    may not be read is named in comments at the top.
    """
    machine = TracingHost(host, forgiving=True)
    common = list(entries(record(machine)))
    looking = TracingHost(host)
    remarks = _look(looking, found)
    known = {entry.path for entry in common}
    rest = [*_libvirt(found), *answers.entries(host, looking.seen)]
    if host.complete:
        rest.append(Entry("f", "recorded/now", f"{looking.now():.0f}\n".encode()))
    # What lies behind a link on the machine is written down there as in a folder.
    folders = {path[: slash.start()] for path in known for slash in re.finditer("/", path)}
    known |= folders
    rest = [entry for entry in rest if entry.path not in known]
    names = _pseudonyms(host, [*common, *rest])
    refused = {**machine.seen.refused, **looking.seen.refused}
    remarks += [f"could not be read: {names.text(error.text)}" for error in refused.values()]
    lines = _lines(redact.anonymous(common, names), remarks)
    # By their new names, so that a record of a record is the same.
    ordered = sorted(redact.anonymous(rest, names), key=lambda entry: entry.path)
    seen = _lines(ordered, remarks)
    return "\n".join([*_top(host, remarks), *lines, SEEN, *seen]) + "\n"


def unread(text: str) -> list[str]:
    """What a text of whole() says that it lacks."""
    return re.findall(r"^# (could not be .*)", text.partition(SEEN)[0], re.MULTILINE)


def _top(host: Host, remarks: Iterable[str]) -> Iterator[str]:
    release = host.read("proc/sys/kernel/osrelease") or "unknown"
    yield _HEAD
    yield f"# vfio-console-hook {__version__}, Linux {release}"
    yield "# Names, serial numbers and addresses were taken out by the program. It knows many"
    yield "# places where they stand, not all: read this through before others see it."
    for remark in dict.fromkeys(remarks):
        yield f"# {printable(remark)}"


def _lines(found: Iterable[Entry], remarks: list[str]) -> list[str]:
    lines = []
    for entry in found:
        try:
            lines += entry.lines()
        except ValueError as error:
            remarks.append(f"could not be written down: {error}")
    return lines


def _pseudonyms(host: Host, found: list[Entry]) -> Pseudonyms:
    # Who may not read this, tells only what could be read.
    looking = TracingHost(host, forgiving=True)
    hostname = looking.read("proc/sys/kernel/hostname") or looking.read("etc/hostname") or ""
    hosts = (hostname, hostname.partition(".")[0])
    users = redact.names_of_users(found, looking.read("etc/passwd") or "")
    return Pseudonyms(
        vms=tuple(redact.names_of_vms(found)),
        users=(*users, *looking.list("home")),
        hosts=tuple(filter(None, hosts)),
    )


def _libvirt(found: tuple[Vm, ...] | HookError) -> Iterator[Entry]:
    yield Entry("d", "libvirt")
    if isinstance(found, HookError):
        yield answers.failure("libvirt/unasked", found)
        return
    for number, vm in enumerate(found, start=1):
        parts = {**vars(vm), "autostart": "1" if vm.autostart else "0"}
        for part, text in parts.items():
            content = f"{text}\n".encode("utf-8", "surrogateescape") if text else b""
            yield Entry("f", f"libvirt/{number}/{part}", content)


# -- looking as plan, status and doctor do


def _look(host: TracingHost, found: tuple[Vm, ...] | HookError) -> list[str]:
    """Let them look, whatever they find; remarks about what went wrong."""
    vms = () if isinstance(found, HookError) else found
    system = System.with_vms(host, vms)
    looks: list[Callable[[], object]] = [
        partial(_plan, host, one) for one in (*system.domains, *_takers(host))
    ]
    looks += [partial(area.findings, system) for area in AREAS]
    looks.append(partial(overview.look, host))
    remarks = []
    for look in looks:
        try:
            look()
        except HookError:
            continue  # they say so on the recorded machine too
        except Exception as error:
            remarks.append(f"a look failed: {type(error).__name__}: {error}")
    return remarks


def _plan(host: Host, one: Domain) -> None:
    plan.make(host, one, load.configuration(host, one.name, one.uuid))


def _takers(host: Host) -> Iterator[Domain]:
    """A VM for each GPU, so that there is a plan for those that no VM has."""
    try:
        addresses = displays(host)
    except HookError:
        return
    for address in addresses:
        yield Domain(address, _NOBODY, (Hostdev(address, True, "hostdev", 0),))


# -- what every machine has


def record(host: Host) -> str:
    """The machine as a text that unpack() reads; no serial numbers, names or addresses of people.

    Raises HostError when something that is there cannot be read.
    """
    lines = [_HEAD]
    for path in _PLAIN_FILES:
        lines += _file(host, path)
    lines += _symbols(host) + _screen_info(host)
    seen: set[str] = set()
    for bus in ("pci", "platform"):
        for name in host.list(f"sys/bus/{bus}/devices"):
            lines += _device(host, bus, name, seen)
    lines += _file(host, "sys/bus/pci/drivers_probe", door=True)
    lines += _file(host, "sys/bus/pci/rescan", door=True)
    lines += _driver(host, "pci", "vfio-pci", seen)
    lines += _modules(host) + _nvidia(host) + _beside_apus(host)
    lines += _consoles(host) + _other_nodes(host)
    return "\n".join(lines) + "\n"


def _file(host: Host, path: str, *, door: bool = False) -> list[str]:
    if not host.exists(path):
        return []
    try:
        content = b"" if door else host.read_bytes(path) or b""
    except HostError:
        if not path.startswith("sys/devices"):
            raise
        content = b""  # an attribute for writing only
    if not content.isascii() or b"\0" in content:
        return [f"x {path} = {content.hex()}"]
    text = content.decode().rstrip("\n")
    if not text:
        return [f"f {path}"]
    if "\n" not in text:
        return [f"f {path} = {text}"]
    return [f"f {path}", *("|" + line for line in text.split("\n"))]


def _link(host: Host, path: str) -> list[str]:
    target = host.readlink(path)
    return [] if target is None else [f"l {path} -> {target}"]


def _symbols(host: Host) -> list[str]:
    """Only the kernel symbols that a decision rests on: the whole table has megabytes."""
    table = host.read_bytes("proc/kallsyms")
    if table is None:
        return []
    lines = (line.decode() for line in table.split(b"\n"))
    kept = (line for line in lines if line.partition("\t")[0].rsplit(" ", 1)[-1] in SYMBOLS)
    return ["f proc/kallsyms", *("|" + line for line in kept)]


def _screen_info(host: Host) -> list[str]:
    data = host.read_bytes("sys/kernel/boot_params/data")
    # struct screen_info is the first 64 bytes; the rest of boot_params is nobody's business.
    return [] if data is None else [f"x sys/kernel/boot_params/data = {data[:64].hex()}"]


def _device(host: Host, bus: str, name: str, seen: set[str]) -> list[str]:
    link = f"sys/bus/{bus}/devices/{name}"
    if bus == "platform" and not _FIRMWARE_DEVICE.fullmatch(name):
        return []
    if bus == "pci" and not _is_whole(host, name):
        return []
    real = host.real(link)
    if real is None:
        return []
    lines = [*_link(host, link), f"d {real}"]
    for attribute in _DEVICE_FILES:
        lines += _file(host, f"{real}/{attribute}", door=attribute == "remove")
    if host.exists(f"{real}/config"):
        # Only the standard header: capabilities may hold a serial number.
        lines += [f"x {real}/config = {host.peek(f'{real}/config', 0, 64).hex()}"]
    functions = [one for one in host.list(real) if one.startswith("virtfn")]
    for name_of_link in ("driver", "subsystem", "iommu_group", "physfn", *functions):
        lines += _link(host, f"{real}/{name_of_link}")
    # A firmware device without driver still needs the door through which it comes back.
    unbound = name.partition(".")[0] if bus == "platform" else ""
    driver = host.link_name(f"{real}/driver") or unbound
    lines += _driver(host, bus, driver, seen) if driver else []
    # Up to Linux 5.10 or so the framebuffer of virtio-gpu hangs below virtioN, which hangs here.
    below = [f"{real}/{name}" for name in host.list(real) if _VIRTIO.fullmatch(name)]
    for place in (real, *below):
        for kind in ("graphics", "drm", "vfio-dev"):
            for child in host.list(f"{place}/{kind}"):
                lines += _child(host, f"{place}/{kind}/{child}")
    return lines


def _is_whole(host: Host, name: str) -> bool:
    """Whether a PCI device is of a kind of which all is written down: displays and sound."""
    pci_class = host.read(f"sys/bus/pci/devices/{name}/class") or ""
    return pci_class.startswith(("0x03", "0x0403"))


def _child(host: Host, folder: str) -> list[str]:
    """A framebuffer, a card with its connectors, or a device of vfio."""
    if host.readlink(folder) is not None:
        return _link(host, folder)  # drm/controlD64 is another name of drm/card0
    name = folder.rpartition("/")[2]
    below = host.list(folder)
    connectors = [f"d {folder}/{one}" for one in below if one.startswith(f"{name}-")]
    return [
        f"d {folder}",
        *_link(host, f"{folder}/device"),
        *_file(host, f"{folder}/name"),
        *connectors,
    ]


def _driver(host: Host, bus: str, driver: str, seen: set[str]) -> list[str]:
    folder = f"sys/bus/{bus}/drivers/{driver}"
    if folder in seen or not host.exists(folder):
        return []
    seen.add(folder)
    lines = [f"d {folder}"]
    for door in _DOORS:
        lines += _file(host, f"{folder}/{door}", door=True)
    return lines + _link(host, f"{folder}/module")


def _modules(host: Host) -> list[str]:
    """The modules of drivers that are unloaded rather than unbound, and what hangs on them."""
    driven = [(one, host.link_name(f"sys/bus/pci/devices/{one}/driver")) for one in displays(host)]
    wanted = sorted(
        {driver for _, driver in driven if driver and drivers.driver_named(driver).unload}
    )
    lines = []
    for module in (one for driver in wanted for one in modules.unload_order(host, driver)):
        folder = f"sys/module/{module}"
        lines += [*_file(host, f"{folder}/initstate"), *_file(host, f"{folder}/refcnt")]
        lines += [f"d {folder}/holders"]
        for holder in host.list(f"{folder}/holders"):
            lines += _link(host, f"{folder}/holders/{holder}")
    return lines


def _nvidia(host: Host) -> list[str]:
    """The nodes of NVIDIA's own driver, and of what it tells of a GPU which of them is its."""
    lines = []
    for name in (one for one in host.list("dev") if one.startswith("nvidia")):
        below = host.list(f"dev/{name}")
        lines += [f"f dev/{name}/{one}" for one in below] or [f"f dev/{name}"]
    for address in host.list("proc/driver/nvidia/gpus"):
        path = f"proc/driver/nvidia/gpus/{address}/information"
        told = (host.read(path) or "").splitlines()
        lines += [f"f {path} = {line}" for line in told if line.startswith("Device Minor:")]
    return lines


def _beside_apus(host: Host) -> list[str]:
    """Whose the other functions are that share a slot with the GPU of an AMD processor."""
    lines = []
    for address in displays(host):
        for name in drivers.functions(host, address) if drivers.is_apu(host, address) else ():
            if not _is_whole(host, name):
                real = host.real(f"sys/bus/pci/devices/{name}")
                lines += _link(host, f"sys/bus/pci/devices/{name}")
                lines += _file(host, f"{real}/class") + _file(host, f"{real}/vendor")
    return list(dict.fromkeys(lines))


def _other_nodes(host: Host) -> list[str]:
    """What else of a GPU processes may have open: only whose it is, by its link."""
    lines = _file(host, "dev/kfd", door=True)
    for kind in ("i2c-dev", "backlight", "sound"):
        for name in host.list(f"sys/class/{kind}"):
            lines += _link(host, f"sys/class/{kind}/{name}")
    return lines


def _consoles(host: Host) -> list[str]:
    lines = []
    for kind in ("graphics", "drm"):
        lines += [f"d sys/class/{kind}"] if host.exists(f"sys/class/{kind}") else []
        for name in host.list(f"sys/class/{kind}"):
            lines += _link(host, f"sys/class/{kind}/{name}")
    indices = None
    for fb in (name for name in host.list("sys/class/graphics") if re.fullmatch(r"fb\d+", name)):
        memory = host.framebuffer_memory(fb)
        if memory is not None:
            lines += [f"f dev/{fb}", f"f ioctl/{fb}/memory = {memory[0]:#x} {memory[1]}"]
            indices = host.console_map(fb)
    if indices is not None:
        packed = pack_console_map(indices)
        lines += ["f ioctl/con2fbmap", *("|" + line for line in packed.splitlines())]
    if host.exists("sys/class/vtconsole"):
        lines += ["d sys/class/vtconsole"]
    for console in host.list("sys/class/vtconsole"):
        real = host.real(f"sys/class/vtconsole/{console}")
        lines += [*_link(host, f"sys/class/vtconsole/{console}"), f"d {real}"]
        lines += _file(host, f"{real}/name") + _file(host, f"{real}/bind")
    tty = host.read("sys/class/tty/tty0/active")
    if tty:
        mode = "text" if host.text_mode(tty) else "graphics"
        lines += [f"f dev/{tty}", f"f ioctl/{tty}/mode = {mode}", "f ioctl/consoles = unlocked"]
    return lines
