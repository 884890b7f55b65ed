"""The plan as a value: it predicts what prepare does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, hold, open_device, openrc, snapshot, systemd
from tests.libvirt_xml import UUID, domain_xml
from tests.test_stages import PLANS, prepared
from tests.test_stages import Plan as Case
from vfio_console_hook import cli
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.commands.plan import plan, text
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.config.service import Service
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, parse
from vfio_console_hook.errors import HookError
from vfio_console_hook.log import Log

GPU = "0000:01:00.0"
AMD = "0000:09:00.0"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
NOW = Config(holders=Holders(wait_s=0))
SESSION = "/user.slice/user-1000.slice/session-2.scope"
USER_UNIT = "/user.slice/user-1000.slice/user@1000.service/session.slice/org.gnome.Shell.service"


def vm(*addresses: str, managed: bool = True, uuid: str = UUID, name: str = "win11") -> Domain:
    return parse(domain_xml(*addresses, managed=managed, uuid=uuid, name=name))


def prepare(host: FakeHost, domain: Domain, config: Config = NOW) -> str:
    """The error text of prepare, "" if the VM may start."""
    try:
        events.prepare(host, domain, config, Log(host, domain.name))
    except HookError as error:
        return error.text
    return ""


def at_once(config: Config) -> Config:
    return replace(config, holders=replace(config.holders, wait_s=0))


def plan_text(made: plan.Plan, *, colour: bool = False) -> str:
    return text.text(made, Terminal(colour=colour))


# -- the plan and prepare


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case.golden)
def test_prepare_takes_the_steps_of_the_plan_or_refuses_with_its_reason(
    machine: MachineFactory, case: Case
) -> None:
    host = prepared(case, machine)
    config = at_once(case.config)
    try:
        made = plan.plan_for(host, case.domain, config)
    except HookError as error:
        assert prepare(host, case.domain, config) == error.text
        return

    refused = prepare(host, case.domain, config)

    claim = Claims(host).find(UUID)
    taken = (tuple(claim.steps), claim.done) if claim else ((), set())
    if made.verdict == plan.START:
        assert (refused, taken) == ("", (made.steps, set(range(len(made.steps)))))
    else:
        verdict = plan.REFUSE if refused else plan.NOTHING
        assert (made.verdict, claim) == (verdict, None)
        assert made.reason.startswith(refused)


def test_the_machines_have_all_three_outcomes(
    machine: MachineFactory,
) -> None:
    verdicts = [
        plan.plan_for(prepared(case, machine), case.domain, case.config).verdict
        for case in PLANS
        if case.golden != "iomem-without-root"
    ]

    assert {one: verdicts.count(one) > 0 for one in ("start", "refuse", "nothing")} == {
        "start": True, "refuse": True, "nothing": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reservation"),
    [("efifb-6.12", "efifb"), ("efifb-0380-6.12", "efifb"), ("efidrm-7", "efidrm"),
     ("simpledrm-0380-6.12", "BOOTFB")],
)  # fmt: skip
def test_a_stage_that_is_left_out_leaves_the_memory_reserved(
    machine: MachineFactory, name: str, reservation: str
) -> None:
    host = machine(name)
    config = replace(NOW, stages=("fbcon",))

    made = plan.plan_for(host, vm(GPU), config)

    assert made.verdict == plan.REFUSE
    assert made.reason.startswith(f"{reservation} still reserves c0000000-c0")
    assert prepare(host, vm(GPU), config) == made.reason


def test_a_plan_changes_nothing_even_for_a_running_vm(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    prepare(host, vm(GPU))
    FakeLibvirt(host).detach(GPU)
    open_device(host, GPU)
    before = snapshot(host)

    plan.plan_for(host, vm(GPU), NOW)

    assert snapshot(host) == before


# -- the GPUs and why


def test_each_device_is_shown_with_its_class_and_the_line_that_assigns_it(
    machine: MachineFactory,
) -> None:
    host = machine("amd-apu")
    xml = domain_xml("0000:13:00.0", "0000:13:00.1")
    lines = [n for n, line in enumerate(xml.decode().splitlines(), 1) if "<hostdev" in line]

    made = plan.plan_for(host, parse(xml), NOW)

    assert [one.why for one in made.devices] == [
        f"hostdev in line {lines[0]} of the XML: PCI class 0300, VGA controller",
        f"hostdev in line {lines[1]} of the XML: PCI class 0403, audio device",
    ]
    assert [one.address for one in made.gpus] == ["0000:13:00.0"]
    assert "0000:13:00.1 is assigned too: audio device (class 0403)\n" in plan_text(made)


@pytest.mark.parametrize(
    ("driver", "shown"),
    [("vfio-pci", "vfio-pci lets QEMU open that"), (None, "no driver has it")],
)
def test_a_function_that_stays_in_the_group_is_shown_with_what_makes_it_harmless(
    machine: MachineFactory, driver: str | None, shown: str
) -> None:
    host = machine("harvester-on-vfio-already")
    sound = "0000:b3:00.1"
    if driver is None:
        host.tree.remove(f"sys/bus/pci/devices/{sound}/driver")

    made = plan.plan_for(host, vm("0000:b3:00.0"), NOW)

    (left,) = made.left
    assert (left.address, left.driver, left.matters) == (sound, driver, False)
    assert left.why == f"it is in the GPU's IOMMU group, and {shown}, so that does not matter"


def on_command_line(address: str) -> Domain:
    extra = (
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<qemu:arg value='-device'/><qemu:arg value='vfio-pci,host={address}'/>"
        "</qemu:commandline></domain>"
    )
    return parse(domain_xml().replace(b"</domain>", extra.encode()))


def test_a_gpu_on_the_command_line_of_qemu_is_never_to_be_in_a_hostdev(
    machine: MachineFactory,
) -> None:
    made = plan.plan_for(machine("efifb-6.12"), on_command_line(GPU), NOW)

    assert (made.verdict, "hostdev" in made.hint) == (plan.REFUSE, False)
    assert f"driverctl set-override {GPU} vfio-pci" in made.hint


@pytest.mark.parametrize(
    ("uri", "idle"),
    [
        ("qemu:///session", True),
        ("qemu+unix:///session?socket=/run/user/1000/libvirt/virtqemud-sock", True),
        ("qemu:///system", False),
        ("qemu+ssh://root@session/system", False),
    ],
)
def test_for_a_vm_of_a_users_own_libvirt_the_hook_does_nothing(
    machine: MachineFactory,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    uri: str,
    idle: bool,
) -> None:
    xml = tmp_path / "vm.xml"
    xml.write_bytes(domain_xml(GPU))

    status = cli.main(["--connect", uri, "plan", "--xml", str(xml)], machine("efifb-6.12"))

    last = "\n".join(capsys.readouterr().out.splitlines()[-4:])
    assert (status, "nothing to do: the libvirt of qemu:///session runs its hook" in last) == (
        (2, True) if idle else (0, False)
    )


def test_a_gpu_on_the_command_line_of_qemu_is_shown_as_such(machine: MachineFactory) -> None:
    made = plan.plan_for(machine("bmc-and-two-nvidia"), on_command_line("0000:17:00.0"), NOW)

    assert re.match(r"qemu:commandline in line \d+ of the XML: PCI class", made.devices[0].why)
    assert made.verdict == plan.START


@pytest.mark.parametrize(
    ("addresses", "config"),
    [((), NOW), (("0000:13:00.1",), NOW), (("0000:13:00.0",), replace(NOW, enabled=False))],
    ids=["no device", "no GPU", "not enabled"],
)
def test_there_is_nothing_to_do(
    machine: MachineFactory, addresses: tuple[str, ...], config: Config
) -> None:
    host = machine("amd-apu")

    made = plan.plan_for(host, vm(*addresses), config)

    assert (made.verdict, made.reason != "", made.steps) == (plan.NOTHING, True, ())
    assert prepare(host, vm(*addresses), config) == ""
    assert Claims(host).uuids() == ()


# -- processes that have the GPU open


def desktop(host: FakeHost) -> FakeHost:
    systemd.install(host.tree)
    gdm = systemd.Unit(active="active", aliases=("display-manager.service",))
    systemd.put(host.tree, "gdm.service", gdm)
    systemd.put(host.tree, "lactd.service", systemd.Unit(active="active"))
    alias = "etc/systemd/system/display-manager.service"
    host.tree.text_link(alias, "/usr/lib/systemd/system/gdm.service")
    return host


def stopping(*units: str) -> Config:
    return Config(services=tuple(Service(unit) for unit in units))


@pytest.mark.parametrize(
    ("services", "cgroup", "verdict", "becomes"),
    [
        (("lactd",), "/system.slice/lactd.service", "start",
         "stops with lactd.service, which is stopped first"),
        (("display-manager",), "/system.slice/gdm.service", "start",
         "stops with gdm.service, which is stopped first"),
        (("display-manager",), SESSION, "start",
         "should stop with gdm.service, which is stopped first"),
        (("display-manager",), USER_UNIT, "start",
         "should stop with gdm.service, which is stopped first"),
        # Only a display manager takes sessions along, and a stopped unit only itself.
        (("lactd",), SESSION, "refuse", "must close it within 5 s"),
        (("lactd",), "/system.slice/lactd.service.d.scope", "refuse", "must close it within 5 s"),
        (("display-manager",), "/system.slice/ollama.service", "refuse",
         "must close it within 15 s"),
    ],
)  # fmt: skip
def test_a_process_of_a_service_that_is_stopped_first_does_not_prevent_the_start(
    machine: MachineFactory, services: tuple[str, ...], cgroup: str, verdict: str, becomes: str
) -> None:
    host = desktop(machine("amd-single"))
    hold(host, "dev/dri/card0", pid=7, command="someone", cgroup=cgroup)

    made = plan.plan_for(host, vm(AMD), stopping(*services))

    assert (made.verdict, [one.becomes for one in made.holders]) == (verdict, [becomes])


@pytest.mark.parametrize(
    ("command", "node", "cgroup", "ends"),
    [
        ("Xorg", "dev/dri/card0", "/", True),
        ("Xorg", "dev/dri/card0", "/openrc.sddm", True),
        ("firefox", "dev/dri/renderD128", "/", True),
        ("sddm", "dev/dri/renderD128", "/openrc.other", True),
        ("ollama", "dev/dri/renderD128", "/openrc.ollama", False),
        ("ollama", "dev/dri/renderD128", "/system.slice/ollama.service", False),
    ],
)
def test_a_process_may_end_with_a_service_that_a_command_stops(
    machine: MachineFactory, command: str, node: str, cgroup: str, ends: bool
) -> None:
    host = machine("amd-single")
    openrc.put(host.tree, "sddm", "started")
    hold(host, node, pid=7, command=command, cgroup=cgroup)
    status, stop, start = [("/sbin/rc-service", "sddm", v) for v in ("status", "stop", "start")]

    made = plan.plan_for(host, vm(AMD), Config(services=(Service("sddm", status, stop, start),)))

    assert (made.verdict, [one.becomes for one in made.holders]) == (
        (plan.START, ["should stop with sddm, which is stopped first"]) if ends
        else (plan.REFUSE, ["must close it within 5 s"])
    )  # fmt: skip


def test_a_command_for_something_else_is_no_promise_that_a_process_ends(
    machine: MachineFactory,
) -> None:
    host = machine("amd-single")
    openrc.put(host.tree, "hugepages", "started")
    hold(host, "dev/dri/card0", pid=7, command="Xorg")
    status, stop, start = [
        ("/sbin/rc-service", "hugepages", verb) for verb in ("status", "stop", "start")
    ]
    config = Config(services=(Service("hugepages", status, stop, start),))

    made = plan.plan_for(host, vm(AMD), config)

    assert (made.verdict, [one.becomes for one in made.holders]) == (
        plan.REFUSE, ["must close it within 5 s"],
    )  # fmt: skip
    assert "in use by Xorg (7)" in prepare(host, vm(AMD), config)


@pytest.mark.parametrize("leader", ["login", "sshd-session"])
def test_a_session_that_the_display_manager_has_not_begun_does_not_stop_with_it(
    machine: MachineFactory, leader: str
) -> None:
    host = desktop(machine("amd-single"))
    hold(host, "dev/dri/card0", pid=7, command="sway", cgroup=SESSION)
    hold(host, "dev/null", pid=8, command=leader, cgroup=SESSION)

    made = plan.plan_for(host, vm(AMD), stopping("display-manager"))

    assert (made.verdict, [one.becomes for one in made.holders]) == (
        plan.REFUSE, ["must close it within 15 s"],
    )  # fmt: skip
    end = "holders: {terminate: [session]}" if leader == "login" else "close sway, or add"
    assert end in made.hint
    assert "services" not in made.hint
    assert "in use by sway (7)" in prepare(host, vm(AMD), stopping("display-manager"))


def test_a_refusal_for_a_holder_names_it_and_how_long_prepare_would_wait(
    machine: MachineFactory,
) -> None:
    host = machine("amd-single")
    hold(host, "dev/dri/card0", pid=7, command="Xorg")

    made = plan.plan_for(host, vm(AMD), Config())

    assert made.verdict == plan.REFUSE
    assert made.reason.startswith(f"{AMD} is in use by Xorg (7) with /dev/dri/card0 open; ")
    assert made.reason.endswith(" within 5 s")
    assert made.hint
    assert made.steps
    assert made.after == "the console comes back with amdgpu"


def test_many_holders_are_counted_in_the_text_and_listed_in_json(machine: MachineFactory) -> None:
    host = machine("amd-single")
    for pid in range(100, 130):
        hold(host, "dev/dri/card0", pid=pid, command="chrome")

    made = plan.plan_for(host, vm(AMD), NOW)

    assert "  and 18 more\n" in plan_text(made)
    assert len(made.to_json()["holders"]) == 30


# -- what else decides


def test_with_on_failure_start_it_would_start_anyway(machine: MachineFactory) -> None:
    host = machine("intel-bootfb-no-driver")
    config = replace(NOW, on_failure="start")

    made = plan.plan_for(host, vm("0000:00:02.0"), config)

    assert (made.verdict, made.reason[:6], made.after) == (plan.START, "BOOTFB", "")
    assert made.gpus_after == made.gpus
    assert "(on_failure: start): BOOTFB of" in plan_text(made)


@pytest.mark.parametrize(
    ("managed", "reason"),
    [
        (True, f"the IOMMU is off: {GPU} is in no IOMMU group, so libvirt cannot assign it"),
        (False, f"{GPU} is managed='no' and not on vfio-pci, so libvirt does not assign it"),
    ],
)
def test_a_vm_that_libvirt_refuses_stays_refused_with_on_failure_start(
    machine: MachineFactory, managed: bool, reason: str
) -> None:
    host = machine("efifb-6.12")
    if managed:
        host.tree.remove(f"sys/bus/pci/devices/{GPU}/iommu_group")
        host.tree.remove("sys/kernel/iommu_groups")

    made = plan.plan_for(host, vm(GPU, managed=managed), replace(NOW, on_failure="start"))

    assert (made.verdict, made.reason) == (plan.REFUSE, reason)


def test_a_gpu_that_another_vm_has_is_refused_with_its_name(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    prepare(host, vm(GPU, uuid=OTHER_UUID, name="other"))

    made = plan.plan_for(host, vm(GPU), NOW)

    assert (made.verdict, made.reason) == (
        plan.REFUSE, f"{GPU} belongs to the VM other, which has it now",
    )  # fmt: skip
    assert [one.address for one in made.gpus] == [GPU]


@pytest.mark.parametrize("name", ["native-6.1", "efifb-6.12"])
@pytest.mark.parametrize("by", ["libvirt", "qemu"])
def test_the_plan_of_a_running_vm_is_that_of_its_next_start(
    machine: MachineFactory, name: str, by: str
) -> None:
    host = machine(name)
    before = plan.plan_for(host, vm(GPU), NOW)
    prepare(host, vm(GPU))
    FakeLibvirt(host).detach(GPU)
    if by == "qemu":
        open_device(host, GPU)

    made = plan.plan_for(host, vm(GPU), NOW, frozenset([GPU] if by == "libvirt" else []))

    assert (made.verdict, made.steps, made.after) == (plan.START, before.steps, before.after)
    assert made.note.startswith(f"win11 is running with {GPU}; this plan is for its next start")


def test_a_claim_of_an_earlier_run_is_noted(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    before = plan.plan_for(host, vm(GPU), NOW)
    prepare(host, vm(GPU))

    made = plan.plan_for(host, vm(GPU), NOW)

    assert (made.verdict, made.steps) == (plan.START, before.steps)
    assert made.note.startswith(f"win11 still holds {GPU} from an earlier run: its next start")
    # The next prepare does the same.
    assert prepare(host, vm(GPU)) == ""


def test_a_gpu_that_a_running_vm_has_without_the_hook_is_noted(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    FakeLibvirt(host).detach(GPU)

    made = plan.plan_for(host, vm(GPU), NOW, frozenset([GPU]))

    assert made.note.startswith(f"win11 is running with {GPU}, but not through this hook")


def test_a_claim_that_cannot_be_read_refuses_the_vm(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    host.tree.put(f"{CLAIMS}/{UUID}", "garbage")

    made = plan.plan_for(host, vm(GPU), NOW)

    assert (made.verdict, made.reason[:29]) == (plan.REFUSE, "cannot understand the claim /")
    assert prepare(host, vm(GPU)) == made.reason


# -- JSON and text


def test_the_plan_as_json_has_the_keys_that_programs_rely_on(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    hold(host, "dev/fb0", pid=7, command="plymouthd", unit="plymouth-start.service")

    made = json.loads(json.dumps(plan.plan_for(host, vm(GPU), Config()).to_json()))

    assert list(made) == [
        "vm", "uuid", "verdict", "reason", "hint", "note", "gpus", "others", "left",
        "consoles", "holders", "steps", "after", "unless",
    ]  # fmt: skip
    assert (made["vm"], made["uuid"], made["verdict"]) == ("win11", UUID, "refuse")
    (gpu,) = made["gpus"]
    assert gpu["bars"] == [
        {"number": 0, "first": "0xc0000000", "last": "0xc0ffffff",
         "claims": [{"name": "efifb", "first": "0xc0000000", "last": "0xc03e7fff"}]},
        {"number": 2, "first": "0xfeb00000", "last": "0xfeb00fff", "claims": []},
    ]  # fmt: skip
    assert (gpu["class"], gpu["driver"], gpu["framebuffers"]) == ("0300", None, ["fb0"])
    assert made["holders"] == [
        {"pid": 7, "command": "plymouthd", "unit": "plymouth-start.service",
         "nodes": ["/dev/fb0"], "becomes": "must close it within 5 s"},
    ]  # fmt: skip
    assert [one["stage"] for one in made["steps"]] == ["preflight", "fbcon", "fbdev", "fbdev"]
    assert (made["steps"][2]["do"], made["steps"][2]["undo"]) == (
        "echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/unbind",
        "echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/bind",
    )


@pytest.mark.parametrize("case", PLANS, ids=lambda case: case.golden)
def test_the_text_fits_the_terminal_except_for_lines_to_copy(
    machine: MachineFactory, case: Case
) -> None:
    host = prepared(case, machine)
    try:
        made = plan.plan_for(host, case.domain, case.config)
    except HookError:
        return

    copied = {f"    {step.do.shell()}" for step in made.steps if step.do}
    for width in (60, 80, 110):
        lines = text.text(made, Terminal(width)).splitlines()

        long = [line for line in lines if len(line) >= width and line not in copied]
        assert [line for line in long if not re.fullmatch(r" *`[^`]*`,?", line)] == []
        assert copied <= set(lines)


def test_colour_does_not_change_the_words(machine: MachineFactory) -> None:
    started = plan.plan_for(machine("efifb-6.12"), vm(GPU), NOW)
    refused = plan.plan_for(machine("intel-bootfb-no-driver"), vm("0000:00:02.0"), NOW)

    painted = [plan_text(one, colour=True) for one in (started, refused)]

    assert "\033[32mthe VM would start\033[0m\n" in painted[0]
    assert "\033[31mthe VM would be refused\033[0m: BOOTFB of" in painted[1]
    assert [re.sub(r"\033\[\d+m", "", one) for one in painted] == [
        plan_text(started),
        plan_text(refused),
    ]
