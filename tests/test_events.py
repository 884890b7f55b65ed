"""prepare, start and release on machines from snapshots: the steps, and their undo."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import (
    Crash,
    FakeHost,
    FakeLibvirt,
    close_device,
    hold,
    let_go,
    open_device,
    snapshot,
    systemd,
)
from tests.hosts import lit_second
from tests.libvirt_xml import UUID
from tests.trust.subjects import Subject
from vfio_console_hook.claims.claim import Claim
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, LostError, RefusedError, StepError
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import console

OTHER_UUID = "11111111-2222-4333-8444-555555555555"
Machine = Callable[..., FakeHost]


BOOTFB_APERTURE, BOOTFB_NATIVE, BOOTFB_RESCAN = (
    f"holders: {{wait_s: 0}}\nbootfb: {policy}\n" for policy in ("aperture", "native", "rescan")
)
APU_ALLOWED = "holders: {wait_s: 0}\napu: allow\n"

# One of each kind on which prepare has something to do; tests/trust tries all machines.
CASES = (
    Subject("efifb-5.10"),
    Subject("efifb-6.1"),
    Subject("efifb-6.12"),
    Subject("efifb-0380-6.12"),
    Subject("vesafb-5.10", ("0000:00:05.0",)),
    Subject("vgacon-5.10"),
    Subject("native-6.1"),
    Subject("simpledrm-0300-6.12"),
    Subject("simpledrm-0380-6.17", settings=BOOTFB_APERTURE),
    Subject("simpledrm-0380-6.12", settings=BOOTFB_NATIVE),
    Subject("simpledrm-0380-6.12", settings=BOOTFB_RESCAN),
    Subject("two-in-one-6.12", ("0000:01:00.0", "0000:02:00.0")),
    Subject("efidrm-7"),
    Subject("amd-single", ("0000:09:00.0",)),
    Subject("amd-dgpu-and-apu", ("0000:03:00.0",)),
    Subject("amd-apu", ("0000:13:00.0",), APU_ALLOWED),
    Subject("radeon-6.1"),
    Subject("intel-single", ("0000:00:02.0",)),
    Subject("intel-and-nvidia"),
    Subject("nvidia-single-desktop"),
    Subject("two-nvidia"),
    Subject("two-nvidia", ("0000:02:00.0",)),
    Subject("two-nvidia", ("0000:01:00.0", "0000:02:00.0")),
    Subject("bmc-and-two-nvidia", ("0000:65:00.0",)),
)
REVERSIBLE = tuple(case for case in CASES if "bootfb" not in case.settings)


def prepare(host: FakeHost, case: Subject) -> None:
    events.prepare(host, case.domain(), case.config(host), Log(host, "win11"))


def release(host: FakeHost) -> None:
    events.release(host, UUID, Log(host, "win11"))


def made(machine: Machine, case: Subject) -> FakeHost:
    """The subject's machine, with its settings."""
    host = machine(case.machine)
    case.configure(host)
    return host


@pytest.fixture
def machine(machine: MachineFactory) -> Machine:
    """A machine of conftest.py, with the settings of a subject that has none of its own."""

    def make(name: str) -> FakeHost:
        host = machine(name)
        Subject(name).configure(host)
        return host

    return make


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Subject:
    assert isinstance(request.param, Subject)
    return request.param


def test_prepare_frees_every_bar_that_the_kernel_would_not_free(
    machine: Machine, case: Subject
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


def whole_run(host: FakeHost, case: Subject) -> None:
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


@pytest.mark.parametrize("case", BACK, ids=str)
def test_after_two_runs_the_machine_is_as_before(machine: Machine, case: Subject) -> None:
    host = made(machine, case)
    before = snapshot(host)

    whole_run(host, case)
    whole_run(host, case)

    after = {path: what for path, what in snapshot(host).items() if "driver_override" not in path}
    assert after == {path: what for path, what in before.items() if "driver_override" not in path}
    assert Claims(host).uuids() == ()


@pytest.mark.parametrize("name", ["efifb-6.1", "simpledrm-0300-6.12"])
def test_a_console_that_cannot_come_back_is_reported_by_plan_and_log(
    machine: Machine, name: str
) -> None:
    host = machine(name)
    case = Subject(name)
    leaving, steps = events.look(host, case.domain(), case.config(host))
    predicted = outlook(leaving, steps)

    whole_run(host, case)

    assert "will not come back before a reboot" in predicted
    assert "will not come back before a reboot" in (host.read(SNAPSHOT_LOG) or "")
    assert Claims(host).uuids() == ()


def test_the_plan_has_the_steps_that_prepare_applies(machine: Machine, case: Subject) -> None:
    host = made(machine, case)
    _, planned = events.look(host, case.domain(), case.config(host))

    prepare(host, case)

    claim = Claims(host).find(UUID)
    assert claim is not None
    assert tuple(claim.steps) == planned
    assert claim.done == set(range(len(planned)))


def test_plan_changes_nothing(machine: Machine, case: Subject) -> None:
    host = made(machine, case)

    events.look(host, case.domain(), case.config(host))

    assert host.changes == []
    assert not host.exists("run/vfio-console-hook")


def test_release_of_a_vm_that_owns_nothing_changes_nothing(machine: Machine) -> None:
    host = machine("efifb-6.12")
    case = Subject("efifb-6.12")
    prepare(host, case)
    before = snapshot(host)

    events.release(FakeHost(host.root), OTHER_UUID, Log(host, "other"))

    assert snapshot(host) == before
    assert Claims(host).uuids() == (UUID,)


def test_a_gpu_of_a_running_vm_is_refused_to_another(machine: Machine) -> None:
    host = machine("efifb-6.12")
    case = Subject("efifb-6.12")
    prepare(host, case)
    FakeLibvirt(host).detach("0000:01:00.0")
    before = snapshot(host)

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, case.domain(OTHER_UUID, "b"), case.config(host), Log(host, "b"))

    assert caught.value.text == "0000:01:00.0 belongs to the VM win11, which has it now"
    assert snapshot(host) == before


def test_a_vm_that_starts_before_the_release_of_the_previous_one_takes_over_its_steps(
    machine: Machine,
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)
    case = Subject("efifb-6.12")
    libvirt = FakeLibvirt(host)
    prepare(host, case)
    libvirt.detach("0000:01:00.0")
    events.start(host, UUID, Log(host, "win11"))
    open_device(host, "0000:01:00.0")  # switches memory decoding on
    close_device(host, "0000:01:00.0")
    libvirt.reattach("0000:01:00.0")

    events.prepare(host, case.domain(OTHER_UUID, "b"), case.config(host), Log(host, "b"))
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


@pytest.mark.parametrize("name", ["efifb-6.12", "recorded-efifb-6.12"])
def test_a_console_comes_back_after_a_vm_took_it_over_from_a_killed_prepare(
    machine: Machine, name: str
) -> None:
    host = machine(name)
    before = snapshot(host)
    case = Subject(name)
    with pytest.raises(Crash):
        prepare(FakeHost(host.root, crash_before=2), case)
    with pytest.raises(Crash):  # and release is killed at its first change
        release(FakeHost(host.root, crash_before=1))

    events.prepare(host, case.domain(OTHER_UUID, "b"), case.config(host), Log(host, "b"))
    release(host)
    libvirt = FakeLibvirt(host)
    libvirt.detach(case.gpus[0])
    events.start(host, OTHER_UUID, Log(host, "b"))
    libvirt.reattach(case.gpus[0])
    events.release(host, OTHER_UUID, Log(host, "b"))

    assert snapshot(host) == before


def test_a_unit_that_has_started_again_is_stopped_for_the_vm_that_takes_over(
    machine: Machine,
) -> None:
    case = Subject("native-6.1", settings="services: [sddm.service]\n")
    host = made(machine, case)
    systemd.install(host.tree)
    systemd.put(host.tree, "sddm.service", systemd.Unit(active="active"))
    libvirt = FakeLibvirt(host)
    prepare(host, case)
    libvirt.detach("0000:01:00.0")
    events.start(host, UUID, Log(host, "win11"))
    libvirt.reattach("0000:01:00.0")
    host.run("/usr/bin/systemctl", "start", "sddm.service")

    events.prepare(host, case.domain(OTHER_UUID, "b"), Config(), Log(host, "b"))

    assert systemd.state(host.tree, "sddm.service") == "inactive"


def test_a_vm_that_takes_over_steps_does_not_rescan_a_second_time(machine: Machine) -> None:
    case = Subject("simpledrm-0380-6.12", settings=BOOTFB_RESCAN)
    host = made(machine, case)
    libvirt = FakeLibvirt(host)
    prepare(host, case)
    libvirt.detach("0000:01:00.0")
    events.start(host, UUID, Log(host, "win11"))
    libvirt.reattach("0000:01:00.0")
    second = FakeHost(host.root)

    events.prepare(second, case.domain(OTHER_UUID, "b"), case.config(second), Log(second, "b"))

    assert second.changes == []


def test_prepare_after_a_lost_run_of_the_same_vm_starts_from_the_beginning(
    machine: Machine,
) -> None:
    host = machine("efifb-5.10")
    before = snapshot(host)
    case = Subject("efifb-5.10")
    prepare(host, case)

    prepare(FakeHost(host.root), case)
    release(FakeHost(host.root))

    assert snapshot(host) == before


@pytest.mark.parametrize("name", ["efifb-6.12", "native-6.1", "nvidia-single-desktop"])
def test_a_vm_that_starts_again_after_libvirtd_was_killed_releases_everything_in_the_end(
    machine: Machine, name: str
) -> None:
    host = machine(name)
    before = snapshot(host)
    prepare(host, Subject(name))
    FakeLibvirt(host).detach("0000:01:00.0")  # and libvirtd is killed before QEMU starts

    whole_run(host, Subject(name))

    assert snapshot(host) == before
    assert Claims(host).uuids() == ()


@pytest.mark.parametrize("name", ["efifb-6.12", "native-6.1", "nvidia-single-desktop"])
def test_release_after_a_killed_start_takes_the_gpu_of_a_forgotten_run_off_vfio_pci(
    machine: Machine, name: str
) -> None:
    host = machine(name)
    before = snapshot(host)
    prepare(host, Subject(name))
    FakeLibvirt(host).detach("0000:01:00.0")  # and libvirtd is killed before QEMU starts
    with pytest.raises(Crash):
        prepare(FakeHost(host.root, crash_before=1), Subject(name))

    release(FakeHost(host.root))  # as libvirt does after each prepare that fails

    assert snapshot(host) == before
    assert Claims(host).uuids() == ()


def test_a_gpu_that_a_vm_has_open_without_the_hook_is_not_taken_off_vfio_pci(
    machine: Machine,
) -> None:
    host = machine("native-6.1")
    prepare(host, Subject("native-6.1"))
    FakeLibvirt(host).detach("0000:01:00.0")  # and libvirtd is killed before QEMU starts
    open_device(host, "0000:01:00.0")  # another VM, which is not `enabled`

    with pytest.raises(StepError, match="stays on vfio-pci: qemu"):
        prepare(host, Subject("native-6.1"))

    assert host.link_name("sys/bus/pci/devices/0000:01:00.0/driver") == "vfio-pci"
    assert len(Claims(host).uuids()) == 1


def test_a_gpu_that_a_vm_has_open_without_a_claim_is_refused_to_another(
    machine: Machine,
) -> None:
    host = machine("efifb-5.10")
    FakeLibvirt(host).detach("0000:01:00.0")  # plugged, so that no hook was called
    open_device(host, "0000:01:00.0")
    begun = len(host.changes)

    sentence = refused(host, Subject("efifb-5.10"))

    assert sentence == ("0000:01:00.0 is in use by qemu-system-x86 (4242) with /dev/vfio/1 open")
    assert host.changes[begun:] == []


def test_a_gpu_that_another_vm_has_open_is_refused_before_the_console_goes(
    machine: Machine,
) -> None:
    host = machine("amd-single")
    shared = "0000:09:00.1"
    FakeLibvirt(host).detach(shared)
    open_device(host, shared)
    vm = Domain("win11", UUID, tuple(Hostdev(f"0000:09:00.{n}", True, "", 0) for n in (0, 1)))
    begun = len(host.changes)

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))

    assert caught.value.text.startswith(f"{shared} is in use by qemu-system-x86 (4242) with /dev/")
    assert host.changes[begun:] == []


@pytest.mark.parametrize("why", ["IOMMU", "managed"])
def test_a_device_that_libvirt_would_not_assign_is_refused_before_the_console_goes(
    machine: Machine, why: str
) -> None:
    host = machine("amd-single")
    gpu, sound = (Hostdev(f"0000:09:00.{n}", why != "managed" or n == 0, "hostdev", n)
                  for n in (0, 1))  # fmt: skip
    if why == "IOMMU":
        host.tree.remove("sys/bus/pci/devices/0000:09:00.0/iommu_group")
    vm = Domain("win11", UUID, (gpu, sound))

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))

    assert why in caught.value.text and "libvirt" in caught.value.text
    assert host.changes == []


# -- the dangerous cases


def refused(host: FakeHost, case: Subject) -> str:
    """The error text of prepare; the machine must be as before."""
    before = snapshot(host)
    with pytest.raises(HookError) as caught:
        prepare(host, case)
    assert snapshot(host) == before
    assert Claims(host).uuids() == ()
    return caught.value.text


@pytest.mark.parametrize("name", ["efifb-5.10", "efifb-6.1"])
def test_a_held_framebuffer_is_refused_and_its_holder_named(machine: Machine, name: str) -> None:
    host = machine(name)
    hold(host, "dev/fb0", pid=1234, command="plymouthd")

    sentence = refused(host, Subject(name))

    assert sentence == "0000:01:00.0 is in use by plymouthd (1234) with /dev/fb0 open"
    let_go(host, 1234)
    prepare(host, Subject(name))


def test_a_dead_efi_framebuffer_on_5_10_is_never_unbound(machine: Machine) -> None:
    host = machine("efifb-5.10")
    host.load_module("bochs")
    assert host.link_name("sys/bus/pci/devices/0000:01:00.0/driver") == "bochs-drm"
    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is not None

    _, steps = events.look(host, Subject("efifb-5.10").domain(), Config())

    assert not any("efi-framebuffer.0" in str(step.do) for step in steps)


def test_the_last_console_driver_is_never_taken(machine: Machine) -> None:
    host = machine("native-6.1")
    _remove_dummy_console(host)

    sentence = refused(host, Subject("native-6.1"))

    assert sentence.startswith("0000:01:00.0 has the host's last framebuffer, and fbcon would")


def test_two_vms_that_start_at_once_do_not_take_the_last_two_framebuffers(
    machine: Machine,
) -> None:
    host = machine("two-gpus-6.12")
    _remove_dummy_console(host)
    second = Subject("two-gpus-6.12", ("0000:02:00.0",))
    prepare(host, Subject("two-gpus-6.12"))
    assert host.exists("sys/class/graphics/fb0")  # libvirt detaches the GPU after the hook

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, second.domain(OTHER_UUID, "b"), second.config(host), Log(host, "b"))

    assert caught.value.text.startswith("0000:02:00.0 has the host's last framebuffer, and fbcon")
    assert Claims(host).uuids() == (UUID,)
    alone = machine("two-gpus-6.12")
    events.prepare(alone, second.domain(), second.config(alone), Log(alone, "b"))


@pytest.mark.parametrize("dummy", [True, False])
def test_a_gpu_whose_release_was_interrupted_counts_as_the_hosts(
    machine: Machine, dummy: bool
) -> None:
    host = machine("two-gpus-6.12")
    if not dummy:
        _remove_dummy_console(host)
    second = Subject("two-gpus-6.12", ("0000:02:00.0",))
    alone = events.look(host, second.domain(OTHER_UUID, "b"), Config())[1]
    prepare(host, Subject("two-gpus-6.12"))
    claim = host.path(f"run/vfio-console-hook/claims/{UUID}")
    with open(claim, "a", encoding="utf-8") as file:  # of a hook that has ended
        file.write('{"phase": "release", "hook": [999999, 1]}\n')
    for number in range(1, 64):
        host.map_console("fb0", number, 0)

    steps = events.look(host, second.domain(OTHER_UUID, "b"), Config())[1]

    assert [step.do for step in steps] == [step.do for step in alone]


def test_a_firmware_framebuffer_without_a_parent_goes_with_the_gpu_that_displays_it(
    machine: Machine,
) -> None:
    host = machine(lit_second("6.1"))
    _remove_dummy_console(host)
    assert [fb.pci for fb in console.framebuffers(host)] == [None, "0000:01:00.0"]
    other = Domain("b", OTHER_UUID, (Hostdev("0000:02:00.0", True, "hostdev", 0),))
    claims = Claims(host)
    with claims.lock():  # its hook waits until no process has the GPU open
        boot = host.boot_id
        claims.make(Claim(host, other.name, other.uuid, boot, ("0000:02:00.0",), 1.0), [])

    with pytest.raises(RefusedError) as caught:
        events.look(host, Subject("").domain(), Config())

    assert caught.value.text.startswith("0000:01:00.0 has the host's last framebuffer, and fbcon")


def _remove_dummy_console(host: FakeHost) -> None:
    for name in host.list("sys/class/vtconsole"):
        if "dummy" in (host.read(f"sys/class/vtconsole/{name}/name") or ""):
            real = host.real(f"sys/class/vtconsole/{name}")
            host.tree.remove(f"sys/class/vtconsole/{name}")
            host.tree.remove(str(real))


def test_a_firmware_driver_is_not_bound_again_after_a_bar_moved(machine: Machine) -> None:
    host = machine("efifb-5.10")
    prepare(host, Subject("efifb-5.10"))
    resource = str(host.real("sys/bus/pci/devices/0000:01:00.0/resource"))
    text = host.read(resource) or ""
    first = text.split()[0]
    host.tree.put(
        resource,
        text.replace(first, "0x00000000d0000000").replace(text.split()[1], "0x00000000d0ffffff"),
    )

    with pytest.raises(LostError, match="has moved away"):
        release(host)

    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is None
    assert Claims(host).uuids() == ()


def test_radeon_without_remove_is_refused(machine: Machine) -> None:
    host = machine("native-6.1")
    symbols = host.read("proc/kallsyms") or ""
    host.tree.put("proc/kallsyms", symbols.replace("radeon_pci_remove", "radeon_pci_probe"))
    device = str(host.real("sys/bus/pci/devices/0000:01:00.0"))
    host.tree.remove(f"{device}/driver")
    host.tree.link(f"{device}/driver", "sys/bus/pci/drivers/radeon")

    sentence = refused(host, Subject("native-6.1"))

    assert sentence == ("0000:01:00.0 is driven by radeon, which cannot be unbound in this kernel")


def test_an_unmanaged_gpu_that_is_not_on_vfio_is_refused(machine: Machine) -> None:
    host = machine("native-6.1")
    domain = Domain("win11", UUID, (Hostdev("0000:01:00.0", False, "hostdev", 0),))

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, domain, Config(), Log(host, "win11"))

    assert caught.value.text.startswith("0000:01:00.0 is managed='no' and not on vfio-pci")
    assert host.changes == []


def test_a_reservation_that_no_stage_handles_is_named_and_refused(machine: Machine) -> None:
    host = machine("efifb-5.10")
    iomem = host.read("proc/iomem") or ""
    host.tree.put("proc/iomem", iomem.replace(": efifb", ": strangefb"))

    sentence = refused(host, Subject("efifb-5.10"))

    assert sentence.startswith("strangefb reserves c0000000-")
    assert sentence.endswith("in BAR 0 of 0000:01:00.0, and this hook cannot free it")


def test_without_vmwgfx_bootfb_is_refused_and_the_alternatives_are_named(machine: Machine) -> None:
    host = machine("simpledrm-0380-6.12")

    with pytest.raises(RefusedError) as caught:
        prepare(host, Subject("simpledrm-0380-6.12"))

    assert caught.value.text == (
        "BOOTFB of simple-framebuffer.0 holds memory of 0000:01:00.0, and `bootfb: aperture`"
        " cannot free it: no module vmwgfx was found for this kernel"
    )
    assert "bootfb: native" in caught.value.hint
    assert "bootfb: rescan" in caught.value.hint
    assert host.changes == []


def test_iomem_without_addresses_is_refused(machine: Machine) -> None:
    host = machine("efifb-6.12")
    lines = (host.read("proc/iomem") or "").splitlines()
    zeros = "\n".join(f"00000000-00000000 : {line.split(' : ')[1]}" for line in lines)
    host.tree.put("proc/iomem", zeros)

    sentence = refused(host, Subject("efifb-6.12"))

    assert (
        sentence == "cannot tell who has reserved the GPU's memory: /proc/iomem shows no addresses"
    )


def test_a_vanished_device_is_refused(machine: Machine) -> None:
    host = machine("efifb-6.12")

    sentence = refused(host, Subject("efifb-6.12", ("0000:09:00.0",)))

    assert sentence == "no PCI device 0000:09:00.0 on this machine"


def test_start_refuses_a_bar_that_is_still_reserved(machine: Machine) -> None:
    host = machine("efifb-0380-6.12")
    case = Subject("efifb-0380-6.12")
    prepare(host, case)
    FakeLibvirt(host).detach("0000:01:00.0")
    host.write("sys/bus/platform/drivers/efi-framebuffer/bind", "efi-framebuffer.0")

    with pytest.raises(StepError) as caught:
        events.start(host, UUID, Log(host, "win11"))

    assert caught.value.text.startswith("efifb still reserves c0000000-")


def test_start_refuses_a_gpu_that_is_not_on_vfio(machine: Machine) -> None:
    host = machine("efifb-5.10")
    prepare(host, Subject("efifb-5.10"))

    with pytest.raises(StepError) as caught:
        events.start(host, UUID, Log(host, "win11"))

    assert caught.value.text == (
        "0000:01:00.0 is without a driver, not on vfio-pci, so the VM cannot have it"
    )
