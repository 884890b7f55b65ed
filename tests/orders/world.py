"""One machine with its VMs: libvirt, QEMU and people act, the program is called and watched.

libvirt's part is as it was seen (virsh on 7.0, 9.0, 11.3 and 12.8): which hook comes
when, what it does with the devices between them, and what it forgets when it is killed.
Everything that must hold is looked at after each call of the program; what does not
raises Violation.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakehost import (
    FakeHost,
    FakeLibvirt,
    KernelFault,
    LibvirtError,
    close_device,
    hold,
    let_go,
    open_device,
    systemd,
)
from tests.libvirt_xml import domain_xml
from vfio_console_hook import config, domain, hook, plan
from vfio_console_hook.errors import HostError
from vfio_console_hook.log import RECORDED_LOG
from vfio_console_hook.recorded import unpack
from vfio_console_hook.step import Step

from . import promises, watch
from .calls import Called, Death, SeenHost, Work, command, here, in_a_child
from .machines import Setting
from .promises import Violation

_CONFIG = "etc/vfio-console-hook"
# Where everything that a failure may say is in: the sentence, and what may help.
_SENTENCE = re.compile(r"vfio-console-hook: [^\n]+\n(hint: [^\n]+\n)?")
_CONSOLE_MAP = "ioctl/con2fbmap"
_STARTING = ("prepare", "detach", "start", "open", "started")
_STOPPING = ("close", "stopped", "reattach", "release")


class _KernelDied(Exception):
    """Of what libvirt did for a VM that was not prepared; the host has been booted again."""


@dataclass(frozen=True)
class Guest:
    """A VM as it is defined. settings is its file of the configuration."""

    name: str
    uuid: str
    devices: tuple[str, ...]
    managed: bool = True
    settings: str = ""

    def gpus(self, setting: Setting) -> tuple[str, ...]:
        """Those of its devices that are GPUs of a machine."""
        return tuple(one for one in self.devices if one in setting.gpus)


@dataclass
class Life:
    """Where a VM is: what libvirt will do next for it, and what it has."""

    guest: Guest
    number: int
    path: list[str] = field(default_factory=list)
    runs: bool = False
    plugged: set[str] = field(default_factory=set)
    prepared: bool = False
    started: bool = False

    @property
    def off(self) -> bool:
        return not self.path and not self.runs

    @property
    def pid(self) -> int:
        return 4200 + self.number


class World:
    """A machine in folder, which is the world's own. tally counts what happens."""

    def __init__(
        self, folder: Path, setting: Setting, guests: Iterable[Guest], tally: Counter[str]
    ) -> None:
        self.setting = setting
        self.folder = folder
        self.tally = tally
        self.lives = {one.name: Life(one, n) for n, one in enumerate(guests)}
        self.boots = 0
        self.boot(keep_run=False)

    # -- the host

    def boot(self, *, keep_run: bool) -> None:
        """Power on, or reboot: the machine is as it always is then, all VMs are off."""
        old = self.folder / f"boot{self.boots}"
        self.boots += 1
        self.root = self.folder / f"boot{self.boots}"
        self.root.mkdir(parents=True)
        unpack(self.setting.text, str(self.root))
        if keep_run:
            shutil.copytree(old / "run", self.root / "run", symlinks=True, dirs_exist_ok=True)
        self.host = FakeHost(str(self.root))
        self.host.load_module("vfio-pci")
        self.host.tree.put("proc/sys/kernel/random/boot_id", f"boot-{self.boots}")
        systemd.install(self.host.tree)
        systemd.put(self.host.tree, promises.SERVICE, systemd.Unit(active="active"))
        self.libvirt = FakeLibvirt(self.host)
        self.owner: dict[str, str] = {}
        self.by_hand: set[str] = set()
        self.holders: dict[int, str] = {}
        self.lost: set[str] = set()
        self.stranded: set[str] = set()
        self.owed: set[str] = set()
        for life in self.lives.values():
            self.lives[life.guest.name] = Life(life.guest, life.number)
            self._configure(life.guest)
        self.firmware = watch.firmware_owners(self.host)
        self.fresh = watch.whole(self.host)
        self.away: set[str] = set()
        portraits = watch.portraits(self.host)
        self.shown = {self.firmware.get(x, x) for x, one in portraits.items() if "fb" in one.nodes}
        self.driven = {x for x, one in portraits.items() if one.driver not in (None, "vfio-pci")}

    def _configure(self, guest: Guest) -> None:
        for folder in ("etc", _CONFIG, f"{_CONFIG}/vms"):
            self.host.tree.make_directory(folder)
            os.chmod(self.host.path(folder), 0o755)
        path = f"{_CONFIG}/vms/{guest.uuid}.yaml"
        wait = "" if "holders" in guest.settings else "holders: {wait_s: 0}\n"
        self.host.tree.put(path, wait + guest.settings)
        os.chmod(self.host.path(path), 0o644)

    # -- libvirt

    def begin(self, name: str, before: str = "") -> None:
        """Somebody starts a VM; before is the event that comes first, if any."""
        life = self.lives[name]
        life.path = list(_STARTING)
        life.plugged, life.prepared, life.started = set(life.guest.devices), False, False
        if before:
            self._quiet(life, before, "begin")

    def end(self, name: str, how: str) -> None:
        """A VM that runs ends: shutdown, destroyed, crashed, saved or migrated."""
        self.tally[f"VM {how}"] += 1
        self.lives[name].path = list(_STOPPING)

    def advance(self, name: str, death: Death | None = None) -> None:
        """libvirt's next step for a VM that is starting or stopping."""
        life = self.lives[name]
        step = life.path.pop(0)
        if step in ("prepare", "start", "release"):
            self._hooked(life, step, death)
        elif step in ("started", "stopped"):
            self._quiet(life, step, "begin" if step == "started" else "end")
        else:
            own = {"detach": self._detach, "reattach": self._reattach, "open": self._open}
            with contextlib.suppress(_KernelDied):
                own.get(step, self._close)(life)

    def _hooked(self, life: Life, step: str, death: Death | None) -> None:
        done = getattr(self, f"_{step}")(life, death)
        if not done and step != "release":
            life.path = ["stopped", "reattach", "release"]

    def _prepare(self, life: Life, death: Death | None) -> bool:
        guest = life.guest
        foretold = self._foretell(life)
        others = self._others_with(life)
        called = self._call(life, "prepare", "begin", death=death, steps=foretold.steps)
        self.lost |= watch.told_losses(foretold.steps)
        held = called.after.get(guest.uuid)
        life.prepared = called.status == 0 and held is not None
        if "belongs to the VM" in called.err and not others:
            raise Violation(f"refused for the sake of nobody: {called.err}")
        if called.status and others:
            self.tally["second VM refused"] += 1
        if called.status == 0 and held:
            promises.owners(self, life)
            inherited = [one for one in called.before.values() if one.uuid != guest.uuid and
                         set(one.gpus) & set(held.gpus) and one.boot == held.boot]  # fmt: skip
            if inherited:
                self.tally["prepare before the other's release"] += 1
        if death is None and guest.uuid not in called.before and not others:
            promises.foretold(self, life, foretold, called)
        if guest.uuid in called.before:
            self.tally["prepare over an earlier run"] += 1
            if death is not None and called.status:
                # Killed while it gives back what a killed libvirtd has left: the release that
                # follows is none of that run, and the log tells what stays on vfio-pci.
                self.owed -= {*guest.devices}
                self.lost |= {x for x, owner in self.firmware.items() if owner in guest.devices}
        return called.status == 0

    def _start(self, life: Life, death: Death | None) -> bool:
        called = self._call(life, "start", "begin", death=death)
        life.started = called.status == 0
        return life.started

    def _release(self, life: Life, death: Death | None) -> bool:
        called = self._call(life, "release", "end", death=death)
        if called.status and death is None:
            raise Violation(f"release of {life.guest.name} failed: {called.err}")
        if called.before.get(life.guest.uuid) and not called.after.get(life.guest.uuid):
            self.tally["given back by release"] += 1
        held = called.before.get(life.guest.uuid)
        if called.changes and (held is None or held.boot != f"boot-{self.boots}"):
            raise Violation(f"release without a claim of this boot changed {called.changes}")
        life.prepared = False
        return True

    def _quiet(self, life: Life, operation: str, sub: str) -> None:
        """An event that changes nothing, and that must not end the VM."""
        called = self._call(life, operation, sub)
        if called.status or called.changes:
            raise Violation(f"{operation} {sub}: status {called.status}, {called.changes}")

    def _detach(self, life: Life) -> None:
        """qemuHostdevPrepareDomainDevices: all of them, or none."""
        name, managed = life.guest.name, life.guest.managed
        taken = [one for one in life.guest.devices if self.owner.get(one, name) != name]
        if taken or not life.guest.devices:
            life.path = ["stopped", "release"] if taken else life.path
            return
        if not life.prepared:
            self._wild(life.guest.devices)
        mine: list[str] = []
        with self._untouched(life):
            for address in life.guest.devices:
                try:
                    self.libvirt.detach(address, managed=managed)
                except (LibvirtError, HostError):
                    for one in mine:
                        self.libvirt.reattach(one)
                    life.path = ["stopped", "release"]
                    return
                mine.append(address)
        self.owner.update(dict.fromkeys(mine, name))
        self.away.update(mine)

    def _reattach(self, life: Life) -> None:
        """qemuHostdevReAttachDomainDevices: only what is this VM's."""
        with self._untouched(life):
            for address, name in list(self.owner.items()):
                if name == life.guest.name:
                    self.libvirt.reattach(address)
                    del self.owner[address]

    def _open(self, life: Life) -> None:
        """QEMU is started and maps the BARs of all devices."""
        life.runs = True
        for address in life.guest.devices:
            blocked = open_device(self.host, address, pid=life.pid)
            if blocked and life.prepared and life.started and address in self.setting.gpus:
                raise Violation(f"QEMU cannot map BARs {blocked} of {address}: {self.host.log[-1]}")
            if life.prepared and address in self.setting.gpus:
                self.tally["GPU opened by QEMU"] += 1

    def _close(self, life: Life) -> None:
        life.runs = False
        for address, name in self.owner.items():
            if name == life.guest.name:
                close_device(self.host, address, pid=life.pid)
        let_go(self.host, life.pid)

    def plug(self, name: str, address: str) -> bool:
        """virsh attach-device on a VM that runs: no hook; False when libvirt refuses."""
        life = self.lives[name]
        claimed = {gpu for one in self.claims.values() for gpu in one.gpus}
        if address in self.owner or address in claimed:
            return False
        self._wild((address,))
        try:
            with self._untouched(life, address):
                self.libvirt.detach(address)
        except _KernelDied:
            return False
        if self.host.link_name(f"sys/bus/pci/devices/{address}/driver") != "vfio-pci":
            return False
        self.owner[address] = name
        life.plugged.add(address)
        open_device(self.host, address, pid=life.pid)
        self.tally["GPU plugged"] += 1
        return True

    def owned(self, name: str) -> list[str]:
        """The devices that libvirt has given to a VM."""
        return sorted(address for address, owner in self.owner.items() if owner == name)

    def unplug(self, name: str, address: str) -> None:
        """virsh detach-device on a VM that runs: no hook either."""
        life = self.lives[name]
        life.plugged.discard(address)
        close_device(self.host, address, pid=life.pid)
        del self.owner[address]
        for other, owner in self.owner.items():
            if owner == name:
                group = self.host.link_name(f"sys/bus/pci/devices/{other}/iommu_group")
                hold(self.host, f"dev/vfio/{group}", pid=life.pid, command="qemu-system-x86")
        with contextlib.suppress(_KernelDied), self._untouched(life, address):
            self.libvirt.reattach(address)
        self.tally["GPU unplugged"] += 1

    def restart_libvirt(self, died: frozenset[str], *, recover: bool) -> None:
        """libvirtd is killed and started again; died are VMs whose QEMU ended meanwhile."""
        self.tally["libvirt restarted"] += 1
        for life in self.lives.values():
            if life.path and life.path[0] in ("prepare", "detach", "start", "open", "release"):
                self._forget(life)
            elif life.path and life.path[0] == "started":
                life.path = []
            if life.runs and life.guest.name in died:
                self._close(life)
                life.path = list(_STOPPING[1:])
        for life in self.lives.values():
            if life.runs and not life.path:
                self._quiet(life, "reconnect", "begin")
                self.tally["reconnect"] += 1
        if recover:
            self.recover(force=False)

    def _forget(self, life: Life) -> None:
        """What has no status file, nobody knows of any more: no stopped, no release, ever."""
        claim = self.claims.get(life.guest.uuid)
        if life.path[0] != "prepare" and claim:
            self.tally["libvirt forgot a claim"] += 1
            self.owed |= {one for one in claim.gpus if one in self.driven and life.prepared}
        life.path = []
        for address, name in list(self.owner.items()):
            if name == life.guest.name:
                del self.owner[address]
                if self.libvirt.forget(address):
                    self.stranded.add(address)

    # -- people

    def hold(self, node: str, command: str) -> None:
        """A program opens a node of the host's."""
        pid = 5000 + len(self.holders)
        self.holders[pid] = node
        hold(self.host, node, pid=pid, command=command)

    def nodes(self) -> list[str]:
        """The nodes that a program could have open."""
        fbs = [f"dev/{one}" for one in self.host.list("dev") if re.fullmatch(r"fb\d+", one)]
        cards = [f"dev/dri/{one}" for one in self.host.list("dev/dri")]
        return fbs + cards + [f"dev/{x}" for x in self.host.list("dev") if x.startswith("nvidia")]

    def let_go(self) -> None:
        """All programs end that hold something."""
        for pid in self.holders:
            let_go(self.host, pid)
        self.holders = {}

    def take(self, address: str, *, vfio: bool) -> None:
        """A person takes a GPU for what calls no hook."""
        called = self._type("take", *(["--vfio"] if vfio else []), address)
        if called.status == 0:
            self.by_hand.add(address)
            self.away.add(address)
            self.tally["taken by hand"] += 1

    def give(self, address: str) -> None:
        """A person gives it back."""
        if self._type("give", address).status == 0:
            self.by_hand.discard(address)

    def recover(self, *, force: bool) -> None:
        """A person, or the unit that runs when libvirtd has started, runs recover."""
        before = self.claims
        this_boot = [one for one in before.values() if one.boot == f"boot-{self.boots}"]
        called = self._type("recover", "--wait", "0", *(["--force"] if force else []))
        if called.changes and not this_boot:
            raise Violation(f"recover undid what another boot had done: {called.changes}")
        for life in self.lives.values():
            kept = called.after.get(life.guest.uuid)
            if life.guest.uuid in before and not kept:
                self.tally["given back by recover"] += 1
                if not life.off and before[life.guest.uuid].boot == f"boot-{self.boots}":
                    raise Violation(f"recover gave back what {life.guest.name} has")

    @property
    def claims(self) -> dict[str, watch.Claim]:
        return watch.claims(self.host)

    @property
    def busy(self) -> dict[str, str]:
        """The devices that a VM has open."""
        return {a: name for a, name in self.owner.items() if self.lives[name].runs}

    # -- the end

    def settle(self) -> None:
        """Bring everything to its end, and look whether the machine is as it was."""
        self.let_go()
        for name in self.lives:
            while not self.lives[name].off:
                if not self.lives[name].path:
                    self.end(name, "shutdown")
                self.advance(name)
        for address in sorted(self.by_hand):
            self.give(address)
        self.recover(force=False)
        for address in sorted(self.stranded):  # virsh nodedev-reattach
            if self.host.link_name(f"sys/bus/pci/devices/{address}/driver") == "vfio-pci":
                if address in self.owed:
                    raise Violation(f"{address} is left on vfio-pci, and no VM is left to have it")
                self.libvirt.adopt(address)
                self.libvirt.reattach(address)
        if self.claims or self.host.list("run/vfio-console-hook/by-name"):
            raise Violation(f"claims are left after everything has ended: {list(self.claims)}")
        self._compare()

    def _compare(self) -> None:
        found = watch.differences(self.fresh, watch.whole(self.host))
        left = watch.unexcused(found, self.lost)
        if [*left] == [_CONSOLE_MAP] and self._is_elsewhere(left[_CONSOLE_MAP][1]):
            self.tally["consoles on another GPU than before"] += 1
        elif left:
            raise Violation(f"not as it was, and told was only {sorted(self.lost)}: {left}")
        else:
            self.tally["told loss" if found else "as it was"] += 1

    def _is_elsewhere(self, consoles: str) -> bool:
        """Whether the consoles are shown, where several framebuffers have left and come back.

        Framebuffers are numbered as they arrive, and fbcon begins with the first.
        """
        return len(self.away & self.shown) > 1 and consoles.startswith("fb(")

    # -- the program

    def _call(
        self, life: Life, operation: str, sub: str, *, death: Death | None = None,
        steps: tuple[Step, ...] = (),
    ) -> Called:  # fmt: skip
        """One event of a VM."""
        self.tally[operation] += 1
        guest = life.guest
        devices = tuple(dict.fromkeys([*guest.devices, *sorted(life.plugged)]))
        if operation in ("stopped", "release"):
            devices = tuple(one for one in devices if one in life.plugged)
        xml = domain_xml(
            *devices, managed=guest.managed, name=guest.name, uuid=guest.uuid, event=operation
        )
        argv = [guest.name, operation, sub, "-"]
        with self._watched({*guest.devices, *life.plugged}, {guest.uuid}, steps, death) as run:
            called = run(lambda host: hook.main(argv, xml, host))
        if called.out:
            raise Violation(f"stdout is libvirt's: {called.out!r}")
        if called.err and not _SENTENCE.fullmatch(called.err):
            raise Violation(f"not one sentence: {called.err}")
        if bool(called.err) != bool(called.status) and not (death and death.whole):
            raise Violation(f"status {called.status} with {called.err!r}")
        return called

    def _type(self, *argv: str) -> Called:
        """A command that a person types; what it may touch is what VMs that are off hold."""
        self.tally[argv[0]] += 1
        idle = [one for one in self.claims.values() if self._is_idle(one)]
        if argv[0] != "recover":
            idle = [one for one in idle if one.by_hand and {*one.gpus} & {*argv}]
        addresses = {gpu for one in idle for gpu in one.gpus}
        addresses |= {step.gpu for one in idle for step in one.steps}
        addresses |= {word for word in argv if watch.ADDRESS.fullmatch(word)}
        addresses |= {
            sibling for one in idle for life in self.lives.values() if life.guest.uuid == one.uuid
            for sibling in life.guest.devices
        }  # fmt: skip
        uuids = {one.uuid for one in idle}
        with self._watched(addresses, uuids, (), None) as run:
            called = run(lambda host: command(host, *argv))
        for uuid, claim in called.after.items():
            if uuid not in called.before:
                self.lost |= watch.told_losses(claim.steps)
        if bool(called.err) != bool(called.status) and argv[0] != "recover":
            raise Violation(f"{argv}: status {called.status} with {called.err!r}")
        return called

    def _is_idle(self, claim: watch.Claim) -> bool:
        if claim.by_hand or claim.boot != f"boot-{self.boots}":
            return True
        return all(one.off for one in self.lives.values() if one.guest.uuid == claim.uuid)

    @contextlib.contextmanager
    def _watched(
        self, addresses: set[str], uuids: set[str], steps: tuple[Step, ...], death: Death | None
    ) -> Iterator[_Runner]:
        """Lets the program run once, and looks at what it did to whom."""
        runner = _Runner(self, death)
        portraits = watch.portraits(self.host)
        yield runner
        called = runner.called
        assert called is not None
        if self.host.fault:
            raise Violation(f"the kernel crashed: {self.host.fault}")
        steps += tuple(
            step for seen in (called.before, called.after) for uuid, one in seen.items()
            if uuid in uuids or uuid not in called.before for step in one.steps
        )  # fmt: skip
        promises.changes(self, called, addresses, steps)
        promises.portraits(self, portraits, addresses, steps)
        promises.record(self)
        promises.processes(self)
        log = self.host.read(RECORDED_LOG) or ""
        if "internal error" in log or "Traceback" in log:
            raise Violation(f"a bug was logged: {log}")

    # -- what must hold

    def is_virtual(self, address: str) -> bool:
        return self.host.exists(f"sys/bus/pci/devices/{address}/physfn")

    def _others_with(self, life: Life) -> list[watch.Claim]:
        """The claims of others on one of a VM's GPUs, in this boot."""
        return [
            one for uuid, one in self.claims.items()
            if uuid != life.guest.uuid and set(one.gpus) & set(life.guest.devices)
            and one.boot == f"boot-{self.boots}"
        ]  # fmt: skip

    def _foretell(self, life: Life) -> plan.Plan:
        """What `plan` says just before a prepare; it must not touch anything."""
        guest = life.guest
        host = FakeHost(str(self.root))
        xml = domain_xml(*guest.devices, managed=guest.managed, name=guest.name, uuid=guest.uuid)
        made = plan.make(
            host, domain.parse(xml), config.load(host, guest.name, guest.uuid)
        )
        if host.changes:
            raise Violation(f"plan changed {host.changes}")
        return made

    @contextlib.contextmanager
    def _untouched(self, life: Life, *addresses: str) -> Iterator[None]:
        """libvirt acts on a VM's devices: what stays is left alone, except for what was told."""
        mine = {*life.guest.devices, *life.plugged, *addresses}
        before = watch.portraits(self.host)
        try:
            yield
        except KernelFault as fault:
            if life.prepared:
                raise Violation(f"libvirt crashed the kernel after a prepare: {fault}") from fault
            self.tally["kernel crashed by libvirt alone"] += 1
            self.boot(keep_run=False)
            raise _KernelDied from fault
        after = watch.portraits(self.host)
        for name, portrait in before.items():
            stays = self.firmware.get(name, name) not in mine and name not in self.lost
            if stays and after.get(name) != portrait:
                raise Violation(f"libvirt changed {name}, and plan did not tell: {portrait}")

    def _wild(self, addresses: Iterable[str]) -> None:
        """libvirt takes a GPU that we have not freed: what the kernel removes is not told."""
        if any(one in self.setting.gpus and not self.is_virtual(one) for one in addresses):
            self.lost |= {*self.firmware, "vgacon"}
            self.owed -= {*addresses}
            self.tally["GPU taken without us"] += 1


class _Runner:
    """Runs the program once, in this process or in one that is killed."""

    def __init__(self, world: World, death: Death | None) -> None:
        self._world = world
        self._death = death
        self.called: Called | None = None

    def __call__(self, work: Work) -> Called:
        world = self._world
        before = world.claims
        died = self._death is not None and self._death.whole
        host = SeenHost(
            str(world.root),
            crash_before=self._death.before if self._death and not died else 0,
        )
        host.running = _virsh(world)
        if died:
            assert self._death is not None
            status, out, err = in_a_child(work, host, self._death.before), "", ""
        else:
            status, out, err = here(work, host)
        if self._death and len(host.changes) + 1 == self._death.before and status:
            world.tally["hook killed" if died else "worker killed"] += 1
        self.called = Called(status, out, err, tuple(host.changes), before, world.claims)
        return self.called


def _virsh(world: World) -> str | None:
    """What `virsh list --uuid` says; it waits while libvirt is at work for any VM."""
    if any(life.path for life in world.lives.values()):
        return None
    return "\n".join(one.guest.uuid for one in world.lives.values() if one.runs)
