"""The log: the entries of the journal, and the few lines of one run of a VM."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import snapshots
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, close_device, open_device
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import hook
from vfio_console_hook.log import SNAPSHOT_JOURNAL, SNAPSHOT_LOG, Log, datagram, to_journal
from vfio_console_hook.machine import pci

GPU = "0000:01:00.0"
MACHINES = [one for one in snapshots.names() if not one.endswith(("-during", "-after"))]


def entry(raw: bytes) -> list[tuple[str, str]]:
    """The fields of one entry, parsed strictly by the rules of the native protocol."""
    fields = []
    while raw:
        line, newline, rest = raw.partition(b"\n")
        assert newline
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name and not set(name) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789"), name
        fields.append((name.decode(), value.decode()))
        raw = rest
    return fields


def entries(host: FakeHost) -> Iterator[list[tuple[str, str]]]:
    """The entries that were written on a machine from a snapshot."""
    raw = host.read_bytes(SNAPSHOT_JOURNAL) or b""
    for one in raw.split(b"\n\n")[:-1]:
        yield entry(one + b"\n")


@pytest.fixture
def path() -> Iterator[str]:
    """A path for a socket; paths in pytest's own directories are too long for one."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/journal"


@pytest.fixture
def journal(path: str) -> Iterator[socket.socket]:
    """A socket at path like that of systemd's journal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(5)
        yield receiver


# -- the journal's native protocol


def test_the_journal_gets_each_field(path: str, journal: socket.socket) -> None:
    fields = (("MESSAGE", "a line"), ("PRIORITY", "6"), ("GPU", GPU), ("GPU", "0000:02:00.0"))

    assert to_journal(path, fields)

    assert journal.recv(4096) == (
        b"MESSAGE=a line\nPRIORITY=6\nGPU=0000:01:00.0\nGPU=0000:02:00.0\n"
    )


@pytest.mark.parametrize(
    "value",
    ["a\nb", "\n", "x\nPRIORITY=0\nUUID=faked", "a=b\n", "\n\x00\n", "\U0001f600\n\U0001f600"],
)
def test_a_value_with_newlines_fakes_no_field(
    path: str, journal: socket.socket, value: str
) -> None:
    to_journal(path, (("VM", value), ("UUID", UUID)))

    assert entry(journal.recv(4096)) == [("VM", value), ("UUID", UUID)]


def test_a_name_that_cannot_be_encoded_is_escaped() -> None:
    assert datagram((("VM", os.fsdecode(b"a\xffb")),)) == b"VM=a\\udcffb\n"


@pytest.mark.parametrize("there", ["nothing", "file", "stream", "deaf"])
def test_without_a_journal_false_is_returned(path: str, there: str) -> None:
    kind = socket.SOCK_STREAM if there == "stream" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, kind) as other:
        if there == "file":
            Path(path).touch()
        elif there != "nothing":
            other.bind(path)
        if there == "deaf":
            other.close()

        assert not to_journal(path, (("MESSAGE", "x"),))


def test_the_log_does_not_wait_for_a_journal_that_hangs(path: str, journal: socket.socket) -> None:
    queued = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
        filling.setblocking(False)
        try:
            while queued < 100_000:
                queued += filling.sendto(b"x", path)
        except BlockingIOError:
            pass
    began = time.monotonic()

    taken = to_journal(path, (("MESSAGE", "x"),))

    assert (taken, time.monotonic() - began < 5) == (True, True)
    assert queued < 100_000


def test_an_entry_always_fits_into_a_datagram(
    path: str, journal: socket.socket, machine: MachineFactory
) -> None:
    host = machine("efifb-6.12")

    Log(host, "n" * 1_000_000, phase="prepare", uuid=UUID, gpus=(GPU,)).info("x" * 1_000_000)

    (written,) = entries(host)
    assert to_journal(path, tuple(written))
    assert entry(journal.recv(100_000)) == written
    assert [name for name, _ in written][-3:] == ["UUID", "PHASE", "GPU"]


# -- lines


def test_an_entry_has_the_line_and_its_fields(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    log = Log(host, "win11").about("release", UUID, (GPU, "0000:02:00.0"))

    log.warning("it is so")

    line = "win11: release 0000:01:00.0 0000:02:00.0: it is so"
    assert list(entries(host)) == [
        [
            ("MESSAGE", line), ("PRIORITY", "4"), ("SYSLOG_IDENTIFIER", "vfio-console-hook"),
            ("SYSLOG_FACILITY", "3"), ("VM", "win11"), ("UUID", UUID), ("PHASE", "release"),
            ("GPU", "0000:01:00.0"), ("GPU", "0000:02:00.0"),
        ]
    ]  # fmt: skip
    assert host.read(SNAPSHOT_LOG) == f"warning: {line}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nerror: b: lies", "a\\nerror: b: lies"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("tab\there", "tab\\there"),
        ("line\u2028sep", "line\\u2028sep"),
        ("\u202egnp", "\\u202egnp"),
        (os.fsdecode(b"\xff"), "\\udcff"),
        ("Gerät 1", "Gerät 1"),
    ],
)
def test_a_name_fakes_no_line(machine: MachineFactory, name: str, shown: str) -> None:
    host = machine("efifb-6.12")

    Log(host, name).info(name)

    assert host.read(SNAPSHOT_LOG) == f"info: {shown}: {shown}"
    (fields,) = entries(host)
    assert dict(fields)["MESSAGE"] == f"{shown}: {shown}"


def test_lines_below_the_level_are_not_written(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    log = Log(host, "win11", "warning")
    for write in (log.debug, log.info, log.warning, log.error):
        write("x")

    assert (host.read(SNAPSHOT_LOG) or "").splitlines() == [
        "warning: win11: x", "error: win11: x",
    ]  # fmt: skip


# -- the run of a VM


def run(host: FakeHost, address: str) -> list[str]:
    """Run a VM with one GPU as libvirt does; return the phases that it reached."""

    def call(event: str, sub: str = "begin") -> int:
        xml = domain_xml(address, event=event)
        return hook.main(["win11", event, sub, "-"], xml, FakeHost(host.root))

    libvirt = FakeLibvirt(host)
    if call("prepare"):
        return ["prepare"]
    phases = ["prepare", "start"]
    libvirt.detach(address)
    if call("start") == 0:
        open_device(host, address)
        assert call("started") == 0
        phases.append("started")
        close_device(host, address)
    libvirt.reattach(address)
    call("release", "end")
    return [*phases, "release"]


@pytest.mark.parametrize("name", MACHINES)
def test_one_run_of_a_vm_takes_at_most_ten_lines(machine: MachineFactory, name: str) -> None:
    host = machine(name)
    physical = [one for one in pci.displays(host) if not pci.is_virtual(host, one)]

    for address in physical:
        host = machine(name)
        host.tree.put("etc/vfio-console-hook/default.yaml", "holders: {wait_s: 0}\n")
        for folder in ("etc", "etc/vfio-console-hook"):
            os.chmod(host.path(folder), 0o755)
        os.chmod(host.path("etc/vfio-console-hook/default.yaml"), 0o644)
        phases = run(host, address)
        found = [dict(fields) for fields in entries(host)]

        assert len(found) <= 10
        for one in found:
            assert one["MESSAGE"].startswith(f"win11: {one['PHASE']} {address}: ")
        assert {(one["VM"], one["UUID"], one["GPU"]) for one in found} == {("win11", UUID, address)}
        assert list(dict.fromkeys(one["PHASE"] for one in found)) == phases


def test_a_refusal_is_one_line(machine: MachineFactory) -> None:
    host = machine("simpledrm-0380-6.12")

    assert hook.main(["win11", "prepare", "begin", "-"], domain_xml(GPU), host) == 1

    (line,) = (host.read(SNAPSHOT_LOG) or "").splitlines()
    assert line.startswith(f"error: win11: prepare {GPU}: ")


def test_an_unreadable_domain_is_logged_under_the_name_of_the_vm(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    assert hook.main(["win11", "prepare", "begin", "-"], b"<domain", host) == 1

    (line,) = (host.read(SNAPSHOT_LOG) or "").splitlines()
    assert line.startswith("error: win11: prepare: the domain XML is not well-formed: ")


def test_at_level_debug_each_step_is_logged_with_its_shell_line(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    Path(host.path("etc/vfio-console-hook")).mkdir(mode=0o755, parents=True)
    host.tree.put("etc/vfio-console-hook/default.yaml", "log_level: debug\n")
    os.chmod(host.path("etc"), 0o755)

    hook.main(["win11", "prepare", "begin", "-"], domain_xml(GPU), host)

    assert (
        f"debug: win11: prepare {GPU}: unbound efi-framebuffer.0 from efi-framebuffer, for fbdev:"
        " echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/unbind\n"
    ) in (host.read(SNAPSHOT_LOG) or "")
