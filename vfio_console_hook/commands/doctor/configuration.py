"""Whether what the administrator wrote can be read, and is for a VM that exists."""

from __future__ import annotations

from collections.abc import Iterator

from ...config import load
from ...errors import ConfigError
from ...machine.host import Host
from .finding import FAIL, NOT_RECORDED, PASS, WARN, Check, Finding, Subject, unrecorded

_DEFAULT = "default.yaml"
_SUFFIX = ".yaml"


def mistakes(subject: Subject) -> Iterator[Finding]:
    """What is wrong in the files, by file and line, each once."""
    host = subject.host
    if unrecorded(host, load.DIRECTORY):
        yield Finding(WARN, "configuration", NOT_RECORDED)
        return
    general = _wrong(host, "", "")
    right = not general
    if general:
        advice = "mend it: until then no VM with a GPU starts"
        yield Finding(FAIL, "configuration of all VMs", general, advice)
    vms = [(one.name, one.uuid) for one in subject.vms]
    for name, uuid in vms + [(stem, stem) for stem in _without_vm(subject)]:
        # What is wrong for all VMs comes first, and has been told.
        wrong = _wrong(host, name, uuid).replace(general, "", 1).lstrip("; ")
        if wrong:
            right = False
            advice = "mend it: until then that VM does not start with a GPU"
            yield Finding(FAIL, f"configuration of {name}", wrong, advice)
    if right:
        yield Finding(PASS, "configuration", _inventory(host))


def _wrong(host: Host, name: str, uuid: str) -> str:
    try:
        load.configuration(host, name, uuid)
    except ConfigError as error:
        return error.text
    return ""


def _stems(host: Host) -> list[str]:
    """The names and uuids that have a file."""
    names = (name for name in host.list(load.VMS) if not name.startswith("."))
    return [name[: -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX)]


def _without_vm(subject: Subject) -> list[str]:
    """The names and uuids with a file that no VM has which is known."""
    names = {vm.name for vm in subject.vms}
    uuids = {vm.uuid.lower() for vm in subject.vms}
    return [
        stem for stem in _stems(subject.host) if stem not in names and stem.lower() not in uuids
    ]


def _inventory(host: Host) -> str:
    own = [f"vms/{stem}{_SUFFIX}" for stem in _stems(host)]
    files = ([_DEFAULT] if _DEFAULT in host.list(load.DIRECTORY) else []) + own
    if not files:
        return "none, so the defaults hold for every VM"
    return f"/{load.DIRECTORY}: {', '.join(files)}"


def files_for_no_vm(subject: Subject) -> Iterator[Finding]:
    """Files that nothing is read from: their VM was renamed, or they are misnamed."""
    host = subject.host
    for name in host.list(load.DIRECTORY):
        if name.endswith((_SUFFIX, ".yml")) and name != _DEFAULT:
            meant = _DEFAULT if name == "default.yml" else f"vms/{name.rpartition('.')[0]}{_SUFFIX}"
            yield _never_read(f"/{load.DIRECTORY}/{name}", "is never read", meant)
    for name in host.list(load.VMS):
        if name.endswith(".yml"):
            meant = f"{name[:-4]}{_SUFFIX}"
            yield _never_read(f"/{load.VMS}/{name}", "is never read", meant)
    if subject.unasked:
        return
    for stem in _without_vm(subject):
        text = "is for no VM that libvirt knows"
        yield _never_read(f"/{load.VMS}/{stem}{_SUFFIX}", text, _near(subject, stem))


def _never_read(path: str, text: str, meant: str) -> Finding:
    advice = f"rename it to {meant}" if meant else "remove it, if its VM is gone"
    return Finding(WARN, path, text, advice)


def _near(subject: Subject, stem: str) -> str:
    """The file's name for the VM that is meant; "" when none is near."""
    import difflib  # only for a mistake

    names = {vm.name.lower(): vm.name for vm in subject.vms}
    near = difflib.get_close_matches(stem.lower(), names, n=1)
    return f"{names[near[0]]}{_SUFFIX}" if near else ""


CHECKS: tuple[Check, ...] = (mistakes, files_for_no_vm)
