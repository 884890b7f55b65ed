"""The processes that hold a GPU: which nodes count, how the holders are found and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, conceal, hold, leave, obey, snapshot, systemd
from tests.fakehost.processes import NEVER
from vfio_console_hook.actions import compositors
from vfio_console_hook.actions.cards import ReturnCard
from vfio_console_hook.actions.holders import AwaitClosed
from vfio_console_hook.actions.user_managers import StartManagers
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.snapshot.writer import machine_text
from vfio_console_hook.config.service import Service
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import HookError, HostError
from vfio_console_hook.log import SNAPSHOT_LOG, Log
from vfio_console_hook.machine import gpu, holders, nodes, processes
from vfio_console_hook.machine.holder import Holder
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.snapshot import SnapshotHost, unpack

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
GPU = "0000:01:00.0"
AMD, AMD_SOUND = "0000:09:00.0", "0000:09:00.1"
AMD_PATH = f"sys/devices/pci0000:00/0000:00:03.1/{AMD}"
SOUND_PATH = f"sys/devices/pci0000:00/0000:00:03.1/{AMD_SOUND}"
CARD = "dev/dri/card0"
KWIN = "/user.slice/user-1000.slice/user@1000.service/session.slice/plasma-kwin_wayland.service"


def blocking(host: FakeHost, *addresses: str, others: tuple[str, ...] = ()) -> tuple[str, ...]:
    return nodes.nodes_to_close(host, gpu.gpus_among(host, addresses), others)


def entry(host: FakeHost, kind: str, name: str, below: str) -> None:
    """A device of a class in sysfs, below another one (drivers/base/core.c)."""
    host.tree.make_directory(f"{below}/{name}")
    host.tree.link(f"sys/class/{kind}/{name}", f"{below}/{name}")


# -- which nodes count


def test_sound_that_leaves_with_the_gpu_counts_in_any_slot(machine: MachineFactory) -> None:
    host = machine("arc-sound-in-another-slot")
    sound = ("dev/snd/controlC0", "dev/snd/hwC0D0", "dev/snd/pcmC0D3p")

    with_it = blocking(host, "0000:03:00.0", others=("0000:04:00.0",))

    assert with_it == (*blocking(host, "0000:03:00.0"), *sound)


def test_i2c_adapters_count_anywhere_below_the_gpu(machine: MachineFactory) -> None:
    host = machine("amd-single")
    entry(host, "i2c-dev", "i2c-3", f"{AMD_PATH}/i2c-3/i2c-dev")
    entry(host, "i2c-dev", "i2c-4", f"{AMD_PATH}/drm/card0/card0-DP-1/i2c-4/i2c-dev")
    entry(host, "i2c-dev", "i2c-0", "sys/devices/pci0000:00/0000:00:14.0/i2c-0/i2c-dev")

    assert blocking(host, AMD) == (
        "dev/fb0", "dev/dri/card0", "dev/dri/renderD128", "dev/i2c-3", "dev/i2c-4",
    )  # fmt: skip


def test_the_controller_of_an_intel_card_counts(machine: MachineFactory) -> None:
    host = machine("arc-sound-in-another-slot")
    before = blocking(host, "0000:03:00.0")
    card = host.tree.where("sys/bus/pci/devices/0000:03:00.0")
    entry(host, "mei", "mei1", f"{card}/i915.mei-gscfi.768/mei")
    entry(host, "mei", "mei0", "sys/devices/pci0000:00/0000:00:16.0/mei")

    assert set(blocking(host, "0000:03:00.0")) - set(before) == {"dev/mei1"}


def test_a_backlight_below_the_gpu_counts_with_all_its_files(machine: MachineFactory) -> None:
    host = machine("amd-single")
    for name, below in (
        ("amdgpu_bl0", f"{AMD_PATH}/drm/card0/card0-eDP-1"),
        ("acpi_video0", "sys/devices/pci0000:00/0000:00:01.0/backlight"),
    ):
        entry(host, "backlight", name, below)
        host.tree.put(f"{below}/{name}/brightness", "7")
    file = f"/{AMD_PATH}/drm/card0/card0-eDP-1/amdgpu_bl0/brightness"
    hold(host, file, pid=7, command="upowerd", shown=file)

    assert holders.holders_of(host, blocking(host, AMD)) == [
        Holder(7, "upowerd", "", ("/sys/class/backlight/amdgpu_bl0",)),
    ]


def with_sound(host: FakeHost) -> FakeHost:
    """The cards of the GPU's audio function and of the board."""
    for number, below in ((0, "sys/devices/pci0000:00/0000:00:1f.3"), (1, SOUND_PATH)):
        card = f"{below}/sound/card{number}"
        entry(host, "sound", f"card{number}", f"{below}/sound")
        for name in (f"controlC{number}", f"hwC{number}D0", f"pcmC{number}D3p"):
            entry(host, "sound", name, card)
    entry(host, "sound", "timer", "sys/devices/virtual/sound")
    return host


def test_sound_nodes_count_if_the_audio_function_goes_too(machine: MachineFactory) -> None:
    host = with_sound(machine("amd-single"))
    own = ("dev/fb0", "dev/dri/card0", "dev/dri/renderD128")

    assert blocking(host, AMD) == own
    assert blocking(host, AMD, others=("0000:00:1f.3",)) == own, "that is not the GPU's"
    assert blocking(host, AMD, others=(AMD_SOUND,)) == (
        *own, "dev/snd/controlC1", "dev/snd/hwC1D0", "dev/snd/pcmC1D3p",
    )  # fmt: skip


def test_prepare_includes_the_siblings_of_the_gpu(machine: MachineFactory) -> None:
    host = with_sound(machine("amd-single"))
    hold(host, "dev/snd/controlC1", pid=1800, command="mixer")

    assert refusal(host, NOW, AMD, AMD_SOUND).startswith(
        "0000:09:00.0 is in use by mixer (1800) with /dev/snd/controlC1 open"
    )


def test_kfd_counts_for_amdgpu_and_for_no_other(machine: MachineFactory) -> None:
    amd, intel = machine("two-amd"), machine("native-6.1")
    for host in (amd, intel):
        host.tree.put("dev/kfd", "")

    assert "dev/kfd" in blocking(amd, "0000:03:00.0")
    assert "dev/kfd" not in blocking(intel, GPU)


NVIDIA, OTHER_NVIDIA = "0000:65:00.0", "0000:17:00.0"
ALL_OF_NVIDIA = (
    "dev/nvidia-caps/nvidia-cap1", "dev/nvidia-modeset", "dev/nvidia-uvm", "dev/nvidia0",
    "dev/nvidia1", "dev/nvidiactl",
)  # fmt: skip


def with_nvidia(host: FakeHost) -> FakeHost:
    for node in ALL_OF_NVIDIA:
        host.tree.put(node, "")
    # NVIDIA nv-procfs.c, nv_procfs_read_gpu_info
    host.tree.put(
        f"proc/driver/nvidia/gpus/{NVIDIA}/information",
        "Model: \t\t NVIDIA T400\nIRQ:   \t\t 131\nDevice Minor: \t 1\nGPU Excluded:\t No",
    )
    return host


def stays_on_nvidia(host: FakeHost) -> None:
    device = host.tree.where(f"sys/bus/pci/devices/{OTHER_NVIDIA}")
    host.tree.remove(f"{device}/driver")
    host.tree.remove(f"{device}/vfio-dev")
    host.tree.link(f"{device}/driver", "sys/bus/pci/drivers/nvidia")


def test_all_nodes_of_nvidia_count_when_its_last_gpu_leaves(machine: MachineFactory) -> None:
    assert blocking(with_nvidia(machine("bmc-and-two-nvidia")), NVIDIA) == ALL_OF_NVIDIA


def test_only_its_own_node_counts_while_another_gpu_stays_on_nvidia(
    machine: MachineFactory,
) -> None:
    host = with_nvidia(machine("bmc-and-two-nvidia"))
    stays_on_nvidia(host)

    assert blocking(host, NVIDIA) == ("dev/nvidia1",)
    assert blocking(host, NVIDIA, OTHER_NVIDIA) == ALL_OF_NVIDIA


def test_all_nodes_of_nvidia_count_where_the_driver_does_not_show_minor_numbers(
    machine: MachineFactory,
) -> None:
    host = with_nvidia(machine("bmc-and-two-nvidia"))
    stays_on_nvidia(host)
    host.tree.remove("proc/driver")

    assert blocking(host, NVIDIA) == ALL_OF_NVIDIA


def test_nodes_of_firmware_drm_drivers_need_not_be_closed(machine: MachineFactory) -> None:
    assert blocking(machine("amd-strix-halo-0380"), "0000:c3:00.0") == ()


@pytest.mark.parametrize("name", ["efifb-5.10", "efifb-6.12"])
def test_the_node_of_a_firmware_fbdev_driver_must_be_closed(
    machine: MachineFactory, name: str
) -> None:
    assert blocking(machine(name), GPU) == ("dev/fb0",)


def test_a_snapshot_of_a_machine_has_the_same_nodes(
    machine: MachineFactory, tmp_path: Path
) -> None:
    host = with_nvidia(with_sound(machine("bmc-and-two-nvidia")))
    stays_on_nvidia(host)
    entry(host, "i2c-dev", "i2c-3", f"{host.tree.where(f'sys/bus/pci/devices/{NVIDIA}')}/i2c-3")
    entry(host, "backlight", "bl", host.tree.where(f"sys/bus/pci/devices/{NVIDIA}"))
    (tmp_path / "again").mkdir()

    again = unpack(machine_text(host), str(tmp_path / "again"))

    assert nodes.nodes_to_close(again, gpu.gpus_among(again, (NVIDIA,))) == (
        "dev/i2c-3", "sys/class/backlight/bl", "dev/nvidia1",
    )  # fmt: skip
    assert again.list("sys/class/sound") == host.list("sys/class/sound")


# -- how they are found


def test_the_holder_of_fb0_is_listed_with_its_unit(machine: MachineFactory) -> None:
    found = holders.holders_of(machine("fb0-held-by-plymouth"), ["dev/fb0"])

    assert [str(one) for one in found] == [
        "plymouthd (412) [plymouth-start.service] with /dev/fb0 open"
    ]


def test_holders_are_in_the_order_of_their_process_ids(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=1200, command="Xorg", unit="gdm.service")
    hold(host, "dev/fb0", pid=1200, command="Xorg", unit="gdm.service")
    hold(host, "dev/dri/renderD128", pid=97, command="lact")
    hold(host, "dev/null", pid=3, command="bash")

    found = holders.holders_of(host, ["dev/fb0", CARD, "dev/dri/renderD128"])

    assert found == [
        Holder(97, "lact", "", ("/dev/dri/renderD128",)),
        Holder(1200, "Xorg", "/system.slice/gdm.service", (f"/{CARD}", "/dev/fb0")),
    ]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "shown",
    ["/dev/dri/card0", "/dri/card0", "/card0", "/dev/dri/card0 (deleted)", "/card0 (deleted)",
     "/dev/my-gpu", "/dev/shm/card7 (deleted)"],
)  # fmt: skip
def test_a_node_is_found_by_each_name_that_the_kernel_may_show(
    machine: MachineFactory, shown: str, mapped: bool
) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="x", shown=shown, mapped=mapped)

    assert holders.holders_of(host, [CARD]) == [Holder(7, "x", "", ("/dev/dri/card0",))]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("node", "shown"),
    [("dev/dri/card1", "/dev/dri/card1"), ("dev/null", "/dev/null"),
     ("dev/dri/card1", "/dev/my-gpu"), ("tmp/card0", "/tmp/card0"), ("x", "/dev/dri/card00")],
)  # fmt: skip
def test_other_files_are_not_mistaken_for_the_node(
    machine: MachineFactory, node: str, shown: str, mapped: bool
) -> None:
    host = machine("amd-single")
    host.tree.put(node, "")
    hold(host, node, pid=7, command="x", shown=shown, mapped=mapped)

    assert holders.holders_of(host, [CARD]) == []


def test_a_terminal_of_a_container_is_not_mistaken_for_a_vfio_group(
    machine: MachineFactory,
) -> None:
    host = machine("amd-single")
    hold(host, "dev/pts/12", pid=7, command="bash", shown="/12")

    assert holders.holders_of(host, ["dev/vfio/12"]) == []


class Careful(FakeHost):
    """Fails if the program reads the device number of a file outside /dev."""

    asked: tuple[str, ...] = ()

    def device_number(self, path: str) -> int | None:
        text = self.readlink(path) if path.startswith("proc/") else f"/{path}"
        assert text is not None
        assert text.startswith("/dev/"), f"{path} leads to {text}, which may never answer"
        self.asked += (text,)
        return super().device_number(path)

    def stat(self, path: str) -> os.stat_result | None:
        assert not path.startswith("proc/"), path
        return super().stat(path)

    exists_asked: tuple[str, ...] = ()

    def exists(self, path: str) -> bool:
        assert not path.startswith("proc/") or path.count("/") == 1, path
        return super().exists(path)


def test_only_files_below_dev_are_touched(machine: MachineFactory) -> None:
    host = Careful(machine("amd-single").root)
    for number, text in enumerate(
        ("/mnt/nfs/film.mkv", "/srv/x/card0", "socket:[5]", "/dev/pts/3", "/dev/null", f"/{CARD}")
    ):
        hold(host, "dev/pts/3", pid=7, command="x", shown=text, mapped=number % 2 == 1)
        hold(host, "dev/pts/3", pid=7, command="x", shown=text)

    holders.holders_of(host, [CARD])

    assert set(host.asked) == {f"/{CARD}", "/dev/pts/3"}


def test_processes_that_cannot_be_inspected_are_unknown(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    conceal(host, pid=71, command="firefox", unit="snap.service")
    conceal(host, pid=72)

    found = holders.holders_of(host, ["dev/fb0"])

    assert [str(one) for one in found] == [
        "firefox (71) [snap.service], which cannot be inspected",
        "x (72), which cannot be inspected",
    ]


def test_a_process_whose_descriptors_cannot_be_read_is_unknown(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    hold(host, "dev/null", pid=71, command="x")
    host.tree.remove("proc/71/fd")
    os.symlink("fd", host.path("proc/71/fd"))  # a loop: cannot be opened, even by root

    assert holders.holders_of(host, ["dev/fb0"]) == [Holder(71, "x", "", ())]


@pytest.mark.parametrize(("pid", "parent"), [(2, 0), (88, 2)])
def test_threads_of_the_kernel_are_not_unknown(
    machine: MachineFactory, pid: int, parent: int
) -> None:
    host = machine("efifb-6.12")
    conceal(host, pid=pid, command="kworker/0:1", parent=parent)

    assert holders.holders_of(host, ["dev/fb0"]) == []


def test_a_process_that_has_ended_is_no_error(machine: MachineFactory) -> None:
    class Vanishing(FakeHost):
        def list(self, path: str) -> tuple[str, ...]:
            return (*super().list(path), "71") if path == "proc" else super().list(path)

    assert holders.holders_of(Vanishing(machine("efifb-6.12").root), ["dev/fb0"]) == []


def test_this_process_and_its_supervisor_never_count(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    hold(host, "dev/fb0", pid=70, command="python3")
    conceal(host, pid=71, command="python3")
    host.own = frozenset((70, 71))

    assert holders.holders_of(host, ["dev/fb0"]) == []


def test_without_nodes_no_process_is_inspected(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    conceal(host, pid=71)

    assert holders.holders_of(host, []) == []


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/gdm.service", "gdm.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope", "app-x.scope"),
        ("4:cpu:/\n1:name=systemd:/system.slice/sddm.service\n0::/", "sddm.service"),
        ("4:devices:/system.slice/other.service\n0::/system.slice/x.service/sub", "x.service"),
        ("0::/", ""),
        ("", ""),
        ("0::/system.slice/a:b.service", "a:b.service"),
    ],
)
def test_the_unit_of_a_holder_is_the_innermost_of_its_cgroup(
    machine: MachineFactory, cgroup: str, unit: str
) -> None:
    host = machine("efifb-6.12")
    hold(host, "dev/fb0", pid=7, command="x")
    host.tree.put("proc/7/cgroup", cgroup)

    (found,) = holders.holders_of(host, ["dev/fb0"])

    assert found.unit == unit


def test_control_characters_in_a_process_name_are_replaced(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    hold(host, "dev/fb0", pid=7, command="x\n\x1b[2Jroot")

    (found,) = holders.holders_of(host, ["dev/fb0"])

    assert str(found) == "x??[2Jroot (7) with /dev/fb0 open"


# -- how they are found on the real machine, on harmless nodes


@contextmanager
def sleeper(program: str) -> Iterator[int]:
    """A Python that says "-" when it is ready, and waits until the test is over."""
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"-"
        yield child.pid
    finally:
        child.kill()
        child.communicate()


OPENS = "f = open('/dev/full', 'rb'); print('-', end='', flush=True); input()"
MAPS = """
import mmap, os
handle = os.open('/dev/zero', os.O_RDWR)
area = mmap.mmap(handle, 4096, flags=mmap.MAP_PRIVATE)
os.close(handle)
print('-', end='', flush=True)
input()
"""


@pytest.mark.parametrize(("program", "node"), [(OPENS, "dev/full"), (MAPS, "dev/zero")])
def test_a_real_process_is_found_as_the_kernel_shows_it(program: str, node: str) -> None:
    with sleeper(program) as pid:
        found = holders.Search(Host(), [node]).among([pid])

    assert [(one.pid, one.nodes) for one in found] == [(pid, (f"/{node}",))]


def test_a_link_to_a_real_node_leads_to_its_device_number() -> None:
    host = Host()
    with sleeper(OPENS) as pid:
        files = host.open_files(pid)
        number = host.device_number(f"proc/{pid}/fd/{files['/dev/full']}")
        pipe = host.device_number(f"proc/{pid}/fd/0")

    # Linux Documentation/admin-guide/devices.txt
    assert (number, pipe) == (os.makedev(1, 7), None)


def test_a_real_process_is_ended_by_its_handle() -> None:
    host = Host()
    with sleeper(OPENS) as pid:
        handle = host.open_process(pid)
        assert handle is not None
        host.wait_for_end([handle], 0.01)
        alive = holders.Search(host, ["dev/full"]).among([pid])
        host.signal_process(handle, signal.SIGTERM)
        host.wait_for_end([handle], 10)
        gone = holders.Search(host, ["dev/full"]).among([pid])
        host.signal_process(handle, signal.SIGTERM)  # it is a zombie, so this is no error
        host.close_process(handle)

    assert ([one.pid for one in alive], gone) == ([pid], [])
    assert host.open_process(pid) is None


def test_the_process_that_forked_us_is_ours_and_the_one_that_started_us_is_not() -> None:
    program = (
        "import os\n"
        "from vfio_console_hook.machine.host import Host\n"
        "if os.fork() == 0:\n"
        "    print(Host().own_pids() == {os.getpid(), os.getppid()}, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(Host().own_pids() == {os.getpid()})\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_reading_a_snapshot_never_touches_this_machine(tmp_path: Path) -> None:
    host = SnapshotHost(str(tmp_path))
    os.makedirs(host.path(f"proc/{os.getpid()}/fd"))
    os.symlink("/dev/null", host.path(f"proc/{os.getpid()}/fd/0"))

    assert host.own_pids() == frozenset()
    assert host.device_number(f"proc/{os.getpid()}/fd/0") is None
    with pytest.raises(HostError, match="of a snapshot"):
        host.open_process(os.getpid())


# -- how prepare waits for them

NOW = Config(holders=Holders(wait_s=0))


def vm(*addresses: str) -> Domain:
    return Domain("win11", UUID, tuple(Hostdev(one, True, "hostdev", 0) for one in addresses))


def failure(host: FakeHost, config: Config, *addresses: str) -> str:
    with pytest.raises(HookError) as caught:
        events.prepare(host, vm(*addresses), config, Log(host, "win11"))
    return str(caught.value)


def refusal(host: FakeHost, config: Config, *addresses: str) -> str:
    """The error text and hint of prepare; the machine must be unchanged."""
    before = snapshot(host)
    text = failure(host, config, *addresses)
    assert (snapshot(host), host.changes) == (before, [])
    return text


def waiting(wait_s: float, *terminate: str, grace_s: float = 5) -> AwaitClosed:
    return AwaitClosed(AMD, (CARD, "dev/fb0"), wait_s, False, terminate, grace_s)


def signals(host: FakeHost) -> list[tuple[str, str]]:
    return [(path, text) for kind, path, text in host.changes if kind == "signal"]


def test_the_wait_is_over_as_soon_as_the_holder_ends(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="Xorg")
    leave(host, 7, 3.21)

    waiting(5).apply(host)

    assert host.clock() == pytest.approx(3.21)
    assert host.handles == {}


def test_the_pauses_between_two_scans_grow_from_20_to_250_ms(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="Xorg")

    with pytest.raises(HookError):
        waiting(1).apply(host)

    assert host.pauses == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.25, 0.25, 0.2])


def test_while_a_holder_is_left_only_known_holders_are_inspected_again(
    machine: MachineFactory,
) -> None:
    class Counting(FakeHost):
        looks = 0

        def list(self, path: str) -> tuple[str, ...]:
            self.looks += path == "proc"
            return super().list(path)

    host = Counting(machine("amd-single").root)
    hold(host, CARD, pid=7, command="Xorg")
    leave(host, 7, 4)

    waiting(60).apply(host)

    assert host.looks == 2


def test_a_process_that_opens_the_gpu_during_the_wait_is_found(machine: MachineFactory) -> None:
    class Taking(FakeHost):
        def wait_for_end(self, handles: object, timeout_s: float) -> None:
            super().wait_for_end(handles, timeout_s)  # type: ignore[arg-type]  # given on
            if not self.exists("proc/8"):
                hold(self, "dev/fb0", pid=8, command="late")

    host = Taking(machine("amd-single").root)
    hold(host, CARD, pid=7, command="Xorg")
    leave(host, 7, 0.1)

    with pytest.raises(HookError) as caught:
        waiting(1).apply(host)

    assert caught.value.text == "0000:09:00.0 is in use by late (8) with /dev/fb0 open"


def test_one_refusal_names_the_holders_of_all_gpus(machine: MachineFactory) -> None:
    host = machine("two-amd")
    hold(host, "dev/dri/card0", pid=7, command="sway")
    hold(host, "dev/dri/renderD129", pid=8, command="ollama")

    reason = refusal(host, NOW, "0000:03:00.0", "0000:13:00.0")

    assert reason.startswith(
        "0000:03:00.0 and 0000:13:00.0 are in use by sway (7) with /dev/dri/card0 open,"
        " ollama (8) with /dev/dri/renderD129 open (hint: "
    )


def test_on_5_x_a_process_that_cannot_be_inspected_is_a_reason_to_refuse(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-5.10")
    conceal(host, pid=71, command="firefox", unit="x.service")

    assert refusal(host, NOW, GPU).startswith(
        "0000:01:00.0 may be in use by firefox (71) [x.service], which cannot be inspected"
    )


def test_from_6_0_a_process_that_cannot_be_inspected_is_only_logged(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    conceal(host, pid=71, command="firefox", unit="x.service")

    events.prepare(host, vm(GPU), NOW, Log(host, "win11"))

    assert "waited until /dev/fb0 was closed; could not inspect firefox (71) [x.service]; " in (
        host.read(SNAPSHOT_LOG) or ""
    )


def test_thirty_holders_fit_into_an_error_text(machine: MachineFactory) -> None:
    host = machine("amd-single")
    for pid in range(2000, 2030):
        hold(host, CARD, pid=pid, command="kwin_wayland_wr", cgroup=f"{KWIN[:-8]}-{pid}.service")

    reason = refusal(host, NOW, AMD)

    assert len(reason.encode()) < 800
    assert "kwin_wayland_wr (2000)" in reason
    assert "more (hint: " in reason


# -- ending them


def test_configured_processes_are_ended_and_logged(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="Xorg", unit="gdm.service")
    hold(host, "dev/fb0", pid=8, command="lact")
    wait = waiting(1, "gdm", "lact")

    remark = wait.apply(host)

    assert signals(host) == [("proc/7", "SIGTERM"), ("proc/8", "SIGTERM")]
    assert remark == "ended Xorg (7) [gdm.service], lact (8)"
    assert wait.past() == "waited until /dev/dri/card0 and /dev/fb0 were closed"
    assert host.handles == {}


@pytest.mark.parametrize(
    ("command", "cgroup", "name"),
    [
        ("Xorg", "/", "Xorg"),
        ("nvidia-persiste", "/", "nvidia-persistenced"),
        ("x", "/system.slice/lactd.service", "lactd"),
        ("x", "/system.slice/lactd.service", "lactd.service"),
        ("x", "/user.slice/user-1000.slice/session-2.scope", "session-2.scope"),
        ("kwin_wayland", KWIN, "user@1000.service"),
        ("kwin_wayland", KWIN, "plasma-*"),
        ("kwin_wayland", KWIN, "kwin_*"),
        ("kwin_wayland", KWIN, "user-*.slice"),
        ("sway", "/user.slice/user-1000.slice/session-2.scope", "user-1000.slice"),
        ("sshd", "/system.slice/ssh.service", "ssh.service"),
        ("sshd", "/user.slice/user-0.slice/session-2.scope", "sshd"),
        ("dropbear", "/user.slice/user-0.slice/session-2.scope", "dropbear"),
    ],
)
def test_a_process_is_ended_if_its_command_or_unit_is_configured(
    machine: MachineFactory, command: str, cgroup: str, name: str
) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command=command, cgroup=cgroup)

    waiting(0, name).apply(host)

    assert signals(host) == [("proc/7", "SIGTERM")]


@pytest.mark.parametrize(
    ("pid", "command", "cgroup", "program", "names"),
    [
        (1, "systemd", "/init.scope", "systemd", ("systemd", "init.scope")),
        (7, "systemd-logind", "/system.slice/systemd-logind.service", "", ("systemd-logind",)),
        (7, "libvirtd", "/system.slice/libvirtd.service", "", ("libvirtd",)),
        (7, "virtqemud", "/", "", ("virtqemud",)),
        (7, "x", "/system.slice/virtqemud.service", "", ("virtqemud.service",)),
        (7, "qemu-system-x86", "/machine.slice/machine-qemu.scope", "", ("machine-qemu.scope",)),
        (7, "any", "/", "qemu-system-x86_64", ("any",)),
        (7, "any", "/", "qemu-kvm (deleted)", ("any",)),
        (7, "sshd", "/user.slice/user-0.slice/session-2.scope", "", ("session-2.scope",)),
        (7, "sshd-session", "/user.slice/user-0.slice/session-2.scope", "", ("session", "user*")),
        (7, "dropbear", "/user.slice/user-0.slice/session-2.scope", "", ("session-2.scope",)),
        (7, "nvtop", "/system.slice/cron.service", "", ("session",)),
        (7, "Xorg", "/", "", ("Xor", "org", "X", "x*", "session")),
        (7, "x", "/", "", ("", ".service")),
    ],
)
def test_no_process_is_ended_if_one_of_the_holders_is_protected_or_not_configured(
    machine: MachineFactory,
    pid: int, command: str, cgroup: str, program: str, names: tuple[str, ...],
) -> None:  # fmt: skip
    host = machine("amd-single")
    hold(host, CARD, pid=9, command="other")
    hold(host, CARD, pid=pid, command=command, cgroup=cgroup)
    if program:
        host.tree.text_link(f"proc/{pid}/exe", f"/usr/bin/{program}")

    with pytest.raises(HookError) as caught:
        waiting(0, "other", *names).apply(host)

    assert signals(host) == []
    assert f"is in use by {command} ({pid})" in caught.value.text
    assert "other (9)" not in caught.value.text


def with_session(host: FakeHost, *units: str) -> FakeHost:
    """A machine with systemd, and these units up."""
    systemd.install(host.tree)
    for name in units:
        systemd.put(host.tree, name, systemd.Unit(active="active"))
    return host


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/user.slice/user-1000.slice/session-2.scope", "session-2.scope"),
        ("/user.slice/user-118.slice/session-c1.scope", "session-c1.scope"),
        (KWIN, "user@1000.service"),
    ],
)
def test_the_session_that_has_the_gpu_is_stopped(
    machine: MachineFactory, cgroup: str, unit: str
) -> None:
    host = with_session(machine("amd-single"), unit, "session-9.scope")
    hold(host, CARD, pid=7, command="sway", cgroup=cgroup)
    by_ssh = "/user.slice/user-1000.slice/session-9.scope"
    hold(host, "dev/null", pid=9, command="sshd-session", cgroup=by_ssh)
    wait = waiting(0, "session")

    remark = wait.apply(host)

    assert [systemd.state(host.tree, one) for one in (unit, "session-9.scope")] == [
        "inactive", "active",
    ]  # fmt: skip
    assert remark == f"stopped {unit}"
    assert signals(host) == []


SWAY = "/user.slice/user-1000.slice/session-2.scope"


def with_keepers(host: FakeHost) -> FakeHost:
    """logind has the card open for sway, and systemd for logind."""
    hold(host, CARD, pid=1, command="systemd", cgroup="/init.scope")
    hold(host, CARD, pid=5, command="systemd-logind", unit="systemd-logind.service")
    hold(host, CARD, pid=7, command="sway", cgroup=SWAY)
    return host


@pytest.mark.parametrize("name", ["session", "session-2.scope", "sway"])
def test_a_session_can_be_ended_although_logind_has_its_card_open(
    machine: MachineFactory, name: str
) -> None:
    host = with_keepers(with_session(machine("amd-single"), "session-2.scope"))

    remark = waiting(0, name, grace_s=3).apply(host)

    assert "session-2.scope" in remark
    assert not holders.Search(host, [CARD]).holders()


@pytest.mark.parametrize("keeper", ["seatd", "elogind", "elogind-daemon"])
@pytest.mark.parametrize("cgroup", ["/", "/openrc.greetd", SWAY])
def test_seatd_and_elogind_close_the_card_with_the_compositor(
    machine: MachineFactory, keeper: str, cgroup: str
) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=5, command=keeper, cgroup="/system.slice/seatd.service")
    hold(host, CARD, pid=7, command="sway", cgroup=cgroup)

    assert "in use by sway (7)" in refusal(host, NOW, AMD)
    assert "seatd" not in refusal(host, NOW, AMD)
    assert waiting(0, "sway").apply(host).startswith("ended sway (7)")
    assert holders.holders_of(host, [CARD]) == []


def test_only_who_uses_the_card_is_named_and_not_who_keeps_it_open(machine: MachineFactory) -> None:
    host = with_desktop(with_keepers(machine("amd-single")), running=True)

    assert f"{AMD} is in use by sway (7) [session-2.scope] with" in refusal(host, NOW, AMD)
    assert "systemd" not in refusal(host, NOW, AMD)


def test_logind_is_named_if_nobody_else_has_the_card(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=5, command="systemd-logind", unit="systemd-logind.service")

    with pytest.raises(HookError) as caught:
        waiting(0, "session").apply(host)

    assert "in use by systemd-logind (5)" in caught.value.text


def test_the_plan_knows_that_logind_and_systemd_close_the_card_with_the_desktop(
    machine: MachineFactory,
) -> None:
    host = with_keepers(with_stopped_desktop(machine, "session-2.scope"))
    systemd.put(host.tree, "gdm.service",
                systemd.Unit(active="active", aliases=("display-manager.service",)))  # fmt: skip

    made = plan.plan_for(host, vm(AMD), STOPPED)

    assert (made.verdict, made.reason) == ("start", "")
    assert {one.becomes for one in made.holders} == {
        "should stop with gdm.service, which is stopped first"
    }


def test_a_session_that_ends_by_itself_meanwhile_is_no_failure(machine: MachineFactory) -> None:
    host = with_session(machine("amd-single"), "session-4.scope")  # systemd has forgotten session 2
    hold(host, CARD, pid=7, command="sway", cgroup=SWAY)
    hold(host, CARD, pid=8, command="sway",
         cgroup="/user.slice/user-1001.slice/session-4.scope")  # fmt: skip

    remark = waiting(0, "session").apply(host)

    assert "Unit session-2.scope not loaded." in remark
    assert systemd.state(host.tree, "session-4.scope") == "inactive"
    assert signals(host) == [("proc/7", "SIGTERM")]


@pytest.mark.parametrize("server", ["sshd", "sshd-session", "dropbear", "tinysshd"])
def test_a_session_by_ssh_that_has_the_gpu_is_not_stopped(
    machine: MachineFactory, server: str
) -> None:
    cgroup = "/user.slice/user-1000.slice/session-2.scope"
    host = with_session(machine("amd-single"), "session-2.scope")
    hold(host, CARD, pid=7, command="nvtop", cgroup=cgroup)
    hold(host, "dev/null", pid=8, command=server, cgroup=cgroup)

    with pytest.raises(HookError) as caught:
        waiting(0, "session").apply(host)

    assert systemd.state(host.tree, "session-2.scope") == "active"
    assert "nvtop (7)" in caught.value.text
    assert caught.value.hint == (
        "close nvtop, or add `holders: {terminate: [nvtop]}` to"
        " /etc/vfio-console-hook/vms/NAME.yaml to end it for the VM; `holders.terminate` has"
        " session, but that is none of these"
    )


def test_all_processes_are_looked_at_once_for_any_number_of_holders(
    machine: MachineFactory,
) -> None:
    host = with_session(machine("amd-single"), "session-2.scope")
    cgroup = "/user.slice/user-1000.slice/session-2.scope"
    for pid in range(100, 130):
        hold(host, CARD, pid=pid, command="sway", cgroup=cgroup)
    hold(host, "dev/null", pid=8, command="cron", cgroup="/system.slice/cron.service")
    # The refusal has a hint, and names the entries that were for none of them.
    hold(host, CARD, pid=9, command="other")
    noting = NotingHost(host.root)

    with pytest.raises(HookError):
        waiting(0, "session", "gdm").apply(noting)

    assert noting.reads.count("proc/8/comm") == 1


class NotingHost(FakeHost):
    """Notes the files that are read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.reads: list[str] = []

    def read_bytes(self, path: str) -> bytes | None:
        self.reads.append(path)
        return super().read_bytes(path)


STOPPED = Config(services=(Service("display-manager"),))


def with_stopped_desktop(machine: MachineFactory, *units: str) -> FakeHost:
    host = with_session(with_desktop(machine("amd-single"), running=False), *units)
    systemd.put(host.tree, "gdm.service", systemd.Unit(aliases=("display-manager.service",)))
    return host


def test_what_is_left_of_a_desktop_that_was_stopped_is_ended(machine: MachineFactory) -> None:
    host = with_stopped_desktop(machine)
    slow = systemd.Unit(active="active", stop_s=systemd.NEVER)
    systemd.put(host.tree, "user@1000.service", slow)
    hold(host, CARD, pid=7, command="kwin_wayland", cgroup=KWIN)
    hold(host, "dev/null", pid=9, command="sshd",
         cgroup="/user.slice/user-1000.slice/session-9.scope")  # fmt: skip

    events.prepare(host, vm(AMD), STOPPED, Log(host, "win11"))

    assert systemd.state(host.tree, "user@1000.service") == "deactivating stop"
    assert signals(host) == [("proc/7", "SIGTERM")]
    assert host.clock() == pytest.approx(15)


def with_managers(machine: MachineFactory) -> FakeHost:
    """A stopped desktop of alice, who has the GPU open, and logind that knows also a greeter."""
    host = with_stopped_desktop(machine, "user@1000.service", "user@118.service")
    hold(host, CARD, pid=7, command="kwin_wayland", cgroup=KWIN)
    for uid, name in ((1000, "alice"), (118, "gdm")):
        host.tree.make_directory(f"sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service")
        host.tree.put(f"run/systemd/users/{uid}", f"# private\nNAME={name}\nSTATE=closing")
    return host


def run_vm(host: FakeHost, config: Config) -> list[str]:
    """Start and stop the VM; the states of alice's manager after prepare, start and release."""
    libvirt = FakeLibvirt(host)
    states = []
    for event in ("prepare", "start", "release"):
        if event == "prepare":
            events.prepare(host, vm(AMD), config, Log(host, "win11"))
            libvirt.detach(AMD)
        elif event == "start":
            events.start(host, UUID, Log(host, "win11"))
        else:
            libvirt.reattach(AMD)
            events.release(host, UUID, Log(host, "win11"))
        states.append(systemd.state(host.tree, "user@1000.service"))
    return states


@pytest.mark.parametrize(
    ("lingers", "state", "states"),
    [
        (True, "closing", ["inactive", "active", "active"]),
        (False, "active", ["inactive", "active", "active"]),  # by ssh
        (False, "online", ["inactive", "active", "active"]),
        (False, "closing", ["inactive", "inactive", "inactive"]),
        (False, "", ["inactive", "inactive", "inactive"]),
    ],
)
@pytest.mark.parametrize("config", [STOPPED, Config(holders=Holders(terminate=("session",)))])
def test_the_manager_of_who_lingers_or_is_logged_in_is_back_once_the_gpu_has_left(
    machine: MachineFactory, config: Config, lingers: bool, state: str, states: list[str]
) -> None:
    host = with_managers(machine)
    if lingers:
        host.tree.put("var/lib/systemd/linger/alice", "")
    host.tree.put("run/systemd/users/1000", f"NAME=alice\nSTATE={state}")
    if not state:
        host.tree.remove("run/systemd/users/1000")
    systemd.put(host.tree, "user@118.service", systemd.Unit())

    assert run_vm(host, config) == states
    assert systemd.state(host.tree, "user@118.service") == "inactive"


def test_no_manager_is_looked_for_where_no_session_may_be_ended(machine: MachineFactory) -> None:
    host = with_managers(machine)

    _, steps = events.look(host, vm(AMD), NOW)

    assert all(not isinstance(one.undo, StartManagers) for one in steps)


@pytest.mark.parametrize("leader", ["login", "sshd-session"])
def test_a_session_that_the_display_manager_has_not_begun_is_not_ended(
    machine: MachineFactory, leader: str
) -> None:
    cgroup = "/user.slice/user-1000.slice/session-2.scope"
    host = with_stopped_desktop(machine, "session-2.scope")
    hold(host, CARD, pid=7, command="sway", cgroup=cgroup)
    hold(host, "dev/null", pid=8, command=leader, cgroup=cgroup)

    text = failure(host, STOPPED, AMD)

    assert "in use by sway (7)" in text
    assert systemd.state(host.tree, "session-2.scope") == "active"
    assert signals(host) == []


def test_entries_that_were_for_no_process_are_named_in_the_refusal(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="Xorg")
    hold(host, CARD, pid=8, command="lact")

    with pytest.raises(HookError) as caught:
        waiting(0, "Xorg", "plasma-*", "lactd.service").apply(host)

    assert caught.value.text == "0000:09:00.0 is in use by lact (8) with /dev/dri/card0 open"
    assert caught.value.hint == (
        f"{ELSE}; `holders.terminate` has plasma-*, lactd.service, but that is none of these"
    )


def test_a_process_that_ignores_sigterm_gets_sigkill_after_grace_s(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="deaf")
    hold(host, CARD, pid=8, command="slow")
    hold(host, CARD, pid=9, command="slower")
    obey(host, 7, signal.SIGKILL)
    obey(host, 8, signal.SIGTERM, after_s=2)
    obey(host, 9, signal.SIGTERM, after_s=4)

    waiting(0, "deaf", "slow", "slower", grace_s=3).apply(host)

    assert signals(host) == [
        ("proc/7", "SIGTERM"), ("proc/8", "SIGTERM"), ("proc/9", "SIGTERM"),
        ("proc/7", "SIGKILL"), ("proc/9", "SIGKILL"),
    ]  # fmt: skip
    assert host.clock() == pytest.approx(3)


def test_a_process_that_survives_sigkill_is_in_the_refusal(machine: MachineFactory) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="stuck")
    hold(host, CARD, pid=8, command="Xorg")
    obey(host, 7, NEVER)

    with pytest.raises(HookError) as caught:
        waiting(0, "stuck", "Xorg", grace_s=1).apply(host)

    assert caught.value.text == (
        "0000:09:00.0 is in use by stuck (7) with /dev/dri/card0 open (ended stuck (7), Xorg (8))"
    )
    assert host.clock() < 5


def test_a_process_that_closes_the_gpu_after_sigterm_is_not_killed(machine: MachineFactory) -> None:
    class LettingGo(FakeHost):
        def signal_process(self, handle: int, number: int) -> None:
            super().signal_process(handle, number)
            self.tree.remove("proc/7/fd/0")

    host = LettingGo(machine("amd-single").root)
    hold(host, CARD, pid=7, command="daemon")
    obey(host, 7, signal.SIGKILL)

    waiting(0, "daemon").apply(host)

    assert signals(host) == [("proc/7", "SIGTERM")]
    assert host.exists("proc/7")


@pytest.mark.parametrize("holds", [False, True])
def test_another_process_that_got_the_same_pid_is_left_alone(
    machine: MachineFactory, holds: bool
) -> None:
    class Reusing(FakeHost):
        reused = False

        def open_process(self, pid: int) -> int | None:
            if not self.reused:
                self.reused = True
                self.tree.remove("proc/7")
                hold(self, CARD if holds else "dev/null", pid=7, command="innocent")
            return super().open_process(pid)

    host = Reusing(machine("amd-single").root)
    hold(host, CARD, pid=7, command="Xorg")

    try:
        waiting(0, "Xorg").apply(host)
    except HookError as error:
        assert holds
        assert "innocent (7)" in error.text

    assert (signals(host), host.handles) == ([], {})
    assert host.exists("proc/7")


def test_a_process_that_is_restarted_at_once_is_not_ended_a_second_time(
    machine: MachineFactory,
) -> None:
    class Restarting(FakeHost):
        def signal_process(self, handle: int, number: int) -> None:
            super().signal_process(handle, number)
            hold(self, CARD, pid=8, command="Xorg")

    host = Restarting(machine("amd-single").root)
    hold(host, CARD, pid=7, command="Xorg")

    with pytest.raises(HookError) as caught:
        waiting(0, "Xorg").apply(host)

    assert caught.value.text == (
        "0000:09:00.0 is in use by Xorg (8) with /dev/dri/card0 open (ended Xorg (7))"
    )
    assert signals(host) == [("proc/7", "SIGTERM")]


def test_prepare_ends_the_processes_in_the_configuration(machine: MachineFactory) -> None:
    host = machine("native-6.1")
    hold(host, CARD, pid=7, command="Xorg", unit="gdm.service")
    obey(host, 7, signal.SIGKILL)
    config = Config(holders=Holders(wait_s=1, terminate=("Xorg",), grace_s=2))

    events.prepare(host, vm(GPU), config, Log(host, "win11"))

    assert signals(host) == [("proc/7", "SIGTERM"), ("proc/7", "SIGKILL")]
    assert "; ended Xorg (7) [gdm.service]\n" in (host.read(SNAPSHOT_LOG) or "")


# -- output


GDM = "etc/systemd/system/display-manager.service"
ELSE = "stop these processes, or increase `holders.wait_s`"
FILE = "/etc/vfio-console-hook/vms/win11.yaml"
STOP = f"to {FILE} to stop it for the VM"
DESKTOP = f"add `services: [display-manager]` {STOP}"
BESIDE = (
    f"add `services: [{{name: display-manager, start_again: detached}}]` {STOP};"
    " a login screen should be back on another GPU meanwhile"
)
CONTAINED = "shut down the VM or container that uses it"
ID = 4 * "0123456789abcdef"


def with_desktop(host: FakeHost, *, running: bool) -> FakeHost:
    """A machine with gdm, as Debian installs it."""
    host.tree.text_link(GDM, "/lib/systemd/system/gdm3.service")
    host.tree.text_link("lib/systemd/system/gdm3.service", "gdm.service")
    if running:
        host.tree.make_directory("sys/fs/cgroup/system.slice/gdm.service")
    return host


@pytest.mark.parametrize(
    ("command", "cgroup", "desktop", "hint"),
    [
        ("Xorg", "/system.slice/gdm.service", "running", DESKTOP),
        ("Xorg", "/system.slice/gdm3.service", "running", DESKTOP),
        ("gnome-shell", "/user.slice/user-1000.slice/session-2.scope", "running", DESKTOP),
        ("systemd-logind", "/system.slice/systemd-logind.service", "running", DESKTOP),
        (
            "kwin_wayland", KWIN, "stopped",
            "the session of user 1000 has outlived its display manager: add `holders:"
            f" {{terminate: [session]}}` to {FILE}, or"
            " `systemctl --user -M 1000@ stop plasma-kwin_wayland.service`",
        ),
        (
            "sway", "/user.slice/user-1001.slice/session-4.scope", "",
            f"add `holders: {{terminate: [session]}}` to {FILE}",
        ),
        (
            "systemd-logind", "/system.slice/systemd-logind.service", "",
            "end the login session that has the GPU, see `loginctl list-sessions`",
        ),
        (
            "nvidia-persiste", "/system.slice/nvidia-persistenced.service", "",
            f"add `services: [nvidia-persistenced]` {STOP}",
        ),
        (
            "qemu-system-x86", "/machine.slice/machine-qemu\\x2d1\\x2dx.scope/libvirt/emulator", "",
            "shut down the VM or container that uses it",
        ),
        ("bash", "/", "", ELSE),
        ("(udev-worker)", "/system.slice/systemd-udevd.service/udev", "", ELSE),
        ("sshd", "/system.slice/ssh.service", "", ELSE),
        ("virtqemud", "/system.slice/virtqemud.service", "", ELSE),
        ("ollama", "/system.slice/docker-0123456789abcdef.scope", "", CONTAINED),
        ("ollama", f"/docker/{ID}", "", CONTAINED),
        ("nvidia-device-p", f"/kubepods.slice/x.slice/cri-containerd-{ID}.scope", "", CONTAINED),
        # What is inside is another system's.
        ("ollama", "/lxc/101/ns/system.slice/ollama.service", "", CONTAINED),
        ("Xorg", "/lxc.payload.x/user.slice/user-1000.slice/s.scope", "running", CONTAINED),
    ],
)  # fmt: skip
def test_the_hint_fits_the_holder(
    machine: MachineFactory, command: str, cgroup: str, desktop: str, hint: str
) -> None:
    host = machine("amd-single")
    if desktop:
        with_desktop(host, running=desktop == "running")
    hold(host, CARD, pid=7, command=command, cgroup=cgroup)

    assert refusal(host, NOW, AMD).endswith(f"(hint: {hint})")


@pytest.mark.parametrize(
    ("cgroup", "shown"),
    [
        (f"/system.slice/docker-{ID}.scope", " [docker-0123456789ab] with"),
        (f"/kubepods/burstable/pod0123-4567/{ID}", " [0123456789ab] with"),
        ("/lxc/101/ns/system.slice/ollama.service", " [lxc/101] with"),
        ("/lxc.payload.gpu/system.slice/ollama.service", " [lxc.payload.gpu] with"),
        ("/system.slice/ollama.service", " [ollama.service] with"),
    ],
)
def test_a_process_in_a_container_is_shown_with_the_container(
    machine: MachineFactory, cgroup: str, shown: str
) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="ollama", cgroup=cgroup)

    assert f"ollama (7){shown}" in failure(host, NOW, AMD)


DESKTOP_ON = "/user.slice/user-1000.slice/session-2.scope"
LAPTOP_CARD = ("0000:01:00.0", "0000:01:00.1")


RULE = (
    'put `SUBSYSTEM=="drm", KERNEL=="card*", KERNELS=="0000:01:00.0", TAG-="master-of-seat",'
    ' ENV{ID_SEAT}="seat-vm"` into /etc/udev/rules.d/72-vm-gpu.rules, and reboot'
)
CARD_0, CARD_1 = "dev/dri/card0", "dev/dri/card1"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *((one, one) for one in ("Hyprland", "sway", "gnome-shell", "niri", "cosmic-comp", "cage")),
        ("Xorg", "Xorg"),
        (".gnome-shell-wr", "gnome-shell"),
        (".kwin_wayland-w", "kwin_wayland"),
    ],
)
def test_a_desktop_on_another_gpu_is_not_to_be_stopped(
    machine: MachineFactory, command: str, name: str
) -> None:
    host = with_desktop(machine("laptop-amd-and-nvidia"), running=True)
    for node in (CARD_0, CARD_1):
        hold(host, node, pid=7, command=command, cgroup=DESKTOP_ON)

    reason = refusal(host, NOW, *LAPTOP_CARD)

    assert reason.endswith(
        f"(hint: so that {name}, which has a screen on another GPU, leaves it alone, {RULE})"
    )
    assert len(reason.encode()) < 800


EGL = (
    "add __EGL_VENDOR_LIBRARY_FILENAMES=/usr/share/glvnd/egl_vendor.d/50_mesa.json to"
    " /etc/environment, and log in again"
)
PROBE = 'set `Option "ProbeAllGpus" "false"` in the section Device of xorg.conf, and log in again'
NVIDIA_0 = "dev/nvidia0"


@pytest.mark.parametrize(
    ("command", "nodes", "changes"),
    [
        ("gnome-shell", (NVIDIA_0,), EGL),
        ("sway", (CARD_1, NVIDIA_0), f"{RULE}; if it still has /dev/nvidia0 open then, {EGL}"),
        ("Xorg", (NVIDIA_0,), ""),
        ("Xorg", (CARD_1, NVIDIA_0), RULE),
    ],
)
def test_what_opens_nodes_of_nvidia_is_not_kept_off_them_by_a_seat(
    machine: MachineFactory, command: str, nodes: tuple[str, ...], changes: str
) -> None:
    host = with_desktop(machine("laptop-amd-and-nvidia"), running=True)
    host.tree.put(NVIDIA_0, "")
    for node in (CARD_0, *nodes):
        hold(host, node, pid=7, command=command, cgroup=DESKTOP_ON)

    reason = refusal(host, NOW, *LAPTOP_CARD)

    alone = f"so that {command}, which has a screen on another GPU, leaves it alone, {changes}"
    assert reason.endswith(f"(hint: {alone if changes else BESIDE})")
    assert len(reason.encode()) < 800


def test_xorg_on_one_of_two_gpus_of_nvidia_need_not_look_at_the_other(
    machine: MachineFactory,
) -> None:
    host = with_desktop(machine("two-nvidia"), running=True)
    for node in (CARD_0, NVIDIA_0, "dev/nvidia1"):
        hold(host, node, pid=7, command="Xorg", cgroup=DESKTOP_ON)

    assert refusal(host, NOW, "0000:02:00.0").endswith(f"leaves it alone, {PROBE})")


@pytest.mark.parametrize("nodes", [("dev/nvidia1",), (CARD_1, "dev/nvidia1")])
def test_a_desktop_on_one_of_two_gpus_of_nvidia_needs_nvidias_library(
    machine: MachineFactory, nodes: tuple[str, ...]
) -> None:
    host = with_desktop(machine("two-nvidia"), running=True)
    for node in (CARD_0, NVIDIA_0, *nodes):
        hold(host, node, pid=7, command="gnome-shell", cgroup=DESKTOP_ON)

    reason = refusal(host, NOW, "0000:02:00.0")

    assert "__EGL_VENDOR" not in reason
    assert ("72-vm-gpu.rules" in reason) is (CARD_1 in nodes)


def test_a_screen_at_usb_needs_a_gpu_to_be_drawn_by(machine: MachineFactory) -> None:
    host = with_desktop(machine("amd-single"), running=True)
    screen = "sys/devices/platform/evdi.0/drm/card1"
    host.tree.put(f"{screen}/card1-DVI-I-1/status", "connected")
    host.tree.link(f"{screen}/device", "sys/devices/platform/evdi.0")
    host.tree.link("sys/devices/platform/evdi.0/driver", "sys/bus/platform/drivers/evdi")
    host.tree.link("sys/class/drm/card1", screen)
    host.tree.link("sys/class/drm/card1-DVI-I-1", f"{screen}/card1-DVI-I-1")
    for node in (CARD, CARD_1):
        host.tree.put(node, "")
        hold(host, node, pid=7, command="sway", cgroup=DESKTOP_ON)

    assert refusal(host, NOW, AMD).endswith(f"(hint: {DESKTOP})")


def test_no_rule_keeps_xorg_off_the_boot_gpu(machine: MachineFactory) -> None:
    host = with_desktop(machine("laptop-amd-and-nvidia"), running=True)
    host.tree.put(f"{host.real('sys/bus/pci/devices/0000:01:00.0')}/boot_vga", "1")
    for node in (CARD_0, CARD_1):
        hold(host, node, pid=7, command="Xorg", cgroup="/system.slice/gdm.service")

    assert refusal(host, NOW, *LAPTOP_CARD).endswith(f"(hint: {BESIDE})")


def test_the_rule_is_for_all_gpus_that_leave(machine: MachineFactory) -> None:
    host = machine("laptop-amd-and-nvidia")
    for node in (CARD_0, CARD_1):
        hold(host, node, pid=7, command="sway", cgroup=DESKTOP_ON)

    assert '"0000:01:00.0|0000:0a:00.0"' in compositors.setting(
        host, holders.holders_of(host, [CARD_1]), ("0000:01:00.0", "0000:0a:00.0")
    )


def test_a_kwin_with_a_list_of_cards_has_to_lose_one_of_it(machine: MachineFactory) -> None:
    host = machine("laptop-amd-and-nvidia")
    for node in (CARD_0, CARD_1):
        hold(host, node, pid=7, command="kwin_wayland", cgroup=DESKTOP_ON)
    host.tree.put("proc/7/environ", "KWIN_DRM_DEVICES=/dev/dri/card0:/dev/dri/card1\0")

    assert "leaves it alone, take its card out of KWIN_DRM_DEVICES" in refusal(
        host, NOW, *LAPTOP_CARD
    )


def test_a_desktop_of_another_seat_that_has_only_this_gpu_has_to_be_stopped(
    machine: MachineFactory,
) -> None:
    host = with_desktop(machine("laptop-amd-and-nvidia"), running=True)
    hold(host, CARD_0, pid=6, command="gnome-shell", cgroup=DESKTOP_ON)
    other = "/user.slice/user-1001.slice/session-3.scope"
    hold(host, CARD_1, pid=7, command="gnome-shell", cgroup=other)

    assert refusal(host, NOW, *LAPTOP_CARD).endswith(f"(hint: {BESIDE})")


APP = "/user.slice/user-1000.slice/user@1000.service/app.slice"
CONTAINER = "libpod-0f0f0f0f0f0f0f0f.scope/container"


def end_alone(*names: str) -> str:
    them = "them" if names[1:] else "it"
    entries = f"`holders: {{terminate: [{', '.join(names)}]}}`"
    return f"or add {entries} to {FILE} to end {them} for the VM"


@pytest.mark.parametrize(
    ("programs", "hint"),
    [
        (
            [("steam", "app-steam-7.scope"), ("chrome", "app-chromium-8.scope")],
            f"close steam and chrome, {end_alone('steam', 'chrome')}",
        ),
        ([("mpv", "app-flatpak-io.mpv-7.scope")], f"close mpv, {end_alone('mpv')}"),
        (
            [("jackd", "jack.service")],
            f"`systemctl --user -M 1000@ stop jack.service`, {end_alone('jackd')}",
        ),
        ([("GPU Process*", "app-x-7.scope")], "close GPU Process*"),
        ([("on", "app-x-7.scope")], "close on"),
        ([(one, "x.scope") for one in ("a", "b", "c", "d")], "close a and b and c and 1 more"),
        ([("jellyfin", CONTAINER)], CONTAINED),
        (
            [("jellyfin", CONTAINER), ("steam", "app-steam-7.scope")],
            f"close steam, {end_alone('steam')}; {CONTAINED}",
        ),
    ],
)
def test_a_desktop_is_not_to_be_stopped_for_a_program_in_it(
    machine: MachineFactory, programs: list[tuple[str, str]], hint: str
) -> None:
    host = with_desktop(machine("laptop-amd-and-nvidia"), running=True)
    hold(host, CARD_0, pid=6, command="gnome-shell", cgroup=DESKTOP_ON)
    for pid, (command, unit) in enumerate(programs, 7):
        hold(host, "dev/dri/renderD129", pid=pid, command=command, cgroup=f"{APP}/{unit}")

    assert refusal(host, NOW, *LAPTOP_CARD).endswith(f"(hint: {hint})")


@pytest.mark.parametrize("kept", [False, True])
def test_a_program_that_has_a_card_open_without_logind_is_no_compositor(
    machine: MachineFactory, kept: bool
) -> None:
    host = with_desktop(machine("laptop-amd-and-nvidia"), running=True)
    hold(host, CARD_1, pid=7, command="nvtop", cgroup=f"{APP}/app-nvtop-7.scope")
    if kept:
        hold(host, CARD_1, pid=5, command="systemd-logind", unit="systemd-logind.service")

    hint = BESIDE if kept else f"close nvtop, {end_alone('nvtop')}"
    assert refusal(host, NOW, *LAPTOP_CARD).endswith(f"(hint: {hint})")


def test_what_the_desktop_ends_with_it_is_not_to_be_closed_too(machine: MachineFactory) -> None:
    host = with_desktop(machine("amd-single"), running=True)
    hold(host, CARD, pid=6, command="gnome-shell", cgroup=DESKTOP_ON)
    hold(host, "dev/dri/renderD128", pid=7, command="steam", cgroup=f"{APP}/app-steam-7.scope")

    assert refusal(host, NOW, AMD).endswith(f"(hint: {DESKTOP})")


MAIN, SECOND = "sys/class/drm/card0-Virtual-1", "sys/class/drm/card1-Virtual-1"
TWO_GPUS, SECOND_GPU = "two-gpus-6.12", "0000:02:00.0"


def with_kwin(
    host: FakeHost, *, environment: str = "HOME=/", command: str = "kwin_wayland"
) -> FakeHost:
    """KWin on the first GPU, with the second one open too, and logind that keeps it."""
    hold(host, CARD_1, pid=1, command="systemd", cgroup="/init.scope")
    hold(host, CARD_1, pid=5, command="systemd-logind", unit="systemd-logind.service")
    for node in (CARD, CARD_1):
        hold(host, node, pid=7, command=command, cgroup=KWIN)
        hold(host, node, pid=70, command="Xwayland", cgroup=KWIN)
    host.tree.put("proc/7/environ", environment)
    set_status(host, MAIN, "connected")
    set_status(host, SECOND, "disconnected")
    return host


def holding(host: FakeHost, node: str) -> list[str]:
    return [one.command for one in holders.Search(host, [node]).holders()]


def uevents(host: FakeHost) -> list[str]:
    return [text for _, path, text in host.changes if path == "sys/class/drm/card1/uevent"]


def set_status(host: FakeHost, connector: str, status: str) -> None:
    host.tree.put(f"{host.real(connector)}/status", status)


@pytest.mark.parametrize("command", ["kwin_wayland", ".kwin_wayland-w"])
def test_kwin_is_told_that_the_card_is_gone_and_that_it_is_back(
    machine: MachineFactory, command: str
) -> None:
    host = with_kwin(machine(TWO_GPUS), command=command)
    made = plan.plan_for(host, vm(SECOND_GPU), NOW)

    events.prepare(host, vm(SECOND_GPU), NOW, Log(host, "win11"))
    meanwhile = holding(host, CARD_1), holding(host, CARD)
    events.release(host, UUID, Log(host, "win11"))

    assert (made.verdict, made.reason) == ("start", "")
    assert {one.becomes for one in made.holders} == {
        "should close it after the remove event of card1"
    }
    assert meanwhile == ([], [command, "Xwayland"])
    assert command in holding(host, CARD_1)
    assert signals(host) == []


def test_a_kwin_that_keeps_the_card_is_named_and_told_that_it_is_back(
    machine: MachineFactory,
) -> None:
    host = with_kwin(machine(TWO_GPUS))
    host.tree.put("fake/deaf/7", "")

    reason = failure(host, NOW, SECOND_GPU)

    assert "in use by kwin_wayland (7)" in reason
    assert 'KERNELS=="0000:02:00.0"' in reason
    assert uevents(host) == ["remove", "add"]


def test_after_a_refusal_kwin_has_the_card_again(machine: MachineFactory) -> None:
    host = with_kwin(machine(TWO_GPUS))
    hold(host, CARD_1, pid=8, command="nvtop")

    assert "in use by nvtop (8)" in failure(host, NOW, SECOND_GPU)

    assert uevents(host) == ["remove", "add"]
    assert "kwin_wayland" in holding(host, CARD_1)


def test_kwin_is_not_told_that_the_card_is_back_where_another_compositor_has_it(
    machine: MachineFactory,
) -> None:
    host = machine(TWO_GPUS)
    hold(host, CARD_1, pid=8, command="gnome-shell")

    ReturnCard(SECOND_GPU, ("kwin_wayland",)).apply(host)

    assert uevents(host) == []


@pytest.mark.parametrize("command", ["gnome-shell", "sway", "Xorg"])
def test_no_event_is_sent_where_another_compositor_has_the_card(
    machine: MachineFactory, command: str
) -> None:
    # Of another user, or a login screen: the session of mutter ends with such an event.
    host = with_kwin(machine(TWO_GPUS))
    other = "/user.slice/user-1001.slice/session-4.scope"
    for node in (CARD_0, CARD_1):
        hold(host, node, pid=8, command=command, cgroup=other)

    reason = failure(host, NOW, SECOND_GPU)

    assert "kwin_wayland (7)" in reason
    assert f"{command} (8)" in reason
    assert uevents(host) == []
    assert holding(host, CARD_1)[-3:] == ["kwin_wayland", command, "Xwayland"]


@pytest.mark.parametrize(
    ("main", "second", "environment"),
    [
        ("disconnected", "disconnected", "HOME=/"),
        ("unknown", "disconnected", "HOME=/"),
        ("disconnected", "connected", "HOME=/"),
        ("connected", "connected", "HOME=/\0KWIN_DRM_DEVICES=/dev/dri/card1:/dev/dri/card0"),
    ],
)
def test_kwin_is_not_told_where_the_card_may_be_its_primary_one(
    machine: MachineFactory, main: str, second: str, environment: str
) -> None:
    host = with_kwin(machine(TWO_GPUS), environment=environment)
    set_status(host, MAIN, main)
    set_status(host, SECOND, second)

    reason = failure(host, NOW, SECOND_GPU)

    assert "in use by kwin_wayland (7)" in reason
    assert uevents(host) == []


def test_a_compositor_that_does_not_obey_is_not_told(machine: MachineFactory) -> None:
    host = machine(TWO_GPUS)
    for node in (CARD, CARD_1):
        hold(host, node, pid=7, command="gnome-shell", cgroup=DESKTOP_ON)

    assert "in use by gnome-shell (7)" in failure(host, NOW, SECOND_GPU)
    assert holding(host, CARD_1) == ["gnome-shell"]
    assert uevents(host) == []


def test_kwin_is_not_told_about_a_card_of_nvidia(machine: MachineFactory) -> None:
    host = machine("laptop-amd-and-nvidia")
    set_status(host, "sys/class/drm/card0-eDP-1", "connected")
    set_status(host, "sys/class/drm/card1-HDMI-A-1", "disconnected")
    for node in (CARD_0, CARD_1, "dev/nvidia-modeset"):
        hold(host, node, pid=7, command="kwin_wayland", cgroup=DESKTOP_ON)

    assert RULE in failure(host, NOW, *LAPTOP_CARD)
    assert uevents(host) == []


def test_a_desktop_whose_only_monitor_is_on_the_gpu_has_to_be_stopped(
    machine: MachineFactory,
) -> None:
    host = with_desktop(machine("laptop-amd-and-nvidia"), running=True)
    host.tree.put(f"{host.real('sys/class/drm/card0-eDP-1')}/status", "disconnected")
    hold(host, "dev/dri/card1", pid=7, command="kwin_wayland", cgroup=DESKTOP_ON)

    assert refusal(host, NOW, *LAPTOP_CARD).endswith(f"(hint: {DESKTOP})")


def test_one_hint_names_all_units_that_have_to_be_stopped(machine: MachineFactory) -> None:
    host = with_desktop(machine("amd-single"), running=True)
    hold(host, CARD, pid=7, command="lact", unit="lactd.service")
    hold(host, CARD, pid=8, command="ollama", unit="ollama.service")
    hold(host, CARD, pid=9, command="gnome-shell",
         cgroup="/user.slice/user-1000.slice/session-2.scope")  # fmt: skip

    assert refusal(host, NOW, AMD).endswith(
        f"(hint: add `services: [display-manager, lactd, ollama]` to {FILE}"
        " to stop them for the VM)"
    )


@pytest.mark.parametrize(
    ("terminate", "verdict", "refused", "becomes"),
    [
        ((), "refuse", ["Xorg", "lact"], "must close it within 5 s"),
        (("Xorg",), "refuse", ["lact"], "must close it within 5 s"),
        (("Xorg", "lactd"), "start", [], "ended if it is still open after 5 s"),
    ],
)
def test_the_plan_lists_the_holders_and_what_happens_to_them(
    machine: MachineFactory,
    terminate: tuple[str, ...],
    verdict: str,
    refused: list[str],
    becomes: str,
) -> None:
    host = machine("amd-single")
    hold(host, CARD, pid=7, command="Xorg")
    hold(host, "dev/dri/renderD128", pid=8, command="lact", unit="lactd.service")
    conceal(host, pid=9, command="firefox")
    before = snapshot(host)
    config = Config(holders=Holders(terminate=terminate))

    made = plan.plan_for(host, vm(AMD), config)

    assert made.verdict == verdict
    assert [name for name in ("Xorg", "lact", "firefox") if f"{name} (" in made.reason] == refused
    assert [(str(one.holder), one.becomes) for one in made.holders] == [
        ("Xorg (7) with /dev/dri/card0 open", becomes),
        ("lact (8) [lactd.service] with /dev/dri/renderD128 open", becomes),
        ("firefox (9), which cannot be inspected", ""),
    ]
    assert (snapshot(host), host.changes) == (before, [])


def test_a_wait_is_read_back_from_a_claim_unchanged(machine: MachineFactory) -> None:
    from vfio_console_hook.claims.step import Step

    wait = AwaitClosed(AMD, (CARD,), 5, True, ("Xorg",), 2, ("0000:0a:00.0",))
    step = Step("native", AMD, "why", wait, None)

    assert Step.from_json(step.to_json()) == step


def test_a_wait_in_a_claim_of_an_earlier_release_can_be_read() -> None:
    from vfio_console_hook.claims.step import Step

    written = {"kind": "await-closed", "gpu": AMD, "nodes": [CARD], "wait_s": 5, "strict": False}
    step = {"stage": "native", "gpu": AMD, "why": "x", "do": written, "undo": None, "loses": ""}

    assert Step.from_json(step).do == AwaitClosed(AMD, (CARD,), 5, False)


@pytest.mark.parametrize(
    "stat", ["", "7", "7 (a) S x 7 7" + " 0" * 30, "7 (a) S 1 1 7" + f" {'9' * 5000}" * 30]
)
def test_a_process_with_a_garbled_stat_is_ignored(machine: MachineFactory, stat: str) -> None:
    host = machine("efifb-5.10")
    host.tree.put("proc/7/stat", stat)
    host.tree.put("proc/\u00b2/stat", stat)

    assert (processes.find(host, 7), 7 in processes.pids(host)) == (None, True)
    assert all(isinstance(pid, int) for pid in processes.pids(host))
