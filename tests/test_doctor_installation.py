"""doctor: the hook where libvirt looks for it, the program, and the hooks of others."""

from __future__ import annotations

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost, systemd
from tests.installed import (
    CHAINED,
    DROPIN,
    GATE,
    UNIT,
    advice,
    answer,
    failure,
    file,
    folder,
    found,
    gate_text,
    hook,
    refuse,
)
from vfio_console_hook.commands.doctor import installation, other_hooks
from vfio_console_hook.commands.doctor.areas import PASS, WARN, Finding, Subject

LIBVIRTD = ("/usr/sbin/libvirtd", "--version")
FOREIGN = "#!/bin/sh\nexit 0\n"
DISPATCHED = "etc/libvirt/hooks/qemu.d/win11/prepare/begin/start.sh"


@pytest.fixture
def host(machine: MachineFactory) -> FakeHost:
    return hook(machine("efifb-6.12"))


def test_an_installed_hook_is_in_order(host: FakeHost) -> None:
    assert found(installation.hook, host) == [
        ("PASS", "/etc/libvirt/hooks/qemu is there"),
        ("PASS", "#!/bin/sh"),
    ]


def test_a_host_without_the_hook_is_told_to_install_it(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    folder(host, "etc/libvirt")

    assert found(installation.hook, host) == [("FAIL", "it is not installed: VMs start without it")]
    assert advice(installation.hook, host) == ["run ./install.sh as root"]


def test_nothing_is_known_of_a_recorded_machine_without_libvirt(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    told = [one for check in installation.CHECKS for one in check(Subject(host))]

    assert told == [
        Finding(WARN, "hook", "not in this recorded machine"),
        Finding(WARN, "Python", "not in this recorded machine"),
    ]


def test_a_hook_that_is_not_executable_is_told(host: FakeHost) -> None:
    file(host, GATE, gate_text(), mode=0o644)

    assert found(installation.hook, host) == [
        ("FAIL", "/etc/libvirt/hooks/qemu is not executable: VMs start as if it were not there")
    ]
    assert advice(installation.hook, host) == ["chmod 755 /etc/libvirt/hooks/qemu"]


def test_a_hook_that_is_not_executable_is_told_once(host: FakeHost) -> None:
    file(host, GATE, gate_text(), mode=0o644)

    assert found(other_hooks.other_hooks, host) == [("PASS", "none")]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (gate_text().replace("\n", "\r\n"), "has line ends of Windows (CRLF)"),
        (gate_text().replace("#!/bin/sh", "#!/bin/nosh"), "needs /bin/nosh, which cannot be run"),
        (gate_text().replace("#!/bin/sh", "#!"), "needs a program, which cannot be run"),
        ("\ufeff" + gate_text(), "does not begin with #!"),
    ],
    ids=["CRLF", "interpreter", "no interpreter", "byte order mark"],
)
def test_a_hook_that_cannot_be_executed_is_told(host: FakeHost, text: str, wrong: str) -> None:
    with open(host.path(GATE), "w", encoding="utf-8", newline="") as out:
        out.write(text)

    level, said = found(installation.hook, host)[-1]

    assert (level, wrong in said, "no VM starts" in said) == ("FAIL", True, True)


def test_an_interpreter_that_is_not_executable_is_told(host: FakeHost) -> None:
    host.tree.put("stat/bin/sh", "100644 0 0 1")

    assert found(installation.hook, host)[-1][0] == "FAIL"


def test_two_gates_get_each_event_twice(host: FakeHost) -> None:
    file(host, DROPIN, gate_text())

    told = found(installation.hook, host)[-1]

    assert told == (
        "WARN", "each event comes twice, to /etc/libvirt/hooks/qemu and"
        " /etc/libvirt/hooks/qemu.d/50-vfio-console-hook",
    )  # fmt: skip
    assert advice(installation.hook, host) == ["rm /etc/libvirt/hooks/qemu.d/50-vfio-console-hook"]


def test_a_gate_that_another_hook_calls_is_one(machine: MachineFactory) -> None:
    host = hook(machine("efifb-6.12"), CHAINED)
    file(host, GATE, f'#!/bin/sh\n[ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1\n')

    assert found(installation.hook, host)[0] == (
        "PASS", "/etc/libvirt/hooks/vfio-console-hook is there"
    )  # fmt: skip


def test_a_gate_that_nobody_calls_is_told(machine: MachineFactory) -> None:
    host = hook(machine("efifb-6.12"), CHAINED)
    file(host, GATE, f"#!/bin/sh\n# /{CHAINED} is not called\nexit 0\n")

    assert found(installation.hook, host) == [(
        "FAIL", "/etc/libvirt/hooks/vfio-console-hook is there, and /etc/libvirt/hooks/qemu,"
        " which is not ours, does not call it",
    )]  # fmt: skip
    assert f'/{CHAINED} "$@"' in advice(installation.hook, host)[0]


def test_a_link_to_a_hook_that_is_gone_is_told(host: FakeHost) -> None:
    host.tree.remove(GATE)
    host.tree.remove(f"stat/{GATE}")
    host.tree.text_link(GATE, "gone")

    assert found(installation.hook, host) == [
        ("FAIL", "/etc/libvirt/hooks/qemu is a link to gone, which is not there")
    ]


def test_who_may_not_look_is_told_to_be_root(host: FakeHost) -> None:
    refuse(host, GATE)

    for check in (installation.hook, installation.owner, other_hooks.virsh):
        assert found(check, host) == [(
            "WARN",
            "cannot look as this user: cannot look at /etc/libvirt/hooks/qemu: Permission denied",
        )]  # fmt: skip
        assert advice(check, host) == ["run `vfio-console-hook doctor` as root"]


# -- owner


def test_a_hook_that_only_root_can_change_is_in_order(host: FakeHost) -> None:
    assert found(installation.owner, host) == [("PASS", "only root can change what runs as root")]


@pytest.mark.parametrize(
    ("path", "status", "wrong", "mend"),
    [
        (GATE, "100755 1000 0 1", "belongs to user 1000, not to root", "chown root:root"),
        (GATE, "100757 0 0 1", "others than root can write to", "chmod go-w"),
        (GATE, "100775 0 36 1", "others than root can write to", "chmod go-w"),
        ("etc/libvirt/hooks/.itself", "40777 0 0 1", "others than root can write", "chmod go-w"),
        ("usr/lib/vfio-console-hook/.itself", "40755 33 0 1", "user 33", "chown root:root"),
        ("usr/lib/vfio-console-hook/hook", "100666 0 0 1", "others than root", "chmod go-w"),
    ],
)
def test_what_others_can_change_is_told(
    host: FakeHost, path: str, status: str, wrong: str, mend: str
) -> None:
    host.tree.put(f"stat/{path}", status)
    bare = path.replace("/.itself", "")

    ((level, text),) = found(installation.owner, host)

    assert (level, wrong in text, f"/{bare}" in text) == ("FAIL", True, True)
    assert advice(installation.owner, host) == [f"{mend} /{bare}"]


def test_what_only_the_group_root_can_change_is_in_order(host: FakeHost) -> None:
    host.tree.put(f"stat/{GATE}", "100775 0 0 1")

    assert found(installation.owner, host)[0][0] == "PASS"


def test_where_a_link_leads_to_counts_too(host: FakeHost) -> None:
    host.tree.remove(GATE)
    file(host, "opt/hook", gate_text())
    folder(host, "opt", mode=0o777)
    host.tree.text_link(GATE, "../../../opt/hook")

    assert found(installation.owner, host) == [("FAIL", "others than root can write to /opt")]


# -- the program


def test_a_python_with_the_libraries_is_in_order(host: FakeHost) -> None:
    answer(host, installation.ASK_PYTHON, "3.9.2")

    assert found(installation.python, host) == [
        ("PASS", "/usr/bin/python3 is 3.9.2, with lxml and yaml")
    ]


def test_an_old_python_is_told(host: FakeHost) -> None:
    answer(host, installation.ASK_PYTHON, "3.8.10")

    assert found(installation.python, host) == [("FAIL", "/usr/bin/python3 is 3.8.10")]


def test_a_missing_library_is_named(host: FakeHost) -> None:
    reason = "ModuleNotFoundError: No module named 'yaml'"
    failure(host, installation.ASK_PYTHON, reason)

    assert found(installation.python, host) == [
        ("FAIL", f"/usr/bin/python3 cannot run the hook: {reason}")
    ]
    assert "apt install python3-lxml python3-yaml" in advice(installation.python, host)[0]


def test_an_installed_program_is_in_order(host: FakeHost) -> None:
    ((level, text),) = found(installation.program, host)

    assert (level, text.endswith("is installed in /usr/lib/vfio-console-hook")) == ("PASS", True)


def test_another_version_is_told(host: FakeHost) -> None:
    package = "usr/lib/vfio-console-hook/vfio_console_hook"
    file(host, f"{package}/__init__.py", '__version__ = "0.0.1"', mode=0o644)

    ((level, text),) = found(installation.program, host)

    assert (level, text.startswith("version 0.0.1 is installed")) == ("WARN", True)


@pytest.mark.parametrize(
    ("gone", "level", "text"),
    [
        ("usr/lib/vfio-console-hook/hook", "FAIL", "every VM with a PCI device is refused"),
        ("usr/lib/vfio-console-hook/vfio_console_hook/__init__.py", "FAIL", "is not whole"),
        ("usr/bin/vfio-console-hook", "WARN", "there is no /usr/bin/vfio-console-hook"),
    ],
)
def test_a_part_that_is_missing_is_told(host: FakeHost, gone: str, level: str, text: str) -> None:
    host.tree.remove(gone)
    host.tree.remove(f"stat/{gone}")

    ((told, said),) = found(installation.program, host)

    assert (told, text in said) == (level, True)


# -- libvirt and systemd


@pytest.mark.parametrize(
    ("gate", "foreign", "version", "level"),
    [
        (GATE, False, "6.0.0", "PASS"),
        (GATE, True, "6.0.0", "WARN"),
        (DROPIN, False, "6.4.0", "FAIL"),
        (DROPIN, True, "6.5.0", "PASS"),
        (DROPIN, False, "11.3.0", "PASS"),
    ],
)
def test_dropins_need_libvirt_6_5(
    machine: MachineFactory, gate: str, foreign: bool, version: str, level: str
) -> None:
    host = hook(machine("efifb-6.12"), gate)
    file(host, "usr/sbin/libvirtd", "")
    answer(host, LIBVIRTD, f"libvirtd (libvirt) {version}")
    if foreign:
        file(host, "etc/libvirt/hooks/qemu.d/10-foreign", FOREIGN)

    assert [told for told, _ in found(installation.libvirt_version, host)] == [level]


def test_the_version_that_cannot_be_asked_is_not_known(host: FakeHost) -> None:
    file(host, "usr/sbin/libvirtd", "")

    assert found(installation.libvirt_version, host) == [("WARN", "not in this recorded machine")]


def unit(host: FakeHost) -> None:
    systemd.install(host.tree)
    folder(host, "run/systemd/system")
    file(host, UNIT, "[Unit]", mode=0o644)
    for name in ("libvirtd", "virtqemud"):
        wanted = f"usr/lib/systemd/system/{name}.service.wants"
        host.tree.link(f"{wanted}/vfio-console-hook-recover.service", UNIT)


def test_a_unit_that_starts_with_the_daemon_is_in_order(host: FakeHost) -> None:
    unit(host)

    assert found(installation.recover_unit, host) == [
        ("PASS", "vfio-console-hook-recover.service starts with libvirt's daemon")
    ]


def test_without_systemd_there_is_no_unit(host: FakeHost) -> None:
    assert found(installation.recover_unit, host) == []


def test_a_masked_unit_is_told(host: FakeHost) -> None:
    unit(host)
    host.tree.text_link("etc/systemd/system/vfio-console-hook-recover.service", "/dev/null")

    assert found(installation.recover_unit, host) == [
        ("PASS", "vfio-console-hook-recover.service is masked, as somebody wanted it")
    ]


@pytest.mark.parametrize(
    "gone",
    [
        UNIT,
        "usr/lib/systemd/system/libvirtd.service.wants/vfio-console-hook-recover.service",
        "usr/lib/systemd/system/virtqemud.service.wants/vfio-console-hook-recover.service",
    ],
)
def test_a_unit_that_never_starts_is_told(host: FakeHost, gone: str) -> None:
    unit(host)
    host.tree.remove(gone)
    host.tree.remove(f"stat/{gone}")

    ((level, text),) = found(installation.recover_unit, host)

    assert (level, f"/{gone}" in text) == ("WARN", True)


# -- the hooks of others


def test_a_host_with_no_other_hook_is_in_order(host: FakeHost) -> None:
    assert found(other_hooks.other_hooks, host) == [("PASS", "none")]
    assert found(other_hooks.virsh, host) == []


def test_other_hooks_are_named(host: FakeHost) -> None:
    file(host, "etc/libvirt/hooks/qemu.d/10-foreign", FOREIGN)

    assert found(other_hooks.other_hooks, host) == [
        ("PASS", "/etc/libvirt/hooks/qemu.d/10-foreign")
    ]


@pytest.mark.parametrize(
    ("name", "mode", "wrong"),
    [
        ("10-foreign", 0o644, "is not executable: libvirt leaves it out"),
        ("10-foreign~", 0o755, "looks like a leftover, and libvirt runs it"),
        ("50-vfio-console-hook.bak", 0o755, "looks like a leftover, and libvirt runs it"),
        (".10-foreign.swp", 0o755, "looks like a leftover, and libvirt runs it"),
        ("10-foreign.dpkg-old", 0o755, "looks like a leftover, and libvirt runs it"),
    ],
)
def test_odd_files_among_the_dropins_are_told(
    host: FakeHost, name: str, mode: int, wrong: str
) -> None:
    path = f"etc/libvirt/hooks/qemu.d/{name}"
    file(host, path, FOREIGN, mode=mode)

    ((level, text),) = found(other_hooks.other_hooks, host)

    assert (level, text.startswith(f"/{path} {wrong}")) == ("WARN", True)


def test_a_folder_among_the_dropins_needs_a_dispatcher(host: FakeHost) -> None:
    file(host, DISPATCHED, FOREIGN)

    assert found(other_hooks.other_hooks, host) == [
        ("WARN", "/etc/libvirt/hooks/qemu.d/win11 is a folder, and libvirt looks into none")
    ]


def test_a_dispatcher_has_its_folders(machine: MachineFactory) -> None:
    host = hook(machine("efifb-6.12"), DROPIN)
    file(host, GATE, FOREIGN)
    file(host, DISPATCHED, FOREIGN)

    assert found(other_hooks.other_hooks, host) == [("PASS", "/etc/libvirt/hooks/qemu")]


def test_a_dead_link_among_the_dropins_is_told(host: FakeHost) -> None:
    host.tree.text_link("etc/libvirt/hooks/qemu.d/10-foreign", "gone")

    ((level, text),) = found(other_hooks.other_hooks, host)

    assert (level, "leads nowhere" in text) == ("WARN", True)


def test_a_hook_that_calls_virsh_is_told(host: FakeHost) -> None:
    lines = ("#!/bin/sh", "# virsh is not called here", "", "virsh nodedev-detach pci_0", "virsh x")
    file(host, "etc/libvirt/hooks/qemu.d/10-foreign", "\n".join(lines))

    assert found(other_hooks.virsh, host) == [(
        "WARN", "/etc/libvirt/hooks/qemu.d/10-foreign line 4 and 1 more calls libvirt, which"
        " waits for the hook: `virsh nodedev-detach pci_0`",
    )]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("#!/bin/bash\nset -x\n/usr/bin/virsh list", True),
        ("#!/usr/bin/python3\nimport libvirt", True),
        ("#!/bin/sh\ntrue # virsh would hang", False),
        ("#!/bin/sh\nmy_virshing=1", False),
        ("\x7fELF\0virsh", False),
    ],
)
def test_only_scripts_that_ask_libvirt_are_told(host: FakeHost, text: str, asks: bool) -> None:
    file(host, "etc/libvirt/hooks/qemu.d/10-foreign", text)

    assert any(level == WARN for level, _ in found(other_hooks.virsh, host)) == asks


def test_what_a_dispatcher_runs_is_looked_at_too(machine: MachineFactory) -> None:
    host = hook(machine("efifb-6.12"), DROPIN)
    file(host, GATE, FOREIGN)
    file(host, DISPATCHED, "#!/bin/bash\nvirsh nodedev-detach pci_0000_01_00_0\n")

    ((level, text),) = found(other_hooks.virsh, host)

    assert (level, text.startswith(f"/{DISPATCHED} line 2 calls libvirt")) == ("WARN", True)


def test_other_hooks_that_do_not_ask_libvirt_are_in_order(host: FakeHost) -> None:
    file(host, "etc/libvirt/hooks/qemu.d/10-foreign", FOREIGN)

    assert found(other_hooks.virsh, host) == [(PASS, "no other hook calls it")]
