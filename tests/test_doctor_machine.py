"""The checks of doctor about the machine: IOMMU, kernel, consoles, command line, records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.doctoring import (
    GPU,
    OTHER_UUID,
    SECOND,
    Arrange,
    Case,
    both,
    found,
    judge,
    nothing,
    put,
    put_vm,
    recorded_whole,
    win11,
)
from tests.fakehost import FakeHost
from tests.libvirt_xml import UUID
from vfio_console_hook.commands.doctor import claims, command_line, consoles, iommu
from vfio_console_hook.commands.doctor.areas import Subject
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.log import Log
from vfio_console_hook.machine.host import Host

PCI = "sys/bus/pci/devices"
CLAIMS = "run/vfio-console-hook/claims"


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
IOMMU = [
    Case(iommu.iommu, "efifb-6.12", nothing, "PASS", "IOMMU: on, with 1 group"),
    Case(
        iommu.iommu, "efifb-6.12", put("sys/class/iommu/dmar0/x", ""),
        "PASS", "IOMMU: on (dmar0), with 1 group of devices",
    ),
    Case(
        iommu.iommu, "efifb-6.12", iommu_off("GenuineIntel"), "FAIL", "IOMMU: off",
        "switch VT-d on in the firmware setup, and boot with intel_iommu=on",
    ),
    Case(
        iommu.iommu, "efifb-6.12", iommu_off("GenuineIntel", "ro quiet", "DMAR"), "FAIL", "off",
        "boot with intel_iommu=on",
    ),
    Case(
        iommu.iommu, "efifb-6.12", iommu_off("GenuineIntel", "ro intel_iommu=on"), "FAIL", "off",
        "switch VT-d on in the firmware setup (often",
    ),
    Case(
        iommu.iommu, "efifb-6.12", iommu_off("AuthenticAMD"), "FAIL", "off", "AMD-Vi",
    ),
    Case(
        iommu.iommu, "efifb-6.12", iommu_off("AuthenticAMD", "iommu=off", "IVRS"), "FAIL", "off",
        "take amd_iommu=off or iommu=off out",
    ),
    Case(iommu.iommu, "efifb-6.12", iommu_off("ARM"), "FAIL", "off", "switch the IOMMU on"),
    Case(
        iommu.iommu, "efifb-6.12",
        both(iommu_off(""), remove("sys/class/iommu", "sys/kernel/iommu_groups")),
        "WARN", "IOMMU: not in this recorded machine",
    ),
    Case(
        iommu.iommu, "efifb-6.12",
        both(
            iommu_off(""), remove("sys/class/iommu", "sys/kernel/iommu_groups"), recorded_whole
        ),
        "FAIL", "IOMMU: off",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12", win11,
        "PASS", f"IOMMU group of {GPU} (win11): group 1, alone",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12", both(win11, SOUND), "FAIL",
        "group 1 is not viable: it also has 0000:01:00.1 (on snd_hda_intel)",
        "give win11 0000:01:00.1 too, of the same card",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12", SOUND, "WARN",
        f"IOMMU group of {GPU}: group 1 is not viable",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12",
        both(SOUND, lambda host: put_vm(host, "win11", GPU, "0000:01:00.1")),
        "PASS", "group 1, with 0000:01:00.1 (on snd_hda_intel)",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12", both(win11, neighbour("0000:01:00.1", "0x040300")),
        "PASS", "group 1, with 0000:01:00.1",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12",
        both(win11, neighbour("0000:01:00.1", "0x040300", "vfio-pci")),
        "PASS", "group 1, with 0000:01:00.1 (on vfio-pci)",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12",
        both(win11, neighbour("0000:00:01.0", "0x060400", "pcieport")),
        "PASS", "group 1, with 0000:00:01.0 (on pcieport)",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12",
        both(win11, SOUND, neighbour("0000:05:00.0", "0x020000", "e1000e")),
        "FAIL", "0000:01:00.1 (on snd_hda_intel) and 0000:05:00.0 (on e1000e)", "another slot",
    ),
    Case(
        iommu.iommu_groups, "efifb-6.12", both(win11, iommu_off("GenuineIntel")),
        "FAIL", f"IOMMU group of {GPU} (win11): it has none",
    ),
    Case(iommu.vfio_pci, "efifb-6.12", nothing, "PASS", "vfio-pci: loaded"),
    Case(
        iommu.vfio_pci, "efifb-6.12",
        modules({f"lib/modules/{RELEASE}/modules.dep": "kernel/drivers/vfio/pci/vfio-pci.ko.xz:"}),
        "PASS", "installed",
    ),
    Case(
        iommu.vfio_pci, "efifb-6.12",
        modules(
            {f"usr/lib/modules/{RELEASE}/modules.builtin": "kernel/drivers/vfio/pci/vfio-pci.ko"}
        ),
        "PASS", "installed",
    ),
    Case(
        iommu.vfio_pci, "efifb-6.12",
        modules({f"lib/modules/{RELEASE}/modules.dep": "kernel/vfio/pci/mlx5-vfio-pci.ko:"}),
        "FAIL", f"not there for the running kernel {RELEASE}", "CONFIG_VFIO_PCI",
    ),
    Case(iommu.vfio_pci, "efifb-6.12", modules({}), "WARN", "not in this recorded machine"),
    Case(
        iommu.vfio_pci, "efifb-6.12", both(modules({}), recorded_whole),
        "FAIL", f"the modules of the running kernel {RELEASE} are gone", "reboot",
    ),
]  # fmt: skip


def test_on_a_running_host_what_is_missing_is_not_just_unrecorded(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.1\n", encoding="utf-8")
    running = Subject(Host(str(tmp_path)))

    found = [*iommu.iommu(running), *iommu.vfio_pci(running)]

    assert [(one.level, one.text) for one in found] == [
        ("FAIL", "off, and without it no PCI device can be given to a VM"),
        ("FAIL", "not loaded, and the modules of the running kernel 6.12.1 are gone"),
    ]


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


KERNEL = [
    Case(
        consoles.console_removal, "efifb-6.12", win11,
        "PASS", f"console drivers on {GPU}: vfio-pci of this kernel removes them for good",
    ),
    Case(
        consoles.console_removal, "efifb-0380-6.12", nothing, "PASS", "its class is 0380",
    ),
    Case(
        consoles.console_removal, "efifb-5.10", nothing, "PASS", "removes none by itself",
    ),
    Case(
        consoles.console_removal, "efifb-6.12", remove(f"{PCI}/{GPU}"),
        "WARN", "GPUs: this host has none",
    ),
    Case(
        consoles.kernel_lockdown, "efifb-5.10",
        put("sys/kernel/security/lockdown", "none [integrity] confidentiality"),
        "PASS", "integrity, which does no harm",
    ),
    Case(consoles.bootfb, "efifb-6.12", win11, "PASS", f"BOOTFB in {GPU}: none"),
    Case(
        consoles.bootfb, "simpledrm-0300-6.12", nothing, "PASS",
        "in BAR 0, which vfio-pci of this kernel frees",
    ),
    Case(
        consoles.bootfb, "simpledrm-0380-6.12", win11, "WARN",
        "in BAR 0, which this kernel does not free for vfio-pci", "`bootfb`",
    ),
    Case(consoles.kernel_lockdown, "efifb-6.12", nothing, "PASS", "kernel lockdown: none"),
    Case(
        consoles.kernel_lockdown, "efifb-6.12",
        put("sys/kernel/security/lockdown", "none [integrity] confidentiality"),
        "WARN", "kernel lockdown: integrity: a firmware console", "Secure Boot",
    ),
    Case(
        consoles.kernel_lockdown, "efifb-6.12", remove("sys/kernel/security/lockdown"),
        "WARN", "not in this recorded machine",
    ),
    Case(
        consoles.console_drivers, "efifb-6.12", nothing,
        "PASS", "dummy device and frame buffer device; drawing now: framebuffer console on fb0",
    ),
    Case(
        consoles.console_drivers, "efifb-6.12", both(win11, only_fbcon),
        "FAIL", "fbcon is the only one", "reboot",
    ),
    Case(consoles.console_drivers, "efifb-6.12", only_fbcon, "WARN", "fbcon is the only one"),
    Case(
        consoles.console_drivers, "two-gpus-lit-second-6.12",
        both(lambda host: put_vm(host, "win11", SECOND), only_fbcon),
        "WARN", "fbcon is the only one",
    ),
    Case(
        consoles.console_drivers, "efifb-6.12", remove("sys/class/vtconsole"),
        "WARN", "not in this recorded machine",
    ),
    Case(
        consoles.console_after, "efifb-6.12", win11,
        "PASS", "console after win11: the firmware console comes back on efi-framebuffer.0",
    ),
    Case(
        consoles.console_after, "efifb-6.12", nothing,
        "PASS", f"console on {GPU}: the firmware console comes back on efi-framebuffer.0",
    ),
    Case(
        consoles.console_after, "simpledrm-0300-6.12", win11,
        "WARN", "console after win11: this host's firmware console will not come back", "SSH",
    ),
    Case(
        consoles.console_after, "simpledrm-0380-6.12", win11,
        "FAIL", "the VM would not start: BOOTFB of simple-framebuffer.0 holds memory",
        "set `bootfb: native`",
    ),
    Case(
        consoles.console_after, "simpledrm-0380-6.12", nothing,
        "WARN", f"console on {GPU}: no VM could start with it: BOOTFB",
    ),
    Case(
        consoles.console_after, "simpledrm-0380-6.12", both(win11, configured("enabled: false")),
        "PASS", "`enabled: false`",
    ),
    Case(
        consoles.console_after, "efifb-6.12", both(win11, configured("bootfb: perhaps")),
        "WARN", "mistakes in its configuration",
    ),
    Case(
        consoles.console_after, "iomem-without-root", nothing,
        "WARN", "cannot tell who has reserved the GPU's memory", "root",
    ),
    Case(
        consoles.console_after, "efifb-6.12", both(two_vms, prepared),
        "PASS", f"console after linux: win11 has {GPU} now",
    ),
]  # fmt: skip


def test_what_comes_back_is_told_for_every_vm(machine: MachineFactory) -> None:
    host = machine("two-gpus-6.12")
    put_vm(host, "win11", GPU)
    put_vm(host, "linux", SECOND, uuid=OTHER_UUID)

    titles = [one.subject for one in consoles.console_after(Subject.of(host, host.vms("")))]

    assert titles == ["console after win11", "console after linux"]


# -- the command line


def cmdline(words: str) -> Arrange:
    return put("proc/cmdline", f"BOOT_IMAGE=/vmlinuz ro {words} quiet")


def leftover(words: str, level: str, text: str, advice: str = "", on: str = "native-6.1") -> Case:
    return Case(command_line.command_line, on, cmdline(words), level, text, advice)


def unbound(host: FakeHost) -> None:
    host.tree.remove("sys/bus/platform/devices/efi-framebuffer.0/driver")


NO_BOOTFB_DRIVER = "intel-bootfb-no-driver"
COMMAND_LINE = [
    leftover("", "PASS", "nothing in it about consoles or GPUs"),
    leftover("video=1920x1080 splash", "PASS", "nothing in it"),
    leftover("video=HDMI-A-1:1024x768", "PASS", "nothing in it"),
    leftover(
        "video=efifb:off", "WARN", "video=efifb:off: keeps efifb off", "to have the host's console",
    ),
    leftover(
        "video=efifb:off", "WARN", "no effect: a driver that does not heed it draws on simple-",
        on="simpledrm-0300-6.12",
    ),
    Case(
        command_line.command_line, "efifb-6.12", both(unbound, cmdline("video=efifb:off")),
        "WARN", "keeps efifb off",
    ),
    leftover("video=simplefb:off", "WARN", "but not BOOTFB, which blocks", on=NO_BOOTFB_DRIVER),
    leftover("video=vesafb:off", "WARN", "no effect: vesafb does not heed it"),
    leftover("video=vesa:off", "WARN", "no effect: no driver that heeds it is called vesa"),
    leftover(
        "video=efifb:off,vesafb:off", "WARN", "vesafb:off in it has no effect", "does not need it",
    ),
    leftover("video=efifb:off,vesafb:off", "WARN", "keeps efifb off"),
    leftover("video=efifb=off", "WARN", "no effect: a `:` belongs behind"),
    leftover("efifb:off", "WARN", "efifb:off: has no effect: the kernel reads it only behind"),
    leftover("simplefb=off", "WARN", "no effect"),
    leftover("nofb", "WARN", "no such option"),
    leftover("nomodeset", "WARN", "only a firmware console can come back", "take it out"),
    leftover("initcall_blacklist=sysfb_init", "WARN", "not need it on this kernel", "take it out"),
    leftover(
        "initcall_blacklist=sysfb_init", "WARN", "no effect: the kernel has made efi-framebuffer.0",
        on="efifb-6.12",
    ),
    Case(
        command_line.command_line, "simpledrm-0380-6.12",
        both(
            remove("sys/bus/platform/devices/simple-framebuffer.0"),
            cmdline("initcall_blacklist=acpi_x,sysfb_init"),
        ),
        "PASS", f"keeps BOOTFB out of the memory of {GPU}",
    ),
    leftover("vfio-pci.ids=1234:1111", "WARN", "did not take", "softdep"),
    leftover(
        "vfio_pci.ids=10de:1ff2", "PASS", "keeps 0000:17:00.0 from the host",
        on="bmc-and-two-nvidia",
    ),
    leftover(
        "vfio_pci.ids=10de:1ff2", "WARN", "did not take 0000:65:00.0: nvidia has it",
        on="bmc-and-two-nvidia",
    ),
    leftover(
        "vfio-pci.ids=10DE:2182,10de:1aeb", "WARN", "it is the boot GPU", "console back",
        on="nvidia-bootfb-bar3",
    ),
    leftover("pci-stub.ids=1234:1111", "WARN", "did not take"),
    Case(
        command_line.command_line, "native-6.1", both(recorded_whole, cmdline("vfio-pci.ids=1:2")),
        "WARN", "no device of this host has such an id",
    ),
    leftover("vfio_pci.disable_vga=1", "PASS", "does no harm"),
    leftover("fbcon=map:0", "PASS", "sends the consoles to fb0"),
    leftover("fbcon=map:99", "WARN", "there is no fb9"),
    leftover("pcie_acs_override=downstream,multifunction", "WARN", "can reach each other"),
    Case(
        command_line.command_line, "native-6.1", remove("proc/cmdline"),
        "WARN", "not in this recorded machine",
    ),
]  # fmt: skip


def test_each_leftover_is_told_once(machine: MachineFactory) -> None:
    case = leftover("video=efifb:off nomodeset vfio-pci.ids=ffff:0001", "WARN", "")

    subjects = [one.subject for one in found(case, machine(case.machine))]

    assert subjects == ["video=efifb:off", "nomodeset"]


# -- records


def of_another_boot(host: FakeHost) -> None:
    prepared(host)
    host.tree.put("proc/sys/kernel/random/boot_id", "another")


def by_hand(host: FakeHost) -> None:
    vm = Domain(GPU, UUID, (Hostdev(GPU, True, "take", 0),), by_hand=True)
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, GPU))


def running(host: FakeHost) -> None:
    put_vm(host, "win11", GPU, running=True)


def still_at_work(host: FakeHost) -> None:
    prepared(host)
    path = f"{CLAIMS}/{UUID}"
    lines = (host.read(path) or "").splitlines()
    host.tree.put(path, "\n".join([*lines, json.dumps({"phase": "prepare", "hook": [77, 5]})]))
    host.tree.put("proc/77/stat", f"77 (python3) S 1 77 77 0 {'0 ' * 14}5 0")


RECORDS = [
    Case(claims.claims, "efifb-6.12", nothing, "PASS", "no VM holds a GPU"),
    Case(claims.claims, "efifb-6.12", both(running, prepared), "PASS", "and it runs"),
    Case(
        claims.claims, "efifb-6.12", both(win11, prepared), "WARN",
        f"claim of win11: holds {GPU}, but libvirt says that it is off", "recover",
    ),
    Case(
        claims.claims, "efifb-6.12",
        both(lambda host: put_vm(host, "linux", uuid=OTHER_UUID), prepared), "WARN",
        "libvirt does not know it any more", "recover",
    ),
    Case(claims.claims, "efifb-6.12", of_another_boot, "WARN", "an earlier boot", "recover"),
    Case(claims.claims, "efifb-6.12", by_hand, "PASS", "taken by hand"),
    Case(
        claims.claims, "efifb-6.12", both(win11, still_at_work), "PASS", "hook is at work",
    ),
    Case(
        claims.claims, "efifb-6.12", put(f"{CLAIMS}/{UUID}", "nonsense\n"), "FAIL",
        f"claim {UUID}: cannot understand the claim", "undo by hand",
    ),
]  # fmt: skip


def test_without_libvirt_a_record_is_a_question(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    prepared(host)

    (found,) = claims.claims(Subject(host, unasked="libvirt is off"))

    assert (found.level, found.text) == (
        "WARN",
        f"holds {GPU}; libvirt does not say whether it runs",
    )


CASES = [*IOMMU, *KERNEL, *COMMAND_LINE, *RECORDS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_check_finds_what_is_there(machine: MachineFactory, case: Case) -> None:
    judge(case, machine(case.machine))
