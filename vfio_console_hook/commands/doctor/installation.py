"""Checks of what install.sh has put onto the host: the hook, the program, the unit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ... import __version__
from ...errors import HostError
from ...machine.host import Host
from . import other_hooks
from .finding import FAIL, NOT_RECORDED, PASS, WARN, Check, Finding, Subject, unrecorded
from .gates import CHAINED, DROPIN, DROPINS, MAIN, HookFile, entries, gates, look
from .unknown import titled, unasked, unknown

PYTHON = "usr/bin/python3"
_LIB = "usr/lib/vfio-console-hook"
_PROGRAM = f"{_LIB}/hook"
_PACKAGE = f"{_LIB}/vfio_console_hook"
_COMMAND = "usr/bin/vfio-console-hook"
_UNITS = "usr/lib/systemd/system"
_UNIT = "vfio-console-hook-recover.service"
_WANTED_BY = ("libvirtd", "virtqemud")

_DAEMONS = ("usr/sbin/virtqemud", "usr/sbin/libvirtd", "usr/bin/virtqemud", "usr/bin/libvirtd")
_READS_DROPINS = (6, 5)
_OLDEST_PYTHON = (3, 9)
ASK_PYTHON = (
    f"/{PYTHON}", "-I", "-c",
    "import sys; print(sys.version.split()[0]); sys.tracebacklimit = 0; import lxml.etree, yaml",
)  # fmt: skip
"""Tells the version; fails, with one line, without the libraries that the hook needs."""
_TIMEOUT_S = 10

_AGAIN = "run the install.sh of vfio-console-hook again"
_CHAIN = f'[ ! -x /{CHAINED} ] || /{CHAINED} "$@" || exit 1'


def _no_libvirt(host: Host) -> Finding | None:
    """The finding for a host without libvirt's folder, or for a recording without it."""
    if host.stat("etc/libvirt") is not None:
        return None
    if unrecorded(host, "etc/libvirt"):
        return Finding(WARN, "hook", NOT_RECORDED)
    return Finding(
        FAIL, "hook", "there is no /etc/libvirt: libvirt is not installed", "install libvirt first"
    )


@titled("hook")
def hook(subject: Subject) -> Iterator[Finding]:
    """Whether the gate is where libvirt looks, once, and whether it can be executed."""
    missing = _no_libvirt(subject.host)
    if missing is not None:
        yield missing
        return
    found = gates(subject.host)
    running = [one for one in found if one.runs]
    for one in running:
        yield Finding(PASS, "hook", f"/{one.path} is there")
        yield from _script(subject.host, one)
    if len(running) > 1:
        names = " and ".join(f"/{one.path}" for one in running)
        yield Finding(
            WARN, "hook", f"each event comes twice, to {names}", f"rm /{running[-1].path}"
        )
    if not running:
        yield _why_none(subject.host, found)


def _why_none(host: Host, found: tuple[HookFile, ...]) -> Finding:
    for one in found:
        return Finding(
            FAIL,
            "hook",
            f"/{one.path} is not executable: VMs start as if it were not there",
            f"chmod 755 /{one.path}",
        )
    for path in (MAIN, DROPIN):
        target = host.readlink(path)
        if target is not None and host.stat(path) is None:
            text = f"/{path} is a link to {target}, which is not there"
            return Finding(FAIL, "hook", text, f"rm /{path}; then {_AGAIN}")
    if look(host, CHAINED) is not None and look(host, MAIN) is not None:
        return Finding(
            FAIL,
            "hook",
            f"/{CHAINED} is there, and /{MAIN}, which is not ours, does not call it",
            f"add this line to /{MAIN}, after its first line: {_CHAIN}",
        )
    return Finding(
        FAIL, "hook", "it is not installed: VMs start without it", "run ./install.sh as root"
    )


def _script(host: Host, gate: HookFile) -> Iterator[Finding]:
    """Whether the kernel can execute the gate (Linux fs/binfmt_script.c, load_script)."""
    title = "first line of the hook"
    first = gate.content.split(b"\n")[0]
    if b"\r" in gate.content:
        yield Finding(
            FAIL,
            title,
            f"/{gate.path} has line ends of Windows (CRLF): it cannot run, and no VM starts",
            f"sed -i 's/\\r$//' /{gate.path}",
        )
        return
    if not first.startswith(b"#!"):
        text = f"/{gate.path} does not begin with #!: it cannot run, and no VM starts"
        yield Finding(FAIL, title, text, _AGAIN)
        return
    interpreter = first[2:].split()[0].decode("utf-8", "replace") if first[2:].split() else ""
    status = host.stat(interpreter.lstrip("/")) if interpreter else None
    if status is None and unrecorded(host, "bin"):
        return
    if status is None or not status.st_mode & 0o111:
        text = f"/{gate.path} needs {interpreter or 'a program'}, which cannot be run here"
        yield Finding(FAIL, title, f"{text}: no VM starts", _AGAIN)
        return
    yield Finding(PASS, title, first.decode("utf-8", "replace"))


@titled("owner of the hook")
def owner(subject: Subject) -> Iterator[Finding]:
    """Whether anybody but root can change what libvirt runs as root."""
    host = subject.host
    files = [one.path for one in gates(host)]
    files += [path for path in (_COMMAND, _PROGRAM, _PACKAGE) if host.stat(path) is not None]
    if not files:
        return
    found = False
    for path in _with_folders(host, files):
        for wrong, advice in _open_to_others(host, path):
            found = True
            yield Finding(FAIL, "owner of the hook", wrong, advice)
    if not found:
        yield Finding(PASS, "owner of the hook", "only root can change what runs as root")


def _with_folders(host: Host, paths: list[str]) -> list[str]:
    """These files, what links among them lead to, and all folders above, outer ones first."""
    reals = [host.real(path) or path for path in paths]
    found = set()
    for path in (*paths, *reals):
        parts = path.split("/")
        found |= {"/".join(parts[:number]) for number in range(1, len(parts) + 1)}
    return sorted(found)


def _open_to_others(host: Host, path: str) -> Iterator[tuple[str, str]]:
    status = host.stat(path)
    if status is None:
        return
    if status.st_uid != host.owner_uid:
        yield f"/{path} belongs to user {status.st_uid}, not to root", f"chown root:root /{path}"
    # The group root has no members but root, on any distribution.
    if status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid):
        yield f"others than root can write to /{path}", f"chmod go-w /{path}"


@titled("Python")
def python(subject: Subject) -> Iterator[Finding]:
    """Whether the Python that the gate starts is new enough, and has what the hook needs."""
    try:
        version = subject.host.run(*ASK_PYTHON, timeout_s=_TIMEOUT_S)
    except HostError as error:
        if unasked(error):
            yield unknown("Python", error)
            return
        reason = error.text.rpartition(" failed: ")[2]
        yield Finding(
            FAIL,
            "Python",
            f"/{PYTHON} cannot run the hook: {reason}",
            "install Python's lxml and PyYAML (Debian: apt install python3-lxml python3-yaml;"
            " Fedora: dnf install python3-lxml python3-pyyaml)",
        )
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST_PYTHON:
        yield Finding(FAIL, "Python", f"/{PYTHON} is {version}", "install Python 3.9 or later")
    else:
        yield Finding(PASS, "Python", f"/{PYTHON} is {version}, with lxml and yaml")


@titled("program")
def program(subject: Subject) -> Iterator[Finding]:
    """Whether what the gate starts is there, and is the version that is running now."""
    host = subject.host
    if not gates(host):
        return
    if host.stat(_PROGRAM) is None:
        text = f"there is no /{_PROGRAM}: every VM with a PCI device is refused"
        yield Finding(FAIL, "program", text, _AGAIN)
        return
    said = host.read(f"{_PACKAGE}/__init__.py") or ""
    match = re.search(r'^__version__ = "([^"]*)"', said, re.MULTILINE)
    if match is None:
        yield Finding(FAIL, "program", f"/{_PACKAGE} is not whole: it has no version", _AGAIN)
    elif match[1] != __version__:
        text = f"version {match[1]} is installed in /{_LIB}, and this is {__version__}"
        yield Finding(WARN, "program", text, _AGAIN)
    elif host.stat(_COMMAND) is None:
        yield Finding(WARN, "program", f"there is no /{_COMMAND}", _AGAIN)
    else:
        yield Finding(PASS, "program", f"version {match[1]} is installed in /{_LIB}")


@titled("version of libvirt")
def libvirt_version(subject: Subject) -> Iterator[Finding]:
    """Whether this libvirt runs what is in qemu.d."""
    host = subject.host
    daemon = next((path for path in _DAEMONS if host.stat(path) is not None), None)
    if daemon is None:
        return  # the checks of the daemon tell
    # "libvirtd (libvirt) 9.0.0"
    version = host.run(f"/{daemon}", "--version", timeout_s=_TIMEOUT_S).rpartition(" ")[2]
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    # Our own gate there is worse than anybody's.
    dropins = [one for one in entries(host) if one.path.startswith(f"{DROPINS}/") and one.is_file]
    if not dropins or numbers >= _READS_DROPINS:
        yield Finding(PASS, "version of libvirt", version)
        return
    level = FAIL if any(one.ours for one in dropins) else WARN
    text = f"libvirt {version} runs nothing in /{DROPINS}, which is known from 6.5 on"
    yield Finding(
        level,
        "version of libvirt",
        text,
        f"move the file to /{MAIN}, or call it from there: {_CHAIN}",
    )


@titled("recover unit")
def recover_unit(subject: Subject) -> Iterator[Finding]:
    """Whether systemd gives back what VMs hold that do not run, when the daemon starts."""
    host = subject.host
    if host.stat("run/systemd/system") is None or not gates(host):
        return
    if host.readlink(f"etc/systemd/system/{_UNIT}") == "/dev/null":
        yield Finding(PASS, "recover unit", f"{_UNIT} is masked, as somebody wanted it")
        return
    if host.stat(f"{_UNITS}/{_UNIT}") is None:
        yield Finding(
            WARN,
            "recover unit",
            f"there is no /{_UNITS}/{_UNIT}: what a killed hook leaves behind stays there",
            _AGAIN,
        )
        return
    for name in _WANTED_BY:
        link = f"{_UNITS}/{name}.service.wants/{_UNIT}"
        if host.readlink(link) is None:
            yield Finding(
                WARN,
                "recover unit",
                f"it is not started with {name}: there is no link /{link}",
                _AGAIN,
            )
            return
    yield Finding(PASS, "recover unit", f"{_UNIT} starts with libvirt's daemon")


CHECKS: tuple[Check, ...] = (
    hook, owner, python, program, recover_unit, libvirt_version, *other_hooks.CHECKS,
)  # fmt: skip
