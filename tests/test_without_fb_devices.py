"""Kernels without /dev/fbN (FB_DEVICE=n), and those whose fbcon waits for the first text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import events
from tests.building import DUMMY_AND_FBCON, Machine
from tests.conftest import MachineFactory
from tests.doctoring import system_of
from tests.fakehost import FakeHost, FakeLibvirt, KernelFault, close_device, hold, open_device
from tests.hosts import DISPLAY, firmware_on, lab, lab_gpu, two_native
from vfio_console_hook.actions.console_moves import LeaveFramebuffers
from vfio_console_hook.actions.consoles import ShowConsoles
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.doctor import consoles
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.snapshot import writer
from vfio_console_hook.commands.status import metrics, overview
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HostError, RefusedError, StepError
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import console, drm
from vfio_console_hook.machine.snapshot import unpack

BOOT_GPU, SECOND = "0000:01:00.0", "0000:02:00.0"
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
NOW = Config(holders=Holders(wait_s=0))
FEDORA = replace(two_native("6.12"), fb_device=False)
QUIET = replace(FEDORA, deferred=True, consoles=("1 (S) dummy device",))
BIOS = replace(FEDORA, consoles=("1 (M) frame buffer device", "0 (M) dummy device"))
FBCON_BIND = "sys/class/vtconsole/vtcon1/bind"


def vm(*gpus: str) -> Domain:
    return Domain("win11", UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in gpus))


@dataclass(frozen=True)
class Seen:
    """The framebuffer of the first console, None for the dummy, in the phases of a VM."""

    before: int | None
    prepared: int | None
    meanwhile: int | None
    after: int | None


def drawn_on(host: FakeHost) -> int | None:
    """Which of the hidden framebuffers the kernel draws the consoles on."""
    bound = any(one.bound and one.driver == console.FBCON for one in console.vtconsoles(host))
    text = host.tree.read("fake/con2fbmap") or "1-63 -"
    return int(text.split()[1]) if bound else None


def life(host: FakeHost, gpus: tuple[str, ...], config: Config = NOW) -> Seen:
    """A whole run of the VM."""
    libvirt, log = FakeLibvirt(host), Log(host, "win11")
    before = drawn_on(host)
    events.prepare(host, vm(*gpus), config, log)
    prepared = drawn_on(host)
    for one in gpus:
        libvirt.detach(one)
    events.start(host, UUID, log)
    for one in gpus:
        open_device(host, one)
    host.print_text()
    meanwhile = drawn_on(host)
    for one in gpus:
        close_device(host, one)
    events.stop(host, UUID, log)
    for one in gpus:
        libvirt.reattach(one)
    events.release(host, UUID, log)
    assert Claims(host).find(UUID) is None
    return Seen(before, prepared, meanwhile, drawn_on(host))


# -- where the consoles are


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [
        ((BOOT_GPU,), Seen(0, None, 1, 0)),
        ((SECOND,), Seen(0, 0, 0, 0)),
        ((BOOT_GPU, SECOND), Seen(0, None, None, 0)),
    ],
)
def test_the_consoles_are_on_the_gpu_that_stays_while_the_vm_runs(
    machine: MachineFactory, gpus: tuple[str, ...], seen: Seen
) -> None:
    host = machine(FEDORA)

    found = [life(host, gpus), life(host, gpus)]

    assert found == [seen, seen]
    assert "warning" not in (host.read(SNAPSHOT_LOG) or "")


def test_the_consoles_wait_until_a_gpu_that_leaves_with_another_vm_has_left(
    machine: MachineFactory,
) -> None:
    """Otherwise the kernel would draw on the second GPU, and crash when it leaves."""
    third = lab_gpu("0000:03:00.0", DISPLAY, 0xD8000000, bound=True)
    host = machine(replace(FEDORA, pci=(*FEDORA.pci, third)))
    libvirt, other = FakeLibvirt(host), Domain("other", UUID[::-1], vm(SECOND).hostdevs)
    run = Log(host, "win11")
    events.prepare(host, other, NOW, run)  # which sees the consoles on the other GPU
    events.prepare(host, vm(BOOT_GPU), NOW, run)
    libvirt.detach(BOOT_GPU)

    events.start(host, UUID, run)
    dark = drawn_on(host)
    libvirt.detach(SECOND)
    host.print_text()
    events.start(host, UUID, run)

    assert (dark, drawn_on(host), host.fault) == (None, 2, None)


def test_a_second_gpu_that_shows_no_console_is_left_alone(machine: MachineFactory) -> None:
    _, steps = events.look(machine(FEDORA), vm(SECOND), NOW)

    assert [step.stage for step in steps] == ["preflight", "native"]


def test_the_lit_monitor_tells_where_neither_gpu_is_the_boot_display(
    machine: MachineFactory,
) -> None:
    gpus = tuple(
        replace(one, pci_class=DISPLAY, boot_vga=None, shadow=False) for one in FEDORA.pci
    )
    host = machine(replace(FEDORA, pci=gpus))

    moved = {one: events.look(host, vm(one), NOW)[1] for one in (BOOT_GPU, SECOND)}

    assert {one: "fbcon" in [s.stage for s in steps] for one, steps in moved.items()} == {
        BOOT_GPU: True, SECOND: False,
    }  # fmt: skip


def test_the_steps_are_those_that_the_kernel_needs(machine: MachineFactory) -> None:
    _, steps = events.look(machine(FEDORA), vm(BOOT_GPU), NOW)

    (moved,) = (step for step in steps if step.stage == "fbcon")
    assert (moved.do, moved.undo) == (LeaveFramebuffers(), ShowConsoles(10))
    assert "they are shown on card1 (bochs-drm)" in moved.why


def test_one_gpu_has_the_only_framebuffer(machine: MachineFactory) -> None:
    one = Machine("one", (), "6.12", (lab_gpu(bound=True),), fb_device=False)
    host = machine(one)

    _, steps = events.look(host, vm(BOOT_GPU), NOW)

    assert [(s.do, s.undo) for s in steps if s.stage == "fbcon"] == [(None, ShowConsoles(10))]
    assert life(host, (BOOT_GPU,)) == Seen(0, 0, None, 0)


def test_efifb_is_seen_by_its_reservation_alone(machine: MachineFactory) -> None:
    host = machine(replace(lab("6.12", "efifb"), fb_device=False))

    handover, steps = events.look(host, vm(BOOT_GPU), NOW)

    assert handover.gpus[0].framebuffers == ("efi-framebuffer.0",)
    assert not handover.gpus[0].firmware[0].dead
    assert outlook(handover, steps) == "the firmware console comes back on efi-framebuffer.0"
    assert [life(host, (BOOT_GPU,)) for _ in range(2)] == [Seen(0, None, None, 0)] * 2


@pytest.mark.parametrize("kernel", ["6.6.87", "6.12"])
@pytest.mark.parametrize(
    ("gpu", "seen"), [(BOOT_GPU, Seen(0, None, 1, 0)), (SECOND, Seen(0, 0, 0, 0))]
)
def test_the_consoles_leave_efifb_for_a_second_gpu_and_come_back(
    machine: MachineFactory, gpu: str, seen: Seen, kernel: str
) -> None:
    first = replace(lab_gpu(pci_class=DISPLAY), native="")
    second = replace(lab_gpu(SECOND, DISPLAY, base=0xD0000000, bound=True), boot_vga=None)
    lit = firmware_on(first, "efifb", kernel)
    host = machine(Machine("lit", (), kernel, (first, second), (lit,), fb_device=False))

    assert [life(host, (gpu,)), life(host, (gpu,))] == [seen, seen]


def test_nodes_may_be_missing_where_the_kernel_has_them(machine: MachineFactory) -> None:
    host = machine(two_native("6.12"))
    for name in ("fb0", "fb1"):
        host.tree.remove(f"dev/{name}")

    _, steps = events.look(host, vm(BOOT_GPU), NOW)

    (moved,) = (step for step in steps if step.stage == "fbcon")
    assert moved.do == LeaveFramebuffers()
    assert "they are shown on fb1 (bochs-drmdrmfb)" in moved.why


# -- a BIOS boot whose vgacon is gone: no (S) driver


def test_without_a_static_driver_the_plan_says_that_the_consoles_go_dark(
    machine: MachineFactory,
) -> None:
    host = machine(BIOS)

    _, steps = events.look(host, vm(BOOT_GPU), NOW)

    (kept,) = (step for step in steps if step.stage == "fbcon")
    assert kept.do is None
    assert "until then no monitor shows them, not even that of card1 (bochs-drm)" in kept.why
    assert [life(host, (BOOT_GPU,)) for _ in range(2)] == [Seen(0, 0, None, 0)] * 2


def test_consoles_that_only_fbcon_could_take_stay(machine: MachineFactory) -> None:
    host = machine(replace(FEDORA, consoles=("1 (M) frame buffer device",)))

    with pytest.raises(RefusedError, match="fbcon is their only driver"):
        events.look(host, vm(BOOT_GPU), NOW)
    events.look(host, vm(SECOND), NOW)


# -- keep_console


def test_keep_console_never_leaves_the_other_monitor_dark(machine: MachineFactory) -> None:
    host = machine(FEDORA)
    life(host, (BOOT_GPU,))  # it may be bound through sysfs since

    never = life(host, (BOOT_GPU,), replace(NOW, keep_console="never"))

    assert never == Seen(0, None, None, 0)


def test_keep_console_may_name_the_only_gpu_that_stays(machine: MachineFactory) -> None:
    host = machine(FEDORA)

    assert life(host, (BOOT_GPU,), replace(NOW, keep_console=SECOND)) == Seen(0, None, 1, 0)


def test_keep_console_cannot_choose_between_two(machine: MachineFactory) -> None:
    third = replace(lab_gpu("0000:03:00.0", base=0xE0000000, bound=True), boot_vga=False)
    host = machine(replace(FEDORA, pci=(*FEDORA.pci, third)))

    with pytest.raises(RefusedError, match="the kernel chooses between card1 and others"):
        events.look(host, vm(BOOT_GPU), replace(NOW, keep_console=SECOND))


# -- by hand, where no event start follows


@pytest.mark.parametrize(("bind_vfio", "meanwhile"), [(True, 1), (False, None)])
def test_a_gpu_that_is_taken_by_hand_leaves_the_consoles_to_the_other_one(
    machine: MachineFactory, bind_vfio: bool, meanwhile: int | None
) -> None:
    host = machine(FEDORA)
    taker, log = replace(vm(BOOT_GPU), by_hand=True, bind_vfio=bind_vfio), Log(host, "by hand")
    found = []

    for _ in range(2):
        events.prepare(host, taker, NOW, log)
        found.append(drawn_on(host))
        events.release(host, UUID, log)
        found.append(drawn_on(host))

    assert found == [meanwhile, 0] * 2
    assert host.fault is None


# -- what goes wrong


def test_a_gpu_may_leave_without_the_hook_afterwards(machine: MachineFactory) -> None:
    host = machine(FEDORA)
    life(host, (BOOT_GPU,))

    host.write(f"sys/bus/pci/devices/{BOOT_GPU}/driver/unbind", BOOT_GPU)

    assert (host.fault, drawn_on(host)) == (None, None)


def test_the_consoles_come_back_although_the_gpu_does_not(machine: MachineFactory) -> None:
    host = machine(FEDORA)
    libvirt, log = FakeLibvirt(host), Log(host, "win11")
    events.prepare(host, vm(BOOT_GPU), NOW, log)
    libvirt.detach(BOOT_GPU)
    events.start(host, UUID, log)
    events.stop(host, UUID, log)

    with pytest.raises(StepError, match=f"{BOOT_GPU} is still on vfio-pci"):
        events.release(host, UUID, log)

    assert drawn_on(host) == 1


def test_stopped_is_for_what_start_has_bound(machine: MachineFactory) -> None:
    host = machine(FEDORA)
    log = Log(host, "win11")
    events.prepare(host, vm(SECOND), NOW, log)
    FakeLibvirt(host).detach(SECOND)
    events.start(host, UUID, log)

    events.stop(host, UUID, log)

    assert drawn_on(host) == 0
    claim = Claims(host).find(UUID)
    assert claim is not None
    assert claim.phase == "stopped"


def test_the_last_framebuffer_may_follow_the_first(machine: MachineFactory) -> None:
    host = machine(FEDORA)
    libvirt, log = FakeLibvirt(host), Log(host, "win11")
    events.prepare(host, vm(BOOT_GPU), NOW, log)
    libvirt.detach(BOOT_GPU)
    events.start(host, UUID, log)
    other = replace(vm(SECOND), name="other", uuid=UUID.replace("0f0e", "1f0e"))

    # fbcon is bound through sysfs to the framebuffer that leaves now.
    events.prepare(host, other, NOW, Log(host, "other"))
    libvirt.detach(SECOND)

    assert (host.fault, drawn_on(host)) == (None, None)


def test_a_prepare_that_fails_gives_the_consoles_back(machine: MachineFactory) -> None:
    host = machine(FEDORA)
    gone = FakeHost(host.root, refuse=1)

    with pytest.raises(HostError, match="vtcon1"):
        events.prepare(gone, vm(BOOT_GPU), NOW, Log(gone, "win11"))

    assert drawn_on(host) == 0


# -- the first text has not been drawn


@pytest.mark.parametrize("fb_device", [False, True])
@pytest.mark.parametrize("gpus", [(BOOT_GPU,), (SECOND,), (BOOT_GPU, SECOND)])
def test_a_quiet_boot_stays_quiet(
    machine: MachineFactory, gpus: tuple[str, ...], fb_device: bool
) -> None:
    host = machine(replace(QUIET, fb_device=fb_device))
    libvirt, log = FakeLibvirt(host), Log(host, "win11")

    events.prepare(host, vm(*gpus), NOW, log)
    for one in gpus:
        libvirt.detach(one)
    events.start(host, UUID, log)
    events.check(host, UUID, log)
    for one in gpus:
        libvirt.reattach(one)
    events.release(host, UUID, log)

    touched = [change for change in host.changes if "vtcon" in change[1] or change[0] == "ioctl"]
    assert touched == []
    assert [one.driver for one in console.vtconsoles(host)] == [console.DUMMY]
    assert "warning" not in (host.read(SNAPSHOT_LOG) or "")
    host.print_text()
    assert [one.bound for one in console.vtconsoles(host)] == [False, True]


def test_a_quiet_boot_is_no_dead_console(machine: MachineFactory) -> None:
    host = machine(QUIET)

    found = overview.current(host)
    handover, steps = events.look(host, vm(BOOT_GPU), NOW)

    assert found.console_alive
    assert found.drawing.startswith("not drawn yet; the first text brings the framebuffer console")
    assert "vfio_console_hook_console_alive 1\n" in metrics.text(found)
    assert outlook(handover, steps) == (
        "the consoles are not drawn yet, and stay so until the first text"
    )


def test_the_first_text_may_come_while_the_vm_runs(machine: MachineFactory) -> None:
    host = machine(QUIET)

    # fbcon's con2fb_map_boot[] names the primary device, which is away.
    assert life(host, (BOOT_GPU,)) == Seen(None, None, None, 0)


# -- no fbcon at all


def without_terminals(machine: MachineFactory) -> FakeHost:
    """VT=n: /dev/tty0 is missing, and with it everything that is a console driver."""
    host = machine(replace(FEDORA, consoles=()))
    for path in ("sys/class/tty/tty0", "sys/class/graphics/fbcon", "dev/tty1"):
        host.tree.remove(path)
    return host


def test_a_kernel_without_virtual_terminals_has_no_console_to_move(
    machine: MachineFactory,
) -> None:
    host = without_terminals(machine)

    found = overview.current(host)
    handover, steps = events.look(host, vm(BOOT_GPU), NOW)

    assert found.drawing == "none, because this kernel has no virtual terminals"
    assert "console_alive" not in metrics.text(found)
    assert outlook(handover, steps) == (
        "there is nothing to give back: no console of the host is on it"
    )
    assert [step.stage for step in steps] == ["preflight", "native"]


def test_drm_log_is_no_framebuffer(machine: MachineFactory) -> None:
    host = machine(replace(FEDORA, consoles=("1 (S) dummy device",)))
    host.tree.put("sys/module/drm_client_lib/parameters/active", "log")

    _, steps = events.look(host, vm(BOOT_GPU), NOW)

    assert console.framebuffers(host) == ()
    assert console.current_display(host) == "dummy device"
    assert [step.stage for step in steps] == ["preflight", "native"]


def test_kmscon_has_the_card_open_and_fbcon_draws_nothing(machine: MachineFactory) -> None:
    host = machine(QUIET)
    hold(host, "dev/dri/card0", pid=700, command="kmscon", unit="kmsconvt@tty1.service")

    found = plan.plan_for(host, vm(BOOT_GPU), NOW)

    assert found.verdict == plan.REFUSE
    assert "kmscon (700)" in found.reason
    assert [step.stage for step in found.steps] == ["preflight", "native"]


def test_nvidia_without_fbdev_carries_no_console(machine: MachineFactory) -> None:
    nvidia = replace(
        FEDORA.pci[1], ids=(0x10DE, 0x2204), native="driver=nvidia fb=nvidia-drmdrmfb bars=0"
        " connectors=HDMI-A-1",
    )  # fmt: skip
    host = machine(replace(FEDORA, pci=(FEDORA.pci[0], nvidia)))
    host.tree.put("sys/module/nvidia_drm/parameters/fbdev", "N")

    assert [fb.name for fb in console.framebuffers(host)] == ["card0"]


# -- doctor and record


def test_a_snapshot_has_the_connectors(machine: MachineFactory, tmp_path: Path) -> None:
    # Without the boot display only they tell which GPU has the consoles.
    gpus = tuple(
        replace(one, pci_class=DISPLAY, boot_vga=None, shadow=False) for one in FEDORA.pci
    )
    host = machine(replace(FEDORA, pci=gpus))

    text = writer.snapshot_text(host, ())

    recorded = unpack(text, str(tmp_path / "recorded"))
    assert drm.cards(recorded) == drm.cards(host)
    for one in (BOOT_GPU, SECOND):
        assert plan.plan_for(recorded, vm(one), NOW) == plan.plan_for(host, vm(one), NOW)


@pytest.mark.parametrize(
    ("which", "status"), [(FEDORA, "PASS"), (BIOS, "WARN")], ids=["efi", "bios"]
)
def test_doctor_says_what_the_other_monitor_shows(
    machine: MachineFactory, which: Machine, status: str
) -> None:
    found = consoles.console_drivers(system_of(machine(which)))

    assert {one.subject: one.level for one in found} == {
        "console drivers": "PASS", "consoles on the GPU that stays": status,
    }  # fmt: skip


# -- the fake kernel itself, as Debian's 6.12 was seen to do it


def test_a_gpu_that_leaves_fbcon_bound_through_sysfs_is_an_oops(machine: MachineFactory) -> None:
    host = machine(two_native("6.12"))
    device = f"sys/bus/pci/devices/{BOOT_GPU}"
    host.write(f"{device}/driver/unbind", BOOT_GPU)
    host.write(FBCON_BIND, "1")
    host.write("sys/bus/pci/drivers/bochs-drm/bind", BOOT_GPU)

    with pytest.raises(KernelFault, match="fbcon_cursor"):
        host.write(f"{device}/driver/unbind", BOOT_GPU)


@pytest.mark.parametrize("unbound_before", ["leaving", "returning"])
def test_fbcon_that_was_unbound_before_is_none(
    machine: MachineFactory, unbound_before: str
) -> None:
    host = machine(two_native("6.12"))
    device = f"sys/bus/pci/devices/{BOOT_GPU}"
    for _ in range(2):
        if unbound_before == "leaving":
            host.write(FBCON_BIND, "0")
        host.write(f"{device}/driver/unbind", BOOT_GPU)
        host.write(FBCON_BIND, "1")
        if unbound_before == "returning":
            host.write(FBCON_BIND, "0")
        host.write("sys/bus/pci/drivers/bochs-drm/bind", BOOT_GPU)

    assert (host.fault, host.console_map("fb0")) == (None, (0,) * 63)
    assert host.read(FBCON_BIND) == "1"


def test_a_kernel_without_fb_devices_shows_no_framebuffer(machine: MachineFactory) -> None:
    host = machine(FEDORA)
    host.write(f"sys/bus/pci/devices/{BOOT_GPU}/driver/unbind", BOOT_GPU)
    host.write("sys/bus/pci/drivers/bochs-drm/bind", BOOT_GPU)

    nodes = [name for name in host.list("dev") if name.startswith("fb")]
    assert (nodes, host.list("sys/class/graphics")) == ([], ("fbcon",))
    assert not host.exists("proc/fb")
    assert FEDORA.consoles == DUMMY_AND_FBCON
