"""Writes a snapshot that machine/snapshot.py reads: for bug reports and tests.

First the GPUs, drivers and consoles, as machine_text() finds them on any machine; then
everything else that plan, status and doctor read on this one, so that they print the same
for the snapshot. Serial numbers, names and addresses of people are left out.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from ... import __version__
from ...config import load
from ...domain import Domain
from ...errors import HookError, HostError
from ...log import printable
from ...machine import card, console, drivers, drm, iommu, kernel, modules
from ...machine.accelerators import gpus_of_host, is_gpu
from ...machine.firmware import COREBOOT_DRIVER
from ...machine.host import Host
from ...machine.libvirtd import Vm
from ...machine.pci import is_sound
from ...machine.snapshot import Entry, entries
from ..doctor.areas import AREAS
from ..doctor.system import System, imagined_vm
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
    "proc/cmdline", "proc/iomem", "proc/ioports", "proc/fb", "proc/sys/kernel/osrelease",
    "proc/sys/kernel/version", "proc/sys/kernel/random/boot_id", "sys/kernel/security/lockdown",
    "sys/class/tty/tty0/active",
)  # fmt: skip
_DEVICE_LINKS = ("driver", "subsystem", "iommu_group", "physfn", "virtfn*")
_CHILDREN = ("graphics", "drm", "vfio-dev")
_FIRMWARE_DEVICE = re.compile(r".*/(?:[^/]*-framebuffer|vga16fb|of-display)\.\d+")
# _text is in every table: it shows that the table can be read.
SYMBOLS = (
    "_text",
    *kernel.SYMBOLS.values(),
    "sysfb_disable",
    "nvidia_modeset_remove",
    "radeon_pci_remove",
    "framebuffer_remove",
)


_HEAD = "# vfio-console-hook machine"
SEEN = "# what plan and doctor read beside that"
"""The line between the part that every machine has and the rest."""


def snapshot_text(host: Host, vms: tuple[Vm, ...] | HookError) -> str:
    """A snapshot for which plan, status and doctor print the same as for the machine.

    vms are the VMs that libvirt knows, or the reason why it could not be asked. Comments
    at the top list what could not be read.
    """
    return text_and_names(host, vms)[0]


def text_and_names(host: Host, vms: tuple[Vm, ...] | HookError) -> tuple[str, Replacements]:
    """The same, and how names and numbers were replaced in it: for other texts beside it."""
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
    return "\n".join([*_top(host, remarks), *lines]) + "\n", names


def without_names(machine: str, names: Replacements) -> str:
    """What machine_text() has written, with names and numbers replaced. Raises HostError."""
    found = redact.redacted(entries(machine), names)
    return "\n".join([_HEAD, *(line for entry in found for line in entry.lines())]) + "\n"


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
        files=tuple(redact.rom_files(found)),
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
    system = System.with_vms(host, vms)
    commands: list[Callable[[], object]] = [
        partial(_plan, host, one) for one in (*system.domains, *_imagined_vms(host))
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


def _imagined_vms(host: Host) -> tuple[Domain, ...]:
    """A VM for each GPU, for plans of GPUs that no VM has."""
    try:
        return tuple(map(imagined_vm, gpus_of_host(host)))
    except HookError:
        return ()


# -- what every machine has


def machine_text(host: Host) -> str:
    """The GPUs, drivers and consoles of a machine as a snapshot.

    Serial numbers, names and addresses of people are left out. Raises HostError when
    something that is there cannot be read.
    """
    lines = [line for entry in _machine(TracingHost(host)) for line in entry.lines()]
    return "\n".join([_HEAD, *lines]) + "\n"


def _machine(host: TracingHost) -> Iterator[Entry]:
    yield from _files(host, *_PLAIN_FILES)
    yield from _symbols(host)
    # struct screen_info; the rest contains the command line.
    yield from _first_bytes(host, "sys/kernel/boot_params/data")
    folders = {"sys/bus/pci/drivers/vfio-pci": ""}
    for bus, wanted in (("pci", _is_gpu_or_sound), ("platform", _is_firmware_device)):
        for path in _matching(host, f"sys/bus/{bus}/devices/*"):
            real = host.real(path)
            if real is not None and wanted(host, path):
                yield from _links(host, path)
                yield from _device(host, real)
                # A firmware device without a driver still needs bind, through which it comes back.
                driver = (
                    host.link_name(f"{real}/driver") or path.rpartition("/")[2].partition(".")[0]
                )
                folders[f"sys/bus/{bus}/drivers/{driver}"] = ""
    yield from _doors(host, "sys/bus/pci/drivers_probe", "sys/bus/pci/rescan", "dev/kfd")
    for folder in filter(host.exists, folders):
        yield Entry("d", folder)
        yield from _doors(host, f"{folder}/bind", f"{folder}/unbind")
        yield from _links(host, f"{folder}/module")
    yield from _coreboot(host)
    yield from _modules(host)
    yield from _nvidia(host)
    yield from _beside_gpus(host)
    yield from _consoles(host)
    # The other nodes that processes may have open: the links lead to the GPU.
    yield from _links(host, *(f"sys/class/{kind}/*" for kind in ("i2c-dev", "backlight", "sound")))


def _matching(host: Host, *patterns: str) -> Iterator[str]:
    """The paths that match; the last part of a pattern may be one of fnmatch()."""
    for folder, _, name in (pattern.rpartition("/") for pattern in patterns):
        if "*" in name:
            yield from (f"{folder}/{one}" for one in fnmatch.filter(host.list(folder), name))
        else:
            yield f"{folder}/{name}".lstrip("/")


def _files(host: Host, *paths: str) -> Iterator[Entry]:
    """Those of the files that are there."""
    for path in filter(host.exists, paths):
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


def _doors(host: Host, *paths: str) -> Iterator[Entry]:
    """Those of the files, which are only written to, that are there."""
    return (Entry("f", path) for path in paths if host.exists(path))


def _first_bytes(host: Host, path: str) -> Iterator[Entry]:
    """The first 64 bytes of a file that may have private data behind them."""
    if host.exists(path):
        yield Entry("f", path, host.peek(path, 0, 64))


def _links(host: Host, *patterns: str) -> Iterator[Entry]:
    """Those of the paths that are links."""
    for path in _matching(host, *patterns):
        target = host.readlink(path)
        if target is not None:
            yield Entry("l", path, target.encode("utf-8", "surrogateescape"))


def _symbols(host: Host) -> Iterator[Entry]:
    """Only the kernel symbols that decide something: the whole table has megabytes."""
    table = host.read_bytes("proc/kallsyms")
    if table is not None:
        lines = table.decode("utf-8", "surrogateescape").split("\n")
        kept = (line for line in lines if line.partition("\t")[0].rsplit(" ", 1)[-1] in SYMBOLS)
        yield text_file("proc/kallsyms", "\n".join(kept))


def _is_gpu_or_sound(host: Host, path: str) -> bool:
    return is_sound(host, path.rpartition("/")[2]) or is_gpu(host, path.rpartition("/")[2])


def _is_firmware_device(host: Host, path: str) -> bool:
    return _FIRMWARE_DEVICE.fullmatch(path) is not None


def _device(host: Host, real: str) -> Iterator[Entry]:
    yield Entry("d", real)
    yield from _files(host, *(f"{real}/{name}" for name in _DEVICE_FILES))
    yield from _doors(host, f"{real}/remove")
    # Only the standard header: capabilities can contain a serial number.
    yield from _first_bytes(host, f"{real}/config")
    yield from _links(host, *(f"{real}/{name}" for name in _DEVICE_LINKS))
    # Up to Linux 5.10 or so the framebuffer of virtio-gpu is below virtioN, which is here.
    for place in (real, *_matching(host, f"{real}/virtio*")):
        for child in _matching(host, *(f"{place}/{kind}/*" for kind in _CHILDREN)):
            yield from _child(host, child)


def _child(host: Host, path: str) -> Iterator[Entry]:
    """A framebuffer, a card with its connectors, or a device of vfio."""
    if host.readlink(path) is not None:
        yield from _links(host, path)  # drm/controlD64 is another name of drm/card0
        return
    yield Entry("d", path)
    yield from _links(host, f"{path}/device")
    yield from _files(host, f"{path}/name")
    for connector in _matching(host, f"{path}/{path.rpartition('/')[2]}-*"):
        yield Entry("d", connector)
        if not console.has_fb_devices(host):  # or they decide nothing
            yield from _files(host, f"{connector}/status", f"{connector}/enabled")


def _coreboot(host: Host) -> Iterator[Entry]:
    """The devices on the coreboot bus, and the driver of the one that is the framebuffer."""
    for path in _matching(host, "sys/bus/coreboot/devices/*"):
        real = host.real(path)
        if real is not None:
            yield from _links(host, path)
            yield Entry("d", real)
            yield from _links(host, f"{real}/driver", f"{real}/subsystem")
    if host.exists(COREBOOT_DRIVER):
        yield Entry("d", COREBOOT_DRIVER)
        yield from _doors(host, f"{COREBOOT_DRIVER}/bind", f"{COREBOOT_DRIVER}/unbind")


def _modules(host: Host) -> Iterator[Entry]:
    """The modules of drivers that are unloaded rather than unbound, and their holders."""
    links = (f"sys/bus/pci/devices/{one}/driver" for one in gpus_of_host(host))
    driven = {host.link_name(link) or "" for link in links}
    for driver in sorted(one for one in driven if drivers.driver_named(one).unload):
        for folder in (f"sys/module/{one}" for one in modules.unload_order(host, driver)):
            yield from _files(host, f"{folder}/initstate", f"{folder}/refcnt")
            yield Entry("d", f"{folder}/holders")
            yield from _links(host, f"{folder}/holders/*")


def _nvidia(host: Host) -> Iterator[Entry]:
    """The nodes of NVIDIA's own driver, which of them belongs to which GPU, and its interrupts."""
    for path in _matching(host, "dev/nvidia*"):
        yield from _doors(host, *(list(_matching(host, f"{path}/*")) or [path]))
    for folder in _matching(host, "proc/driver/nvidia/gpus/*"):
        lines = (host.read(f"{folder}/information") or "").splitlines()
        for line in (one for one in lines if one.startswith("Device Minor:")):
            yield text_file(f"{folder}/information", line)
        gpu = host.real(f"sys/bus/pci/devices/{folder.rpartition('/')[2]}")
        if gpu is not None:
            yield from _files(host, *_matching(host, f"{gpu}/msi_irqs/*"))


def _beside_gpus(host: Host) -> Iterator[Entry]:
    """What the other functions of a GPU's card, and of its IOMMU group, are, and their drivers.

    A GPU that is in no group yet comes into that of its port.
    """
    beside: dict[str, None] = {}
    for gpu in gpus_of_host(host):
        beside.update(dict.fromkeys(card.functions(host, gpu)))
        group = iommu.group_of(host, gpu)
        if group is None and iommu.comes_with_driver(host, gpu):
            for unit in _matching(host, "sys/class/iommu/*"):
                yield from _links(host, unit)
                yield Entry("d", host.real(unit) or unit)
            port = (host.real(f"sys/bus/pci/devices/{gpu}") or "").rpartition("/")[0]
            group = host.link_name(f"{port}/iommu_group")
        beside.update(dict.fromkeys(iommu.others_in(host, group, ()) if group else ()))
    for path in (f"sys/bus/pci/devices/{one}" for one in sorted(beside)):
        if not _is_gpu_or_sound(host, path):
            real = host.real(path) or ""
            yield from _links(host, path, f"{real}/driver", f"{real}/iommu_group")
            driver = host.real(f"{real}/driver")
            if driver is not None:
                yield Entry("d", driver)
            yield from _files(host, f"{real}/class", f"{real}/vendor")


def _consoles(host: TracingHost) -> Iterator[Entry]:
    for folder in filter(host.exists, ("sys/class/graphics", "sys/class/drm")):
        yield Entry("d", folder)
        yield from _links(host, f"{folder}/*")
    fbcon = "sys/class/graphics/fbcon"  # it is there before fbcon is a console driver
    if host.exists(fbcon):
        yield Entry("d", host.real(fbcon) or fbcon)
    yield from _files(host, *drm.PARAMETERS)
    if host.exists("sys/class/vtconsole"):
        yield Entry("d", "sys/class/vtconsole")
    for path in _matching(host, "sys/class/vtconsole/*"):
        real = host.real(path) or ""
        yield from _links(host, path)
        yield Entry("d", real)
        yield from _files(host, f"{real}/name", f"{real}/bind")
    for fb in fnmatch.filter(host.list("sys/class/graphics"), "fb[0-9]*"):
        if host.framebuffer_memory(fb) is not None:
            host.console_map(fb)
    tty = host.read("sys/class/tty/tty0/active")
    if tty:
        host.text_mode(tty)
        yield text_file("ioctl/consoles", "unlocked")
    yield from answers.texts(host.trace)
