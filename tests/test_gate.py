"""hooks/qemu, the real file, under each shell that may be /bin/sh."""

from __future__ import annotations

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

from tests.gate import ROOT, write_gate

SHELLS = ("dash", "busybox", "bash")
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

    def install(self, ending: str = "", *, python: str = sys.executable) -> None:
        program = self.directory / "hook"
        program.write_text(PROGRAM.format(call=str(self.call_file), ending=ending))
        run_dir = self.directory / "run"
        (run_dir / "by-name").mkdir(parents=True, exist_ok=True)
        write_gate(
            self.directory / "qemu",
            python=python,
            program=str(program),
            run_dir=str(run_dir),
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
    made = Gate((path, "sh") if request.param == "busybox" else (path,), directory)
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
        "hint: install vfio-console-hook again\n",
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
        f"vfio-console-hook: cannot read {program}; nothing was changed\n"
        "hint: install vfio-console-hook again\n",
    )


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
