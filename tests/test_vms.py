"""The VMs of libvirt; libvirt's own test driver is the libvirt here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.gate import ROOT
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import domain
from vfio_console_hook.commands import vms
from vfio_console_hook.errors import HookError
from vfio_console_hook.machine.host import Host

GPU = "0000:01:00.0"
OTHER = "11111111-2222-4333-8444-555555555555"
_DEVICE = """\
  <device>
    <name>pci_0000_01_00_0</name>
    <parent>computer</parent>
    <capability type='pci'>
      <class>0x030000</class>
      <domain>0</domain><bus>1</bus><slot>0</slot><function>0</function>
      <product id='0x1111'/><vendor id='0x1234'/>
      <iommuGroup number='1'>
        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </iommuGroup>
    </capability>
  </device>
"""


def node(directory: Path, *domains: bytes) -> str:
    """The URI of a libvirt that runs these VMs, on a node with one GPU."""
    found = [one.decode().replace("type='kvm'", "type='test'") for one in domains]
    path = directory / "node.xml"
    path.write_text(f"<node>\n{''.join(found)}{_DEVICE}</node>\n", encoding="utf-8")
    return f"test://{path}"


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[str]:
    """The URI of a libvirt that accepts connections and never answers."""
    path = tmp_path / "libvirt-sock-ro"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield f"qemu+unix:///system?socket={path}"


def test_the_vms_of_libvirts_own_test_driver(machine: MachineFactory) -> None:
    found = vms.known_vms(machine("efifb-6.12"), "test:///default")

    assert [(one.name, one.uuid, one.autostart) for one in found] == [
        ("test", "6695eb01-f6a4-8304-79aa-97f2502e193f", False)
    ]
    assert (found[0].live.count("<domain"), found[0].xml.count("<domain")) == (1, 1)


def test_a_vm_that_runs_has_its_gpu_in_both_its_xmls(
    machine: MachineFactory, tmp_path: Path
) -> None:
    uri = node(tmp_path, domain_xml(GPU), domain_xml(name="plain", uuid=OTHER))

    plain, win11 = vms.known_vms(machine("efifb-6.12"), uri)

    assert [domain.hostdev_addresses(xml.encode()) for xml in (win11.xml, win11.live)] == [
        (GPU,), (GPU,),
    ]  # fmt: skip
    assert (plain.name, plain.uuid, domain.hostdev_addresses(plain.xml.encode())) == (
        "plain", OTHER, (),
    )  # fmt: skip
    # Only the XML of a run has the number of the run.
    assert (" id='" in win11.live.splitlines()[0], " id='" in win11.xml.splitlines()[0]) == (
        True, False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["win11", UUID, UUID.upper(), UUID.replace("-", "")])
def test_a_vm_is_found_by_name_and_by_uuid(
    machine: MachineFactory, tmp_path: Path, name: str
) -> None:
    uri = node(tmp_path, domain_xml(GPU), domain_xml(name="plain", uuid=OTHER))

    assert vms.vm_named(machine("efifb-6.12"), uri, name).uuid == UUID


@pytest.mark.parametrize(
    ("name", "near"),
    [("win10", ", did you mean win11?"), ("Win11", ", did you mean win11?"), ("xyz", "")],
)
def test_the_error_for_an_unknown_vm_lists_the_known_ones(
    machine: MachineFactory, tmp_path: Path, name: str, near: str
) -> None:
    uri = node(tmp_path, domain_xml(GPU), domain_xml(name="plain", uuid=OTHER))

    with pytest.raises(HookError) as caught:
        vms.vm_named(machine("efifb-6.12"), uri, name)

    assert (caught.value.text, caught.value.hint) == (
        f"libvirt at {uri} has no VM {name}{near}", "it has plain, win11",
    )  # fmt: skip


def test_a_libvirt_without_vms_is_an_error(machine: MachineFactory, tmp_path: Path) -> None:
    uri = node(tmp_path)

    with pytest.raises(HookError) as caught:
        vms.vm_named(machine("efifb-6.12"), uri, "win11")

    assert (uri in caught.value.text, caught.value.hint != "") == (True, True)


def test_the_error_for_a_missing_libvirt_is_that_of_libvirt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"

    with pytest.raises(HookError) as caught:
        vms.known_vms(Host(str(tmp_path)), uri)

    assert caught.value.text == (
        f"cannot ask libvirt at {uri}: Failed to connect socket to '{tmp_path}/none': No such file"
        " or directory"
    )
    assert capfd.readouterr() == ("", "")


def test_a_libvirt_that_does_not_answer_costs_ten_seconds(deaf: str, tmp_path: Path) -> None:
    began = time.monotonic()

    with pytest.raises(HookError) as caught:
        vms.known_vms(Host(str(tmp_path)), deaf)

    assert f"{deaf} does not answer within 10 s" in caught.value.text
    assert 9 < time.monotonic() - began < 13


def test_without_libvirt_python_the_hint_names_the_package(tmp_path: Path) -> None:
    # A module of that name that cannot be loaded replaces one that is not installed.
    (tmp_path / "libvirt.py").write_text("raise ImportError('No module named libvirtmod')\n")
    program = (
        "from vfio_console_hook.machine import libvirtd\n"
        "try: libvirtd.vms('test:///default')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip

    assert (done.stderr, done.stdout) == (
        "",
        "HostError cannot ask libvirt for its VMs: there is no libvirt-python (No module named"
        " libvirtmod) (hint: install python3-libvirt, as Debian and Fedora call it, or pipe `virsh"
        " dumpxml VM | vfio-console-hook plan --xml -`)\n",
    )
