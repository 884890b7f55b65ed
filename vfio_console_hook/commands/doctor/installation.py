"""Checks of what install.sh or a package has put onto the host: hook, program, unit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ... import __version__
from ...errors import HostError, UnrecordedError
from ...machine import systemd
from ...machine.host import Host
from .finding import Finding, check, failure, need_recorded, passed, unrecorded, warning
from .hook_files import (
    CHAINED,
    DAEMON,
    DROPIN,
    DROPINS,
    MAIN,
    HookFile,
    code_lines,
    gates,
    hook_file,
    hook_files,
    python_of_hook,
)
from .system import System

_LIB = "usr/lib/vfio-console-hook"
PROGRAM = f"{_LIB}/hook"
_PACKAGE = f"{_LIB}/vfio_console_hook"
_COMMAND = "usr/bin/vfio-console-hook"
_UNITS = "usr/lib/systemd/system"
_UNIT = "vfio-console-hook-recover.service"
_WANTED_BY = ("libvirtd", "virtqemud")
# What install.sh links, and what systemctl does for a package.
_LINKS = (_UNITS, "etc/systemd/system")

_DAEMONS = ("usr/sbin/virtqemud", "usr/sbin/libvirtd", "usr/bin/virtqemud", "usr/bin/libvirtd")
_READS_DROPINS = (6, 5)
_OLDEST_PYTHON = (3, 9)
_ASK = "import sys; print(sys.version.split()[0]); sys.tracebacklimit = 0; import lxml.etree, yaml"
_TIMEOUT_S = 10

_REINSTALL = "install vfio-console-hook again"
_CALL_CHAINED = f'[ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1'


@check("hook")
def hook(system: System) -> Iterator[Finding]:
    """Whether the gate is where libvirt looks, once, and whether it can be executed."""
    host = system.host
    if host.stat("etc/libvirt") is None:
        need_recorded(host, "etc/libvirt")
        yield failure("there is no /etc/libvirt; libvirt is not installed", "install libvirt first")
        return
    found = gates(host)
    running = [one for one in found if one.runs]
    for one in running:
        yield passed(f"installed as /{one.path}")
        yield from _first_line(host, one)
    if len(running) > 1:
        names = " and ".join(f"/{one.path}" for one in running)
        yield warning(f"it runs twice for each event, as {names}", f"rm /{running[-1].path}")
    if not running:
        yield _why_none_runs(host, found)


def _why_none_runs(host: Host, found: tuple[HookFile, ...]) -> Finding:
    for gate in found:
        text = f"/{gate.path} is not executable, so VMs start without it"
        return failure(text, f"chmod 755 /{gate.path}")
    there = {path: one for path in (MAIN, DROPIN, CHAINED) if (one := hook_file(host, path))}
    for path in (MAIN, DROPIN):
        if path in there and there[path].dangling:
            text = f"/{path} is a link to {there[path].target}, which does not exist"
            return failure(text, f"rm /{path}; then {_REINSTALL}")
    if CHAINED in there and MAIN in there:
        return failure(
            f"/{MAIN} belongs to another program and does not call /{CHAINED}",
            f"add this line to /{MAIN}, after its first line: {_CALL_CHAINED}",
        )
    return failure("not installed, so VMs start without it", "run ./install.sh as root")


def _first_line(host: Host, gate: HookFile) -> Iterator[Finding]:
    """Whether the kernel can execute the gate (Linux fs/binfmt_script.c, load_script)."""
    title = "first line of the hook"
    path = f"/{gate.path}"
    first = gate.content.split(b"\n")[0]
    if b"\r" in gate.content:
        text = f"{path} has Windows line endings (CRLF); it cannot run, and no VM starts"
        yield failure(text, f"sed -i 's/\\r$//' {path}", of=title)
        return
    if not first.startswith(b"#!"):
        text = f"{path} does not begin with #!; it cannot run, and no VM starts"
        yield failure(text, _REINSTALL, of=title)
        return
    interpreter = first[2:].split()[0].decode("utf-8", "replace") if first[2:].split() else ""
    status = host.stat(interpreter.lstrip("/")) if interpreter else None
    if status is None and unrecorded(host, "bin"):
        return
    if status is None or not status.st_mode & 0o111:
        text = f"{path} needs {interpreter or 'an interpreter'}, which cannot be executed"
        yield failure(f"{text}; no VM starts", _REINSTALL, of=title)
        return
    yield passed(f"{first.decode('utf-8', 'replace')} can be executed", of=title)


@check("owner of the hook")
def owner(system: System) -> Iterator[Finding]:
    """Whether only root can change what libvirt runs as root."""
    host = system.host
    files = [] if system.without_libvirt else [one.path for one in gates(host)]
    files += [path for path in (_COMMAND, PROGRAM, _PACKAGE) if host.stat(path) is not None]
    findings = [one for path in _with_folders(host, files) for one in _open_to_users(host, path)]
    yield from findings
    if files and not findings:
        yield passed("only root can change the files that run as root")


def _with_folders(host: Host, paths: list[str]) -> list[str]:
    """These files, the targets of links among them, and all folders above, outer ones first."""
    reals = [host.real(path) or path for path in paths]
    found = set()
    for path in (*paths, *reals):
        parts = path.split("/")
        found |= {"/".join(parts[:number]) for number in range(1, len(parts) + 1)}
    # A link, and what is below it, is there by its real path as well.
    return sorted(path for path in found if host.real(path) in (None, path))


def _open_to_users(host: Host, path: str) -> Iterator[Finding]:
    status = host.stat(path)
    if status is None:
        return
    if status.st_uid != host.owner_uid:
        text = f"/{path} belongs to user {status.st_uid}, not to root"
        yield failure(text, f"chown root:root /{path}")
    # The group root has no members but root, on any distribution.
    if status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid):
        yield failure(f"users other than root can write to /{path}", f"chmod go-w /{path}")


def ask_python(path: str) -> tuple[str, ...]:
    """Prints the version; fails, with one line, without the libraries that the hook needs."""
    return (f"/{path}", "-I", "-c", _ASK)


@check("Python")
def python(system: System) -> Iterator[Finding]:
    """Whether the Python that the gate starts is new enough, and has what the hook needs."""
    path = python_of_hook(system.host)
    try:
        version = system.host.run(*ask_python(path), timeout_s=_TIMEOUT_S)
    except UnrecordedError:
        raise
    except HostError as error:
        reason = error.text.rpartition(" failed: ")[2]
        yield failure(
            f"/{path} cannot run the hook: {reason}",
            "install lxml and PyYAML for Python (Debian: apt install python3-lxml python3-yaml;"
            " Fedora: dnf install python3-lxml python3-pyyaml)",
        )
        return
    if _numbers(version) < _OLDEST_PYTHON:
        yield failure(f"/{path} is version {version}", "install Python 3.9 or later")
    else:
        yield passed(f"/{path} is version {version} and has lxml and PyYAML")


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in re.findall("[0-9]{1,9}", version)[:2])


@check("program")
def program(system: System) -> Iterator[Finding]:
    """Whether the program that the gate starts is there, in the version that is running now."""
    host = system.host
    if not gates(host) and not system.without_libvirt:
        return
    if host.stat(PROGRAM) is None:
        refused = "" if system.without_libvirt else ", so every VM with a PCI device is refused"
        yield failure(f"there is no /{PROGRAM}{refused}", _REINSTALL)
        return
    content = host.read(f"{_PACKAGE}/__init__.py") or ""
    match = re.search(r'^__version__ = "([^"]*)"', content, re.MULTILINE)
    if match is None:
        yield failure(f"/{_PACKAGE} is incomplete: it has no version", _REINSTALL)
    elif match[1] != __version__:
        text = f"version {match[1]} is installed in /{_LIB}, but this is version {__version__}"
        yield warning(text, _REINSTALL)
    elif host.stat(_COMMAND) is None:
        yield warning(f"there is no /{_COMMAND}", _REINSTALL)
    else:
        yield passed(f"version {match[1]} is installed in /{_LIB}")


@check("recover unit")
def recover_unit(system: System) -> Iterator[Finding]:
    """Whether GPUs of VMs that are not running are released when the daemon starts.

    systemd does it, or libvirt where systemd does not run the host.
    """
    host = system.host
    if not gates(host):
        return
    if not systemd.booted(host):
        yield from _recover_hook(host)
        return
    if host.readlink(f"etc/systemd/system/{_UNIT}") == "/dev/null":
        yield passed(f"{_UNIT} was masked by the administrator")
        return
    if host.stat(f"{_UNITS}/{_UNIT}") is None:
        text = f"there is no /{_UNITS}/{_UNIT}, so GPUs that a killed hook leaves stay claimed"
        yield warning(text, _REINSTALL)
        return
    for name in _WANTED_BY:
        link = f"{name}.service.wants/{_UNIT}"
        if not any(host.readlink(f"{folder}/{link}") for folder in _LINKS):
            yield _not_started_with(host, name)
            return
    yield passed(f"{_UNIT} starts with libvirt's daemon")


def _recover_hook(host: Host) -> Iterator[Finding]:
    """Whether libvirt itself runs it then (libvirt docs/hooks.rst, /etc/libvirt/hooks/daemon)."""
    title = "recover hook"
    # A snapshot of an earlier version has neither of these.
    there = [host.exists(path) for path in ("etc/init.d", DAEMON, f"{DAEMON}.d")]
    if not (any(there) or host.complete):
        return
    called = [one for one in hook_files(host, DAEMON) if one.runs]
    calling = next((one for one in called if _calls_command(one)), None)
    if calling is not None:
        yield passed(f"/{calling.path} runs when libvirt's daemon starts", of=title)
        return
    text = "no hook runs `vfio-console-hook recover` when libvirt's daemon starts, so GPUs that a"
    yield warning(f"{text} killed hook leaves stay claimed", _REINSTALL, of=title)


def _calls_command(hook: HookFile) -> bool:
    # Not the word that follows, which a snapshot does not have.
    return any(f"/{_COMMAND}".encode() in line for _, line in code_lines(hook.content))


def _not_started_with(host: Host, daemon: str) -> Finding:
    """The unit of a package can be enabled; that of install.sh comes with its links."""
    if "[Install]" in (host.read(f"{_UNITS}/{_UNIT}") or ""):
        text = f"not started with {daemon}, because it is disabled"
        return warning(text, f"systemctl enable {_UNIT}")
    link = f"/{_LINKS[0]}/{daemon}.service.wants/{_UNIT}"
    return warning(f"not started with {daemon}: there is no link {link}", _REINSTALL)


@check("version of libvirt")
def libvirt_version(system: System) -> Iterator[Finding]:
    """Whether this libvirt runs what is in qemu.d."""
    host = system.host
    daemon = next((path for path in _DAEMONS if host.stat(path) is not None), None)
    if daemon is None:
        return  # the checks of the daemon report it
    # "libvirtd (libvirt) 9.0.0"
    version = host.run(f"/{daemon}", "--version", timeout_s=_TIMEOUT_S).rpartition(" ")[2]
    dropins = [
        one for one in hook_files(host) if one.path.startswith(f"{DROPINS}/") and one.is_file
    ]
    if not dropins or _numbers(version) >= _READS_DROPINS:
        yield passed(f"libvirt {version} is installed")
        return
    text = f"libvirt {version} runs nothing in /{DROPINS}; libvirt 6.5 and later do"
    if any(one.ours for one in dropins):
        yield failure(text, _REINSTALL)
    elif host.lstat(MAIN) is None:
        yield warning(text, f"move the file to /{MAIN}")
    else:
        yield warning(text, f"upgrade libvirt, or let /{MAIN} call it")
