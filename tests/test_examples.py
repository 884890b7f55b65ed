"""The example configurations, used as they are on machines of their kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, hold, systemd
from tests.gate import ROOT
from tests.libvirt_xml import UUID, domain_xml
from tests.test_check_config import WIN11, put
from vfio_console_hook import cli
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config import load
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, parse
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.log import Log

KWIN = "/user.slice/user-1000.slice/user@1000.service/session.slice/plasma-kwin_wayland.service"
SESSION = "/user.slice/user-1000.slice/session-2.scope"
AMD, NVIDIA = "0000:09:00.0", "0000:01:00.0"


def use(host: FakeHost, example: str) -> Config:
    """Install an example for win11; what applies then."""
    put(host, WIN11, (ROOT / f"config/{example}.yaml").read_text(encoding="utf-8"))
    host.tree.put("recorded/now", "1")
    return load.configuration(host, "win11", UUID)


def vm(*addresses: str) -> Domain:
    return parse(domain_xml(*addresses))


def on_systemd(host: FakeHost, *services: str) -> None:
    """Let these services run, the first of them as display manager."""
    systemd.install(host.tree)
    for number, name in enumerate(services):
        aliases = () if number else ("display-manager.service",)
        systemd.put(host.tree, f"{name}.service", systemd.Unit(active="active", aliases=aliases))
    alias = "etc/systemd/system/display-manager.service"
    host.tree.text_link(alias, f"/usr/lib/systemd/system/{services[0]}.service")


def in_order(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> bool:
    status = cli.main(["check-config"], host)
    return (status, capsys.readouterr().out) == (0, f"/{WIN11}: no mistakes\n")


def stopped(made: plan.Plan) -> list[str]:
    return [step.do.shell() for step in made.steps if step.stage == "services" and step.do]


def test_one_amd_gpu_with_plasma(
    machine: MachineFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    host = machine("amd-single")
    on_systemd(host, "sddm")
    for pid, command, cgroup in (
        (7, "kwin_wayland", KWIN),
        (8, "plasmashell", KWIN.replace("kwin_wayland", "plasmashell")),
        (9, "Xwayland", KWIN),
        (10, "systemd-logind", "/system.slice/systemd-logind.service"),
    ):
        hold(host, "dev/dri/card0", pid=pid, command=command, cgroup=cgroup)
    settings = use(host, "single-amd-kde")

    made = plan.plan_for(host, vm(AMD, "0000:09:00.1"), settings)

    assert in_order(host, capsys)
    assert (made.verdict, made.reason) == (plan.START, "")
    assert stopped(made) == ["systemctl stop sddm.service"]
    assert all(one.becomes.startswith("should stop with sddm.service") for one in made.holders)
    assert "amdgpu" in made.after


def test_a_plasma_session_that_has_outlived_sddm_is_ended(machine: MachineFactory) -> None:
    host = machine("amd-single")
    on_systemd(host, "sddm")
    systemd.put(host.tree, "sddm.service", systemd.Unit(aliases=("display-manager.service",)))
    hold(host, "dev/dri/card0", pid=7, command="kwin_wayland", cgroup=KWIN)
    settings = use(host, "single-amd-kde")

    made = plan.plan_for(host, vm(AMD, "0000:09:00.1"), settings)

    assert (made.verdict, [one.becomes for one in made.holders]) == (
        plan.START, ["ended if it is still open after 20 s"],
    )  # fmt: skip


def test_one_nvidia_gpu_with_persistenced(
    machine: MachineFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    host = machine("nvidia-single-desktop")
    on_systemd(host, "gdm", "nvidia-persistenced")
    hold(host, "dev/nvidia0", pid=7, command="gnome-shell", cgroup=SESSION)
    hold(host, "dev/nvidia0", pid=8, command="nvidia-persiste", unit="nvidia-persistenced.service")
    settings = use(host, "single-nvidia")

    made = plan.plan_for(host, vm(NVIDIA, "0000:01:00.1"), settings)

    assert in_order(host, capsys)
    assert (made.verdict, made.reason) == (plan.START, "")
    assert stopped(made) == [
        "systemctl stop gdm.service", "systemctl stop nvidia-persistenced.service",
    ]  # fmt: skip
    assert [one.becomes.partition(",")[0] for one in made.holders] == [
        "should stop with gdm.service", "stops with nvidia-persistenced.service",
    ]  # fmt: skip
    assert "nvidia" in made.after


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("two-gpus-6.12", "0000:02:00.0"),
        ("two-gpus-6.12", "0000:01:00.0"),
        ("intel-and-nvidia", NVIDIA),
        ("amd-dgpu-and-apu", "0000:03:00.0"),
    ],
)
def test_two_gpus(
    machine: MachineFactory, capsys: pytest.CaptureFixture[str], name: str, leaves: str
) -> None:
    host = machine(name)
    on_systemd(host, "gdm")
    settings = use(host, "two-gpus")

    made = plan.plan_for(host, vm(leaves), settings)

    assert in_order(host, capsys)
    assert (made.verdict, stopped(made)) == (plan.START, [])


# -- own commands

PAGES = "proc/sys/vm/nr_hugepages"
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
OF_VM = "run/monitor-of-vm"


class Userspace(FakeHost):
    """A machine with the programs of the example; pages are what the kernel finds at most."""

    pages = 8192

    def exit_status(self, *command: str, timeout_s: float) -> int | None:
        program, *words = command
        if program == "/usr/bin/grep":
            option, wanted, path = words
            same = [line == wanted for line in (self.read(path[1:]) or "").splitlines()]
            return 0 if {"-qx": any(same), "-qvx": not all(same)}[option] else 1
        if program == "/usr/sbin/sysctl":
            asked = int(words[1].removeprefix("vm.nr_hugepages="))
            self.tree.put(PAGES, str(min(asked, self.pages)))
        elif program == "/usr/bin/cpupower":
            self.tree.put(GOVERNOR, words[2])
        elif program == "/usr/local/sbin/monitor-input":
            if words == ["is-host"]:
                return int(self.exists(OF_VM))
            self.tree.put(OF_VM, "") if words == ["vm"] else self.tree.remove(OF_VM)
        else:
            raise AssertionError(command)
        return 0

    def state(self) -> tuple[str | None, str | None, bool]:
        return self.read(PAGES), self.read(GOVERNOR), self.exists(OF_VM)


ON_HOST = ("0", "schedutil", False)


@pytest.fixture
def own(machine: MachineFactory) -> Userspace:
    host = Userspace(machine("amd-single").root)
    host.tree.put(PAGES, "0")
    host.tree.put(GOVERNOR, "schedutil")
    for program in ("usr/bin/grep", "usr/sbin/sysctl", "usr/bin/cpupower",
                    "usr/local/sbin/monitor-input"):  # fmt: skip
        host.tree.put(program, "")
        Path(host.path(program)).chmod(0o755)
    return host


def test_own_commands_run_before_and_after_the_vm(
    own: Userspace, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = use(own, "own-commands")
    assert in_order(own, capsys)
    assert own.state() == ON_HOST

    events.prepare(own, vm(AMD, "0000:09:00.1"), settings, Log(own, "win11"))

    assert own.state() == ("8192", "performance", True)

    events.release(own, UUID, Log(own, "win11"))

    assert own.state() == ON_HOST


def test_what_the_kernel_has_found_of_the_pages_is_given_back(own: Userspace) -> None:
    settings = use(own, "own-commands")
    own.pages = 5000
    events.prepare(own, vm(AMD, "0000:09:00.1"), settings, Log(own, "win11"))
    found = own.state()

    events.release(own, UUID, Log(own, "win11"))

    assert (found, own.state()) == (("5000", "performance", True), ON_HOST)


def test_the_commands_are_undone_when_the_gpu_is_in_use(own: Userspace) -> None:
    settings = replace(use(own, "own-commands"), holders=Holders(wait_s=0))
    hold(own, "dev/dri/card0", pid=7, command="Xorg")

    with pytest.raises(RefusedError, match="in use by Xorg"):
        events.prepare(own, vm(AMD, "0000:09:00.1"), settings, Log(own, "win11"))

    assert own.state() == ON_HOST


def test_what_the_host_has_set_itself_is_left_alone(own: Userspace) -> None:
    settings = use(own, "own-commands")
    own.tree.put(PAGES, "100")
    own.tree.put(GOVERNOR, "performance")

    events.prepare(own, vm(AMD, "0000:09:00.1"), settings, Log(own, "win11"))
    during = own.state()
    events.release(own, UUID, Log(own, "win11"))

    assert (during, own.state()) == (("100", "performance", True), ("100", "performance", False))
