"""Checks of the configuration files: are they correct, and does a VM read them."""

from __future__ import annotations

from collections.abc import Iterator

from ...config import load
from ...errors import nearest
from ...machine.host import Host
from ..doubts import doubts
from .finding import Finding, check, failure, need_recorded, passed, warning
from .system import System

_SUFFIX = ".yaml"


@check("configuration")
def mistakes(system: System) -> Iterator[Finding]:
    """What is wrong in the files, by file and line, each once."""
    host = system.host
    need_recorded(host, load.DIRECTORY)
    general = load.mistakes_for(host, "", "")
    if general:
        advice = "fix this; until then no VM with a GPU starts"
        yield failure(load.listed(general), advice, of="configuration of all VMs")
    right = not general
    unknown = [_stem(path) for path in load.files_without_vm(host, _names(system))]
    for name, uuid in [*_names(system), *((stem, stem) for stem in unknown)]:
        own = [one for one in load.mistakes_for(host, name, uuid) if one not in general]
        if own:
            right = False
            advice = "fix this; until then this VM does not start with a GPU"
            yield failure(load.listed(own), advice, of=f"configuration of {name}")
    if right:
        files = [path[len(load.DIRECTORY) + 1 :] for path in load.installed_files(host)]
        listed = f"/{load.DIRECTORY} has {' and '.join(files)}"
        yield passed(listed if files else "no file, so every VM has the defaults")


@check("settings without effect")
def without_effect(system: System) -> Iterator[Finding]:
    """What is well written in an installed file, and does not do on this host what it says."""
    host = system.host
    for path, wrong in load.all_mistakes(host).items():
        content = b"" if wrong else host.read_bytes(path[1:]) or b""
        # Not about processes: `record` would have to keep the names of all programs.
        for one in doubts(host, path, content, about_processes=False):
            advice = f"correct line {one.line} of {one.path}"
            yield warning(one.text, advice, of=f"{one.path}:{one.line}")


def _names(system: System) -> list[tuple[str, str]]:
    return [(one.name, one.uuid) for one in system.vms]


def _stem(path: str) -> str:
    return path.rpartition("/")[2][: -len(_SUFFIX)]


@check("files for no VM")
def files_for_no_vm(system: System) -> Iterator[Finding]:
    """Files that are never read: they are misnamed, or their VM was renamed."""
    host = system.host
    for one in load.never_read(host):
        yield warning(one.text, _what_to_do(host, _correct_path(one.path)), of=one.path)
    if system.libvirt_error:
        return
    for path in load.files_without_vm(host, _names(system)):
        name = nearest(_stem(path), [vm.name for vm in system.vms])
        correct = f"/{load.VMS}/{name}{_SUFFIX}"
        uuids = (f"/{load.VMS}/{vm.uuid}{_SUFFIX}" for vm in system.vms if vm.name == name)
        advice = _what_to_do(host, correct, *uuids) if name else "remove it if its VM is gone"
        yield warning("libvirt has no VM with this name or UUID", advice, of=f"/{path}")


def _what_to_do(host: Host, correct: str, *others: str) -> str:
    """What to do about a file that is not read, and that should have the correct path.

    others are further paths that a file for the same VM may have.
    """
    if not correct:
        return "remove it"
    for path in (correct, *others):
        if host.lstat(path.lstrip("/")) is not None:
            return f"add what you need of it to {path}, and remove it"
    return f"rename it to {correct}"


def _correct_path(path: str) -> str:
    """Where a misnamed file was probably meant to be, or ""."""
    folder, _, name = path.rpartition("/")
    stem, _, ending = name.rpartition(".")
    if not stem or ending not in ("yaml", "yml"):
        return ""
    for_all = stem == "default" and folder == f"/{load.DIRECTORY}"
    return f"/{load.DIRECTORY if for_all else load.VMS}/{stem}{_SUFFIX}"
