"""What could not be given back after a VM: it stays visible until it is back, or dismissed."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Golden, MachineFactory, domain_xml
from tests.doctoring import system_of
from tests.fakehost import FakeHost, FakeLibvirt, close_device, configure, open_device
from tests.libvirt_xml import UUID
from vfio_console_hook import cli, hook
from vfio_console_hook.claims import losses
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.doctor import claims, refusals
from vfio_console_hook.commands.doctor.finding import PASS, WARN
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.status import metrics, overview
from vfio_console_hook.commands.status.command import status_text
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import parse

STRIX, RX9070 = "strix-halo-driver-does-not-come-back", "rx9070-d3cold-after-the-vm"
LAPTOP, REATTACH = "laptop-3d-controller-in-d3", "amdgpu-reattach-hangs-in-libvirt"
GPUS = {
    STRIX: ("0000:f5:00.0", "0000:f5:00.1", "0000:f5:00.6"),
    RX9070: ("0000:03:00.0", "0000:03:00.1"),
    LAPTOP: ("0000:01:00.0",),
    REATTACH: ("0000:09:00.0", "0000:09:00.1"),
}
AFTER_VM = {STRIX: "probe=-22", RX9070: "silent healed=reset", LAPTOP: "silent"}
"""What becomes of the GPU after a VM, in the words of tests/fakehost/pci.py."""
PCI = "sys/bus/pci"
Capture = pytest.CaptureFixture[str]


def event(host: FakeHost, name: str, words: str) -> int:
    return hook.main(["win11", *words.split(), "-"], domain_xml(*GPUS[name]), host)


def run_vm(host: FakeHost, name: str) -> int:
    """A VM starts and ends; the exit status of release."""
    up_to_the_end(host, name)
    return event(host, name, "release end")


def up_to_the_end(host: FakeHost, name: str) -> None:
    """The same, up to what libvirt does before it calls release."""
    libvirt = FakeLibvirt(host)
    assert event(host, name, "prepare begin") == 0
    for address in GPUS[name]:
        libvirt.detach(address)
    assert event(host, name, "start begin") == 0
    assert open_device(host, GPUS[name][0]) == []
    assert event(host, name, "started begin") == 0
    close_device(host, GPUS[name][0])
    assert event(host, name, "stopped end") == 0
    for address in GPUS[name]:
        libvirt.reattach(address)


def texts(host: FakeHost) -> list[str]:
    return [one.text for one in losses.current(host)]


def planned(host: FakeHost, name: str) -> plan.Plan:
    return plan.plan_for(host, parse(domain_xml(*GPUS[name])), Config(apu="allow"))


def driver(host: FakeHost, address: str) -> str | None:
    return host.link_name(f"{PCI}/devices/{address}/driver")


def warnings(host: FakeHost) -> list[str]:
    return [one.text for one in claims.lost(system_of(host)) if one.level == WARN]


def made(machine: MachineFactory, name: str) -> FakeHost:
    """The machine, which lets an APU go, and whose GPU a guest breaks."""
    host = machine(name)
    host.tree.put(f"fake/after_vm/{GPUS[name][0]}", AFTER_VM[name])
    configure(host, "apu: allow\n")
    return host


# -- a driver whose probe fails


def test_a_driver_that_does_not_come_back_is_shown_everywhere(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = made(machine, STRIX)
    gpu = GPUS[STRIX][0]
    lost = f"amdgpu did not come back to {gpu}"

    status = run_vm(host, STRIX)

    assert (status, Claims(host).uuids(), driver(host, gpu)) == (1, (), None)
    assert texts(host) == [lost, "the host's consoles are not shown: no framebuffer is left"]
    assert f"not all came back: {lost}" in capsys.readouterr().err
    assert cli.main(["status"], host) == 1
    out = capsys.readouterr().out
    assert "lost after win11" in out and lost in out and "release: done" not in out
    assert f'losses{{vm="win11",gpu="{gpu}"}} 2' in metrics.text(overview.current(host))
    assert warnings(host) == texts(host)


def test_a_native_driver_that_has_no_framebuffer_is_not_to_be_loaded_again(
    machine: MachineFactory,
) -> None:
    host, gpu = machine("nvidia-beside-simpledrm-6.11"), "07:00.0"

    assert cli.main(["take", "--vfio", gpu], host) == 0
    assert cli.main(["give", gpu], host) == 0

    (dark,) = (one for one in losses.current(host) if "no framebuffer is left" in one.text)
    assert driver(host, f"0000:{gpu}") == "nvidia"
    assert dark.hint == (
        "nvidia has a framebuffer only with nvidia_drm.modeset=1, the default from 595 on, and"
        " fbdev=1, from 570 on"
    )


def test_a_reset_is_offered_with_the_methods_that_the_device_has(machine: MachineFactory) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)

    hint = losses.current(host)[0].hint

    gpu = GPUS[STRIX][0]
    assert f"`echo 1 > /{PCI}/devices/{gpu}/reset; echo {gpu} > /{PCI}/drivers_probe`" in hint
    assert "(by flr; pm can be written to its reset_method)" in hint
    assert "disable_idle_d3" not in hint and "d3cold_allowed" not in hint


def test_the_next_plan_promises_nothing_that_is_lost(machine: MachineFactory) -> None:
    host = made(machine, STRIX)
    before = planned(host, STRIX)
    run_vm(host, STRIX)

    after = planned(host, STRIX)

    assert (before.note, before.after) == ("", "the console comes back with amdgpu")
    assert after.after == "there is nothing to give back: no console of the host is on it"
    assert "amdgpu did not come back" in after.note


def test_what_is_mended_by_hand_is_quiet(machine: MachineFactory, capsys: Capture) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)
    host.tree.remove(f"fake/broken/{GPUS[STRIX][0]}")
    host.write(f"{PCI}/drivers_probe", GPUS[STRIX][0])

    status = cli.main(["status"], host)

    assert (status, texts(host), warnings(host)) == (0, [], [])
    assert "losses{" not in metrics.text(overview.current(host))
    assert planned(host, STRIX).note == ""


def test_what_was_mended_is_not_lost_while_the_next_vm_has_it(machine: MachineFactory) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)
    host.tree.remove(f"fake/broken/{GPUS[STRIX][0]}")
    host.write(f"{PCI}/drivers_probe", GPUS[STRIX][0])

    assert event(host, STRIX, "prepare begin") == 0

    assert texts(host) == []


def test_a_loss_is_as_it_was_while_the_next_vm_has_the_gpu(machine: MachineFactory) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)
    before = texts(host)

    assert event(host, STRIX, "prepare begin") == 0
    FakeLibvirt(host).detach(GPUS[STRIX][0])

    assert texts(host) == before


def test_a_loss_that_is_dismissed_is_quiet(machine: MachineFactory, capsys: Capture) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)

    dismissed = cli.main(["dismiss", "win11"], host)

    assert (dismissed, texts(host), warnings(host)) == (0, [], [])
    assert cli.main(["status"], host) == 0
    capsys.readouterr()
    assert cli.main(["dismiss"], host) == 0
    nothing = "nothing to dismiss: nothing was refused or lost, or all of it is back\n"
    assert capsys.readouterr().out == nothing


@pytest.mark.parametrize("what", ["f5:00.0", "F5:00.0", "0000:f5:00.0", UUID, "win11"])
def test_a_loss_is_dismissed_by_vm_or_gpu(machine: MachineFactory, what: str) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)

    assert (cli.main(["dismiss", what], host), texts(host)) == (0, [])


def test_the_line_that_dismisses_is_one_to_copy(machine: MachineFactory, capsys: Capture) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)
    lost = losses.current(host)[0]
    losses.forget(host, losses.current(host))
    losses.add(host, replace(lost, vm="my vm"))

    cli.main(["status"], host)

    line = capsys.readouterr().out.partition("vfio-console-hook dismiss ")[2].partition("`")[0]
    assert cli.main(["dismiss", *shlex.split(line)], host) == 0
    assert texts(host) == []


def test_the_whole_status(machine: MachineFactory, golden: Golden) -> None:
    host = made(machine, RX9070)
    run_vm(host, RX9070)

    text = status_text(overview.current(host), Terminal())

    lasting = text.partition("last event")[0]
    golden("status-lost", re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", lasting))


def test_to_dismiss_what_was_not_lost_is_refused(machine: MachineFactory, capsys: Capture) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)

    status = cli.main(["dismiss", "win11", "other"], host)

    assert (status, len(texts(host))) == (1, 2)
    assert "nothing was refused or lost of other" in capsys.readouterr().err


def test_a_loss_is_gone_with_the_boot(machine: MachineFactory) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)

    host.boot_again()

    assert texts(host) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 1}', "[" * 9999, '{"losses": [{}]}'])
def test_a_file_of_losses_that_cannot_be_understood_counts_as_none(
    machine: MachineFactory, text: str
) -> None:
    host = machine(STRIX)
    host.tree.put(losses.FILE, text)

    assert (texts(host), cli.main(["status"], host)) == ([], 0)


def test_every_user_can_see_a_loss(machine: MachineFactory) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)
    status = host.stat(losses.FILE)

    assert status is not None
    assert status.st_mode & 0o777 == 0o644


def test_json_has_the_losses(machine: MachineFactory, capsys: Capture) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)
    capsys.readouterr()

    cli.main(["status", "--json"], host)

    first = json.loads(capsys.readouterr().out)["lost"][0]
    assert (first["vm"], first["gpu"], first["stage"], first["announced"]) == (
        "win11", "0000:f5:00.0", "native", False,
    )  # fmt: skip


def test_a_driver_that_was_unloaded_meanwhile_is_named_with_the_line_that_loads_it(
    machine: MachineFactory,
) -> None:
    host = machine(REATTACH)
    up_to_the_end(host, REATTACH)
    gpu = GPUS[REATTACH][0]
    host.write(f"{PCI}/drivers/amdgpu/unbind", gpu)
    host.tree.remove(f"{PCI}/drivers/amdgpu")

    assert event(host, REATTACH, "release end") == 1

    lost = losses.current(host)[0]
    assert lost.text == f"amdgpu did not come back to {gpu}: the driver is not loaded"
    assert lost.hint == f"load it with `modprobe $(cat /{PCI}/devices/{gpu}/modalias)`"


def test_a_loss_is_no_refusal_that_stays_after_it_is_mended(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = made(machine, STRIX)
    run_vm(host, STRIX)
    host.tree.remove(f"fake/broken/{GPUS[STRIX][0]}")
    host.write(f"{PCI}/drivers_probe", GPUS[STRIX][0])
    capsys.readouterr()

    cli.main(["status"], host)

    out = " ".join(capsys.readouterr().out.split())
    assert "last failure" not in out
    assert "release: failed: not all came back" in out
    assert [one.level for one in refusals.last_refusal(system_of(host))] == [PASS]


# -- power and reset


def test_a_gpu_that_does_not_wake_up_is_shown_with_the_settings_that_keep_it_awake(
    machine: MachineFactory,
) -> None:
    host = made(machine, RX9070)

    assert run_vm(host, RX9070) == 1

    lost = losses.current(host)[0]
    gpu = GPUS[RX9070][0]
    assert lost.text == (
        f"amdgpu did not come back to {gpu}, which does not answer (power state D3cold)"
    )
    assert "`options vfio-pci disable_idle_d3=1` in /etc/modprobe.d" in lost.hint
    assert f"`echo 0 > /{PCI}/devices/{gpu}/d3cold_allowed` at each boot" in lost.hint


def test_a_gpu_that_does_not_answer_is_refused_to_the_next_vm(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = made(machine, RX9070)
    run_vm(host, RX9070)
    begun = len(host.changes)
    capsys.readouterr()

    found = planned(host, RX9070)
    status = event(host, RX9070, "prepare begin")

    assert (found.verdict, status, host.changes[begun:]) == (plan.REFUSE, 1, [])
    assert found.reason.startswith("0000:03:00.0 does not answer")
    assert found.reason in capsys.readouterr().err


@pytest.mark.parametrize("retry", ["never", "reset"])
@pytest.mark.parametrize(("name", "wanted"), [(RX9070, "amdgpu"), (LAPTOP, "nvidia")])
def test_retry_resets_the_gpu_once_and_probes_again(
    machine: MachineFactory, name: str, wanted: str, retry: str
) -> None:
    host = made(machine, name)
    configure(host, f"release: {{retry: {retry}}}\n")
    gpu = GPUS[name][0]
    host.tree.put(f"fake/after_vm/{gpu}", "silent healed=reset")

    status = run_vm(host, name)

    resets = [path for _, path, _ in host.changes if path == f"{PCI}/devices/{gpu}/reset"]
    back = retry == "reset"
    assert (status, len(resets)) == (int(not back), int(back))
    assert (driver(host, gpu), texts(host) == []) == (wanted if back else None, back)


def test_a_reset_that_does_not_help_is_reported(machine: MachineFactory, capsys: Capture) -> None:
    host = made(machine, STRIX)
    configure(host, "apu: allow\nrelease: {retry: reset}\n")

    status = run_vm(host, STRIX)

    gpu = GPUS[STRIX][0]
    resets = [path for _, path, _ in host.changes if path.endswith("/reset")]
    assert (status, resets) == (1, [f"{PCI}/devices/{gpu}/reset"])
    assert f"did not come back to {gpu}, not even after a reset" in capsys.readouterr().err


def test_only_a_setting_that_is_not_set_is_named(machine: MachineFactory) -> None:
    host = made(machine, LAPTOP)

    assert run_vm(host, LAPTOP) == 1

    modules, lost, *_ = losses.current(host)
    assert modules.text == "nvidia, nvidia_uvm, nvidia_modeset, nvidia_drm are not loaded again"
    assert "nvidia did not come back to 0000:01:00.0, which does not answer" in lost.text
    assert "d3cold_allowed" in lost.hint and "disable_idle_d3" not in lost.hint
    assert planned(host, LAPTOP).verdict == plan.REFUSE


def test_a_gpu_that_comes_back_without_its_monitor_is_shown(machine: MachineFactory) -> None:
    host = made(machine, RX9070)
    host.tree.put(f"fake/after_vm/{GPUS[RX9070][0]}", "unplugged")

    assert run_vm(host, RX9070) == 1

    lost = losses.current(host)[0]
    assert lost.text == (
        "amdgpu is back on 0000:03:00.0 but has no framebuffer, and all its connectors are"
        " disconnected"
    )
    assert "is a monitor connected and on?" in lost.hint


def test_a_gpu_that_comes_back_as_it_was_has_lost_nothing(machine: MachineFactory) -> None:
    host = made(machine, RX9070)
    host.tree.remove(f"fake/after_vm/{GPUS[RX9070][0]}")

    assert (run_vm(host, RX9070), texts(host)) == (0, [])


# -- losses that plan has listed


def test_a_loss_that_plan_listed_is_shown_and_is_no_failure(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    GPUS["efifb-6.1"] = ("0000:01:00.0",)

    assert run_vm(host, "efifb-6.1") == 0

    found = losses.current(host)
    assert [one.announced for one in found] == [True, False]
    assert "efi-framebuffer.0 is gone" in found[0].text
    assert cli.main(["status"], host) == 1


def test_a_firmware_console_that_stayed_is_not_reported_as_gone(machine: MachineFactory) -> None:
    host = machine("simpledrm-0300-6.12")
    GPUS["simpledrm-0300-6.12"] = ("0000:01:00.0",)
    assert event(host, "simpledrm-0300-6.12", "prepare begin") == 0

    status = event(host, "simpledrm-0300-6.12", "release end")  # libvirt did not start the VM

    assert (status, texts(host)) == (0, [])
    log = host.read("recorded/log") or ""
    assert "before a reboot" not in log.partition("release")[2]


@pytest.mark.parametrize("name", [STRIX, RX9070, LAPTOP])
def test_a_snapshot_shows_the_same_losses(
    machine: MachineFactory, tmp_path: Path, capsys: Capture, name: str
) -> None:
    host = made(machine, name)
    run_vm(host, name)
    file = str(tmp_path / "machine.txt")
    assert cli.main(["record", file], host) == 0
    capsys.readouterr()

    status = cli.main(["--root", file, "status"])

    shown = capsys.readouterr().out.partition("last event")[0]
    assert cli.main(["status"], host) == status == 1
    assert shown.replace("vm1", "win11") == capsys.readouterr().out.partition("last event")[0]


def test_a_console_that_stays_off_on_vfio_pci_is_shown_with_the_line_that_brings_it_back(
    machine: MachineFactory,
) -> None:
    name = "harvester-on-vfio-already"
    host, gpu = machine(name), "0000:b3:00.0"
    GPUS[name] = (gpu, "0000:b3:00.1")

    assert run_vm(host, name) == 0  # as plan has said

    lost = losses.current(host)[0]
    assert (lost.announced, driver(host, gpu)) == (True, "vfio-pci")
    assert lost.text == f"efi-framebuffer.0 stays unbound while {gpu} is on vfio-pci"
    for line in re.findall("`([^`]*)`", lost.hint)[0].split("; "):
        _, text, _, path = line.split(" ")
        host.write(path.lstrip("/"), text.strip("'"))
    assert host.link_name("sys/bus/platform/devices/efi-framebuffer.0/driver") is not None
    assert [one.text for one in losses.current(host)] == []
