"""The command, as people run it: what it prints and its exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, FakeLibvirt, open_device, snapshot
from tests.gate import ROOT
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import __version__, cli, events
from vfio_console_hook.config import Config, Holders
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import RefusedError
from vfio_console_hook.journal import Journal, write_status
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

    assert (status, capsys.readouterr()) == (
        1,
        (
            "GPU 0000:00:02.0  VGA controller (class 0300), no driver of its own\n"
            "  BAR 0  c8000000-c8ffffff\n"
            "  BAR 2  e0000000-efffffff\n"
            "    BOOTFB       e0000000-e02fffff\n",
            "vfio-console-hook: BOOTFB of simple-framebuffer.0 holds memory of 0000:00:02.0, and"
            " this kernel does not free it for vfio-pci\n"
            "hint: boot with initcall_blacklist=sysfb_init\n",
        ),
    )


@pytest.mark.parametrize("addresses", [(), ("0000:01:00.1",)], ids=["none", "sound"])
def test_plan_says_when_there_is_nothing_to_do(
    machine: MachineFactory, capsys: Capture, tmp_path: Path, addresses: tuple[str, ...]
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("sys/bus/pci/devices/0000:01:00.1/class", "0x040300")

    status = run(host, "plan", "--xml", xml_file(tmp_path, *addresses))

    assert (status, capsys.readouterr()) == (
        2, ("win11 has no GPU of this host: nothing to do\n", ""),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read {}: No such file or directory"),
        (b"<domain", "the domain XML is not well-formed: "),
        (domain_xml("0000:09:00.0"), "no PCI device 0000:09:00.0 on this machine\n"),
    ],
    ids=["no-file", "broken", "vanished"],
)
def test_plan_tells_in_one_sentence_why_it_cannot(
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


def test_plan_of_a_vm_whose_gpu_another_has_names_it(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    host = machine("efifb-6.12")
    prepare(host, OTHER_UUID, name="other")

    status = run(host, "plan", "--xml", xml_file(tmp_path, GPU))

    assert (status, capsys.readouterr().err) == (
        1,
        "vfio-console-hook: 0000:01:00.0 belongs to the VM other, which has it now\n"
        "hint: shut other down; if it does not run, `vfio-console-hook recover`\n",
    )


def test_who_reads_only_the_first_line_gets_no_traceback(
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


# -- status


def test_status_of_a_host_where_no_vm_holds_anything(
    machine: MachineFactory, capsys: Capture
) -> None:
    status = run(machine("efifb-6.12"), "status")

    assert (status, capsys.readouterr()) == (
        0,
        ("no VM holds a GPU\nconsoles: framebuffer console on fb0 (EFI VGA)\n", ""),
    )


def test_status_says_who_holds_what_and_how_to_undo_it_by_hand(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("efifb-6.12")
    prepare(host)

    status = run(host, "status")

    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", out) == (
        f"win11 ({UUID}) holds 0000:01:00.0 since TIME\n"
        "  done: vfio-pci would remove efi-framebuffer.0 for good if it saw whose it is\n"
        "    undo by hand: setpci -s 0000:01:00.0 COMMAND=2:2\n"
        "  done: efifb draws the firmware's picture in its memory\n"
        "    undo by hand: echo efi-framebuffer.0 >"
        " /sys/bus/platform/drivers/efi-framebuffer/bind\n"
        "  done: the host's consoles are on it, release sees to it that they come back\n"
        "    undo by hand: for v in /sys/class/vtconsole/*; do grep -q 'frame buffer' $v/name &&"
        " echo 1 > $v/bind; done\n"
        "consoles: dummy device\n"
    )


def test_status_tells_the_last_refusal(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    write_status(host, "win11", "prepare", "0000:01:00.0 is in use by Xorg (9)")

    run(host, "status")

    assert re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", capsys.readouterr().out) == (
        "no VM holds a GPU\n"
        "consoles: framebuffer console on fb0 (EFI VGA)\n"
        "last event: TIME win11 prepare: 0000:01:00.0 is in use by Xorg (9)\n"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"time": "x"}', "\0"])
def test_a_status_file_that_is_garbage_does_not_matter(
    machine: MachineFactory, capsys: Capture, text: str
) -> None:
    host = machine("efifb-6.12")
    host.tree.put("run/vfio-console-hook.status", text)

    status = run(host, "status")

    assert (status, capsys.readouterr()) == (
        0,
        ("no VM holds a GPU\nconsoles: framebuffer console on fb0 (EFI VGA)\n", ""),
    )


def test_status_names_a_claim_that_cannot_be_read_and_goes_on(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("efifb-6.12")
    prepare(host)
    host.tree.put(f"{CLAIMS}/00000000-0000-4000-8000-000000000000", "garbage")

    status = run(host, "status")

    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert out.startswith(
        f"cannot understand the record /{CLAIMS}/00000000-0000-4000-8000-000000000000: "
    )
    assert f"\nwin11 ({UUID}) holds 0000:01:00.0 since " in out


# -- recover: on a recorded machine, so with steps whose undo needs no kernel


def test_recover_asks_libvirt_and_without_its_word_leaves_the_claim(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("vgacon-5.10")
    prepare(host)
    before = snapshot(host)

    status = run(host, "recover", "--wait", "0")

    assert (status, capsys.readouterr()) == (
        1,
        (
            "win11: left alone, libvirt does not say whether it runs (--force if you know that"
            " it is off)\nthe host's consoles: VGA+\n",
            "",
        ),
    )
    assert (snapshot(host), Journal(host).uuids()) == (before, (UUID,))


def test_recover_with_force_gives_back(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("vgacon-5.10")
    before = snapshot(host)
    prepare(host)

    status = run(host, "recover", "--force")

    assert (status, capsys.readouterr()) == (
        0, ("win11: gave back 0000:01:00.0\nthe host's consoles: VGA+\n", ""),
    )  # fmt: skip
    assert (snapshot(host), Journal(host).uuids()) == (before, ())


def test_recover_never_touches_a_gpu_that_qemu_has_open(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("vgacon-5.10")
    prepare(host)
    FakeLibvirt(host).detach(GPU)
    open_device(host, GPU)
    before = snapshot(host)

    status = run(host, "recover", "--force")

    assert (status, capsys.readouterr()) == (
        0,
        (
            "win11: left alone, 0000:01:00.0 is in use by qemu-system-x86 (4242) with /dev/vfio/1"
            " open\nthe host's consoles: VGA+\n",
            "",
        ),
    )
    assert (snapshot(host), Journal(host).uuids()) == (before, (UUID,))


def test_recover_goes_on_after_a_claim_that_cannot_be_read(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("vgacon-5.10")
    prepare(host)
    host.tree.put(f"{CLAIMS}/00000000-0000-4000-8000-000000000000", "garbage")

    status = run(host, "recover", "--force")

    unread, *rest = capsys.readouterr().out.splitlines()
    assert (status, rest) == (
        1, ["win11: gave back 0000:01:00.0", "the host's consoles: VGA+"],
    )  # fmt: skip
    assert unread.startswith("00000000-0000-4000-8000-000000000000: cannot understand the record ")


def test_recover_where_nothing_is_held_only_tells_where_the_consoles_are(
    machine: MachineFactory, capsys: Capture
) -> None:
    status = run(machine("vgacon-5.10"), "recover")

    assert (status, capsys.readouterr()) == (0, ("the host's consoles: VGA+\n", ""))


# -- check-config, record, usage


def test_check_config_prints_every_value(machine: MachineFactory, capsys: Capture) -> None:
    status = run(machine("efifb-6.12"), "check-config", "win11")

    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    keys = [line.partition(":")[0] for line in out.splitlines() if line[0] not in " -"]
    assert keys == list(vars(Config()))


def test_check_config_prints_services_as_they_are_written(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("efifb-6.12")
    written = {"name": "x", "active": "/bin/a b", "stop": "/bin/c", "start": "/bin/d"}
    host.tree.put(
        "etc/vfio-console-hook/default.yaml", f"services: [gdm.service, {json.dumps(written)}]\n"
    )
    for directory in ("etc", "etc/vfio-console-hook", "etc/vfio-console-hook/default.yaml"):
        Path(host.path(directory)).chmod(0o755)

    run(host, "check-config")

    assert yaml.safe_load(capsys.readouterr().out)["services"] == ["gdm.service", written]


def test_check_config_tells_every_mistake(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    host.tree.put("etc/vfio-console-hook/default.yaml", "stage: []\nbootfb: maybe\n")
    for directory in ("etc", "etc/vfio-console-hook", "etc/vfio-console-hook/default.yaml"):
        Path(host.path(directory)).chmod(0o755)

    status = run(host, "check-config")

    out, err = capsys.readouterr()
    assert (status, out) == (1, "")
    assert err.startswith("vfio-console-hook: /etc/vfio-console-hook/default.yaml:1: ")
    assert "/etc/vfio-console-hook/default.yaml:2: " in err


def test_record_writes_the_machine_down(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    file = tmp_path / "machine.tree"

    status = run(machine("efifb-6.12"), "record", str(file))

    text = file.read_text(encoding="utf-8")
    assert text.startswith("# vfio-console-hook machine\n")
    assert (status, capsys.readouterr()) == (
        0, (f"wrote {len(text.splitlines())} lines to {file}\n", ""),
    )  # fmt: skip


def test_record_to_where_nothing_can_be_written_is_one_sentence(
    machine: MachineFactory, capsys: Capture, tmp_path: Path
) -> None:
    status = run(machine("efifb-6.12"), "record", str(tmp_path))

    assert (status, capsys.readouterr()) == (
        1, ("", f"vfio-console-hook: cannot write {tmp_path}: Is a directory\n"),
    )  # fmt: skip


@pytest.mark.parametrize("words", [[], ["plan"], ["nonsense"], ["status", "--nonsense"]])
def test_wrong_usage_is_status_2(capsys: Capture, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)

    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.startswith("usage: vfio-console-hook")) == (2, "", True)


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])

    assert (caught.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")


# -- take and give


VM = Domain("win11", UUID, (Hostdev("0000:01:00.0", True, "hostdev", 0),))


def act(host: FakeHost, *words: str) -> int:
    """A command on a machine that reacts, which a recorded one does not."""
    return cli.main(words, host)


def test_a_gpu_taken_by_hand_and_given_back_leaves_the_host_as_it_was(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("efifb-6.12")
    before = snapshot(host)

    took = act(host, "take", "01:00.0")
    free = host.read("proc/iomem") or ""
    gave = act(host, "give", "0000:01:00.0")

    out, err = capsys.readouterr()
    assert (took, gave, err, "efifb" in free) == (0, 0, "", False)
    assert out.splitlines() == [
        "took 0000:01:00.0; give it back with `vfio-console-hook give 0000:01:00.0`",
        "the host's consoles: dummy device",
        "0000:01:00.0: gave back 0000:01:00.0",
        "the host's consoles: framebuffer console on fb0 (EFI VGA)",
    ]
    assert snapshot(host) == before


def test_a_gpu_can_be_bound_to_vfio_pci_by_hand(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("native-6.1")
    before = snapshot(host)

    act(host, "take", "--vfio", "0000:01:00.0")
    driver = host.link_name("sys/bus/pci/devices/0000:01:00.0/driver")
    status = act(host, "give", "0000:01:00.0")

    assert (status, driver, capsys.readouterr().err) == (0, "vfio-pci", "")
    assert host.link_name("sys/bus/pci/devices/0000:01:00.0/driver") == "bochs-drm"
    assert host.read("proc/fb") == before["proc/fb"].strip()
    assert Journal(host).uuids() == ()


def test_what_was_taken_by_hand_is_not_handed_to_a_vm_and_not_recovered(
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
        "0000:01:00.0: left alone, it was taken by hand (`vfio-console-hook give 0000:01:00.0`)",
    )
    assert len(Journal(host).uuids()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("take", "0000:00:00.0"), "no PCI device 0000:00:00.0 on this machine"),
        (("give", "0000:01:00.0"), "0000:01:00.0 was not taken by hand"),
    ],
)
def test_what_cannot_be_taken_or_given_is_told(
    machine: MachineFactory, capsys: Capture, arguments: tuple[str, ...], told: str
) -> None:
    host = machine("efifb-6.12")

    status = act(host, *arguments)

    assert (status, capsys.readouterr().err.splitlines()[0]) == (1, f"vfio-console-hook: {told}")


def test_a_gpu_taken_twice_is_told(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    act(host, "take", "0000:01:00.0")

    status = act(host, "take", "0000:01:00.0")

    assert (status, capsys.readouterr().err.splitlines()[0]) == (
        1, "vfio-console-hook: 0000:01:00.0 is taken by hand already",
    )  # fmt: skip


def test_a_gpu_in_use_is_not_given_back(machine: MachineFactory, capsys: Capture) -> None:
    host = machine("efifb-6.12")
    act(host, "take", "--vfio", "0000:01:00.0")
    open_device(host, "0000:01:00.0")

    status = act(host, "give", "0000:01:00.0")

    told = "0000:01:00.0 cannot be given back: 0000:01:00.0 is in use by qemu-system-x86 (4242)"
    assert (status, told in capsys.readouterr().err) == (1, True)


def test_status_tells_of_gpus_that_no_hook_has_seen(
    machine: MachineFactory, capsys: Capture
) -> None:
    host = machine("native-6.1")
    FakeLibvirt(host).detach("0000:01:00.0")

    run(host, "status")

    assert "0000:01:00.0 is on vfio-pci, but not through this hook" in capsys.readouterr().out
