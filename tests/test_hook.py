"""hook.main on a machine that reacts: its input from libvirt, and its results."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, close_device, hold, obey, open_device, snapshot
from tests.fakehost.processes import NEVER
from tests.gate import ROOT, gate_over
from tests.libvirt_xml import EVENTS, UUID, domain_xml
from vfio_console_hook import cli, hook
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.events import recovery
from vfio_console_hook.log import SNAPSHOT_LOG

GPU, SOUND = "0000:01:00.0", "0000:01:00.1"
OTHER = "1f0e0d0c-0b0a-4908-8706-050403020100"
RUN = "run/vfio-console-hook"
DEFAULT = "etc/vfio-console-hook/default.yaml"
Capture = pytest.CaptureFixture[str]


def call(host: FakeHost, event: str, xml: bytes | None = None, name: str = "win11") -> int:
    """The exit status of one event as libvirt sends it, by default for a VM with one GPU."""
    operation, _, sub = event.partition(" ")
    if xml is None:
        xml = domain_xml(GPU, event=operation, name=name)
    another = type(host)(host.root)
    another.patient = host.patient
    return hook.main([name, operation, sub or "begin", "-"], xml, another)


def configure(host: FakeHost, text: str, path: str = DEFAULT) -> None:
    host.tree.put(path, text)
    for directory in ("etc", "etc/vfio-console-hook"):
        os.chmod(host.path(directory), 0o755)
    os.chmod(host.path(path), 0o644)


def steady(host: FakeHost) -> dict[str, str]:
    """The machine without the configuration and the changes that libvirt leaves."""
    return {
        path: what
        for path, what in snapshot(host).items()
        if "driver_override" not in path and not path.startswith("etc")
    }


def with_sound(host: FakeHost) -> FakeHost:
    """Add the audio function that is also assigned to the VM of the captures."""
    host.tree.put(f"sys/bus/pci/devices/{SOUND}/class", "0x040300")
    group = host.link_name(f"sys/bus/pci/devices/{GPU}/iommu_group")
    host.tree.link(
        f"sys/bus/pci/devices/{SOUND}/iommu_group", f"sys/kernel/iommu_groups/{group}"
    )
    return host


# -- names


def test_a_vm_keeps_its_name_when_a_person_takes_a_gpu_of_that_name(
    machine: MachineFactory,
) -> None:
    host = machine("two-gpus-6.12")
    second = "0000:02:00.0"
    assert call(host, "prepare", domain_xml(GPU, name=second), second) == 0
    assert cli.main(["take", second], host) == 0

    assert call(host, "release end", b"", second) == 0

    assert [claim.by_hand for claim in Claims(host).readable()] == [True]


@pytest.mark.parametrize("gpus", [(), (GPU,)])
def test_a_new_vm_does_not_get_the_claim_of_an_earlier_vm_of_its_name(
    machine: MachineFactory, gpus: tuple[str, ...]
) -> None:
    """libvirtd was killed, and the VM was undefined and defined again."""
    host = machine("native-6.1")
    before = steady(host)
    assert call(host, "prepare") == 0
    libvirt = FakeLibvirt(host)
    libvirt.detach(GPU)
    xml = domain_xml(*gpus, uuid=OTHER)

    statuses = [call(host, event, xml) for event in ("prepare", "start", "release end")]

    assert statuses == [int(bool(gpus)), 0, 0]
    held = Claims(host).find(UUID)
    assert held is not None
    assert held.phase == "prepare"
    assert recovery.recover(host, lambda _: None, force=True, wait_s=0)
    assert steady(host) == before


def test_an_old_name_of_a_renamed_vm_releases_nothing(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    assert call(host, "prepare") == 0
    os.symlink(f"../claims/{UUID}", host.path(f"{RUN}/by-name/=former"))

    assert call(host, "release end", b"", "former") == 0

    assert Claims(host).uuids() == (UUID,)


def test_a_name_that_xml_does_not_preserve_is_taken_from_the_arguments(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    name = "a\rb"
    assert call(host, "prepare", name=name) == 0
    assert host.list(f"{RUN}/by-name") == (f"={name}",)

    assert call(host, "release end", b"", name) == 0

    assert Claims(host).uuids() == ()


@pytest.mark.parametrize("xml", [None, b"<domain"])
def test_a_gpu_that_a_killed_libvirtd_left_comes_back_although_the_next_prepare_fails(
    machine: MachineFactory, xml: bytes | None
) -> None:
    host = machine("native-6.1")
    before = steady(host)
    assert call(host, "prepare") == 0
    FakeLibvirt(host).detach(GPU)
    configure(host, "stages: [\n")

    assert call(host, "prepare", xml) == 1
    assert call(host, "release end") == 0

    assert (steady(host), Claims(host).uuids()) == (before, ())


# -- all events of a VM


@pytest.mark.parametrize("version", ["7.0.0", "9.0.0", "11.3.0"])
@pytest.mark.parametrize(
    "name", ["efifb-5.10", "efifb-6.12", "efifb-0380-6.12", "native-6.1", "vgacon-5.10", "efidrm-7"]
)
def test_the_vm_runs_and_the_console_comes_back_over_all_events_of_libvirt(
    machine: MachineFactory, capfd: Capture, name: str, version: str
) -> None:
    host = with_sound(machine(name))
    before = steady(host)
    libvirt = FakeLibvirt(host)
    statuses, blocked = [], []

    for operation, sub in EVENTS:
        xml = (ROOT / f"tests/domains/libvirt-{version}-{operation}-{sub}.xml").read_bytes()
        if operation == "start":
            libvirt.detach(GPU)
        if operation == "started":
            blocked = open_device(host, GPU)
        if operation == "stopped":
            close_device(host, GPU)
        if operation == "release":
            libvirt.reattach(GPU)
        statuses.append(call(host, f"{operation} {sub}", xml))

    assert (statuses, blocked, capfd.readouterr()) == ([0] * 5, [], ("", ""))
    assert steady(host) == before
    assert Claims(host).uuids() == ()
    assert host.fault is None


def test_the_log_lists_what_was_done(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    call(host, "prepare")

    assert (host.read(SNAPSHOT_LOG) or "").splitlines() == [
        "info: win11: prepare 0000:01:00.0: waited until /dev/fb0 was closed; unbound"
        " efi-framebuffer.0 from efi-framebuffer; switched memory decoding of 0000:01:00.0 off",
        "info: win11: prepare 0000:01:00.0: ready for the VM; on release the firmware console comes"
        " back on efi-framebuffer.0",
    ]


def test_a_vm_that_a_new_daemon_finds_running_is_one_that_has_started(
    machine: MachineFactory,
) -> None:
    host = machine("efifb-6.12")
    for event in ("prepare", "start", "started", "reconnect"):
        if event == "start":
            FakeLibvirt(host).detach(GPU)
        assert call(host, event) == 0

    claim = Claims(host).find(UUID)

    assert claim is not None
    assert claim.phase == "started"


@pytest.mark.parametrize("event", ["started begin", "reconnect begin", "stopped end"])
def test_events_of_a_running_vm_change_nothing(
    machine: MachineFactory, capfd: Capture, event: str
) -> None:
    host = machine("efifb-6.12")
    call(host, "prepare")
    FakeLibvirt(host).detach(GPU)
    call(host, "start")
    before, changes = snapshot(host), len(host.changes)

    status = call(host, event)

    assert (status, capfd.readouterr(), snapshot(host), len(host.changes)) == (
        0, ("", ""), before, changes,
    )  # fmt: skip
    assert Claims(host).uuids() == (UUID,)


@pytest.mark.parametrize(
    "event",
    ["start begin", "started begin", "reconnect begin", "release end", "stopped end",
     "migrate begin", "restore begin", "prepare end", "release begin", "x y", "prepare"],
)  # fmt: skip
def test_an_event_of_a_vm_that_holds_nothing_leaves_no_trace(
    machine: MachineFactory, capfd: Capture, event: str
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)
    xml = domain_xml(event="release") if event == "prepare" else None

    status = call(host, event, xml)

    assert (status, capfd.readouterr(), snapshot(host), host.changes) == (
        0, ("", ""), before, [],
    )  # fmt: skip
    assert (host.list("run"), host.exists("var")) == ((), False)


def test_a_vm_with_a_pci_device_other_than_a_gpu_leaves_no_trace(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = with_sound(machine("efifb-6.12"))

    status = call(host, "prepare", domain_xml(SOUND))

    assert (status, capfd.readouterr(), host.changes) == (0, ("", ""), [])
    assert (host.list("run"), host.exists("var")) == ((), False)


@pytest.mark.parametrize("argv", [[], ["win11"], ["win11", "prepare"], ["--help"], ["", "", ""]])
def test_too_few_arguments_do_nothing(
    machine: MachineFactory, capfd: Capture, argv: list[str]
) -> None:
    host = machine("efifb-6.12")

    assert hook.main(argv, b"<broken", host) == 0
    assert (capfd.readouterr(), host.changes) == (("", ""), [])


@pytest.mark.parametrize("name", ["--help", "-c", "..", " ", "a  b", "$(id)", "grün-绿", "x" * 255])
def test_a_vm_may_have_any_name(machine: MachineFactory, capfd: Capture, name: str) -> None:
    host = machine("efifb-6.12")
    before = steady(host)

    statuses = [call(host, event, name=name) for event in ("prepare", "release end")]

    assert (statuses, capfd.readouterr(), steady(host)) == ([0, 0], ("", ""), before)


# -- bad input


def stderr(sentence: str, hint: str = "") -> str:
    return f"vfio-console-hook: {sentence}\n" + (f"hint: {hint}\n" if hint else "")


def refused(host: FakeHost, capfd: Capture, xml: bytes | None = None) -> str:
    """The stderr of prepare, which must have changed nothing and left no claim."""
    before, claims = snapshot(host), os.path.lexists(host.path(f"{RUN}/claims/{UUID}"))
    status = call(host, "prepare", xml)
    out, err = capfd.readouterr()
    assert (status, out, snapshot(host)) == (1, "", before)
    assert [change for change in host.changes if change[0] != "run"] == []
    assert os.path.lexists(host.path(f"{RUN}/claims/{UUID}")) is claims
    return err


NOT_A_UUID = domain_xml(GPU).replace(UUID.encode(), b"../../../etc/passwd")
ENTITY = b"<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>" + domain_xml(GPU)


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        (b"", "the domain XML is not well-formed: "),
        (b"<domain><hostdev", "the domain XML is not well-formed: "),
        (ENTITY, "the domain XML has a DOCTYPE, which libvirt never writes"),
        (b"<network/>", "not a domain XML: the root element is <network>"),
        (NOT_A_UUID, "not a UUID in <uuid> of the domain XML: '../../../etc/passwd'"),
        (b"<domain><name>a</name></domain>", "the domain XML has no <uuid>"),
        (domain_xml(GPU).replace(b"'0x01'", b"'0x1zz'"), "no such PCI "),
        (b"<a>" * 100_000, "the domain XML is not well-formed: "),
    ],
    ids=["empty", "cut-off", "entity", "no-domain", "uuid", "no-uuid", "address", "deep"],
)
def test_bad_xml_is_one_sentence(
    machine: MachineFactory, capfd: Capture, xml: bytes, expected: str
) -> None:
    host = machine("efifb-6.12")

    err = refused(host, capfd, xml)

    assert err.startswith("vfio-console-hook: ")
    assert len(err.splitlines()) <= 2
    if "zz" not in xml.decode(errors="replace"):
        assert err.startswith(stderr(expected)[:-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage: []\n", "/etc/vfio-console-hook/default.yaml:1:1: unknown key 'stage', did you mean"
         " 'stages'?"),
        ("# x\nbootfb: maybe\n", "/etc/vfio-console-hook/default.yaml:2:9: "),
        ("a: [\n", "/etc/vfio-console-hook/default.yaml:"),
    ],
    ids=["unknown-key", "bad-value", "no-yaml"],
)  # fmt: skip
def test_a_mistake_in_the_configuration_is_reported_with_its_place(
    machine: MachineFactory, capfd: Capture, text: str, expected: str
) -> None:
    host = machine("efifb-6.12")
    configure(host, text)

    err = refused(host, capfd)

    assert err.startswith(f"vfio-console-hook: {expected}")
    assert len(err.splitlines()) <= 2


def test_a_configuration_that_others_can_write_is_refused(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    configure(host, "enabled: true\n")
    os.chmod(host.path(DEFAULT), 0o666)

    err = refused(host, capfd)

    assert err.startswith("vfio-console-hook: /etc/vfio-console-hook/default.yaml")


def test_a_directory_where_the_configuration_should_be_is_refused(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.make_directory(DEFAULT)
    for directory in ("etc", "etc/vfio-console-hook", DEFAULT):
        os.chmod(host.path(directory), 0o755)

    err = refused(host, capfd)

    assert err.startswith("vfio-console-hook: ")
    assert "/etc/vfio-console-hook/default.yaml" in err


def test_a_vanished_gpu_is_named(machine: MachineFactory, capfd: Capture) -> None:
    host = machine("efifb-6.12")

    err = refused(host, capfd, domain_xml("0000:09:00.0"))

    assert err == stderr("no PCI device 0000:09:00.0 on this machine", "compare with `lspci -D`")


def test_an_iomem_without_addresses_is_reported(machine: MachineFactory, capfd: Capture) -> None:
    err = refused(machine("iomem-without-root"), capfd)

    assert err == stderr(
        "cannot tell who has reserved the GPU's memory: /proc/iomem shows no addresses",
        "run it as root, in the host's own user namespace",
    )


def replaced_by_directory(path: str) -> Callable[[FakeHost], None]:
    def change(host: FakeHost) -> None:
        host.tree.remove(path)
        host.tree.make_directory(path)

    return change


def replaced_by_loop(path: str) -> Callable[[FakeHost], None]:
    def change(host: FakeHost) -> None:
        host.tree.remove(path)
        os.makedirs(os.path.dirname(host.path(path)), exist_ok=True)
        os.symlink(os.path.basename(path), host.path(path))

    return change


def replaced_by_file(path: str) -> Callable[[FakeHost], None]:
    def change(host: FakeHost) -> None:
        host.tree.remove(path)
        host.tree.put(path, "in the way")

    return change


def left_alone(path: str, kind: str, wanted: str) -> str:
    return stderr(
        f"/{path} is a {kind} instead of a {wanted}, so it is left alone",
        f"find out who did that; see `ls -ld /{path}`",
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (replaced_by_loop("proc/iomem"),
         stderr("cannot read /proc/iomem: Too many levels of symbolic links")),
        (replaced_by_directory(f"{RUN}/claims/{UUID}"),
         left_alone(f"{RUN}/claims/{UUID}", "directory", "file")),
        (replaced_by_file(f"{RUN}/claims"), left_alone(f"{RUN}/claims", "file", "directory")),
        (replaced_by_file(RUN), left_alone(RUN, "file", "directory")),
        (replaced_by_directory(f"{RUN}/lock"), left_alone(f"{RUN}/lock", "directory", "file")),
    ],
    ids=["iomem", "claim", "claims", "run", "lock"],
)  # fmt: skip
def test_a_path_that_cannot_be_read_or_made_is_named(
    machine: MachineFactory, capfd: Capture, change: Callable[[FakeHost], None], expected: str
) -> None:
    host = machine("efifb-6.12")
    change(host)

    assert refused(host, capfd) == expected


def test_a_status_file_that_cannot_be_written_does_not_stop_the_vm(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.make_directory(f"{RUN}.status/{UUID}")

    statuses = [call(host, event) for event in ("prepare", "release end")]

    assert (statuses, capfd.readouterr()) == ([0, 0], ("", ""))


def test_a_log_that_cannot_be_written_does_not_stop_the_vm(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("var", "in the way")

    statuses = [call(host, event) for event in ("prepare", "release end")]

    assert (statuses, capfd.readouterr()) == ([0, 0], ("", ""))


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM, errno.ENOSPC, errno.EBUSY])
def test_a_refused_write_is_reported_and_undone(
    machine: MachineFactory, capfd: Capture, number: int
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)

    status = hook.main(
        ["win11", "prepare", "begin", "-"], domain_xml(GPU),
        FakeHost(host.root, refuse=2, refuse_errno=number),
    )  # fmt: skip

    assert (status, snapshot(host), Claims(host).uuids()) == (1, before, ())
    assert capfd.readouterr() == (
        "",
        stderr(f"cannot write '0100' to /sys/bus/pci/devices/{GPU}/config: {os.strerror(number)}"),
    )


def test_a_worker_that_dies_is_reported_and_undone_by_release(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)

    status = hook.main(
        ["win11", "prepare", "begin", "-"], domain_xml(GPU), FakeHost(host.root, crash_before=2)
    )
    printed = capfd.readouterr()
    released = call(host, "release end")

    assert (status, released, printed) == (
        1, 0,
        ("", stderr(f"the worker process died before it was done, at `setpci -s {GPU} COMMAND=0:2`;"
                    " not all could be undone, see `vfio-console-hook status`",
                    "look into `journalctl -k`")),
    )  # fmt: skip
    assert (snapshot(host), Claims(host).uuids()) == (before, ())


def test_a_bug_is_one_sentence_with_its_traceback_in_the_log(
    machine: MachineFactory, capfd: Capture
) -> None:
    class Mistaken(FakeHost):
        def link_name(self, path: str) -> str | None:
            return str(int("a mistake of ours"))

    host = Mistaken(machine("efifb-6.12").root)

    err = refused(host, capfd)

    assert err.startswith("vfio-console-hook: internal error: ValueError: ")
    assert err.endswith(
        "\nhint: this is a bug, please report it with `journalctl -t vfio-console-hook`\n"
    )
    assert len(err.splitlines()) == 2
    assert "Traceback (most recent call last):" in (host.read(SNAPSHOT_LOG) or "")


# -- configuration


def test_a_vm_that_is_not_enabled_is_left_to_libvirt(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    configure(host, "enabled: false\n")

    statuses = [call(host, event) for event in ("prepare", "start", "release end")]

    assert (statuses, capfd.readouterr(), host.changes) == ([0, 0, 0], ("", ""), [])
    assert Claims(host).uuids() == ()


def test_on_failure_start_lets_the_vm_start_with_everything_undone(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("fb0-held-by-plymouth")
    configure(host, "on_failure: start\nholders: {wait_s: 0}\n")
    before = snapshot(host)

    status = call(host, "prepare", domain_xml("0000:00:02.0"))

    assert (status, capfd.readouterr(), snapshot(host), Claims(host).uuids()) == (
        0, ("", ""), before, (),
    )  # fmt: skip
    assert (host.read(SNAPSHOT_LOG) or "").splitlines()[-1] == (
        "warning: win11: prepare 0000:00:02.0: the VM starts all the same, as configured by"
        " on_failure"
    )
    word = json.loads(host.read(f"{RUN}.status/{UUID}") or "")
    assert word["events"]["prepare"]["failure"] == (
        "0000:00:02.0 is in use by plymouthd (412) [plymouth-start.service] with /dev/fb0 open"
    )


def test_on_failure_start_refuses_the_vm_if_not_all_could_be_undone(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    before = steady(host)
    configure(host, "on_failure: start\n")

    # The process that would undo the changes dies, too.
    dying = FakeHost(host.root, crash_before=2)
    status = hook.main(["win11", "prepare", "begin", "-"], domain_xml(GPU), dying)
    printed = capfd.readouterr().err
    other = call(host, "prepare", domain_xml(GPU, uuid=OTHER, name="other"), "other")
    call(host, "release end", domain_xml(uuid=OTHER, name="other"), "other")

    assert (status, "not all could be undone" in printed) == (1, True)
    assert (other, call(host, "release end"), steady(host)) == (0, 0, before)


def test_a_sound_function_that_a_vm_still_has_is_refused_to_another(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("nvidia-single-desktop")
    call(host, "prepare", domain_xml(GPU, SOUND))
    libvirt = FakeLibvirt(host)
    for address in (GPU, SOUND):
        libvirt.detach(address)
    call(host, "start")
    open_device(host, SOUND)
    libvirt.reattach(GPU)  # it was unplugged from the VM, which runs on

    xml = domain_xml(GPU, SOUND, uuid=OTHER, name="other")
    status = call(host, "prepare", xml, "other")

    assert (status, f"{SOUND} is in use by" in capfd.readouterr().err) == (1, True)
    assert OTHER not in Claims(host).uuids()


def test_on_failure_start_does_not_excuse_a_mistake_in_the_configuration(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    configure(host, "on_failure: start\nbootfbs: native\n")

    assert refused(host, capfd).startswith(
        "vfio-console-hook: /etc/vfio-console-hook/default.yaml:2:1: unknown key 'bootfbs'"
    )


def test_the_configuration_of_the_vm_overrides_the_default(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    configure(host, "enabled: false\n")
    configure(host, "enabled: true\n", "etc/vfio-console-hook/vms/win11.yaml")
    os.chmod(host.path("etc/vfio-console-hook/vms"), 0o755)

    call(host, "prepare")

    assert Claims(host).uuids() == (UUID,)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["stage: []\n", "[", "timeout_s: 0\n"])
def test_a_configuration_that_breaks_while_the_vm_runs_does_not_block_release(
    machine: MachineFactory, capfd: Capture, text: str
) -> None:
    host = machine("efifb-6.12")
    before = steady(host)
    call(host, "prepare")
    configure(host, text)

    status = call(host, "release end")

    assert (status, capfd.readouterr(), steady(host), Claims(host).uuids()) == (
        0, ("", ""), before, (),
    )  # fmt: skip


@pytest.mark.parametrize(
    "holders",
    ["wait_s: 60", "wait_s: 60, grace_s: 60, terminate: [Xorg]", "wait_s: 0, terminate: [Xorg]"],
)
def test_a_process_that_has_the_gpu_open_is_named_before_the_timeout(
    machine: MachineFactory, capfd: Capture, holders: str
) -> None:
    host = machine("efifb-6.12")
    host.patient = True
    hold(host, "dev/fb0", pid=77, command="Xorg")
    obey(host, 77, NEVER)  # not even SIGKILL, being in state D
    configure(host, f"timeout_s: 4\nholders: {{{holders}}}\n")

    status = call(host, "prepare")

    assert (status, capfd.readouterr().err.partition("Xorg (77)")[:2]) == (
        1, (f"vfio-console-hook: {GPU} is in use by ", "Xorg (77)"),
    )  # fmt: skip


@pytest.mark.parametrize("stderr_is", ["2>&1 | :", "2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_a_refusal_is_in_the_log_even_if_stderr_cannot_be_written(
    machine: MachineFactory, stderr_is: str
) -> None:
    host = machine("efifb-6.12")
    hold(host, "dev/fb0", pid=77, command="Xorg")
    configure(host, "holders: {wait_s: 0}\n")
    before = steady(host)
    xml = host.path("xml")
    with open(xml, "wb") as file:
        file.write(domain_xml(GPU))
    program = (
        "import sys; from tests.fakehost import FakeHost; from vfio_console_hook import hook;"
        " xml = open(sys.argv[2], 'rb').read(); words = ['win11', 'prepare', 'begin', '-'];"
        " status = hook.main(words, xml, FakeHost(sys.argv[1]));"
        " open(sys.argv[2], 'w').write(str(status))"
    )

    subprocess.run(
        ["sh", "-c", f'{{ sleep 0.2; exec "$@"; }} {stderr_is}', "sh",
         sys.executable, "-c", program, host.root, xml],
        cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip

    assert host.read("xml") == "1"
    host.tree.remove("xml")
    log = host.read(SNAPSHOT_LOG) or ""
    assert f"error: win11: prepare {GPU}: {GPU} is in use by Xorg" in log
    assert "Traceback" not in log
    assert steady(host) == before


def test_a_deadline_that_passes_is_reported_and_everything_is_undone(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)
    configure(host, "timeout_s: 4\n")
    began = time.monotonic()

    slow = FakeHost(host.root, hang="/unbind")
    status = hook.main(["win11", "prepare", "begin", "-"], domain_xml(GPU), slow)

    assert time.monotonic() - began < 12
    assert (status, capfd.readouterr()) == (
        1, ("", stderr("timed out after 2.6 s, at `echo efi-framebuffer.0 >"
                       " /sys/bus/platform/drivers/efi-framebuffer/unbind`",
                       "increase `timeout_s`, or look into `journalctl -k`")),
    )  # fmt: skip
    after = {path: what for path, what in snapshot(host).items() if not path.startswith("etc")}
    assert after == before
    assert Claims(host).uuids() == ()


def test_start_refuses_a_vm_whose_memory_is_reserved_and_changes_nothing(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-0380-6.12")
    call(host, "prepare")
    FakeLibvirt(host).detach(GPU)
    host.write("sys/bus/platform/drivers/efi-framebuffer/bind", "efi-framebuffer.0")
    before = snapshot(host)

    status = call(host, "start")

    assert (status, snapshot(host), Claims(host).uuids()) == (1, before, (UUID,))
    assert capfd.readouterr() == (
        "",
        stderr(
            f"efifb still reserves c0000000-c03e7fff in BAR 0 of {GPU}, so QEMU could not map it",
            "look for what uses efifb, with `vfio-console-hook plan`",
        ),
    )


def test_on_failure_start_also_applies_to_reserved_memory_at_start(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-0380-6.12")
    configure(host, "on_failure: start\n")
    call(host, "prepare")
    FakeLibvirt(host).detach(GPU)
    host.write("sys/bus/platform/drivers/efi-framebuffer/bind", "efi-framebuffer.0")

    status = call(host, "start")

    log = host.read(SNAPSHOT_LOG) or ""
    assert (status, capfd.readouterr(), Claims(host).uuids()) == (0, ("", ""), (UUID,))
    assert "efifb still reserves" in log and "as configured by on_failure" in log


def test_a_failed_release_keeps_the_claim_and_prints_a_command(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-5.10")
    call(host, "prepare")

    status = hook.main(
        ["win11", "release", "end", "-"], domain_xml(GPU, event="release"),
        FakeHost(host.root, refuse=1),
    )  # fmt: skip

    assert (status, Claims(host).uuids()) == (1, (UUID,))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(
        "vfio-console-hook: cannot write 'efi-framebuffer.0' to"
        " /sys/bus/platform/drivers/efi-framebuffer/bind: Input/output error (by hand:"
        " echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/bind)"
    )


# -- through the gate


def run_gate(gate: Path, event: str, name: str = "win11") -> tuple[int, bytes, bytes]:
    operation, sub = event.split()
    done = subprocess.run(
        [os.fsencode(word) for word in (str(gate), name, operation, sub, "-")],
        input=domain_xml(GPU, name=name, event=operation), capture_output=True,
        env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["win11", "--help", "grün 绿\nx"])
def test_through_the_gate_the_console_goes_and_comes_back(
    machine: MachineFactory, tmp_path: Path, name: str
) -> None:
    host = machine("efifb-6.12")
    before = steady(host)
    gate = gate_over(host.root, tmp_path)
    libvirt = FakeLibvirt(host)
    answers = []

    answers.append(run_gate(gate, "prepare begin", name))
    libvirt.detach(GPU)
    answers.append(run_gate(gate, "start begin", name))
    blocked = open_device(host, GPU)
    answers += [run_gate(gate, "started begin", name), run_gate(gate, "reconnect begin", name)]
    close_device(host, GPU)
    answers.append(run_gate(gate, "stopped end", name))
    libvirt.reattach(GPU)
    answers.append(run_gate(gate, "release end", name))

    assert answers == [(0, b"", b"")] * 6
    assert (blocked, steady(host), Claims(host).uuids()) == ([], before, ())


def test_through_the_gate_a_refusal_is_only_the_error_text(
    machine: MachineFactory, tmp_path: Path
) -> None:
    host = machine("simpledrm-0380-6.12")
    gate = gate_over(host.root, tmp_path)

    answer = run_gate(gate, "prepare begin")

    assert answer == (
        1,
        b"",
        b"vfio-console-hook: BOOTFB of simple-framebuffer.0 holds memory of 0000:01:00.0, and"
        b" `bootfb: aperture` cannot free it: no module vmwgfx was found for this kernel\nhint: set"
        b" `bootfb: native` or `bootfb: rescan` for this VM, or try to boot with"
        b" initcall_blacklist=sysfb_init\n",
    )
