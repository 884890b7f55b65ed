"""Services that are stopped for a VM and started after it, on systemd and elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, hold, openrc, snapshot, systemd
from tests.fakehost.systemd import NEVER, Unit
from tests.gate import ROOT
from vfio_console_hook.actions.services import StopByCommand, StopUnits
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.claims.step import Step
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.plan import text as plan_text
from vfio_console_hook.commands.status import overview
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.config.service import Service
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, HostError, LostError, RefusedError
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine.host import Host

GPU, SECOND = "0000:01:00.0", "0000:02:00.0"
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"


def by_openrc(name: str) -> Service:
    status, stop, start = (("/sbin/rc-service", name, verb) for verb in ("status", "stop", "start"))
    return Service(name, status, stop, start)


SDDM = by_openrc("sddm")
GDM = Unit(active="active", aliases=("display-manager.service",))


def wanting(*services: str | Service, timeout_s: int = 60) -> Config:
    found = tuple(Service(one) if isinstance(one, str) else one for one in services)
    return Config(services=found, holders=Holders(wait_s=0), timeout_s=timeout_s)


def with_units(host: FakeHost, **units: Unit) -> FakeHost:
    """Let systemd run the machine with these services; x__socket is a socket."""
    systemd.install(host.tree)
    for name, unit in units.items():
        stem, _, kind = name.partition("__")
        systemd.put(host.tree, f"{stem}.{kind or 'service'}", unit)
    return host


def domain(*gpus: str, uuid: str = UUID) -> Domain:
    return Domain("win11", uuid, tuple(Hostdev(one, True, "hostdev", 0) for one in gpus or (GPU,)))


def prepare(host: FakeHost, config: Config, *gpus: str, uuid: str = UUID) -> None:
    events.prepare(host, domain(*gpus, uuid=uuid), config, Log(host, "win11"))


def release(host: FakeHost, uuid: str = UUID) -> None:
    events.release(host, uuid, Log(host, "win11"))


def steps(host: FakeHost, config: Config, *gpus: str) -> list[Step]:
    found = events.look(host, domain(*gpus), config)[1]
    return [step for step in found if step.stage == "services"]


def refusal(host: FakeHost, config: Config) -> str:
    with pytest.raises(HookError) as caught:
        prepare(host, config)
    assert Claims(host).uuids() == ()
    return str(caught.value)


def commands(host: FakeHost) -> list[str]:
    """The commands of systemctl and rc-service that change something, in order."""
    return [text for kind, path, text in host.changes if kind == "run" and "modprobe" not in path]


def states(host: FakeHost, *names: str) -> list[str]:
    return [systemd.state(host.tree, name) for name in names]


def log(host: FakeHost) -> str:
    return host.read(SNAPSHOT_LOG) or ""


# -- services that are stopped and started again


def test_a_running_unit_is_stopped_for_the_vm_and_started_after_it(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    before = snapshot(host)

    prepare(host, wanting("gdm"))

    assert states(host, "gdm.service") == ["inactive"]
    release(host)
    assert snapshot(host) == before
    assert commands(host) == [
        "stop --no-block -- gdm.service",
        "reset-failed -- gdm.service",
        "start --no-block -- gdm.service",
    ]


def test_units_are_stopped_in_order_and_started_in_reverse(machine: MachineFactory) -> None:
    host = with_units(
        machine("native-6.1"), gdm=GDM, lactd=Unit(active="active"), ollama=Unit(active="active")
    )

    prepare(host, wanting("ollama", "gdm", "lactd"))
    release(host)

    changed = [text.replace("--no-block -- ", "") for text in commands(host)]
    assert [text for text in changed if "reset" not in text] == [
        "stop ollama.service", "stop gdm.service", "stop lactd.service",
        "start lactd.service", "start gdm.service", "start ollama.service",
    ]  # fmt: skip


def test_services_are_stopped_before_anything_else(machine: MachineFactory) -> None:
    host = with_units(machine("efifb-5.10"), gdm=GDM)

    prepare(host, wanting("gdm"))

    _, first, _ = host.changes[0]
    assert first == "/usr/bin/systemctl"
    assert len(host.changes) > 1


@pytest.mark.parametrize("listed", ["display-manager", "display-manager.service"])
def test_the_claim_names_the_unit_behind_an_alias(machine: MachineFactory, listed: str) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)

    prepare(host, wanting(listed))
    # Meanwhile the administrator installs another display manager.
    systemd.put(host.tree, "gdm.service", Unit())
    systemd.put(host.tree, "sddm.service", Unit(aliases=("display-manager.service",)))
    release(host)

    assert states(host, "gdm.service", "sddm.service") == ["active", "inactive"]


def test_a_unit_that_is_listed_under_two_names_is_stopped_once(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)

    found = steps(host, wanting("display-manager", "gdm.service"))

    assert [step.do.shell() for step in found if step.do] == ["systemctl stop gdm.service"]


def test_a_command_is_shown_as_it_is_typed() -> None:
    stop = StopByCommand("x", ("true",), ("/bin/sh", "-c", "stop it; echo $HOME"), 1)

    assert stop.shell() == "/bin/sh -c 'stop it; echo $HOME'"
    assert StopUnits((r"dev-a\x2db.mount",), 1).shell() == r"systemctl stop 'dev-a\x2db.mount'"


@pytest.mark.parametrize("active", ["active", "reloading", "refreshing", "activating"])
def test_a_unit_counts_as_running_as_soon_as_it_begins_to_start(
    machine: MachineFactory, active: str
) -> None:
    host = with_units(machine("native-6.1"), x=Unit(active=active))

    prepare(host, wanting("x"))

    assert states(host, "x.service") == ["inactive"]
    release(host)
    assert states(host, "x.service") == ["active"]


@pytest.mark.parametrize(
    "unit",
    [
        Unit(),
        Unit(active="failed"),
        Unit(load="masked"),
        Unit(load="not-found"),
        Unit(load="bad-setting"),
    ],
)
def test_a_unit_that_does_not_run_is_not_stopped(machine: MachineFactory, unit: Unit) -> None:
    host = with_units(machine("native-6.1"), x=unit)

    prepare(host, wanting("x"))
    release(host)

    assert commands(host) == []


@pytest.mark.parametrize(("load", "state"), [("masked", "masked"), ("not-found", "gone")])
def test_a_unit_that_could_not_be_started_again_is_not_stopped(
    machine: MachineFactory, load: str, state: str
) -> None:
    host = with_units(machine("native-6.1"), x=Unit(load=load, active="active"))

    prepare(host, wanting("x"))

    assert commands(host) == []
    assert [(step.why, step.do, step.undo) for step in steps(host, wanting("x"))] == [
        (f"x.service is not stopped: its unit is {state}, so it could not be started again",
         None, None)
    ]  # fmt: skip


def test_at_boot_a_unit_that_is_about_to_start_is_held_back(machine: MachineFactory) -> None:
    # The VM is autostarted while the job of the display manager is still in the queue.
    host = with_units(machine("native-6.1"), gdm=replace(GDM, job="start", active="inactive"))

    assert [step.why for step in steps(host, wanting("gdm"))] == [
        "gdm.service is about to start: stopped for the VM, and started again after it"
    ]
    prepare(host, wanting("gdm"))

    assert states(host, "gdm.service") == ["inactive"]
    release(host)
    assert states(host, "gdm.service") == ["active"]


def test_a_service_with_a_socket_stops_and_starts_with_it(machine: MachineFactory) -> None:
    host = with_units(
        machine("native-6.1"),
        x=Unit(active="active", triggers=("x.socket", "x-weekly.timer")),
        x__socket=Unit(active="active"),
        **{"x-weekly__timer": Unit()},
    )

    prepare(host, wanting("x"))

    assert states(host, "x.service", "x.socket") == ["inactive", "inactive"]
    release(host)
    # The socket refuses to start while its service runs, so it was started first.
    assert states(host, "x.service", "x.socket", "x-weekly.timer") == [
        "active", "active", "inactive",
    ]  # fmt: skip


def test_a_unit_that_stops_with_the_service_it_needs_is_started_too(
    machine: MachineFactory,
) -> None:
    host = with_units(
        machine("native-6.1"),
        ollama=Unit(active="active", needed_by=("webui.service", "idle.service")),
        webui=Unit(active="active", needed_by=("proxy.service",)),
        proxy=Unit(active="active"),
        idle=Unit(),
    )
    names = ("ollama.service", "webui.service", "proxy.service", "idle.service")

    prepare(host, wanting("ollama"))

    assert states(host, *names) == ["inactive"] * 4
    release(host)
    assert states(host, *names) == ["active", "active", "active", "inactive"]


def test_a_scope_that_stops_with_a_service_is_not_said_to_start_again(
    machine: MachineFactory,
) -> None:
    host = with_units(
        machine("native-6.1"),
        gdm=Unit(active="active", stop_s=0.2, needed_by=("session-5.scope",)),
        **{"session-5__scope": Unit(active="active", transient=True)},
    )
    host.patient = True

    (step,) = steps(host, wanting("gdm"))
    prepare(host, wanting("gdm"))

    assert step.undo is not None
    assert (step.undo.services, states(host, "session-5.scope")) == (("gdm.service",), ["inactive"])


def test_a_unit_that_is_forgotten_while_it_stops_is_no_failure(machine: MachineFactory) -> None:
    host = with_units(
        machine("native-6.1"),
        x=Unit(active="active", stop_s=0.2, needed_by=("y.service",)),
        y=Unit(active="active", transient=True),
    )
    host.patient = True

    StopUnits(("x.service", "y.service"), 5).apply(host)

    assert states(host, "x.service", "y.service") == ["inactive", "inactive"]


def test_a_unit_whose_stop_would_stop_libvirtd_is_refused(machine: MachineFactory) -> None:
    host = with_units(
        machine("native-6.1"),
        net=Unit(active="active", needed_by=("libvirtd.service",)),
        libvirtd=Unit(active="active"),
    )

    assert refusal(host, wanting("net")) == (
        "net.service cannot be stopped for a VM: libvirtd.service, which starts the VM, would stop"
        " too (hint: remove it from `services`)"
    )
    assert host.changes == []


def test_a_name_that_no_unit_has_is_reported_with_the_nearest_one(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), **{"nvidia-persistenced": Unit(active="active")})

    found = steps(host, wanting("nvidia-persistence", "no-unit-is-like-this"))

    assert [step.why for step in found] == [
        "there is no unit nvidia-persistence.service, did you mean nvidia-persistenced.service?",
        "there is no unit no-unit-is-like-this.service",
    ]


def test_a_name_that_no_unit_can_have_is_refused(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)

    assert refusal(host, wanting("gdm", "getty@")) == (
        "`systemctl show` failed: Failed to get properties: Unit name getty@.service is neither a"
        " valid invocation ID nor unit name."
    )
    assert host.changes == []


def test_the_state_of_all_units_is_read_with_one_command(machine: MachineFactory) -> None:
    asked: list[tuple[str, ...]] = []

    class Listening(FakeHost):
        def run(self, *command: str, timeout_s: float = 30) -> str:
            asked.append(command)
            return super().run(*command, timeout_s=timeout_s)

    made = with_units(machine("native-6.1"), gdm=GDM, lactd=Unit(active="active"), ollama=Unit())

    steps(Listening(made.root), wanting("gdm", "lactd", "ollama"))

    assert [command[3:] for command in asked] == [("--", "gdm", "lactd", "ollama")]


def test_services_are_stopped_once_for_a_vm_with_two_gpus(machine: MachineFactory) -> None:
    host = with_units(machine("two-gpus-6.12"), gdm=GDM)

    found = steps(host, wanting("gdm"), SECOND, GPU)

    assert [(step.gpu, step.do.shell() if step.do else "") for step in found] == [
        (SECOND, "systemctl stop gdm.service")
    ]


def test_services_are_stopped_even_for_a_gpu_that_needs_nothing_else(
    machine: MachineFactory,
) -> None:
    host = with_units(machine("bmc-and-two-nvidia"), ollama=Unit(active="active"))

    prepare(host, wanting("ollama"), "0000:17:00.0")

    assert states(host, "ollama.service") == ["inactive"]


def test_a_vm_without_a_real_gpu_stops_nothing(machine: MachineFactory) -> None:
    host = with_units(machine("intel-sriov-vf"), gdm=GDM)

    prepare(host, wanting("gdm"), "0000:00:02.1")

    assert host.changes == []


def test_older_hosts_have_systemctl_in_bin(machine: MachineFactory) -> None:
    # Debian 11 with /bin apart from /usr/bin, for one.
    host = with_units(machine("native-6.1"), gdm=GDM)
    host.tree.move("usr/bin/systemctl", "bin/systemctl")

    prepare(host, wanting("gdm"))

    assert states(host, "gdm.service") == ["inactive"]


# -- when something goes wrong


def test_a_unit_that_does_not_stop_is_refused_and_started_again(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=replace(GDM, stop_s=NEVER))

    assert refusal(host, wanting("gdm", timeout_s=20)) == (
        "gdm.service did not stop within 10 s (hint: see `systemctl status gdm.service`; if it"
        " needs more time, increase `timeout_s`, half of which it gets)"
    )
    # systemd starts it as soon as it has stopped: a start job has replaced the stop job.
    assert states(host, "gdm.service") == ["deactivating start"]


def test_prepare_waits_for_a_slow_unit(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=replace(GDM, stop_s=0.2))
    host.patient = True

    prepare(host, wanting("gdm"))

    assert states(host, "gdm.service") == ["inactive"]


def test_prepare_waits_for_a_unit_that_is_already_stopping(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), x=Unit(active="deactivating", job="stop", stop_s=0.2))
    host.tree.put("fake/systemd/x.service/stopping", str(time.monotonic()))
    host.patient = True

    prepare(host, wanting("x"))

    assert states(host, "x.service") == ["inactive"]


def test_a_unit_that_may_not_be_stopped_by_hand_is_refused(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=replace(GDM, by_hand=False))
    before = snapshot(host)

    assert refusal(host, wanting("gdm")) == (
        "gdm.service cannot be stopped: Failed to stop gdm.service: Operation refused, unit"
        " gdm.service may be requested by dependency only (it is configured to refuse manual"
        " start/stop)."
    )
    assert snapshot(host) == before


def test_a_refusal_later_in_prepare_starts_the_units_again(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM, lactd=Unit(active="active"))
    hold(host, "dev/dri/card0", pid=1234, command="blender")
    before = snapshot(host)

    assert "blender (1234)" in refusal(host, wanting("gdm", "lactd"))

    assert snapshot(host) == before
    assert states(host, "gdm.service", "lactd.service") == ["active", "active"]
    assert "stop --no-block -- gdm.service" in commands(host)


def test_any_change_that_fails_leaves_the_units_running(machine: MachineFactory) -> None:
    config = wanting("gdm", "lactd")
    whole = with_units(machine("efifb-5.10"), gdm=GDM, lactd=Unit(active="active"))
    prepare(whole, config)
    for number in range(1, len(whole.changes) + 1):
        host = with_units(machine("efifb-5.10"), gdm=GDM, lactd=Unit(active="active"))
        before = snapshot(host)

        with pytest.raises(HookError):
            prepare(FakeHost(host.root, refuse=number), config)

        assert snapshot(host) == before


# -- starting again


def test_a_start_that_waits_for_libvirtd_does_not_block_release(machine: MachineFactory) -> None:
    # Ordered after libvirtd, which is still starting: its VM is an autostarted one.
    host = with_units(machine("native-6.1"), gdm=replace(GDM, waits=True))

    prepare(host, wanting("gdm"))
    release(host)

    assert states(host, "gdm.service") == ["inactive start"]
    assert Claims(host).uuids() == ()


def test_nothing_is_started_while_the_system_shuts_down(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM, lactd=Unit(active="active"))
    prepare(host, wanting("gdm", "lactd"))
    systemd.shut_down(host.tree)
    before = len(commands(host))

    release(host)

    assert commands(host)[before:] == []
    assert (
        "warning: win11: release 0000:01:00.0: gdm.service is not started again: the system is"
        " shutting down"
    ) in log(host)
    assert Claims(host).uuids() == ()


def test_a_unit_that_has_reached_its_start_limit_is_started(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=replace(GDM, burst=1))
    host.tree.put("fake/systemd/gdm.service/starts", "1")

    prepare(host, wanting("gdm"))
    release(host)

    assert states(host, "gdm.service") == ["active"]


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"load": "not-found"}, ": Failed to start gdm.service: Unit gdm.service not found."),
        ({"load": "masked"}, ": Failed to start gdm.service: Unit gdm.service is masked."),
        ({"fails": True}, ""),
        ({"no_condition": True}, ""),
    ],
)
def test_a_unit_that_does_not_start_again_is_reported_and_the_claim_is_removed(
    machine: MachineFactory, now: dict[str, object], why: str
) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    prepare(host, wanting("gdm"))
    systemd.put(host.tree, "gdm.service", replace(GDM, active="inactive", **now))  # type: ignore[arg-type]  # any

    with pytest.raises(LostError) as caught:
        release(host)

    assert (caught.value.text, caught.value.hint) == (
        f"not all came back: gdm.service is not running again{why}",
        "see `systemctl status gdm.service`",
    )
    assert Claims(host).uuids() == ()


def test_a_unit_that_was_started_meanwhile_is_not_touched(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    prepare(host, wanting("gdm"))
    systemd.put(host.tree, "gdm.service", GDM)
    before = len(commands(host))

    release(host)

    assert commands(host)[before:] == []


def test_a_unit_that_is_being_stopped_meanwhile_is_started(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    prepare(host, wanting("gdm"))
    systemd.put(host.tree, "gdm.service", replace(GDM, job="stop"))

    release(host)

    assert states(host, "gdm.service") == ["active"]


def test_the_next_release_tries_again_when_systemd_did_not_answer(
    machine: MachineFactory,
) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    prepare(host, wanting("gdm"))
    host.tree.move("usr/bin/systemctl", "elsewhere")

    with pytest.raises(HookError):
        release(host)

    assert Claims(host).uuids() == (UUID,)
    host.tree.move("elsewhere", "usr/bin/systemctl")
    release(host)
    assert states(host, "gdm.service") == ["active"]
    assert Claims(host).uuids() == ()


def test_a_vm_that_starts_before_the_release_of_the_previous_one_keeps_the_units_stopped(
    machine: MachineFactory,
) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    libvirt = FakeLibvirt(host)
    prepare(host, wanting("gdm"))
    libvirt.detach(GPU)
    events.start(host, UUID, Log(host, "win11"))
    libvirt.reattach(GPU)

    prepare(host, wanting("gdm"), uuid=OTHER_UUID)
    release(host)

    assert states(host, "gdm.service") == ["inactive"]
    assert commands(host) == ["stop --no-block -- gdm.service"]
    release(host, OTHER_UUID)
    assert states(host, "gdm.service") == ["active"]


# -- without systemd


def test_without_systemd_a_unit_is_refused_with_the_alternative(machine: MachineFactory) -> None:
    host = machine("native-6.1")

    assert refusal(host, wanting("sddm")) == (
        "the service sddm cannot be stopped: this host does not run systemd, and there is no"
        " /etc/init.d/sddm (hint: configure commands for it, see `services` in default.yaml)"
    )
    assert host.changes == []


@pytest.mark.parametrize("listed", ["sddm", "sddm.service"])
def test_without_systemd_a_name_is_that_of_an_init_script(
    machine: MachineFactory, listed: str
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "sddm", "started")
    before = snapshot(host)

    prepare(host, wanting(listed))

    assert openrc.state(host.tree, "sddm") == "stopped"
    release(host)
    assert snapshot(host) == before
    assert [path for _, path, text in host.changes if text in ("stop", "start")] == [
        "/etc/init.d/sddm"
    ] * 2
    assert "stopped sddm" in log(host)


def test_an_init_script_that_reports_its_service_as_down_is_not_run(
    machine: MachineFactory,
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "sddm", "stopped")

    prepare(host, wanting("sddm"))
    release(host)

    assert commands(host) == []


def test_without_systemd_a_misspelt_name_is_refused_with_the_right_one(
    machine: MachineFactory,
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "display-manager", "started")

    assert refusal(host, wanting("display-manger")) == (
        "the service display-manger cannot be stopped: this host does not run systemd, and there"
        " is no /etc/init.d/display-manger (hint: did you mean display-manager?)"
    )


@pytest.mark.parametrize("name", ["libvirtd", "virtqemud.service"])
def test_without_systemd_the_daemon_cannot_be_stopped_either(
    machine: MachineFactory, name: str
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "libvirtd", "started")
    openrc.put(host.tree, "virtqemud", "started")

    assert "as it starts the VM (hint: remove it" in refusal(host, wanting(name))
    assert commands(host) == []


def test_with_systemd_no_init_script_is_run(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"))
    openrc.put(host.tree, "sddm", "started")

    prepare(host, wanting("sddm"))

    assert openrc.state(host.tree, "sddm") == "started"


@pytest.mark.parametrize("systemd_too", [False, True])
def test_commands_stop_and_start_a_service_with_and_without_systemd(
    machine: MachineFactory, systemd_too: bool
) -> None:
    host = machine("native-6.1")
    if systemd_too:
        with_units(host)
    openrc.put(host.tree, "sddm", "started")
    before = snapshot(host)

    prepare(host, wanting(SDDM))

    assert openrc.state(host.tree, "sddm") == "stopped"
    release(host)
    assert snapshot(host) == before
    assert commands(host) == ["sddm stop", "sddm start"]


def test_a_service_whose_command_reports_it_as_down_is_not_stopped(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "sddm", "stopped")

    prepare(host, wanting(SDDM))
    release(host)

    assert commands(host) == []


def test_a_command_that_cannot_be_run_is_refused(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    gone = replace(SDDM, active=("/sbin/service", "sddm", "status"))

    assert refusal(host, wanting(gone)) == (
        "cannot run /sbin/service sddm status: No such file or directory"
    )
    assert host.changes == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            "fails",
            "sddm cannot be stopped: `/sbin/rc-service sddm stop` failed with exit status 1 (hint:"
            " run it by hand to see why)",
        ),
        (
            "deaf",
            "sddm did not stop within 30 s (hint: try `/sbin/rc-service sddm stop`; if it needs"
            " more time, increase `timeout_s`, half of which it gets)",
        ),
    ],
)
def test_a_stop_command_that_fails_is_refused_and_what_was_stopped_before_is_started(
    machine: MachineFactory, wrong: str, reason: str
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "other", "started")
    openrc.put(host.tree, "sddm", "started", wrong)
    before = snapshot(host)

    assert refusal(host, wanting(by_openrc("other"), SDDM)) == reason

    assert snapshot(host) == before
    assert commands(host) == ["other stop", "sddm stop", "other start"]


def test_a_command_that_does_its_work_but_does_not_end_counts_as_done(
    machine: MachineFactory,
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "sddm", "started", "slow")

    prepare(host, wanting(SDDM))

    assert openrc.state(host.tree, "sddm") == "stopped"
    release(host)
    assert openrc.state(host.tree, "sddm") == "started"
    assert Claims(host).uuids() == ()


def test_prepare_waits_for_a_service_that_stops_after_its_command_has_ended(
    machine: MachineFactory,
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "sddm", "started", "late")
    host.patient = True

    prepare(host, wanting(SDDM))

    assert openrc.state(host.tree, "sddm") == "stopped"


def test_a_start_command_that_fails_is_reported_and_the_claim_is_removed(
    machine: MachineFactory,
) -> None:
    host = machine("native-6.1")
    openrc.put(host.tree, "sddm", "started")
    prepare(host, wanting(SDDM))
    openrc.put(host.tree, "sddm", "stopped", "fails")

    with pytest.raises(LostError) as caught:
        release(host)

    assert (caught.value.text, caught.value.hint) == (
        "not all came back: sddm is not started again: `/sbin/rc-service sddm start` failed with"
        " exit status 1",
        "run it by hand to see why",
    )
    assert Claims(host).uuids() == ()


def test_no_command_starts_anything_while_systemd_shuts_down(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"))
    openrc.put(host.tree, "sddm", "started")
    prepare(host, wanting(SDDM))
    systemd.shut_down(host.tree)

    release(host)

    assert openrc.state(host.tree, "sddm") == "stopped"
    assert "sddm is not started again: the system is shutting down" in log(host)


# -- output


def test_the_plan_shows_what_is_stopped_and_how(machine: MachineFactory) -> None:
    host = with_units(
        machine("native-6.1"),
        gdm=GDM,
        x=Unit(active="active", triggers=("x.socket",)),
        x__socket=Unit(active="active"),
    )
    openrc.put(host.tree, "sddm", "started")
    made = plan.plan_for(host, domain(), wanting("display-manager", "x", SDDM))

    text = plan_text.text(made, Terminal())

    _, _, listed = text.partition("\n\n")
    assert listed.startswith(
        "before the VM:\n"
        " 1. services: gdm.service (display-manager) is running: stopped for the VM, and\n"
        "    started again after it\n"
        "    systemctl stop gdm.service\n"
        " 2. services: x.service is running: stopped with x.socket for the VM, and\n"
        "    started again after it\n"
        "    systemctl stop x.socket x.service\n"
        " 3. services: sddm is running: stopped for the VM, and started again after it\n"
        "    /sbin/rc-service sddm stop\n"
    )
    assert "; sddm and x.socket and x.service and gdm.service start again" in " ".join(text.split())


def test_status_shows_how_to_start_them_by_hand(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)

    prepare(host, wanting("gdm"))

    assert [one.undo[-1] for one in overview.current(host).claims] == [
        "systemctl reset-failed gdm.service; systemctl start gdm.service"
    ]


def test_the_log_has_what_was_stopped_and_started(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)

    prepare(host, wanting("gdm"))
    release(host)

    assert "\ninfo: win11: prepare 0000:01:00.0: stopped gdm.service; " in f"\n{log(host)}"
    assert "; asked systemd to start gdm.service\n" in f"{log(host)}"


# -- running programs


def test_exit_status_returns_that_of_the_program() -> None:
    assert Host("/").exit_status("/bin/sh", "-c", "exit 3", timeout_s=60) == 3


def test_a_program_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(HostError) as caught:
        Host("/").exit_status("/nonexistent/program", timeout_s=1)

    assert caught.value.text == "cannot run /nonexistent/program: No such file or directory"


def test_a_program_has_ended_even_if_its_daemon_still_runs(tmp_path: Path) -> None:
    # As with an init script: the daemon inherits the pipes of the script.
    program = (
        "import sys\nfrom vfio_console_hook.machine.host import Host\n"
        f"Host('/').exit_status('/bin/sh', '-c', 'sleep 3; touch {tmp_path}/lives', timeout_s=0)\n"
        "Host('/').exit_status('/bin/sh', '-c', 'sleep 30 & exit 0', timeout_s=20)\n"
    )
    began = time.monotonic()

    # libvirt too reads to the end of the pipes, not to the end of the hook.
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert time.monotonic() - began < 20
    while not (tmp_path / "lives").exists():
        assert time.monotonic() - began < 30
        time.sleep(0.1)


def test_a_refused_unit_is_an_error_for_people(machine: MachineFactory) -> None:
    host = machine("native-6.1")

    with pytest.raises(RefusedError):
        steps(host, wanting("sddm"))


# -- started again while the VM runs


AGAIN = Service("display-manager", start_again="detached")


def test_a_detached_service_starts_again_as_soon_as_the_gpu_has_left(
    machine: MachineFactory,
) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    libvirt = FakeLibvirt(host)

    prepare(host, wanting(AGAIN))
    stopped = states(host, "gdm.service")
    libvirt.detach(GPU)
    events.start(host, UUID, Log(host, "win11"))
    meanwhile = states(host, "gdm.service")
    libvirt.reattach(GPU)
    release(host)

    assert (stopped, meanwhile, states(host, "gdm.service")) == (
        ["inactive"], ["active"], ["active"],
    )  # fmt: skip
    assert log(host).count("asked systemd to start gdm.service") == 2


def test_a_detached_service_that_does_not_start_is_no_reason_to_end_the_vm(
    machine: MachineFactory,
) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    libvirt = FakeLibvirt(host)
    prepare(host, wanting(AGAIN))
    systemd.put(host.tree, "gdm.service", replace(GDM, active="inactive", fails=True))
    libvirt.detach(GPU)

    events.start(host, UUID, Log(host, "win11"))

    assert "gdm.service is not running again" in log(host)


def test_after_a_failed_prepare_a_detached_service_is_started_once(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)
    hold(host, "dev/dri/card0", pid=7, command="nvtop")

    with pytest.raises(HookError):
        prepare(host, replace(wanting(AGAIN), holders=Holders(wait_s=0)))

    assert states(host, "gdm.service") == ["active"]


def test_a_gpu_taken_by_hand_has_no_event_start(machine: MachineFactory) -> None:
    host = with_units(machine("native-6.1"), gdm=GDM)

    events.prepare(host, replace(domain(), by_hand=True), wanting(AGAIN), Log(host, "win11"))

    assert states(host, "gdm.service") == ["active"]
