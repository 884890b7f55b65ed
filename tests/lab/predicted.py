"""Compares the fake machine with real kernels: it must predict the snapshot of each phase.

The program that ran in the lab runs here on a FakeHost over its own snapshot of the
machine before the VM. After each phase the whole machine must be as in the lab:

    prepared   the hook has handled prepare; the GPUs are on their old drivers
    bound      it has handled start; they are on vfio-pci, and QEMU does not run yet
    during     QEMU runs and has mapped them
    stopped    QEMU has ended; they are still on vfio-pci
    after      libvirt has re-attached them, and the hook has handled release

and after a refusal as before it. Every run of the lab is compared (trial.py), and
tests/test_against_lab.py repeats that with the snapshots of all kernels in tests/machines.

Kinds are left out if something else happens between two snapshots: in desktop a display
server, which is not in a snapshot, ends and starts; in stuck and every-call the machine
changes before the first cycle, in opened the card was on vfio-pci before; newcomer and by-hand
run commands, on the machine of efifb-6.12. Machines without the hook are not predicted.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from tests import events
from vfio_console_hook.commands.snapshot.writer import SEEN, machine_text
from vfio_console_hook.config import load
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError
from vfio_console_hook.log import Log
from vfio_console_hook.machine.snapshot import unpack

from ..fakehost import FakeHost, FakeLibvirt, close_device, hold, open_device, openrc, systemd
from ..natives import BOCHS, SOUND, STAND_IN_MODULES, STAND_INS
from . import kernels
from .scenarios import STAYING, WITHOUT_FB, Scenario, leaving
from .service import UNIT
from .vm import UUID, VM

PHASES = ("prepared", "bound", "during", "stopped", "after")
KINDS = (
    "apparmor", "cell", "cycles", "dropin", "killed", "moved", "nvidia", "nvidia-two", "openrc",
    "rebound", "reserved", "sound", "terminated", "two-vms", "untouched",
)  # fmt: skip

_LONGEST_DIFFERENCE = 12


def can(scenario: Scenario) -> bool:
    """Whether this Python can predict a scenario: the configuration of a VM needs PyYAML."""
    return not scenario.config or importlib.util.find_spec("yaml") is not None


def starts(scenario: Scenario) -> bool:
    """Whether the first cycle only starts and destroys one VM."""
    started = scenario.holder is not None or not scenario.refused
    return scenario.hook and scenario.kind in KINDS and started


def refuses(scenario: Scenario) -> bool:
    """Whether the first start of the VM is refused."""
    return scenario.hook and scenario.kind in KINDS and bool(scenario.refused)


def phases(scenario: Scenario, before: str, directory: Path) -> dict[str, str]:
    """The fake machine after each of PHASES, from the snapshot before.

    directory is created for the machine.
    """
    host = _machine(scenario, before, directory)
    if scenario.kind == "terminated":
        _hold(scenario, host)
    devices = _devices(host, scenario)
    libvirt = FakeLibvirt(host)
    log = Log(host, VM)
    found = {}

    _prepare(host, devices, log)
    found["prepared"] = machine_text(host)
    for address in devices:
        libvirt.detach(address)
    events.start(host, UUID, log)
    found["bound"] = machine_text(host)
    blocked = [bar for address in devices for bar in open_device(host, address)]
    found["during"] = machine_text(host) + "".join(f"# blocked: BAR {bar}\n" for bar in blocked)
    for address in devices:
        close_device(host, address)
    events.stop(host, UUID, log)
    found["stopped"] = machine_text(host)
    for address in devices:
        libvirt.reattach(address)
    events.release(host, UUID, log)
    found["after"] = machine_text(host)
    return found


def differences(
    scenario: Scenario, before: str, snapshots: Mapping[str, str], directory: Path
) -> dict[str, str]:
    """The phases in which the fake machine is not as the snapshot, and the differences.

    directory is created for the machines.
    """
    directory.mkdir()
    try:
        predicted = phases(scenario, before, directory / "fake")
    except Exception as error:
        return {"somewhere": f"it stops with {type(error).__name__}: {error}"}
    found = {}
    for phase in (one for one in PHASES if one in snapshots):
        machines = (normal(snapshots[phase], directory / phase), predicted[phase])
        if phase == "during":
            machines = (
                without_guest_writes(machines[0]), without_guest_writes(machines[1])
            )  # fmt: skip
        wrong = difference(*machines)
        if wrong:
            found[phase] = wrong
    return found


def refusal(scenario: Scenario, before: str, directory: Path) -> str:
    """What is wrong with the refusal on the fake machine; "" if it is as in the lab.

    directory is created for the machines.
    """
    directory.mkdir()
    host = _machine(scenario, before, directory / "fake", ending=False)
    _hold(scenario, host)
    untouched = machine_text(host)
    try:
        _prepare(host, _devices(host, scenario), Log(host, VM))
    except HookError as error:
        if not re.search(scenario.refused, str(error)):
            return f"the fake refuses for another reason: {error}"
        return difference(untouched, machine_text(host))
    return "the fake does not refuse"


def normal(text: str, directory: Path) -> str:
    """A snapshot as the program writes it: without comments, in its order.

    Processes with open nodes are left out, and a power state that the kernel does not
    know is D0, as on the fake (pci.learn). directory is created for the machine.
    """
    directory.mkdir()
    machine = machine_text(unpack(text.partition(SEEN)[0], str(directory)))
    return re.sub(r"(?m)^(f \S+/power_state = )unknown$", r"\1D0", machine)


def difference(lab: str, fake: str) -> str:
    """The lines that only one of two machines has, the lab's with "-"; at most a dozen.

    The kernel's command line never changes, and `record` shortens it.
    """
    compared = difflib.unified_diff(lab.splitlines(), fake.splitlines(), n=0, lineterm="")
    apart = ("---", "+++", "@@", "-f proc/cmdline ", "+f proc/cmdline ")
    lines = [line for line in compared if not line.startswith(apart)]
    more = len(lines) - _LONGEST_DIFFERENCE
    return "\n".join(lines[:_LONGEST_DIFFERENCE] + ([f"and {more} more"] if more > 0 else []))


def without_guest_writes(machine: str) -> str:
    """The machine without the guest's changes to config space of its GPUs through vfio.

    The guest's firmware enables SERR in COMMAND, and memory, which QEMU's reset has switched off
    (hw/vfio/pci.c, vfio_pci_pre_reset): a guest without firmware does not. The ROM's address is
    in its BAR after QEMU or the guest has read the ROM (Linux drivers/pci/rom.c, pci_map_rom).
    The host does nothing of that, and it is gone after the VM.
    """
    given = re.findall(r"(?m)^l (\S+)/driver -> \S*/drivers/vfio-pci$", machine)
    header = rf"(?m)^(x (?:{'|'.join(map(re.escape, given))})/config = )([0-9a-f]{{128}})$"
    return re.sub(header, _without_command_and_rom, machine) if given else machine


def _without_command_and_rom(line: re.Match[str]) -> str:
    header = bytearray.fromhex(line[2])
    header[4] &= ~0x02
    header[5] &= ~0x01
    header[0x30:0x34] = bytes(4)
    return line[1] + header.hex()


# -- the machine, and what libvirt does with it


def _machine(scenario: Scenario, before: str, directory: Path, *, ending: bool = True) -> FakeHost:
    """The machine before, with the configuration of the VM and the units in that.

    ending: with the configuration that ends holders, if there is one.
    """
    directory.mkdir()
    unpack(before.partition(SEEN)[0], str(directory))
    host = FakeHost(str(directory))
    stand_ins = scenario.stand_ins
    shaped = "distribution" in kernels.named(scenario.kernel).fragments
    known = (*stand_ins, *(("vmwgfx",) if shaped else ()))
    if known:
        lines = [f"{one} {STAND_IN_MODULES.get(one, '')}".strip() for one in known]
        host.tree.put("fake/modules", "\n".join(lines))
    native = next((STAND_INS[one] for one in stand_ins if one in STAND_INS), BOCHS)
    if WITHOUT_FB in scenario.kernel_line:
        native = re.sub(r"fb=\S+", "card=yes", native)
    for address in _of_class(host, "0x03"):
        host.tree.put(f"fake/native/{address}", native)
    for address in _of_class(host, "0x0403"):
        host.tree.put(f"fake/native/{address}", SOUND)
    if scenario.kind == "nvidia-two":
        for number, staying in enumerate(STAYING):
            hold(host, staying.node.lstrip("/"), pid=4700 + number, command=staying.name)
    if scenario.root == "openrc":
        openrc.put(host.tree, UNIT, "started")
    elif UNIT in scenario.config:
        # A snapshot does not contain units.
        systemd.install(host.tree)
        systemd.put(host.tree, f"{UNIT}.service", systemd.Unit(active="active"))
    if scenario.config and (ending or scenario.kind != "terminated"):
        host.tree.put(f"etc/vfio-console-hook/vms/{VM}.yaml", scenario.config)
    return host


def _hold(scenario: Scenario, host: FakeHost) -> None:
    """Add the scenario's processes, which have its node open."""
    if scenario.holder is None:
        return
    node = scenario.holder.node.lstrip("/")
    for number in range(scenario.holder.count):
        hold(host, node, pid=4711 + number, command=scenario.holder.name)


def _prepare(host: FakeHost, devices: tuple[str, ...], log: Log) -> None:
    domain = Domain(VM, UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in devices))
    events.prepare(host, domain, load.configuration(host, VM, UUID), log)


def _of_class(host: FakeHost, prefix: str) -> list[str]:
    """The addresses of all devices of a class, in the order of the scenario."""
    places = {
        host.real(f"sys/bus/pci/devices/{address}") or "": address
        for address in host.list("sys/bus/pci/devices")
        if (host.read(f"sys/bus/pci/devices/{address}/class") or "").startswith(prefix)
    }
    # That is the order of the root ports, not of the buses behind them.
    return [places[place] for place in sorted(places)]


def _devices(host: FakeHost, scenario: Scenario) -> tuple[str, ...]:
    """The addresses of the VM's devices."""
    beside = _of_class(host, "0x0403") if scenario.kind == "sound" else ()
    return (*leaving(scenario, _of_class(host, "0x03")), *beside)
