"""What is done with a package, and what is demanded of it then."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.cache import BuildError
from vfio_console_hook import __version__

from . import readme
from .managers import Apt, Dnf, Manager, Pacman, Zypper
from .roots import Answer
from .versions import NEXT, NEXT_LINE, Packages

LIB = "usr/lib/vfio-console-hook"
GATE = "etc/libvirt/hooks/qemu"
DROPIN = "etc/libvirt/hooks/qemu.d/50-vfio-console-hook"
DAEMON_GATE = "etc/libvirt/hooks/daemon"
ETC = "etc/vfio-console-hook"
CLAIM = "run/vfio-console-hook/claims/win11"
UNIT = "vfio-console-hook-recover.service"
ENABLED = {
    f"etc/systemd/system/{daemon}.service.wants/{UNIT}" for daemon in ("libvirtd", "virtqemud")
}
HOST_LINE = readme.line("apt", "libvirt-daemon-system")
SETTING = "timeout_s: 90"
FOREIGN = "#!/bin/sh\n# another project's\n"
BUSY_S = 4

_PCI = (
    "<domain type='kvm'>\n  <name>win11</name>\n"
    "  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>\n  <devices>\n"
    "    <hostdev mode='subsystem' type='pci' managed='yes'>\n      <source>\n"
    "        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>\n"
    "      </source>\n    </hostdev>\n  </devices>\n</domain>\n"
)


class Failure(Exception):
    """A demand that was not met, in one sentence."""


def demand(met: bool, otherwise: str) -> None:
    if not met:
        raise Failure(otherwise)


def succeeded(answer: Answer, what: str) -> None:
    last = (answer.text.strip().splitlines() or [""])[-1]
    demand(answer.status == 0, f"{what} ended with status {answer.status}: {last}")


# --- what is demanded of a root ---------------------------------------------------


def check_installed(manager: Manager, version: str, gate: str = GATE) -> None:
    """The package is whole, and libvirt and systemd find what is theirs."""
    root = manager.root
    demand(manager.version() == f"{version}-1", f"version {manager.version()!r} is installed")
    link = root.shell(f"readlink /{LIB}").text.strip()
    demand(link == f"vfio-console-hook.{version}", f"/{LIB} is a link to {link}")
    packed = root.text(f"{LIB}.{version}/gate")
    demand(bool(packed) and root.text(gate) == packed, f"/{gate} is not the gate")
    demand(root.shell(f"test -x /{gate}").status == 0, f"/{gate} cannot be executed")
    # The roots of other managers than apt have systemctl, but no init.
    by_systemd = "systemd" in root.shell("readlink /sbin/init").text
    wanted = "" if by_systemd else root.text(f"{LIB}.{version}/daemon-gate")
    demand(root.text(DAEMON_GATE) == wanted, f"/{DAEMON_GATE} is not as it should be")
    printed = root.run("vfio-console-hook", "--version").text.strip()
    demand(printed == version, f"the command is version {printed}")
    compiled = root.shell(f"ls /{LIB}/vfio_console_hook/__pycache__/hook.*.pyc")
    succeeded(compiled, "the program has no bytecode:")
    enabled = root.run("systemctl", "is-enabled", UNIT).text.strip()
    demand(enabled == "enabled", f"{UNIT} is {enabled}")
    check_events(manager, gate)


def check_events(manager: Manager, gate: str) -> None:
    """A VM without a PCI device passes; one with a GPU reaches the program and its libraries."""
    root = manager.root
    root.put("tmp/pci.xml", _PCI)
    root.put("tmp/plain.xml", _PCI.replace("type='pci'", "type='usb'"))
    plain = root.shell(f"/{gate} win11 prepare begin - </tmp/plain.xml")
    passed = (plain.status, plain.text) == (0, "")
    demand(passed, f"the gate stops a VM without a GPU: {plain.text}")
    # There is no /sys in the root: that is what the program refuses.
    refused = root.shell(f"/{gate} win11 prepare begin - </tmp/pci.xml")
    whole = refused.status == 1 and "0000:01:00.0" in refused.text
    demand(whole, f"the hook does not look for the GPU: {refused.text}")


def check_whole(manager: Manager) -> None:
    """No file differs from the package."""
    answer = manager.verify()
    demand((answer.status, answer.text) == (0, ""), f"files differ from the package: {answer.text}")


def check_gone(manager: Manager, before: set[str], *left: str) -> None:
    """The root is as it was, but for these files of the administrator."""
    changes = manager.root.changes()
    expected = before | {f"+{name}" for name in left}
    difference = sorted(changes ^ expected)
    demand(not difference, f"the root is not as it was before: {' '.join(difference)}")
    demand(manager.root.shell("ls -d /run/vfio-*").status != 0, "something is left in /run")


# --- trials -----------------------------------------------------------------------


def life(manager: Manager, packages: Packages) -> None:
    """Install, configure, upgrade while a VM runs, refuse to be removed, be removed and purged."""
    root = manager.root
    before = root.changes()
    succeeded(manager.install(packages.now[manager.kind]), "the installation")
    check_installed(manager, __version__)
    check_whole(manager)
    configure(manager)
    root.put(CLAIM, "{}\n")
    upgrade(manager, packages)
    refused = manager.remove()
    demand(refused.status != 0, "it was removed while a VM holds a GPU")
    sentence = f"a VM still holds a GPU of this host (/{CLAIM}); nothing was removed"
    demand(sentence in refused.text, "the reason why it cannot be removed is not printed")
    check_installed(manager, NEXT)
    (root.top / CLAIM).unlink()
    succeeded(manager.remove(), "the removal")
    demand(manager.version() == "", "it is still installed")
    for path in (GATE, LIB, *ENABLED):
        demand(root.shell(f"test -L /{path} || test -e /{path}").status != 0, f"/{path} is left")
    kept = {"deb": "", "rpm": ".rpmsave", "arch": ".pacsave"}[manager.kind]
    saved = root.text(f"{ETC}/default.yaml{kept}")
    demand(SETTING in saved, "the configuration that was changed is gone")
    if manager.kind == "deb":
        succeeded(manager.purge(), "the purge")
        check_gone(manager, before)
    else:
        mine = f"{ETC}/vms/win11.yaml"
        check_gone(manager, before, ETC, f"{ETC}/default.yaml{kept}", f"{ETC}/vms", mine)
        shutil.rmtree(root.top / ETC)
    # Once more, without any change.
    succeeded(manager.install(packages.now[manager.kind]), "another installation")
    check_installed(manager, __version__)
    succeeded(manager.purge(), "another purge")
    check_gone(manager, before)


def configure(manager: Manager) -> None:
    root = manager.root
    default = root.text(f"{ETC}/default.yaml")
    root.put(f"{ETC}/default.yaml", f"{default}{SETTING}\n")
    root.put(f"{ETC}/vms/win11.yaml", "log_level: debug\n")
    succeeded(root.run("vfio-console-hook", "check-config"), "check-config")


def upgrade(manager: Manager, packages: Packages) -> None:
    """To the next version, while a hook of this one is at work."""
    root = manager.root
    # As hooks/launch.py does: the directory is open as long as the hook runs.
    script = f"exec 3<$(readlink -f /{LIB}); echo; sleep {BUSY_S}; test -e /proc/self/fd/3/hook"
    with subprocess.Popen(root.argv("/bin/sh", "-c", script), stdout=subprocess.PIPE) as busy:
        assert busy.stdout
        busy.stdout.readline()
        succeeded(manager.install(packages.later[manager.kind]), "the upgrade")
        # pacman has no moment between the new files and the removal of the old ones: what it
        # removes is gone, but the upgrade has waited before.
        demand(busy.wait() == 0, "a hook that was at work has lost its files")
    check_installed(manager, NEXT)
    demand(NEXT_LINE in root.text(GATE), "the gate is still the old one")
    demand(SETTING in root.text(f"{ETC}/default.yaml"), "the upgrade has changed default.yaml")
    demand(root.text(f"{ETC}/vms/win11.yaml") != "", "the upgrade has removed a VM's configuration")
    demand(root.text(CLAIM) == "{}\n", "the upgrade has changed a claim")
    old = root.shell(f"ls -d /{LIB}.{__version__}")
    demand(old.status != 0, "files of the old version are left")


def beside(manager: Manager, packages: Packages) -> None:
    """Another project's hook stays what libvirt runs first, and ours is put into qemu.d."""
    root = manager.root
    root.put(GATE, FOREIGN, 0o755)
    before = root.changes()
    succeeded(manager.install(packages.now[manager.kind]), "the installation")
    check_installed(manager, __version__, DROPIN)
    demand(root.text(GATE) == FOREIGN, "the foreign hook was changed")
    succeeded(manager.purge(), "the purge")
    check_gone(manager, before)
    (root.top / GATE).unlink()


def takeover(manager: Manager, packages: Packages) -> None:
    """From install.sh to the package: no question, nothing left, the configuration kept."""
    root = manager.root
    before = root.changes()
    succeeded(manager.install(packages.now[manager.kind]), "the installation")
    direct = root.changes()
    succeeded(manager.purge(), "the purge")
    check_gone(manager, before)
    shutil.copytree(packages.clone, root.top / "root/clone")
    # What is installed now is of an earlier version.
    shipped = root.top / "root/clone/config/default.yaml"
    shipped.write_text(f"# of an earlier version\n{shipped.read_text()}")
    for changed in (False, True):
        succeeded(root.run("/root/clone/install.sh"), "install.sh")
        aside = set()
        if changed:
            configure(manager)
            new = {"deb": ".dpkg-dist", "rpm": ".rpmnew"}[manager.kind]
            aside = {f"+{ETC}/default.yaml{new}", f"+{ETC}/vms/win11.yaml"}
        succeeded(manager.install(packages.now[manager.kind]), "the package after install.sh")
        check_installed(manager, __version__)
        difference = sorted(root.changes() ^ (direct | aside))
        demand(not difference, f"another root than without install.sh: {' '.join(difference)}")
        for option in ((), ("--uninstall",)):
            refused = root.run("/root/clone/install.sh", *option)
            known = "is installed as a package" in refused.text
            demand(refused.status == 1 and known, "install.sh does not see the package")
        default = root.text(f"{ETC}/default.yaml")
        wrong = SETTING not in default if changed else "of an earlier version" in default
        demand(not wrong, f"default.yaml was {'' if changed else 'not '}replaced")
        succeeded(manager.purge(), "the purge")
        shutil.rmtree(root.top / ETC, ignore_errors=manager.kind == "deb" or not changed)
        check_gone(manager, before)


def fresh(manager: Manager, packages: Packages) -> None:
    """A root with nothing of what the package needs: apt installs that, and says no more."""
    root = manager.root
    package = manager.bring(packages.now[manager.kind])
    answer = root.run("apt-get", "install", "-y", "--no-install-recommends", package)
    succeeded(answer, "the installation")
    # systemd is not there, and neither is libvirt.
    printed = root.run("vfio-console-hook", "--version").text.strip()
    demand(printed == __version__, f"the command is version {printed}")
    check_events(manager, GATE)
    succeeded(manager.purge(), "the purge")
    found = root.shell("find / -xdev -path /repo -prune -o -name '*vfio-console-hook*' -print").text
    demand(found == "", f"the purge has left {found}")
    demand(root.shell("ls -d /etc/libvirt").status != 0, "the purge has left /etc/libvirt")


def clone(manager: Manager, packages: Packages) -> None:
    """install.sh from a clone brings what it needs with this package manager, and says what."""
    root = manager.root
    shutil.copytree(packages.clone, root.top / "root/clone")
    libvirtd = "#!/bin/sh\necho 'libvirtd (libvirt) 11.0.0'\n"
    if isinstance(manager, Apt):
        root.put("usr/sbin/libvirtd", libvirtd, 0o755)
        succeeded(root.run("/root/clone/install.sh"), "install.sh")
        check_events(manager, GATE)
        demand(manager.has(manager.libvirt), f"{manager.libvirt} was not installed")
        removed = root.run("/root/clone/install.sh", "--uninstall")
        stay = "these packages, which stay: python3 python3-libvirt python3-lxml python3-yaml"
        demand(stay in removed.text, f"it does not say which packages stay: {removed.text}")
        found = root.shell("find / -xdev -path /root -prune -o -name '*vfio-console-hook*' -print")
        demand(found.text == "", f"the uninstallation has left {found.text}")
        return
    for other in {"apt-get", "dnf", "zypper", "pacman"} - {manager.program}:
        (root.top / "usr/bin" / other).unlink(missing_ok=True)
    # The packages that stand in have no files, so the libraries stay away.
    root.shell("mv /usr/lib/python3/dist-packages/lxml /tmp")
    check_brought(manager, manager.libraries)
    root.shell("mkdir /tmp/bin && mv /usr/bin/python3* /tmp/bin")
    if manager.older:
        root.shell("ln -s false /usr/bin/python3")  # an old one
        check_brought(manager, manager.older)
    root.shell("rm -f /usr/bin/python3; mv /tmp/bin/* /usr/bin")
    root.shell("mv /tmp/lxml /usr/lib/python3/dist-packages")
    root.put("usr/sbin/libvirtd", libvirtd, 0o755)
    succeeded(root.run("/root/clone/install.sh"), "install.sh")
    demand(manager.has(manager.libvirt), f"{manager.libvirt} was not installed")


def check_brought(manager: Manager, names: tuple[str, ...]) -> None:
    """install.sh ends without an installation, and says that it has installed these packages."""
    refused = manager.root.run("/root/clone/install.sh")
    sentence = f"nothing was installed, but these packages were: {' '.join(names)}"
    demand(sentence in refused.text, f"it does not say what it has installed: {refused.text}")
    for name in names:
        demand(manager.has(name), f"{name} was not installed")


def host(manager: Manager, packages: Packages) -> None:
    """The README's line makes a host of virtual machines, and the package goes beside it."""
    root = manager.root
    succeeded(root.shell(HOST_LINE), "the line of the README")
    for name in HOST_LINE.split()[2:]:
        demand(manager.has(name), f"{name} was not installed")
    succeeded(manager.install(packages.now[manager.kind]), "the installation")
    check_events(manager, GATE)


def releases(manager: Manager, packages: Packages) -> None:
    """From bookworm to trixie to forky, while a VM holds a GPU."""
    root = manager.root
    package = manager.bring(packages.now[manager.kind])
    options = ("-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confdef")
    succeeded(root.run("apt-get", "install", *options, package), "the installation")
    root.put(CLAIM, "{}\n")
    sources = root.text("etc/apt/sources.list")
    for old, new in (("bookworm", "trixie"), ("trixie", "forky")):
        sources = sources.replace(old, new)
        root.put("etc/apt/sources.list", sources)
        succeeded(root.run("apt-get", "update"), f"apt-get update of {new}")
        succeeded(root.run("apt-get", "dist-upgrade", *options), f"the upgrade to {new}")
        number = root.shell("python3 -c 'import sys; print(*sys.version_info[:2], sep=\"\")'").text
        compiled = f"/{LIB}/vfio_console_hook/__pycache__/hook.cpython-{number.strip()}.pyc"
        found = root.shell(f"ls /{LIB}/vfio_console_hook/__pycache__/hook.*.pyc").text.strip()
        demand(found == compiled, f"in {new} the bytecode is {found}")
        printed = root.run("vfio-console-hook", "--version").text.strip()
        demand(printed == __version__, f"in {new} the command is version {printed}")
        check_events(manager, GATE)
        demand(root.text(CLAIM) == "{}\n", f"the upgrade to {new} has changed a claim")
        refused = manager.remove()
        demand("a VM still holds a GPU" in refused.text, f"in {new} it was removed")
    (root.top / CLAIM).unlink()
    succeeded(manager.purge(), "the purge")


@dataclass(frozen=True)
class Trial:
    """One trial; root is a suite that the lab has with libvirt, one without, or "managers"."""

    name: str
    root: str
    manager: type[Manager]
    do: Callable[[Manager, Packages], None]
    quick: bool = False


SUITES = ("bookworm", "trixie", "forky")
TRIALS = (
    *(Trial(f"apt-{suite}", suite, Apt, life) for suite in SUITES),
    *(Trial(f"apt-{suite}-beside", suite, Apt, beside) for suite in SUITES),
    *(Trial(f"apt-{suite}-takeover", suite, Apt, takeover) for suite in SUITES),
    *(
        Trial(f"apt-{suite}-fresh", f"small-{suite}", Apt, fresh, suite == "trixie")
        for suite in SUITES
    ),
    *(Trial(f"apt-{suite}-host", f"small-{suite}", Apt, host) for suite in ("bookworm", "trixie")),
    Trial("apt-trixie-clone", "small-trixie", Apt, clone),
    Trial("apt-releases", "small-bookworm", Apt, releases),
    *(
        Trial(f"{name}{suffix}", "managers", manager, do, do is life)
        for name, manager in (("dnf5", Dnf), ("zypper", Zypper), ("pacman", Pacman))
        for suffix, do in (("", life), ("-takeover", takeover), ("-clone", clone))
        if (name, do) != ("pacman", takeover)  # pacman overwrites no file that it does not know
    ),
)


def run(trial: Trial, manager: Callable[[], Manager], packages: Packages) -> str:
    """Run a trial; "" or why it failed."""
    try:
        trial.do(manager(), packages)
    except (Failure, BuildError, OSError, subprocess.CalledProcessError) as error:
        return str(error)
    return ""
