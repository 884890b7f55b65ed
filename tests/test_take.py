"""take and give of whole cards."""

from __future__ import annotations

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, configure, hold, open_device, snapshot
from vfio_console_hook import cli
from vfio_console_hook.claims.directory import Claims

Capture = pytest.CaptureFixture[str]
PCI = "sys/bus/pci/devices"
HARVESTER = ("0000:b3:00.0", "0000:b3:00.1")
GPU, SOUND, USB, UCSI = (f"0000:01:00.{function}" for function in range(4))
ROOT_PORT = "sys/devices/pci0000:00/0000:00:01.0"
ALIASES = "lib/modules/{}/modules.alias"


def act(host: FakeHost, *words: str) -> int:
    return cli.main(words, host)


def drivers(host: FakeHost, *addresses: str) -> list[str | None]:
    return [host.link_name(f"{PCI}/{one}/driver") for one in addresses]


def function(host: FakeHost, address: str, pci_class: str, driver: str, group: str) -> str:
    """Another function behind the same root port as the GPU's; its path in sysfs."""
    path = f"{ROOT_PORT}/{address}"
    host.tree.put(f"{path}/class", pci_class)
    host.tree.put(f"{path}/resource", "")
    host.tree.put(f"{path}/driver_override", "(null)")
    host.tree.link(f"{PCI}/{address}", path)
    host.tree.link(f"{path}/iommu_group", f"sys/kernel/iommu_groups/{group}")
    host.tree.put(f"fake/native/{address}", f"driver={driver}")
    for door in ("bind", "unbind"):
        host.tree.put(f"sys/bus/pci/drivers/{driver}/{door}", "")
    host.tree.link(f"{path}/driver", f"sys/bus/pci/drivers/{driver}")
    return path


def turing(host: FakeHost) -> FakeHost:
    """A card with sound, USB and USB-C, as NVIDIA's of 2018 to 2020 have them, in one group."""
    for address, pci_class, driver in (
        (SOUND, "0x040300", "snd_hda_intel"),
        (USB, "0x0c0330", "xhci_hcd"),
        (UCSI, "0x0c8000", "nvidia-gpu"),
    ):
        function(host, address, pci_class, driver, "1")
    return host


@pytest.mark.parametrize("name", ["harvester-card-with-sound", "proxmox-card-with-sound"])
@pytest.mark.parametrize("named", [0, 1], ids=["GPU", "sound"])
def test_take_binds_the_whole_card_and_give_returns_it(
    machine: MachineFactory, capsys: Capture, name: str, named: int
) -> None:
    host = machine(name)
    card = HARVESTER if name.startswith("harvester") else (GPU, SOUND)
    before = drivers(host, *card)
    assert before == [None, "snd_hda_intel"]

    took = act(host, "take", "--vfio", card[named])
    taken = drivers(host, *card)
    blocked = [open_device(host, one, pid=7) for one in card]
    host.kill(7)
    status = act(host, "give", card[1 - named])

    out, err = capsys.readouterr()
    assert (took, status, err) == (0, 0, "")
    assert (taken, blocked) == (["vfio-pci", "vfio-pci"], [[], []])
    assert f"took {card[0]} {card[1]}; release it" in out
    assert drivers(host, *card) == before
    assert Claims(host).uuids() == ()


def test_all_functions_of_a_card_leave_and_come_back(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = turing(machine("efifb-6.12"))
    card = (GPU, SOUND, USB, UCSI)
    before = snapshot(host)

    act(host, "take", "01:00.0")
    taken = drivers(host, *card)
    status = act(host, "give", "01:00.0")

    assert (taken, status, capsys.readouterr().err) == ([None] * 4, 0, "")
    assert drivers(host, *card) == [None, "snd_hda_intel", "xhci_hcd", "nvidia-gpu"]
    after = snapshot(host)
    assert {path for path in before if after.get(path) != before[path]} == set()


def test_functions_in_groups_of_their_own_stay(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    function(host, SOUND, "0x040300", "snd_hda_intel", "8")

    act(host, "take", "--vfio", "01:00.0")

    assert drivers(host, GPU, SOUND) == ["vfio-pci", "snd_hda_intel"]
    assert f"took {GPU};" in capsys.readouterr().out


def test_a_function_that_is_named_leaves_too(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    function(host, SOUND, "0x040300", "snd_hda_intel", "8")

    status = act(host, "take", "--vfio", "01:00.0", "01:00.1")

    assert (status, drivers(host, GPU, SOUND)) == (0, ["vfio-pci", "vfio-pci"])


@pytest.mark.parametrize(
    ("name", "gpu", "reason"),
    [
        ("group-not-viable-efifb-5.18", "09:00.0", "0000:02:00.0 (SATA controller, on ahci) stays"),
        ("group-not-viable-efifb-6.1", "09:00.0", "0000:02:00.0 (SATA controller, on ahci) stays"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--vfio",)])
def test_a_group_that_stays_not_viable_is_refused_before_anything_is_touched(
    machine: MachineFactory,
    capsys: Capture,
    name: str,
    gpu: str,
    reason: str,
    options: tuple[str, ...],
) -> None:
    host = machine(name)
    before = snapshot(host)

    status = act(host, "take", *options, gpu)

    out, err = capsys.readouterr()
    assert (status, out, snapshot(host), host.changes) == (1, "", before, [])
    assert "is not viable, so QEMU could not open it" in err and reason in err
    assert "hint: move the card to another slot; which slots" in err


def test_a_device_that_only_shares_the_group_of_a_gpu_is_not_taken_without_it(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("group-not-viable-efifb-6.1")

    status = act(host, "take", "02:00.0")

    said = capsys.readouterr().err
    assert (status, host.changes) == (1, [])
    assert "0000:02:00.0 is not a GPU, but in the IOMMU group of 0000:09:00.0" in said
    assert "hint: name that GPU" in said


def test_a_usb_controller_with_the_keyboard_is_never_taken(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = turing(machine("efifb-6.12"))
    path = f"{ROOT_PORT}/{USB}/usb1/1-1/input/input3"
    host.tree.make_directory(path)
    host.tree.link("sys/class/input/input3", path)
    before = snapshot(host)

    status = act(host, "take", "01:00.0")

    assert (status, snapshot(host)) == (1, before)
    assert f"a keyboard or mouse is on {USB}, which has to leave" in capsys.readouterr().err


def test_a_mixer_that_has_the_sound_open_is_named(machine: MachineFactory, capsys: Capture) -> None:
    host = turing(machine("efifb-6.12"))
    configure(host, "holders: {wait_s: 0}\n")
    path = f"{ROOT_PORT}/{SOUND}/sound/card0/controlC0"
    host.tree.make_directory(path)
    host.tree.link("sys/class/sound/controlC0", path)
    hold(host, "dev/snd/controlC0", pid=99, command="alsamixer")

    status = act(host, "take", "01:00.0")

    assert (status, drivers(host, SOUND)) == (1, ["snd_hda_intel"])
    assert "alsamixer (99)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("aliases", "driver"),
    [
        ((), "vfio-pci"),
        (("v*d*sv*sd*bc*sc*i* vfio_pci",), "vfio-pci"),
        # The fewest wildcards count, whatever the order.
        (
            (
                "v00001234d*sv*sd*bc*sc*i* one_vfio_pci",
                "v00001234d00001111sv*sd*bc*sc*i* two_vfio_pci",
                "v*d*sv*sd*bc*sc*i* vfio_pci",
            ),
            "two_vfio_pci",
        ),
        (("v000010DEd*sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci",), "vfio-pci"),
    ],
)
def test_take_binds_the_variant_of_vfio_pci_that_libvirt_would(
    machine: MachineFactory, aliases: tuple[str, ...], driver: str
) -> None:
    host = machine("efifb-6.12")
    list_ = ALIASES.format(host.read("proc/sys/kernel/osrelease"))
    host.tree.put(list_, "# Aliases\n" + "".join(f"alias vfio_pci:{one}\n" for one in aliases))

    act(host, "take", "--vfio", "01:00.0")
    bound = drivers(host, GPU)
    act(host, "give", "01:00.0")

    assert (bound, drivers(host, GPU)) == ([driver], [None])
    assert Claims(host).uuids() == ()


def test_take_for_a_vm_uses_its_configuration(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    configure(host, "stages: [fbcon]\n", "vms/101.yaml")

    status = act(host, "take", "--for", "101", "01:00.0")

    out, err = capsys.readouterr()
    assert out.startswith("configuration: /etc/vfio-console-hook/vms/101.yaml\n")
    assert (status, "efifb still reserves" in err) == (1, True)


@pytest.mark.parametrize("crash_before", range(1, 14))
def test_give_returns_all_of_a_card_whose_take_was_killed(
    machine: MachineFactory, capfd: Capture, crash_before: int
) -> None:
    host = turing(machine("efifb-6.12"))
    before = snapshot(host)

    took = act(FakeHost(host.root, crash_before=crash_before), "take", "--vfio", "01:00.0")
    if Claims(host).uuids():
        assert act(host, "give", "01:00.2") == 0

    after = snapshot(host)
    assert took == 1
    assert drivers(host, GPU, SOUND, USB, UCSI) == [None, "snd_hda_intel", "xhci_hcd", "nvidia-gpu"]
    changed = {path for path in before if after.get(path) != before[path]}
    assert not {one for one in changed if "driver" in one or "bind" in one or "iomem" in one}
    assert Claims(host).uuids() == ()
