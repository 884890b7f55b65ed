"""doctor: what SELinux and AppArmor let the hook do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import cil, installed
from tests.conftest import Golden, MachineFactory
from tests.doctoring import (
    Arrange,
    Case,
    assert_found,
    both,
    findings,
    missing_in_snapshot,
    nothing,
    put,
    sentences,
)
from tests.fakehost import FakeHost
from tests.fakehost import selinux as fake_selinux
from tests.installed import BOOTED, GATE, INSTALLED, answer, file, gate_text, process
from tests.libvirt_xml import domain_xml
from vfio_console_hook.claims.history import STATUS
from vfio_console_hook.commands.doctor import (
    apparmor,
    areas,
    denials,
    installation,
    selinux,
    selinux_policy,
)
from vfio_console_hook.commands.doctor.finding import Check
from vfio_console_hook.commands.doctor.hook_files import CHAINED, DROPIN, MAIN
from vfio_console_hook.commands.doctor.system import System
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config.load import DIRECTORY
from vfio_console_hook.config.settings import Config
from vfio_console_hook.domain import parse
from vfio_console_hook.machine.runfiles import RUN

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


def hook(host: FakeHost) -> None:
    """The hook on a machine without any security module."""
    installed.hook(host)
    host.tree.put("sys/kernel/security/lsm", "lockdown,capability,yama")
    host.tree.put("proc/stat", f"btime {BOOTED}")


def on_selinux(
    name: str, check: Check, level: str, title: str, value: str, *arrangements: Arrange,
    enforcing: bool = True, label: str = "virt_hook_t",
) -> Case:  # fmt: skip
    """A case with the hook on a machine with SELinux."""
    return Case(
        name, check,
        both(
            hook,
            put(ENFORCE, "1" if enforcing else "0"),
            put("etc/selinux/config", "SELINUXTYPE=targeted"),
            put(f"label/{GATE}", f"system_u:object_r:{label}:s0") if label else nothing,
            *arrangements,
        ),
        level, title, value,
    )  # fmt: skip


def labelled(name: str, level: str, label: str, value: str, *more: Arrange, **mode: bool) -> Case:
    """A case with this label on the hook."""
    title = "SELinux label of the hook"
    return on_selinux(name, selinux.label, level, title, value, *more, label=label, **mode)


def on_apparmor(
    name: str, check: Check, level: str, title: str, value: str, *arrangements: Arrange,
    profile: str = "libvirtd (enforce)",
) -> Case:  # fmt: skip
    """A case with the hook on a machine with AppArmor, and this profile of the daemon."""
    return Case(
        name, check,
        both(
            hook,
            put("sys/module/apparmor/parameters/enabled", "Y"),
            put("etc/apparmor.d/usr.sbin.libvirtd", PROFILE),
            installed.daemon,
            put("proc/700/attr/current", profile),
            *arrangements,
        ),
        level, title, value,
    )  # fmt: skip


def confined(name: str, level: str, value: str, *more: Arrange) -> Case:
    title = "AppArmor and the hook"
    return on_apparmor(name, apparmor.confined_hook, level, title, value, *more)


def denied(*lines: str) -> Arrange:
    """The audit log has these lines."""

    def arrange(host: FakeHost) -> None:
        host.tree.put(AUDIT, "")
        answer(host, denials.ask_log(host, AUDIT), "\n".join(lines))

    return arrange


def by_selinux(name: str, level: str, value: str, *more: Arrange) -> Case:
    return on_selinux(name, selinux.selinux_denials, level, "SELinux denials", value, *more)


def by_apparmor(name: str, level: str, value: str, *more: Arrange) -> Case:
    return on_apparmor(name, apparmor.apparmor_denials, level, "AppArmor denials", value, *more)


def avc(
    comm: str = "rpc-virtqemud", name: str = "qemu", *, at: int = LATER, permissive: int = 0,
    what: str = "execute", source: str = "virtqemud_t", target: str = "user_home_t",
    kind: str = "file",
) -> str:  # fmt: skip
    """As in fedora-selinux/selinux-policy, pull request 3364."""
    return (
        f"type=AVC msg=audit({at}.702:1278): avc:  denied  {{ {what} }} for  pid=25647"
        f' comm="{comm}" name="{name}" dev="vda2" ino=9130222'
        f" scontext=system_u:system_r:{source}:s0"
        f" tcontext=unconfined_u:object_r:{target}:s0 tclass={kind} permissive={permissive}"
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


def journal_fails(reason: str) -> Arrange:
    def arrange(host: FakeHost) -> None:
        host.tree.make_directory("run/systemd/system")
        installed.failure(host, denials.ask_journal(host), reason)

    return arrange


def kernel_log(host: FakeHost) -> None:
    host.tree.put("var/log/kern.log", "")
    line = f"Nov 14 h kernel: {refused()}"
    answer(host, denials.ask_log(host, "var/log/kern.log"), line)


def in_two_logs(host: FakeHost) -> None:
    denied(refused())(host)
    host.tree.make_directory("run/systemd/system")
    answer(host, denials.ask_journal(host), refused())


def virtqemud(host: FakeHost) -> None:
    installed.daemon(host, "virtqemud")
    host.tree.put("proc/700/attr/current", "system_u:system_r:virtqemud_t:s0\0")


def label_of_policy(host: FakeHost) -> None:
    answer(host, selinux.ask_label(GATE), "system_u:object_r:virt_etc_t:s0")


def daemon_ended(host: FakeHost) -> None:
    host.tree.remove("proc/700")
    host.tree.put("sys/kernel/security/apparmor/profiles", "man (enforce)\nlibvirtd (enforce)")


def hook_elsewhere(host: FakeHost) -> None:
    host.tree.remove(GATE)
    file(host, "opt/hook", gate_text())
    host.tree.text_link(GATE, "../../../opt/hook")


def python_elsewhere(host: FakeHost) -> None:
    host.tree.remove("usr/bin/python3")
    file(host, "usr/local/bin/python3.13", "")
    host.tree.text_link("usr/bin/python3", "../local/bin/python3.13")


def python_confined(host: FakeHost) -> None:
    text = PROFILE.replace("/usr/bin/* PUx", "/usr/bin/* rix")
    host.tree.put("etc/apparmor.d/usr.sbin.libvirtd", text)
    for pid, profile in ((20, "firefox (enforce)"), (21, "firefox (enforce)"), (22, "unconfined")):
        process(host, pid, "x", at=BOOTED)
        host.tree.put(f"proc/{pid}/attr/current", profile)


# What the policy has to allow before a hook in its own domain, without limits, can run.
TO_THE_HOOK = (
    "type_transition virtqemud_t virt_hook_t:process virt_hook_unconfined_t",
    "allow virtqemud_t virt_hook_t:file read open execute",
    "allow virtqemud_t shell_exec_t:file read open execute",
    "allow virtqemud_t virt_hook_unconfined_t:process transition",
)
UNCONFINED = (*TO_THE_HOOK, "allow virt_hook_unconfined_t *:*")
# A hook that stays in the daemon's domain, where the policy of Fedora allows little.
IN_THE_DAEMON = (
    "allow virtqemud_t virt_hook_t:file read open execute execute_no_trans",
    "allow virtqemud_t shell_exec_t:file read open execute execute_no_trans",
    "allow virtqemud_t bin_t:file read open execute execute_no_trans",
)
AT_WORK = (
    "allow virtqemud_t sysfs_t:file open read write",
    "allow virtqemud_t var_run_t:dir write add_name create",
    "allow virtqemud_t virtqemud_t:capability sys_admin sys_ptrace",
    "allow virtqemud_t init_t:lnk_file read",
)


def rules(*lines: str) -> Arrange:
    """The daemon runs, and the policy has these rules."""

    def arrange(host: FakeHost) -> None:
        virtqemud(host)
        fake_selinux.install(host.tree, *lines)
        types = {
            "bin/sh": "shell_exec_t", "usr/bin/python3": "bin_t", "run": "var_run_t",
            "sys/bus/pci/drivers_probe": "sysfs_t", "usr/sbin/virtqemud": "virtqemud_exec_t",
        }  # fmt: skip
        for path, name in types.items():
            itself = "/.itself" if path == "run" else ""
            host.tree.put(f"label/{path}{itself}", f"system_u:object_r:{name}:s0")
        process(host, 1, "systemd", at=BOOTED)
        host.tree.put("proc/1/attr/current", "system_u:system_r:init_t:s0\0")

    return arrange


def moved_here(host: FakeHost) -> None:
    """One file of the configuration has the label of the directory, the other one not."""
    for name, label in (("default", "etc_t"), ("vms/win11", "user_home_t")):
        host.tree.put(f"{DIRECTORY}/{name}.yaml", "apu: allow\n")
        host.tree.put(f"label/{DIRECTORY}/{name}.yaml", f"system_u:object_r:{label}:s0")


def with_module(host: FakeHost) -> None:
    """A policy that allows the daemon no more than a shell, and our module."""
    rules("allow virtqemud_t shell_exec_t:file read open execute", *cil.rules())(host)
    host.tree.put(f"label/{GATE}", f"system_u:object_r:{OWN_LABEL}:s0")


# What Debian 13's policy (2.20250213-13~deb13u1) has of what doctor asks, as sesearch(1) shows it.
DEBIAN_13 = (
    "allow virtd_t virt_etc_rw_t:file append create getattr ioctl link lock open read rename"
    " setattr unlink write",
    "allow virtd_t shell_exec_t:file execute execute_no_trans getattr ioctl lock map open read",
    "allow virtd_t bin_t:file execute execute_no_trans getattr ioctl lock map open read",
    "allow virtd_t sysfs_t:file append getattr ioctl lock open read write",
    "allow virtd_t var_run_t:dir add_name getattr ioctl lock open read remove_name search write",
    "allow virtd_t virt_runtime_t:dir add_name create getattr open read search write",
    "allow virtd_t init_t:lnk_file getattr read",
    "allow virtd_t virtd_t:capability chown dac_override kill sys_admin sys_nice sys_ptrace",
    "type_transition virtd_t var_run_t:dir virt_runtime_t",
    "type_transition init_t virtd_exec_t:process virtd_t",
)


def debian_13(gate: str, *more: str) -> Arrange:
    """libvirtd on Debian 13 with its policy, and more rules; gate is the type of the hook."""

    def arrange(host: FakeHost) -> None:
        rules(*DEBIAN_13, *more)(host)
        host.tree.put("proc/700/attr/current", "system_u:system_r:virtd_t:s0-s0:c0.c1023\0")
        host.tree.put(f"label/{GATE}", f"system_u:object_r:{gate}:s0")

    return arrange


def socket_activated(host: FakeHost) -> None:
    host.tree.remove("proc/700")
    host.tree.remove("run/virtqemud.pid")


def asked(name: str, level: str, value: str, *more: Arrange, enforcing: bool = True) -> Case:
    check, title = selinux_policy.policy, "SELinux policy"
    return on_selinux(name, check, level, title, value, *more, enforcing=enforcing)


STACKED = both(
    put("proc/700/attr/current", "system_u:system_r:virtd_t:s0"),
    put("proc/700/attr/apparmor/current", "libvirtd (enforce)"),
)
OWN_PROFILE = put(
    "sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\n/usr/bin/python3.11 (enforce)"
)
UNPRIVILEGED = "Hint: You are currently not seeing messages from other users and the system."
MODULE = "usr/lib/vfio-console-hook/vfio_console_hook.cil"
OWN_LABEL = "vfio_console_hook_exec_t"
BOOLEAN = "sys/fs/selinux/booleans/virt_hooks_unconfined"
CASES = [
    missing_in_snapshot("SELinux not in the snapshot", selinux.mode, nothing, "SELinux"),
    missing_in_snapshot("AppArmor not in the snapshot", apparmor.mode, nothing, "AppArmor"),
    Case("no SELinux", selinux.mode, hook, "PASS", "SELinux", "not in use"),
    Case("no AppArmor", apparmor.mode, hook, "PASS", "AppArmor", "not in use"),
    Case(
        "SELinux without a policy", selinux.mode, both(hook, put(ENFORCE, "0")),
        "PASS", "SELinux", "not in use",
    ),
    on_selinux("enforcing", selinux.mode, "PASS", "SELinux", "virtqemud_t", virtqemud),
    on_selinux(
        "permissive", selinux.mode, "PASS", "SELinux", "permissive", virtqemud, enforcing=False
    ),
    labelled("the label of Fedora", "PASS", "virt_hook_t", "virt_hook_t"),
    labelled("the label of the SELinux project", "PASS", "virt_script_exec_t", "virt_script"),
    labelled("the label of our own module", "PASS", OWN_LABEL, OWN_LABEL),
    labelled("a wrong label", "FAIL", "user_home_t", "restorecon -Rv /etc/libvirt/hooks"),
    labelled("a wrong label, permissive", "WARN", "user_home_t", "restorecon", enforcing=False),
    labelled("the label of the host's policy", "PASS", "virt_etc_t", "virt_etc_t", label_of_policy),
    labelled("no label", "WARN", "", "restorecon"),
    asked("a policy that allows the hook", "PASS", "virtqemud_t", rules(*UNCONFINED)),
    asked(
        "a hook that may work in the daemon's domain", "PASS", "virtqemud_t",
        rules(*IN_THE_DAEMON, *AT_WORK),
    ),
    asked(
        "a configuration that was moved here from a home directory", "FAIL",
        "restorecon -Rv /etc/vfio-console-hook",
        rules(*IN_THE_DAEMON, *AT_WORK, "allow virtqemud_t etc_t:file read open"), moved_here,
    ),
    asked("a policy without a rule", "FAIL", "starts no VM", rules(), put(BOOLEAN, "0 0")),
    asked(
        "a policy without a rule, and a module for it", "FAIL",
        f"semodule -i /{MODULE}, then restorecon", rules(), put(BOOLEAN, "0 0"), put(MODULE, ""),
    ),
    asked(
        "a policy that denies more than the module allows", "FAIL", "semanage permissive",
        rules(), put(MODULE, ""), put(f"label/{GATE}", f"system_u:object_r:{OWN_LABEL}:s0"),
    ),
    asked(
        "Debian 13's policy", "FAIL", "(virt_etc_rw_t): execute and execute_no_trans are denied",
        debian_13("virt_etc_rw_t"),
    ),
    asked(
        "Debian 13's policy with the module", "PASS", "it allows virtd_t to run the hook",
        debian_13(OWN_LABEL, *cil.rules()),
    ),
    asked("a policy with the module", "PASS", "virtqemud_t to run the hook", with_module),
    asked(
        "a policy that lets no hook stay", "FAIL", "execute_no_trans is denied",
        rules(IN_THE_DAEMON[0].removesuffix(" execute_no_trans"), *IN_THE_DAEMON[1:]),
    ),
    asked(
        "a transition that is denied", "FAIL", "transition and entrypoint are denied",
        rules(*TO_THE_HOOK[:3]),
    ),
    asked(
        "a shell that is denied", "FAIL", "read, open and execute are denied",
        rules(IN_THE_DAEMON[0]),
    ),
    asked("a Python that is denied", "FAIL", "/usr/bin/python3", rules(*IN_THE_DAEMON[:2])),
    *(
        asked(
            f"a hook without {what}", "FAIL", value,
            rules(*IN_THE_DAEMON, *(rule for rule in AT_WORK if what not in rule)),
        )
        for what, value in {
            "sysfs_t": "attributes in /sys", "var_run_t": "/run", "init_t": "have a GPU open",
            "capability": "have a GPU open: sys_ptrace",
        }.items()
    ),
    asked(
        "a hook that sees no addresses", "FAIL", "/proc/iomem",
        rules(*IN_THE_DAEMON, *(rule.replace(" sys_admin", "") for rule in AT_WORK)),
    ),
    asked("a permissive domain of the daemon", "PASS", "", rules("permissive virtqemud_t")),
    asked(
        "a policy that is not enforced", "WARN", "starts no VM", rules(), put(ENFORCE, "0"),
        enforcing=False,
    ),
    asked(
        "a daemon that systemd starts on demand", "FAIL", "allow virtqemud_t to run",
        rules("type_transition init_t virtqemud_exec_t:process virtqemud_t"), socket_activated,
    ),
    missing_in_snapshot(
        "a policy that the snapshot lacks", selinux_policy.policy,
        on_selinux("", selinux_policy.policy, "", "", "", virtqemud).arrange, "SELinux policy",
    ),
    by_selinux(
        "two denials", "FAIL", "at 2023-11-14 22:38:20, the last of 2 denials",
        denied(avc(at=LATER - 60), avc()),
    ),
    by_selinux(
        "a denial that was mended since", "WARN", "at 2023-11-14 22:38:20",
        denied(avc()), rules(*UNCONFINED),
    ),
    by_selinux(
        "a boolean that is off", "FAIL", "setsebool -P virt_hooks_unconfined on",
        denied(avc()), put(BOOLEAN, "0 0"),
    ),
    *(
        by_selinux(name, "WARN", "SELinux denied", denied(line))
        for name, line in {
            "a program of the hook": avc("python3", "efi-framebuffer.0", what="write"),
            "a module": avc("modprobe", "vfio.ko", what="read", target="modules_object_t"),
            "a unit": avc("systemctl", "sddm.service", target="xdm_unit_file_t", kind="service"),
            "a unit that another program stops": avc(
                "gpu-helper", "", what="stop", target="init_t", kind="service"
            ),
            "a framebuffer, whatever opens it": avc(
                "x", "fb0", what="read", target="framebuf_device_t", kind="chr_file"
            ),
            "a domain of hooks": avc("x", "y", source="virt_hook_unconfined_t"),
        }.items()
    ),
    *(
        by_selinux(name, "PASS", "", denied(line))
        for name, line in {
            "a denial before the hook was installed": avc(at=INSTALLED - 1),
            "a permissive domain": avc(permissive=1),
            "a directory of QEMU's": avc(name="qemu", kind="dir", target="virt_var_run_t"),
            "attributes that the daemon reads": avc(name="iomem", what="read", target="proc_t"),
            "a device node of the daemon": avc(
                name="card0", what="setattr", target="dri_device_t", kind="chr_file"
            ),
            "a denial of another file": avc(name="passt"),
            "a denial to QEMU itself": avc().replace("virtqemud_t", "svirt_t"),
            "a line cut off": "type=AVC msg=audit(garbage): avc:  denied  { execute } for comm=",
        }.items()
    ),
    by_selinux("a denial within the hook", "WARN", "python3.13", denied(avc("qemu", "python3.13"))),
    by_selinux(
        "a log that only root can read", "WARN", "as root",
        lambda host: installed.refuse(host, AUDIT),
    ),
    by_selinux("a journal without a match", "PASS", "", journal_fails("exit status 1")),
    by_selinux("a journal that only root can read", "WARN", "as root", journal_fails(UNPRIVILEGED)),
    replace(by_selinux("no log", "WARN", "log of denials"), advised=False),
    on_apparmor("a profile", apparmor.mode, "PASS", "AppArmor", "libvirtd (enforce)"),
    on_apparmor(
        "a profile in complain mode", apparmor.mode, "PASS", "AppArmor", "libvirtd (complain)",
        profile="libvirtd (complain)",
    ),
    on_apparmor(
        "an unconfined daemon", apparmor.mode, "PASS", "AppArmor", "not confined",
        profile="unconfined",
    ),
    on_apparmor(
        "two modules", apparmor.mode, "PASS", "AppArmor", "libvirtd (enforce)", STACKED
    ),
    on_apparmor(
        "no daemon", apparmor.mode, "PASS", "AppArmor", "libvirtd (enforce)", daemon_ended
    ),
    confined("the profile of Debian", "PASS", "not confined"),
    confined("a hook elsewhere", "FAIL", "/opt/hook", hook_elsewhere),
    confined("a Python elsewhere", "FAIL", "/usr/local/bin/python3.13", python_elsewhere),
    confined("a profile for Python", "WARN", "/usr/bin/python3.11", OWN_PROFILE),
    confined("a Python in the daemon's profile", "WARN", "2 processes", python_confined),
    confined(
        "a profile without a file", "WARN", "status",
        lambda host: host.tree.remove("etc/apparmor.d"),
    ),
    by_apparmor("one denial", "WARN", "at 2023-11-14 22:38:20", denied(refused())),
    by_apparmor(
        "a hook that is not executed", "FAIL", "starts no VM",
        denied(refused().replace("/opt/hook", "/etc/libvirt/hooks/qemu")),
    ),
    by_apparmor(
        "a denial to a profile inside", "WARN", "open of",
        denied(refused("open", "python3.11", profile="libvirtd//hook")),
    ),
    by_apparmor(
        "a denial of the program", "WARN", "hook to rpc-libvirtd",
        denied(refused("open").replace("/opt/hook", "/usr/lib/vfio-console-hook/hook")),
    ),
    by_apparmor("a denial to the hook", "WARN", "open of", denied(refused("open", "qemu"))),
    by_apparmor("a denial to the daemon", "PASS", "", denied(refused("open"))),
    by_apparmor("a denial to a VM", "PASS", "", denied(refused(profile="libvirt-6f1c"))),
    by_apparmor("an old denial", "PASS", "", denied(refused(at=INSTALLED - 1))),
    by_apparmor(
        "a denial in complain mode", "PASS", "", denied(refused().replace("DENIED", "ALLOWED"))
    ),
    by_apparmor("the kernel's log", "WARN", "/opt/hook", kernel_log),
    by_apparmor("one denial in two logs", "WARN", "at 2023-11-14 22:38:20 keep", in_two_logs),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_has_its_finding(machine: MachineFactory, case: Case) -> None:
    assert_found(case, machine(case.machine))


def test_the_sentences_about_confinement(machine: MachineFactory, golden: Golden) -> None:
    golden("doctor-sentences-confinement", sentences(CASES, machine))


VM = parse(domain_xml("0000:01:00.0"))


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [(UNCONFINED, plan.START), ((), plan.REFUSE), (IN_THE_DAEMON, plan.REFUSE)],
)
def test_plan_promises_no_start_that_the_policy_prevents(
    machine: MachineFactory, policy: tuple[str, ...], verdict: str
) -> None:
    host = machine("efifb-6.12")
    asked("", "", "", rules(*policy)).arrange(host)

    planned = plan.plan_for(host, VM, Config())

    assert planned.verdict == verdict
    assert planned.reason.startswith("SELinux does not allow") == (verdict != plan.START)


@pytest.mark.parametrize(("name", "verdict"), [("win11", plan.REFUSE), ("other", plan.START)])
def test_plan_refuses_the_vm_whose_configuration_the_hook_may_not_read(
    machine: MachineFactory, name: str, verdict: str
) -> None:
    host = machine("efifb-6.12")
    allowed = rules(*IN_THE_DAEMON, *AT_WORK, "allow virtqemud_t etc_t:file read open")
    asked("", "", "", allowed, moved_here).arrange(host)

    planned = plan.plan_for(host, parse(domain_xml("0000:01:00.0", name=name)), Config())

    assert planned.verdict == verdict
    assert planned.hint == ("" if verdict == plan.START else f"restorecon -Rv /{DIRECTORY}")


@pytest.mark.parametrize(
    ("arrange", "subject"),
    [
        (both(virtqemud, denied(avc())), "SELinux denials"),
        (both(virtqemud, denied(avc("python3", "fb0", what="write"))), None),
        (both(rules(*UNCONFINED), denied(avc())), None),
    ],
)
def test_a_hook_that_was_denied_to_the_daemon_is_no_hook_that_plan_can_rely_on(
    machine: MachineFactory, arrange: Arrange, subject: str | None
) -> None:
    host = machine("efifb-6.12")
    on_selinux("", selinux.mode, "", "", "", arrange).arrange(host)
    host.tree.put("recorded/now", str(LATER))
    answer(host, installation.ask_python("usr/bin/python3"), "3.11.2")

    found = areas.why_not_run(System(host))

    assert (found and found.subject) == subject


def test_a_policy_that_is_not_enforced_or_does_not_answer_is_no_refusal(
    machine: MachineFactory,
) -> None:
    for arrange in (both(rules(), put(ENFORCE, "0")), both(virtqemud, put(ENFORCE, "1"))):
        host = machine("efifb-6.12")
        both(hook, arrange)(host)

        assert plan.plan_for(host, VM, Config()).verdict == plan.START


@pytest.mark.parametrize(
    "case",
    [
        Case("no policy", selinux.label, both(hook, put(ENFORCE, "0")), "", ""),
        on_apparmor("unconfined", apparmor.confined_hook, "", "", "", profile="unconfined"),
        on_apparmor("complain", apparmor.confined_hook, "", "", "", profile="libvirtd (complain)"),
    ],
    ids=str,
)
def test_a_machine_without_denials_has_no_finding(machine: MachineFactory, case: Case) -> None:
    assert findings(case, machine(case.machine)) == []


def test_a_boolean_that_is_on_is_not_advised(machine: MachineFactory) -> None:
    case = by_selinux("a boolean that is on", "WARN", "", denied(avc()), put(BOOLEAN, "1 1"))

    assert "setsebool" not in findings(case, machine(case.machine))[0].advice


def test_the_selinux_module_labels_what_the_hook_has_and_nothing_else() -> None:
    labelled = {}
    for one in cil.statements():
        if one[0] == "filecon":
            assert isinstance(one[3], list)
            labelled[str(one[1]).replace("\\.", ".")] = one[3][2]
    gates = {f"/{path}": OWN_LABEL for path in (MAIN, DROPIN, CHAINED)}
    own = {f"/{path}(/.*)?": "vfio_console_hook_run_t" for path in (RUN, STATUS)}
    assert labelled == {**gates, **own}


TARGETS = ("init_t:lnk_file", "sysfs_t:file", "bin_t:file", "var_run_t:dir")


@pytest.mark.parametrize("target", TARGETS)
def test_doctor_sees_what_the_selinux_module_lacks(machine: MachineFactory, target: str) -> None:
    host = machine("efifb-6.12")
    both(hook, with_module)(host)
    allowed = selinux_policy.denied(host)
    lines = (host.tree.read(fake_selinux.POLICY) or "").splitlines()
    rest = [line for line in lines if f" {target} " not in line]
    host.tree.put(fake_selinux.POLICY, "\n".join(rest))

    denied_then = selinux_policy.denied(host)

    assert allowed == ""
    assert denied_then.startswith("it does not allow vfio_console_hook_t to ")


@pytest.mark.parametrize(("enforce", "level"), [("1", "FAIL"), ("0", "WARN")])
def test_a_switch_that_keeps_qemu_from_the_gpu_is_found(
    machine: MachineFactory, enforce: str, level: str
) -> None:
    host = machine("efifb-6.12")
    both(hook, debian_13(OWN_LABEL, *cil.rules()), put(ENFORCE, enforce))(host)
    switches = [f"sys/fs/selinux/booleans/virt_use_{name}" for name in ("vfio", "sysfs")]
    for switch in switches:
        host.tree.put(switch, "0 0")

    off = [*selinux_policy.policy(System(host))]
    for switch in switches:
        host.tree.put(switch, "1 1")
    on = [*selinux_policy.policy(System(host))]
    host.tree.remove(switches[0])
    host.tree.put(switches[1], "0 0")
    fedora = [*selinux_policy.policy(System(host))]

    assert [one.level for one in off] == ["PASS", level]
    assert off[1].advice == "setsebool -P virt_use_vfio=on virt_use_sysfs=on"
    assert [one.level for one in (*on, *fedora)] == ["PASS", "PASS"]
