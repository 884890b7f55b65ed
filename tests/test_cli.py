"""The command, as people run it: what it prints and its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lxml import etree

from tests import events
from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, open_device, snapshot
from tests.gate import ROOT
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import cli
from vfio_console_hook.claims.directory import Claims
from vfio_console_hook.config.settings import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.log import Log

GPU = "0000:01:00.0"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
CLAIMS = "run/vfio-console-hook/claims"
Capture = pytest.CaptureFixture[str]


def run(host: FakeHost, *words: str) -> int:
    return cli.main(["--root", host.root, *words])


def xml_file(directory: Path, *addresses: str) -> str:
    path = directory / "domain.xml"
    path.write_bytes(domain_xml(*addresses))
    return str(path)


def prepare(host: FakeHost, uuid: str = UUID, address: str = GPU, name: str = "win11") -> None:
    vm = Domain(name, uuid, (Hostdev(address, True, "hostdev", 0),))
    events.prepare(host, vm, Config(holders=Holders(wait_s=0)), Log(host, name))


# -- plan


def test_plan_prints_the_gpu_the_steps_and_what_comes_back(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)

    status = run(host, "plan", "--xml", xml_file(tmp_path, GPU))

    golden = (ROOT / "tests/golden/plan-efifb-6.12.txt").read_text(encoding="utf-8")
    assert (status, capsys.readouterr()) == (0, (golden, ""))
    assert (snapshot(host), host.list("run")) == (before, ())


def test_plan_reads_the_xml_from_stdin(machine: MachineFactory) -> None:
    host = machine("vgacon-5.10")
    command = [sys.executable, "-m", "vfio_console_hook.cli", "--root", host.root, "plan"]

    done = subprocess.run(
        [*command, "--xml", "-"], input=domain_xml(GPU), capture_output=True, cwd=ROOT
    )

    golden = (ROOT / "tests/golden/plan-vgacon-5.10.txt").read_bytes()
    assert (done.returncode, done.stdout, done.stderr) == (0, golden, b"")


def test_a_refused_plan_prints_the_gpu_and_the_sentence(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("intel-bootfb-no-driver")

    status = run(host, "plan", "--xml", xml_file(tmp_path, "0000:00:02.0"))

    golden = (ROOT / "tests/golden/plan-intel-bootfb-no-driver.txt").read_text(encoding="utf-8")
    assert (status, capsys.readouterr()) == (1, (golden, ""))
    assert golden.endswith(
        "\n\nthe VM would be refused: BOOTFB of simple-framebuffer.0 holds memory of\n"
        "  0000:00:02.0, and `bootfb: aperture` cannot free it: no firmware driver is\n"
        "  bound to simple-framebuffer.0, so the kernel does not find it\n"
        "hint: try to boot with initcall_blacklist=sysfb_init\n"
    )


@pytest.mark.parametrize("addresses", [(), ("0000:01:00.1",)], ids=["none", "sound"])
def test_plan_ends_with_status_2_when_there_is_nothing_to_do(
    machine: MachineFactory, capsys: Capture, tmp_path: Path, addresses: tuple[str, ...]
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("sys/bus/pci/devices/0000:01:00.1/class", "0x040300")

    status = run(host, "plan", "--xml", xml_file(tmp_path, *addresses))

    out, err = capsys.readouterr()
    assert (status, out.startswith("nothing to do: "), err) == (2, True, "")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read {}: No such file or directory"),
        (b"<domain", "the domain XML is not well-formed: "),
        (domain_xml("0000:09:00.0"), "no PCI device 0000:09:00.0 on this machine\n"),
    ],
    ids=["no-file", "broken", "vanished"],
)
def test_plan_reports_in_one_sentence_why_it_cannot(
    machine: MachineFactory, capsys: Capture, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "domain.xml"
    if content is not None:
        path.write_bytes(content)

    status = run(machine("efifb-6.12"), "plan", "--xml", str(path))

    out, err = capsys.readouterr()
    assert (status, out) == (1, "")
    assert err.startswith("vfio-console-hook: " + sentence.format(path))
    assert len(err.splitlines()) <= 2


def test_plan_of_a_vm_names_the_other_vm_that_has_its_gpu(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    prepare(host, OTHER_UUID, name="other")

    status = run(host, "plan", "--xml", xml_file(tmp_path, GPU))

    out, err = capsys.readouterr()
    assert (status, err) == (1, "")
    assert out.endswith(
        "\nthe VM would be refused: 0000:01:00.0 belongs to the VM other, which has it now\n"
        "hint: shut other down; if it is not running, `vfio-console-hook recover`\n"
    )


def libvirt_with(directory: Path, *domains: bytes) -> str:
    """The URI of libvirt's own test driver, in which these VMs run."""
    path = directory / "node.xml"
    found = [one.decode().replace("type='kvm'", "type='test'") for one in domains]
    path.write_text(f"<node>{''.join(found)}</node>", encoding="utf-8")
    return f"test://{path}"


@pytest.mark.parametrize("name", ["win11", UUID])
def test_plan_of_a_vm_asks_libvirt_for_its_xml(
    machine: MachineFactory, capsys: Capture, tmp_path: Path, name: str
) -> None:
    host = machine("efifb-6.12")
    uri = libvirt_with(tmp_path, domain_xml(GPU))

    status = run(host, "--connect", uri, "plan", name)

    golden = (ROOT / "tests/golden/plan-efifb-6.12.txt").read_text(encoding="utf-8")
    # libvirt formats the XML itself, so the lines have other numbers.
    out, err = (re.sub(r"line \d+ of", "line N of", text) for text in capsys.readouterr())
    assert (status, out, err) == (0, re.sub(r"line \d+ of", "line N of", golden), "")


def test_plan_of_a_vm_reports_that_it_has_its_gpu_already(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("native-6.1")
    prepare(host)
    FakeLibvirt(host).detach(GPU)
    uri = libvirt_with(tmp_path, domain_xml(GPU))

    status = run(host, "--connect", uri, "plan", "win11")

    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert " ".join(out.split()).startswith(
        "VM win11 win11 is running with 0000:01:00.0; this plan is for its next start"
    )


def test_plan_of_an_unknown_vm_lists_the_vms_of_libvirt(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    uri = libvirt_with(tmp_path, domain_xml(GPU))

    status = run(machine("efifb-6.12"), "--connect", uri, "plan", "win10")

    assert (status, capsys.readouterr()) == (
        1,
        (
            "",
            f"vfio-console-hook: libvirt at {uri} has no VM win10, did you mean win11?\n",
        ),
    )


def test_plan_as_json_is_nothing_but_json(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    picture = tmp_path / "gpu.svg"

    status = run(machine("efifb-6.12"), "plan", "--json", "--svg", str(picture),
                 "--xml", xml_file(tmp_path, GPU))  # fmt: skip

    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert (status, plan["vm"], plan["verdict"], len(plan["steps"])) == (0, "win11", "start", 4)
    assert err == f"wrote {picture}\n"


def test_plan_draws_a_picture_of_before_and_after(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    picture = tmp_path / "gpu.svg"

    status = run(machine("efifb-6.12"), "plan", "--svg", str(picture),
                 "--xml", xml_file(tmp_path, GPU))  # fmt: skip

    golden = (ROOT / "tests/golden/plan-efifb-6.12.txt").read_text(encoding="utf-8")
    assert (status, capsys.readouterr()) == (0, (f"{golden}wrote {picture}\n", ""))
    svg = etree.fromstring(picture.read_bytes())
    assert (svg.tag, "win11" in picture.read_text(encoding="utf-8")) == (
        "{http://www.w3.org/2000/svg}svg", True,
    )  # fmt: skip


def test_a_picture_that_cannot_be_written_is_an_error(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    status = run(machine("efifb-6.12"), "plan", "--svg", str(tmp_path),
                 "--xml", xml_file(tmp_path, GPU))  # fmt: skip

    assert (status, capsys.readouterr().err) == (
        1, f"vfio-console-hook: cannot write {tmp_path}: Is a directory\n",
    )  # fmt: skip


@pytest.mark.parametrize("words", [(), ("win11", "--xml", "-")], ids=["neither", "both"])
def test_plan_needs_a_vm_or_its_xml(capsys: Capture, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", *words])

    assert (caught.value.code, capsys.readouterr().out) == (2, "")


def test_a_reader_of_only_the_first_line_causes_no_traceback(
    machine: MachineFactory, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    command = (sys.executable, "-m", "vfio_console_hook.cli", "--root", host.root, "plan")
    xml = xml_file(tmp_path, GPU)

    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" | :', "sh", *command, "--xml", xml],
        capture_output=True, cwd=ROOT, text=True,
    )  # fmt: skip

    assert "Traceback" not in done.stderr


# -- recover


def test_recover_leaves_the_claim_if_libvirt_does_not_answer(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("vgacon-5.10")
    prepare(host)
    before = snapshot(host)

    status = cli.main(["recover", "--wait", "0"], host)

    assert (status, capsys.readouterr()) == (
        1,
        (
            "win11: skipped: libvirt does not answer (--force if you know that"
            " it is off)\nthe host's consoles: VGA+\n",
            "",
        ),
    )
    assert (snapshot(host), Claims(host).uuids()) == (before, (UUID,))


def test_recover_with_force_releases(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("vgacon-5.10")
    before = snapshot(host)
    prepare(host)

    status = cli.main(["recover", "--force"], host)

    assert (status, capsys.readouterr()) == (
        0, ("win11: released 0000:01:00.0\nthe host's consoles: VGA+\n", ""),
    )  # fmt: skip
    assert (snapshot(host), Claims(host).uuids()) == (before, ())


def test_recover_never_touches_a_gpu_that_qemu_has_open(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("vgacon-5.10")
    prepare(host)
    FakeLibvirt(host).detach(GPU)
    open_device(host, GPU)
    before = snapshot(host)

    status = cli.main(["recover", "--force"], host)

    assert (status, capsys.readouterr()) == (
        0,
        (
            "win11: skipped: 0000:01:00.0 is in use by qemu-system-x86 (4242) with /dev/vfio/1"
            " open\nthe host's consoles: VGA+\n",
            "",
        ),
    )
    assert (snapshot(host), Claims(host).uuids()) == (before, (UUID,))


def test_recover_continues_after_a_claim_that_cannot_be_read(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("vgacon-5.10")
    prepare(host)
    host.tree.put(f"{CLAIMS}/00000000-0000-4000-8000-000000000000", "garbage")

    status = cli.main(["recover", "--force"], host)

    unread, *rest = capsys.readouterr().out.splitlines()
    assert (status, rest) == (
        1, ["win11: released 0000:01:00.0", "the host's consoles: VGA+"],
    )  # fmt: skip
    assert unread.startswith("00000000-0000-4000-8000-000000000000: cannot understand the claim ")


def test_recover_reports_that_nothing_is_held(machine: MachineFactory, capsys: Capture) -> None:
    status = cli.main(["recover"], machine("vgacon-5.10"))

    out, err = capsys.readouterr()
    assert (status, out.splitlines()[1:], err) == (0, ["the host's consoles: VGA+"], "")


# -- record


def test_record_writes_a_snapshot_and_asks_to_read_it_first(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    file = tmp_path / "machine.tree"

    status = run(machine("efifb-6.12"), "record", str(file))

    text = file.read_text(encoding="utf-8")
    assert text.startswith("# vfio-console-hook machine\n")
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"wrote {len(text.splitlines())} lines to {file}"
    assert out.splitlines()[1].startswith("read it before you publish it")


def test_record_to_a_path_that_cannot_be_written_is_one_sentence(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    status = run(machine("efifb-6.12"), "record", str(tmp_path))

    assert (status, capsys.readouterr()) == (
        1, ("", f"vfio-console-hook: cannot write {tmp_path}: Is a directory\n"),
    )  # fmt: skip


# -- take and give


VM = Domain("win11", UUID, (Hostdev("0000:01:00.0", True, "hostdev", 0),))


def act(host: FakeHost, *words: str) -> int:
    """Run a command on a machine that reacts; a snapshot does not."""
    return cli.main(words, host)


def test_after_take_and_give_the_host_is_as_before(machine: MachineFactory, capfd: Capture) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)

    took = act(host, "take", "01:00.0")
    free = host.read("proc/iomem") or ""
    gave = act(host, "give", "0000:01:00.0")

    out, err = capfd.readouterr()
    assert (took, gave, err, "efifb" in free) == (0, 0, "", False)
    assert [line for line in out.splitlines() if line[0] != " "] == [
        "taking 0000:01:00.0: 4 steps",
        "took 0000:01:00.0; release it with `vfio-console-hook give 0000:01:00.0`",
        "afterwards: the firmware console comes back on efi-framebuffer.0",
        "the host's consoles: dummy device",
        "0000:01:00.0: released 0000:01:00.0",
        "the host's consoles: framebuffer console on fb0 (EFI VGA)",
    ]
    assert snapshot(host) == before


def test_take_frees_a_gpu_although_the_hook_is_not_enabled(
    machine: MachineFactory, capfd: Capture
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("etc/vfio-console-hook/default.yaml", "enabled: false\n")

    status = act(host, "take", "0000:01:00.0")

    assert (status, capfd.readouterr().err) == (0, "")
    assert len(Claims(host).uuids()) == 1
    assert "efifb" not in (host.read("proc/iomem") or "")


def test_a_take_that_runs_out_of_time_is_undone(machine: MachineFactory, capfd: Capture) -> None:
    host = machine("efifb-6.12")
    host.tree.put("etc/vfio-console-hook/default.yaml", "timeout_s: 4\n")
    before = snapshot(host)

    status = act(FakeHost(host.root, hang="/unbind"), "take", "0000:01:00.0")

    assert (status, capfd.readouterr().err) == (
        1,
        "vfio-console-hook: timed out after 2.6 s, at `echo efi-framebuffer.0 >"
        " /sys/bus/platform/drivers/efi-framebuffer/unbind`\n"
        "hint: increase `timeout_s`, or look into `journalctl -k`\n",
    )
    assert (snapshot(host), Claims(host).uuids()) == (before, ())


def test_a_gpu_can_be_bound_to_vfio_pci_by_hand(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("native-6.1")
    before = snapshot(host)

    act(host, "take", "--vfio", "0000:01:00.0")
    driver = host.link_name("sys/bus/pci/devices/0000:01:00.0/driver")
    status = act(host, "give", "0000:01:00.0")

    assert (status, driver, capsys.readouterr().err) == (0, "vfio-pci", "")
    assert host.link_name("sys/bus/pci/devices/0000:01:00.0/driver") == "bochs-drm"
    assert host.read("proc/fb") == before["proc/fb"].strip()
    assert Claims(host).uuids() == ()


def test_a_gpu_taken_by_hand_is_not_given_to_a_vm_and_not_recovered(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("efifb-6.12")
    act(host, "take", "0000:01:00.0")
    capsys.readouterr()

    with pytest.raises(RefusedError) as caught:
        events.prepare(host, VM, Config(), Log(host, "win11"))
    status = act(host, "recover", "--force")

    assert (caught.value.text, caught.value.hint) == (
        "0000:01:00.0 was taken by hand, so no VM may have it through this hook",
        "run `vfio-console-hook give 0000:01:00.0`",
    )
    assert (status, capsys.readouterr().out.splitlines()[0]) == (
        0,
        "0000:01:00.0: skipped: it was taken by hand (`vfio-console-hook give 0000:01:00.0`)",
    )
    assert len(Claims(host).uuids()) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("take", "0000:00:00.0"), "no PCI device 0000:00:00.0 on this machine"),
        (("give", "0000:01:00.0"), "0000:01:00.0 was not taken by hand"),
    ],
)
def test_an_address_that_cannot_be_taken_or_released_is_an_error(
    machine: MachineFactory, capsys: Capture, arguments: tuple[str, ...], error: str
) -> None:
    host = machine("efifb-6.12")

    status = act(host, *arguments)

    assert (status, capsys.readouterr().err.splitlines()[0]) == (1, f"vfio-console-hook: {error}")


def test_a_gpu_cannot_be_taken_twice(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    act(host, "take", "0000:01:00.0")

    status = act(host, "take", "0000:01:00.0")

    assert (status, capsys.readouterr().err.splitlines()[0]) == (
        1, "vfio-console-hook: 0000:01:00.0 is already taken by hand",
    )  # fmt: skip


def test_a_gpu_in_use_is_not_released(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    act(host, "take", "--vfio", "0000:01:00.0")
    open_device(host, "0000:01:00.0")

    status = act(host, "give", "0000:01:00.0")

    error = "0000:01:00.0 is in use by qemu-system-x86 (4242)"
    assert (status, error in capsys.readouterr().err) == (1, True)


def test_status_lists_gpus_on_vfio_pci_without_a_claim(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("native-6.1")
    FakeLibvirt(host).detach("0000:01:00.0")

    run(host, "status")

    assert "0000:01:00.0 is on vfio-pci, but not through this hook" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["plan", "a\nb\033[2J"], ["a\nb"], ["check-config", "a\nb"], ["take", "a\rb"]]
)
def test_no_argument_starts_a_new_line_or_controls_a_terminal(
    machine: MachineFactory, capsys: Capture, words: list[str]
) -> None:
    host = machine("efifb-6.12")

    try:
        status = cli.main(words, host=host)
    except SystemExit as end:
        status = int(end.code or 0)

    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert status in (1, 2)
    assert lines
    assert all(line[:-1].isprintable() and line.endswith("\n") for line in lines)
    assert all(line.startswith(("vfio-console-hook: ", "hint: ")) for line in lines)


def test_a_name_that_is_not_text_can_be_printed(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.yaml"
    with open(name, "wb") as file:
        file.write(b"apu: refuse\n")

    argv = [sys.executable, "-m", "vfio_console_hook.cli", "--root", str(tmp_path), "check-config"]
    done = subprocess.run(
        [*map(os.fsencode, argv), name], capture_output=True, cwd=ROOT, env={"LC_ALL": "C.UTF-8"}
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"/\\udcff.yaml: no mistakes\n")


@pytest.mark.parametrize("options", [(), ("--vfio",)])
def test_take_of_a_virtual_function_takes_nothing_and_is_an_error(
    machine: MachineFactory, capsys: Capture, options: tuple[str, ...]
) -> None:
    host = machine("intel-sriov-vf")

    status = act(host, "take", *options, "0000:00:02.1")

    output = capsys.readouterr()
    assert (status, output.out, host.changes, Claims(host).uuids()) == (1, "", [], ())
    assert "0000:00:02.1 is a virtual function" in output.err
