"""The plan for each machine: its text, and the order of its steps."""

from __future__ import annotations

import contextlib
import importlib
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests import events
from tests.building import DUMMY_AND_FBCON, Machine
from tests.conftest import Golden, MachineFactory
from tests.fakehost import (
    Crash,
    FakeHost,
    FakeLibvirt,
    close_device,
    hold,
    kmscon,
    open_device,
    snapshot,
    systemd,
)
from tests.gate import ROOT
from tests.hosts import DISPLAY, VGA, firmware_on, lab, lab_gpu
from tests.libvirt_xml import domain_xml
from vfio_console_hook.actions.console_moves import MapConsoles, ReturnConsoles
from vfio_console_hook.actions.firmware import Decode
from vfio_console_hook.claims.step import Step
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.plan import text as plan_text
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.config.service import Service
from vfio_console_hook.config.settings import Config, Holders, Release
from vfio_console_hook.domain import Domain, Hostdev, parse
from vfio_console_hook.errors import HookError, LostError, RefusedError, StepError
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine.runfiles import RUN
from vfio_console_hook.stages import order

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
GPU, SECOND = "0000:01:00.0", "0000:02:00.0"
STAGES = order.NAMES
NOW = Config(holders=Holders(wait_s=0))


@dataclass(frozen=True)
class Plan:
    """A VM on a machine, and the golden text that holds its plan."""

    golden: str
    machine: str
    gpus: tuple[str, ...] = (GPU,)
    config: Config = Config()  # noqa: RUF009  (it is frozen)
    managed: bool = True
    lockdown: str = ""
    blacklist: bool = True
    desktop: bool = False
    take: bool = False
    kmscon: tuple[str, ...] = ()

    @property
    def domain(self) -> Domain:
        vm = parse(domain_xml(*self.gpus, managed=self.managed))
        return replace(vm, by_hand=True, bind_vfio=True) if self.take else vm


PLANS = (
    # nothing to do
    Plan("bmc-and-two-nvidia-on-vfio", "bmc-and-two-nvidia", ("0000:17:00.0",)),
    Plan("bmc-and-two-nvidia-on-nvidia", "bmc-and-two-nvidia", ("0000:65:00.0",)),
    Plan("laptop-3d-controller", "laptop-3d-controller"),
    Plan("intel-sriov-vf", "intel-sriov-vf", ("0000:00:02.1",)),
    # refused
    Plan("amd-strix-halo-0380", "amd-strix-halo-0380", ("0000:c3:00.0",)),
    Plan("amd-strix-halo-0380-native", "amd-strix-halo-0380", ("0000:c3:00.0",),
         Config(bootfb="native")),
    Plan("amd-strix-halo-0380-blacklist", "amd-strix-halo-0380-blacklist", ("0000:c3:00.0",)),
    Plan("intel-bootfb-no-driver", "intel-bootfb-no-driver", ("0000:00:02.0",)),
    Plan("iomem-without-root", "iomem-without-root"),
    Plan("nvidia-bootfb-bar3", "nvidia-bootfb-bar3"),
    Plan("nvidia-bootfb-bar3-native", "nvidia-bootfb-bar3", config=Config(bootfb="native")),
    Plan("nvidia-bootfb-bar3-rescan", "nvidia-bootfb-bar3", config=Config(bootfb="rescan")),
    Plan("simpledrm-0380-6.12", "simpledrm-0380-6.12"),
    Plan("amd-single-unmanaged", "amd-single", ("0000:09:00.0",), managed=False),
    Plan("efifb-6.12-unmanaged", "efifb-6.12", managed=False),
    Plan("group-not-viable-efifb-5.18", "group-not-viable-efifb-5.18", ("0000:09:00.0",)),
    Plan("group-not-viable-efifb-6.1", "group-not-viable-efifb-6.1", ("0000:09:00.0",)),
    Plan("group-not-viable-nvidia", "group-not-viable-nvidia", ("0000:86:00.0",)),
    # the firmware's console
    Plan("nvidia-efifb-bar1", "nvidia-efifb-bar1"),
    Plan("nvidia-efifb-bar3", "nvidia-efifb-bar3", ("0000:42:00.0",)),
    Plan("fb0-held-by-plymouth", "fb0-held-by-plymouth", ("0000:00:02.0",)),
    Plan("efifb-5.10", "efifb-5.10"),
    Plan("efifb-6.1", "efifb-6.1"),
    Plan("efifb-6.1-load", "efifb-6.1", config=Config(release=Release("load"))),
    Plan("efifb-6.9", "efifb-6.9"),
    Plan("efifb-6.12", "efifb-6.12"),
    Plan("efifb-6.12-locked-down", "efifb-6.12", lockdown="none [integrity] confidentiality"),
    Plan("efifb-0380-6.12", "efifb-0380-6.12"),
    Plan("efifb-0380-6.12-locked-down", "efifb-0380-6.12",
         lockdown="none integrity [confidentiality]"),
    Plan("vesafb-5.10", "vesafb-5.10", ("0000:00:05.0",)),
    Plan("efidrm-7", "efidrm-7"),
    Plan("simpledrm-0300-6.12", "simpledrm-0300-6.12"),
    Plan("simpledrm-0380-6.17", "simpledrm-0380-6.17"),
    Plan("simpledrm-0380-6.17-refuse", "simpledrm-0380-6.17", config=Config(bootfb="refuse")),
    Plan("simpledrm-0380-6.12-native", "simpledrm-0380-6.12", config=Config(bootfb="native"),
         blacklist=False),
    Plan("simpledrm-0380-6.12-rescan", "simpledrm-0380-6.12", config=Config(bootfb="rescan")),
    Plan("amd-strix-halo-0380-rescan", "amd-strix-halo-0380", ("0000:c3:00.0",),
         Config(bootfb="rescan")),
    # beside a native driver that has left it alone
    Plan("nvidia-beside-efifb-5.15", "nvidia-beside-efifb-5.15", ("0000:07:00.0",)),
    Plan("nvidia-beside-efifb-6.3", "nvidia-beside-efifb-6.3", ("0000:07:00.0",)),
    Plan("nvidia-beside-simpledrm-5.19", "nvidia-beside-simpledrm-5.19", ("0000:07:00.0",)),
    Plan("nvidia-beside-simpledrm-6.11", "nvidia-beside-simpledrm-6.11", ("0000:07:00.0",)),
    # coreboot's
    Plan("coreboot-igpu", "coreboot-igpu", ("0000:00:02.0",)),
    Plan("coreboot-igpu-simpledrm", "coreboot-igpu-simpledrm", ("0000:00:02.0",)),
    Plan("coreboot-corebootdrm-7", "coreboot-corebootdrm-7", ("0000:00:02.0",)),
    # text
    Plan("vgacon-5.10", "vgacon-5.10"),
    # native drivers
    Plan("native-6.1", "native-6.1"),
    Plan("amd-single", "amd-single", ("0000:09:00.0",)),
    Plan("intel-sriov-pf", "intel-sriov-vf", ("0000:00:02.0",)),
    Plan("bmc-and-two-nvidia-bmc", "bmc-and-two-nvidia", ("0000:03:00.0",)),
    Plan("nvidia-single-desktop", "nvidia-single-desktop"),
    Plan("two-nvidia-boot-gpu", "two-nvidia"),
    Plan("two-nvidia-second", "two-nvidia", (SECOND,)),
    Plan("two-nvidia-both", "two-nvidia", (GPU, SECOND)),
    Plan("mi300x-class-1200", "mi300x-class-1200", ("0000:c6:00.0",)),
    Plan("amd-apu", "amd-apu", ("0000:13:00.0",)),
    Plan("amd-apu-allow", "amd-apu", ("0000:13:00.0",), Config(apu="allow")),
    Plan("amd-dgpu-and-apu", "amd-dgpu-and-apu", ("0000:03:00.0",)),
    Plan("radeon-6.1", "radeon-6.1"),
    Plan("radeon-6.12", "radeon-6.12"),
    Plan("intel-single", "intel-single", ("0000:00:02.0",)),
    Plan("arc-sound-in-another-slot", "arc-sound-in-another-slot",
         ("0000:03:00.0", "0000:04:00.0")),
    Plan("amd-apu-sound", "amd-apu", ("0000:13:00.0", "0000:13:00.1"), Config(apu="allow")),
    # a desktop, and a GPU taken by hand
    Plan("native-6.1-desktop", "native-6.1",
         config=Config(services=(Service("display-manager"), Service("lightdn"))), desktop=True),
    Plan("native-6.1-kmscon", "native-6.1", kmscon=("tty1",)),
    Plan("two-amd-boot-gpu-kmscon", "two-amd", ("0000:03:00.0",), kmscon=("tty1", "tty2")),
    Plan("native-6.1-take-vfio", "native-6.1", take=True),
    Plan("nvidia-card-take-vfio", "nvidia-beside-efifb-5.15",
         tuple(f"0000:07:00.{function}" for function in range(4)), take=True),
    # two GPUs, one leaves and takes the firmware console of the other one along
    Plan("second-vga-refuse", "lab-second-vga-never", ("0000:00:06.0",)),
    Plan("second-vga-never", "lab-second-vga-never", ("0000:00:06.0",),
         Config(keep_console="never")),
    Plan("bmc-efifb-6.2", "bmc-efifb-6.2", (SECOND,)),
    # two GPUs, one leaves
    Plan("boot-vga-not-shadowed-6.8", "boot-vga-not-shadowed-6.8"),
    Plan("boot-vga-not-shadowed-6.8-second", "boot-vga-not-shadowed-6.8", ("0000:00:02.0",)),
    Plan("intel-and-nvidia", "intel-and-nvidia"),
    Plan("intel-and-nvidia-boot-gpu", "intel-and-nvidia", ("0000:00:02.0",)),
    Plan("two-amd-boot-gpu", "two-amd", ("0000:03:00.0",)),
    Plan("two-amd-boot-gpu-keep-console-never", "two-amd", ("0000:03:00.0",),
         Config(keep_console="never")),
    Plan("two-amd-second", "two-amd", ("0000:13:00.0",)),
    Plan("two-gpus-lit-second-6.12", "two-gpus-lit-second-6.12", (SECOND,)),
    Plan("two-gpus-lit-second-6.12-boot-gpu", "two-gpus-lit-second-6.12"),
    # two GPUs without /dev/fbN
    Plan("fedora-two-gpus", "fedora-two-gpus"),
    Plan("fedora-two-gpus-keep-console-never", "fedora-two-gpus",
         config=Config(keep_console="never")),
    Plan("fedora-two-gpus-second", "fedora-two-gpus", (SECOND,)),
    Plan("fedora-two-gpus-bios", "fedora-two-gpus-bios"),
    Plan("fedora-two-gpus-quiet", "fedora-two-gpus-quiet"),
    # two GPUs, both leave
    Plan("two-in-one-6.12", "two-in-one-6.12", (GPU, SECOND)),
    Plan("two-in-one-6.12-second-first", "two-in-one-6.12", (SECOND, GPU)),
    Plan("two-gpus-6.12-both", "two-gpus-6.12", (GPU, SECOND)),
    Plan("two-amd-both", "two-amd", ("0000:03:00.0", "0000:13:00.0")),
)  # fmt: skip


def domain(gpus: tuple[str, ...], *, managed: bool = True) -> Domain:
    return Domain("win11", UUID, tuple(Hostdev(one, managed, "hostdev", 0) for one in gpus))


def steps(host: FakeHost, *gpus: str, config: Config = NOW) -> tuple[Step, ...]:
    return events.look(host, domain(gpus), config)[1]


def refusal(host: FakeHost, *gpus: str, config: Config = NOW) -> str:
    """The error text and hint of prepare; the machine must be unchanged."""
    before = snapshot(host)
    with pytest.raises(HookError) as caught:
        events.prepare(host, domain(gpus), config, Log(host, "win11"))
    assert (snapshot(host), host.changes) == (before, [])
    return str(caught.value)


def plan_printed(host: FakeHost, vm: Domain, config: Config) -> str:
    """The plan as the command prints it, or the error with its hint."""
    try:
        made = plan.plan_for(host, vm, config)
    except HookError as error:
        return f"{error.text}\nhint: {error.hint}\n"
    return plan_text.text(made, Terminal())


def prepared(case: Plan, machine: MachineFactory) -> FakeHost:
    host = machine(case.machine)
    if case.lockdown:
        host.tree.put("sys/kernel/security/lockdown", case.lockdown)
    if not case.blacklist:
        host.tree.remove("fake/blacklist")
    if case.kmscon:
        kmscon.install(host.tree, *case.kmscon)
    if case.desktop:
        systemd.install(host.tree)
        gdm = systemd.Unit(active="active", aliases=("display-manager.service",))
        systemd.put(host.tree, "gdm.service", gdm)
    return host


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case.golden)
def test_the_plan_has_its_golden_text(machine: MachineFactory, golden: Golden, case: Plan) -> None:
    host = prepared(case, machine)

    text = plan_printed(host, case.domain, case.config)

    golden(f"plan-{case.golden}", text)


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case.golden)
def test_planning_changes_nothing(machine: MachineFactory, case: Plan) -> None:
    host = prepared(case, machine)
    before = snapshot(host)

    plan_printed(host, case.domain, case.config)

    assert (snapshot(host), host.changes, host.list(RUN)) == (before, [], ())


# -- each stage is complete


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_module_of_its_name_with_a_plan(name: str) -> None:
    stage: Any = importlib.import_module(f"vfio_console_hook.stages.{name}")

    assert (stage.NAME, callable(stage.plan), bool(stage.__doc__)) == (name, True, True)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_a_step_on_some_machine(machine: MachineFactory, name: str) -> None:
    golden_texts = [
        (ROOT / "tests/golden" / f"plan-{case.golden}.txt").read_text(encoding="utf-8")
        for case in PLANS
    ]

    assert any(re.search(rf"^ ?\d+\. {name}: ", text, re.MULTILINE) for text in golden_texts)


@pytest.mark.parametrize("name", Config().stages)
def test_a_stage_can_be_left_out_as_default_yaml_says(name: str) -> None:
    lines = (ROOT / "config/default.yaml").read_text(encoding="utf-8").splitlines()

    assert len([line for line in lines if line == f"#  - {name}"]) == 1
    assert len([line for line in lines if line.startswith(f"#   {name} ")]) == 1


# -- order


def lit_first_and_native_second() -> Machine:
    """efifb on the first GPU with the consoles, bochs-drm on the second; Linux 6.12."""
    first = replace(lab_gpu(pci_class=VGA), native="")
    second = replace(lab_gpu(SECOND, base=0xD0000000, bound=True), boot_vga=False, shadow=False)
    return Machine(
        "lit-first", (), "6.12", (first, second), (firmware_on(first, "efifb", "6.12"),),
        consoles=DUMMY_AND_FBCON, console_fb=0,
    )  # fmt: skip


def test_all_63_consoles_are_moved_before_anything_is_unbound(
    machine: MachineFactory,
) -> None:
    host = machine(lit_first_and_native_second())

    events.prepare(host, domain((GPU,)), NOW, Log(host, "win11"))

    assert [(kind, path, text) for kind, path, text in host.changes] == [
        *(("ioctl", "dev/fb1", f"console {number} to fb1") for number in range(1, 64)),
        ("write", "sys/bus/platform/drivers/efi-framebuffer/unbind", "efi-framebuffer.0"),
        ("poke", f"sys/bus/pci/devices/{GPU}/config", "0x4 0100"),
    ]


def test_the_console_stays_visible_while_the_vm_has_the_other_gpu(machine: MachineFactory) -> None:
    host = machine(lit_first_and_native_second())
    vm = domain((GPU,))

    events.prepare(host, vm, NOW, Log(host, "win11"))
    FakeLibvirt(host).detach(GPU)
    events.start(host, UUID, Log(host, "win11"))

    assert host.read("ioctl/con2fbmap") == "1-63 1"
    assert [host.read(f"sys/class/vtconsole/vtcon{n}/bind") for n in (0, 1)] == ["0", "1"]


def test_each_stage_covers_all_gpus_of_the_vm_before_the_next_one(machine: MachineFactory) -> None:
    first = replace(lab_gpu(), native="")
    host = machine(
        Machine(
            "both", (), "5.10", (first, lab_gpu(SECOND, base=0xD0000000, bound=True)),
            (firmware_on(first, "efifb", "5.10"),), console_fb=0,
        )
    )  # fmt: skip

    planned = steps(host, SECOND, GPU)

    assert list(dict.fromkeys(step.stage for step in planned)) == [
        "preflight", "fbcon", "native", "fbdev",
    ]  # fmt: skip
    # One wait is for both.
    assert [step.gpu for step in planned if step.stage == "preflight"] == [SECOND]


def test_consoles_do_not_move_to_a_gpu_that_another_vm_holds(machine: MachineFactory) -> None:
    host = machine("two-amd")
    other = Domain(
        "b", "11111111-2222-4333-8444-555555555555", (Hostdev("0000:13:00.0", True, "hostdev", 0),)
    )
    events.prepare(host, other, NOW, Log(host, "b"))

    planned = steps(host, "0000:03:00.0")

    assert [step for step in planned if isinstance(step.do, MapConsoles)] == []


def test_consoles_do_not_move_to_a_framebuffer_without_a_node(machine: MachineFactory) -> None:
    host = machine("two-amd")
    host.tree.remove("dev/fb1")

    planned = steps(host, "0000:03:00.0")

    assert [step for step in planned if isinstance(step.do, MapConsoles)] == []


def test_consoles_that_are_on_another_gpu_are_left_alone(machine: MachineFactory) -> None:
    planned = steps(machine("two-amd"), "0000:13:00.0")

    assert [step.stage for step in planned] == ["preflight", "native"]


def test_each_console_is_moved_back_to_its_framebuffer(machine: MachineFactory) -> None:
    host = machine("two-amd")
    host.tree.put("ioctl/con2fbmap", "1-6 0\n7-7 1\n8-63 0")

    (mapped,) = (one for one in steps(host, "0000:03:00.0") if isinstance(one.do, MapConsoles))

    moved = tuple(number for number in range(1, 64) if number != 7)
    assert mapped.undo == ReturnConsoles("0000:03:00.0", "0000:13:00.0", moved, 10)


# -- locked down


@pytest.mark.parametrize(
    ("state", "decode", "lost"),
    [("[none] integrity confidentiality", 1, False), ("none [integrity] confidentiality", 0, True),
     ("none integrity [confidentiality]", 0, True)],
)  # fmt: skip
def test_under_lockdown_the_console_is_lost_and_the_plan_reports_it(
    machine: MachineFactory, state: str, decode: int, lost: bool
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("sys/kernel/security/lockdown", state)

    leaving, planned = events.look(host, domain((GPU,)), NOW)

    assert len([step for step in planned if isinstance(step.do, Decode)]) == decode
    # tests/golden/plan-efifb-6.12-locked-down.txt has the whole sentence.
    sentence = outlook(leaving, planned)
    assert ("will not come back before a reboot" in sentence, "lockdown" in sentence) == (
        lost,
        lost,
    )


def test_under_lockdown_the_vm_still_gets_its_memory(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    host.tree.put("sys/kernel/security/lockdown", "none [integrity] confidentiality")

    events.prepare(host, domain((GPU,)), NOW, Log(host, "win11"))
    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    events.start(host, UUID, Log(host, "win11"))
    libvirt.reattach(GPU)
    events.release(host, UUID, Log(host, "win11"))

    assert "before a reboot: efi-framebuffer.0 is gone" in (host.read(SNAPSHOT_LOG) or "")
    assert host.list("run/vfio-console-hook/claims") == ()


# -- the dangerous cases


def test_a_gpu_of_nvidia_is_refused_while_one_of_its_nodes_is_held(
    machine: MachineFactory,
) -> None:
    host = machine("bmc-and-two-nvidia")
    host.tree.put("dev/nvidiactl", "")
    hold(host, "dev/nvidiactl", pid=701, command="nvidia-persiste",
         unit="nvidia-persistenced.service")  # fmt: skip

    reason = refusal(host, "0000:65:00.0")

    assert "in use by nvidia-persiste (701)" in reason
    assert "/dev/nvidiactl" in reason
    assert "services: [nvidia-persistenced]" in reason


NATIVE = replace(NOW, bootfb="native")
RESCAN = replace(NOW, bootfb="rescan")


def simpledrm_with(module: str) -> Machine:
    """A GPU of class 0380 with BOOTFB, whose native driver is in this module."""
    made = lab("6.12", "simpledrm", DISPLAY)
    words = f"driver={module} module={module} fb={module}drmfb"
    return replace(made, pci=(replace(made.pci[0], native=words),))


@pytest.mark.parametrize("module", ["nvidia", "nvidia_drm", "radeon"])
def test_a_driver_that_may_hang_is_never_bound_to_free_bootfb(
    machine: MachineFactory, module: str
) -> None:
    reason, _, hint = refusal(machine(simpledrm_with(module)), GPU, config=NATIVE).partition("hint")

    assert reason.startswith(f"`bootfb: native` is not safe on {GPU}: unbinding {module} ")
    assert ("bootfb: rescan" in hint, "initcall_blacklist=sysfb_init" in hint) == (True, True)


def test_the_driver_of_an_apu_is_never_bound_to_free_bootfb(machine: MachineFactory) -> None:
    host = machine("amd-strix-halo-0380")
    host.tree.remove("fake/blacklist")
    for function, vendor in (("1", "0x1002"), ("2", "0x1022")):
        path = f"sys/devices/pci0000:00/0000:00:08.1/0000:c3:00.{function}"
        host.tree.put(f"{path}/vendor", vendor)
        host.tree.link(f"sys/bus/pci/devices/0000:c3:00.{function}", path)

    assert refusal(host, "0000:c3:00.0", config=NATIVE).startswith(
        "`bootfb: native` is not safe on 0000:c3:00.0: it is part of an AMD processor"
    )


def test_a_driver_that_the_administrator_blacklisted_is_never_bound(
    machine: MachineFactory,
) -> None:
    # tests/golden/plan-amd-strix-halo-0380-native.txt has the whole sentence.
    reason = refusal(machine("amd-strix-halo-0380"), "0000:c3:00.0", config=NATIVE)

    assert "amdgpu is blacklisted" in reason


def test_without_a_driver_for_the_gpu_bootfb_native_is_refused(machine: MachineFactory) -> None:
    made = lab("6.12", "simpledrm", DISPLAY)
    made = replace(made, pci=(replace(made.pci[0], native=""),))

    assert refusal(machine(made), GPU, config=NATIVE).startswith(
        "`bootfb: native` needs a driver for 0000:01:00.0: no driver for it is installed"
    )


def test_bootfb_native_is_refused_when_the_kernel_would_not_find_the_framebuffer(
    machine: MachineFactory,
) -> None:
    host = machine(replace(lab("6.1", "simpledrm", DISPLAY, bound=False), extra=()))

    assert refusal(host, GPU, config=NATIVE).startswith(
        "`bootfb: native` cannot free BOOTFB of 0000:01:00.0: no firmware driver is bound to"
        " simple-framebuffer.0, so the kernel does not find it"
    )


@pytest.mark.parametrize("series", ["5.10", "5.15"])
def test_bootfb_native_is_refused_on_5_x_where_bootfb_stays(
    machine: MachineFactory, series: str
) -> None:
    host = machine(replace(lab(series, "simplefb", DISPLAY), extra=()))

    assert refusal(host, GPU, config=NATIVE) == (
        "`bootfb: native` cannot free BOOTFB of 0000:01:00.0: Linux before 5.18 does not unregister"
        " simple-framebuffer.0 for a DRM driver (hint: try to boot with"
        " initcall_blacklist=sysfb_init)"
    )


@pytest.mark.parametrize(
    ("series", "also"), [("5.10", ""), ("6.1", "set `bootfb: native` for this VM, or ")]
)
def test_a_rescan_that_leaves_the_kernel_a_dangling_pointer_is_refused(
    machine: MachineFactory, series: str, also: str
) -> None:
    host = machine(lab(series, "simplefb", DISPLAY))

    assert refusal(host, GPU, config=RESCAN) == (
        "`bootfb: rescan` is not safe before Linux 6.9: simple-framebuffer.0 is not below"
        f" 0000:01:00.0 in sysfs (hint: {also}try to boot with initcall_blacklist=sysfb_init)"
    )


@pytest.mark.parametrize(("driver", "series"), [("simplefb", "5.10"), ("simpledrm", "5.15")])
def test_bootfb_of_a_vga_card_is_refused_on_kernels_that_do_not_remove_consoles(
    machine: MachineFactory, driver: str, series: str
) -> None:
    assert refusal(machine(lab(series, driver)), GPU) == (
        "BOOTFB of simple-framebuffer.0 holds memory of 0000:01:00.0, and `bootfb: aperture` cannot"
        " free it: Linux before 5.18 does not unregister simple-framebuffer.0 for a DRM driver"
        " (hint: try to boot with initcall_blacklist=sysfb_init)"
    )


def test_release_completes_a_rescan_that_was_interrupted(
    machine: MachineFactory,
) -> None:
    whole = machine("simpledrm-0380-6.12")
    events.prepare(whole, domain((GPU,)), RESCAN, Log(whole, "win11"))
    rescan = [path for _, path, _ in whole.changes].index("sys/bus/pci/rescan") + 1
    host = machine("simpledrm-0380-6.12", crash_before=rescan)

    with pytest.raises(Crash):
        events.prepare(host, domain((GPU,)), RESCAN, Log(host, "win11"))
    halfway = host.exists(f"sys/bus/pci/devices/{GPU}")
    events.release(FakeHost(host.root), UUID, Log(host, "win11"))

    assert (halfway, host.exists(f"sys/bus/pci/devices/{GPU}")) == (False, True)
    assert host.list("run/vfio-console-hook/claims") == ()


@pytest.mark.parametrize("crash_before", [0, 1, 2, 3, 4, 5])
def test_a_gpu_that_was_on_vfio_pci_is_there_again_after_a_rescan(
    machine: MachineFactory, crash_before: int
) -> None:
    host = machine("simpledrm-0380-6.12")
    FakeLibvirt(host).detach(GPU)  # as by `driverctl set-override`
    blocked = [open_device(host, GPU)]
    close_device(host, GPU)

    with contextlib.suppress(Crash):
        prepared = FakeHost(host.root, crash_before=crash_before)
        events.prepare(prepared, domain((GPU,)), RESCAN, Log(host, "win11"))
    if not crash_before:
        blocked.append(open_device(host, GPU))
        close_device(host, GPU)
    assert blocked == [[0], []][: len(blocked)]
    events.release(FakeHost(host.root), UUID, Log(host, "win11"))

    assert host.link_name(f"sys/bus/pci/devices/{GPU}/driver") == "vfio-pci"


def test_bootfb_native_is_refused_for_a_gpu_on_vfio_pci(machine: MachineFactory) -> None:
    host = machine("simpledrm-0380-6.12")
    FakeLibvirt(host).detach(GPU)

    assert refusal(FakeHost(host.root), GPU, config=NATIVE) == (
        "`bootfb: native` cannot free BOOTFB of 0000:01:00.0: it is already bound to vfio-pci"
        " (hint: set `bootfb: rescan` for this VM, or try to boot with"
        " initcall_blacklist=sysfb_init)"
    )


@pytest.mark.parametrize("name", ["efifb-6.12", "efifb-5.10", "simpledrm-0380-6.12"])
def test_the_claim_of_a_gpu_that_was_removed_is_released(
    machine: MachineFactory, name: str
) -> None:
    host = machine(name)
    events.prepare(host, domain((GPU,)), RESCAN, Log(host, "win11"))
    host.write(f"sys/bus/pci/devices/{GPU}/remove", "1")
    host.tree.remove("fake/removed")  # no rescan finds it

    with pytest.raises(LostError) as caught:
        events.release(host, UUID, Log(host, "win11"))

    reported = caught.value.text + (host.read(SNAPSHOT_LOG) or "")
    assert f"{GPU} is no longer on the PCI bus" in reported
    assert host.list("run/vfio-console-hook/claims") == ()


def test_after_a_rescan_nothing_is_bound_at_the_old_address(machine: MachineFactory) -> None:
    host = machine("simpledrm-0380-6.12")
    events.prepare(host, domain((GPU,)), RESCAN, Log(host, "win11"))

    events.release(host, UUID, Log(host, "win11"))

    # An unbind before the rescan, then nothing that names the firmware's framebuffer.
    assert [text for _, _, text in host.changes if "framebuffer" in text] == [
        "simple-framebuffer.0"
    ]
    assert host.list("run/vfio-console-hook/claims") == ()


def test_a_gpu_that_does_not_decode_its_memory_gets_no_firmware_driver(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-5.10")
    events.prepare(host, domain((GPU,)), NOW, Log(host, "win11"))
    host.tree.poke(f"sys/bus/pci/devices/{GPU}/config", 4, b"\0\0")

    with pytest.raises(StepError) as caught:
        events.release(host, UUID, Log(host, "win11"))

    assert caught.value.text == (
        "efi-framebuffer.0 cannot be bound: 0000:01:00.0 does not decode its memory (by hand:"
        " echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/bind)"
    )
    assert host.list("run/vfio-console-hook/claims") == (UUID,)


def test_a_gpu_that_a_native_driver_took_meanwhile_gets_no_firmware_driver(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-5.10")
    events.prepare(host, domain((GPU,)), NOW, Log(host, "win11"))
    host.load_module("bochs")

    events.release(host, UUID, Log(host, "win11"))

    assert "efi-framebuffer.0 stays unbound: bochs-drm drives 0000:01:00.0 now" in (
        host.read(SNAPSHOT_LOG) or ""
    )
    assert host.list("run/vfio-console-hook/claims") == ()


def test_a_gpu_that_is_still_on_vfio_gets_no_firmware_driver(machine: MachineFactory) -> None:
    host = machine("efifb-0380-6.12")
    events.prepare(host, domain((GPU,)), NOW, Log(host, "win11"))
    FakeLibvirt(host).detach(GPU)

    with pytest.raises(StepError, match=f"{GPU} is still on vfio-pci"):
        events.release(host, UUID, Log(host, "win11"))

    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is None
    assert host.list("run/vfio-console-hook/claims") == (UUID,)


def text_boot_with_native_second(kernel: str) -> Machine:
    """BIOS text boot on the first card, which nothing drives; fbcon runs on the second."""
    first = replace(lab_gpu(), native="")
    second = replace(lab_gpu(SECOND, base=0xD0000000, bound=True), boot_vga=False, shadow=False)
    return Machine(
        "text-and-native", (), kernel, (first, second),
        consoles=("0 (S) VGA+", "1 (M) frame buffer device"), console_fb=0,
    )  # fmt: skip


@pytest.mark.parametrize("order", [(GPU, SECOND), (SECOND, GPU)], ids=["text-first", "text-last"])
def test_a_vm_that_takes_the_text_card_and_the_last_framebuffer_does_not_crash_the_kernel(
    machine: MachineFactory, order: tuple[str, str]
) -> None:
    host = machine(text_boot_with_native_second("6.1"))

    try:
        events.prepare(host, domain(order), NOW, Log(host, "win11"))
    except RefusedError:
        return
    libvirt = FakeLibvirt(host)
    for address in order:
        libvirt.detach(address)

    assert host.fault is None


def test_taking_the_text_card_leaves_a_console_driver_beside_fbcon(
    machine: MachineFactory,
) -> None:
    host = machine(text_boot_with_native_second("6.1"))

    events.prepare(host, domain((GPU,)), NOW, Log(host, "win11"))
    FakeLibvirt(host).detach(GPU)
    events.start(host, UUID, Log(host, "win11"))

    assert len(host.list("sys/class/vtconsole")) == 2


def test_without_the_fbcon_stage_the_kernel_does_not_crash(
    machine: MachineFactory,
) -> None:
    host = machine("native-6.1")
    host.tree.remove("sys/class/vtconsole/vtcon0")

    with pytest.raises(RefusedError):
        steps(host, GPU, config=replace(NOW, stages=("drm_aperture", "fbdev", "vgacon")))


def test_the_plan_predicts_no_console_on_a_gpu_that_stays_on_vfio(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-0380-6.12")
    host.load_module("vfio-pci")
    host.write(f"sys/bus/pci/devices/{GPU}/driver_override", "vfio-pci")
    host.write("sys/bus/pci/drivers_probe", GPU)
    leaving, planned = events.look(host, domain((GPU,)), NOW)
    predicted = outlook(leaving, planned)

    events.prepare(host, domain((GPU,)), NOW, Log(host, "win11"))
    events.start(host, UUID, Log(host, "win11"))
    events.release(host, UUID, Log(host, "win11"))

    back = host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is not None
    assert (predicted == "the firmware console comes back on efi-framebuffer.0") is back


@pytest.mark.parametrize(
    ("name", "address"),
    [("two-amd", "0000:13:00.0"), ("intel-and-nvidia", GPU), ("two-gpus-6.12", SECOND)],
)
def test_the_plan_predicts_no_console_on_a_gpu_without_the_consoles(
    machine: MachineFactory, name: str, address: str
) -> None:
    leaving, planned = events.look(machine(name), domain((address,)), NOW)

    assert outlook(leaving, planned) == (
        "there is nothing to give back: no console of the host is on it"
    )
