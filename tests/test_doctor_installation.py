"""doctor: the hook where libvirt looks for it, the program, and other hooks."""

from __future__ import annotations

import pytest

from tests import installed
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
    system_of,
)
from tests.fakehost import FakeHost, systemd
from tests.installed import (
    CHAINED,
    DAEMON,
    DROPIN,
    GATE,
    UNIT,
    daemon_gate_text,
    file,
    folder,
    gate_text,
)
from vfio_console_hook.commands.doctor import installation, other_hooks
from vfio_console_hook.commands.doctor.finding import Check

DROPINS = "etc/libvirt/hooks/qemu.d"
FOREIGN = "#!/bin/sh\nexit 0\n"
DISPATCHED = f"{DROPINS}/win11/prepare/begin/start.sh"
LIBVIRTD = ("/usr/sbin/libvirtd", "--version")
UNIT_NAME = UNIT.rpartition("/")[2]
PACKAGE = "usr/lib/vfio-console-hook/vfio_console_hook"
FIRST_LINE, OWNER = "first line of the hook", "owner of the hook"


def hook(host: FakeHost) -> None:
    installed.hook(host)


def with_hook(
    name: str, check: Check, level: str, title: str, value: str = "", *arrangements: Arrange
) -> Case:
    """A case on a machine with the hook."""
    return Case(name, check, both(hook, *arrangements), level, title, value)


def put_file(path: str, text: str = FOREIGN, mode: int = 0o755) -> Arrange:
    return lambda host: file(host, path, text, mode=mode)


def gone(path: str) -> Arrange:
    def arrange(host: FakeHost) -> None:
        host.tree.remove(path)
        host.tree.remove(f"stat/{path}")

    return arrange


def text_link(path: str, target: str) -> Arrange:
    return lambda host: host.tree.text_link(path, target)


def raw_gate(text: str) -> Arrange:
    """The gate with this content, line ends as they are."""

    def arrange(host: FakeHost) -> None:
        with open(host.path(GATE), "w", encoding="utf-8", newline="") as out:
            out.write(text)

    return arrange


def chained(first_hook: str) -> Arrange:
    """The gate lies beside another hook with this text."""

    def arrange(host: FakeHost) -> None:
        installed.hook(host, CHAINED)
        file(host, GATE, first_hook)

    return arrange


def dropin(host: FakeHost) -> None:
    installed.hook(host, DROPIN)


def python(version: str) -> Arrange:
    return lambda host: installed.answer(host, installation.ask_python("usr/bin/python3"), version)


def without_yaml(host: FakeHost) -> None:
    reason = "ModuleNotFoundError: No module named 'yaml'"
    installed.failure(host, installation.ask_python("usr/bin/python3"), reason)


def another_python(host: FakeHost) -> None:
    """As install.sh leaves it where python3 is too old."""
    text = gate_text().replace("PYTHON=/usr/bin/python3\n", "PYTHON=/usr/bin/python3.11\n")
    file(host, GATE, text)
    installed.answer(host, installation.ask_python("usr/bin/python3.11"), "3.11.9")


def libvirt(version: str) -> Arrange:
    def arrange(host: FakeHost) -> None:
        file(host, "usr/sbin/libvirtd", "")
        installed.answer(host, LIBVIRTD, f"libvirtd (libvirt) {version}")

    return arrange


def unit(host: FakeHost) -> None:
    systemd.install(host.tree)
    folder(host, "run/systemd/system")
    file(host, UNIT, "[Unit]", mode=0o644)
    for name in ("libvirtd", "virtqemud"):
        host.tree.link(wanted_by(name), UNIT)


def folder_of_init_scripts(host: FakeHost) -> None:
    folder(host, "etc/init.d")


def unit_of_package(host: FakeHost) -> None:
    systemd.install(host.tree)
    folder(host, "run/systemd/system")
    file(host, UNIT, "[Unit]\n[Install]", mode=0o644)


def enabled_with(name: str) -> Arrange:
    """As systemctl enables it for one of libvirt's daemons."""
    return text_link(f"etc/systemd/system/{name}.service.wants/{UNIT_NAME}", f"/{UNIT}")


def wanted_by(name: str) -> str:
    return f"usr/lib/systemd/system/{name}.service.wants/vfio-console-hook-recover.service"


def status(path: str, attributes: str) -> Arrange:
    return put(f"stat/{path}", attributes)


def refused(host: FakeHost) -> None:
    installed.refuse(host, GATE)


def dangling_gate(host: FakeHost) -> None:
    gone(GATE)(host)
    host.tree.text_link(GATE, "gone")


def linked_gate(host: FakeHost) -> None:
    host.tree.remove(GATE)
    file(host, "opt/hook", gate_text())
    folder(host, "opt", mode=0o777)
    host.tree.text_link(GATE, "../../../opt/hook")


HOOK = [
    with_hook("installed", installation.hook, "PASS", "hook", f"/{GATE}"),
    with_hook("a first line", installation.hook, "PASS", FIRST_LINE, "#!/bin/sh"),
    Case(
        "not installed", installation.hook, lambda host: folder(host, "etc/libvirt"),
        "FAIL", "hook", "./install.sh",
    ),
    missing_in_snapshot("libvirt not in the snapshot", installation.hook, nothing, "hook"),
    Case(
        "no libvirt", installation.hook, put("recorded/now", "1732312312"),
        "FAIL", "hook", "/etc/libvirt",
    ),
    with_hook(
        "not executable", installation.hook, "FAIL", "hook", f"chmod 755 /{GATE}",
        put_file(GATE, gate_text(), 0o644),
    ),
    with_hook(
        "Windows line endings", installation.hook, "FAIL", FIRST_LINE, "CRLF",
        raw_gate(gate_text().replace("\n", "\r\n")),
    ),
    with_hook(
        "an interpreter that is missing", installation.hook, "FAIL", FIRST_LINE, "/bin/nosh",
        raw_gate(gate_text().replace("#!/bin/sh", "#!/bin/nosh")),
    ),
    with_hook(
        "no interpreter", installation.hook, "FAIL", FIRST_LINE, "an interpreter",
        raw_gate(gate_text().replace("#!/bin/sh", "#!")),
    ),
    with_hook(
        "a byte order mark", installation.hook, "FAIL", FIRST_LINE, "#!",
        raw_gate("\ufeff" + gate_text()),
    ),
    with_hook(
        "an interpreter that is not executable", installation.hook, "FAIL", FIRST_LINE, "/bin/sh",
        status("bin/sh", "100644 0 0 1"),
    ),
    with_hook(
        "two gates", installation.hook, "WARN", "hook", f"rm /{DROPIN}",
        put_file(DROPIN, gate_text()),
    ),
    Case(
        "called by another hook", installation.hook,
        chained(f'#!/bin/sh\n[ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1\n'),
        "PASS", "hook", f"/{CHAINED}",
    ),
    Case(
        "not called by another hook", installation.hook,
        chained(f"#!/bin/sh\n# /{CHAINED} is not called\nexit 0\n"),
        "FAIL", "hook", f'/{CHAINED} "$@"',
    ),
    with_hook(
        "a link to nothing", installation.hook, "FAIL", "hook", f"rm /{GATE}", dangling_gate
    ),
    with_hook("without root", installation.hook, "WARN", "hook", "as root", refused),
    with_hook("owner, without root", installation.owner, "WARN", OWNER, "as root", refused),
    with_hook(
        "other hooks, without root", other_hooks.other_hooks,
        "WARN", "other hooks", "as root", refused,
    ),
    with_hook("only root can write", installation.owner, "PASS", OWNER),
    with_hook(
        "the group root can write", installation.owner, "PASS", OWNER, "",
        status(GATE, "100775 0 0 1"),
    ),
    *(
        with_hook(
            f"{path} is {attributes}", installation.owner, "FAIL", OWNER,
            f"{mend} /{path.replace('/.itself', '')}", status(path, attributes),
        )
        for path, attributes, mend in (
            (GATE, "100755 1000 0 1", "chown root:root"),
            (GATE, "100757 0 0 1", "chmod go-w"),
            (GATE, "100775 0 36 1", "chmod go-w"),
            ("etc/libvirt/hooks/.itself", "40777 0 0 1", "chmod go-w"),
            ("usr/lib/vfio-console-hook.1/.itself", "40755 33 0 1", "chown root:root"),
            ("usr/lib/vfio-console-hook.1/hook", "100666 0 0 1", "chmod go-w"),
        )
    ),
    with_hook(
        "the target of a link", installation.owner, "FAIL", OWNER, "go-w /opt", linked_gate
    ),
    with_hook("Python", installation.python, "PASS", "Python", "3.9.2", python("3.9.2")),
    with_hook("an old Python", installation.python, "FAIL", "Python", "3.8.10", python("3.8.10")),
    with_hook(
        "a missing library", installation.python, "FAIL", "Python", "named 'yaml'", without_yaml
    ),
    missing_in_snapshot("Python not in the snapshot", installation.python, nothing, "Python"),
    with_hook("the program", installation.program, "PASS", "program"),
    with_hook(
        "another version", installation.program, "WARN", "program", "0.0.1",
        put_file(f"{PACKAGE}/__init__.py", '__version__ = "0.0.1"', 0o644),
    ),
    *(
        with_hook(f"no {path}", installation.program, level, "program", f"/{shown}", gone(path))
        for path, level, shown in (
            ("usr/lib/vfio-console-hook/hook", "FAIL", "usr/lib/vfio-console-hook/hook"),
            (f"{PACKAGE}/__init__.py", "FAIL", PACKAGE),
            ("usr/bin/vfio-console-hook", "WARN", "usr/bin/vfio-console-hook"),
        )
    ),
    *(
        Case(name, installation.libvirt_version, both(*arrangements), level, "version of libvirt")
        for name, level, arrangements in (
            ("an old libvirt", "PASS", (hook, libvirt("6.0.0"))),
            (
                "an old libvirt with another hook in qemu.d", "WARN",
                (hook, libvirt("6.0.0"), put_file(f"{DROPINS}/10-foreign")),
            ),
            ("libvirt 6.4 with our hook in qemu.d", "FAIL", (dropin, libvirt("6.4.0"))),
            ("libvirt 6.5 with our hook in qemu.d", "PASS", (dropin, libvirt("6.5.0"))),
            ("libvirt 11.3 with our hook in qemu.d", "PASS", (dropin, libvirt("11.3.0"))),
        )
    ),
    missing_in_snapshot(
        "a version that is not in the snapshot", installation.libvirt_version,
        both(hook, put_file("usr/sbin/libvirtd", "")), "version of libvirt",
    ),
    with_hook(
        "a Python beside an old one", installation.python, "PASS", "Python",
        "/usr/bin/python3.11 is version 3.11.9", another_python,
    ),
    with_hook("the unit", installation.recover_unit, "PASS", "recover unit", "", unit),
    with_hook(
        "a masked unit", installation.recover_unit, "PASS", "recover unit", "masked", unit,
        text_link("etc/systemd/system/vfio-console-hook-recover.service", "/dev/null"),
    ),
    *(
        with_hook(
            f"no {path}", installation.recover_unit, "WARN", "recover unit", f"/{path}", unit,
            gone(path),
        )
        for path in (UNIT, wanted_by("libvirtd"), wanted_by("virtqemud"))
    ),
    with_hook(
        "a unit of a package", installation.recover_unit, "PASS", "recover unit", "starts with",
        unit_of_package, *map(enabled_with, ("libvirtd", "virtqemud")),
    ),
    with_hook(
        "a unit of a package, disabled", installation.recover_unit, "WARN", "recover unit",
        "systemctl enable", unit_of_package, enabled_with("libvirtd"),
    ),
    *(
        with_hook(
            f"without systemd, {name}", installation.recover_unit, level, "recover hook", text,
            folder_of_init_scripts, *arrangements,
        )
        for name, level, text, arrangements in (
            ("nothing", "WARN", "no hook runs", (gone(DAEMON),)),
            ("the daemon's gate", "PASS", f"/{DAEMON} runs", ()),
            (
                "the daemon's gate in daemon.d", "PASS", f"/{DAEMON}.d/50-x runs",
                (put_file(f"{DAEMON}.d/50-x", daemon_gate_text()), put_file(DAEMON)),
            ),
            ("another hook of the daemon", "WARN", "no hook runs", (put_file(DAEMON),)),
            (
                "a gate that is not executable", "WARN", "no hook runs",
                (put_file(DAEMON, daemon_gate_text(), 0o644),),
            ),
            (
                "another hook that only mentions it", "WARN", "no hook runs",
                (put_file(DAEMON, "#!/bin/sh\n# /usr/bin/vfio-console-hook recover\n"),),
            ),
        )
    ),
]  # fmt: skip


def calling(text: str) -> Arrange:
    return put_file(f"{DROPINS}/10-foreign", text)


def dispatcher(text: str) -> Arrange:
    """Another hook that runs the scripts in the folders of a VM, one of which has this text."""
    return both(dropin, put_file(GATE), put_file(DISPATCHED, text))


OTHERS = [
    with_hook("no other hook", other_hooks.other_hooks, "PASS", "other hooks"),
    with_hook(
        "our hook is not executable", other_hooks.other_hooks, "PASS", "other hooks", "",
        put_file(GATE, gate_text(), 0o644),
    ),
    with_hook(
        "another hook", other_hooks.other_hooks, "PASS", "other hooks", f"/{DROPINS}/10-foreign",
        calling(FOREIGN),
    ),
    *(
        with_hook(
            f"a file {name}", other_hooks.other_hooks, "WARN", "other hooks",
            f"{fix} /{DROPINS}/{name}", put_file(f"{DROPINS}/{name}", mode=mode),
        )
        for name, mode, fix in (
            ("10-foreign", 0o644, "chmod 755"),
            ("10-foreign~", 0o755, "rm"),
            ("50-vfio-console-hook.bak", 0o755, "rm"),
            (".10-foreign.swp", 0o755, "rm"),
            ("10-foreign.dpkg-old", 0o755, "rm"),
        )
    ),
    with_hook(
        "a directory without a dispatcher", other_hooks.other_hooks, "WARN", "other hooks",
        f"/{DROPINS}/win11", put_file(DISPATCHED),
    ),
    Case(
        "a directory with a dispatcher", other_hooks.other_hooks, dispatcher(FOREIGN),
        "PASS", "other hooks", f"/{GATE}",
    ),
    with_hook(
        "another link to nothing", other_hooks.other_hooks, "WARN", "other hooks",
        f"rm /{DROPINS}/10-foreign", text_link(f"{DROPINS}/10-foreign", "gone"),
    ),
]  # fmt: skip
CASES = [*HOOK, *OTHERS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_has_its_finding(machine: MachineFactory, case: Case) -> None:
    assert_found(case, machine(case.machine))


def test_the_sentences_about_the_installation(machine: MachineFactory, golden: Golden) -> None:
    golden("doctor-sentences-installation", sentences(CASES, machine))


def test_without_systemd_no_unit_is_missing(machine: MachineFactory) -> None:
    case = with_hook("no systemd", installation.recover_unit, "PASS", "")

    assert [one.subject for one in findings(case, machine(case.machine))] == ["recover hook"]


def test_a_dangling_gate_is_reported_once(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    both(hook, dangling_gate)(host)

    checks = (installation.hook, other_hooks.other_hooks)
    levels = [one.level for check in checks for one in check(system_of(host))]

    assert levels.count("FAIL") == 1
    assert "WARN" not in levels
