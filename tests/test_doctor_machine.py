"""The checks of doctor about the machine: IOMMU, kernel, consoles, command line, claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import events
from tests.conftest import Golden, MachineFactory
from tests.doctoring import (
    GPU,
    OTHER_UUID,
    SECOND,
    Arrange,
    Case,
    assert_found,
    both,
    complete_snapshot,
    findings,
    missing_in_snapshot,
    nothing,
    put,
    put_vm,
    sentences,
    system_of,
    win11,
)
from tests.fakehost import FakeHost
from tests.libvirt_xml import UUID
from vfio_console_hook.actions.native import ReturnNative
from vfio_console_hook.claims import losses
from vfio_console_hook.claims.step import Step
from vfio_console_hook.commands.doctor import (
    claims,
    command_line,
    consoles,
    iommu,
    known_bugs,
    panels,
    refusals,
)
from vfio_console_hook.commands.doctor.system import System
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.log import Log
from vfio_console_hook.machine.host import Host

PCI = "sys/bus/pci/devices"
CLAIM_FILES = "run/vfio-console-hook/claims"


def remove(*paths: str) -> Arrange:
    def arrange(host: FakeHost) -> None:
        for path in paths:
            host.tree.remove(path)

    return arrange


# -- IOMMU and vfio-pci


def iommu_off(processor: str, cmdline: str = "", table: str = "") -> Arrange:
    """The kernel has an IOMMU subsystem and drives none."""

    def arrange(host: FakeHost) -> None:
        for address in host.list(PCI):
            host.tree.remove(f"{PCI}/{address}/iommu_group")
        host.tree.remove("sys/kernel/iommu_groups")
        host.tree.make_directory("sys/class/iommu")
        host.tree.make_directory("sys/kernel/iommu_groups")
        host.tree.put("proc/cpuinfo", f"processor\t: 0\nvendor_id\t: {processor}\n")
        host.tree.put("proc/cmdline", cmdline)
        if table:
            host.tree.put(f"sys/firmware/acpi/tables/{table}", "")

    return arrange


def neighbour(address: str, pci_class: str, driver: str = "") -> Arrange:
    """Another device in the group of the first GPU."""

    def arrange(host: FakeHost) -> None:
        device = f"sys/devices/pci0000:00/0000:00:01.0/{address}"
        host.tree.put(f"{device}/class", pci_class)
        host.tree.link(f"{PCI}/{address}", device)
        host.tree.link(f"{device}/iommu_group", "sys/kernel/iommu_groups/1")
        if driver:
            host.tree.make_directory(f"sys/bus/pci/drivers/{driver}")
            host.tree.link(f"{device}/driver", f"sys/bus/pci/drivers/{driver}")

    return arrange


SOUND = neighbour("0000:01:00.1", "0x040300", "snd_hda_intel")


def modules(lists: dict[str, str], *, loaded: bool = False) -> Arrange:
    def arrange(host: FakeHost) -> None:
        if not loaded:
            host.tree.remove("sys/bus/pci/drivers/vfio-pci")
        for path, text in lists.items():
            host.tree.put(path, text)

    return arrange


RELEASE = "6.12.107+deb13-amd64"
NO_IOMMU = both(iommu_off(""), remove("sys/class/iommu", "sys/kernel/iommu_groups"))
GROUP = f"IOMMU group of {GPU}"


def grouped(name: str, level: str, value: str, *arrangements: Arrange) -> Case:
    """A case about the group of win11's GPU."""
    title = f"{GROUP} (win11)"
    return Case(name, iommu.iommu_groups, both(win11, *arrangements), level, title, value)


IOMMU = [
    Case(
        "the sound that a VM's XML must have too", iommu.iommu_groups, nothing, "WARN",
        "IOMMU group of 0000:09:00.0", "add 0000:09:00.1 of the same card",
        machine="amdgpu-reattach-hangs-in-libvirt",
    ),
    Case("IOMMU on", iommu.iommu, nothing, "PASS", "IOMMU", "1 group"),
    Case(
        "IOMMU with a name", iommu.iommu, put("sys/class/iommu/dmar0/x", ""),
        "PASS", "IOMMU", "dmar0",
    ),
    Case(
        "Intel, off in the firmware", iommu.iommu, iommu_off("GenuineIntel"),
        "FAIL", "IOMMU", "VT-d",
    ),
    Case(
        "Intel, off on the command line", iommu.iommu,
        iommu_off("GenuineIntel", "ro quiet", "DMAR"), "FAIL", "IOMMU", "intel_iommu=on",
    ),
    Case(
        "Intel, on on the command line, off in the firmware", iommu.iommu,
        iommu_off("GenuineIntel", "ro intel_iommu=on"), "FAIL", "IOMMU", "VT-d",
    ),
    Case(
        "AMD, off in the firmware", iommu.iommu, iommu_off("AuthenticAMD"),
        "FAIL", "IOMMU", "AMD-Vi",
    ),
    Case(
        "AMD, off on the command line", iommu.iommu,
        iommu_off("AuthenticAMD", "iommu=off", "IVRS"), "FAIL", "IOMMU", "amd_iommu=off",
    ),
    Case("another processor", iommu.iommu, iommu_off("ARM"), "FAIL", "IOMMU"),
    missing_in_snapshot("IOMMU not in the snapshot", iommu.iommu, NO_IOMMU, "IOMMU"),
    Case("no IOMMU", iommu.iommu, both(NO_IOMMU, complete_snapshot), "FAIL", "IOMMU"),
    grouped("alone in its group", "PASS", "group 1"),
    grouped(
        "arm64, before the first driver", "PASS", "with its first driver",
        iommu_off("ARM"), put("sys/class/iommu/smmu3.0x09050000/x", ""),
    ),
    grouped(
        "sound of the same card stays", "FAIL", "0000:01:00.1 (audio device, on snd_hda_intel)",
        SOUND,
    ),
    Case(
        "sound of the same card without a VM", iommu.iommu_groups, SOUND,
        "WARN", GROUP, "0000:01:00.1",
    ),
    Case(
        "sound of the same card goes too", iommu.iommu_groups,
        both(SOUND, lambda host: put_vm(host, "win11", GPU, "0000:01:00.1")),
        "PASS", f"{GROUP} (win11)", "0000:01:00.1 (audio device, on snd_hda_intel)",
    ),
    grouped(
        "neighbour without a driver", "PASS", "0000:01:00.1",
        neighbour("0000:01:00.1", "0x040300"),
    ),
    grouped(
        "neighbour on vfio-pci", "PASS", "0000:01:00.1 (audio device, on vfio-pci)",
        neighbour("0000:01:00.1", "0x040300", "vfio-pci"),
    ),
    grouped(
        "a bridge", "PASS", "0000:00:01.0 (bridge, on pcieport)",
        neighbour("0000:00:01.0", "0x060400", "pcieport"),
    ),
    grouped(
        "another card stays", "FAIL", "0000:05:00.0 (Ethernet controller, on e1000e)",
        SOUND, neighbour("0000:05:00.0", "0x020000", "e1000e"),
    ),
    grouped("in no group", "FAIL", "IOMMU", iommu_off("GenuineIntel")),
    Case("vfio-pci loaded", iommu.vfio_pci, nothing, "PASS", "vfio-pci"),
    Case(
        "vfio-pci as a module", iommu.vfio_pci,
        modules({f"lib/modules/{RELEASE}/modules.dep": "kernel/drivers/vfio/pci/vfio-pci.ko.xz:"}),
        "PASS", "vfio-pci",
    ),
    Case(
        "vfio-pci built in", iommu.vfio_pci,
        modules(
            {f"usr/lib/modules/{RELEASE}/modules.builtin": "kernel/drivers/vfio/pci/vfio-pci.ko"}
        ),
        "PASS", "vfio-pci",
    ),
    Case(
        "a kernel without vfio-pci", iommu.vfio_pci,
        modules({f"lib/modules/{RELEASE}/modules.dep": "kernel/vfio/pci/mlx5-vfio-pci.ko:"}),
        "FAIL", "vfio-pci", "CONFIG_VFIO_PCI",
    ),
    missing_in_snapshot("modules not in the snapshot", iommu.vfio_pci, modules({}), "vfio-pci"),
    Case(
        "modules of the running kernel gone", iommu.vfio_pci, both(modules({}), complete_snapshot),
        "FAIL", "vfio-pci", RELEASE,
    ),
]  # fmt: skip


def test_on_a_running_host_a_missing_path_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.1\n", encoding="utf-8")
    running = System(Host(str(tmp_path)))

    found = [*iommu.iommu(running), *iommu.vfio_pci(running)]

    assert [(one.level, one.subject) for one in found] == [("FAIL", "IOMMU"), ("FAIL", "vfio-pci")]


# -- the kernel and the consoles


def only_fbcon(host: FakeHost) -> None:
    host.tree.remove("sys/class/vtconsole/vtcon0")


def two_vms(host: FakeHost) -> None:
    put_vm(host, "win11", GPU)
    put_vm(host, "linux", GPU, uuid=OTHER_UUID)


def prepared(host: FakeHost) -> None:
    """win11 holds the GPU, as after its prepare."""
    vm = Domain("win11", UUID, (Hostdev(GPU, True, "hostdev", 0),))
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, "win11"))


def configured(text: str) -> Arrange:
    return put("etc/vfio-console-hook/default.yaml", text)


LOCKED = put("sys/kernel/security/lockdown", "none [integrity] confidentiality")
REMOVAL = f"console drivers on {GPU}"
KERNEL = [
    Case("a kernel that removes consoles", consoles.console_removal, win11, "PASS", REMOVAL),
    Case(
        "a GPU of class 0380", consoles.console_removal, nothing, "PASS", REMOVAL, "0380",
        machine="efifb-0380-6.12",
    ),
    Case(
        "a kernel that removes none", consoles.console_removal, nothing, "PASS", REMOVAL,
        machine="efifb-5.10",
    ),
    Case(
        "a host without a GPU", consoles.console_removal, remove(f"{PCI}/{GPU}"), "WARN", "GPUs",
        advised=False,
    ),
    Case("no BOOTFB", consoles.bootfb, win11, "PASS", f"BOOTFB in {GPU}"),
    Case(
        "a BOOTFB that the kernel frees", consoles.bootfb, nothing, "PASS", f"BOOTFB in {GPU}",
        "in BAR 0", machine="simpledrm-0300-6.12",
    ),
    Case(
        "a BOOTFB that stays", consoles.bootfb, win11, "WARN", f"BOOTFB in {GPU}", "in BAR 0",
        machine="simpledrm-0380-6.12",
    ),
    Case(
        "a BOOTFB beside a native driver", consoles.bootfb, nothing, "WARN",
        "BOOTFB in 0000:07:00.0", "in BAR 3", machine="nvidia-beside-simpledrm-5.19",
    ),
    Case("no lockdown", consoles.kernel_lockdown, nothing, "PASS", "kernel lockdown"),
    Case(
        "lockdown", consoles.kernel_lockdown, LOCKED, "WARN", "kernel lockdown", "integrity",
    ),
    Case(
        "lockdown on a kernel that removes no console", consoles.kernel_lockdown, LOCKED,
        "PASS", "kernel lockdown", "integrity", machine="efifb-5.10",
    ),
    missing_in_snapshot(
        "lockdown not in the snapshot", consoles.kernel_lockdown,
        remove("sys/kernel/security/lockdown"), "kernel lockdown",
    ),
    Case(
        "two console drivers", consoles.console_drivers, nothing, "PASS", "console drivers",
        "framebuffer console on fb0",
    ),
    Case(
        "fbcon alone, and its last framebuffer goes", consoles.console_drivers,
        both(win11, only_fbcon), "FAIL", "console drivers", "fbcon",
    ),
    Case(
        "fbcon alone, without a VM", consoles.console_drivers, only_fbcon,
        "WARN", "console drivers", "fbcon",
    ),
    Case(
        "fbcon alone, and a framebuffer stays", consoles.console_drivers,
        both(lambda host: put_vm(host, "win11", SECOND), only_fbcon),
        "WARN", "console drivers", "fbcon", machine="two-gpus-lit-second-6.12",
    ),
    missing_in_snapshot(
        "console drivers not in the snapshot", consoles.console_drivers,
        remove("sys/class/vtconsole"), "console drivers",
    ),
    Case(
        "the console comes back", consoles.console_after, win11, "PASS", "console after win11",
        "efi-framebuffer.0",
    ),
    Case(
        "the console would come back", consoles.console_after, nothing, "PASS",
        f"console on {GPU}", "efi-framebuffer.0",
    ),
    Case(
        "the console is lost", consoles.console_after, win11, "WARN", "console after win11",
        "SSH", machine="simpledrm-0300-6.12",
    ),
    Case(
        "the VM would not start", consoles.console_after, win11, "FAIL", "console after win11",
        "`bootfb: native`", machine="simpledrm-0380-6.12",
    ),
    Case(
        "no VM could start", consoles.console_after, nothing, "WARN", f"console on {GPU}",
        "BOOTFB", machine="simpledrm-0380-6.12",
    ),
    Case(
        "a GPU that no VM has leaves with its sound", consoles.console_after, nothing, "PASS",
        "console on 0000:09:00.0", "comes back with amdgpu",
        machine="amdgpu-reattach-hangs-in-libvirt",
    ),
    Case(
        "a hook that is switched off", consoles.console_after,
        both(win11, configured("enabled: false")), "PASS", "console after win11",
        "enabled: false", machine="simpledrm-0380-6.12",
    ),
    Case(
        "a configuration with mistakes", consoles.console_after,
        both(win11, configured("bootfb: perhaps")), "WARN", "console after win11", advised=False,
    ),
    Case(
        "memory that only root can see", consoles.console_after, nothing, "WARN",
        f"console on {GPU}", "/proc/iomem", machine="iomem-without-root",
    ),
    Case(
        "a GPU that another VM has now", consoles.console_after, both(two_vms, prepared),
        "PASS", "console after linux", f"win11 has {GPU}",
    ),
]  # fmt: skip


# -- panels, and bugs of the kernel


def connectors(**status: str) -> Arrange:
    """A card of the GPU's own driver with these connectors; "_" is written for "-"."""

    def arrange(host: FakeHost) -> None:
        device = host.real(f"{PCI}/{GPU}") or ""
        host.tree.link(f"{device}/drm/card7/device", device)
        host.tree.link("sys/class/drm/card7", f"{device}/drm/card7")
        for name, text in status.items():
            connector = f"card7-{name.replace('_', '-')}"
            host.tree.put(f"{device}/drm/card7/{connector}/status", text)
            host.tree.link(f"sys/class/drm/{connector}", f"{device}/drm/card7/{connector}")

    return arrange


def panel(name: str, level: str, value: str, *arrangements: Arrange, on: str = "win11") -> Case:
    title = f"panel on {GPU}{f' ({on})' if on else ''}"
    arrange = both(win11 if on else nothing, *arrangements)
    return Case(name, panels.panels, arrange, level, title, value)


PANELS = [
    panel("a panel", "WARN", "the built-in eDP-1 is on it", connectors(eDP_1="connected")),
    panel("an old panel", "WARN", "LVDS-1", connectors(LVDS_1="unknown", VGA_1="connected")),
    panel("a panel of a tablet", "WARN", "DSI-1", connectors(DSI_1="connected")),
    panel("a closed panel", "PASS", "no built-in", connectors(eDP_1="disconnected")),
    panel("a monitor", "PASS", "no built-in", connectors(HDMI_A_1="connected")),
    panel("a panel without a VM", "PASS", "eDP-1", connectors(eDP_1="connected"), on=""),
]


def release(name: str, level: str, value: str, text: str, version: str = "") -> Case:
    arrange = both(put("proc/sys/kernel/osrelease", text), put("proc/sys/kernel/version", version))
    title = "known bugs of the kernel"
    return Case(name, known_bugs.known_bugs, arrange, level, title, value)


BUGS = [
    release("a kernel of CachyOS", "WARN", "linux-cachyos/issues/1023", "7.2.2-1-cachyos"),
    release("7.2.2 of another distribution", "PASS", "7.2.2-arch1-1", "7.2.2-arch1-1"),
    release("zen", "WARN", "zen-kernel/issues/380", "6.14.2-zen1-1-zen"),
    release("an lts", "WARN", "6.12.25", "6.12.23-1-lts"),
    release("the next lts", "PASS", "6.12.25-1-lts", "6.12.25-1-lts"),
    release("Debian", "PASS", "", "6.12.107+deb13-amd64"),
    release(
        "Debian with its release in uname -v", "WARN", "6.12.25", "6.12-amd64",
        "#1 SMP Debian 6.12.24-1",
    ),
]  # fmt: skip


@pytest.mark.parametrize("arrange", [connectors(Unknown_1="connected"), nothing])
def test_what_only_the_firmware_draws_on_has_no_finding(
    machine: MachineFactory, arrange: Arrange
) -> None:
    case = Case("", panels.panels, both(win11, arrange), "", "")

    assert findings(case, machine("efifb-6.12")) == []


def test_every_vm_has_a_line_about_what_comes_back(machine: MachineFactory) -> None:
    host = machine("two-gpus-6.12")
    put_vm(host, "win11", GPU)
    put_vm(host, "linux", SECOND, uuid=OTHER_UUID)

    titles = [one.subject for one in consoles.console_after(system_of(host))]

    assert titles == ["console after win11", "console after linux"]


# -- the command line


def cmdline(words: str) -> Arrange:
    return put("proc/cmdline", f"BOOT_IMAGE=/vmlinuz ro {words} quiet")


def option(
    words: str, level: str, value: str = "", *, on: str = "native-6.1", after: Arrange = nothing
) -> Case:
    """A case with this on the command line, which is the title of the finding."""
    name = f"{words} on {on}"
    arrange = both(after, cmdline(words))
    return Case(name, command_line.command_line, arrange, level, words, value, machine=on)


def unbound(host: FakeHost) -> None:
    host.tree.remove("sys/bus/platform/devices/efi-framebuffer.0/driver")


def unconcerned(words: str) -> Case:
    """A case without any old option."""
    title = "kernel command line"
    name = f"nothing but {words!r}"
    return Case(name, command_line.command_line, cmdline(words), "PASS", title)


COMMAND_LINE = [
    unconcerned(""),
    unconcerned("video=1920x1080 splash"),
    unconcerned("video=HDMI-A-1:1024x768"),
    unconcerned("iomem=relaxed amd_pstate=active intel_pstate=passive iommu=pt i915.modeset=1"),
    unconcerned("intel_iommu=on,sm_on amd_iommu=force_enable nvidia_drm.modeset=1 vga=791"),
    unconcerned('dyndbg="file vfio_pci.c +p" foo="x video=efifb:off"'),
    unconcerned("-- video=efifb:off"),
    option("video=efifb:off", "WARN", "keeps efifb off"),
    option("video=efifb:off", "WARN", "simple-framebuffer.0", on="simpledrm-0300-6.12"),
    option("video=efifb:off", "WARN", "keeps efifb off", on="efifb-6.12", after=unbound),
    option("video=simplefb:off", "WARN", "BOOTFB", on="intel-bootfb-no-driver"),
    option("video=vesafb:off", "WARN", "no effect"),
    option("video=vesa:off", "WARN", "no effect"),
    option("video=efifb:off,vesafb:off", "WARN", "vesafb:off has no effect"),
    option("video=efifb=off", "WARN", "`:`"),
    option("efifb:off", "WARN", "`video=`"),
    option("simplefb=off", "WARN", "no effect"),
    option("nofb", "WARN", "no effect"),
    option("vfio_pci.id=1234:1111", "WARN", "did you mean vfio_pci.ids?"),
    option("vfio-pci,ids=1234:1111", "WARN", "did you mean vfio_pci.ids?"),
    option("vfio.ids=1234:1111", "WARN", "did you mean vfio_pci.ids?"),
    option("vfio-pci.ids=1234-1111", "WARN", "1234-1111 has no effect: it is no VENDOR:DEVICE"),
    option("vfio-pci.ids=0x1234:0x1111", "WARN", "softdep"),
    option("intel-iomu=on", "WARN", "did you mean intel_iommu?"),
    option("intel_iommu=onn", "WARN", "did you mean on?"),
    option("initcall_blacklist=sysfb_int", "WARN", "did you mean sysfb_init?"),
    option("initcal_blacklist=sysfb_init", "WARN", "did you mean initcall_blacklist?"),
    option("modeprobe.blacklist=nouveau", "WARN", "did you mean modprobe.blacklist?"),
    option("nomodset", "WARN", "did you mean nomodeset?"),
    option("video=efifb:of", "WARN", "did you mean off?"),
    option("video=efib:off", "WARN", "did you mean efifb?"),
    option("vidoe=efifb:off", "WARN", "did you mean video?"),
    option('video="efifb:off"', "WARN", "keeps efifb off"),
    option('"video=efifb:off"', "WARN", "keeps efifb off"),
    option('initcall_blacklist="sysfb_init"', "WARN", "keeps every firmware console off"),
    option("nomodeset", "WARN", "firmware console"),
    option("initcall_blacklist=sysfb_init", "WARN", "keeps every firmware console off"),
    option("initcall_blacklist=sysfb_init", "WARN", "efi-framebuffer.0", on="efifb-6.12"),
    option(
        "initcall_blacklist=acpi_x,sysfb_init", "PASS", f"BOOTFB out of the memory of {GPU}",
        on="simpledrm-0380-6.12",
        after=remove("sys/bus/platform/devices/simple-framebuffer.0"),
    ),
    option("vfio-pci.ids=1234:1111", "WARN", "softdep"),
    option("vfio_pci.ids=10de:1ff2", "PASS", "0000:17:00.0", on="bmc-and-two-nvidia"),
    option("vfio_pci.ids=10de:1ff2", "WARN", "0000:65:00.0", on="bmc-and-two-nvidia"),
    option("vfio-pci.ids=10DE:2182,10de:1aeb", "WARN", "boot GPU", on="nvidia-bootfb-bar3"),
    option("pci-stub.ids=1234:1111", "WARN", "pci-stub"),
    option("vfio-pci.ids=1:2", "WARN", "no effect", after=complete_snapshot),
    option("vfio_pci.disable_vga=1", "PASS"),
    option("fbcon=map:0", "PASS", "fb0"),
    option("fbcon=map:99", "WARN", "fb9"),
    option("pcie_acs_override=downstream,multifunction", "WARN", "IOMMU groups"),
    missing_in_snapshot(
        "a command line that is not in the snapshot", command_line.command_line,
        remove("proc/cmdline"), "kernel command line", machine="native-6.1",
    ),
]  # fmt: skip


def test_each_old_option_has_one_finding(machine: MachineFactory) -> None:
    case = option("video=efifb:off nomodeset vfio-pci.ids=ffff:0001", "WARN")

    subjects = [one.subject for one in findings(case, machine(case.machine))]

    assert subjects == ["video=efifb:off", "nomodeset"]


# -- claims


def of_another_boot(host: FakeHost) -> None:
    prepared(host)
    host.boot_again()


def by_hand(host: FakeHost) -> None:
    vm = Domain(GPU, UUID, (Hostdev(GPU, True, "take", 0),), by_hand=True)
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, GPU))


def running(host: FakeHost) -> None:
    put_vm(host, "win11", GPU, running=True)


def still_at_work(host: FakeHost) -> None:
    prepared(host)
    path = f"{CLAIM_FILES}/{UUID}"
    lines = (host.read(path) or "").splitlines()
    host.tree.put(path, "\n".join([*lines, json.dumps({"phase": "prepare", "hook": [77, 5]})]))
    host.tree.put("proc/77/stat", f"77 (python3) S 1 77 77 0 {'0 ' * 14}5 0")


def other_vm(host: FakeHost) -> None:
    put_vm(host, "linux", uuid=OTHER_UUID)


def refused(*done: tuple[str, float]) -> Arrange:
    """prepare of win11 was refused at 1000; then these events were done."""
    ended = {kind: {"time": at, "took_s": 0.1, "failure": ""} for kind, at in done}
    refusal = {"time": 1000.0, "event": "prepare", "text": "it is in use", "hint": "close it"}
    history = {"vm": "win11", "uuid": UUID, "events": ended, "refusal": refusal}
    return put(f"run/vfio-console-hook.status/{UUID}", json.dumps(history))


def last(name: str, level: str, value: str, arrange: Arrange) -> Case:
    title = "last refusal of win11" if arrange is not nothing else "last refusal"
    return Case(name, refusals.last_refusal, arrange, level, title, value)


REFUSALS = [
    last("no refusal", "PASS", "refused nothing", nothing),
    last("a refusal", "WARN", "1970-01-01 00:16:40 prepare: it is in use close it", refused()),
    last("a refusal after a start", "WARN", "", refused(("prepare", 900))),
    last("a release since", "WARN", "", refused(("release", 1001))),
    last("a start since", "PASS", "prepare was done at", refused(("prepare", 2000))),
]

def reattach_hangs(host: FakeHost) -> None:
    prepared(host)
    path = f"{CLAIM_FILES}/{UUID}"
    lines = (host.read(path) or "").splitlines()
    host.tree.put(path, "\n".join([*lines, json.dumps({"phase": "stopped", "hook": [77, 5]}), ""]))


def driver_lost(host: FakeHost) -> None:
    undo = ReturnNative(GPU, "amdgpu", False, False)
    step = Step("native", GPU, "amdgpu drives it", None, undo)
    losses.add(host, losses.of_step(host, "win11", UUID, step, undo.missing(host)))


CLAIM = "claim of win11"
CLAIMS = [
    Case("no claim", claims.claims, nothing, "PASS", "claims"),
    Case("a VM that runs", claims.claims, both(running, prepared), "PASS", CLAIM, GPU),
    Case("a VM that is off", claims.claims, both(win11, prepared), "WARN", CLAIM, "recover"),
    Case("a VM that is gone", claims.claims, both(other_vm, prepared), "WARN", CLAIM, "recover"),
    Case("an earlier boot", claims.claims, of_another_boot, "WARN", CLAIM, "recover"),
    Case("taken by hand", claims.claims, by_hand, "PASS", f"claim of {GPU}", f"give {GPU}"),
    Case("a hook at work", claims.claims, both(win11, still_at_work), "PASS", CLAIM, "process 77"),
    Case(
        "a claim that cannot be read", claims.claims, put(f"{CLAIM_FILES}/{UUID}", "nonsense\n"),
        "FAIL", f"claim {UUID}",
    ),
    Case("libvirt hangs", claims.claims, both(running, reattach_hangs), "WARN", CLAIM, "recover"),
    Case("nothing is lost", claims.lost, nothing, "PASS", "losses"),
    Case(
        "a driver is lost", claims.lost, driver_lost, "WARN", "lost after win11",
        f"`modprobe $(cat /sys/bus/pci/devices/{GPU}/modalias)`",
    ),
]  # fmt: skip


def test_without_libvirt_a_claim_is_a_warning(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    prepared(host)

    (found,) = claims.claims(System(host, libvirt_error="libvirt is off"))

    assert (found.level, found.subject) == ("WARN", CLAIM)
    assert GPU in found.text
    assert "recover" in found.advice


CASES = [*IOMMU, *KERNEL, *PANELS, *BUGS, *COMMAND_LINE, *CLAIMS, *REFUSALS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_has_its_finding(machine: MachineFactory, case: Case) -> None:
    assert_found(case, machine(case.machine))


def test_the_sentences_about_the_machine(machine: MachineFactory, golden: Golden) -> None:
    golden("doctor-sentences-machine", sentences(CASES, machine))
