"""Where the host's consoles go while a GPU is away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import Crash, FakeHost, FakeLibvirt
from tests.trust.crowd import address, sixteen_gpus
from vfio_console_hook.actions.console_moves import LeaveFramebuffers, MapConsoles
from vfio_console_hook.actions.consoles import ShowConsoles, bind_unnoticed
from vfio_console_hook.claims import directory
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import ClaimError, LostError, RefusedError
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import console

BOOT_GPU, SECOND = "0000:03:00.0", "0000:13:00.0"  # of the machine "two-amd"
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
VM = Domain("win11", UUID, (Hostdev(BOOT_GPU, True, "hostdev", 0),))


def vm(number: int) -> Domain:
    """The VM that has the GPU of that number of sixteen_gpus()."""
    uuid = f"00000000-0000-4000-8000-{number:012x}"
    return Domain(f"vm{number}", uuid, (Hostdev(address(number), True, "hostdev", 0),))


def moves(host: FakeHost, keep_console: str) -> list[str]:
    """The framebuffers that the plan moves consoles to."""
    settings = Config(keep_console=keep_console, apu="allow", holders=Holders(wait_s=0))
    _, steps = events.look(host, VM, settings)
    return [step.do.fb for step in steps if isinstance(step.do, MapConsoles)]


@pytest.mark.parametrize(
    ("keep_console", "to"), [("auto", ["fb1"]), (SECOND, ["fb1"]), ("never", [])]
)
def test_the_consoles_move_where_keep_console_says(
    machine: MachineFactory, keep_console: str, to: list[str]
) -> None:
    assert moves(machine("two-amd"), keep_console) == to


@pytest.mark.parametrize(
    ("place", "text", "hint"),
    [
        (
            BOOT_GPU,
            f"`keep_console` names {BOOT_GPU}, which goes to the VM itself",
            "name a GPU that stays, or set `keep_console: auto`",
        ),
        (
            "0000:14:00.0",
            "`keep_console` names 0000:14:00.0, which has no framebuffer for the consoles",
            "load the driver of that GPU, or set `keep_console: auto`",
        ),
    ],
)
def test_a_gpu_in_keep_console_that_cannot_show_the_consoles_is_refused(
    machine: MachineFactory, place: str, text: str, hint: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        moves(machine("two-amd"), place)

    assert (caught.value.text, caught.value.hint) == (text, hint)


def test_a_framebuffer_without_its_node_gets_the_consoles_when_the_other_gpu_has_left(
    machine: MachineFactory,
) -> None:
    host = machine("two-amd")
    host.tree.remove("dev/fb1")

    _, steps = events.look(host, VM, Config(keep_console=SECOND, apu="allow", holders=Holders(0)))

    assert [step.do for step in steps if step.stage == "fbcon"] == [LeaveFramebuffers()]


def test_consoles_that_cannot_be_moved_back_are_reported_with_a_remedy(
    machine: MachineFactory,
) -> None:
    host = machine("two-amd")
    for path in ("dev/fb1", "sys/class/graphics/fb1"):
        host.tree.remove(path)
    # A BIOS machine whose vgacon is gone: no (S) driver (Linux vt.c, vt_bind).
    for name, driver in (("vtcon0", "(M) frame buffer device"), ("vtcon1", "(M) dummy device")):
        host.tree.put(f"sys/class/vtconsole/{name}/name", driver)
    host.tree.put("sys/class/vtconsole/vtcon0/bind", "0")
    host.tree.put("sys/class/vtconsole/vtcon1/bind", "1")
    host.tree.put("ioctl/con2fbmap", "1-63 0")

    with pytest.raises(LostError) as caught:
        ShowConsoles(0).apply(host)

    assert (caught.value.text, caught.value.hint) == (
        "cannot move the consoles to fb0 now: this kernel moves them back only when a framebuffer"
        " appears",
        "set `keep_console: auto`, which moves the consoles before the GPU leaves",
    )


def test_consoles_that_the_kernel_has_dropped_are_shown_so_that_it_notices(
    machine: MachineFactory,
) -> None:
    host = machine(sixteen_gpus())
    host.tree.put("ioctl/con2fbmap", "1-63 1")
    # As in a race: nobody has moved the consoles before.
    host.write(f"sys/bus/pci/devices/{address(2)}/driver/unbind", address(2))
    dropped = console.dark(host)

    ShowConsoles(0, "fb0").apply(host)
    shown = host.console_map("fb0")
    host.write("sys/bus/platform/drivers/efi-framebuffer/unbind", "efi-framebuffer.0")

    assert (dropped, shown, host.fault) == (True, (0,) * 63, None)


class OtherVmTakes(FakeHost):
    """A machine on which another VM's hook takes SECOND as soon as consoles are moved there."""

    def map_console(self, fb: str, console: int, index: int) -> None:
        device = f"sys/bus/pci/devices/{SECOND}/driver"
        if self.exists(device):
            FakeHost(self.root).write(f"{device}/unbind", SECOND)
        super().map_console(fb, console, index)


def test_a_vm_starts_although_another_vm_takes_the_framebuffer_meanwhile(
    machine: MachineFactory,
) -> None:
    host = OtherVmTakes(machine("two-amd").root)
    log = Log(host, "win11")

    events.prepare(host, VM, Config(apu="allow", holders=Holders(wait_s=0)), log)
    driver = host.link_name(f"sys/bus/pci/devices/{BOOT_GPU}/driver")
    events.release(host, UUID, log)

    assert driver is None
    assert Claims(host).find(UUID) is None
    assert "warning: win11: prepare 0000:03:00.0: cannot move the consoles to fb1: it has just" in (
        host.read(SNAPSHOT_LOG) or ""
    )


def test_consoles_that_another_vm_has_moved_meanwhile_stay_there(
    machine: MachineFactory,
) -> None:
    class OtherVmMoves(FakeHost):
        def console_map(self, fb: str) -> tuple[int | None, ...] | None:
            self.tree.put("ioctl/con2fbmap", "1-63 1")
            return super().console_map(fb)

    host = OtherVmMoves(machine("two-amd").root)

    MapConsoles("fb0", (0,) * 63).apply(host)

    assert host.console_map("fb0") == (1,) * 63


def test_a_framebuffer_that_appears_while_they_are_mapped_gets_its_consoles(
    machine: MachineFactory,
) -> None:
    class ComesLate(FakeHost):
        looks = 0

        def list(self, path: str) -> tuple[str, ...]:
            self.looks += path == "sys/class/graphics"
            late = path == "sys/class/graphics" and self.looks <= 2
            return tuple(name for name in super().list(path) if not (late and name == "fb0"))

    host = ComesLate(machine("two-amd").root)
    host.tree.put("ioctl/con2fbmap", "1-63 1")

    MapConsoles("fb1", (0,) * 63).apply(host)

    assert host.console_map("fb1") == (0,) * 63


def drawn_by(host: FakeHost) -> str | None:
    """The GPU whose framebuffer has the first console: the numbers are those that are free."""
    (index, *_) = host.console_map(console.framebuffers(host)[0].name) or (None,)
    found = (one.pci for one in console.framebuffers(host) if one.index == index)
    return None if console.dark(host) else next(found, None)


@pytest.mark.parametrize("starts", [(1, 2), (2, 1)])
@pytest.mark.parametrize("ends", [(1, 2), (2, 1)])
def test_consoles_are_where_they_were_after_vms_that_overlap(
    machine: MachineFactory, starts: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    """The consoles leave the first GPU for the second, and that for the third."""
    host = machine(sixteen_gpus())
    libvirt = FakeLibvirt(host)
    before = drawn_by(host)
    for number in starts:
        events.prepare(host, vm(number), Config(holders=Holders(0)), Log(host, "win"))
        libvirt.detach(address(number))
    meanwhile = drawn_by(host)
    for number in ends:
        libvirt.reattach(address(number))
        events.release(host, vm(number).uuid, Log(host, "win"))

    assert (before, meanwhile, drawn_by(host)) == (address(1), address(3), before)
    assert "warning" not in (host.read(SNAPSHOT_LOG) or "")


class OtherVmComes(FakeHost):
    """A machine on which the hook of another VM makes its claim once this VM has looked."""

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        other = FakeHost(self.root)
        if Claims(other).find(vm(2).uuid) is None:
            run = Log(other, "vm2")
            events.prepare(other, vm(2), Config(holders=Holders(0)), run, run=lambda work: None)
        return super().console_map(fb)


def test_consoles_do_not_move_to_a_framebuffer_that_another_vm_takes(
    machine: MachineFactory,
) -> None:
    host = OtherVmComes(machine(sixteen_gpus()).root)

    events.prepare(host, vm(1), Config(holders=Holders(0)), Log(host, "vm1"))

    assert host.console_map("fb9") == (2,) * 63


class SecondVmComes(OtherVmTakes):
    """The same on a machine with two GPUs."""

    other = Domain("vm2", UUID[::-1], (Hostdev(SECOND, True, "hostdev", 0),))

    def map_console(self, fb: str, console: int, index: int) -> None:
        FakeHost.map_console(self, fb, console, index)

    def console_map(self, fb: str) -> tuple[int | None, ...] | None:
        rival = FakeHost(self.root)
        if Claims(rival).find(self.other.uuid) is None:
            run = Log(rival, "vm2")
            events.prepare(rival, self.other, Config(), run, run=lambda work: None)
        return super().console_map(fb)


def test_consoles_leave_all_framebuffers_if_the_other_gpu_leaves_too(
    machine: MachineFactory,
) -> None:
    host = SecondVmComes(machine("two-amd").root)
    config = Config(apu="allow", holders=Holders(0))

    events.prepare(host, VM, config, Log(host, "win11"))
    dark = console.dark(host)
    Claims(host).drop(Claims(host).find(SecondVmComes.other.uuid) or pytest.fail("no claim"))
    events.release(host, UUID, Log(host, "win11"))

    assert dark
    assert host.console_map("fb0") == (0,) * 63


def test_without_another_console_driver_they_must_not_stay_on_a_gpu_that_leaves(
    machine: MachineFactory,
) -> None:
    host = SecondVmComes(machine("two-amd").root)
    host.tree.remove("sys/class/vtconsole/vtcon0")

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, Config(apu="allow", holders=Holders(0)), Log(host, "win11"))

    assert caught.value.text == (
        "cannot move the consoles to fb1: another VM takes its GPU, and there is no other console"
        " driver: the kernel would crash"
    )
    assert Claims(host).find(UUID) is None


def test_a_bind_that_the_kernel_does_not_notice_is_written_down_first(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12", crash_before=3)
    with Claims(host).lock():
        LeaveFramebuffers().apply(host)
    host.tree.put("ioctl/con2fbmap", "1-63 0")

    with pytest.raises(Crash):
        ShowConsoles(0).apply(host)

    assert [path for _, path, _ in host.changes][1:] == ["dev/fb0"]
    assert bind_unnoticed(host)


def test_fbcon_that_was_bound_without_the_kernels_notice_is_taken_over_anew(
    machine: MachineFactory,
) -> None:
    """One framebuffer is left when the consoles are shown again; then two VMs in turn."""
    host = machine("two-amd")
    config, log = Config(apu="allow", holders=Holders(0)), Log(host, "x")
    libvirt = FakeLibvirt(host)
    second = Domain("vm2", UUID[::-1], (Hostdev(SECOND, True, "hostdev", 0),))
    never = replace(config, keep_console="never")
    events.prepare(host, VM, never, log)
    libvirt.detach(BOOT_GPU)
    with Claims(host).lock():
        ShowConsoles(0).apply(host)  # as a person does, or a hook in a race
    events.prepare(host, second, config, log)
    libvirt.detach(SECOND)
    for one, its in ((SECOND, second.uuid), (BOOT_GPU, UUID)):
        libvirt.reattach(one)
        events.release(host, its, log)

    assert host.fault is None
    assert not console.dark(host)


def test_a_vm_looks_only_when_no_other_one_places_the_consoles(
    machine: MachineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_LOCK_S", 0.0)
    host = machine("two-amd")
    with Claims(host).lock():
        pass  # the directory is made with the first claim

    with Claims(host).console_lock(), pytest.raises(ClaimError) as caught:
        events.prepare(host, VM, Config(apu="allow", holders=Holders(0)), Log(host, "win11"))

    assert caught.value.text == (
        "another process keeps the lock of the host's consoles, /run/vfio-console-hook/consoles"
    )
    assert host.changes == []
