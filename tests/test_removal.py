"""What vfio-pci removes by itself: what the plan says beforehand is what happens, by release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests import events
from tests.building import Machine
from tests.conftest import MachineFactory
from tests.doctoring import put_vm, system_of
from tests.fakehost import FakeLibvirt
from tests.hosts import DISPLAY, firmware_on, lab, lab_gpu, text_mode, unshadowed_boot
from vfio_console_hook.commands.doctor.consoles import console_after
from vfio_console_hook.commands.doctor.finding import PASS, WARN
from vfio_console_hook.commands.status import overview
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import removal
from vfio_console_hook.machine.gpu import gpus_among
from vfio_console_hook.machine.removal import Removed

BOOT, SECOND = "0000:01:00.0", "0000:00:02.0"
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
NOW = Config(keep_console="never", holders=Holders(wait_s=0))
YES, MAY, NO = Removed.YES, Removed.MAY, Removed.NO

# (release, name of the rule of a vendor's kernel, symbols beside those of the series,
# whether the firmware device is below its GPU though the release does not say so)
Kernel = tuple[str, str, tuple[str, ...], bool]
APERTURE = ("aperture_remove_conflicting_pci_devices", "sysfb_disable")
HELPER = "__aperture_remove_legacy_vga_devices"
EL9 = (*APERTURE, HELPER)

RELEASES: tuple[Kernel, ...] = tuple(
    (release, "", (), False)
    for release in (
        "5.10", "5.19.17", "6.0.0", "6.0.3", "6.1", "6.1.46", "6.1.47", "6.2.16-20-pve", "6.3.7",
        "6.4.0", "6.5.0", "6.6.87", "6.8.0-31-generic", "6.9.0", "6.9.12-200.fc40.x86_64",
        "6.10.7", "6.10.8", "6.11.11", "6.12", "7.3",
    )
)  # fmt: skip
VENDORS: tuple[Kernel, ...] = (
    ("6.1.0-vendor", "any", (), False),
    ("6.1.0-vendor", "shadowed", (), False),
    ("6.10.0-vendor", "default", (), False),
    ("6.10.0-vendor", "owner", (), False),
    ("5.14.0-427.13.1.el9_4.x86_64", "default", EL9, False),
    ("5.14.0-570.12.1.el9_6.x86_64", "owner", EL9, True),
    ("5.14.0-570.12.1.el9_6.x86_64", "default", EL9, True),
    ("5.14.21-vendor", "any", APERTURE, False),
    ("5.14.21-vendor", "shadowed", APERTURE, False),
)  # fmt: skip


def vm(*addresses: str) -> Domain:
    return Domain("win11", UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in addresses))


def on(kernel: Kernel, machine: Machine) -> Machine:
    """A machine with this kernel; it was made for the kernel's release."""
    _, rule, symbols, below = kernel
    firmware = machine.firmware
    if below:
        firmware = tuple(replace(one, below=machine.pci[0].path) for one in firmware)
    extra = (f"f fake/sysfb_rule = {rule}",) if rule else ()
    return replace(machine, symbols=symbols, firmware=firmware, extra=(*machine.extra, *extra))


def shadowed_boot(kernel: str) -> Machine:
    """The boot GPU is lit and shadowed, the second is neither."""
    found = unshadowed_boot(kernel)
    boot, second = found.pci
    return replace(found, pci=(replace(boot, shadow=True), replace(second, shadow=False)))


def nothing_shadowed(kernel: str) -> Machine:
    """As on arm64."""
    found = unshadowed_boot(kernel)
    return replace(found, pci=(found.pci[0], replace(found.pci[1], shadow=False)))


def boot_vga_elsewhere(kernel: str) -> Machine:
    """The firmware lit the first GPU, and the kernel's default VGA device is the second."""
    found = unshadowed_boot(kernel)
    boot, second = found.pci
    return replace(found, pci=(replace(boot, boot_vga=False), replace(second, boot_vga=True)))


def lit_display(kernel: str) -> Machine:
    """The firmware lit a GPU of class 0380, with a `boot_vga` as patches would give it."""
    found = unshadowed_boot(kernel, pci_class=DISPLAY)
    return replace(found, pci=(replace(found.pci[0], boot_vga=True), found.pci[1]))


def simpledrm(kernel: str) -> Machine:
    """BOOTFB, which vfio-pci has to remove."""
    return unshadowed_boot(kernel, "simpledrm")


MACHINES: tuple[Callable[[str], Machine], ...] = (
    unshadowed_boot, shadowed_boot, nothing_shadowed, boot_vga_elsewhere, lit_display, simpledrm,
)  # fmt: skip
LEAVING = ((BOOT,), (SECOND,), (SECOND, BOOT))


def announced(losses: list[str]) -> Removed:
    """What the losses of a plan say of the firmware's console."""
    text = "; ".join(losses)
    assert ("not come back before a reboot" in text) == bool(losses), text
    return YES if "will not come back" in text else MAY if losses else NO


@pytest.mark.parametrize("leaving", LEAVING, ids="+".join)
@pytest.mark.parametrize("make", MACHINES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("kernel", (*RELEASES, *VENDORS), ids=lambda one: f"{one[0]}-{one[1]}")
def test_what_the_plan_announces_is_what_vfio_pci_removes(
    machine: MachineFactory,
    kernel: Kernel,
    make: Callable[[str], Machine],
    leaving: tuple[str, ...],
) -> None:
    built = make(kernel[0])
    host = machine(on(kernel, built))
    device = f"sys/bus/platform/devices/{built.firmware[0].device}"
    try:
        steps = events.look(host, vm(*leaving), NOW)[1]
    except RefusedError as error:
        assert (make, "BOOTFB" in error.text) == (simpledrm, True)
        assert kernel[0] in ("5.10", "5.19.17")  # nothing frees it there
        return
    said = announced([step.loses for step in steps if step.loses])

    events.prepare(host, vm(*leaving), NOW, Log(host, "win11"))
    libvirt = FakeLibvirt(host)
    for address in leaving:
        libvirt.detach(address)
    gone = not host.exists(device)
    for address in leaving:
        libvirt.reattach(address)
    events.release(host, UUID, Log(host, "win11"))

    assert said in ((YES, MAY) if gone else (NO, MAY))
    assert said is not MAY or kernel in VENDORS or kernel[0][:4] in ("6.0.", "6.4.")
    assert (host.link_name(f"{device}/driver") is None) is gone


# The rule, for the boot GPU and for the second, of the machine unshadowed_boot; "may" where
# neither the release nor the machine shows which rule the kernel has. Where the device is
# below its GPU, decoding is on.
RULE: dict[Kernel, tuple[Removed, Removed]] = {
    ("5.10", "", (), False): (NO, NO),
    ("5.19.17", "", (), False): (NO, NO),
    ("6.0.2", "", (), False): (MAY, MAY),
    ("6.0.12", "", (), False): (YES, YES),
    ("6.1", "", (), False): (NO, YES),  # Debian's 6.1.176
    ("6.1.0-vendor", "", (), False): (MAY, YES),
    ("6.1.46", "", (), False): (YES, YES),
    ("6.1.47", "", (), False): (NO, YES),
    ("6.2.16-20-pve", "", (), False): (YES, YES),
    ("6.3.7", "", (), False): (YES, YES),
    ("6.4.16", "", (), False): (MAY, YES),
    ("6.4.16-vendor", "", (HELPER,), False): (YES, NO),
    ("6.5.0", "", (), False): (YES, NO),
    ("6.6.87", "", (), False): (YES, NO),
    ("6.8.0-90-generic", "", (), False): (YES, NO),
    ("6.9.0", "", (), False): (YES, NO),
    ("6.10.7", "", (), False): (YES, NO),
    ("6.10.8", "", (), False): (YES, NO),
    ("7.3", "", (), False): (YES, NO),
    ("5.14.0-427.13.1.el9_4.x86_64", "", EL9, False): (YES, NO),
    ("5.14.0-570.12.1.el9_6.x86_64", "", EL9, True): (YES, NO),
    ("5.14.21-vendor", "", APERTURE, False): (MAY, MAY),
}


@pytest.mark.parametrize("kernel", RULE, ids=lambda one: f"{one[0]}-{len(one[2])}")
def test_the_rule_follows_the_release_and_what_the_machine_shows(
    machine: MachineFactory, kernel: Kernel
) -> None:
    host = machine(on(kernel, unshadowed_boot(kernel[0])))
    rule = removal.of_kernel(host)
    boot, second = gpus_among(host, (BOOT, SECOND))
    [device] = boot.firmware

    found = tuple(rule.of_device(host, one, device, bound=False) for one in (boot, second))

    assert found == RULE[kernel]


@pytest.mark.parametrize(
    ("kernel", "removed"),
    [("6.9.0", YES), ("6.10.7", YES), ("6.10.8", NO), ("6.12", NO), ("6.10.0-vendor", MAY)],
)
def test_switching_decoding_off_saves_the_device_only_where_the_kernel_asks_for_its_gpu(
    machine: MachineFactory, kernel: str, removed: Removed
) -> None:
    host = machine(unshadowed_boot(kernel))
    [boot] = gpus_among(host, (BOOT,))

    found = removal.of_kernel(host).of_device(
        host, boot, boot.firmware[0], bound=False, decodes=False
    )
    steps = events.look(host, vm(BOOT), NOW)[1]

    assert found is removed
    assert any("memory decoding" in step.why for step in steps) is (removed is not YES)


def test_a_bound_device_goes_with_its_own_gpu_only(machine: MachineFactory) -> None:
    host = machine(unshadowed_boot("6.12"))
    rule = removal.of_kernel(host)
    boot, second = gpus_among(host, (BOOT, SECOND))
    [device] = boot.firmware

    found = [
        rule.of_device(host, one, device, bound=True, decodes=False) for one in (boot, second)
    ]

    assert found == [YES, NO]


def test_coreboots_device_is_not_sysfbs(machine: MachineFactory) -> None:
    host = machine(unshadowed_boot("6.3.7"))
    [boot] = gpus_among(host, (BOOT,))
    rule = removal.of_kernel(host)

    found = [
        rule.of_sysfb(host, boot, name, None, placed=True)
        for name in ("coreboot-framebuffer.0", "efi-framebuffer.0")
    ]

    assert found == [NO, YES]


@pytest.mark.parametrize(
    ("kernel", "shadow", "removed"),
    [("5.10", True, NO), ("6.1", False, NO), ("6.1", True, YES), ("6.1.30", False, YES),
     ("6.8.1", False, YES), ("6.12", False, YES), ("6.1.0-vendor", False, MAY)],
)  # fmt: skip
def test_the_text_console_goes_with_the_default_vga_device(
    machine: MachineFactory, kernel: str, shadow: bool, removed: Removed
) -> None:
    text = text_mode(kernel)
    host = machine(replace(text, pci=(replace(text.pci[0], shadow=shadow),)))

    found = removal.of_kernel(host).of_text(host, gpus_among(host, (BOOT,))[0])

    assert found is removed


@pytest.mark.parametrize("rule", ["any", "shadowed"])
def test_a_console_that_may_be_gone_comes_back_if_it_is_not(
    machine: MachineFactory, rule: str
) -> None:
    gpu = replace(lab_gpu(), shadow=False, native="")
    single = Machine(
        "may", (), "6.1.0-vendor", (gpu,), (firmware_on(gpu, "efifb", "6.1"),),
        extra=(f"f fake/sysfb_rule = {rule}",),
    )  # fmt: skip
    host = machine(single)
    losses = [step.loses for step in events.look(host, vm(BOOT), NOW)[1] if step.loses]

    events.prepare(host, vm(BOOT), NOW, Log(host, "win11"))
    libvirt = FakeLibvirt(host)
    libvirt.detach(BOOT)
    libvirt.reattach(BOOT)
    events.release(host, UUID, Log(host, "win11"))

    log = host.read(SNAPSHOT_LOG) or ""
    assert losses == [
        "this host's console may not come back before a reboot: nothing shows whether vfio-pci of"
        " this kernel removes efi-framebuffer.0"
    ]
    assert (host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is None) == (
        rule == "any"
    )
    assert ("efi-framebuffer.0 is gone" in log) == (rule == "any")


@pytest.mark.parametrize(("rule", "level", "said"), [
    ("any", "warning", "the firmware console on efi-framebuffer.0 will not come back before a"
     " reboot: vfio-pci has removed it"),
    ("shadowed", "info", "vfio-pci has left efi-framebuffer.0 in place"),
])  # fmt: skip
def test_release_reports_what_became_of_a_console_of_another_gpu_that_may_be_gone(
    machine: MachineFactory, rule: str, level: str, said: str
) -> None:
    host = machine(on(("6.1.0-vendor", rule, (), False), nothing_shadowed("6.1.0-vendor")))
    losses = [step.loses for step in events.look(host, vm(SECOND), NOW)[1] if step.loses]

    events.prepare(host, vm(SECOND), NOW, Log(host, "win11"))
    libvirt = FakeLibvirt(host)
    libvirt.detach(SECOND)
    libvirt.reattach(SECOND)
    events.release(host, UUID, Log(host, "win11"))

    released = [
        line.partition(f"release {SECOND}: ")
        for line in (host.read(SNAPSHOT_LOG) or "").splitlines()
        if "release 0" in line
    ]
    assert losses == [
        "the console of another GPU may not come back before a reboot: nothing shows whether"
        f" vfio-pci of this kernel removes efi-framebuffer.0 when it binds to {SECOND}"
    ]
    assert (f"{level}: win11: ", said) in [(head, text) for head, _, text in released]
    assert host.list("run/vfio-console-hook/claims") == ()


def test_a_console_of_another_gpu_that_may_go_is_refused(machine: MachineFactory) -> None:
    host = machine(on(("6.1.0-vendor", "shadowed", (), False), nothing_shadowed("6.1.0-vendor")))

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, vm(SECOND), replace(NOW, keep_console="auto"), Log(host, "win11"))

    assert (caught.value.text, caught.value.hint) == (
        f"the host's console on {BOOT} may be gone until a reboot: nothing shows whether vfio-pci"
        f" of this kernel removes efi-framebuffer.0 when it binds to {SECOND}",
        "set `keep_console: never` to give that console up",
    )
    assert host.changes == []


GONE = "this host's console will not come back before a reboot: vfio-pci of this kernel removes"
SIMPLE = "this host's firmware console will not come back before a reboot: vfio-pci removes"
BACK = "the firmware console comes back on efi-framebuffer.0"


@pytest.mark.parametrize(
    ("kernel", "driver", "start"),
    [
        ("6.0.12", "efifb", GONE), ("6.1", "efifb", GONE), ("6.2.16-20-pve", "efifb", GONE),
        ("6.4.16", "efifb", GONE), ("6.6.87", "efifb", GONE), ("6.8.0-31-generic", "efifb", GONE),
        ("6.9.0", "efifb", GONE), ("6.10.7", "efifb", GONE), ("6.10.8", "efifb", BACK),
        ("6.12", "efifb", BACK), ("5.10", "efifb", BACK),
        ("6.0.12", "simpledrm", SIMPLE), ("6.1", "simpledrm", SIMPLE),
        ("6.6.87", "simpledrm", SIMPLE), ("6.8.0-31-generic", "simpledrm", SIMPLE),
        ("6.9.0", "simpledrm", SIMPLE), ("6.10.8", "simpledrm", SIMPLE),
        ("6.12", "simpledrm", SIMPLE), ("7.3", "simpledrm", SIMPLE),
    ],
)  # fmt: skip
def test_a_console_that_will_not_come_back_is_reported_before_it_is_lost(
    machine: MachineFactory, kernel: str, driver: str, start: str
) -> None:
    host = machine(replace(lab(kernel, driver), extra=()))
    put_vm(host, "win11", BOOT)

    planned = outlook(*events.look(host, vm(BOOT), NOW))
    [checked] = console_after(system_of(host))
    events.prepare(host, vm(BOOT), NOW, Log(host, "win11"))
    [held] = overview.current(host).claims
    FakeLibvirt(host).detach(BOOT)

    assert (planned[: len(start)], checked.text[: len(start)]) == (start, start)
    assert checked.level == (PASS if start is BACK else WARN)
    assert [one[: len(start)] for one in (*held.lost, *held.losing)] == (
        [] if start is BACK else [start]
    )
    assert (host.real(f"sys/bus/platform/devices/{lab(kernel, driver).firmware[0].device}")
            is None) == (start is not BACK)  # fmt: skip
