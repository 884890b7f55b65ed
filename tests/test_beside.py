"""A firmware console beside a native driver that has left it alone: nvidia without fbdev."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import events, snapshots
from tests.building import Machine, Module, Pci
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, close_device, hold, open_device
from tests.hosts import DISPLAY, VGA, firmware_on, lab, lab_gpu
from vfio_console_hook.commands.plan import memory_map, plan
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, RefusedError
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import pci
from vfio_console_hook.stages import order

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
GPU, SECOND = "0000:01:00.0", "0000:02:00.0"
NOW = Config(holders=Holders(wait_s=0))
NVIDIA = "driver=nvidia bars=2"
MODULES = (
    Module("nvidia", nodes=("dev/nvidia0", "dev/nvidiactl"), alone=False, driver="nvidia"),
    Module("nvidia_modeset", needs=("nvidia",)),
)
LOST = "will not come back before a reboot"


def vm(*gpus: str) -> Domain:
    return Domain("win11", UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in gpus))


def beside(
    kernel: str,
    driver: str,
    pci_class: int = VGA,
    *,
    native: str = NVIDIA,
    modules: tuple[Module, ...] = MODULES,
    others: tuple[Pci, ...] = (),
) -> Machine:
    """The firmware's driver draws on a GPU to which a native driver is bound."""
    gpu = replace(lab_gpu(pci_class=pci_class, bound=True), native=native)
    firmware = firmware_on(gpu, driver, kernel)
    return Machine("beside", (), kernel, (gpu, *others), (firmware,), modules=modules)


def run_vm(host: FakeHost, *gpus: str, config: Config = NOW) -> list[int]:
    """Start a VM and end it, up to release; the BARs that QEMU could not have."""
    log, libvirt = Log(host, "win11"), FakeLibvirt(host)
    events.prepare(host, vm(*gpus), config, log)
    for address in gpus:
        libvirt.detach(address)
    events.start(host, UUID, log)
    blocked = [bar for address in gpus for bar in open_device(host, address)]
    for address in gpus:
        close_device(host, address)
        libvirt.reattach(address)
    return blocked


def release(host: FakeHost) -> None:
    events.release(host, UUID, Log(host, "win11"))


def drivers(host: FakeHost, firmware: str) -> tuple[str | None, str | None]:
    """The drivers of a firmware device and of the GPU."""
    return (
        host.link_name(f"sys/bus/platform/devices/{firmware}/driver"),
        host.link_name(f"sys/bus/pci/devices/{GPU}/driver"),
    )


def position(host: FakeHost, word: str) -> int:
    """When a driver's bind or unbind, or a module's load or unload, was done."""
    changes = [f"{path} {text}" for _, path, text in host.changes]
    return next(n for n, change in enumerate(changes) if word in change)


# -- whether the firmware's driver lives


@pytest.mark.parametrize(
    ("kernel", "driver", "pci_class", "back"),
    [
        ("5.10", "efifb", VGA, True),
        ("5.10", "vesafb", VGA, True),
        ("5.15.0-91-generic", "efifb", VGA, True),
        ("6.1", "efifb", DISPLAY, True),
        ("6.1", "efifb", VGA, False),
        ("6.12", "efifb", VGA, True),
        ("6.12", "efifb", DISPLAY, True),
        ("7.3", "efidrm", VGA, True),
        ("7.3", "efidrm", DISPLAY, True),
    ],
)
def test_the_firmware_console_leaves_after_the_driver_and_comes_back_before_it(
    machine: MachineFactory, kernel: str, driver: str, pci_class: int, back: bool
) -> None:
    host = machine(beside(kernel, driver, pci_class))
    device = firmware_on(lab_gpu(), driver, kernel).device
    handover, steps = events.look(host, vm(GPU), NOW)
    before = drivers(host, device)

    blocked = run_vm(host, GPU)
    release(host)

    assert blocked == []
    assert (LOST in outlook(handover, steps)) is not back
    assert position(host, "rmmod nvidia") < position(host, f"unbind {device}")
    if back:
        assert drivers(host, device) == before == (device.partition(".")[0], "nvidia")
        loaded = position(host, "/sbin/modprobe nvidia")
        assert position(host, f"/bind {device}") < loaded
        assert host.read("sys/class/vtconsole/vtcon1/bind") == "1"
    else:
        assert drivers(host, device) == (None, "nvidia")


@pytest.mark.parametrize(("kernel", "pci_class"), [("6.1", VGA), ("6.12", VGA), ("7.3", VGA)])
def test_simpledrm_beside_nvidia_is_removed_by_vfio_pci_and_that_is_announced(
    machine: MachineFactory, kernel: str, pci_class: int
) -> None:
    host = machine(beside(kernel, "simpledrm", pci_class))
    handover, steps = events.look(host, vm(GPU), NOW)

    blocked = run_vm(host, GPU)
    release(host)

    assert (blocked, LOST in outlook(handover, steps)) == ([], True)
    assert drivers(host, "simple-framebuffer.0") == (None, "nvidia")


@pytest.mark.parametrize(
    ("kernel", "driver", "pci_class"),
    [("5.10", "simplefb", VGA), ("5.19.0-31-generic", "simpledrm", VGA),
     ("6.12", "simpledrm", DISPLAY)],
)  # fmt: skip
@pytest.mark.parametrize("bootfb", ["refuse", "aperture", "native", "rescan"])
def test_bootfb_that_nothing_frees_is_refused_beside_nvidia(
    machine: MachineFactory, kernel: str, driver: str, pci_class: int, bootfb: str
) -> None:
    host = machine(beside(kernel, driver, pci_class))

    with pytest.raises(RefusedError) as caught:
        events.look(host, vm(GPU), replace(NOW, bootfb=bootfb))

    assert caught.value.hint == "try to boot with initcall_blacklist=sysfb_init"


@pytest.mark.parametrize(
    ("kernel", "pci_class"), [("5.19.0-31-generic", VGA), ("6.1", DISPLAY), ("6.12", DISPLAY)]
)
def test_bootfb_aperture_probes_the_gpu_when_nvidia_has_gone(
    machine: MachineFactory, kernel: str, pci_class: int
) -> None:
    host = machine(beside(kernel, "simpledrm", pci_class))
    host.tree.put("fake/modules", f"{host.read('fake/modules')}\nvmwgfx")
    override = f"sys/bus/pci/devices/{GPU}/driver_override"
    events.prepare(host, vm(GPU), NOW, Log(host, "win11"))
    reserved = host.read(override)
    events.release(host, UUID, Log(host, "win11"))
    host = machine(beside(kernel, "simpledrm", pci_class))
    host.tree.put("fake/modules", f"{host.read('fake/modules')}\nvmwgfx")

    blocked = run_vm(host, GPU)
    release(host)

    assert (blocked, reserved) == ([], "vfio-pci")
    assert position(host, "rmmod nvidia") < position(host, "drivers_probe")
    assert drivers(host, "simple-framebuffer.0") == (None, "nvidia")


def test_without_nodes_of_framebuffers_the_reservation_shows_that_efifb_draws(
    machine: MachineFactory,
) -> None:
    host = machine(beside("6.12", "efifb"))
    device = host.real("sys/bus/platform/devices/efi-framebuffer.0")
    host.tree.remove(f"{device}/graphics")
    for path in ("proc/fb", "dev/fb0", "sys/class/graphics/fb0"):
        host.tree.remove(path)

    _, steps = events.look(host, vm(GPU), NOW)

    assert "efi-framebuffer.0" in " ".join(step.do.shell() for step in steps if step.do)


def test_what_a_native_driver_took_over_on_5_10_is_never_unbound(machine: MachineFactory) -> None:
    host = machine(lab("5.10", "efifb"))
    host.load_module("bochs")

    blocked = run_vm(host, GPU)
    release(host)

    assert blocked == []
    assert drivers(host, "efi-framebuffer.0") == ("efi-framebuffer", "bochs-drm")
    assert not any("efi-framebuffer" in path for _, path, _ in host.changes)


def test_a_firmware_framebuffer_that_a_process_still_has_open_is_refused(
    machine: MachineFactory,
) -> None:
    host = machine(lab("5.10", "efifb"))
    hold(host, "dev/fb0", pid=4711, command="plymouthd")
    host.load_module("bochs")

    with pytest.raises(RefusedError, match=r"plymouthd \(4711\)"):
        events.prepare(host, vm(GPU), NOW, Log(host, "win11"))


def test_memory_that_the_firmware_driver_has_left_reserved_is_refused(
    machine: MachineFactory,
) -> None:
    # put_fb_info() frees it at the last close, and who has it open may be hidden.
    host = machine(lab("5.10", "efifb"))
    reserved = host.read("proc/iomem") or ""
    host.load_module("bochs")
    host.tree.put("proc/iomem", reserved)

    made = plan.plan_for(host, vm(GPU), NOW)

    assert (made.verdict, made.reason.partition(" of ")[0]) == (
        plan.REFUSE, "efifb still reserves c0000000-c03e7fff in BAR 0"
    )  # fmt: skip


def test_bootfb_that_a_native_driver_left_behind_on_5_10_is_refused(
    machine: MachineFactory,
) -> None:
    host = machine(lab("5.10", "simplefb"))
    host.load_module("bochs")

    with pytest.raises(RefusedError, match="BOOTFB"):
        events.look(host, vm(GPU), NOW)


# -- drivers that are not unloaded


@pytest.mark.parametrize("kernel", ["5.10", "6.12"])
def test_with_another_gpu_on_nvidia_the_console_still_comes_back_first(
    machine: MachineFactory, kernel: str
) -> None:
    second = replace(lab_gpu(SECOND, base=0xD0000000, bound=True), boot_vga=False, native=NVIDIA)
    host = machine(beside(kernel, "efifb", others=(second,)))

    blocked = run_vm(host, GPU)
    probed = drivers(host, "efi-framebuffer.0")
    release(host)

    assert (blocked, probed) == ([], (None, "nvidia"))
    assert drivers(host, "efi-framebuffer.0") == ("efi-framebuffer", "nvidia")
    bound = position(host, "/bind efi-framebuffer.0")
    again = [
        n for n, (_, path, text) in enumerate(host.changes)
        if path.endswith("drivers_probe") and text == GPU
    ]  # fmt: skip
    assert again and again[-1] > bound


@pytest.mark.parametrize("driver", ["pci-stub", "someones-gpu"])
def test_the_console_comes_back_beside_a_driver_that_is_unbound(
    machine: MachineFactory, driver: str
) -> None:
    host = machine(beside("6.12", "efifb", native=f"driver={driver}", modules=()))

    blocked = run_vm(host, GPU)
    release(host)

    assert blocked == []
    assert drivers(host, "efi-framebuffer.0") == ("efi-framebuffer", driver)


@pytest.mark.parametrize("driver", ["nvidia", "pci-stub"])
def test_a_prepare_that_fails_leaves_both_drivers_as_they_were(
    machine: MachineFactory, driver: str
) -> None:
    modules = MODULES if driver == "nvidia" else ()
    made = beside("6.12", "efifb", native=f"driver={driver} bars=2", modules=modules)
    first = machine(made)
    events.prepare(first, vm(GPU), NOW, Log(first, "win11"))

    for change in range(1, len(first.changes) + 1):
        host = machine(made, refuse=change)
        with pytest.raises(HookError):
            events.prepare(host, vm(GPU), NOW, Log(host, "win11"))
        assert drivers(host, "efi-framebuffer.0") == ("efi-framebuffer", driver), change


def test_nodes_of_the_firmware_driver_are_not_expected_from_the_native_one(
    machine: MachineFactory,
) -> None:
    host = machine(beside("6.12", "simpledrm"))

    run_vm(host, GPU)
    release(host)

    warnings = [line for line in (host.read(SNAPSHOT_LOG) or "").splitlines() if "node" in line]
    assert warnings == []


def test_fbcon_stays_bound_if_the_consoles_are_on_the_firmware_framebuffer(
    machine: MachineFactory,
) -> None:
    host = machine(beside("6.12", "efifb"))

    _, steps = events.look(host, vm(GPU), NOW)

    assert "free-framebuffers" not in [step.do.kind for step in steps if step.do]


def test_native_drivers_go_before_the_firmwares() -> None:
    names = order.NAMES

    assert names.index("native") < names.index("drm_aperture") < names.index("fbdev")


# -- on all machines


@pytest.mark.parametrize("name", snapshots.before_vms())
def test_a_vm_that_would_start_gets_all_memory_of_its_gpu(
    machine: MachineFactory, name: str
) -> None:
    host = machine(name)
    for address in pci.displays(host):
        try:
            made = plan.plan_for(host, vm(address), NOW)
        except HookError:
            continue  # its memory cannot be seen
        pictures = [one for gpu in made.gpus for one in memory_map.bar_maps(gpu)]
        if made.verdict == plan.START and any(one.kind.blocks for one in pictures):
            assert run_vm(host, address) == [], (address, [step.why for step in made.steps])
            host = machine(name)
