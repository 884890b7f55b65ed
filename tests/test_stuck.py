"""Claims that wait for a release which may never come, and what recover does about them."""

from __future__ import annotations

import json

import pytest

from tests.conftest import MachineFactory, domain_xml
from tests.doctoring import system_of
from tests.fakehost import FakeHost, FakeLibvirt, WithVirsh, close_device, open_device
from tests.libvirt_xml import UUID
from vfio_console_hook import cli, hook
from vfio_console_hook.claims import history, in_use
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.doctor import claims
from vfio_console_hook.commands.doctor.finding import WARN
from vfio_console_hook.commands.status import metrics, overview
from vfio_console_hook.events import recovery

GPU, SOUND = "0000:09:00.0", "0000:09:00.1"
PID_FILE = "run/libvirt/qemu/win11.pid"
Capture = pytest.CaptureFixture[str]


def event(host: FakeHost, words: str) -> int:
    return hook.main(["win11", *words.split(), "-"], domain_xml(GPU, SOUND), host)


@pytest.fixture
def host(machine: MachineFactory) -> WithVirsh:
    """A VM runs."""
    host = WithVirsh(machine("amdgpu-reattach-hangs-in-libvirt").root)
    libvirt = FakeLibvirt(host)
    assert event(host, "prepare begin") == 0
    for address in (GPU, SOUND):
        libvirt.detach(address)
    assert event(host, "start begin") == 0
    open_device(host, GPU)
    host.tree.put(PID_FILE, "4242")
    assert event(host, "started begin") == 0
    return host


def end(host: FakeHost) -> None:
    """QEMU ends."""
    close_device(host, GPU)
    host.tree.remove(PID_FILE)


def stopped_ago(host: FakeHost, seconds: float) -> None:
    """libvirt has called stopped that long ago, and nothing since."""
    assert event(host, "stopped end") == 0
    word = json.loads(host.read(f"{history.STATUS}/{UUID}") or "")
    word["events"]["stopped"]["time"] -= seconds
    host.tree.put(f"{history.STATUS}/{UUID}", json.dumps(word))


def why_stuck(host: FakeHost) -> str:
    claim = Claims(host).find(UUID)
    assert claim is not None
    return in_use.why_stuck(host, claim)


def test_a_vm_that_runs_is_not_stuck(host: WithVirsh) -> None:
    assert (why_stuck(host), cli.main(["status"], host)) == ("", 0)


def test_a_vm_whose_gpu_was_unplugged_is_not_stuck(host: WithVirsh) -> None:
    close_device(host, GPU)
    stat = "4242 (qemu-system-x86) S 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 50 0"
    host.tree.put("proc/4242/stat", stat)

    assert why_stuck(host) == ""


def test_a_release_may_take_as_long_as_an_event_may(host: WithVirsh) -> None:
    end(host)
    stopped_ago(host, 50)

    assert (why_stuck(host), cli.main(["status"], host)) == ("", 0)


def test_stopped_without_a_release_past_the_deadline_is_shown_with_the_way_back(
    host: WithVirsh, capsys: Capture
) -> None:
    end(host)
    stopped_ago(host, 90)

    status = cli.main(["status"], host)

    out = " ".join(capsys.readouterr().out.split())
    assert (status, why_stuck(host)) == (
        1, "its VM stopped 90 s ago, and libvirt has not called release since",
    )  # fmt: skip
    assert f"stuck: {why_stuck(host)}. Run `vfio-console-hook recover`" in out
    assert "stuck_claims 1\n" in metrics.text(overview.current(host))
    (found,) = claims.claims(system_of(host))
    assert (found.level, why_stuck(host) in found.text) == (WARN, True)
    assert "vfio-console-hook recover" in found.advice


def test_a_claim_whose_qemu_is_gone_is_stuck(host: WithVirsh) -> None:
    end(host)

    assert why_stuck(host) == (
        "its QEMU has ended, and libvirt has called neither stopped nor release"
    )
    (found,) = claims.claims(system_of(host))
    assert (found.level, cli.main(["status"], host)) == (WARN, 1)


@pytest.mark.parametrize("running", [None, UUID], ids=["silent", "listed"])
def test_recover_gives_back_what_is_stuck_whatever_libvirt_says(
    host: WithVirsh, running: str | None
) -> None:
    end(host)
    stopped_ago(host, 90)
    host.running = running
    messages: list[str] = []

    settled = recovery.recover(host, messages.append, force=False, wait_s=0)

    assert (settled, messages) == (True, [f"win11: released {GPU}"])
    assert (host.link_name(f"sys/bus/pci/devices/{GPU}/driver"), Claims(host).uuids()) == (
        "amdgpu", (),
    )  # fmt: skip


def test_recover_leaves_a_gpu_to_a_libvirt_that_is_giving_it_back(host: WithVirsh) -> None:
    end(host)
    stopped_ago(host, 1)
    host.running = UUID
    begun, messages = len(host.changes), list[str]()

    settled = recovery.recover(host, messages.append, force=False, wait_s=0)

    assert (settled, messages) == (False, ["win11: skipped: libvirt is giving it back"])
    assert host.changes[begun:] == []
