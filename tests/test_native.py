"""A GPU's own driver: when the program unbinds it, and what comes back."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests import events
from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost, FakeLibvirt, conceal, hold, snapshot
from tests.fakehost.fbdev import remove_cards, unregister
from tests.hosts import DISPLAY, lab
from vfio_console_hook import hook
from vfio_console_hook.actions.modules import LoadModules, Reserve, UnloadModules
from vfio_console_hook.actions.native import ReturnNative, UnbindNative
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HostError, LostError, RefusedError, StepError
from vfio_console_hook.events import recovery
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import drivers

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
GPU, SECOND = "0000:01:00.0", "0000:02:00.0"
CARD, APU = "0000:03:00.0", "0000:13:00.0"
DEVICES = "sys/bus/pci/devices"
NVIDIA = ("nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm")
NOW = Config(holders=Holders(wait_s=0))


def vm(*gpus: str) -> Domain:
    return Domain("win11", UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in gpus))


def prepare(host: FakeHost, *gpus: str, config: Config = NOW) -> None:
    events.prepare(host, vm(*gpus), config, Log(host, "win11"))


def release(host: FakeHost) -> None:
    events.release(host, UUID, Log(host, "win11"))


def run_vm(host: FakeHost, *gpus: str, config: Config = NOW) -> None:
    """Prepare, start and end a VM, up to what libvirt does before it calls release."""
    libvirt = FakeLibvirt(host)
    prepare(host, *gpus, config=config)
    for address in gpus:
        libvirt.detach(address)
    events.start(host, UUID, Log(host, "win11"))
    for address in gpus:
        libvirt.reattach(address)


def driver(host: FakeHost, address: str) -> str | None:
    return host.link_name(f"{DEVICES}/{address}/driver")


def written(host: FakeHost) -> list[tuple[str, str]]:
    """The writes and commands, without the mapping of the consoles."""
    return [(path, text) for kind, path, text in host.changes if kind != "ioctl"]


UNLOADED = ("nvidia_drm", "nvidia_modeset", "nvidia_uvm", "nvidia")


def unloaded(*names: str) -> list[tuple[str, str]]:
    """The commands that unload these modules, each alone."""
    return [("/sbin/rmmod", name) for name in names]


def log(host: FakeHost) -> str:
    return host.read(SNAPSHOT_LOG) or ""


def without_override(host: FakeHost) -> dict[str, str]:
    return {path: what for path, what in snapshot(host).items() if "driver_override" not in path}


# -- the table


def test_all_common_drivers_are_in_the_table() -> None:
    known = ("amdgpu", "radeon", "i915", "xe", "nouveau", "nvidia", "ast", "mgag200", "bochs-drm",
             "bochs", "cirrus", "cirrus-qemu", "qxl", "virtio-pci", "vmwgfx")  # fmt: skip

    assert [name for name in known if drivers.driver_named(name) == drivers.Driver(name)] == []


def test_an_unknown_driver_is_expected_to_hang() -> None:
    unknown = drivers.driver_named("mtgpu")

    assert (unknown.while_open, unknown.may_hang) == (drivers.BLOCKS, True)


@pytest.mark.parametrize(
    ("module", "name"),
    [("nvidia", "nvidia"), ("nvidia_drm", "nvidia"), ("radeon", "radeon"), ("i915", "i915"),
     ("amdgpu", "amdgpu"), ("nvidiafb", "nvidiafb"), ("bochs", "bochs")],
)  # fmt: skip
def test_a_module_leads_to_the_row_of_its_driver(module: str, name: str) -> None:
    assert drivers.driver_of_module(module).name == name


@pytest.mark.parametrize(
    ("machine_name", "address", "apu"),
    [("amd-apu", APU, True), ("amd-dgpu-and-apu", APU, True), ("amd-dgpu-and-apu", CARD, False),
     ("amd-single", "0000:09:00.0", False), ("nvidia-single-desktop", GPU, False)],
)  # fmt: skip
def test_an_apu_is_recognized_by_the_other_functions_in_its_slot(
    machine: MachineFactory, machine_name: str, address: str, apu: bool
) -> None:
    assert drivers.is_apu(machine(machine_name), address) is apu


# -- drivers that the program unbinds, and those that libvirt unbinds


@pytest.mark.parametrize(
    ("machine_name", "address", "name"),
    [("amd-single", "0000:09:00.0", "amdgpu"), ("radeon-6.1", GPU, "radeon"),
     ("intel-single", "0000:00:02.0", "i915"), ("intel-and-nvidia", GPU, "nouveau"),
     ("bmc-and-two-nvidia", CARD, "ast")],
)  # fmt: skip
def test_prepare_unbinds_a_driver_that_libvirt_cannot_unbind_safely(
    machine: MachineFactory, machine_name: str, address: str, name: str
) -> None:
    host = machine(machine_name)

    prepare(host, address)

    assert driver(host, address) is None
    assert written(host)[-1] == (f"sys/bus/pci/drivers/{name}/unbind", address)


def test_a_driver_that_is_unsafe_while_open_stays_if_a_process_cannot_be_inspected(
    machine: MachineFactory,
) -> None:
    host = machine("bmc-and-two-nvidia")
    conceal(host, pid=812, command="guacd")

    with pytest.raises(RefusedError):
        prepare(host, CARD)

    assert driver(host, CARD) == "ast"


def test_a_gpu_with_a_virtual_function_on_vfio_pci_is_refused(machine: MachineFactory) -> None:
    host = machine("intel-sriov-vf")

    with pytest.raises(RefusedError) as caught:
        prepare(host, "0000:00:02.0")

    # tests/golden/plan-intel-sriov-pf.txt has the whole sentence.
    assert "virtual function 0000:00:02.1" in caught.value.text
    assert host.changes == []


FUNCTION = "0000:01:00.4"


def with_functions(machine: MachineFactory) -> FakeHost:
    """A GPU of a host that gives virtual functions to VMs: both are on nvidia."""
    host = machine("nvidia-single-desktop")
    gpu = host.tree.where(f"{DEVICES}/{GPU}")
    function = f"{gpu.rpartition('/')[0]}/{FUNCTION}"
    host.tree.put(f"{function}/class", "0x030200")
    host.tree.link(f"{DEVICES}/{FUNCTION}", function)
    host.tree.link(f"{function}/driver", "sys/bus/pci/drivers/nvidia")
    host.tree.link(f"{function}/physfn", gpu)
    host.tree.link(f"{gpu}/virtfn0", function)
    return host


def test_a_gpu_with_virtual_functions_that_no_vm_has_is_refused_too(
    machine: MachineFactory,
) -> None:
    host = with_functions(machine)

    with pytest.raises(RefusedError) as caught:
        prepare(host, GPU)

    assert FUNCTION in caught.value.text
    assert caught.value.hint.startswith(f"`echo 0 > /{DEVICES}/{GPU}/sriov_numvfs`")
    assert host.changes == []


def test_a_gpu_with_a_mediated_device_is_refused(machine: MachineFactory) -> None:
    host = machine("intel-single")
    name = "4b20d080-1b54-4048-85b3-a6a62d165c01"
    folder = f"{host.tree.where(f'{DEVICES}/0000:00:02.0')}/{name}"
    host.tree.make_directory(folder)
    host.tree.link(f"sys/bus/mdev/devices/{name}", folder)

    with pytest.raises(RefusedError, match=f"has the mediated device {name}"):
        prepare(host, "0000:00:02.0")

    assert host.changes == []


def test_a_simple_driver_is_left_to_libvirt(machine: MachineFactory) -> None:
    host = machine("native-6.1")

    prepare(host, GPU)

    assert (driver(host, GPU), host.changes) == ("bochs-drm", [])


def test_an_unknown_driver_is_unbound_by_prepare(machine: MachineFactory) -> None:
    made = machine("amd-single")
    path = str(made.real(f"{DEVICES}/0000:09:00.0"))
    made.tree.remove(f"{path}/driver")
    made.tree.link(f"{path}/driver", "sys/bus/pci/drivers/mtgpu")
    made.tree.put("sys/bus/pci/drivers/mtgpu/unbind", "")
    made.tree.put("fake/native/0000:09:00.0", "driver=mtgpu")

    prepare(made, "0000:09:00.0")

    assert driver(made, "0000:09:00.0") is None


def test_libvirt_detaches_a_gpu_without_a_driver_and_its_driver_comes_back(
    machine: MachineFactory,
) -> None:
    host = machine("amd-single")
    before = without_override(host)

    run_vm(host, "0000:09:00.0")
    release(host)

    assert without_override(host) == before


def test_a_gpu_that_a_process_has_opened_meanwhile_is_not_unbound(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, "dev/dri/card0", pid=77, command="lact", unit="lactd.service")

    with pytest.raises(RefusedError) as caught:
        UnbindNative("0000:09:00.0", "amdgpu", 0, False).apply(host)

    assert caught.value.text == (
        "0000:09:00.0 is in use by lact (77) [lactd.service] with /dev/dri/card0 open"
    )
    assert host.changes == []


def test_another_driver_than_the_planned_one_is_not_unbound(machine: MachineFactory) -> None:
    host = machine("native-6.1")

    UnbindNative(GPU, "amdgpu", 0, False).apply(host)

    assert host.changes == []


@pytest.mark.parametrize("apu", ["refuse", "allow"])
def test_the_driver_of_an_apu_is_unbound_only_with_apu_allow(
    machine: MachineFactory, apu: str
) -> None:
    host = machine("amd-apu")
    before = snapshot(host)

    if apu == "allow":
        prepare(host, APU, config=replace(NOW, apu="allow"))
        assert driver(host, APU) is None
    else:
        with pytest.raises(RefusedError) as caught:
            prepare(host, APU)
        assert "`apu: allow`" in caught.value.hint
        assert snapshot(host) == before


def test_the_card_beside_an_apu_can_be_taken(machine: MachineFactory) -> None:
    host = machine("amd-dgpu-and-apu")

    prepare(host, CARD)

    assert (driver(host, CARD), driver(host, APU)) == (None, "amdgpu")


def test_prepare_also_unbinds_a_driver_that_it_bound_only_to_free_bootfb(
    machine: MachineFactory,
) -> None:
    made = lab("6.12", "simpledrm", DISPLAY)
    words = "driver=amdgpu module=amdgpu fb=amdgpudrmfb"
    host = machine(replace(made, pci=(replace(made.pci[0], native=words),)))

    prepare(host, GPU, config=replace(NOW, bootfb="native"))
    during = driver(host, GPU)
    release(host)

    assert (during, driver(host, GPU)) == (None, "amdgpu")


# -- nvidia


def test_nvidia_is_reserved_then_unloaded_and_never_unbound(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")

    prepare(host, GPU)

    assert written(host) == [
        (f"{DEVICES}/{GPU}/driver_override", "vfio-pci"),
        ("sys/class/vtconsole/vtcon1/bind", "0"),
        *unloaded(*UNLOADED),
    ]
    assert (driver(host, GPU), host.list("sys/module")) == (None, ())


def test_nvidia_without_its_drm_module_is_unloaded_in_the_order_of_its_holders(
    machine: MachineFactory,
) -> None:
    host = machine("bmc-and-two-nvidia")

    prepare(host, "0000:65:00.0")

    assert written(host) == [
        (f"{DEVICES}/0000:65:00.0/driver_override", "vfio-pci"),
        *unloaded("nvidia_uvm", "nvidia"),
    ]
    assert host.list("sys/module") == ()


def test_other_modules_that_use_nvidia_are_unloaded_before_it(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    host.tree.put("fake/modules", f"{host.read('fake/modules')}\nnvidia_peermem needs=nvidia_uvm")
    host.load_module("nvidia_peermem")

    prepare(host, GPU)

    assert [one for one in written(host) if one[0] == "/sbin/rmmod"] == unloaded(
        "nvidia_drm", "nvidia_modeset", "nvidia_peermem", "nvidia_uvm", "nvidia"
    )
    assert host.list("sys/module") == ()


def test_nvidia_does_not_bind_to_the_gpu_when_it_is_loaded_again_meanwhile(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    prepare(host, GPU)

    with pytest.raises(HostError):
        host.run("/sbin/modprobe", "nvidia")

    assert driver(host, GPU) is None


def test_libvirt_re_attaches_a_reserved_gpu_even_if_vfio_pci_was_not_loaded_before(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    host.tree.remove("sys/bus/pci/drivers/vfio-pci")
    run_vm(host, GPU)

    release(host)

    assert driver(host, GPU) == "nvidia"


def test_after_libvirts_probe_the_modules_are_loaded_and_all_is_as_before(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    before = without_override(host)
    run_vm(host, GPU)
    begun = len(host.changes)

    release(host)

    assert [text for kind, _, text in host.changes[begun:] if kind == "run"] == [
        "nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm",
    ]  # fmt: skip
    assert [path for _, path, _ in host.changes[begun:] if "drivers_probe" in path] == []
    assert without_override(host) == before


def test_a_gpu_that_stays_on_vfio_stays_claimed_with_the_line_that_takes_it_off(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    prepare(host, GPU)
    FakeLibvirt(host).detach(GPU)
    begun = len(host.changes)

    with pytest.raises(StepError) as caught:
        release(host)

    assert f"echo {GPU} > /{DEVICES}/{GPU}/driver/unbind" in caught.value.text
    assert caught.value.hint == "afterwards run `vfio-console-hook recover`"
    assert (host.changes[begun:], driver(host, GPU)) == ([], "vfio-pci")
    assert host.read(f"{DEVICES}/{GPU}/driver_override") == "vfio-pci"
    assert Claims(host).uuids() == (UUID,)


def test_recover_takes_a_gpu_that_stayed_on_vfio_off_it(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    before = without_override(host)
    prepare(host, GPU)
    FakeLibvirt(host).detach(GPU)
    with pytest.raises(StepError):
        release(host)

    recovery.recover(host, print, force=True, wait_s=0)

    assert (Claims(host).uuids(), without_override(host)) == ((), before)


def test_an_override_of_the_administrator_stays(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    host.write(f"{DEVICES}/{GPU}/driver_override", "nvidia")
    before = snapshot(host)

    prepare(host, GPU)
    during = host.read(f"{DEVICES}/{GPU}/driver_override")
    release(host)

    assert during == "nvidia"
    assert snapshot(host) == before


def test_a_left_over_override_does_not_keep_nvidia_from_coming_back(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    host.write(f"{DEVICES}/{GPU}/driver_override", "vfio-pci")

    prepare(host, GPU)
    release(host)

    assert driver(host, GPU) == "nvidia"


def test_an_unload_that_fails_is_not_tried_again_and_everything_is_undone(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    before = snapshot(host)
    # A module that the kernel does not name and that has no nodes: only refcnt shows it.
    host.tree.put("fake/modules", f"{host.read('fake/modules')}\nhidden nodes=")
    host.tree.make_directory("sys/module/nvidia_uvm/holders/hidden")

    with pytest.raises(StepError) as caught:
        prepare(host, GPU)

    assert caught.value.text == (
        "nvidia_uvm cannot be unloaded, its use count is 1, hidden uses it: /sbin/rmmod"
        " nvidia_uvm failed: rmmod: ERROR: Module nvidia_uvm is in use by: hidden"
    )
    host.tree.remove("sys/module/nvidia_uvm/holders/hidden")
    host.tree.put("sys/module/nvidia_uvm/refcnt", "0")
    assert snapshot(host) == before
    assert [one for one in written(host) if one == ("/sbin/rmmod", "nvidia_uvm")] == unloaded(
        "nvidia_uvm"
    )


def test_a_failed_unload_names_the_processes_that_have_the_gpu_open(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    hold(host, "dev/nvidia-uvm", pid=31, command="ollama", unit="ollama.service")

    with pytest.raises(StepError) as caught:
        UnloadModules((GPU,), ("nvidia_uvm",)).apply(host)

    assert caught.value.text == (
        "nvidia_uvm cannot be unloaded, its use count is 1; ollama (31) [ollama.service] with"
        " /dev/nvidia-uvm open: /sbin/rmmod nvidia_uvm failed: rmmod: ERROR: Module nvidia_uvm is"
        " in use"
    )


def show_interrupt(host: FakeHost, address: str) -> None:
    """Let a GPU show its interrupt while the driver has started it."""
    host.tree.put(f"fake/native/{address}", f"{host.read(f'fake/native/{address}')} irq=24")


def with_interrupt(machine: MachineFactory) -> FakeHost:
    """A machine whose GPU shows its interrupt while the driver has started it."""
    host = machine("nvidia-single-desktop")
    show_interrupt(host, GPU)
    return FakeHost(host.root)


def test_a_usage_count_that_has_leaked_is_refused_before_the_unload_that_never_returns(
    machine: MachineFactory,
) -> None:
    host = with_interrupt(machine)
    before = snapshot(host)
    host.tree.put(f"fake/leak/{GPU}", "")

    with pytest.raises(StepError) as caught:
        prepare(host, GPU)

    assert str(caught.value) == (
        f"nvidia counts a user of {GPU} although nothing has it open, so unloading nvidia would"
        " never return (hint: reboot the host, or if persistence mode was set without"
        " nvidia-persistenced, set `nvidia-smi -pm 0`)"
    )
    assert ("/sbin/rmmod", "nvidia_modeset") in written(host)
    assert ("/sbin/rmmod", "nvidia") not in written(host)
    host.tree.remove(f"fake/leak/{GPU}")
    assert snapshot(host) == before
    assert host.fault is None


def test_persistence_mode_without_its_daemon_is_switched_off_and_the_modules_are_unloaded(
    machine: MachineFactory,
) -> None:
    host = with_interrupt(machine)
    host.tree.put("fake/persistent", "")
    host.tree.put("usr/bin/nvidia-smi", "")

    run_vm(host, GPU)
    release(host)

    assert ("/usr/bin/nvidia-smi", f"-i {GPU} -pm 0") in written(host)
    assert "persistence mode was switched off" in log(host)
    assert driver(host, GPU) == "nvidia"


def test_persistence_mode_without_nvidia_smi_is_no_reason_to_risk_the_host(
    machine: MachineFactory,
) -> None:
    host = with_interrupt(machine)
    host.tree.put("fake/persistent", "")

    with pytest.raises(StepError, match="`nvidia-smi -pm 0`"):
        prepare(host, GPU)

    assert driver(host, GPU) == "nvidia"


def test_a_gpu_that_has_stopped_is_not_asked_for_its_persistence_mode(
    machine: MachineFactory,
) -> None:
    host = with_interrupt(machine)
    host.tree.put("usr/bin/nvidia-smi", "")

    prepare(host, GPU)

    assert not [path for path, _ in written(host) if path == "/usr/bin/nvidia-smi"]


def test_a_gpu_that_is_started_when_it_is_found_says_nothing_about_its_users(
    machine: MachineFactory,
) -> None:
    host = with_interrupt(machine)
    host.tree.put("fake/options", "nvidia NVreg_GpuInitOnProbe=1 NVreg_PreserveVideoMemory=1")

    run_vm(host, GPU)
    release(host)

    assert (driver(host, GPU), host.fault) == ("nvidia", None)


def test_of_two_gpus_one_whose_count_has_leaked_is_not_unbound_if_its_card_counts_as_no_user(
    machine: MachineFactory,
) -> None:
    host = machine("two-nvidia")
    host.tree.put("sys/module/nvidia_drm/parameters/modeset", "N")
    show_interrupt(host, SECOND)
    host.tree.put(f"fake/leak/{SECOND}", "")

    with pytest.raises(StepError, match=f"counts a user of {SECOND} .* unbinding nvidia would"):
        prepare(FakeHost(host.root), SECOND)

    assert driver(host, SECOND) == "nvidia"
    assert host.fault is None


def test_of_two_gpus_one_whose_card_counts_as_no_user_is_unbound(machine: MachineFactory) -> None:
    host = machine("two-nvidia")
    host.tree.put("sys/module/nvidia_drm/parameters/modeset", "N")
    show_interrupt(host, SECOND)

    prepare(FakeHost(host.root), SECOND)

    assert driver(host, SECOND) is None


def test_modules_that_could_not_be_loaded_again_are_not_unloaded(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    host.tree.put("fake/upgraded", "nvidia_uvm")

    with pytest.raises(RefusedError) as caught:
        prepare(host, GPU)

    assert caught.value.text == (
        "nvidia_uvm could not be loaded again after the VM: modprobe does not find it for the"
        " kernel that runs"
    )
    assert host.changes == []


def test_modules_that_a_container_has_loaded_are_its_own(machine: MachineFactory) -> None:
    host = machine("nvidia-single-desktop")
    host.tree.put("fake/upgraded", " ".join(NVIDIA))
    host.tree.make_directory("run/nvidia/driver")

    with pytest.raises(RefusedError) as caught:
        prepare(host, GPU)

    assert "gpu.workload.config=vm-passthrough" in caught.value.hint
    assert host.changes == []


def test_of_two_gpus_one_without_a_card_whose_count_has_leaked_is_not_unbound(
    machine: MachineFactory,
) -> None:
    host = machine("two-nvidia")
    host.write("sys/class/vtconsole/vtcon1/bind", "0")
    for module in ("nvidia_drm", "nvidia_modeset"):
        host.run("/sbin/rmmod", module)
    show_interrupt(host, SECOND)
    host.tree.put(f"fake/leak/{SECOND}", "")

    with pytest.raises(StepError, match=f"counts a user of {SECOND} .* unbinding nvidia would"):
        prepare(FakeHost(host.root), SECOND)

    assert driver(host, SECOND) == "nvidia"
    assert host.fault is None


def test_a_process_that_may_use_a_gpu_without_its_node_is_named(machine: MachineFactory) -> None:
    host = machine("two-nvidia")
    host.tree.put("sys/module/nvidia_drm/parameters/modeset", "N")
    show_interrupt(host, SECOND)
    host.tree.put(f"fake/leak/{SECOND}", "")
    hold(host, "dev/nvidiactl", pid=9, command="nv-hostengine", unit="nvidia-dcgm.service")

    with pytest.raises(StepError) as caught:
        prepare(FakeHost(host.root), SECOND)

    assert caught.value.text == (
        f"nvidia counts a user of {SECOND}, maybe nv-hostengine (9) [nvidia-dcgm.service] with"
        " /dev/nvidiactl open, so unbinding nvidia would never return"
    )


def test_a_module_that_does_not_load_again_is_reported_with_the_line_to_type(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    run_vm(host, GPU)
    host.tree.put("fake/modules", "nvidia alone=no")

    with pytest.raises(StepError) as caught:
        release(host)

    assert "Module nvidia_uvm not found" in caught.value.text
    assert "modprobe nvidia; modprobe nvidia_uvm; modprobe nvidia_modeset" in caught.value.text
    assert Claims(host).uuids() == (UUID,)


# -- two GPUs on nvidia


@pytest.mark.parametrize("address", [GPU, SECOND])
def test_with_another_gpu_on_nvidia_only_the_one_that_leaves_is_unbound(
    machine: MachineFactory, address: str
) -> None:
    host = machine("two-nvidia")

    prepare(host, address)

    assert written(host) == [
        (f"{DEVICES}/{address}/driver_override", "vfio-pci"),
        ("sys/bus/pci/drivers/nvidia/unbind", address),
    ]
    assert host.list("sys/module") == NVIDIA


SWITCH = "0000:05:00.0"


def with_switch(machine: MachineFactory) -> FakeHost:
    """An NVSwitch, whose driver is in the same module (linux_nvswitch.c), beside the only GPU."""
    host = machine("nvidia-single-desktop")
    device = f"sys/devices/pci0000:00/0000:00:05.0/{SWITCH}"
    host.tree.put(f"{device}/class", "0x068000")
    host.tree.put(f"{device}/resource", 13 * "0x0 0x0 0x0\n")
    host.tree.put(f"fake/native/{SWITCH}", "driver=nvidia-nvswitch module=nvidia")
    host.tree.link(f"{DEVICES}/{SWITCH}", device)
    host.tree.put("sys/bus/pci/drivers/nvidia-nvswitch/unbind", "")
    host.tree.link("sys/bus/pci/drivers/nvidia-nvswitch/module", "sys/module/nvidia")
    host.tree.link(f"{device}/driver", "sys/bus/pci/drivers/nvidia-nvswitch")
    host.tree.make_directory("sys/kernel/iommu_groups/55")
    host.tree.link(f"{device}/iommu_group", "sys/kernel/iommu_groups/55")
    symbols = host.read("proc/kallsyms")
    host.tree.put("proc/kallsyms", f"{symbols}\n0000000000000000 t nvidia_modeset_remove")
    return host


def test_the_last_gpu_leaves_a_switch_to_the_host(machine: MachineFactory) -> None:
    host = with_switch(machine)
    hold(host, "dev/nvidiactl", pid=9, command="nv-fabricmanage")

    prepare(host, GPU)

    assert (driver(host, GPU), driver(host, SWITCH)) == (None, "nvidia-nvswitch")


def test_a_switch_that_goes_to_the_vm_too_does_not_stay(machine: MachineFactory) -> None:
    host = with_switch(machine)

    prepare(host, GPU, SWITCH)

    assert [text for path, text in written(host) if path == "/sbin/rmmod"] == [*UNLOADED]


def test_modules_that_were_never_unloaded_are_not_said_to_be_loaded_again(
    machine: MachineFactory,
) -> None:
    host = machine("two-nvidia")
    run_vm(host, SECOND)

    release(host)

    assert "made sure that nvidia, nvidia_uvm, nvidia_modeset, nvidia_drm are loaded" in log(host)


def test_processes_on_the_other_nvidia_gpu_do_not_matter(machine: MachineFactory) -> None:
    host = machine("two-nvidia")
    for node in ("dev/nvidia0", "dev/nvidiactl", "dev/nvidia-modeset", "dev/dri/card0"):
        hold(host, node, pid=50, command="Xorg")

    prepare(host, SECOND)

    assert (driver(host, GPU), driver(host, SECOND)) == ("nvidia", None)


def test_a_release_of_nvidia_that_cannot_release_one_drm_node_is_refused(
    machine: MachineFactory,
) -> None:
    host = machine("two-nvidia")
    before = snapshot(host)
    symbols = (host.read("proc/kallsyms") or "").replace("nvidia_modeset_remove", "other")
    host.tree.put("proc/kallsyms", symbols)

    with pytest.raises(RefusedError) as caught:
        prepare(host, SECOND)

    assert caught.value.text == (
        "this release of nvidia cannot be unbound from 0000:02:00.0 alone, which has a DRM node"
    )
    # modeset=0 does not help: nvidia_drm makes a node for each GPU all the same.
    assert "modeset" not in caught.value.hint
    assert {**snapshot(host), "proc/kallsyms": ""} == {**before, "proc/kallsyms": ""}


@pytest.mark.parametrize("order", [(GPU, SECOND), (SECOND, GPU)])
def test_all_gpus_of_a_vm_are_reserved_before_their_modules_go(
    machine: MachineFactory, order: tuple[str, str]
) -> None:
    host = machine("two-nvidia")

    prepare(host, *order)

    assert written(host) == [
        (f"{DEVICES}/{order[1]}/driver_override", "vfio-pci"),
        (f"{DEVICES}/{order[0]}/driver_override", "vfio-pci"),
        ("sys/class/vtconsole/vtcon1/bind", "0"),
        *unloaded(*UNLOADED),
    ]


def test_a_gpu_comes_back_to_nvidia_although_the_vm_of_the_other_gpu_has_unloaded_it(
    machine: MachineFactory,
) -> None:
    host = machine("two-nvidia")
    other = replace(vm(GPU), name="b", uuid="11111111-2222-4333-8444-555555555555")
    libvirt = FakeLibvirt(host)
    prepare(host, SECOND)
    libvirt.detach(SECOND)
    events.prepare(host, other, NOW, Log(host, "b"))
    libvirt.detach(GPU)
    meanwhile = host.list("sys/module")

    libvirt.reattach(SECOND)
    release(host)
    during = driver(host, GPU), driver(host, SECOND)
    libvirt.reattach(GPU)
    events.release(host, other.uuid, Log(host, "b"))

    assert (meanwhile, during) == ((), ("vfio-pci", "nvidia"))
    assert "warning" not in log(host)
    assert (driver(host, GPU), host.list("sys/module")) == ("nvidia", NVIDIA)


# -- what comes back


def missing(host: FakeHost, address: str, action: ReturnNative) -> str:
    """The loss that release reports; the claim must be removed nevertheless."""
    with pytest.raises(LostError) as reported:
        release(host)
    assert Claims(host).uuids() == ()
    with pytest.raises(LostError) as caught:
        action.apply(host)
    assert caught.value.text in reported.value.text
    return caught.value.text


CARD_AND_FB = ReturnNative("0000:09:00.0", "amdgpu", True, True)


def test_a_driver_that_does_not_come_back_is_reported(machine: MachineFactory) -> None:
    host = machine("amd-single")
    run_vm(host, "0000:09:00.0")
    host.write("sys/bus/pci/drivers/amdgpu/unbind", "0000:09:00.0")
    host.tree.remove("fake/native/0000:09:00.0")

    assert missing(host, "0000:09:00.0", CARD_AND_FB) == (
        "amdgpu did not come back to 0000:09:00.0"
    )


def test_a_driver_that_comes_back_without_its_drm_node_is_reported(machine: MachineFactory) -> None:
    host = machine("amd-single")
    run_vm(host, "0000:09:00.0")
    remove_cards(host.tree, str(host.real(f"{DEVICES}/0000:09:00.0")))

    assert missing(host, "0000:09:00.0", CARD_AND_FB) == (
        "amdgpu is back on 0000:09:00.0 but has no DRM node"
    )


def test_a_driver_that_comes_back_without_its_framebuffer_is_reported(
    machine: MachineFactory,
) -> None:
    host = machine("amd-dgpu-and-apu")
    run_vm(host, CARD)
    unregister(host.tree, str(host.real(f"{DEVICES}/{CARD}")), "fb0")

    assert missing(host, CARD, ReturnNative(CARD, "amdgpu", True, True)) == (
        "amdgpu is back on 0000:03:00.0 but has no framebuffer"
    )


def test_a_driver_that_libvirt_unbound_is_checked_too(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    run_vm(host, GPU)
    host.write("sys/bus/pci/drivers/bochs-drm/unbind", GPU)
    host.tree.remove(f"fake/native/{GPU}")

    assert missing(host, GPU, ReturnNative(GPU, "bochs-drm", True, True)) == (
        "bochs-drm did not come back to 0000:01:00.0"
    )


def test_another_driver_that_is_bound_to_the_gpu_is_named(machine: MachineFactory) -> None:
    host = machine("intel-and-nvidia")
    run_vm(host, GPU)
    host.write("sys/bus/pci/drivers/nouveau/unbind", GPU)
    host.tree.put(f"fake/native/{GPU}", "driver=nvidia")
    host.load_module("nvidia")

    assert missing(host, GPU, ReturnNative(GPU, "nouveau", True, True)) == (
        "nouveau did not come back to 0000:01:00.0: nvidia is bound to it"
    )


def test_a_gpu_whose_driver_override_keeps_its_driver_off_is_reported_and_not_probed(
    machine: MachineFactory,
) -> None:
    host = machine("amd-single")
    host.write("sys/bus/pci/drivers/amdgpu/unbind", "0000:09:00.0")
    host.write(f"{DEVICES}/0000:09:00.0/driver_override", "pci-stub")
    begun = len(host.changes)

    with pytest.raises(LostError) as caught:
        CARD_AND_FB.apply(host)

    assert caught.value.text == (
        "amdgpu did not come back to 0000:09:00.0: its driver_override is pci-stub"
    )
    assert host.changes[begun:] == []


def test_a_gpu_that_has_left_the_bus_is_reported(machine: MachineFactory) -> None:
    host = machine("amd-single")
    run_vm(host, "0000:09:00.0")
    host.write(f"{DEVICES}/0000:09:00.0/remove", "1")

    with pytest.raises(LostError, match="is no longer on the PCI bus"):
        release(host)

    assert Claims(host).uuids() == ()


def test_a_driverless_gpu_is_probed_once(machine: MachineFactory) -> None:
    host = machine("amd-single")
    prepare(host, "0000:09:00.0")
    begun = len(host.changes)

    release(host)

    assert [(path, text) for _, path, text in host.changes[begun:] if "pci" in path] == [
        ("sys/bus/pci/drivers_probe", "0000:09:00.0")
    ]


def test_a_gpu_that_had_no_nodes_is_not_expected_to_get_any(machine: MachineFactory) -> None:
    host = machine("laptop-3d-controller")
    before = without_override(host)

    run_vm(host, GPU)
    release(host)

    assert without_override(host) == before
    assert "warning" not in log(host)


def test_a_vm_that_takes_over_nvidia_from_a_vm_that_has_ended_restores_it(
    machine: MachineFactory,
) -> None:
    host = machine("nvidia-single-desktop")
    before = without_override(host)
    run_vm(host, GPU)
    other = replace(vm(GPU), name="b", uuid="11111111-2222-4333-8444-555555555555")
    libvirt = FakeLibvirt(host)

    events.prepare(host, other, NOW, Log(host, "b"))
    release(host)
    during = driver(host, GPU), host.list("sys/module")
    libvirt.detach(GPU)
    libvirt.reattach(GPU)
    events.release(host, other.uuid, Log(host, "b"))

    assert during == (None, ())
    assert without_override(host) == before


# -- a kernel that does not return


def call(host: FakeHost, event: str) -> int:
    return hook.main(["win11", event, "begin", "-"], domain_xml(GPU, event=event), host)


def with_timeout(host: FakeHost, timeout_s: int = 3) -> None:
    settings = f"timeout_s: {timeout_s}\nholders:\n  wait_s: 0\n"
    host.tree.put("etc/vfio-console-hook/default.yaml", settings)
    for directory in ("etc", "etc/vfio-console-hook"):
        os.chmod(host.path(directory), 0o755)
    os.chmod(host.path("etc/vfio-console-hook/default.yaml"), 0o644)


def test_an_unbind_that_never_returns_times_out_and_is_not_tried_again(
    machine: MachineFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    host = machine("radeon-6.1")
    with_timeout(host)

    status = call(FakeHost(host.root, hang="radeon/unbind"), "prepare")

    out, err = capfd.readouterr()
    assert (status, out) == (1, "")
    assert "timed out after" in err
    assert [path for _, path, _ in host.changes if "unbind" in path] == [
        "sys/bus/pci/drivers/radeon/unbind"
    ]


def test_an_unload_that_is_stuck_in_the_kernel_is_reported_and_nothing_is_undone(
    machine: MachineFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    host = machine("nvidia-single-desktop")
    with_timeout(host, 60)  # nothing waits for it

    status = call(FakeHost(host.root, hang="rmmod nvidia_drm"), "prepare")

    out, err = capfd.readouterr()
    assert (status, out) == (1, "")
    assert "the kernel is stuck in `/sbin/rmmod nvidia_drm` (process 4711)" in err
    assert written(host)[-1] == ("/sbin/rmmod", "nvidia_drm")
    uuid = Claims(host).uuids()
    assert len(uuid) == 1
    claim = Claims(host).find(uuid[0])
    assert claim is not None
    newest = claim.open_steps[0][1]
    assert newest.do == UnloadModules(
        (GPU,), ("nvidia_drm", "nvidia_modeset", "nvidia_uvm", "nvidia")
    )
    assert newest.undo == LoadModules(
        (GPU,), (GPU,), ("nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm")
    )
    assert any(step.do == Reserve(GPU) for _, step in claim.open_steps)


# -- the sound function


SOUND = "0000:13:00.1"
ALLOW = Config(apu="allow", holders=Holders(wait_s=0))


def with_sound_card(machine: MachineFactory) -> FakeHost:
    host = machine("amd-apu")
    device = host.real(f"{DEVICES}/{SOUND}")
    host.tree.put("dev/snd/controlC1", "")
    host.tree.make_directory(f"{device}/sound/card1/controlC1")
    host.tree.link("sys/class/sound/controlC1", f"{device}/sound/card1/controlC1")
    return host


def test_the_sound_function_is_unbound_before_its_gpu_and_both_come_back(
    machine: MachineFactory,
) -> None:
    host = machine("amd-apu")
    before = without_override(host)
    libvirt = FakeLibvirt(host)

    prepare(host, APU, SOUND, config=ALLOW)
    unbound = [path for path, _ in written(host) if path.endswith("/unbind")]
    for address in (APU, SOUND):
        libvirt.detach(address)
    events.start(host, UUID, Log(host, "win11"))
    for address in (APU, SOUND):
        libvirt.reattach(address)
    release(host)

    assert unbound == [
        "sys/bus/pci/drivers/snd_hda_intel/unbind", "sys/bus/pci/drivers/amdgpu/unbind",
    ]  # fmt: skip
    assert without_override(host) == before


def test_a_sound_function_that_stays_is_left_alone(machine: MachineFactory) -> None:
    host = machine("amd-apu")

    prepare(host, APU, config=ALLOW)

    assert driver(host, SOUND) == "snd_hda_intel"


def test_a_sound_function_that_only_the_previous_vm_had_stays_on_the_host(
    machine: MachineFactory,
) -> None:
    host = machine("amd-apu")
    before = without_override(host)
    run_vm(host, APU, SOUND, config=ALLOW)
    second = Domain("b", f"1{UUID[1:]}", vm(APU).hostdevs)

    events.prepare(host, second, ALLOW, Log(host, "b"))  # before the release of the first

    assert (driver(host, APU), driver(host, SOUND)) == (None, "snd_hda_intel")
    release(host)
    events.release(host, second.uuid, Log(host, "b"))
    assert without_override(host) == before


def test_neither_an_open_sound_function_nor_its_gpu_is_unbound(
    machine: MachineFactory,
) -> None:
    host = with_sound_card(machine)
    hold(host, "dev/snd/controlC1", pid=1800, command="mixer")
    before = snapshot(host)

    with pytest.raises(RefusedError) as caught:
        prepare(host, APU, SOUND, config=ALLOW)

    assert "mixer (1800) with /dev/snd/controlC1 open" in caught.value.text
    assert (snapshot(host), host.changes) == (before, [])


def test_a_sound_server_lets_go_of_a_card_that_disappears(machine: MachineFactory) -> None:
    host = with_sound_card(machine)
    hold(host, "dev/snd/controlC1", pid=1800, command="wireplumber")

    prepare(host, APU, SOUND, config=ALLOW)

    assert (driver(host, SOUND), host.exists("proc/1800")) == (None, True)
    assert "wireplumber (1800) closed the sound card" in log(host)


def test_a_sound_server_that_does_not_let_go_is_killed(machine: MachineFactory) -> None:
    host = with_sound_card(machine)
    hold(host, "dev/snd/controlC1", pid=1800, command="wireplumber")
    hold(host, "dev/snd/controlC1", pid=1801, command="pipewire")
    host.tree.put("fake/deaf/1800", "")

    prepare(host, APU, SOUND, config=ALLOW)

    assert driver(host, SOUND) is None
    assert (host.exists("proc/1800"), host.exists("proc/1801")) == (False, True)
    assert "killed wireplumber (1800), which did not close a sound card" in log(host)


def test_only_what_is_no_sound_server_is_in_the_refusal(machine: MachineFactory) -> None:
    host = with_sound_card(machine)
    hold(host, "dev/snd/controlC1", pid=1800, command="wireplumber")
    hold(host, "dev/snd/controlC1", pid=1801, command="mixer")

    with pytest.raises(RefusedError) as caught:
        prepare(host, APU, SOUND, config=ALLOW)

    assert "in use by mixer (1801) with" in caught.value.text


def test_a_sound_server_with_another_node_of_the_gpu_counts(machine: MachineFactory) -> None:
    host = with_sound_card(machine)
    hold(host, "dev/snd/controlC1", pid=1800, command="pipewire")
    hold(host, "dev/dri/card0", pid=1800, command="pipewire")

    with pytest.raises(RefusedError, match=r"in use by pipewire \(1800\)"):
        prepare(host, APU, SOUND, config=ALLOW)


def test_the_sound_server_of_a_desktop_on_another_gpu_goes_on(machine: MachineFactory) -> None:
    host = machine("laptop-amd-and-nvidia")
    for pid, command in ((1800, "wireplumber"), (1801, "pipewire")):
        hold(host, "dev/snd/controlC1", pid=pid, command=command)
    nvidia, sound = "0000:01:00.0", "0000:01:00.1"

    made = plan.plan_for(host, vm(nvidia, sound), Config())
    prepare(host, nvidia, sound)

    assert made.verdict == "start"
    assert {one.becomes for one in made.holders} == {
        "closes the sound card when it disappears, or is killed then"
    }
    assert (driver(host, nvidia), driver(host, sound)) == (None, None)
    assert host.exists("proc/1800")
    assert host.exists("proc/1801")
