"""prepare, start and release on recorded machines: the steps, and the way back from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.fakehost import (
    FakeHost,
    FakeLibvirt,
    close_device,
    hold,
    let_go,
    open_device,
    snapshot,
)
from vfio_console_hook import events
from vfio_console_hook.config import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, RefusedError, StepError
from vfio_console_hook.journal import Journal
from vfio_console_hook.log import RECORDED_LOG, Log

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
Machine = Callable[..., FakeHost]


@dataclass(frozen=True)
class Case:
    """A machine, the GPUs that a VM gets, and what its configuration says."""

    machine: str
    gpus: tuple[str, ...] = ("0000:01:00.0",)
    config: Config = Config(holders=Holders(wait_s=0))  # noqa: RUF009  (it is frozen)

    def domain(self, uuid: str = UUID, name: str = "win11") -> Domain:
        hostdevs = tuple(Hostdev(address, True, "hostdev", 0) for address in self.gpus)
        return Domain(name, uuid, hostdevs)


def with_bootfb(policy: str) -> Config:
    return Config(holders=Holders(wait_s=0), bootfb=policy)


# Every machine on which prepare has something to do.
CASES = (
    Case("efifb-5.10"),
    Case("efifb-6.1"),
    Case("efifb-6.12"),
    Case("efifb-0380-6.12"),
    Case("vesafb-5.10", ("0000:00:05.0",)),
    Case("vgacon-5.10"),
    Case("native-6.1"),
    Case("simpledrm-0300-6.12"),
    Case("simpledrm-0380-6.12", config=with_bootfb("native")),
    Case("simpledrm-0380-6.12", config=with_bootfb("rescan")),
    Case("two-in-one-6.12", ("0000:01:00.0", "0000:02:00.0")),
    Case("efidrm-7"),
    Case("amd-single", ("0000:09:00.0",)),
    Case("amd-dgpu-and-apu", ("0000:03:00.0",)),
    Case("amd-apu", ("0000:13:00.0",), Config(holders=Holders(wait_s=0), apu="allow")),
    Case("radeon-6.1"),
    Case("intel-single", ("0000:00:02.0",)),
    Case("intel-and-nvidia"),
    Case("nvidia-single-desktop"),
    Case("two-nvidia"),
    Case("two-nvidia", ("0000:02:00.0",)),
    Case("two-nvidia", ("0000:01:00.0", "0000:02:00.0")),
    Case("bmc-and-two-nvidia", ("0000:65:00.0",)),
)
REVERSIBLE = tuple(case for case in CASES if case.config.bootfb == "refuse")


def prepare(host: FakeHost, case: Case) -> None:
    events.prepare(host, case.domain(), case.config, Log(host, "win11"))


def release(host: FakeHost) -> None:
    events.release(host, UUID, Log(host, "win11"))


def ids(case: Case) -> str:
    return f"{case.machine}-{case.config.bootfb}"


def made(machine: Machine, case: Case) -> FakeHost:
    """The case's machine; its native driver is not blacklisted where the VM's policy needs it."""
    host = machine(case.machine)
    if case.config.bootfb == "native":
        host.tree.remove("fake/blacklist")
    return host


@pytest.fixture(params=CASES, ids=ids)
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


def test_prepare_frees_every_bar_that_the_kernel_would_not_free(
    machine: Machine, case: Case
) -> None:
    host = made(machine, case)

    prepare(host, case)
    libvirt = FakeLibvirt(host)
    for address in case.gpus:
        libvirt.detach(address)
    events.start(host, UUID, Log(host, "win11"))

    assert [open_device(host, address) for address in case.gpus] == [[] for _ in case.gpus]
    assert "can't reserve" not in "\n".join(host.log)


def test_without_prepare_the_fake_machine_shows_the_bug(machine: Machine) -> None:
    host = machine("efifb-5.10")

    FakeLibvirt(host).detach("0000:01:00.0")

    assert open_device(host, "0000:01:00.0") == [0]


def whole_run(host: FakeHost, case: Case) -> None:
    prepare(host, case)
    libvirt = FakeLibvirt(host)
    for address in case.gpus:
        libvirt.detach(address)
    events.start(host, UUID, Log(host, "win11"))
    for address in case.gpus:
        libvirt.reattach(address)
    release(host)


BACK = tuple(
    case for case in REVERSIBLE if case.machine not in ("efifb-6.1", "simpledrm-0300-6.12")
)


@pytest.mark.parametrize("case", BACK, ids=ids)
def test_after_two_runs_the_machine_is_as_before(machine: Machine, case: Case) -> None:
    host = machine(case.machine)
    before = snapshot(host)

    whole_run(host, case)
    whole_run(host, case)

    after = {path: what for path, what in snapshot(host).items() if "driver_override" not in path}
    assert after == {path: what for path, what in before.items() if "driver_override" not in path}
    assert Journal(host).uuids() == ()


@pytest.mark.parametrize("name", ["efifb-6.1", "simpledrm-0300-6.12"])
def test_a_console_that_cannot_come_back_is_told_by_plan_and_log(
    machine: Machine, name: str
) -> None:
    host = machine(name)
    case = Case(name)
    leaving, steps = events.look(host, case.domain(), case.config)
    told = events.prospect(leaving, steps)

    whole_run(host, case)

    assert "will not come back before a reboot" in told
    assert "will not come back before a reboot" in (host.read(RECORDED_LOG) or "")
    assert Journal(host).uuids() == ()


def test_plan_is_the_list_that_prepare_applies(machine: Machine, case: Case) -> None:
    host = made(machine, case)
    _, planned = events.look(host, case.domain(), case.config)

    prepare(host, case)

    record = Journal(host).find(UUID)
    assert record is not None
    assert tuple(record.steps) == planned
    assert record.done == set(range(len(planned)))


def test_plan_changes_nothing(machine: Machine, case: Case) -> None:
    host = made(machine, case)

    events.look(host, case.domain(), case.config)

    assert host.changes == []
    assert not host.exists("run/vfio-console-hook")


def test_release_of_a_vm_that_owns_nothing_changes_nothing(machine: Machine) -> None:
    host = machine("efifb-6.12")
    case = Case("efifb-6.12")
    prepare(host, case)
    before = snapshot(host)

    events.release(FakeHost(host.root), OTHER_UUID, Log(host, "other"))

    assert snapshot(host) == before
    assert Journal(host).uuids() == (UUID,)


def test_a_gpu_of_a_running_vm_is_refused_to_another(machine: Machine) -> None:
    host = machine("efifb-6.12")
    case = Case("efifb-6.12")
    prepare(host, case)
    FakeLibvirt(host).detach("0000:01:00.0")
    before = snapshot(host)

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, case.domain(OTHER_UUID, "b"), case.config, Log(host, "b"))

    assert caught.value.text == "0000:01:00.0 belongs to the VM win11, which has it now"
    assert snapshot(host) == before


def test_a_vm_that_begins_before_the_release_of_the_last_takes_its_steps_over(
    machine: Machine,
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)
    case = Case("efifb-6.12")
    libvirt = FakeLibvirt(host)
    prepare(host, case)
    libvirt.detach("0000:01:00.0")
    events.start(host, UUID, Log(host, "win11"))
    open_device(host, "0000:01:00.0")  # switches memory decoding on
    close_device(host, "0000:01:00.0")
    libvirt.reattach("0000:01:00.0")

    events.prepare(host, case.domain(OTHER_UUID, "b"), case.config, Log(host, "b"))
    during = snapshot(host)
    release(host)

    assert snapshot(host) == during
    libvirt.detach("0000:01:00.0")
    libvirt.reattach("0000:01:00.0")
    events.release(host, OTHER_UUID, Log(host, "b"))
    after = snapshot(host)
    assert {k: v for k, v in after.items() if "driver_override" not in k} == {
        k: v for k, v in before.items() if "driver_override" not in k
    }


def test_a_vm_that_takes_steps_over_does_not_rescan_a_second_time(machine: Machine) -> None:
    host = machine("simpledrm-0380-6.12")
    case = Case("simpledrm-0380-6.12", config=with_bootfb("rescan"))
    libvirt = FakeLibvirt(host)
    prepare(host, case)
    libvirt.detach("0000:01:00.0")
    events.start(host, UUID, Log(host, "win11"))
    libvirt.reattach("0000:01:00.0")
    second = FakeHost(host.root)

    events.prepare(second, case.domain(OTHER_UUID, "b"), case.config, Log(second, "b"))

    assert second.changes == []


def test_prepare_after_a_lost_run_of_the_same_vm_starts_from_the_beginning(
    machine: Machine,
) -> None:
    host = machine("efifb-5.10")
    before = snapshot(host)
    case = Case("efifb-5.10")
    prepare(host, case)

    prepare(FakeHost(host.root), case)
    release(FakeHost(host.root))

    assert snapshot(host) == before


@pytest.mark.parametrize("name", ["efifb-6.12", "native-6.1", "nvidia-single-desktop"])
def test_a_vm_that_starts_again_after_libvirtd_was_killed_gives_back_all_in_the_end(
    machine: Machine, name: str
) -> None:
    host = machine(name)
    before = snapshot(host)
    prepare(host, Case(name))
    FakeLibvirt(host).detach("0000:01:00.0")  # and libvirtd is killed before QEMU starts

    whole_run(host, Case(name))

    assert snapshot(host) == before
    assert Journal(host).uuids() == ()


def test_a_gpu_that_a_vm_has_open_without_us_is_not_taken_off_vfio_pci(machine: Machine) -> None:
    host = machine("native-6.1")
    prepare(host, Case("native-6.1"))
    FakeLibvirt(host).detach("0000:01:00.0")  # and libvirtd is killed before QEMU starts
    open_device(host, "0000:01:00.0")  # another VM, which is not `enabled`

    prepare(host, Case("native-6.1"))

    assert host.link_name("sys/bus/pci/devices/0000:01:00.0/driver") == "vfio-pci"
    assert "0000:01:00.0 stays on vfio-pci: qemu" in (host.read(RECORDED_LOG) or "")


def test_a_gpu_that_a_vm_has_open_without_a_record_is_refused_to_another(
    machine: Machine,
) -> None:
    host = machine("efifb-5.10")
    FakeLibvirt(host).detach("0000:01:00.0")  # plugged, so that no hook was called
    open_device(host, "0000:01:00.0")
    begun = len(host.changes)

    sentence = refused(host, Case("efifb-5.10"))

    assert sentence == (
        "0000:01:00.0 is in use by qemu-system-x86 (4242) with /dev/vfio/1 open"
    )
    assert host.changes[begun:] == []


# -- the dangerous cases


def refused(host: FakeHost, case: Case) -> str:
    """The sentence with which prepare refuses; the machine must be as before."""
    before = snapshot(host)
    with pytest.raises(HookError) as caught:
        prepare(host, case)
    assert snapshot(host) == before
    assert Journal(host).uuids() == ()
    return caught.value.text


@pytest.mark.parametrize("name", ["efifb-5.10", "efifb-6.1"])
def test_a_held_framebuffer_is_refused_and_its_holder_named(machine: Machine, name: str) -> None:
    host = machine(name)
    hold(host, "dev/fb0", pid=1234, command="plymouthd")

    sentence = refused(host, Case(name))

    assert sentence == "0000:01:00.0 is in use by plymouthd (1234) with /dev/fb0 open"
    let_go(host, 1234)
    prepare(host, Case(name))


def test_a_dead_efi_framebuffer_on_5_10_is_never_unbound(machine: Machine) -> None:
    host = machine("efifb-5.10")
    host.load_module("bochs")
    assert host.link_name("sys/bus/pci/devices/0000:01:00.0/driver") == "bochs-drm"
    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is not None

    _, steps = events.look(host, Case("efifb-5.10").domain(), Config())

    assert not any("efi-framebuffer.0" in str(step.do) for step in steps)


def test_the_last_console_driver_is_never_taken(machine: Machine) -> None:
    host = machine("native-6.1")
    consoles = host.list("sys/class/vtconsole")
    for console in consoles:
        if "dummy" in (host.read(f"sys/class/vtconsole/{console}/name") or ""):
            real = host.real(f"sys/class/vtconsole/{console}")
            host.tree.remove(f"sys/class/vtconsole/{console}")
            host.tree.remove(str(real))

    sentence = refused(host, Case("native-6.1"))

    assert sentence.startswith("0000:01:00.0 has the host's last framebuffer, and fbcon would")


def test_a_firmware_driver_is_not_bound_again_over_a_moved_bar(machine: Machine) -> None:
    host = machine("efifb-5.10")
    prepare(host, Case("efifb-5.10"))
    resource = str(host.real("sys/bus/pci/devices/0000:01:00.0/resource"))
    text = host.read(resource) or ""
    first = text.split()[0]
    host.tree.put(resource, text.replace(first, "0x00000000d0000000").replace(
        text.split()[1], "0x00000000d0ffffff"))

    release(host)

    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is None
    assert "has moved away" in (host.read(RECORDED_LOG) or "")
    assert Journal(host).uuids() == ()


def test_radeon_without_remove_is_refused(machine: Machine) -> None:
    host = machine("native-6.1")
    symbols = host.read("proc/kallsyms") or ""
    host.tree.put("proc/kallsyms", symbols.replace("radeon_pci_remove", "radeon_pci_probe"))
    device = str(host.real("sys/bus/pci/devices/0000:01:00.0"))
    host.tree.remove(f"{device}/driver")
    host.tree.link(f"{device}/driver", "sys/bus/pci/drivers/radeon")

    sentence = refused(host, Case("native-6.1"))

    assert sentence == (
        "0000:01:00.0 is driven by radeon, which cannot be unbound in this kernel"
    )


def test_an_unmanaged_gpu_that_is_not_on_vfio_is_refused(machine: Machine) -> None:
    host = machine("native-6.1")
    domain = Domain("win11", UUID, (Hostdev("0000:01:00.0", False, "hostdev", 0),))

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, domain, Config(), Log(host, "win11"))

    assert caught.value.text == (
        "0000:01:00.0 is bound to bochs-drm and is managed='no', so libvirt will not give it"
        " to vfio-pci"
    )
    assert host.changes == []


def test_a_claim_that_no_stage_knows_is_named_and_refused(machine: Machine) -> None:
    host = machine("efifb-5.10")
    iomem = host.read("proc/iomem") or ""
    host.tree.put("proc/iomem", iomem.replace(": efifb", ": strangefb"))

    sentence = refused(host, Case("efifb-5.10"))

    assert sentence.startswith("strangefb claims c0000000-")
    assert sentence.endswith("in BAR 0 of 0000:01:00.0, and this program does not"
        " know how to take it away")


def test_bootfb_is_refused_by_default_and_the_ways_out_are_named(machine: Machine) -> None:
    host = machine("simpledrm-0380-6.12")

    with pytest.raises(RefusedError) as caught:
        prepare(host, Case("simpledrm-0380-6.12"))

    assert caught.value.text == (
        "BOOTFB of simple-framebuffer.0 holds memory of 0000:01:00.0, and this kernel does not"
        " free it for vfio-pci"
    )
    assert "bootfb: native" in caught.value.hint
    assert "bootfb: rescan" in caught.value.hint
    assert host.changes == []


def test_iomem_without_addresses_is_refused(machine: Machine) -> None:
    host = machine("efifb-6.12")
    lines = (host.read("proc/iomem") or "").splitlines()
    zeros = "\n".join(f"00000000-00000000 : {line.split(' : ')[1]}" for line in lines)
    host.tree.put("proc/iomem", zeros)

    sentence = refused(host, Case("efifb-6.12"))

    assert sentence == "cannot tell who claims the GPU's memory: /proc/iomem shows no addresses"


def test_a_vanished_device_is_refused(machine: Machine) -> None:
    host = machine("efifb-6.12")

    sentence = refused(host, Case("efifb-6.12", ("0000:09:00.0",)))

    assert sentence == "no PCI device 0000:09:00.0 on this machine"


def test_start_refuses_a_bar_that_is_still_claimed(machine: Machine) -> None:
    host = machine("efifb-0380-6.12")
    case = Case("efifb-0380-6.12")
    prepare(host, case)
    FakeLibvirt(host).detach("0000:01:00.0")
    host.write("sys/bus/platform/drivers/efi-framebuffer/bind", "efi-framebuffer.0")

    with pytest.raises(StepError) as caught:
        events.start(host, UUID, Log(host, "win11"))

    assert caught.value.text.startswith("efifb still claims c0000000-")


def test_start_refuses_a_gpu_that_is_not_on_vfio(machine: Machine) -> None:
    host = machine("efifb-5.10")
    prepare(host, Case("efifb-5.10"))

    with pytest.raises(StepError) as caught:
        events.start(host, UUID, Log(host, "win11"))

    assert caught.value.text == (
        "0000:01:00.0 is without a driver, not on vfio-pci, so the VM cannot have it"
    )
