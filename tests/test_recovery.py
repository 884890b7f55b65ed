"""What recover releases, and what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest

from tests import events, natives
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, WithVirsh, open_device, snapshot
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME, Claims
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, HostError
from vfio_console_hook.events import recovery
from vfio_console_hook.log import Log

GPU = "0000:01:00.0"
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
VM = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
STAT = "4100 (hook) S 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 50 0"


class WithLibvirt(WithVirsh):
    hook_ends_after = 0

    def read(self, path: str) -> str | None:
        if path == "proc/4100/stat" and self.hook_ends_after:
            self.hook_ends_after -= 1
            return STAT if self.hook_ends_after else None
        return super().read(path)


def prepared(machine: MachineFactory, running: str | None = "") -> WithLibvirt:
    host = WithLibvirt(machine("efifb-5.10").root)
    events.prepare(host, VM, Config(holders=Holders(wait_s=0)), Log(host, "win11"))
    host.running = running
    return host


class Refusing(WithLibvirt):
    """A machine whose kernel refuses writes to one file."""

    refused = "nothing"

    def write(self, path: str, text: str) -> None:
        if path.endswith(self.refused):
            raise HostError.of("write", f"/{path}", OSError(errno.EIO, os.strerror(errno.EIO)))
        super().write(path, text)


def recover(host: FakeHost, *, force: bool = False, wait_s: float = 0) -> tuple[bool, list[str]]:
    messages: list[str] = []
    return recovery.recover(host, messages.append, force=force, wait_s=wait_s), messages


def test_a_vm_that_is_off_according_to_libvirt_is_released(machine: MachineFactory) -> None:
    host = prepared(machine, "11111111-2222-4333-8444-555555555555")

    done = recover(host)

    assert done == (True, [f"win11: released {GPU}"])
    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") == "efi-framebuffer"


@pytest.mark.parametrize(
    ("running", "settled", "why"),
    [
        (UUID, True, "running according to libvirt"),
        (
            None,
            False,
            "libvirt does not answer (--force if you know that it is off)",
        ),
    ],
)
def test_nothing_is_released_unless_libvirt_reports_the_vm_as_off(
    machine: MachineFactory, running: str | None, settled: bool, why: str
) -> None:
    host = prepared(machine, running)
    before = snapshot(host)

    done = recover(host)

    assert done == (settled, [f"win11: skipped: {why}"])
    assert (snapshot(host), Claims(host).uuids()) == (before, (UUID,))


def test_a_gpu_that_qemu_has_open_is_left_alone_even_with_force(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    FakeLibvirt(host).detach(GPU)
    open_device(host, GPU)

    done = recover(host, force=True)

    assert done == (
        True,
        [f"win11: skipped: {GPU} is in use by qemu-system-x86 (4242) with /dev/vfio/1 open"],
    )


def left_at_work(host: FakeHost) -> None:
    with open(host.path(f"{CLAIMS}/{UUID}"), "a", encoding="utf-8") as file:
        file.write(json.dumps({"phase": "prepare", "hook": [4100, 50]}) + "\n")


def test_recover_waits_for_a_hook_that_outlived_the_daemon(machine: MachineFactory) -> None:
    host = prepared(machine)
    left_at_work(host)
    host.hook_ends_after = 3

    done = recover(host, wait_s=10)

    assert done == (
        True,
        [
            "win11: waiting up to 10 s: its hook is running (process 4100)",
            f"win11: released {GPU}",
        ],
    )


def test_a_hook_that_does_not_end_is_left_alone_and_recover_fails(
    machine: MachineFactory,
) -> None:
    host = prepared(machine)
    left_at_work(host)
    host.tree.put("proc/4100/stat", STAT)

    done = recover(host, force=True)

    assert done == (False, ["win11: skipped: its hook is running (process 4100)"])
    assert Claims(host).uuids() == (UUID,)


def test_files_that_a_crash_left_beside_the_claims_are_removed(machine: MachineFactory) -> None:
    host = prepared(machine)
    host.tree.put(f"{CLAIMS}/.{UUID}.4711", "{")
    for name in ("=gone", f".{UUID}.4711"):
        host.tree.text_link(f"{BY_NAME}/{name}", "../claims/11111111-2222-4333-8444-555555555555")
    host.tree.put(f"{BY_NAME}/+unnamed", "")

    recover(host)

    assert (host.list(CLAIMS), host.list(BY_NAME)) == ((), ())


def test_a_claim_of_another_boot_is_dropped_without_an_answer_of_libvirt(
    machine: MachineFactory,
) -> None:
    host = prepared(machine, None)
    host.boot_again()
    before = snapshot(host)

    done = recover(host)

    assert done == (True, [f"win11: released {GPU}"])
    assert (snapshot(host), Claims(host).uuids()) == (before, ())


@pytest.mark.parametrize(
    ("name", "gpu", "driver"),
    [
        ("efifb-6.12", GPU, None),
        ("native-6.1", GPU, "bochs-drm"),
        ("nvidia-single-desktop", GPU, "nvidia"),
        ("amd-single", "0000:09:00.0", "amdgpu"),
    ],
)
def test_a_gpu_that_a_killed_libvirtd_left_on_vfio_pci_returns_to_the_host(
    machine: MachineFactory, name: str, gpu: str, driver: str | None
) -> None:
    host = WithLibvirt(machine(name).root)
    before = snapshot(host)
    vm = Domain("win11", UUID, (Hostdev(gpu, True, "hostdev", 0),))
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))
    FakeLibvirt(host).detach(gpu)  # and libvirtd is killed before QEMU starts

    done = recover(host)

    assert done == (True, [f"win11: released {gpu}"])
    assert host.link_name(f"sys/bus/pci/devices/{gpu}/driver") == driver
    assert snapshot(host) == before


def test_a_gpu_that_does_not_leave_vfio_pci_does_not_keep_the_other_gpu(
    machine: MachineFactory,
) -> None:
    stuck, other = "0000:01:00.0", "0000:02:00.0"
    host = WithLibvirt(machine("two-nvidia").root)
    vm = Domain("win11", UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in (stuck, other)))
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))
    for gpu in (stuck, other):
        FakeLibvirt(host).detach(gpu)  # and libvirtd is killed before QEMU starts

    refusing = Refusing(host.root)
    refusing.refused = f"{stuck}/driver_override"

    done, messages = recover(refusing)

    assert (done, len(messages)) == (False, 1)
    assert f"cannot write /sys/bus/pci/devices/{stuck}/driver_override: Input/" in messages[0]
    assert host.link_name(f"sys/bus/pci/devices/{stuck}/driver") == "vfio-pci"
    assert host.link_name(f"sys/bus/pci/devices/{other}/driver") == "nvidia"

    assert recover(WithLibvirt(host.root)) == (True, [f"win11: released {stuck}, {other}"])
    assert host.link_name(f"sys/bus/pci/devices/{stuck}/driver") == "nvidia"


def test_consoles_wait_for_the_framebuffer_that_did_not_come_back(
    machine: MachineFactory,
) -> None:
    host = Refusing(machine("lab-dual-boot-leaves-efifb-6.12").root)
    host.tree.put(f"fake/native/{GPU}", natives.BOCHS)
    before = snapshot(host)
    vm = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))
    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    libvirt.reattach(GPU)
    host.refused = "efi-framebuffer/bind"

    with pytest.raises(HookError):
        events.release(host, UUID, Log(host, "win11"))
    moved = (host.read("ioctl/con2fbmap") or "").strip()
    host.refused = "nothing"

    assert moved == "1-63 1"
    assert recover(host) == (True, [f"win11: released {GPU}"])
    assert snapshot(host) == before


def test_a_gpu_that_was_on_vfio_pci_before_stays_there(machine: MachineFactory) -> None:
    host = WithLibvirt(machine("efifb-5.10").root)
    FakeLibvirt(host).detach(GPU)  # as by vfio-pci.ids=, which leaves efifb bound on 5.10
    events.prepare(host, VM, Config(holders=Holders(wait_s=0)), Log(host, "win11"))

    recover(host)

    assert host.link_name(f"sys/bus/pci/devices/{GPU}/driver") == "vfio-pci"


def test_recover_uses_the_timeout_of_the_vm(machine: MachineFactory) -> None:
    host = WithLibvirt(machine("efifb-5.10").root)
    config = Config(holders=Holders(wait_s=0), timeout_s=2)
    events.prepare(host, VM, config, Log(host, "win11"))
    hanging = WithLibvirt(host.root, hang="efi-framebuffer/bind")
    began = time.monotonic()

    done, lines = recover(hanging)

    # The default is 60 s.
    assert (done, time.monotonic() - began < 20) == (False, True)
    assert "timed out after 1.8 s" in lines[0]
