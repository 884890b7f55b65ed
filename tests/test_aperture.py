"""`bootfb: aperture`: BOOTFB goes with a probe of vmwgfx, or the VM is refused with the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import Crash, FakeHost, FakeLibvirt, hold, open_device, snapshot
from tests.hosts import DISPLAY, VGA, lab
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import parse
from vfio_console_hook.errors import HookError
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine.iomem import reserved_ranges

GPU = "0000:01:00.0"
DEVICE = f"sys/bus/pci/devices/{GPU}"
MACHINE = "simpledrm-0380-6.17"
NOW = Config(holders=Holders(wait_s=0))
Arrange = Callable[[FakeHost], None]


def prepare(host: FakeHost, config: Config = NOW) -> None:
    events.prepare(host, parse(domain_xml(GPU)), config, Log(host, "win11"))


def release(host: FakeHost) -> None:
    events.release(host, UUID, Log(host, "win11"))


def verdict(host: FakeHost, config: Config = NOW) -> str:
    """What plan says, once prepare has done the same: "start", or the refusal and its hint."""
    made = plan.plan_for(host, parse(domain_xml(GPU)), config)
    before = snapshot(host)
    try:
        prepare(host, config)
    except HookError as error:
        assert (made.verdict, made.hint) == (plan.REFUSE, error.hint)
        assert made.reason.startswith(error.text)
        assert (snapshot(host), host.changes) == (before, [])
        return str(error)
    assert made.verdict == plan.START
    return made.verdict


def bootfb(host: FakeHost) -> bool:
    return any(name == "BOOTFB" for _, name in reserved_ranges(host))


def state(host: FakeHost) -> tuple[str | None, ...]:
    """What a probe must leave as it was: driver, override, power, count, and the module."""
    read = (host.read(f"{DEVICE}/{name}") for name in ("driver_override", "power_state", "enable"))
    loaded = host.read("sys/module/vmwgfx/initstate")
    return (host.link_name(f"{DEVICE}/driver"), *read, loaded)


def override(text: str) -> Arrange:
    return lambda host: host.tree.put(f"{DEVICE}/driver_override", text)


def on_cmdline(words: str) -> Arrange:
    return lambda host: host.tree.put("proc/cmdline", words)


def loaded(host: FakeHost) -> None:
    host.load_module("vmwgfx")


def beside_an_svga_device(host: FakeHost) -> None:
    """A VMware SVGA II in another slot, without a driver."""
    second = "0000:02:00.0"
    path = f"sys/devices/pci0000:00/{second}"
    for name, text in (("class", "0x030000"), ("vendor", "0x15ad"), ("device", "0x0405")):
        host.tree.put(f"{path}/{name}", text)
    host.tree.put(f"{path}/resource", "\n".join(["0x0 0x0 0x0"] * 13))
    host.tree.link(f"sys/bus/pci/devices/{second}", path)


def beside_a_driven_svga_device(host: FakeHost) -> None:
    beside_an_svga_device(host)
    loaded(host)
    host.tree.link("sys/devices/pci0000:00/0000:02:00.0/driver", "sys/bus/pci/drivers/vmwgfx")


def built_in(host: FakeHost) -> None:
    """The driver is there, and /sys/module/vmwgfx has no initstate."""
    host.load_module("vmwgfx")
    host.tree.remove("sys/module/vmwgfx/initstate")
    host.tree.remove("fake/modules")


def as_it_is(host: FakeHost) -> None:
    pass


WORKS = {
    "not loaded": as_it_is,
    "loaded": loaded,
    "built in": built_in,
    "beside a device of its own": beside_a_driven_svga_device,
    "an override beforehand": override("vfio-pci"),
    "another module blacklisted": on_cmdline("module_blacklist=amdgpu nomodeset.x=1"),
}


@pytest.mark.parametrize("arrange", WORKS.values(), ids=WORKS)
def test_bootfb_is_freed_and_nothing_else_changes(
    machine: MachineFactory, arrange: Arrange
) -> None:
    host = machine(MACHINE)
    arrange(host)
    before = state(host)

    prepare(host)

    assert (bootfb(host), host.list("sys/bus/platform/devices"), state(host)) == (False, (), before)
    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    assert open_device(host, GPU) == []
    assert host.fault is None


@pytest.mark.parametrize("arrange", WORKS.values(), ids=WORKS)
def test_a_crash_at_any_point_leaves_no_trace_but_the_lost_console(
    machine: MachineFactory, arrange: Arrange
) -> None:
    whole = machine(MACHINE)
    arrange(whole)
    before = state(whole)
    prepare(whole)

    for crash_before in range(1, len(whole.changes) + 1):
        host = machine(MACHINE)
        arrange(host)
        with contextlib.suppress(Crash):
            prepare(FakeHost(host.root, crash_before=crash_before))
        release(FakeHost(host.root))

        assert state(host) == before
        assert host.list("run/vfio-console-hook/claims") == ()
        assert bootfb(host) is bool(host.list("sys/bus/platform/devices"))


@pytest.mark.parametrize("refuse", [1, 2, 3, 4, 5])
def test_a_refused_write_is_undone_and_the_vm_does_not_start(
    machine: MachineFactory, refuse: int
) -> None:
    host = machine(MACHINE, refuse=refuse)
    before = state(host)

    with contextlib.suppress(HookError):
        prepare(host)

    # The last one is `modprobe -r`: then release tries it again.
    assert state(host)[:4] == before[:4]
    release(FakeHost(host.root))
    assert state(host) == before
    assert host.list("run/vfio-console-hook/claims") == ()


def test_the_loss_is_announced_before_and_reported_after(machine: MachineFactory) -> None:
    host = machine(MACHINE)
    made = plan.plan_for(host, parse(domain_xml(GPU)), NOW)
    prepare(host)

    release(FakeHost(host.root))

    assert made.after == (
        "this host's firmware console will not come back before a reboot: the kernel removes"
        " simple-framebuffer.0 for good; bochs, which is installed, would show a console if it is"
        " loaded then (`release: {native: load}`)"
    )
    assert (
        "the firmware console will not come back before a reboot: simple-framebuffer.0 is gone"
        in (host.read(SNAPSHOT_LOG) or "")
    )


def svga(host: FakeHost) -> None:
    host.tree.put(f"{DEVICE}/vendor", "0x15ad")


def on_vfio(host: FakeHost) -> None:
    FakeLibvirt(host).detach(GPU)


def no_module(host: FakeHost) -> None:
    host.tree.remove("fake/modules")


def no_bochs(host: FakeHost) -> None:
    host.tree.put("fake/blacklist", "bochs")


def unbound(host: FakeHost) -> None:
    host.write("sys/bus/platform/drivers/simple-framebuffer/unbind", "simple-framebuffer.0")


def unbound_and_not_decoding(host: FakeHost) -> None:
    unbound(host)
    host.poke(f"{DEVICE}/config", 4, b"\0\0")


@pytest.mark.parametrize(
    ("arrange", "why"),
    [
        (no_module, "no module vmwgfx was found for this kernel"),
        (lambda host: host.tree.put("fake/blacklist", "vmwgfx"), "vmwgfx is blacklisted"),
        (lambda host: host.tree.put("fake/install", "vmwgfx /bin/false"), "vmwgfx is blacklisted"),
        (on_cmdline("module-blacklist=x,vmwgfx"), "vmwgfx is blacklisted"),
        (on_cmdline("ro nomodeset"), "nomodeset on the kernel command line keeps DRM drivers from"),
        (lambda host: host.tree.put("proc/sys/kernel/modules_disabled", "1"), "no more modules"),
        (svga, f"{GPU} is a GPU of VMware, which vmwgfx would drive"),
        (beside_an_svga_device, "loading vmwgfx would bind it to 0000:02:00.0 too"),
        (on_vfio, "it is already bound to vfio-pci"),
        (unbound_and_not_decoding, "no firmware driver is bound to simple-framebuffer.0, so"),
    ],
)
def test_it_is_refused_with_the_reason(
    machine: MachineFactory, arrange: Arrange, why: str
) -> None:
    host = machine(MACHINE)
    arrange(host)

    reason = verdict(FakeHost(host.root))

    assert reason.startswith(
        f"BOOTFB of simple-framebuffer.0 holds memory of {GPU}, and `bootfb: aperture` cannot free"
        " it: "
    )
    assert why in reason


@pytest.mark.parametrize("kernel", ["5.18.19", "5.19.17", "6.1", "6.9.3", "6.12", "7.3"])
@pytest.mark.parametrize("pci_class", [VGA, DISPLAY])
def test_no_configuration_is_needed_on_any_kernel_that_removes_the_device(
    machine: MachineFactory, kernel: str, pci_class: int
) -> None:
    host = machine(replace(lab(kernel, "simpledrm", pci_class), extra=("f fake/modules = vmwgfx",)))

    started = verdict(host)
    FakeLibvirt(host).detach(GPU)

    assert (started, open_device(host, GPU)) == (plan.START, [])


def test_a_3d_controller_is_freed_too(machine: MachineFactory) -> None:
    made = lab("6.8.0-31-generic", "simpledrm", DISPLAY)
    gpu = replace(made.pci[0], pci_class=0x0302)
    host = machine(replace(made, pci=(gpu,), extra=("f fake/modules = vmwgfx",)))

    started = verdict(host)
    FakeLibvirt(host).detach(GPU)

    assert (started, open_device(host, GPU)) == (plan.START, [])


@pytest.mark.parametrize(("blacklist", "works"), [("amdgpu", True), ("amdgpu vmwgfx", False)])
def test_strix_halo_on_a_kernel_with_vmwgfx(
    machine: MachineFactory, blacklist: str, works: bool
) -> None:
    host = machine("amd-strix-halo-0380-blacklist")
    host.tree.put("fake/modules", "vmwgfx")
    host.tree.put("fake/blacklist", blacklist)

    made = plan.plan_for(host, parse(domain_xml("0000:c3:00.0")), NOW)

    assert (made.verdict == plan.START) is works
    assert "initcall_blacklist=sysfb_init on the kernel command line" in made.hint or works
    assert not {"native", "boot"} & {word.strip("`") for word in made.hint.split()}


@pytest.mark.parametrize("kernel", ["5.10", "5.15.100", "5.17.15"])
def test_earlier_kernels_are_refused(machine: MachineFactory, kernel: str) -> None:
    driver = "simplefb" if kernel == "5.10" else "simpledrm"
    host = machine(replace(lab(kernel, driver, DISPLAY), extra=("f fake/modules = vmwgfx",)))

    assert "Linux before 5.18 does not unregister simple-framebuffer.0" in verdict(host)


def test_a_distribution_that_took_the_helper_back_has_it(machine: MachineFactory) -> None:
    made = replace(lab("5.14.0-503.el9", "simpledrm", DISPLAY), extra=("f fake/modules = vmwgfx",))
    host = machine(replace(made, symbols=("aperture_remove_conflicting_pci_devices",)))

    assert verdict(host) == plan.START


@pytest.mark.parametrize(("kernel", "works"), [("6.1", False), ("6.9.3", False), ("6.12", True)])
def test_a_device_without_a_driver_is_found_only_by_its_place_in_sysfs(
    machine: MachineFactory, kernel: str, works: bool
) -> None:
    made = lab(kernel, "simpledrm", DISPLAY, bound=False)
    host = machine(replace(made, extra=("f fake/modules = vmwgfx",)))

    assert (verdict(host) == plan.START) is works


def test_a_process_that_has_the_framebuffer_of_an_fbdev_driver_open_refuses_it(
    machine: MachineFactory,
) -> None:
    host = machine(replace(lab("6.1", "simplefb", DISPLAY), extra=("f fake/modules = vmwgfx",)))
    hold(host, "dev/fb0", pid=4711, command="reader")

    assert "reader (4711)" in verdict(host)


def test_an_open_node_of_simpledrm_does_not_matter(machine: MachineFactory) -> None:
    host = machine(MACHINE)
    hold(host, "dev/fb0", pid=4711, command="reader")

    assert verdict(host) == plan.START


@pytest.mark.parametrize(
    ("arrange", "named", "unnamed"),
    [
        (as_it_is, ("aperture", "native", "rescan"), ()),
        (no_module, ("native", "rescan"), ("aperture",)),
        (no_bochs, ("aperture", "rescan"), ("native",)),
        (on_cmdline("nomodeset"), ("rescan",), ("aperture", "native")),
        (unbound_and_not_decoding, ("rescan",), ("aperture", "native")),
    ],
)
def test_a_refusal_names_only_what_would_work_here(
    machine: MachineFactory, arrange: Arrange, named: tuple[str, ...], unnamed: tuple[str, ...]
) -> None:
    host = machine(MACHINE)
    arrange(host)

    hint = verdict(FakeHost(host.root), replace(NOW, bootfb="refuse")).partition("hint: ")[2]

    assert [f"`bootfb: {one}`" in hint for one in named] == [True] * len(named)
    assert not any(f"`bootfb: {one}`" in hint for one in unnamed)
    for policy in named:
        again = machine(MACHINE)
        arrange(again)
        assert verdict(FakeHost(again.root), replace(NOW, bootfb=policy)) == plan.START


@pytest.mark.parametrize(
    ("words", "advised"),
    [
        ("quiet", True),
        ("initcall_blacklist=sysfb_init", False),
        ("initcall_blacklist=a,sysfb_init", False),
    ],
)
def test_an_option_that_is_on_the_command_line_is_not_advised(
    machine: MachineFactory, words: str, advised: bool
) -> None:
    host = machine(MACHINE)
    on_cmdline(words)(host)

    hint = verdict(host, replace(NOW, bootfb="refuse")).partition("hint: ")[2]

    assert ("try to boot with initcall_blacklist=sysfb_init" in hint) is advised
    assert ("on the kernel command line has no effect" in hint) is not advised
