"""Functions are opened, mapped and reset through vfio as QEMU does it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, close_device, hold, open_device, snapshot
from tests.gate import ROOT
from vfio_console_hook.errors import CutOffError, HostError
from vfio_console_hook.machine import worker
from vfio_console_hook.machine.vfio import users_of_group
from vfio_console_hook.machine.vfio_access import Opened, opened, opened_of

GPU, SOUND = "0000:01:00.0", "0000:01:00.1"
PCI = "sys/bus/pci/devices"
# Where a GPU has one function in its group, and the firmware's driver goes or stays.
MACHINES = (
    "efifb-5.10", "efifb-6.1", "efifb-6.12", "efifb-0380-6.12", "simpledrm-0380-6.12",
    "simpledrm-0300-6.12", "efidrm-7", "vgacon-5.10", "native-6.1", "lab-efifb-6.12",
    "lab-simpledrm-0380-refuse", "nvidia-bootfb-bar3",
)  # fmt: skip


def bound(host: FakeHost, *addresses: str) -> FakeHost:
    for address in addresses:
        FakeLibvirt(host).detach(address)
    return host


def functions(host: FakeHost) -> list[str]:
    return [one for one in host.list(PCI) if one.startswith("0000:01:00.")]


def reserved_by_vfio(host: FakeHost) -> int:
    return sum(" : vfio" in line for line in (host.read("proc/iomem") or "").splitlines())


def look(host: FakeHost, *addresses: str, reset: bool = False, iommufd: bool = False) -> Opened:
    with opened(host, addresses, reset=reset, iommufd=iommufd) as found:
        return found


# -- BARs


def test_each_bar_is_mapped_until_the_end(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)

    with opened(host, [GPU]) as found:
        regions = [(one.bar, str(one.range), one.mapped, one.why) for one in found.regions]
        during = reserved_by_vfio(host)

    assert regions == [(0, "c0000000-c0ffffff", True, ""), (2, "c1000000-c1000fff", True, "")]
    assert (found.failures, found.resets, found.complete) == ((), (), True)
    assert (during, reserved_by_vfio(host)) == (2, 0)
    after = snapshot(host)
    open_device(host, GPU)
    close_device(host, GPU)
    assert after == snapshot(host), "it does not leave what a VM leaves"


@pytest.mark.parametrize("name", MACHINES)
def test_it_sees_what_qemu_would_meet(machine: MachineFactory, name: str) -> None:
    """As it is, without anything that prepare does: some of these GPUs have reserved memory."""
    host = bound(machine(name), *functions(machine(name)))

    found = look(host, *functions(host))

    not_had = {one: open_device(host, one) for one in functions(host)}
    blocked = {one: [r.bar for r in found.regions if r.why and r.address == one] for one in not_had}
    assert blocked == not_had


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("simpledrm-0380-6.12", "BOOTFB reserves c0000000-c03e7fff"),
        ("efifb-0380-6.12", "efifb reserves c0000000-c03e7fff"),
        ("simpledrm-0380-6.17", "BOOTFB reserves c0000000-c03e7fff"),
    ],
)
def test_what_keeps_a_bar_is_named(machine: MachineFactory, name: str, owner: str) -> None:
    host = bound(machine(name), GPU)

    found = look(host, GPU)

    first, *others = found.regions
    assert (first.mapped, owner in first.why, found.complete) == (False, True, False)
    assert [(one.mapped, one.why) for one in others] == [(True, "")]
    assert any("can't reserve" in line for line in host.log)


def test_from_7_1_on_the_reservation_fails_when_the_device_is_opened(
    machine: MachineFactory,
) -> None:
    host = bound(machine("efifb-0380-6.12"), GPU)
    host.tree.put("proc/sys/kernel/osrelease", "7.3.4")

    found = look(host, GPU)

    assert [one.mapped for one in found.regions] == [False, True]
    assert found.regions[0].why == "efifb reserves c0000000-c03e7fff"
    assert sum("can't reserve" in line for line in host.log) == 1


def test_without_a_reservation_that_shows_the_errno_is_the_reason(
    machine: MachineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise HostError.of("map", "it", OSError(errno.EBUSY, ""))

    host = bound(machine("lab-efifb-6.12"), GPU)
    monkeypatch.setattr(host, "map_node", refuse)
    found = look(host, GPU)

    assert {one.why for one in found.regions} == {"cannot map it: Device or resource busy"}


def test_of_a_sparse_region_only_the_areas_are_mapped(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    host.tree.put(f"fake/vfio/sparse/{GPU}", "0 0x0+0x1000,0x0+0x0,0x2000+0x1000\n2 0x0+0x1000")

    found = look(host, GPU)

    mapped = [text for kind, _, text in host.changes if kind == "map"]
    assert mapped == ["0x0 0x1000", "0x2000 0x1000", "0x20000000000 0x1000"]
    assert found.complete


def test_what_vfio_maps_for_no_program_is_no_fault(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    lines = (host.read(f"{PCI}/{GPU}/resource") or "").splitlines()
    lines[2] = "0x00000000c1000100 0x00000000c10001ff 0x0000000000040200"
    host.tree.write(f"{PCI}/{GPU}/resource", "\n".join(lines))

    found = look(host, GPU)

    assert [(one.mapped, one.why) for one in found.regions] == [(True, ""), (False, "")]
    assert found.complete


# -- what cannot be opened


def failure(found: Opened) -> str:
    (one,) = found.failures
    assert found.regions == ()
    return f"{one.address}: {one.text}"


def test_a_group_that_is_not_viable_names_what_keeps_it(machine: MachineFactory) -> None:
    host = machine("harvester-card-with-sound")
    gpu, sound = "0000:b3:00.0", "0000:b3:00.1"
    host = bound(host, gpu)

    found = look(host, gpu)

    text = failure(found)
    assert "is not viable" in text and sound in text and "snd_hda_intel" in text
    assert sound in found.failures[0].hint
    assert look(bound(host, sound), gpu, sound).failures == ()


def test_without_an_iommu_it_says_why(machine: MachineFactory) -> None:
    host = machine("lab-efifb-6.12")
    host.tree.remove(f"{host.real(f'{PCI}/{GPU}')}/iommu_group")
    host.tree.remove("sys/kernel/iommu_groups")

    assert "the IOMMU is off" in failure(look(host, GPU))


def test_a_function_that_vfio_does_not_have(machine: MachineFactory) -> None:
    assert failure(look(machine("native-6.1"), GPU)).endswith("is on bochs-drm, not on vfio-pci")


def test_a_group_that_a_vm_has_names_its_process(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    hold(host, f"dev/vfio/{host.link_name(f'{PCI}/{GPU}/iommu_group')}", pid=99, command="qemu")

    assert "is in use by qemu (99)" in failure(look(host, GPU))


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOENT, "No such file or directory"), (errno.EACCES, "Permission denied")],
)
def test_a_node_that_cannot_be_opened(machine: MachineFactory, number: int, text: str) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    refusing = FakeHost(host.root, refuse=1, refuse_errno=number)

    found = look(refusing, GPU)

    assert text in failure(found)
    assert found.failures[0].hint


def test_an_iommu_without_interrupt_remapping(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    host.tree.put("fake/vfio/no_remapping", "")

    assert "does not isolate the interrupts" in failure(look(host, GPU))


def test_a_vm_cannot_open_what_is_open_here(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)

    with opened(host, [GPU]):
        other = FakeHost(host.root)
        second = look(other, GPU)
        mine, seen = users_of_group(host, GPU), [*host.list("proc")]

    assert "is in use" in failure(second)
    assert mine == []  # its own process is nobody who uses the GPU
    assert set(seen) - set(host.list("proc"))


def test_what_a_killed_worker_had_open_is_closed(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    look(host, GPU)
    before = snapshot(host)

    def open_and_die() -> None:
        with opened(host, [GPU]):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(CutOffError):
        worker.run(open_and_die, 30)
    left_open = reserved_by_vfio(host)

    assert (left_open, snapshot(FakeHost(host.root))) == (2, before)


# -- iommufd


def with_iommufd(host: FakeHost) -> FakeHost:
    """A kernel without containers (VFIO_GROUP=n, VFIO_DEVICE_CDEV=y)."""
    host.tree.put("dev/iommu", "")
    host.tree.put("proc/sys/kernel/osrelease", "6.12.107")
    return host


def test_where_there_are_no_containers_it_is_iommufd(machine: MachineFactory) -> None:
    host = bound(with_iommufd(machine("lab-efifb-6.12")), GPU)

    found = look(host, GPU)

    opened_nodes = [path for kind, path, _ in host.changes if kind == "open"]
    assert opened_nodes == ["dev/vfio/vfio", "dev/iommu", "dev/vfio/devices/vfio0"]
    assert (found.complete, [one.mapped for one in found.regions]) == (True, [True, True])
    assert reserved_by_vfio(host) == 0


def test_iommufd_that_is_wanted_and_not_there(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)

    assert "/dev/iommu" in failure(look(host, GPU, iommufd=True))


def test_a_kernel_without_nodes_for_devices(machine: MachineFactory) -> None:
    host = bound(machine("efifb-5.10"), GPU)
    host.tree.put("dev/iommu", "")

    assert "has no node of its own" in failure(look(host, GPU, iommufd=True))


def test_with_iommufd_too_the_whole_group_has_to_leave(machine: MachineFactory) -> None:
    host = bound(with_iommufd(machine("harvester-card-with-sound")), "0000:b3:00.0")

    assert "snd_hda_intel" in failure(look(host, "0000:b3:00.0"))


# -- reset


def resets(found: Opened) -> list[tuple[str, str, bool]]:
    return [(one.by, one.methods, one.answers) for one in found.resets]


def with_capabilities(host: FakeHost, *capabilities: bytes) -> None:
    """Give the GPU PCI capabilities, each padded to 32 bytes."""
    path = host.real(f"{PCI}/{GPU}/config") or ""
    config = bytearray((host.read_bytes(path) or b"").ljust(256, b"\0"))
    at = 0x40
    config[0x34] = at
    for number, one in enumerate(capabilities):
        config[at : at + len(one)] = one
        config[at + 1] = at + 32 if number + 1 < len(capabilities) else 0
        at += 32
    with open(host.path(path), "wb") as file:
        file.write(config)


FLR = bytes([0x10, 0, 2, 0]) + (1 << 28).to_bytes(4, "little")
SLEEP = bytes([0x01, 0, 3, 0, 0, 0, 0, 0])
SLEEP_WITHOUT_RESET = bytes([0x01, 0, 3, 0, 8, 0, 0, 0])


def test_a_function_alone_on_its_bus_is_reset_by_itself(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)

    found = look(host, GPU, reset=True)

    assert resets(found) == [("function", "", True)]
    assert str(found.resets[0]) == "reset by itself; it answers"


@pytest.mark.parametrize(
    ("capabilities", "request_", "by"),
    [
        ((FLR,), 0x3B6F, "function"),
        ((FLR, SLEEP), 0x3B6F, "function"),
        ((SLEEP_WITHOUT_RESET,), 0x3B6F, "function"),
        # vfio_pci_hot_reset_one() comes before the reset by sleep
        ((SLEEP,), 0x3B71, "bus"),
    ],
)
def test_which_reset_is_tried_first(
    machine: MachineFactory, capabilities: tuple[bytes, ...], request_: int, by: str
) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    with_capabilities(host, *capabilities)

    found = look(host, GPU, reset=True)

    assert resets(found) == [(by, "", True)]
    asked = [int(text, 16) for kind, _, text in host.changes if kind == "ioctl"]
    assert [one for one in asked if one in (0x3B6F, 0x3B71)] == [request_]


def test_functions_that_share_a_bus_are_reset_together(machine: MachineFactory) -> None:
    host = bound(machine("harvester-card-with-sound"), "0000:b3:00.0", "0000:b3:00.1")

    found = look(host, "0000:b3:00.0", "0000:b3:00.1", reset=True)

    assert resets(found) == [("bus", "", True), ("bus", "", True)]
    asked = [text for kind, _, text in host.changes if kind == "ioctl"]
    assert asked.count("0x3b71") == 1
    assert str(found.resets[0]) == "reset with its whole bus; it answers"


def test_with_iommufd_the_kernel_knows_what_is_ours(machine: MachineFactory) -> None:
    host = with_iommufd(machine("harvester-card-with-sound"))
    bound(host, "0000:b3:00.0", "0000:b3:00.1")

    found = look(host, "0000:b3:00.0", "0000:b3:00.1", reset=True)

    assert resets(found) == [("bus", "", True), ("bus", "", True)]


def test_a_bus_with_a_device_of_another_group_is_not_reset(machine: MachineFactory) -> None:
    host = bound(machine("harvester-card-with-sound"), "0000:b3:00.0")
    sound = host.real(f"{PCI}/0000:b3:00.1")
    host.tree.remove(f"{sound}/iommu_group")
    host.tree.link(f"{sound}/iommu_group", "sys/kernel/iommu_groups/999")

    found = look(host, "0000:b3:00.0", reset=True)

    assert resets(found) == [("", "", True)]
    assert found.resets[0].why == "0000:b3:00.1 on its bus would be reset too"


def test_a_function_of_the_card_that_vfio_does_not_have_keeps_the_bus(
    machine: MachineFactory,
) -> None:
    """As on a kernel without a driver for sound. reset_method shows "bus" all the same there."""
    host = machine("harvester-card-with-sound")
    gpu, sound = "0000:b3:00.0", "0000:b3:00.1"
    host.write(f"{PCI}/{sound}/driver/unbind", sound)
    host.tree.put(f"{host.real(f'{PCI}/{gpu}')}/reset_method", "bus")

    found = look(bound(host, gpu), gpu, reset=True)

    assert resets(found) == [("", "bus", True)]
    assert found.resets[0].why == f"vfio does not have {sound}, which is on its bus too"


def test_on_the_root_bus_nothing_can_be_reset(machine: MachineFactory) -> None:
    host = bound(machine("vesafb-5.10"), "0000:00:05.0")

    found = look(host, "0000:00:05.0", reset=True)

    assert resets(found) == [("", "", True)]
    assert found.resets[0].why == "the kernel has no way to reset it"


def test_a_gpu_that_is_dead_after_the_reset(machine: MachineFactory) -> None:
    host = bound(machine("lab-efifb-6.12"), GPU)
    host.tree.put(f"{host.real(f'{PCI}/{GPU}')}/reset_method", "bus")
    host.tree.put(f"fake/after_reset/{GPU}", "silent")

    found = look(host, GPU, reset=True)

    assert resets(found) == [("function", "bus", False)]
    assert str(found.resets[0]) == "reset by bus; it does not answer any more"


# -- as a value


def test_it_can_be_sent_to_another_process(machine: MachineFactory) -> None:
    host = bound(machine("efifb-0380-6.12"), GPU)
    found = look(host, GPU, "0000:ff:00.0", reset=True)

    assert found.regions and found.failures and found.resets
    assert opened_of(json.loads(json.dumps(found.to_json()))) == found


def test_no_event_of_the_hook_loads_it() -> None:
    program = (
        "import sys, pkgutil, importlib, vfio_console_hook.hook, vfio_console_hook.events as room\n"
        "for one in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):\n"
        "    importlib.import_module(one.name)\n"
        "print(*(name for name in sys.modules if 'vfio_access' in name or name == 'mmap'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []
