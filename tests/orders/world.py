"""What libvirt, QEMU and people do on a machine, and how everything must be in the end.

libvirt's part is as it was seen (virsh on 7.0, 9.0, 11.3 and 12.8): which hook comes
when, what it does with the devices between them, and what it forgets when it is killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from tests.fakehost import (
    KernelFault,
    LibvirtError,
    NotViableError,
    close_device,
    hold,
    let_go,
    open_device,
)
from vfio_console_hook.errors import HostError
from vfio_console_hook.machine import console

from . import promises, watch
from .calls import Kill
from .promises import Violation
from .state import Life
from .watched import Watched

_CONSOLE_MAP = "ioctl/con2fbmap"
_STARTING = ("prepare", "detach", "start", "open", "started")
_STOPPING = ("close", "stopped", "reattach", "release")


class _KernelDied(Exception):
    """Of what libvirt did for a VM that was not prepared; the host has been booted again."""


class World(Watched):
    """A machine on which VMs start and end, and people do what they like.

    Raises Violation for what must not be, as watched.py does.
    """

    # -- libvirt

    def begin(self, name: str, before: str = "") -> None:
        """A VM is started; before is the event that comes first, if any."""
        life = self.lives[name]
        life.path = list(_STARTING)
        life.plugged, life.prepared, life.started = set(life.guest.devices), False, False
        if before:
            self._quiet(life, before, "begin")

    def end(self, name: str, how: str) -> None:
        """A VM that runs ends: shutdown, destroyed, crashed, saved or migrated."""
        self.tally[f"VM {how}"] += 1
        self.lives[name].path = list(_STOPPING)

    def advance(self, name: str, kill: Kill | None = None) -> None:
        """libvirt's next step for a VM that is starting or stopping."""
        life = self.lives[name]
        step = life.path.pop(0)
        if step in ("prepare", "start", "release"):
            self._hooked(life, step, kill)
        elif step in ("started", "stopped"):
            self._quiet(life, step, "begin" if step == "started" else "end")
        else:
            own = {"detach": self._detach, "reattach": self._reattach, "open": self._open}
            with contextlib.suppress(_KernelDied):
                own.get(step, self._close)(life)

    def _hooked(self, life: Life, step: str, kill: Kill | None) -> None:
        done = getattr(self, f"_{step}")(life, kill)
        if not done and not life.guest.devices and kill is None:
            raise Violation(f"{step} refused {life.guest.name}, which has no device of the host")
        if not done and step != "release":
            life.path = ["stopped", "reattach", "release"]

    def _prepare(self, life: Life, kill: Kill | None) -> bool:
        guest = life.guest
        planned = self._planned(life)
        others = self._others_with(life)
        steps = () if isinstance(planned, HostError) else planned.steps
        called = self._call(life, "prepare", "begin", kill=kill, steps=steps)
        self.lost |= watch.listed_losses(steps)
        held = called.after.get(guest.uuid)
        life.prepared = called.status == 0 and held is not None
        if called.changes:
            self.away.update(guest.devices)
        life.found = {one for one in guest.devices if self._is_vfio(one)}
        if "belongs to the VM" in called.err and not others:
            raise Violation(f"refused, but no other VM has it: {called.err}")
        if called.status and others:
            self.tally["second VM refused"] += 1
        if called.status == 0 and held:
            promises.owners(self, life, called)
            inherited = [one for one in called.before.values() if one.uuid != guest.uuid and
                         set(one.gpus) & set(held.gpus) and one.boot == held.boot]  # fmt: skip
            if inherited:
                self.tally["prepare before the other's release"] += 1
        if kill is None and guest.uuid not in called.before and not others:
            promises.as_planned(self, life, planned, called)
        if guest.uuid in called.before:
            self.tally["prepare over an earlier run"] += 1
        return called.status == 0

    def _start(self, life: Life, kill: Kill | None) -> bool:
        called = self._call(life, "start", "begin", kill=kill)
        life.started = called.status == 0
        return life.started

    def _release(self, life: Life, kill: Kill | None) -> bool:
        # After a hook was killed, a VM without this hook may have taken the GPU.
        others = [one for one in life.guest.devices if one in self.busy]
        called = self._call(life, "release", "end", kill=kill)
        if called.status and kill is None and not others:
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
        # Without fb devices fbcon is unbound before the GPU comes back (events/stopped.py).
        may = operation == "stopped" and not console.has_fb_devices(self.host)
        changes = [one for one in called.changes if not (may and "vtconsole" in str(one))]
        if called.status or changes:
            raise Violation(f"{operation} {sub}: status {called.status}, {changes}")

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
        """QEMU is started and maps the BARs of all devices.

        Between the detaching and now, only a claim shows that a VM has a device.
        """
        life.runs = True
        for address in life.guest.devices:
            if not life.prepared and not self._is_vfio(address):
                self.tally["VM without us had its GPU taken away"] += 1
                self._close(life)
                life.path = ["stopped", "reattach", "release"]
                return
            try:
                blocked = open_device(self.host, address, pid=life.pid)
            except NotViableError:
                self.tally["group that QEMU could not open"] += 1
                self._close(life)
                life.path = ["stopped", "reattach", "release"]
                return
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

    def free(self) -> list[str]:
        """The GPUs that no VM has and no claim names."""
        claimed = {gpu for one in self.claims.values() for gpu in one.gpus}
        return [one for one in self.setting.gpus if one not in self.owner and one not in claimed]

    def plug(self, name: str, address: str) -> bool:
        """virsh attach-device on a VM that runs, of a free GPU: no hook; False if it fails."""
        life = self.lives[name]
        self._wild((address,))
        try:
            with self._untouched(life, address):
                self.libvirt.detach(address)
        except _KernelDied:
            return False
        if not self._is_vfio(address):
            return False
        try:
            open_device(self.host, address, pid=life.pid)
        except NotViableError:
            with contextlib.suppress(_KernelDied), self._untouched(life, address):
                self.libvirt.reattach(address)
            return False
        self.owner[address] = name
        life.plugged.add(address)
        self.tally["GPU plugged"] += 1
        return True

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

    def restart_libvirt(self, ended: frozenset[str], *, recover: bool) -> None:
        """libvirtd is killed and started again; ended are VMs whose QEMU ended meanwhile."""
        self.tally["libvirt restarted"] += 1
        for life in self.lives.values():
            if life.path and life.path[0] in ("prepare", "detach", "start", "open", "release"):
                self._forget(life)
            elif life.path and life.path[0] == "started":
                life.path = []
            if life.runs and life.guest.name in ended:
                self._close(life)
                life.path = list(_STOPPING[1:])
        for life in self.lives.values():
            if life.runs and not life.path:
                self._quiet(life, "reconnect", "begin")
                self.tally["reconnect"] += 1
        if recover:
            self.recover(force=False)

    def _forget(self, life: Life) -> None:
        """What has no status file is forgotten: no stopped, no release, ever."""
        claim = self.claims.get(life.guest.uuid)
        if life.path[0] != "prepare" and claim:
            self.tally["libvirt forgot a claim"] += 1
            owed = {one for one in claim.gpus if one in self.driven and life.prepared}
            self.owed |= owed - life.found
        life.path = []
        for address, name in list(self.owner.items()):
            if name == life.guest.name:
                del self.owner[address]
                if self.libvirt.forget(address):
                    self.stranded.add(address)

    # -- people

    def left(self, name: str) -> bool:
        """Whether a VM that is off has left a claim of this boot."""
        claim = self.claims.get(self.lives[name].guest.uuid)
        return claim is not None and claim.boot == f"boot-{self.boots}"

    def define_anew(self, name: str, *, devices: bool) -> None:
        """A VM that is off is undefined, and defined with another uuid, maybe without devices."""
        guest = self.lives[name].guest
        self.renewed += 1
        guest = replace(
            guest, uuid=f"{self.renewed:08x}{guest.uuid[8:]}",
            devices=guest.devices if devices else (),
        )  # fmt: skip
        self.lives[name].guest = guest
        self.configure(guest)
        self.tally["defined anew over a claim"] += 1

    def hold(self, node: str, command: str) -> None:
        """A program opens a node of the host's."""
        pid = 5000 + len(self.holders)
        self.holders[pid] = node
        hold(self.host, node, pid=pid, command=command)

    def let_go(self) -> None:
        """All programs end that hold something."""
        for pid in self.holders:
            let_go(self.host, pid)
        self.holders = {}

    def take(self, address: str, *, vfio: bool) -> None:
        """A person takes a GPU for what calls no hook; one that vfio-pci has is not worth it."""
        if self._is_vfio(address):
            return  # give would take it off vfio-pci, as the manual says, and it was there before
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
            if self._is_vfio(address):
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
            raise Violation(f"not as it was, and plan listed only {sorted(self.lost)}: {left}")
        else:
            self.tally["listed loss" if found else "as it was"] += 1

    def _is_elsewhere(self, consoles: str) -> bool:
        """Whether the consoles are shown, where several framebuffers have left and come back.

        Framebuffers are numbered as they arrive, and fbcon begins with the first.
        """
        return len(self.away & self.shown) > 1 and consoles.startswith("fb(")

    def _is_vfio(self, address: str) -> bool:
        return self.host.link_name(f"sys/bus/pci/devices/{address}/driver") == "vfio-pci"

    # -- what libvirt may change

    @contextlib.contextmanager
    def _untouched(self, life: Life, *addresses: str) -> Iterator[None]:
        """libvirt acts on a VM's devices: what stays is left alone, except for what was listed."""
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
            if not stays or after.get(name) == portrait:
                continue
            gone = [one for one, owner in self.firmware.items() if owner == name]
            now = after.get(name)
            if now is None or not self.lost & {*gone} or now != replace(portrait, reservations=()):
                raise Violation(f"libvirt changed {name}, and plan did not list that: {portrait}")

    def _wild(self, addresses: Iterable[str]) -> None:
        """libvirt takes a GPU that we have not freed: what the kernel removes was not listed."""
        if any(one in self.setting.gpus and not self.is_virtual(one) for one in addresses):
            self.lost |= {*self.firmware, "vgacon"}
            self.owed -= {*addresses}
            self.tally["GPU taken without us"] += 1
