"""doctor: what SELinux and AppArmor let the hook do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import MachineFactory
from tests.fakehost import FakeHost
from tests.installed import (
    BOOTED,
    GATE,
    INSTALLED,
    advice,
    answer,
    daemon,
    failure,
    file,
    found,
    gate_text,
    hook,
    in_utc,
    process,
    refuse,
)
from vfio_console_hook.commands.doctor import confinement, denials
from vfio_console_hook.commands.doctor.areas import Subject

AUDIT = "var/log/audit/audit.log"
ENFORCE = "sys/fs/selinux/enforce"
LATER = INSTALLED + 500
# As Debian's libvirt-daemon-system 9.0.0 has them in /etc/apparmor.d/usr.sbin.libvirtd.
PROFILE = """\
profile libvirtd /usr/sbin/libvirtd flags=(attach_disconnected) {
  /bin/* PUx,
  /sbin/* PUx,
  /usr/bin/* PUx,
  /usr/sbin/virtlogd pix,
  /etc/libvirt/hooks/** rmix,
}
"""


@pytest.fixture
def host(machine: MachineFactory) -> Iterator[FakeHost]:
    host = hook(machine("efifb-6.12"))
    host.tree.put("sys/kernel/security/lsm", "lockdown,capability,yama")
    host.tree.put("proc/stat", f"btime {BOOTED}")
    with in_utc():
        yield host


def selinux(host: FakeHost, *, enforcing: bool = True, label: str = "virt_hook_t") -> FakeHost:
    host.tree.put(ENFORCE, "1" if enforcing else "0")
    host.tree.put("etc/selinux/config", "SELINUXTYPE=targeted")
    host.tree.put(f"label/{GATE}", f"system_u:object_r:{label}:s0")
    return host


def apparmor(host: FakeHost, profile: str = "libvirtd (enforce)") -> FakeHost:
    host.tree.put("sys/module/apparmor/parameters/enabled", "Y")
    host.tree.put("etc/apparmor.d/usr.sbin.libvirtd", PROFILE)
    daemon(host)
    host.tree.put("proc/700/attr/current", profile)
    return host


def denied(host: FakeHost, *lines: str) -> None:
    host.tree.put(AUDIT, "")
    answer(host, denials.ask_log(host, AUDIT), "\n".join(lines))


def avc(
    comm: str = "rpc-virtqemud", name: str = "qemu", *, at: int = LATER, permissive: int = 0
) -> str:
    """As in fedora-selinux/selinux-policy, pull request 3364."""
    return (
        f"type=AVC msg=audit({at}.702:1278): avc:  denied  {{ execute }} for  pid=25647"
        f' comm="{comm}" name="{name}" dev="vda2" ino=9130222'
        " scontext=system_u:system_r:virtqemud_t:s0"
        f" tcontext=unconfined_u:object_r:user_home_t:s0 tclass=file permissive={permissive}"
    )


def refused(
    operation: str = "exec", comm: str = "rpc-libvirtd", profile: str = "libvirtd", at: int = LATER
) -> str:
    """As Linux security/apparmor/audit.c, audit_pre, has it in the kernel's log."""
    return (
        f'audit: type=1400 audit({at}.103:47): apparmor="DENIED" operation="{operation}"'
        f' profile="{profile}" name="/opt/hook" pid=4243 comm="{comm}" requested_mask="x"'
        ' denied_mask="x" fsuid=0 ouid=0'
    )


def test_nothing_is_known_of_a_recorded_machine_without_either(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")

    told = [(one.subject, one.text) for check in confinement.CHECKS for one in check(Subject(host))]

    assert told == [
        ("SELinux", "not in this recorded machine"), ("AppArmor", "not in this recorded machine")
    ]  # fmt: skip


def test_a_host_with_neither_is_in_order(host: FakeHost) -> None:
    told = [(one.level, one.text) for check in confinement.CHECKS for one in check(Subject(host))]

    assert told == [("PASS", "not in use"), ("PASS", "not in use")]


# -- SELinux


@pytest.mark.parametrize(
    ("enforcing", "text"),
    [
        (True, "enforcing; virtqemud runs as virtqemud_t"),
        (False, "permissive: it denies nothing; virtqemud runs as virtqemud_t"),
    ],
)
def test_selinux_and_the_daemons_domain_are_told(
    host: FakeHost, enforcing: bool, text: str
) -> None:
    selinux(host, enforcing=enforcing)
    daemon(host, "virtqemud")
    host.tree.put("proc/700/attr/current", "system_u:system_r:virtqemud_t:s0\0")

    assert found(confinement.selinux, host) == [("PASS", text)]


@pytest.mark.parametrize(
    ("label", "enforcing", "level"),
    [
        ("virt_hook_t", True, "PASS"),
        ("virt_script_exec_t", True, "PASS"),
        ("user_home_t", True, "FAIL"),
        ("user_home_t", False, "WARN"),
    ],
)
def test_the_label_of_the_hook_decides(
    host: FakeHost, label: str, enforcing: bool, level: str
) -> None:
    selinux(host, label=label, enforcing=enforcing)

    assert [told for told, _ in found(confinement.label, host)] == [level]


def test_a_wrong_label_is_restored(host: FakeHost) -> None:
    selinux(host, label="etc_t")

    assert found(confinement.label, host) == [(
        "FAIL", "/etc/libvirt/hooks/qemu is etc_t and should be virt_hook_t: libvirt may not run it"
    )]  # fmt: skip
    assert advice(confinement.label, host) == ["restorecon -Rv /etc/libvirt/hooks"]


def test_the_policy_of_the_host_decides_on_the_label(host: FakeHost) -> None:
    selinux(host, label="virt_etc_t")
    answer(host, confinement.ask_label(GATE), "system_u:object_r:virt_etc_t:s0")

    assert found(confinement.label, host) == [("PASS", "virt_etc_t")]


def test_a_kernel_without_a_policy_does_not_use_selinux(host: FakeHost) -> None:
    host.tree.put(ENFORCE, "0")

    assert found(confinement.selinux, host) == [("PASS", "not in use")]
    assert found(confinement.label, host) == []


def test_a_hook_without_label_is_told(host: FakeHost) -> None:
    host.tree.put(ENFORCE, "1")
    host.tree.put("etc/selinux/config", "SELINUXTYPE=targeted")

    assert found(confinement.label, host) == [("WARN", "/etc/libvirt/hooks/qemu has none")]


def test_a_hook_that_selinux_did_not_let_run_is_told(host: FakeHost) -> None:
    selinux(host)
    denied(host, avc(at=LATER - 60), avc())

    assert found(confinement.selinux_denials, host) == [(
        "WARN", "2, the last at 2023-11-14 22:38:20: execute of qemu (user_home_t) to"
        " rpc-virtqemud (virtqemud_t)",
    )]  # fmt: skip
    assert "setsebool" not in advice(confinement.selinux_denials, host)[0]


@pytest.mark.parametrize(("boolean", "named"), [("0 0", True), ("1 1", False)])
def test_the_boolean_for_hooks_is_named_where_it_is_off(
    host: FakeHost, boolean: str, named: bool
) -> None:
    selinux(host)
    host.tree.put("sys/fs/selinux/booleans/virt_hooks_unconfined", boolean)
    denied(host, avc())

    (told,) = advice(confinement.selinux_denials, host)

    assert ("setsebool -P virt_hooks_unconfined on" in told) == named


@pytest.mark.parametrize(
    "line",
    [
        avc(at=INSTALLED - 1),
        avc(permissive=1),
        avc(name="passt"),
        avc().replace("virtqemud_t", "svirt_t"),
        "type=AVC msg=audit(garbage): avc:  denied  { execute } for comm=",
    ],
    ids=["before", "permissive", "not a hook", "QEMU itself", "garbage"],
)
def test_other_denials_are_nobodys_business(host: FakeHost, line: str) -> None:
    selinux(host)
    denied(host, line)

    assert [level for level, _ in found(confinement.selinux_denials, host)] == ["PASS"]


def test_a_denial_within_the_hook_is_told(host: FakeHost) -> None:
    selinux(host)
    denied(host, avc("qemu", "python3.13"))

    assert [level for level, _ in found(confinement.selinux_denials, host)] == ["WARN"]


def test_who_may_not_read_the_log_is_told_to_be_root(host: FakeHost) -> None:
    selinux(host)
    refuse(host, AUDIT)

    assert [text[:26] for _, text in found(confinement.selinux_denials, host)] == [
        "cannot look as this user: "
    ]


def test_a_journal_without_a_match_tells_of_no_denial(host: FakeHost) -> None:
    selinux(host)
    host.tree.make_directory("run/systemd/system")
    failure(host, denials.ask_journal(host), "exit status 1")

    assert [level for level, _ in found(confinement.selinux_denials, host)] == ["PASS"]


def test_a_journal_that_may_not_be_read_is_told(host: FakeHost) -> None:
    selinux(host)
    host.tree.make_directory("run/systemd/system")
    hint = "Hint: You are currently not seeing messages from other users and the system."
    failure(host, denials.ask_journal(host), hint)

    assert [text[:26] for _, text in found(confinement.selinux_denials, host)] == [
        "cannot look as this user: "
    ]


def test_without_a_log_denials_are_not_known(host: FakeHost) -> None:
    assert found(confinement.selinux_denials, selinux(host)) == [
        ("WARN", "not known: there is no log of what was denied")
    ]


# -- AppArmor


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        ("libvirtd (enforce)", "libvirt's daemon has the profile libvirtd (enforce)"),
        ("libvirtd (complain)", "libvirt's daemon has the profile libvirtd (complain)"),
        ("unconfined", "in use; libvirt's daemon is not confined"),
    ],
)
def test_the_profile_of_the_daemon_is_told(host: FakeHost, profile: str, text: str) -> None:
    assert found(confinement.apparmor, apparmor(host, profile)) == [("PASS", text)]


def test_what_apparmor_says_counts_where_modules_are_stacked(host: FakeHost) -> None:
    apparmor(host, "system_u:system_r:virtd_t:s0")
    host.tree.put("proc/700/attr/apparmor/current", "libvirtd (enforce)")

    assert "libvirtd (enforce)" in found(confinement.apparmor, host)[0][1]


def test_while_no_daemon_runs_the_loaded_profile_tells(host: FakeHost) -> None:
    apparmor(host)
    host.tree.remove("proc/700")
    host.tree.put("sys/kernel/security/apparmor/profiles", "man (enforce)\nlibvirtd (enforce)")

    assert "libvirtd (enforce)" in found(confinement.apparmor, host)[0][1]


def test_debians_profile_hides_nothing(host: FakeHost) -> None:
    assert found(confinement.profile, apparmor(host)) == [
        ("PASS", "its Python is not confined, and sees all processes")
    ]


@pytest.mark.parametrize("profile", ["unconfined", "libvirtd (complain)"])
def test_a_profile_that_denies_nothing_hides_nothing(host: FakeHost, profile: str) -> None:
    assert found(confinement.profile, apparmor(host, profile)) == []


def test_a_hook_that_leads_elsewhere_cannot_be_executed(host: FakeHost) -> None:
    apparmor(host)
    host.tree.remove(GATE)
    file(host, "opt/hook", gate_text())
    host.tree.text_link(GATE, "../../../opt/hook")

    assert found(confinement.profile, host) == [(
        "FAIL", "the hook leads to /opt/hook, which the profile libvirtd does not let it execute"
    )]  # fmt: skip


def test_a_python_that_is_elsewhere_cannot_be_executed(host: FakeHost) -> None:
    apparmor(host)
    host.tree.remove("usr/bin/python3")
    file(host, "usr/local/bin/python3.13", "")
    host.tree.text_link("usr/bin/python3", "../local/bin/python3.13")

    ((level, text),) = found(confinement.profile, host)

    assert (level, "/usr/local/bin/python3.13" in text) == ("FAIL", True)


def test_a_profile_of_pythons_own_is_told(host: FakeHost) -> None:
    apparmor(host)
    host.tree.put(
        "sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\n/usr/bin/python3.11 (enforce)"
    )

    ((level, text),) = found(confinement.profile, host)

    assert (level, "/usr/bin/python3.11" in text) == ("WARN", True)


def test_a_python_that_stays_in_the_profile_does_not_see_all(host: FakeHost) -> None:
    apparmor(host)
    text = PROFILE.replace("/usr/bin/* PUx", "/usr/bin/* rix")
    host.tree.put("etc/apparmor.d/usr.sbin.libvirtd", text)
    for pid, profile in ((20, "firefox (enforce)"), (21, "firefox (enforce)"), (22, "unconfined")):
        process(host, pid, "x", at=BOOTED)
        host.tree.put(f"proc/{pid}/attr/current", profile)

    assert found(confinement.profile, host) == [(
        "WARN", "the hook's Python stays in the profile libvirtd, which hides 2 processes from it:"
        " those of firefox",
    )]  # fmt: skip


def test_a_profile_that_cannot_be_found_is_not_known(host: FakeHost) -> None:
    apparmor(host)
    host.tree.remove("etc/apparmor.d")

    assert [level for level, _ in found(confinement.profile, host)] == ["WARN"]


def test_a_hook_that_apparmor_did_not_let_run_is_told(host: FakeHost) -> None:
    apparmor(host)
    denied(host, refused())

    assert found(confinement.apparmor_denials, host) == [
        ("WARN", "one at 2023-11-14 22:38:20: exec of /opt/hook to rpc-libvirtd")
    ]
    (told,) = advice(confinement.apparmor_denials, host)
    assert "/etc/apparmor.d/local/usr.sbin.libvirtd" in told


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (refused("open", "qemu"), "WARN"),
        (refused("open"), "PASS"),
        (refused(profile="libvirt-6f1c"), "PASS"),
        (refused(at=INSTALLED - 1), "PASS"),
        (refused().replace("DENIED", "ALLOWED"), "PASS"),
    ],
)
def test_only_what_was_denied_to_hooks_is_told(host: FakeHost, line: str, level: str) -> None:
    apparmor(host)
    denied(host, line)

    assert [told for told, _ in found(confinement.apparmor_denials, host)] == [level]


def test_the_kernels_log_tells_where_there_is_no_journal(host: FakeHost) -> None:
    apparmor(host)
    host.tree.put("var/log/kern.log", "")
    answer(host, denials.ask_log(host, "var/log/kern.log"), f"Nov 14 h kernel: {refused()}")

    assert [level for level, _ in found(confinement.apparmor_denials, host)] == ["WARN"]


def test_a_record_that_two_logs_have_counts_once(host: FakeHost) -> None:
    apparmor(host)
    denied(host, refused())
    host.tree.make_directory("run/systemd/system")
    answer(host, denials.ask_journal(host), refused())

    assert found(confinement.apparmor_denials, host)[0][1].startswith("one at ")
