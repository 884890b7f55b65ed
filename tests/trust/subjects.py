"""Every recorded machine from which a VM could be started, with every GPU that it could get."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import events, snapshots
from tests.fakehost import FakeHost, configure, hold, obey
from tests.fakehost.systemd import Unit, install, put
from tests.libvirt_xml import UUID, domain_xml
from tests.natives import BOCHS
from vfio_console_hook import domain
from vfio_console_hook.claims.step import Step
from vfio_console_hook.config import load as config
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import Domain
from vfio_console_hook.errors import HookError
from vfio_console_hook.machine import pci
from vfio_console_hook.machine.snapshot import unpack

# What decides what prepare does. Nothing else acts on a fake machine, so it need not wait.
_AT_ONCE = "holders: {wait_s: 0}\n"
_POLICIES = ("", *(
    f"{_AT_ONCE}{key}\n"
    for key in ("apu: allow", "keep_console: never", "bootfb: rescan", "bootfb: native")
))  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A machine, the GPUs that a VM gets, and what is configured.

    arrange is what else there is on it, such as services.
    """

    machine: str
    gpus: tuple[str, ...] = ("0000:01:00.0",)
    settings: str = ""
    arrange: Callable[[FakeHost], None] | None = None

    def __str__(self) -> str:
        settings = " ".join(self.settings.replace("\n", " ").split())
        return f"{self.machine} {'+'.join(self.gpus)}{f' ({settings})' if settings else ''}"

    def domain(self, uuid: str = UUID, name: str = "win11") -> Domain:
        """The VM."""
        return domain.parse(domain_xml(*self.gpus, name=name, uuid=uuid))

    def config(self, host: FakeHost) -> Config:
        """What is configured on the machine, as the program reads it."""
        vm = self.domain()
        return config.configuration(host, vm.name, vm.uuid)

    def planned(self, directory: Path) -> tuple[Step, ...] | str:
        """The steps for the VM on the machine there, or why it is refused."""
        host = FakeHost(str(directory))
        self.configure(host)
        try:
            return events.look(host, self.domain(), self.config(host))[1]
        except HookError as error:
            return str(error)

    def lay_out(self, directory: Path) -> None:
        """Unpack the machine into directory, which is made. vfio-pci is loaded on it."""
        directory.mkdir()
        unpack(snapshots.machine_text(self.machine), str(directory))
        host = FakeHost(str(directory))
        host.load_module("vfio-pci")
        if self.machine.startswith("lab-"):
            for address in pci.displays(host):
                if not host.exists(f"fake/native/{address}"):
                    host.tree.put(f"fake/native/{address}", BOCHS)
        for pid in filter(str.isdigit, host.list("proc")):
            if not host.exists(f"proc/{pid}/stat"):
                # A process has one on any machine, whatever the recording left out.
                host.tree.put(f"proc/{pid}/stat", f"{pid} (x) S 1 {pid} {pid}" + " 0" * 46)
        if self.arrange is not None:
            self.arrange(host)
        self.configure(host)

    def configure(self, host: FakeHost) -> None:
        """Put the settings where the program looks, and what they need on the machine.

        A native driver that is to take a GPU over must not be blacklisted.
        """
        if "bootfb: native" in self.settings:
            host.tree.remove("fake/blacklist")
        configure(host, self.settings or _AT_ONCE)


def everything(scratch: Path) -> Iterator[Subject]:
    """Every subject for which prepare does, or refuses, something of its own.

    scratch is a path where nothing is; nothing is afterwards.
    """
    for machine in snapshots.before_vms():
        Subject(machine, ()).lay_out(scratch)
        found = _gpus(FakeHost(str(scratch)))
        known = set()
        for chosen in (*((one,) for one in found), *((found,) if len(found) > 1 else ())):
            for policy in _POLICIES:
                subject = Subject(machine, chosen, policy)
                planned = (chosen, str(subject.planned(scratch)))
                if planned not in known:
                    known.add(planned)
                    yield subject
        shutil.rmtree(scratch)
    yield from _SPECIAL


def chosen(scratch: Path, *, quick: bool) -> list[Subject]:
    """All of everything(); if quick, one for each machine and for each kind of step."""
    known: set[tuple[str, ...]] = set()
    found = []
    for subject in everything(scratch):
        kinds: set[tuple[str, ...]] = {(subject.machine,)}
        if quick and subject.arrange is None:
            steps = subject.planned(scratch)
            kinds.update((one.stage, *_kinds(one)) for one in steps if isinstance(one, Step))
        else:
            kinds.add((str(subject),))
        if not kinds <= known:
            known |= kinds
            found.append(subject)
    return found


def _kinds(step: Step) -> tuple[str, str]:
    return step.do.kind if step.do else "", step.undo.kind if step.undo else ""


def _gpus(host: FakeHost) -> tuple[str, ...]:
    """Those that a VM can get for itself. virtio-gpu is the lab's own, and its host's."""
    return tuple(
        one
        for one in pci.displays(host)
        if not pci.is_virtual(host, one)
        and host.link_name(f"sys/bus/pci/devices/{one}/driver") != "virtio-pci"
    )


def _with_services(host: FakeHost) -> None:
    install(host.tree)
    manager = Unit(active="active", aliases=("display-manager.service",), triggers=("gdm.socket",))
    put(host.tree, "gdm.service", manager)
    put(host.tree, "gdm.socket", Unit(active="active"))
    put(host.tree, "lactd.service", Unit(active="active"))


def _with_holders(host: FakeHost) -> None:
    for pid, by in ((4711, 15), (4712, 9)):
        hold(host, "dev/fb0", pid=pid, command="reader")
        obey(host, pid, by)


_SERVICES = f"{_AT_ONCE}services: [display-manager, lactd]\n"
_TERMINATE = "holders: {wait_s: 0, terminate: [reader], grace_s: 1}\n"
_SPECIAL = (
    Subject("efifb-5.10", ("0000:01:00.0",), _SERVICES, _with_services),
    Subject("nvidia-single-desktop", ("0000:01:00.0",), _SERVICES, _with_services),
    Subject("efifb-6.1", ("0000:01:00.0",), _TERMINATE, _with_holders),
)
