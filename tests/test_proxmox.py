"""The hookscript for Proxmox VE: what `qm` would print, the real take and give, fake machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, open_device
from tests.gate import ROOT
from vfio_console_hook.claims.directory import Claims

SCRIPT = ROOT / "config/proxmox-hookscript.py"
GPU, SOUND, CARD = "0000:01:00.0", "0000:01:00.1", "proxmox-card-with-sound"
VMID = "100"
# What `qm config 100 --current 1` of Proxmox VE 9 prints; qemu-server sorts it, and encodes
# the description.
QM = """\
agent: 1
balloon: 0
bios: ovmf
boot: order=scsi0
cores: 8
cpu: host
description: gaming%0Ahostpci9%3A 0000%3A05%3A00.0
efidisk0: local-lvm:vm-100-disk-0,efitype=4m,pre-enrolled-keys=1,size=4M
hookscript: local:snippets/proxmox-hookscript.py
{hostpci}
machine: pc-q35-9.2+pve1
memory: 16384
name: win11
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1
numa: 0
ostype: win11
scsi0: local-lvm:vm-100-disk-1,discard=on,iothread=1,size=128G
scsihw: virtio-scsi-single
vga: none
"""


@dataclass(frozen=True)
class Node:
    """A Proxmox VE host, and the hookscript with its paths led to it."""

    host: FakeHost
    directory: Path

    def hostpci(self, *lines: str) -> None:
        (self.directory / "config").write_text(QM.format(hostpci="\n".join(lines)))

    def mapping(self, *entries: str) -> None:
        (self.directory / "mapping").write_text(json.dumps({"id": "gpu1", "map": list(entries)}))

    def phase(self, phase: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.directory / "hookscript", VMID, phase], capture_output=True, text=True
        )

    def taken(self) -> list[tuple[str, ...]]:
        return [one.gpus for one in Claims(self.host).readable() if one.by_hand]


@pytest.fixture
def node(machine: MachineFactory, tmp_path: Path) -> Callable[[str], Node]:
    def program(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def make(which: str) -> Node:
        host = machine(which)
        words = f'[ "$*" = "config {VMID} --current 1" ] || exit 2'
        qm = program("qm", f"#!/bin/sh\n{words}\nexec cat '{tmp_path}/config'\n")
        wanted = '[ "$*" = "get /cluster/mapping/pci/gpu1 --output-format json" ] || exit 2'
        pvesh = program("pvesh", f"#!/bin/sh\n{wanted}\nexec cat '{tmp_path}/mapping'\n")
        command = program(
            "command",
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            "from tests.fakehost import FakeHost\nfrom vfio_console_hook import cli\n"
            f"sys.exit(cli.main(None, FakeHost({host.root!r})))\n",
        )
        text = SCRIPT.read_text(encoding="utf-8")
        for name, installed, here in (
            ("QM", "/usr/sbin/qm", qm),
            ("PVESH", "/usr/bin/pvesh", pvesh),
            ("COMMAND", "/usr/bin/vfio-console-hook", command),
            ("DEVICES", "/sys/bus/pci/devices", f"{host.root}/sys/bus/pci/devices"),
            ("TAKEN", "/run/vfio-console-hook-proxmox", f"{host.root}/run/proxmox"),
        ):
            line = f'\n{name} = "{installed}"\n'
            assert text.count(line) == 1
            text = text.replace(line, f"\n{name} = {here!r}\n")
        program("hookscript", text.replace("/usr/bin/python3", sys.executable, 1))
        return Node(host, tmp_path)

    return make


def driver(host: FakeHost, address: str) -> str | None:
    return host.link_name(f"sys/bus/pci/devices/{address}/driver")


@pytest.mark.parametrize(
    "hostpci",
    [
        "hostpci0: 0000:01:00,pcie=1,x-vga=1",
        "hostpci0: 01:00",
        "hostpci0: host=0000:01:00.0;0000:01:00.1,pcie=1",
        "hostpci0: 01:00.1\nhostpci1: 01:00.0",
        "hostpci0: mapping=gpu1,pcie=1",
    ],
)
def test_a_vm_gets_its_card_and_the_host_gets_it_back(
    node: Callable[[str], Node], hostpci: str
) -> None:
    one = node(CARD)
    one.hostpci(hostpci)
    name = os.uname().nodename.partition(".")[0]
    one.mapping(
        f"id=10de:2504,iommugroup=1,node={name},path=0000:01:00",
        "id=10de:2504,iommugroup=1,node=another,path=0000:0a:00",
    )

    began = one.phase("pre-start")

    assert (began.returncode, began.stderr) == (0, "")
    assert one.taken() == [(GPU, SOUND)]
    assert (driver(one.host, GPU), driver(one.host, SOUND)) == ("vfio-pci", "vfio-pci")
    assert [one.phase(phase).returncode for phase in ("post-start", "pre-stop")] == [0, 0]
    assert one.taken() == [(GPU, SOUND)]

    ended = one.phase("post-stop")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert (one.taken(), driver(one.host, GPU)) == ([], None)
    assert driver(one.host, SOUND) == "snd_hda_intel"
    assert one.host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver")


@pytest.mark.parametrize(
    "hostpci",
    [
        "onboot: 1",
        "hostpci0: 0000:01:00.1,pcie=1",
        "hostpci0: 0000:01:00.0,mdev=nvidia-63",
        "hostpci0: 0000:01:00.0,driver=keep",
        "hostpci0: 0000:07:00",
    ],
)
def test_nothing_is_taken_for_a_vm_without_a_gpu_of_its_own(
    node: Callable[[str], Node], hostpci: str
) -> None:
    one = node(CARD)
    one.hostpci(hostpci)

    done = [one.phase(phase) for phase in ("pre-start", "post-stop")]

    assert [(each.returncode, each.stdout, each.stderr) for each in done] == [(0, "", "")] * 2
    assert one.host.changes == []


def test_a_refusal_is_in_the_task_log_and_the_vm_does_not_start(
    node: Callable[[str], Node],
) -> None:
    one = node(CARD)
    one.hostpci("hostpci0: 0000:01:00")
    (Path(one.host.root) / "etc/vfio-console-hook/vms").mkdir(parents=True)
    one.host.tree.put(f"etc/vfio-console-hook/vms/{VMID}.yaml", "stages: [vgacon]\nholders: 3\n")

    done = one.phase("pre-start")

    assert done.returncode == 1
    assert f"vms/{VMID}.yaml:2:" in done.stderr
    assert one.taken() == []
    assert one.phase("post-stop").returncode == 0


def test_the_next_start_gives_back_what_a_failed_one_has_left(node: Callable[[str], Node]) -> None:
    one = node(CARD)
    one.hostpci("hostpci0: 0000:01:00")
    one.phase("pre-start")

    again = one.phase("pre-start")

    assert (again.returncode, one.taken()) == (0, [(GPU, SOUND)])
    assert "released" in again.stdout


def test_what_was_taken_is_given_back_after_hostpci_has_changed(
    node: Callable[[str], Node],
) -> None:
    one = node(CARD)
    one.hostpci("hostpci0: 0000:01:00")
    one.phase("pre-start")
    one.hostpci("onboot: 1")

    ended = one.phase("post-stop")

    assert (ended.returncode, one.taken()) == (0, [])


def test_a_gpu_that_qemu_has_open_is_not_given_back(node: Callable[[str], Node]) -> None:
    one = node(CARD)
    one.hostpci("hostpci0: 0000:01:00")
    one.phase("pre-start")
    open_device(one.host, GPU, pid=4711)

    ended = one.phase("post-stop")

    assert (ended.returncode, one.taken()) == (1, [(GPU, SOUND)])


def test_a_mapping_with_two_devices_on_the_node_is_refused(node: Callable[[str], Node]) -> None:
    one = node(CARD)
    one.hostpci("hostpci0: mapping=gpu1")
    name = os.uname().nodename.partition(".")[0]
    one.mapping(*(f"id=10de:2504,node={name},path=0000:0{bus}:00" for bus in (1, 2)))

    done = one.phase("pre-start")

    assert (done.returncode, one.taken()) == (1, [])
    assert "the mapping gpu1 has 2 devices on this node" in done.stderr


def test_a_qm_that_fails_is_one_sentence(node: Callable[[str], Node]) -> None:
    one = node(CARD)

    done = one.phase("pre-start")

    assert done.returncode == 1
    assert (done.stderr.count("\n"), "Traceback" in done.stderr) == (2, False)


def test_the_script_can_be_executed() -> None:
    assert os.access(SCRIPT, os.X_OK)
