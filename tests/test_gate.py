"""hooks/qemu, the real file, under each shell that may be /bin/sh."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import snapshots
from tests.conftest import MachineFactory
from tests.gate import ROOT, write_gate
from vfio_console_hook.domain import hostdev_addresses
from vfio_console_hook.machine import accelerators, drivers, pci
from vfio_console_hook.machine.host import Host

SHELLS = {"dash": (), "busybox": ("sh",), "bash": ("--posix",)}
"""Those that may be /bin/sh, with the words that make them one."""
CLAIM_ONLY = ("start begin", "started begin", "stopped end", "release end", "reconnect begin")
OURS = ("prepare begin", *CLAIM_ONLY)
ALWAYS_ZERO = ("started begin", "reconnect begin")
NOT_OURS = ("stopped begin", "migrate begin", "restore begin", "attach begin", "prepare end", "x y")
HOSTILE_NAMES = (
    "--help",
    "-c",
    "..",
    ".",
    " ",
    "two  words",
    "line\nline\n",
    "*",
    "$(touch pwned)",
    "`id`",
    "a'b\"c\\",
    "gr\u00fcn-\u7eff",
)

PCI = "<hostdev mode='subsystem' type='pci' managed='yes'>\n  <source/>\n</hostdev>"
USB = "<hostdev mode='subsystem' type='usb' managed='yes'>\n  <address type='pci'/>\n</hostdev>"
MDEV = "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n</hostdev>"
QEMU_ARG = "<qemu:arg value='vfio-pci,host=01:00.0'/>"

# Replaces the program: writes its arguments to a file, then runs the code of ending.
PROGRAM = """
import json, os, signal, sys
xml = sys.stdin.buffer.read()
with open({call!r}, "x") as file:
    json.dump({{"argv": sys.argv[1:], "xml": xml.decode("latin-1"),
               "flags": [sys.flags.isolated], "env": sorted(os.environ)}}, file)
print("never to be seen by libvirt")
{ending}
"""


def domain(devices: str) -> bytes:
    """The XML of a VM with these devices, as libvirt indents it."""
    devices = textwrap.indent(devices, "    ")
    return f"<domain type='kvm'>\n  <devices>\n{devices}\n  </devices>\n</domain>\n".encode()


@dataclass(frozen=True)
class Result:
    status: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True)
class Gate:
    """A copy of the gate below a directory of its own, and the shell to run it with."""

    shell: tuple[str, ...]
    directory: Path

    @property
    def call_file(self) -> Path:
        return self.directory / "call.json"

    @property
    def pci(self) -> Path:
        """Where the PCI devices of the host are."""
        return self.directory / "sys/bus/pci/devices"

    def install(
        self, ending: str = "", *, python: str = sys.executable, pci: Path | None = None
    ) -> None:
        program = self.directory / "hook"
        program.write_text(PROGRAM.format(call=str(self.call_file), ending=ending))
        run_dir = self.directory / "run"
        (run_dir / "by-name").mkdir(parents=True, exist_ok=True)
        write_gate(
            self.directory / "qemu",
            python=python,
            program=str(program),
            run_dir=str(run_dir),
            pci=str(pci or self.pci),
        )

    def claim(self, entry: str) -> None:
        (self.directory / "run/by-name" / entry).touch()

    def __call__(
        self,
        name: str,
        event: str,
        xml: bytes = b"",
        env: dict[str, str] | None = None,
        user: int | None = None,
    ) -> Result:
        operation, suboperation = event.split()
        done = subprocess.run(
            [*self.shell, str(self.directory / "qemu"), name, operation, suboperation, "-"],
            input=xml,
            capture_output=True,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"} if env is None else env,
            cwd=self.directory,
            user=user,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def called_with(self) -> list[str] | None:
        """The arguments of Python, or None if it was not started."""
        if not self.call_file.exists():
            return None
        argv: list[str] = json.loads(self.call_file.read_text())["argv"]
        return argv


@pytest.fixture(params=SHELLS)
def gate(request: pytest.FixtureRequest, tmp_path: Path) -> Gate:
    path = shutil.which(request.param)
    if path is None:
        if os.environ.get("REQUIRE_TOOLS"):
            pytest.fail(f"{request.param} is not installed")
        pytest.skip(f"{request.param} is not installed")
    directory = tmp_path / "a b"
    directory.mkdir()
    made = Gate((path, *SHELLS[request.param]), directory)
    made.install()
    return made


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users may enter; they may not enter those of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


NOTHING = Result(0, b"", "")
REINSTALL = "install vfio-console-hook again: its package, or ./install.sh in its clone"


@pytest.mark.parametrize("event", NOT_OURS)
def test_an_event_that_is_not_ours_ends_at_once(gate: Gate, event: str) -> None:
    gate.claim("=win11")

    result = gate("win11", event, domain(PCI))

    assert (result, gate.called_with()) == (NOTHING, None)


@pytest.mark.parametrize("event", OURS)
def test_a_vm_without_host_devices_starts_no_python(gate: Gate, event: str) -> None:
    result = gate("win11", event, domain("<disk/>"))

    assert (result, gate.called_with()) == (NOTHING, None)


@pytest.mark.parametrize("event", CLAIM_ONLY)
def test_a_vm_that_holds_nothing_starts_no_python_whatever_its_xml_says(
    gate: Gate, event: str
) -> None:
    result = gate("win11", event, domain(PCI))

    assert (result, gate.called_with()) == (NOTHING, None)


@pytest.mark.parametrize("event", CLAIM_ONLY)
def test_stdin_is_not_read_before_it_is_needed(gate: Gate, event: str) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"<domain/>")
    os.close(writer)

    operation, suboperation = event.split()
    subprocess.run(
        [*gate.shell, gate.directory / "qemu", "win11", operation, suboperation, "-"],
        stdin=reader,
        check=True,
    )

    assert os.read(reader, 100) == b"<domain/>"
    os.close(reader)


@pytest.mark.parametrize(
    "devices", [PCI, QEMU_ARG, USB + PCI, "<hostdev/>", "<hostdev\n type='pci'>"]
)
def test_prepare_starts_python_for_what_may_be_a_pci_device(gate: Gate, devices: str) -> None:
    result = gate("win11", "prepare begin", domain(devices))

    assert (result, gate.called_with()) == (NOTHING, ["win11", "prepare", "begin", "-"])


@pytest.mark.parametrize("blanks", ["", "\n", "\n\t", "\n  ", "\n     "])
@pytest.mark.parametrize(
    "devices",
    [
        (USB, PCI),
        (MDEV, QEMU_ARG),
        (USB, QEMU_ARG.replace("qemu:", "")),
        ("<disk/>", PCI),
        (USB, USB),
    ],
)
def test_xml_that_libvirt_would_format_in_another_way_starts_python(
    gate: Gate, devices: tuple[str, str], blanks: str
) -> None:
    parts = ("<domain type='kvm'>", "<devices>", *devices, "</devices>", "</domain>")
    xml = blanks.join(parts).encode()

    gate("win11", "prepare begin", xml)

    assert gate.called_with() == ["win11", "prepare", "begin", "-"]


@pytest.mark.parametrize("devices", [USB, MDEV, USB.replace("usb", "scsi"), MDEV + "\n" + USB])
def test_host_devices_that_are_not_pci_start_no_python(gate: Gate, devices: str) -> None:
    result = gate("win11", "prepare begin", domain(devices))

    assert (result, gate.called_with()) == (NOTHING, None)


def with_awk(gate: Gate, command: str) -> None:
    """Let the gate run a line of sh instead of mawk, and find no other awk."""
    awk = gate.directory / "awk"
    awk.write_text(f"#!/bin/sh\n{command}\n")
    awk.chmod(0o755)
    script = gate.directory / "qemu"
    text = script.read_text()
    assert text.count("awk=/usr/bin/mawk") == text.count("awk='awk'") == 1
    text = text.replace("awk=/usr/bin/mawk", f"awk='{awk}'").replace("awk='awk'", "awk=/nowhere")
    script.write_text(text)


@pytest.mark.parametrize("awk", ["mawk", "gawk", "original-awk", "busybox awk"])
def test_each_awk_finds_what_may_be_a_pci_device(gate: Gate, awk: str) -> None:
    if shutil.which(awk.split()[0]) is None:
        pytest.skip(f"{awk} is not installed")
    with_awk(gate, f'exec {awk} "$@"')
    plain = domain(f"{USB}\n{MDEV}\n<disk/>")
    xml = domain(f"{USB}\n{PCI}\n<description>\\n \\052 & %s \xff</description>")

    assert (gate("win11", "prepare begin", plain), gate.called_with()) == (NOTHING, None)
    assert gate("win11", "prepare begin", xml) == NOTHING
    assert json.loads(gate.call_file.read_text())["xml"].encode("latin-1") == xml


@pytest.mark.parametrize("devices", ["<disk/>", PCI])
@pytest.mark.parametrize("status", ["missing", "126", "2"])
def test_without_an_awk_python_decides(gate: Gate, devices: str, status: str) -> None:
    with_awk(gate, f"exit {status}")
    if status == "missing":
        (gate.directory / "awk").unlink()

    result = gate("win11", "prepare begin", domain(devices))

    assert (result.status, result.stdout) == (0, b"")
    assert json.loads(gate.call_file.read_text())["xml"].encode() == domain(devices)


@pytest.mark.parametrize("read", ["cat", "dd bs=20 count=1 2>/dev/null"])
def test_a_vm_is_refused_if_awk_is_killed(gate: Gate, read: str) -> None:
    with_awk(gate, f"{read}; kill -KILL $$")

    result = gate("win11", "prepare begin", domain("<disk/>"))

    assert (result.status, result.stdout, gate.called_with()) == (1, b"", None)
    assert "vfio-console-hook: cannot read the domain XML; nothing was changed\n" in result.stderr


@pytest.mark.parametrize("event", OURS)
@pytest.mark.parametrize("entry", ["=win11", "+unnamed"])
def test_a_claim_starts_python_at_each_of_our_events(gate: Gate, event: str, entry: str) -> None:
    gate.claim(entry)

    result = gate("win11", event, domain("<disk/>"))

    assert (result, gate.called_with()) == (NOTHING, ["win11", *event.split(), "-"])


def test_a_dangling_entry_is_an_entry(gate: Gate) -> None:
    (gate.directory / "run/by-name/=win11").symlink_to("../claims/gone")

    gate("win11", "release end")

    assert gate.called_with() == ["win11", "release", "end", "-"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("event", ["prepare begin", "reconnect begin"])
def test_any_name_reaches_python_unchanged(gate: Gate, name: str, event: str) -> None:
    gate.claim("=" + name)

    result = gate(name, event, domain(PCI))

    assert (result, gate.called_with()) == (NOTHING, [name, *event.split(), "-"])
    assert not (gate.directory / "pwned").exists()


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "", "/", "../=win11", "x/../=win11", "a" * 5000])
def test_no_name_finds_the_claim_of_another_vm(gate: Gate, name: str) -> None:
    gate.claim("=win11")
    gate.claim("=x")

    result = gate(name, "release end")

    assert (result, gate.called_with()) == (NOTHING, None)


@pytest.mark.parametrize(
    "xml",
    [
        domain(PCI),
        domain(PCI + "<description>%s \\n \\0 $HOME `id` \u7eff \t</description>"),
        domain(PCI + "x" * 200_000),
        domain(PCI) + bytes(range(1, 256)) + b"\n",
        domain(PCI).replace(b"\n", b"\r\n"),
    ],
    ids=["plain", "escapes", "long", "every byte", "crlf"],
)
@pytest.mark.parametrize("event", ["prepare begin", "start begin"])
@pytest.mark.parametrize("env", [{}, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}], ids=str)
def test_the_xml_reaches_python_byte_for_byte(
    gate: Gate, xml: bytes, event: str, env: dict[str, str]
) -> None:
    gate.claim("=win11")

    gate("win11", event, xml, env)

    assert json.loads(gate.call_file.read_text())["xml"].encode("latin-1") == xml


@pytest.mark.parametrize("event", OURS)
def test_an_empty_environment_is_enough(gate: Gate, event: str) -> None:
    gate.claim("=win11")

    result = gate("win11", event, domain(PCI), {})

    assert (result, gate.called_with()) == (NOTHING, ["win11", *event.split(), "-"])


def test_no_variable_moves_a_path(gate: Gate) -> None:
    names = ("PYTHON", "PROGRAM", "RUN_DIR", "PYTHONPATH", "PYTHONHOME", "PATH", "read", "xml")
    hostile = dict.fromkeys(names, "/nowhere")

    result = gate("win11", "prepare begin", domain(PCI), hostile)

    assert (result, gate.called_with()) == (NOTHING, ["win11", "prepare", "begin", "-"])
    assert json.loads(gate.call_file.read_text())["flags"] == [1]


@pytest.mark.parametrize("event", ["prepare begin", "start begin", "release end"])
def test_a_refusal_of_the_program_is_passed_on(gate: Gate, event: str) -> None:
    gate.install("sys.exit('0000:01:00.0 is held by Xorg(812)')")
    gate.claim("=win11")

    result = gate("win11", event, domain(PCI))

    assert result == Result(1, b"", "0000:01:00.0 is held by Xorg(812)\n")


def test_a_refusal_before_the_xml_was_read_is_passed_on(gate: Gate) -> None:
    (gate.directory / "hook").write_text("import sys; sys.exit('no')")

    result = gate("win11", "prepare begin", domain(PCI + "x" * 500_000))

    assert result == Result(1, b"", "no\n")


@pytest.mark.parametrize("event", ["prepare begin", "start begin", "release end"])
def test_a_program_that_dies_is_one_error_line(gate: Gate, event: str) -> None:
    gate.install("sys.stdout.close(); os.kill(os.getpid(), signal.SIGKILL)")
    gate.claim("=win11")

    result = gate("win11", event, domain(PCI))

    assert (result.status, result.stdout) == (1, b"")
    assert (
        "vfio-console-hook: the program ended with status 137 before it was done with "
        f"{event.split()[0]}\nhint: run vfio-console-hook status\n" in result.stderr
    )


@pytest.mark.parametrize("event", ["prepare begin", "start begin", "release end"])
def test_a_missing_python_is_one_error_line(gate: Gate, event: str) -> None:
    gate.install(python="/nowhere/python3")
    gate.claim("=win11")

    result = gate("win11", event, domain(PCI))

    assert result == Result(
        1,
        b"",
        "vfio-console-hook: cannot run /nowhere/python3: no such program; nothing was changed\n"
        f"hint: {REINSTALL}\n",
    )


@pytest.mark.parametrize("event", ["prepare begin", "start begin", "release end"])
def test_a_missing_program_is_one_error_line(gate: Gate, event: str) -> None:
    gate.claim("=win11")
    program = gate.directory / "hook"
    program.unlink()

    result = gate("win11", event, domain(PCI))

    assert result == Result(
        1,
        b"",
        f"vfio-console-hook: cannot read {program}; nothing was changed\nhint: {REINSTALL}\n",
    )


# --- without the program: /usr of an earlier day, and the gate in /etc


def pci_device(
    gate: Gate, address: str, pci_class: str, driver: str = "", vendor: str = "0x8086"
) -> Path:
    """Put a device into the gate's sysfs, as Linux shows it; its directory."""
    device = gate.pci / address
    device.mkdir(parents=True)
    (device / "class").write_text(f"{pci_class}\n")
    (device / "vendor").write_text(f"{vendor}\n")
    if driver:
        drivers_there = gate.pci.parent / "drivers"
        (drivers_there / driver).mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(drivers_there / driver)
    return device


def hostdev(source: str) -> str:
    """A PCI device of the host, with the address that the guest sees, as libvirt writes it."""
    return (
        "<hostdev mode='subsystem' type='pci' managed='yes'>\n  <driver name='vfio'/>\n"
        f"  <source>\n    {source}\n  </source>\n  <alias name='hostdev0'/>\n"
        "  <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>\n</hostdev>"
    )


GPU, CARD, GUEST = "0000:01:00.0", "0000:0a:1f.7", "0000:06:00.0"
GPU_SOURCE = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
CARD_SOURCE = "<address domain='0x0000' bus='0x0a' slot='0x1f' function='0x7'/>"

CARD_HOSTDEV, GPU_HOSTDEV = hostdev(CARD_SOURCE), hostdev(GPU_SOURCE)


@pytest.fixture
def bare(gate: Gate) -> Gate:
    """A gate without its program, on a host with a GPU and a network card."""
    (gate.directory / "hook").unlink()
    pci_device(gate, GPU, "0x030000", "nvidia", "0x10de")
    pci_device(gate, CARD, "0x020000", "igb")
    return gate


def prepare(bare: Gate, xml: bytes) -> bool:
    """Whether a VM passes; a refusal must be the one of a program that is missing."""
    result = bare("win11", "prepare begin", xml)
    if result == NOTHING:
        return True
    program = bare.directory / "hook"
    text = f"vfio-console-hook: cannot read {program}; nothing was changed\nhint: {REINSTALL}\n"
    assert result == Result(1, b"", text)
    return False


@pytest.mark.parametrize(
    ("devices", "passes"),
    [
        (CARD_HOSTDEV, True),
        (GPU_HOSTDEV, False),
        (f"{CARD_HOSTDEV}\n{GPU_HOSTDEV}", False),
        (f"{GPU_HOSTDEV}\n{CARD_HOSTDEV}", False),
        (f"{USB}\n{CARD_HOSTDEV}\n{MDEV}", True),
        (f"{USB}\n{GPU_HOSTDEV}\n{MDEV}", False),
        (f"{CARD_HOSTDEV}\n<disk><source>{GPU_SOURCE}</source></disk>", True),
    ],
)
def test_without_the_program_a_vm_passes_that_gets_no_gpu(
    bare: Gate, devices: str, passes: bool
) -> None:
    assert prepare(bare, domain(devices)) == passes


def test_without_python_a_vm_passes_that_gets_no_gpu(bare: Gate) -> None:
    bare.install(python="/nowhere/python3")

    assert bare("win11", "prepare begin", domain(CARD_HOSTDEV)) == NOTHING
    assert bare("win11", "prepare begin", domain(GPU_HOSTDEV)).status == 1


def test_without_the_program_a_vm_that_holds_something_is_refused(bare: Gate) -> None:
    bare.claim("=win11")

    assert not prepare(bare, domain(CARD_HOSTDEV))


@pytest.mark.parametrize(
    "source",
    [
        '<address domain="0x0000" bus="0x0a" slot="0x1f" function="0x7"/>',
        "<address function='0x7' slot='0x1f' bus='0x0a' domain='0x0000'/>",
        "<address bus='0x0a' slot='0x1f' function='0x7'/>",
        "<address bus='0xA' slot='0X1F' function='0x07'></address>",
        "<address\n\tdomain = '0x0'\n\tbus\t=\t'0x00a'\n\tslot='0x1F'  function='0x7'\n/>",
        "<address type='pci>' x='/>' y='bus=\"0x01\"' bus='0x0a' slot='0x1f' function='0x7'/>",
    ],
)
@pytest.mark.parametrize("source_of_gpu", [False, True])
def test_an_address_is_read_however_it_is_written(
    bare: Gate, source: str, source_of_gpu: bool
) -> None:
    if source_of_gpu:
        (bare.pci / CARD / "class").write_text("0x030000\n")

    assert prepare(bare, domain(hostdev(source))) != source_of_gpu


METADATA = "<metadata>\n<!-- ' --><x:a xmlns:x='y' b='>'>\n<hostdev/></x:a>\n</metadata>"


@pytest.mark.parametrize("metadata", [METADATA, "<metadata/>", "<metadata x='>'\n/>"])
def test_metadata_are_not_of_the_vm(bare: Gate, metadata: str) -> None:
    assert prepare(bare, domain(f"{metadata}\n{CARD_HOSTDEV}"))
    assert not prepare(bare, domain(f"{metadata}\n{GPU_HOSTDEV}"))
    assert not prepare(bare, domain(f"{GPU_HOSTDEV}\n{metadata}"))


@pytest.mark.parametrize("version", ["7.0.0", "9.0.0", "11.3.0"])
def test_the_devices_in_xml_of_libvirt_are_found(bare: Gate, version: str) -> None:
    xml = (ROOT / f"tests/domains/libvirt-{version}-prepare-begin.xml").read_bytes()
    shutil.rmtree(bare.pci)
    classes = [
        pci_device(bare, address, "0x020000") / "class" for address in hostdev_addresses(xml)
    ]

    assert classes
    assert prepare(bare, xml)
    for one in classes:
        one.write_text("0x030000\n")
        assert not prepare(bare, xml)
        one.write_text("0x020000\n")


def test_addresses_of_a_large_pci_domain_are_read(bare: Gate) -> None:
    pci_device(bare, "10000:01:00.0", "0x010802", "nvme")
    source = GPU_SOURCE.replace("0x0000", "0x10000")

    assert prepare(bare, domain(hostdev(source)))


def test_an_attribute_that_is_missing_is_0(bare: Gate) -> None:
    pci_device(bare, "0000:00:00.0", "0x060000")

    assert prepare(bare, domain(hostdev("<address/>")))


@pytest.mark.parametrize(
    "devices",
    [
        hostdev("<address bus='0x0b' slot='0x00' function='0x0'/>"),  # no such device
        hostdev("<address bus='10' slot='0x1f' function='0x7'/>"),
        hostdev("<address bus='' slot='0x1f' function='0x7'/>"),
        hostdev("<address bus='0x0a' slot='0x1f' function='&#48;x7'/>"),
        hostdev("<address bus=0x0a slot='0x1f' function='0x7'/>"),
        hostdev("<address bus='0x0a slot='0x1f' function='0x7'/>"),
        hostdev("<address bus='../0000:0a' slot='0x1f' function='0x7'/>"),
        hostdev(""),
        "<hostdev/>",
        "<hostdev type='pci'/>",
        "<hostdev type='&#112;ci'/>",
        CARD_HOSTDEV.replace("<source>", "<source/>").replace("</source>", ""),
        CARD_HOSTDEV.replace(CARD_SOURCE, f"<!-- {CARD_SOURCE} </source> -->{GPU_SOURCE}"),
        CARD_HOSTDEV.replace(CARD_SOURCE, CARD_SOURCE + GPU_SOURCE),
        f"{CARD_HOSTDEV}\n<![CDATA[</source>]]>",
        f"{CARD_HOSTDEV}\n<qemu:arg value='vfio-pci,host=0a:1f.7'/>",
        f"{CARD_HOSTDEV}\n<arg value='{{\"driver\":\"vfio-pci\"}}'/>",
        CARD_HOSTDEV.partition("<source>")[0] + GPU_HOSTDEV,
        CARD_HOSTDEV + "\n" + GPU_HOSTDEV.partition("<source>")[0],
    ],
)
def test_what_cannot_be_understood_without_the_program_is_refused(
    bare: Gate, devices: str
) -> None:
    # Where a wrong reading would find harmless devices.
    for address in (GUEST, "0000:00:00.0", "0000:00:1f.7", "0000:10:1f.7"):
        pci_device(bare, address, "0x020000")

    assert not prepare(bare, domain(devices))


@pytest.mark.parametrize("cut", [1, 9, 10, 11, 24, 60, 300])
def test_half_an_xml_is_refused_without_the_program(bare: Gate, cut: int) -> None:
    xml = domain(CARD_HOSTDEV + "\n<x/>" * 20).rstrip()

    assert prepare(bare, xml)
    assert not prepare(bare, xml[:-cut])


@pytest.mark.parametrize("text", ["", "30000", "0x30000", "0x0200000", "\n0x020000"])
def test_a_class_that_cannot_be_understood_is_refused_without_the_program(
    bare: Gate, text: str
) -> None:
    (bare.pci / CARD / "class").write_text(f"{text}\n")

    assert not prepare(bare, domain(CARD_HOSTDEV))


@pytest.mark.parametrize("awk", ["mawk", "gawk", "original-awk", "busybox awk", "false"])
def test_without_the_program_each_awk_finds_the_gpu(bare: Gate, awk: str) -> None:
    if shutil.which(awk.split()[0]) is None:
        pytest.skip(f"{awk} is not installed")
    with_awk(bare, f'exec {awk} "$@"')
    attributes = "bus = '0xA'\n slot=\"0x1f\" x='/>' function='0x7'"
    card = hostdev(f"<address {attributes}/>")

    assert prepare(bare, domain(f"{USB}\n{card}\n<description>\xff &lt;</description>")) == (
        awk != "false"
    )
    assert not prepare(bare, domain(f"{card}\n{GPU_HOSTDEV}"))
    assert not prepare(bare, domain(f"{card}<!---->"))


def test_no_function_of_the_environment_is_called_without_the_program(bare: Gate) -> None:
    functions = {
        f"BASH_FUNC_{name}%%": "() { echo 0x020000; }"
        for name in ("cd", "read", "printf", "[", "claimed", "may_be_gpu", "pci_addresses")
    }

    result = bare("win11", "prepare begin", domain(GPU_HOSTDEV), {"LC_ALL": "C", **functions})

    assert (result.status, result.stdout) == (1, b"")


CLASSES = ("0x038000", "0x120000", "0x0b4000", "0x020000")
VENDORS = ("0x1002", "0x10de", "0x8086", "0x1da3", "0x10ee")


def agrees(gate: Gate, host: Host, address: str) -> bool:
    """Whether the gate lets a device pass exactly if the program does not look after it."""
    cared_for = accelerators.is_gpu(host, address) and not pci.is_virtual(host, address)
    numbers = zip(("domain", "bus", "slot", "function"), address.replace(".", ":").split(":"))
    attributes = " ".join(f"{name}='0x{number}'" for name, number in numbers)
    return prepare(gate, domain(hostdev(f"<address {attributes}/>"))) != cared_for


@pytest.mark.parametrize("name", [one for one in snapshots.before_vms() if "lab-" not in one])
def test_the_gate_takes_for_a_gpu_what_the_program_does(
    gate: Gate, machine: MachineFactory, name: str
) -> None:
    host = machine(name)
    gate.install(pci=Path(host.root) / "sys/bus/pci/devices")
    (gate.directory / "hook").unlink()

    found = host.list("sys/bus/pci/devices")

    assert [one for one in found if not agrees(gate, host, one)] == []


@pytest.mark.parametrize("driver", [*(row.name for row in drivers.ROWS), "xocl", "x_vfio_pci", ""])
def test_the_gate_knows_the_accelerators_that_the_program_knows(gate: Gate, driver: str) -> None:
    (gate.directory / "hook").unlink()
    host = Host(str(gate.directory))
    addresses = []
    for number, (pci_class, vendor) in enumerate(itertools.product(CLASSES, VENDORS)):
        addresses.append(f"0000:{number:02x}:00.0")
        pci_device(gate, addresses[-1], pci_class, driver, vendor)

    assert [one for one in addresses if not agrees(gate, host, one)] == []


@pytest.mark.parametrize("pci_class", ["0x030000", "0x120000", "0x020000"])
@pytest.mark.parametrize("beside", ["vfio-dev", "physfn"])
def test_the_gate_knows_virtual_functions_and_drivers_of_vfio(
    gate: Gate, pci_class: str, beside: str
) -> None:
    (gate.directory / "hook").unlink()
    for driver, address in (("", GPU), ("i915", CARD), ("nvgrace_gpu_vfio", GUEST)):
        (pci_device(gate, address, pci_class, driver) / beside).mkdir()

    host = Host(str(gate.directory))

    assert [one for one in (GPU, CARD, GUEST) if not agrees(gate, host, one)] == []


def break_nothing_installed(gate: Gate) -> None:
    (gate.directory / "hook").unlink()


def break_no_python(gate: Gate) -> None:
    gate.install(python="/nowhere/python3")


def break_segfault(gate: Gate) -> None:
    gate.install("os.kill(os.getpid(), signal.SIGSEGV)")


def break_syntax(gate: Gate) -> None:
    (gate.directory / "hook").write_text("def broken(:\n")


def break_status(gate: Gate) -> None:
    gate.install("print('x', file=sys.stderr); sys.exit(42)")


def break_half_package(gate: Gate) -> None:
    shutil.copy(ROOT / "hooks/launch.py", gate.directory / "hook")


@pytest.mark.parametrize("event", ALWAYS_ZERO)
@pytest.mark.parametrize(
    "damage",
    [
        break_nothing_installed,
        break_no_python,
        break_segfault,
        break_syntax,
        break_status,
        break_half_package,
    ],
)
def test_a_running_guest_survives_any_damage(gate: Gate, event: str, damage: object) -> None:
    assert callable(damage)
    damage(gate)
    gate.claim("=win11")

    result = gate("win11", event, domain(PCI))

    assert (result.status, result.stdout) == (0, b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("event", ALWAYS_ZERO)
def test_a_running_guest_survives_when_nothing_can_be_forked(
    open_directory: Path, event: str
) -> None:
    gate = write_gate(open_directory / "qemu", run_dir=str(open_directory / "run"))
    (open_directory / "run/by-name").mkdir(parents=True)
    (open_directory / "run/by-name/=win11").touch()
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); "
        "os.setgid(65534); os.setuid(65534); os.execv('/bin/sh', sys.argv[1:])"
    )

    done = subprocess.run(
        ["/usr/bin/python3", "-c", limited, "sh", gate, "win11", *event.split(), "-"],
        capture_output=True,
    )

    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("event", ALWAYS_ZERO)
def test_a_running_guest_survives_a_gate_that_gets_a_signal(gate: Gate, event: str) -> None:
    gate.install(
        "pid = os.getppid()\n"
        "while b'/qemu' not in open(f'/proc/{pid}/cmdline', 'rb').read()"
        " or b'/hook' in open(f'/proc/{pid}/cmdline', 'rb').read():\n"
        "    pid = int(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[1])\n"
        "os.kill(pid, signal.SIGTERM)"
    )
    gate.claim("=win11")

    result = gate("win11", event, domain(PCI))

    assert (result.status, result.stdout) == (0, b"")


def test_the_launcher_reports_a_missing_package_in_one_line(gate: Gate) -> None:
    break_half_package(gate)

    result = gate("win11", "prepare begin", domain(PCI))

    assert result == Result(
        1,
        b"",
        "vfio-console-hook: cannot load the program: No module named 'vfio_console_hook'; "
        "nothing was changed\nhint: install vfio-console-hook again\n",
    )


def test_the_launcher_calls_main_beside_it_and_writes_no_bytecode(gate: Gate) -> None:
    shutil.copy(ROOT / "hooks/launch.py", gate.directory / "hook")
    package = gate.directory / "vfio_console_hook"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "hook.py").write_text(
        "import sys\ndef main(argv):\n    sys.stderr.write('|'.join(argv))\n    return 1\n"
    )

    result = gate("--help", "prepare begin", domain(PCI))

    assert result == Result(1, b"", "--help|prepare|begin|-")
    assert sorted(path.name for path in package.iterdir()) == ["__init__.py", "hook.py"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_session_daemon_that_cannot_read_run_gets_no_error(
    open_directory: Path,
) -> None:
    gate = Gate(("/bin/sh",), open_directory)
    gate.install()
    gate.claim("=win11")
    (open_directory / "run").chmod(0o700)

    result = gate("win11", "release end", user=65534)

    assert (result, gate.called_with()) == (NOTHING, None)
