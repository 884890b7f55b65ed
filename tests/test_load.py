"""`release: {native: load}`: a driver that is kept off the host gives a console after the VM."""

from __future__ import annotations

import pytest

from tests import events
from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost, FakeLibvirt
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.settings import Config, Release
from vfio_console_hook.domain import parse
from vfio_console_hook.errors import HookError
from vfio_console_hook.events.outlook import outlook
from vfio_console_hook.log import Log
from vfio_console_hook.machine.console import FBCON, vtconsoles
from vfio_console_hook.machine.gpu import Gpu, gpus_among
from vfio_console_hook.machine.modules import Candidates

GPU = "0000:01:00.0"
VM = parse(domain_xml(GPU))
LOAD = Config(release=Release("load"))


def cycle(host: FakeHost, config: Config) -> None:
    """A VM starts and ends."""
    log, libvirt = Log(host, "win11"), FakeLibvirt(host)
    events.prepare(host, VM, config, log)
    libvirt.detach(GPU)
    events.start(host, VM.uuid, log)
    libvirt.reattach(GPU)
    events.release(host, VM.uuid, log)


def gpu(host: FakeHost) -> Gpu:
    return gpus_among(host, (GPU,))[0]


def console_is_drawn(host: FakeHost) -> bool:
    return any(one.driver == FBCON and one.bound for one in vtconsoles(host))


def test_without_it_the_console_is_lost_and_plan_names_the_driver(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    after = plan.plan_for(host, VM, Config()).after

    cycle(host, Config())

    assert (gpu(host).driver, console_is_drawn(host)) == (None, False)
    assert "bochs" in after and "`release: {native: load}`" in after


@pytest.mark.parametrize("blacklist", ["bochs", ""])
def test_a_driver_is_loaded_where_no_console_came_back(
    machine: MachineFactory, blacklist: str
) -> None:
    host = machine("efifb-6.1")
    host.tree.put("fake/blacklist", blacklist)
    _, steps = events.look(host, VM, LOAD)

    cycle(host, LOAD)

    assert (gpu(host).native, bool(gpu(host).framebuffers)) == (True, True)
    assert console_is_drawn(host)
    assert any("bochs" in step.why for step in steps)


def test_plan_promises_the_console_with_it(machine: MachineFactory) -> None:
    promised = "the console comes back with bochs, which release loads"

    assert outlook(*events.look(machine("efifb-6.1"), VM, LOAD)) == promised


def test_the_next_vm_takes_the_gpu_from_that_driver(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    cycle(host, LOAD)

    cycle(host, LOAD)

    assert (gpu(host).native, console_is_drawn(host)) == (True, True)


def test_nothing_is_loaded_where_the_firmware_console_is_back(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    cycle(host, LOAD)

    assert (gpu(host).driver, gpu(host).firmware[0].driver) == (None, "efi-framebuffer")


def test_a_gpu_that_was_on_vfio_pci_since_boot_gets_its_driver(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    FakeLibvirt(host).detach(GPU)  # what vfio-pci.ids does; nobody will reattach it

    cycle(host, LOAD)

    assert (gpu(host).native, gpu(host).vfio, console_is_drawn(host)) == (True, False, True)


NVIDIA_MODULES = """\
nvidia nodes=dev/nvidia0,dev/nvidiactl alone=no
nvidia_modeset needs=nvidia
nvidia_drm needs=nvidia_modeset,nvidia shows=nvidia
"""


def with_nvidia(machine: MachineFactory, modules: str = NVIDIA_MODULES) -> FakeHost:
    """A GPU without a driver, which is nvidia's."""
    host = machine("efifb-6.1")
    host.tree.put(f"fake/native/{GPU}", "driver=nvidia fb=nvidia-drmdrmfb bars=0")
    host.tree.put("fake/modules", modules)
    return host


def test_what_nvidia_shows_depends_on_its_parameters(machine: MachineFactory) -> None:
    host = with_nvidia(machine)

    assert outlook(*events.look(host, VM, LOAD)) == (
        "the console may come back with nvidia_drm, which release loads"
    )
    after = plan.plan_for(host, VM, Config()).after
    assert "nvidia_drm, which is installed, may show a console" in after


def test_nvidia_is_loaded_once_the_gpu_has_left_vfio_pci_and_shows_a_console(
    machine: MachineFactory,
) -> None:
    host = with_nvidia(machine)
    FakeLibvirt(host).detach(GPU)

    for _ in range(2):
        cycle(host, LOAD)

        assert (gpu(host).driver, bool(gpu(host).framebuffers)) == ("nvidia", True)
        assert console_is_drawn(host)


def test_nvidia_that_is_loaded_for_another_gpu_is_bound(machine: MachineFactory) -> None:
    host = with_nvidia(machine, NVIDIA_MODULES.replace(" alone=no", ""))
    FakeLibvirt(host).detach(GPU)
    host.load_module("nvidia_drm")

    cycle(host, LOAD)

    assert gpu(host).driver == "nvidia"


def test_a_gpu_is_back_on_vfio_pci_if_the_driver_does_not_load(machine: MachineFactory) -> None:
    host = with_nvidia(machine)
    FakeLibvirt(host).detach(GPU)
    host.tree.put("proc/cmdline", "module_blacklist=nvidia")

    with pytest.raises(HookError):
        cycle(host, LOAD)

    assert gpu(host).driver == "vfio-pci"


@pytest.mark.parametrize(
    ("found", "blacklisted", "console"),
    [
        (("nouveau", "nvidia", "nvidia_drm"), ("nouveau",), "nvidia_drm"),
        (("nouveau", "nvidia"), ("nouveau", "nvidia"), "nouveau"),
        (("nvidia",), (), "nvidia_drm"),
        (("amdgpu",), ("amdgpu",), "amdgpu"),
        ((), (), ""),
    ],
)
def test_the_driver_that_the_host_would_use_is_loaded(
    found: tuple[str, ...], blacklisted: tuple[str, ...], console: str
) -> None:
    assert Candidates(found, blacklisted).console == console


def test_a_gpu_without_an_installed_driver_is_left_alone(machine: MachineFactory) -> None:
    host = machine("efifb-6.1")
    host.tree.remove("fake/native")
    _, steps = events.look(host, VM, LOAD)

    cycle(host, LOAD)

    assert gpu(host).driver is None
    assert [step.why for step in steps if step.stage == "load"] == [
        "no driver for it is installed, so release can load none"
    ]
