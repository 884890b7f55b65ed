"""Release needs the claim and the machine, but no XML, configuration, lxml or PyYAML."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MachineFactory, domain_xml
from tests.fakehost import FakeHost
from tests.fakehost.userspace import FakeLibvirt, close_device, open_device
from tests.gate import ENVIRONMENT, gate_over
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import Claims

GPU = "0000:01:00.0"
DEFAULT = "etc/vfio-console-hook/default.yaml"
WHOLE = domain_xml(GPU)

# Faults of the XML and the configuration that can appear while the VM runs.
XML = {"whole": WHOLE, "empty": b"", "truncated": WHOLE[: len(WHOLE) // 2], "no-text": b"\xff\0"}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has the standard library and nothing else."""
    venv = tmp_path_factory.mktemp("python") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin/python3")
    for library in ("lxml", "yaml"):
        assert subprocess.run([python, "-I", "-c", f"import {library}"], stderr=-3).returncode == 1
    return python


def run(gate: Path, event: str, xml: bytes, name: str = "win11") -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [os.fsencode(word) for word in (str(gate), name, *event.split(), "-")],
        input=xml, capture_output=True, env=ENVIRONMENT, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def configure(host: FakeHost, text: str, mode: int = 0o644) -> None:
    host.tree.put(DEFAULT, text)
    for path in ("etc", "etc/vfio-console-hook"):
        os.chmod(host.path(path), 0o755)
    os.chmod(host.path(DEFAULT), mode)


def untouched(host: FakeHost) -> None:
    return


def broken(host: FakeHost) -> None:
    configure(host, "stages: [\n")


def of_others(host: FakeHost) -> None:
    configure(host, "log_level: error\n", 0o666)


def without_directory(host: FakeHost) -> None:
    host.tree.put("etc", "a file")


@pytest.mark.parametrize("xml", XML.values(), ids=XML)
@pytest.mark.parametrize("spoil", [untouched, broken, of_others, without_directory])
def test_after_prepare_only_the_claim_is_needed(
    machine: MachineFactory,
    tmp_path: Path,
    bare_python: str,
    xml: bytes,
    spoil: Callable[[FakeHost], None],
) -> None:
    host = machine("efifb-6.12")
    before = host.read("sys/class/vtconsole/vtcon1/bind"), host.list("sys/class/graphics")
    libvirt = FakeLibvirt(host)
    assert run(gate_over(host.root, tmp_path / "a"), "prepare begin", WHOLE)[0] == 0
    spoil(host)
    gate = gate_over(host.root, tmp_path / "b", python=bare_python)

    libvirt.detach(GPU)
    answers = [run(gate, "start begin", xml)]
    blocked = open_device(host, GPU)
    answers += [run(gate, event, xml) for event in ("started begin", "reconnect begin")]
    close_device(host, GPU)
    libvirt.reattach(GPU)
    answers.append(run(gate, "release end", xml))

    assert answers == [(0, b"", b"")] * 4
    assert (blocked, Claims(host).uuids()) == ([], ())
    after = host.read("sys/class/vtconsole/vtcon1/bind"), host.list("sys/class/graphics")
    assert after == before


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 200])
def test_a_vm_whose_name_no_file_can_have_releases_what_it_holds(
    machine: MachineFactory, tmp_path: Path, bare_python: str, name: str
) -> None:
    host = machine("efifb-6.12")
    gate = gate_over(host.root, tmp_path / "a")
    assert run(gate, "prepare begin", domain_xml(GPU, name=name), name)[0] == 0
    assert len(Claims(host).uuids()) == 1

    answer = run(gate_over(host.root, tmp_path / "b", python=bare_python), "release end", b"", name)

    assert (answer, Claims(host).uuids()) == ((0, b"", b""), ())


def test_a_vm_with_the_name_of_a_gpu_does_not_release_a_gpu_taken_by_hand(
    machine: MachineFactory, tmp_path: Path
) -> None:
    from vfio_console_hook import cli

    host = machine("efifb-6.12")
    assert cli.main(["take", GPU], host) == 0
    held = Claims(host).uuids()

    answer = run(gate_over(host.root, tmp_path), "release end", b"", GPU)

    assert (answer, Claims(host).uuids()) == ((0, b"", b""), held)


def test_the_settings_of_prepare_apply_until_release(
    machine: MachineFactory, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    configure(host, "log_level: error\n")
    gate = gate_over(host.root, tmp_path)
    assert run(gate, "prepare begin", WHOLE)[0] == 0
    configure(host, "log_level: debug\n")

    answer = run(gate, "release end", WHOLE)

    assert (answer, host.read("recorded/log")) == ((0, b"", b""), None)


# -- prepare


def test_without_lxml_prepare_names_the_package_and_changes_nothing(
    machine: MachineFactory, tmp_path: Path, bare_python: str
) -> None:
    host = machine("efifb-6.12")

    status, output, complaint = run(
        gate_over(host.root, tmp_path, python=bare_python), "prepare begin", WHOLE
    )

    sentence, hint = complaint.decode().splitlines()
    assert (status, output, host.changes, host.exists(CLAIMS)) == (1, b"", [], False)
    assert sentence.startswith("vfio-console-hook: cannot load lxml: ")
    assert "python3-lxml" in hint


def test_without_pyyaml_prepare_names_the_package_if_something_is_configured(
    machine: MachineFactory, tmp_path: Path, bare_python: str
) -> None:
    host = machine("efifb-6.12")
    import lxml

    libraries = tmp_path / "libraries"
    libraries.mkdir()
    (libraries / "lxml").symlink_to(Path(lxml.__file__).parent)
    gate = gate_over(host.root, tmp_path / "gate", python=bare_python)
    program = tmp_path / "gate/program"
    program.write_text(f"import sys\nsys.path.insert(0, {str(libraries)!r})\n{program.read_text()}")
    configure(host, "bootfb: native\n")

    status, _, complaint = run(gate, "prepare begin", WHOLE)
    configure(host, "# bootfb: native\n")
    unset = run(gate, "prepare begin", WHOLE)

    sentence, hint = complaint.decode().splitlines()
    assert (status, unset) == (1, (0, b"", b""))
    assert sentence.startswith("vfio-console-hook: cannot load PyYAML: ")
    assert "python3-yaml" in hint
