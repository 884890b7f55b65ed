"""check-config: the mistakes in files, and the settings of a VM."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.conftest import Golden, MachineFactory
from tests.fakehost import FakeHost
from vfio_console_hook import cli
from vfio_console_hook.config import load
from vfio_console_hook.config.keys import KEYS
from vfio_console_hook.config.settings import Config

FILES = "etc/vfio-console-hook"
DEFAULT = f"{FILES}/default.yaml"
WIN11 = f"{FILES}/vms/win11.yaml"
UUID = "0b0e6f6c-5b5a-4f0e-8a55-1f1f7c0e6b0a"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def host(machine: MachineFactory) -> FakeHost:
    return machine("efifb-6.12")


def put(host: FakeHost, path: str, text: str, mode: int = 0o644) -> None:
    """A file of the configuration, in directories that only its owner can write to."""
    host.tree.put(path, text)
    Path(host.path(path)).chmod(mode)
    while path := os.path.dirname(path):
        Path(host.path(path)).chmod(0o755)


def define_vm(host: FakeHost, name: str, uuid: str) -> None:
    """Define a VM in libvirt."""
    host.tree.put("libvirt/1/name", name)
    host.tree.put("libvirt/1/uuid", uuid)
    host.tree.put("libvirt/1/xml", "<domain/>")


def run(host: FakeHost, *words: str) -> int:
    return cli.main(["check-config", *words], host)


# -- files


def test_all_installed_files_are_checked_by_default(host: FakeHost, capsys: Capture) -> None:
    put(host, DEFAULT, "bootfb: native\n")
    put(host, WIN11, "\n# nothing set\n")

    status = run(host)

    shown = f"/{DEFAULT}: no mistakes\n/{WIN11}: no mistakes\n"
    assert (status, capsys.readouterr()) == (0, (shown, ""))


def test_without_any_file_the_defaults_apply(host: FakeHost, capsys: Capture) -> None:
    status = run(host)

    out, err = capsys.readouterr()
    assert (status, err, f"no file in /{FILES}" in out, out.count("\n")) == (0, "", True, 1)


def test_each_mistake_in_each_file_has_a_line_of_its_own(host: FakeHost, capsys: Capture) -> None:
    put(host, DEFAULT, "stage: []\nbootfb: Native\nholders:\n  wait_s: soon\n" + "zzz: 1\n" * 30)
    put(host, WIN11, "apu: allow\n")
    put(host, f"{FILES}/vms/debian.yaml", "holders:\n\twait_s: 3\n")

    status = run(host)

    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert (status, err, len(lines)) == (1, "", 35)
    assert lines[:3] == [
        f"/{DEFAULT}:1:1: unknown key 'stage', did you mean 'stages'?",
        f"/{DEFAULT}:2:9: bad value 'Native' for 'bootfb', it must be one of aperture, refuse,"
        " native, rescan, did you mean native?",
        f"/{DEFAULT}:4:11: bad value 'soon' for 'holders.wait_s', it must be a number from 0 to"
        " 600",
    ]
    assert lines[32:] == [
        f"/{DEFAULT}:34:1: key 'zzz' is already set in line 5",
        f"/{FILES}/vms/debian.yaml:2:1: a tab, where only spaces may indent",
        f"/{WIN11}: no mistakes",
    ]


def test_a_file_that_others_can_write_is_a_mistake(host: FakeHost, capsys: Capture) -> None:
    put(host, WIN11, "apu: allow\n", mode=0o666)

    status = run(host)

    shown = f"/{WIN11} can be written by others than root, run `chmod go-w /{WIN11}`\n"
    assert (status, capsys.readouterr()) == (1, (shown, ""))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("win11.yaml", f"the file for the VM win11 is /{load.VMS}/win11.yaml"),
        ("default.yml", f"the file for all VMs is /{DEFAULT}"),
        ("vms/win11.yml", "its name must be that of a VM, and .yaml"),
        ("vms/win11.yaml.bak", "its name must be that of a VM, and .yaml"),
        ("vms/.yaml", "its name must be that of a VM, and .yaml"),
    ],
)
def test_a_file_that_is_never_read_is_a_mistake(
    host: FakeHost, capsys: Capture, name: str, advice: str
) -> None:
    put(host, f"{FILES}/{name}", "apu: allow\n")

    status = run(host)

    assert (status, capsys.readouterr().out) == (1, f"/{FILES}/{name} is never read; {advice}\n")


def test_the_new_default_that_install_puts_beside_the_old_one_is_no_mistake(
    host: FakeHost, capsys: Capture
) -> None:
    put(host, DEFAULT, "apu: allow\n")
    put(host, f"{DEFAULT}.new", "# as shipped\n")

    assert (run(host), capsys.readouterr().out) == (0, f"/{DEFAULT}: no mistakes\n")


def test_a_file_can_be_checked_before_it_is_installed(
    host: FakeHost, capsys: Capture, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("apu: allow\n")
    bad.write_text("apu: perhaps\n")
    for file in (good, bad):
        file.chmod(0o644)

    status = run(host, str(good), str(bad))

    assert (status, capsys.readouterr().out.splitlines()) == (
        1,
        [
            f"{good}: no mistakes",
            f"{bad}:1:6: bad value 'perhaps' for 'apu', it must be one of refuse, allow",
        ],
    )


def test_a_file_that_would_be_refused_for_its_mode_is_checked_and_that_is_noted(
    host: FakeHost, capsys: Capture, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("apu: allow\n")
    file.chmod(0o666)
    owner = os.stat(file).st_uid
    why = "can be written by others than root" if owner == 0 else f"belongs to user {owner}"

    status = run(host, str(file))

    out, err = capsys.readouterr()
    assert (status, out) == (0, f"{file}: no mistakes\n")
    assert err.startswith(f"note: {file} {why}") and err.endswith(f"refused in /{FILES}\n")


def test_an_installed_file_may_be_named(host: FakeHost, capsys: Capture) -> None:
    put(host, DEFAULT, "nonsense\n")
    put(host, WIN11, "apu: allow\n", mode=0o666)

    status = run(host, f"/{WIN11}")

    assert (status, capsys.readouterr().out) == (
        1, f"/{WIN11} can be written by others than root, run `chmod go-w /{WIN11}`\n",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["nope.yaml", f"/{FILES}/vms/nope.yaml"])
def test_a_file_that_is_not_there_is_one_sentence(
    host: FakeHost, capsys: Capture, name: str
) -> None:
    status = run(host, name)

    assert (status, capsys.readouterr()) == (
        1,
        (
            "",
            f"vfio-console-hook: there is no file {name}\n"
            "hint: --vm VM prints the settings of a VM\n",
        ),
    )


def test_a_directory_is_one_sentence(host: FakeHost, capsys: Capture, tmp_path: Path) -> None:
    status = run(host, str(tmp_path))

    assert (status, capsys.readouterr().err) == (
        1, f"vfio-console-hook: cannot read {tmp_path}: Is a directory\n",
    )  # fmt: skip


def test_files_and_mistakes_as_json(host: FakeHost, capsys: Capture) -> None:
    put(host, DEFAULT, "bootfb: 1\n")
    put(host, WIN11, "", mode=0o666)
    put(host, f"{FILES}/vms/ok.yaml", "")

    status = run(host, "--json")

    assert (status, json.loads(capsys.readouterr().out)) == (
        1,
        [
            {
                "file": f"/{DEFAULT}",
                "mistakes": [
                    {
                        "line": 1,
                        "column": 9,
                        "text": "bad value 1 for 'bootfb', it must be one of aperture, refuse,"
                        " native, rescan",
                    }
                ],
                "warnings": [],
            },
            {"file": f"/{FILES}/vms/ok.yaml", "mistakes": [], "warnings": []},
            {
                "file": f"/{WIN11}",
                "mistakes": [
                    {
                        "line": None,
                        "column": None,
                        "text": f"can be written by others than root, run `chmod go-w /{WIN11}`",
                    }
                ],
                "warnings": [],
            },
        ],
    )


# -- the settings of a VM

SETTINGS = """\
services:
  - display-manager
  - name: sddm
    active: /sbin/rc-service sddm status
    stop: /sbin/rc-service sddm stop
    start: /sbin/rc-service sddm start
stages: [fbcon, fbdev]
keep_console: 0000:02:00.0
holders:
  terminate: [Xorg, Web Content, '1']
  grace_s: 0.5
enabled: yes
"""


def configured(host: FakeHost) -> None:
    put(host, DEFAULT, "# for all\nbootfb: native\nholders:\n  wait_s: 120\n  grace_s: 7\n")
    put(host, WIN11, SETTINGS)
    define_vm(host, "win11", UUID)


def test_each_setting_of_a_vm_is_shown_with_its_origin(
    host: FakeHost, capsys: Capture, golden: Golden
) -> None:
    configured(host)

    status = run(host, "--vm", "win11")

    out, err = capsys.readouterr()
    golden("check-config-vm", out)
    assert (status, err) == (0, "")
    assert [line for line in out.splitlines() if len(line) > 80] == []


def test_the_settings_of_a_vm_can_be_pasted_into_its_file(host: FakeHost, capsys: Capture) -> None:
    configured(host)
    before = load.configuration(host, "win11", UUID)
    run(host, "--vm", "win11")
    shown = capsys.readouterr().out
    put(host, DEFAULT, "")
    put(host, WIN11, shown)

    assert load.configuration(host, "win11", UUID) == before
    assert before != Config()


def test_the_keys_have_the_order_of_the_documentation(host: FakeHost, capsys: Capture) -> None:
    define_vm(host, "win11", UUID)

    run(host, "--vm", "win11")

    shown = yaml.safe_load(capsys.readouterr().out)
    assert list(shown) == list(vars(Config()))
    assert list(shown["holders"]) == ["wait_s", "terminate", "grace_s"]


def test_a_vm_is_found_by_the_uuid_that_libvirt_knows_and_its_file_by_the_name(
    host: FakeHost, capsys: Capture
) -> None:
    configured(host)

    run(host, "--vm", UUID.upper())

    out, err = capsys.readouterr()
    assert (f"win11 ({UUID})" in out.splitlines()[0], err) == (True, "")
    assert f"# /{WIN11}:7\n" in out


@pytest.mark.parametrize(
    ("unasked", "note"),
    [
        ("no libvirtd", "no libvirtd; only a file named win11.yaml applies"),
        (None, "libvirt has no VM win11"),
    ],
)
def test_a_vm_that_libvirt_does_not_know_is_configured_by_the_name_that_was_typed(
    host: FakeHost, capsys: Capture, unasked: str | None, note: str
) -> None:
    put(host, WIN11, "apu: allow\n")
    define_vm(host, "debian", UUID)
    if unasked:
        host.tree.put("libvirt/unasked", unasked)

    status = run(host, "--vm", "win11")

    out, err = capsys.readouterr()
    assert (status, err) == (0, f"note: {note}\n")
    assert f"apu: allow                      # /{WIN11}:1\n" in out


def test_a_mistake_in_the_files_of_a_vm_is_one_sentence(host: FakeHost, capsys: Capture) -> None:
    configured(host)
    put(host, WIN11, "apu: perhaps\n")

    status = run(host, "--vm", "win11")

    assert (status, capsys.readouterr()) == (
        1,
        (
            "",
            f"vfio-console-hook: /{WIN11}:1:6: bad value 'perhaps' for 'apu', it must be one of"
            " refuse, allow\n",
        ),
    )


def test_a_vm_as_json(host: FakeHost, capsys: Capture) -> None:
    configured(host)

    run(host, "--vm", "win11", "--json")

    shown = json.loads(capsys.readouterr().out)
    assert (shown["vm"], shown["uuid"]) == ("win11", UUID)
    assert list(shown["settings"]) == [key.name for key in KEYS]
    assert shown["settings"]["bootfb"] == {"value": "native", "file": f"/{DEFAULT}", "line": 2}
    assert shown["settings"]["apu"] == {"value": "refuse", "file": None, "line": None}
    assert shown["settings"]["holders.wait_s"] == {
        "value": 120, "file": f"/{DEFAULT}", "line": 4, "shortened_to": 15,
    }  # fmt: skip
    assert shown["settings"]["services"]["value"] == [
        "display-manager",
        {
            "name": "sddm",
            "active": "/sbin/rc-service sddm status",
            "stop": "/sbin/rc-service sddm stop",
            "start": "/sbin/rc-service sddm start",
        },
    ]


def test_files_and_a_vm_at_once_are_refused(host: FakeHost, capsys: Capture) -> None:
    status = run(host, "x.yaml", "--vm", "win11")

    out, err = capsys.readouterr()
    assert (status, out, len(err.splitlines())) == (2, "", 2)


def test_reading_the_configuration_changes_nothing(host: FakeHost) -> None:
    configured(host)
    before = sorted(str(path) for path in Path(host.root).rglob("*"))

    run(host)
    run(host, "--vm", "win11")

    assert sorted(str(path) for path in Path(host.root).rglob("*")) == before
