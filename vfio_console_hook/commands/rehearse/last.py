"""The last rehearsal of each VM, kept over reboots, and what has changed since.

    /var/lib/vfio-console-hook/rehearsals/UUID      0644, JSON

    {"vm": NAME, "uuid": UUID, "time": T, "agrees": BOOL, "why": TEXT, "eye": TEXT,
     "addresses": [...], "configured_as": NAME, "state": {...}}

It is about this very host: its kernel, drivers, configuration, and the devices of the VM. So a
change of these makes it worth less, and a new kernel comes with a reboot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ... import __version__, domain
from ...config import load
from ...errors import HookError
from ...machine import pci, runfiles
from ...machine.host import Host, seconds
from .rehearsal import Rehearsal

STATE = "var/lib/vfio-console-hook"
FOLDER = f"{STATE}/rehearsals"
# Where libvirt keeps its VMs (src/qemu/qemu_conf.c, configDir). Only root can read it.
_DEFINITIONS = "etc/libvirt/qemu"


@dataclass(frozen=True)
class LastRehearsal:
    """How the last rehearsal of a VM ended; time is in seconds since 1970.

    why is what was not as plan had said. eye is what a person saw on the monitor: "yes" if the
    text could be read, "no", or "" if no person was asked. changed names what is different on this
    host now.
    """

    vm: str
    uuid: str
    time: float
    agrees: bool
    why: str
    eye: str
    changed: tuple[str, ...]


def remember(host: Host, rehearsal: Rehearsal, agrees: bool, why: str) -> None:
    """Write down how a rehearsal ended. Raises ClaimError."""
    for path in (STATE, FOLDER):
        runfiles.make_directory(host, path, 0o755)
    word = {
        "vm": rehearsal.vm, "uuid": rehearsal.uuid, "time": host.now(), "agrees": agrees,
        "why": why, "eye": "", "addresses": rehearsal.addresses,
        "configured_as": rehearsal.configured_as,
        "state": _state(host, rehearsal.vm, rehearsal.uuid, rehearsal.configured_as,
                        rehearsal.addresses),
    }  # fmt: skip
    runfiles.write(host, f"{FOLDER}/{rehearsal.uuid}", json.dumps(word) + "\n", 0o644)


def add_eye(host: Host, uuid: str, eye: str) -> None:
    """Write down what a person saw after the last rehearsal of a VM. Raises ClaimError."""
    path = f"{FOLDER}/{uuid}"
    word = json.loads(runfiles.read(host, path) or "{}")
    if word:
        runfiles.write(host, path, json.dumps({**word, "eye": eye}) + "\n", 0o644)


def all_last(host: Host) -> tuple[LastRehearsal, ...]:
    """The last rehearsal of each VM, the newest first; what cannot be read is left out."""
    found = []
    try:
        for _, content in runfiles.contents(host, FOLDER):
            one = _last(host, content)
            found += [one] if one else []
    except HookError:
        return ()
    return tuple(sorted(found, key=lambda one: -one.time))


def _last(host: Host, content: bytes) -> LastRehearsal | None:
    try:
        word = json.loads(content)
        vm, uuid, configured_as = (str(word[key]) for key in ("vm", "uuid", "configured_as"))
        addresses = tuple(str(one) for one in word["addresses"])
        then = {str(key): str(value) for key, value in word["state"].items()}
        when, agrees, why = seconds(word["time"]), word["agrees"] is True, str(word["why"])
        eye = str(word["eye"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    now = _state(host, vm, uuid, configured_as, addresses)
    # What cannot be read now, as a driver while a VM has the GPU, has not changed.
    changed = [what for what in then if now.get(what, then[what]) != then[what]]
    return LastRehearsal(vm, uuid, when, agrees, why, eye, tuple(changed))


def _state(
    host: Host, vm: str, uuid: str, configured_as: str, addresses: tuple[str, ...]
) -> dict[str, str]:
    """What the result of a rehearsal depends on, each as a short text; without what is unknown."""
    found = {"the program": __version__, "the kernel": host.read("proc/sys/kernel/osrelease") or ""}
    for one in addresses:
        driver = host.link_name(f"sys/bus/pci/devices/{one}/driver") or "none"
        if not pci.is_vfio(host, one):
            found[f"the driver of {one}"] = driver
    try:
        files = load.files_for(host, configured_as, uuid)
        texts = [f"{path}\n".encode() + (host.read_bytes(path) or b"") for path in files]
        found["the configuration"] = sha256(b"\n".join(texts)).hexdigest()
    except HookError:
        pass
    devices = _devices(host, vm)
    if devices is not None:
        found["the devices of the VM"] = sha256(devices.encode()).hexdigest()
    return found


def _devices(host: Host, vm: str) -> str | None:
    """The PCI devices in libvirt's definition of a VM; None if that cannot be read."""
    if "/" in vm:
        return None
    try:
        text = host.read_bytes(f"{_DEFINITIONS}/{vm}.xml")
        found = domain.hostdevs(text) if text else None
    except HookError:
        return None
    if found is None:
        return None
    return json.dumps([[one.address, one.managed, one.origin] for one in found])


def to_json(one: LastRehearsal) -> dict[str, Any]:
    """As JSON values, for `status --json`."""
    return {**vars(one), "changed": list(one.changed)}
