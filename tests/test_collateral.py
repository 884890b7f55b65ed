"""GPUs that stay and would lose their firmware console together with another one's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import events
from tests.building import Machine
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, snapshot
from tests.hosts import DISPLAY, firmware_on, lab_gpu
from vfio_console_hook.claims.claim import Claim
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HostError, RefusedError
from vfio_console_hook.log import Log
from vfio_console_hook.machine import console

HOSTS, GUESTS = "0000:01:00.0", "0000:02:00.0"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
VM = Domain("win11", UUID, (Hostdev(GUESTS, True, "hostdev", 0),))
GONE = (
    "the console of another GPU will not come back before a reboot: vfio-pci of this kernel"
    f" removes efi-framebuffer.0 when it binds to {GUESTS}"
)


def lit_first(kernel: str, *, shadow: bool, module: bool = True) -> Machine:
    """efifb on the host's GPU; a second VGA card without a driver goes to the VM."""
    first = lab_gpu()
    second = replace(lab_gpu(GUESTS, base=0xD0000000), boot_vga=False, shadow=shadow)
    if not module:
        first, second = replace(first, native=""), replace(second, native="")
    return Machine("lit-first", (), kernel, (first, second), (firmware_on(first, "efifb", kernel),))


def config(keep_console: str = "auto", host_driver: str = "leave") -> Config:
    return Config(keep_console=keep_console, host_driver=host_driver, holders=Holders(wait_s=0))


def losses(host: FakeHost, settings: Config) -> list[str]:
    return [step.loses for step in events.look(host, VM, settings)[1] if step.loses]


@pytest.mark.parametrize(
    ("kernel", "shadow"),
    [
        ("6.1", True),  # Linux 6.1.47 to 6.8, Debian's name for it
        ("6.1.30-arch1-1", False),  # 6.0.3 to 6.1.46 take any
        ("6.0.12", False),
        ("6.1.47", True),
    ],
)
def test_a_vm_that_takes_the_console_of_a_gpu_that_stays_is_refused(
    machine: MachineFactory, kernel: str, shadow: bool
) -> None:
    host = machine(lit_first(kernel, shadow=shadow))
    before = snapshot(host)

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, config(), Log(host, "win11"))

    assert (caught.value.text, caught.value.hint) == (
        f"the host's console on {HOSTS} would be gone until a reboot: vfio-pci of this kernel"
        f" removes efi-framebuffer.0 when it binds to {GUESTS}",
        f"load bochs for {HOSTS} at boot or by `host_driver: load`, or set"
        " `keep_console: never` to give that console up",
    )
    assert (snapshot(host), host.changes) == (before, [])


@pytest.mark.parametrize(
    ("kernel", "shadow"),
    [("6.1", False), ("6.1.47", False), ("5.10", True), ("6.12", True), ("7.3", True)],
)
def test_a_vm_that_leaves_the_console_of_the_other_gpu_alone_is_not_refused(
    machine: MachineFactory, kernel: str, shadow: bool
) -> None:
    host = machine(lit_first(kernel, shadow=shadow))

    events.prepare(host, VM, config(), Log(host, "win11"))
    FakeLibvirt(host).detach(GUESTS)

    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") == "efi-framebuffer"


def test_the_plan_reports_the_console_that_keep_console_never_gives_up(
    machine: MachineFactory,
) -> None:
    host = machine(lit_first("6.1", shadow=True))

    assert losses(host, config("never")) == [GONE]


def test_the_plan_reports_the_loss_of_a_console_whose_gpu_another_vm_has(
    machine: MachineFactory,
) -> None:
    host = machine(lit_first("6.1", shadow=True))
    other = Domain("other", OTHER_UUID, (Hostdev(HOSTS, True, "hostdev", 0),))
    events.prepare(host, other, config(), Log(host, "other"))
    back = host.exists("sys/bus/platform/devices/efi-framebuffer.0")

    lost = losses(host, config())
    events.prepare(host, VM, config(), Log(host, "win11"))
    FakeLibvirt(host).detach(GUESTS)

    assert (back, lost) == (True, [GONE])
    assert not host.exists("sys/bus/platform/devices/efi-framebuffer.0")


def test_the_kernel_removes_the_console_that_the_plan_reports_as_lost(
    machine: MachineFactory,
) -> None:
    host = machine(lit_first("6.1", shadow=True))

    events.prepare(host, VM, config("never"), Log(host, "win11"))
    FakeLibvirt(host).detach(GUESTS)

    assert not host.exists("sys/bus/platform/devices/efi-framebuffer.0")


def test_a_driver_loaded_on_request_keeps_the_console_on_the_gpu_that_stays(
    machine: MachineFactory,
) -> None:
    host = machine(lit_first("6.1", shadow=True))
    host.tree.remove("fake/blacklist")
    settings = config(host_driver="load")

    lost = losses(host, settings)
    events.prepare(host, VM, settings, Log(host, "win11"))
    taken = host.link_name(f"sys/bus/pci/devices/{GUESTS}/driver")
    libvirt = FakeLibvirt(host)
    libvirt.detach(GUESTS)
    events.start(host, UUID, Log(host, "win11"))
    libvirt.reattach(GUESTS)
    events.release(host, UUID, Log(host, "win11"))

    assert lost == [
        f"the firmware console of {HOSTS} does not come back; bochs shows the console instead, and"
        f" later binds to {GUESTS} too"
    ]
    assert (taken, host.read(f"sys/bus/pci/devices/{GUESTS}/driver_override")) == (None, "(null)")
    for address in (HOSTS, GUESTS):
        assert host.link_name(f"sys/bus/pci/devices/{address}/driver") == "bochs-drm"
    assert "framebuffer console on fb0 (bochs-drmdrmfb)" in console.current_display(host)


def test_no_driver_is_loaded_for_a_gpu_that_another_vm_is_taking(machine: MachineFactory) -> None:
    host = machine(lit_first("6.1", shadow=True))
    host.tree.remove("fake/blacklist")
    claims = Claims(host)
    boot = host.boot_id
    with claims.lock():  # its hook waits until no process has the GPU open
        claims.make(Claim(host, "b", OTHER_UUID, boot, (HOSTS,), host.now()), [])

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, config(host_driver="load"), Log(host, "win11"))

    assert caught.value.text.startswith(f"the host's console on {HOSTS} would be gone until a")
    assert host.changes == []


def test_a_driver_for_the_host_does_not_take_the_gpu_that_leaves_for_longer_than_needed(
    machine: MachineFactory,
) -> None:
    host = machine(lit_first("6.1", shadow=True))
    host.tree.remove("fake/blacklist")
    before = snapshot(host)
    host = FakeHost(host.root, refuse=2)  # the modprobe, once the other GPU is reserved

    with pytest.raises(HostError):
        events.prepare(host, VM, config(host_driver="load"), Log(host, "win11"))

    assert [kind for kind, _, _ in host.changes] == ["write", "run", "write"]
    assert snapshot(host) == before


@pytest.mark.parametrize(
    ("module", "why"),
    [(True, "bochs is blacklisted"), (False, "no driver for it is installed")],
)
def test_a_driver_that_cannot_be_loaded_is_in_the_refusal(
    machine: MachineFactory, module: bool, why: str
) -> None:
    host = machine(lit_first("6.1", shadow=True, module=module))
    host.tree.put("fake/blacklist", "bochs")

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, config(host_driver="load"), Log(host, "win11"))

    assert caught.value.text == (
        f"`host_driver: load` cannot save the console on {HOSTS}, which efi-framebuffer.0 shows"
        f" and vfio-pci would remove with {GUESTS}: {why}"
    )


def test_a_modprobe_of_busybox_is_not_taken_for_a_missing_driver(machine: MachineFactory) -> None:
    # busybox has no --resolve-alias, so it fails as kmod does for a device without a module.
    host = machine(lit_first("6.1", shadow=True, module=False))
    host.tree.text_link("sbin/modprobe", "/bin/busybox")

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, config(host_driver="load"), Log(host, "win11"))

    assert caught.value.text.endswith("busybox's modprobe does not tell which driver is for it,"
                                      " kmod's does")  # fmt: skip


def test_the_plan_reports_that_one_gpu_removes_the_console_of_the_other_that_leaves_too(
    machine: MachineFactory,
) -> None:
    lit, second = lab_gpu(pci_class=DISPLAY), lab_gpu(GUESTS, base=0xD0000000)
    two = Machine("two", (), "6.1", (lit, second), (firmware_on(lit, "efifb", "6.1"),))
    host = machine(two)
    vm = Domain("win11", UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in (HOSTS, GUESTS)))
    lost = [step.loses for step in events.look(host, vm, config())[1] if step.loses]
    events.prepare(host, vm, config(), Log(host, "win11"))

    for address in (HOSTS, GUESTS):
        FakeLibvirt(host).detach(address)

    assert host.real("sys/bus/platform/devices/efi-framebuffer.0") is None
    assert lost == [
        "this host's console will not come back before a reboot: vfio-pci of this kernel removes"
        " efi-framebuffer.0 for good"
    ]
