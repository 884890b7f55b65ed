"""A machine and the VMs that are defined on it: how everything is at a moment."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakehost import FakeHost, FakeLibvirt, configure, systemd
from vfio_console_hook.machine.snapshot import unpack

from . import watch
from .machines import Setting

SERVICE = "sddm.service"


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
    """Where a VM is: what libvirt will do next for it, and what it has.

    found are those of its devices that its prepare found on vfio-pci and left there.
    """

    guest: Guest
    number: int
    path: list[str] = field(default_factory=list)
    runs: bool = False
    plugged: set[str] = field(default_factory=set)
    prepared: bool = False
    found: set[str] = field(default_factory=set)
    started: bool = False

    @property
    def off(self) -> bool:
        return not self.path and not self.runs

    @property
    def pid(self) -> int:
        return 4200 + self.number


class State:
    """A machine in folder, which is its own. tally counts what happens.

    owner is the VM to which libvirt has given a device. stranded are the devices that it has
    bound to vfio-pci and then forgotten, owed the GPUs that the program has to take off it
    itself. away are the devices that have left the host since boot, and lost those that
    plan listed as lost. shown are the GPUs that had a framebuffer at
    boot, driven those that had a driver of their own.
    """

    def __init__(
        self, folder: Path, setting: Setting, guests: Iterable[Guest], tally: Counter[str]
    ) -> None:
        self.setting = setting
        self.folder = folder
        self.tally = tally
        self.lives = {one.name: Life(one, n) for n, one in enumerate(guests)}
        self.boots = 0
        self.renewed = 0
        self.boot(keep_run=False)

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
        self.host.boot_again(f"boot-{self.boots}")
        systemd.install(self.host.tree)
        systemd.put(self.host.tree, SERVICE, systemd.Unit(active="active"))
        self.libvirt = FakeLibvirt(self.host)
        self.owner: dict[str, str] = {}
        self.by_hand: set[str] = set()
        self.holders: dict[int, str] = {}
        self.lost: set[str] = set()
        self.stranded: set[str] = set()
        self.owed: set[str] = set()
        for life in self.lives.values():
            self.lives[life.guest.name] = Life(life.guest, life.number)
            self.configure(life.guest)
        self.firmware = watch.firmware_owners(self.host)
        self.fresh = watch.whole(self.host)
        self.away: set[str] = set()
        portraits = watch.portraits(self.host)
        self.shown = {self.firmware.get(x, x) for x, one in portraits.items() if "fb" in one.nodes}
        self.driven = {x for x, one in portraits.items() if one.driver not in (None, "vfio-pci")}

    def configure(self, guest: Guest) -> None:
        """Write the VM's file of the configuration."""
        wait = "" if "holders" in guest.settings else "holders: {wait_s: 0}\n"
        configure(self.host, wait + guest.settings, f"vms/{guest.uuid}.yaml")

    @property
    def claims(self) -> dict[str, watch.Claim]:
        return watch.claims(self.host)

    @property
    def busy(self) -> dict[str, str]:
        """The devices that a VM has open."""
        return {a: name for a, name in self.owner.items() if self.lives[name].runs}

    def owned(self, name: str) -> list[str]:
        """The devices that libvirt has given to a VM."""
        return sorted(address for address, owner in self.owner.items() if owner == name)

    def nodes(self) -> list[str]:
        """The nodes that a program could have open."""
        fbs = [f"dev/{one}" for one in self.host.list("dev") if re.fullmatch(r"fb\d+", one)]
        cards = [f"dev/dri/{one}" for one in self.host.list("dev/dri")]
        return fbs + cards + [f"dev/{x}" for x in self.host.list("dev") if x.startswith("nvidia")]

    def is_virtual(self, address: str) -> bool:
        return self.host.exists(f"sys/bus/pci/devices/{address}/physfn")

    def _others_with(self, life: Life) -> list[watch.Claim]:
        """The claims of others on one of a VM's GPUs, in this boot."""
        return [
            one for uuid, one in self.claims.items()
            if uuid != life.guest.uuid and set(one.gpus) & set(life.guest.devices)
            and one.boot == f"boot-{self.boots}"
        ]  # fmt: skip
