"""An IOMMU group that vfio could not open: refused before anything is touched, in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost, FakeLibvirt, NotViableError, open_device, snapshot
from vfio_console_hook import cli
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import parse
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.log import Log
from vfio_console_hook.machine.snapshot import unpack

GPU, SOUND, DISK = "0000:01:00.0", "0000:01:00.1", "0000:05:00.0"
PCI = "sys/bus/pci/devices"
ROOT = "sys/devices/pci0000:00"
VIRTUAL = "sys/devices/virtual/net"


def add(host: FakeHost, address: str, pci_class: str, driver: str = "") -> None:
    """Put a device into the group of the GPU."""
    path = f"{ROOT}/{address}"
    host.tree.put(f"{path}/class", pci_class)
    host.tree.link(f"{PCI}/{address}", path)
    host.tree.link(f"{path}/iommu_group", f"sys/kernel/iommu_groups/{group(host)}")
    if driver:
        host.tree.make_directory(f"sys/bus/pci/drivers/{driver}")
        host.tree.link(f"{path}/driver", f"sys/bus/pci/drivers/{driver}")


def group(host: FakeHost) -> str:
    number = host.link_name(f"{PCI}/{GPU}/iommu_group")
    assert number
    return number


def refusal(host: FakeHost, *addresses: str) -> RefusedError:
    """The refusal of prepare, which changes nothing; plan says the same."""
    vm = parse(domain_xml(*addresses))
    before = snapshot(host)
    planned = plan.plan_for(host, vm, Config())
    with pytest.raises(RefusedError) as caught:
        events.prepare(host, vm, Config(), Log(host, "win11"))
    assert snapshot(host) == before
    assert (planned.verdict, planned.reason) == (plan.REFUSE, caught.value.text)
    return caught.value


def test_a_function_of_the_card_that_stays_on_a_driver_is_named(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    add(host, SOUND, "0x040300", "snd_hda_intel")

    error = refusal(host, GPU)

    assert f"{SOUND} (audio device, on snd_hda_intel) stays on the host" in error.text
    assert error.hint.startswith(f"add {SOUND} of the same card to win11 too")


def test_with_all_functions_the_vm_starts(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    add(host, SOUND, "0x040300", "snd_hda_intel")

    planned = plan.plan_for(host, parse(domain_xml(GPU, SOUND)), Config())

    assert planned.verdict == plan.START


@pytest.mark.parametrize(
    ("pci_class", "driver"),
    [
        ("0x060400", "pcieport"),  # a bridge
        ("0x060400", ""),
        ("0x040300", ""),
        ("0x040300", "pci-stub"),
        ("0x040300", "vfio-pci"),
    ],
)
def test_what_vfio_accepts_does_not_matter(
    machine: MachineFactory, pci_class: str, driver: str
) -> None:
    host = machine("efifb-6.1")
    add(host, SOUND, pci_class, driver)

    assert plan.plan_for(host, parse(domain_xml(GPU)), Config()).verdict == plan.START


def known(host: FakeHost) -> None:
    """A machine that shows what is below its controllers, as any real one does."""
    for folder in ("sys/block", "sys/class/net", "sys/class/input"):
        host.tree.make_directory(folder)


def mounted(host: FakeHost) -> None:
    host.tree.put(f"{ROOT}/{DISK}/block/sda/sda1/dev", "8:1")
    host.tree.put(f"{ROOT}/{DISK}/block/sda/dev", "8:0")
    host.tree.link("sys/block/sda", f"{ROOT}/{DISK}/block/sda")
    host.tree.put("proc/self/mountinfo", "24 1 8:1 / / rw - ext4 /dev/sda1 rw")


def swap(host: FakeHost) -> None:
    mounted(host)
    host.tree.put("proc/self/mountinfo", "")
    host.tree.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2")


def btrfs(host: FakeHost) -> None:
    """Its number in mountinfo is no device's; of two disks only one is the source."""
    mounted(host)
    host.tree.put("proc/self/mountinfo", "24 1 0:35 / / rw - btrfs /dev/nvme0n1p2 rw")
    host.tree.make_directory("sys/fs/btrfs/1f0c/devices/sda1")


def zfs(host: FakeHost) -> None:
    mounted(host)
    host.tree.put("proc/self/mountinfo", "24 1 0:35 / / rw - zfs rpool/ROOT rw")
    host.tree.make_directory("sys/module/zfs")


def multipath(host: FakeHost) -> None:
    """An NVMe namespace is below no controller, but a hidden path to it is."""
    disk = "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1"
    host.tree.put(f"{disk}/nvme0n1p1/dev", "259:1")
    host.tree.link("sys/block/nvme0n1", disk)
    path = f"{ROOT}/{DISK}/nvme/nvme0/nvme0c0n1"
    host.tree.make_directory(path)
    host.tree.link("sys/block/nvme0c0n1", path)
    host.tree.put("proc/self/mountinfo", "24 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw")


def volume_group(host: FakeHost) -> None:
    mounted(host)
    host.tree.put("proc/self/mountinfo", "")
    host.tree.make_directory(f"{ROOT}/{DISK}/block/sda/sda1/holders/dm-0")


def interface(host: FakeHost) -> None:
    host.tree.put(f"{ROOT}/{DISK}/net/eth0/operstate", "up")
    host.tree.link("sys/class/net/eth0", f"{ROOT}/{DISK}/net/eth0")


def keyboard(host: FakeHost) -> None:
    host.tree.make_directory(f"{ROOT}/{DISK}/usb1/input/input3")
    host.tree.link("sys/class/input/input3", f"{ROOT}/{DISK}/usb1/input/input3")


@pytest.mark.parametrize(
    ("pci_class", "use", "said"),
    [
        ("0x010601", mounted, "sda1, which is mounted"),
        ("0x010601", swap, "sda1, which the host swaps to"),
        ("0x010601", volume_group, "sda1, which the host uses"),
        ("0x010802", btrfs, "sda1, which is mounted"),
        ("0x010802", zfs, "sda, which may be a part of a ZFS pool"),
        ("0x010802", multipath, "nvme0n1p1, which is mounted"),
        ("0x0c0330", mounted, "sda1, which is mounted"),
        ("0x080501", swap, "sda1, which the host swaps to"),
        ("0x0c0330", interface, "the network interface eth0, which is up"),
        ("0x0c8000", keyboard, "a keyboard or mouse"),
        ("0x020000", interface, "the network interface eth0, which is up"),
        ("0x0c0330", keyboard, "a keyboard or mouse"),
    ],
)
def test_what_the_host_uses_is_never_offered_to_the_vm(
    machine: MachineFactory, pci_class: str, use: Callable[[FakeHost], None], said: str
) -> None:
    host = machine("efifb-6.1")
    add(host, DISK, pci_class, "some-driver")
    known(host)
    idle = refusal(host, GPU).hint
    use(host)

    hint = refusal(host, GPU).hint

    assert f"add {DISK} to win11 too, if the host can do without" in idle
    assert hint.startswith(f"{said}, is on {DISK}" if "," in said else f"{said} is on {DISK}")
    assert " add " not in f" {hint}" and "another slot" in hint


# -- what goes to the VM, and the host uses


def alone(host: FakeHost, pci_class: str) -> None:
    """A device in a group of its own."""
    add(host, DISK, pci_class, "some-driver")
    host.tree.remove(f"{PCI}/{DISK}/iommu_group")
    host.tree.link(f"{ROOT}/{DISK}/iommu_group", "sys/kernel/iommu_groups/77")


@pytest.mark.parametrize(
    ("pci_class", "use"),
    [("0x010802", mounted), ("0x010601", swap), ("0x0c0330", mounted), ("0x010802", btrfs)],
)
def test_a_disk_that_is_mounted_does_not_leave_with_a_gpu(
    machine: MachineFactory, pci_class: str, use: Callable[[FakeHost], None]
) -> None:
    host = machine("efifb-6.1")
    alone(host, pci_class)
    assert plan.plan_for(host, parse(domain_xml(GPU, DISK)), Config()).verdict == plan.START
    use(host)

    error = refusal(host, GPU, DISK)

    assert f"is on {DISK}, which win11 would take away from the host" in error.text
    assert error.hint.startswith("unmount it")


@pytest.mark.parametrize(
    ("pci_class", "use"),
    [("0x0c0330", keyboard), ("0x020000", interface), ("0x010802", volume_group)],
)
def test_what_people_give_to_vms_on_purpose_leaves(
    machine: MachineFactory, pci_class: str, use: Callable[[FakeHost], None]
) -> None:
    host = machine("efifb-6.1")
    alone(host, pci_class)
    use(host)

    assert plan.plan_for(host, parse(domain_xml(GPU, DISK)), Config()).verdict == plan.START


# -- machines of public reports


@pytest.mark.parametrize("name", ["group-not-viable-efifb-5.18", "group-not-viable-efifb-6.1"])
def test_sound_and_disk_in_the_group_of_the_gpu_are_named(
    machine: MachineFactory, name: str
) -> None:
    host = machine(name)

    error = refusal(host, "0000:09:00.0")

    assert error.text == (
        "the IOMMU group of 0000:09:00.0 is not viable, so QEMU could not open it: 0000:02:00.0"
        " (SATA controller, on ahci) and 0000:09:00.1 (audio device, on snd_hda_intel) stay on the"
        " host"
    )
    # Nothing shows what is below the disk controller, so it is not offered.
    assert error.hint == (
        "move the card to another slot, and add 0000:09:00.1 of the same card to win11 too; which"
        " slots have separate groups depends on the mainboard"
    )


def test_nvidia_is_not_unloaded_for_a_group_that_qemu_could_not_open(
    machine: MachineFactory,
) -> None:
    host = machine("group-not-viable-nvidia")

    error = refusal(host, "0000:86:00.0")

    assert "0000:86:00.1 (audio device, on snd_hda_intel) stays on the host" in error.text
    assert error.hint.startswith("add 0000:86:00.1 of the same card to win11 too")


def test_the_group_of_a_device_beside_the_gpu_is_asked_too(machine: MachineFactory) -> None:
    host = machine("group-not-viable-nvidia")
    host.tree.remove(f"{PCI}/0000:86:00.1/iommu_group")
    host.tree.link(f"{PCI}/0000:86:00.1/iommu_group", "sys/kernel/iommu_groups/7")
    other = f"{ROOT}/0000:05:00.0"
    host.tree.put(f"{other}/class", "0x020000")
    host.tree.link(f"{PCI}/0000:05:00.0", other)
    host.tree.link(f"{other}/iommu_group", "sys/kernel/iommu_groups/7")
    host.tree.make_directory("sys/bus/pci/drivers/igb")
    host.tree.link(f"{other}/driver", "sys/bus/pci/drivers/igb")

    error = refusal(host, "0000:86:00.0", "0000:86:00.1")

    assert error.text == (
        "the IOMMU group of 0000:86:00.1 is not viable, so QEMU could not open it: 0000:05:00.0"
        " (Ethernet controller, on igb) stays on the host"
    )


def test_a_device_behind_intel_vmd_is_in_no_group_and_vmd_is_named(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.1")
    bridge = (host.real(f"{PCI}/{GPU}") or "").split("/")[-2]
    host.tree.link(f"{PCI}/{bridge}", f"{ROOT}/{bridge}")
    host.tree.link(f"{ROOT}/{bridge}/driver", "sys/bus/pci/drivers/vmd")
    host.tree.remove(f"{PCI}/{GPU}/iommu_group")
    host.tree.make_directory("sys/kernel/iommu_groups/0")

    error = refusal(host, GPU)

    assert f"it is behind the VMD {bridge}: {GPU} is in no IOMMU group" in error.text
    assert error.hint.startswith("switch Intel VMD off in the firmware's setup")


def of_device_tree(host: FakeHost, unit: str, release: str) -> None:
    """An IOMMU, a root port in group 0, and a GPU behind it that never had a driver."""
    port = (host.real(f"{PCI}/{GPU}") or "").rpartition("/")[0]
    host.tree.remove(f"{PCI}/{GPU}/iommu_group")
    host.tree.remove("sys/kernel/iommu_groups")
    host.tree.remove("sys/class/iommu")
    host.tree.link(f"{port}/iommu_group", "sys/kernel/iommu_groups/0")
    host.tree.make_directory("sys/kernel/iommu_groups/0/devices")
    host.tree.make_directory(f"sys/class/iommu/{unit}")
    host.tree.put("proc/sys/kernel/osrelease", release)


def test_a_gpu_of_arm64_gets_its_group_with_its_first_driver(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    of_device_tree(host, "smmu3.0x0000000009050000", "6.12.117+deb13-arm64")
    vm = parse(domain_xml(GPU))
    planned = plan.plan_for(host, vm, Config())

    events.prepare(host, vm, Config(), Log(host, "win11"))
    FakeLibvirt(host).detach(GPU)
    blocked = open_device(host, GPU)

    assert (planned.verdict, blocked, group(host)) == (plan.START, [], "0")


@pytest.mark.parametrize(
    ("unit", "release"),
    [
        ("dmar0", "6.12.117+deb13-amd64"),
        ("ivhd0", "6.12.117+deb13-amd64"),
        ("smmu3.0x0000000009050000", "6.15.0-arm64"),
    ],
)
def test_where_groups_are_made_with_the_device_none_will_come(
    machine: MachineFactory, unit: str, release: str
) -> None:
    host = machine("efifb-6.12")
    of_device_tree(host, unit, release)

    assert "no IOMMU has it" in refusal(host, GPU).text


def test_what_the_fake_kernel_lets_qemu_open(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    FakeLibvirt(host).detach(GPU)
    viable = open_device(host, GPU)
    add(host, SOUND, "0x040300", "snd_hda_intel")

    with pytest.raises(NotViableError, match=f"{SOUND} is on snd_hda_intel"):
        open_device(host, GPU)

    assert viable == []


def test_a_group_that_another_vm_has_open_is_refused(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    add(host, SOUND, "0x040300")
    host.tree.put(f"{ROOT}/{SOUND}/resource", "")
    host.tree.put(f"{ROOT}/{SOUND}/driver_override", "(null)")
    FakeLibvirt(host).detach(SOUND)
    open_device(host, SOUND, pid=77)

    error = refusal(host, GPU)
    FakeLibvirt(host).detach(GPU)

    assert error.text == (
        f"the IOMMU group of {GPU} is in use by qemu-system-x86 (77) with /dev/vfio/1 open"
    )
    with pytest.raises(NotViableError, match="busy"):
        open_device(host, GPU, pid=78)


def test_a_keyboard_on_the_card_itself_is_plugged_in_elsewhere(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    usb = "0000:01:00.2"
    add(host, usb, "0x0c0330", "xhci_hcd")
    host.tree.make_directory(f"{ROOT}/{usb}/usb1/input/input3")
    host.tree.link("sys/class/input/input3", f"{ROOT}/{usb}/usb1/input/input3")

    assert refusal(host, GPU).hint == (
        f"a keyboard or mouse is on {usb}, a function of the card: have that elsewhere first, then"
        f" add {usb} of the same card to win11 too"
    )


def test_a_snapshot_of_such_a_machine_has_no_names_of_people(
    machine: MachineFactory, tmp_path: Path
) -> None:
    host = machine("efifb-6.1")
    add(host, DISK, "0x0c0330", "xhci_hcd")
    known(host)
    system = "0b5e4c1d-77aa-4c2b-9d55-aa00bb11cc22"
    host.tree.put("proc/self/mountinfo", "24 1 0:35 / /home/fred rw - btrfs /dev/sdb1 rw")
    host.tree.make_directory(f"sys/fs/btrfs/{system}/devices/sdb1")
    for name, path in (("enx3c7c3fa1b2c3", f"{ROOT}/{DISK}/usb1/net"), ("fredsbridge", VIRTUAL)):
        host.tree.put(f"{path}/{name}/operstate", "down")
        host.tree.link(f"sys/class/net/{name}", f"{path}/{name}")
    before = refusal(host, GPU)

    assert cli.main(["record", str(tmp_path / "machine.tree")], host) == 0

    text = (tmp_path / "machine.tree").read_text(encoding="utf-8")
    assert [one for one in (system, "3c7c3fa1b2c3", "fred") if one in text] == []
    (tmp_path / "again").mkdir()
    unpack(text, str(tmp_path / "again"))
    assert refusal(FakeHost(str(tmp_path / "again")), GPU).text == before.text
