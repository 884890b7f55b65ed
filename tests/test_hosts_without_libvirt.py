"""Hosts on which libvirt calls no hook: without libvirt, or with its daemon in a container."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import snapshots
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, configure
from tests.gate import ROOT
from vfio_console_hook import cli
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.doctor import installation
from vfio_console_hook.commands.doctor.areas import AREAS
from vfio_console_hook.commands.doctor.consoles import console_after
from vfio_console_hook.commands.doctor.daemon_view import files_of_the_daemon
from vfio_console_hook.commands.doctor.finding import FAIL, PASS, Finding
from vfio_console_hook.commands.doctor.system import System

Capture = pytest.CaptureFixture[str]

PROXMOX, CONTAINER = "proxmox-without-libvirt", "libvirtd-in-a-container"
PID = 287
ROOT_OF_IT = f"proc/{PID}/root"


@pytest.fixture(autouse=True)
def recorded_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is of the version that is installed on these machines."""
    monkeypatch.setattr(installation, "__version__", "0.1.0")


def printed(capsys: Capture, name: str, command: str) -> tuple[int, str]:
    status = cli.main(["--root", str(snapshots.FOLDER / f"{name}.tree"), command])
    return status, capsys.readouterr().out


@pytest.fixture
def whole(tmp_path: Path) -> Callable[[str], FakeHost]:
    """A machine with all that plan, doctor and status read."""

    def make(name: str) -> FakeHost:
        snapshots.unpack_into(name, tmp_path / "whole")
        return FakeHost(str(tmp_path / "whole"))

    return make


# -- without libvirt


def test_doctor_finds_nothing_wrong_on_a_host_without_libvirt(capsys: Capture) -> None:
    status, out = printed(capsys, PROXMOX, "doctor")

    assert (status, out.splitlines()[-1]) == (0, "no problems found")
    assert "PASS  daemon: there is no libvirt on this host: GPUs are taken and given back" in out


def test_doctor_does_not_look_at_the_gate_on_a_host_without_libvirt(
    whole: Callable[[str], FakeHost],
) -> None:
    host = whole(PROXMOX)
    host.tree.put("etc/libvirt/hooks/qemu", "broken\r\n")
    host.tree.put("stat/etc/libvirt/hooks/qemu", "100644 0 0 1795395996")

    found = [one for area in AREAS for one in area.findings(System(host, libvirt_error="no"))]

    assert {one.level for one in found} == {PASS}


def test_the_program_is_checked_all_the_same(whole: Callable[[str], FakeHost]) -> None:
    host = whole(PROXMOX)
    (Path(host.root) / "usr/lib/vfio-console-hook/hook").unlink()
    host.tree.remove("stat/usr/lib/vfio-console-hook/hook")

    found = [one for area in AREAS for one in area.findings(System(host)) if one.level == FAIL]

    assert [one.text for one in found] == ["there is no /usr/lib/vfio-console-hook/hook"]


@pytest.mark.parametrize("where", ["usr/sbin/libvirtd", "usr/bin/virtqemud", "run/libvirtd.pid"])
def test_with_libvirt_the_gate_is_checked(whole: Callable[[str], FakeHost], where: str) -> None:
    host = whole(PROXMOX)
    host.tree.put(where, "")

    found = {one.subject for area in AREAS for one in area.findings(System(host))}

    assert "hook" in found


def test_a_card_that_take_would_take_whole_is_in_order(
    whole: Callable[[str], FakeHost],
) -> None:
    host = whole("proxmox-card-with-sound")
    host.tree.put("recorded/now", "1795396063")

    found = {one.subject: one for area in AREAS for one in area.findings(System(host))}

    group = found["IOMMU group of 0000:01:00.0"]
    assert (group.level, "shares group 1" in group.text) == (PASS, True)
    assert found["console on 0000:01:00.0"].level == PASS
    assert [one for one in found.values() if "hostdev" in one.advice] == []


def test_doctor_does_not_mind_that_vms_are_switched_off(
    whole: Callable[[str], FakeHost], capsys: Capture
) -> None:
    host = whole(PROXMOX)
    configure(host, "enabled: false\n")

    (found,) = console_after(System(host))

    assert (found.level, found.text) == (
        PASS, "the firmware console comes back on efi-framebuffer.0"
    )  # fmt: skip


def test_status_says_how_gpus_are_taken_there(capsys: Capture) -> None:
    _, out = printed(capsys, PROXMOX, "status")

    assert out.startswith("no GPU is taken\n")
    assert "there is no libvirt on this host: `take` and `give` free a GPU" in out


def test_a_host_with_libvirt_is_not_told_so(capsys: Capture) -> None:
    _, out = printed(capsys, CONTAINER, "status")

    assert "no libvirt" not in out


def test_plan_shows_what_take_would_do(capsys: Capture, tmp_path: Path) -> None:
    tree = str(snapshots.FOLDER / "proxmox-card-with-sound.tree")

    status = cli.main(["--root", tree, "plan", "01:00.0"])

    out = capsys.readouterr().out
    assert (status, out.splitlines()[0]) == (0, "take --vfio 0000:01:00.0 0000:01:00.1")
    assert "\nit would be taken\n" in out
    assert "  assigned by the command take; " in out
    assert "echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind" in out


@pytest.mark.parametrize("config", ["", "enabled: false\n"])
def test_the_plan_of_an_address_is_what_take_does(
    machine: MachineFactory, capsys: Capture, config: str
) -> None:
    host = machine("proxmox-card-with-sound")
    configure(host, config)
    cli.main(["plan", "--json", "01:00.0"], host)
    planned = json.loads(capsys.readouterr().out)["steps"]

    cli.main(["take", "--vfio", "01:00.0"], host)

    (claim,) = Claims(host).readable()
    assert [step.why for step in claim.steps] == [step["why"] for step in planned]
    capsys.readouterr()
    assert cli.main(["plan", "01:00.0"], host) == 1
    assert "is already taken by hand" in capsys.readouterr().err


def test_plan_asks_for_no_vm_there(capsys: Capture) -> None:
    tree = str(snapshots.FOLDER / f"{PROXMOX}.tree")

    status = cli.main(["--root", tree, "plan", "100"])

    assert (status, capsys.readouterr().err) == (
        1,
        "vfio-console-hook: there is no libvirt on this host that knows 100\n"
        "hint: name the GPU instead: `vfio-console-hook plan ADDRESS`\n",
    )


# -- a daemon with other files


def finding(host: FakeHost) -> Finding | None:
    found = list(files_of_the_daemon(System(host)))
    return found[0] if found else None


def give_it(host: FakeHost, *paths: str) -> None:
    """Let the daemon see these files, the gate with its content."""
    for path in paths:
        gate = (ROOT / "hooks/qemu").read_text(encoding="utf-8")
        host.tree.put(f"{ROOT_OF_IT}/{path}", gate if path.endswith("hooks/qemu") else "")


GATE, PROGRAM = "etc/libvirt/hooks/qemu", "usr/lib/vfio-console-hook/hook"


def test_a_daemon_in_a_container_without_the_hook_fails(capsys: Capture) -> None:
    status, out = printed(capsys, CONTAINER, "doctor")

    plain = " ".join(out.split())
    assert status == 1
    assert (
        f"FAIL files of libvirtd: libvirtd (process {PID}, docker-3f9a.scope) has files of its own,"
        " as in a container, and no hook among them: VMs start without it"
    ) in plain
    assert "hook known" not in plain


@pytest.mark.parametrize(
    ("paths", "level", "text"),
    [
        ((GATE,), FAIL, f"with /{GATE} but without /{PROGRAM}: VMs with a PCI device are refused"),
        ((GATE, PROGRAM), FAIL, "but without /usr/bin/python3"),
        ((GATE, PROGRAM, "usr/bin/python3"), PASS, f"and /{GATE} is among them"),
        ((PROGRAM, "usr/bin/python3"), FAIL, "no hook among them"),
    ],
)
def test_what_the_daemon_sees_decides(
    whole: Callable[[str], FakeHost], paths: tuple[str, ...], level: str, text: str
) -> None:
    host = whole(CONTAINER)
    give_it(host, *paths)

    found = finding(host)

    assert found and (found.level, text in found.text) == (level, True)


def test_a_daemon_in_the_hosts_namespace_sees_the_hosts_files(
    whole: Callable[[str], FakeHost],
) -> None:
    host = whole(CONTAINER)
    (Path(host.root) / f"proc/{PID}/ns/mnt").unlink()
    host.tree.text_link(f"proc/{PID}/ns/mnt", host.readlink("proc/self/ns/mnt") or "")

    assert finding(host) is None


def test_a_daemon_after_chroot_sees_other_files(whole: Callable[[str], FakeHost]) -> None:
    host = whole(CONTAINER)
    (Path(host.root) / f"proc/{PID}/ns/mnt").unlink()
    host.tree.text_link(f"proc/{PID}/ns/mnt", host.readlink("proc/self/ns/mnt") or "")
    host.tree.text_link(ROOT_OF_IT, "/srv/libvirt")

    found = finding(host)

    assert found and found.level == FAIL


def test_a_record_has_what_the_daemon_sees(
    whole: Callable[[str], FakeHost], capsys: Capture, tmp_path: Path
) -> None:
    host = whole(CONTAINER)
    give_it(host, GATE, PROGRAM)
    host.tree.text_link("proc/1/ns/mnt", host.readlink("proc/self/ns/mnt") or "")

    cli.main(["record", str(tmp_path / "again.tree")], host)
    capsys.readouterr()
    cli.main(["--root", str(tmp_path / "again.tree"), "doctor"])
    again = capsys.readouterr().out
    cli.main(["doctor"], host)

    assert capsys.readouterr().out == again
    assert f"with /{GATE} but without" in " ".join(again.split())
