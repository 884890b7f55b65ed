"""Snapshots of a machine after each event of a VM, before libvirt goes on.

predicted.py lists the phases. These snapshots contain only the files of the machine:
`vfio-console-hook record` also asks libvirt for its VMs, and libvirt does not answer
while it waits for this hook.
"""

from __future__ import annotations

import re

from . import wrapper
from .machine import Machine
from .vm import VM

# Each boot has another id; `record` replaces it too (replacements.py).
_BOOT = re.compile(r"(?<=^f proc/sys/kernel/random/boot_id = ).*$", re.MULTILINE)
_A_BOOT = "00000000-0000-4000-8000-000000000001"

SNAPSHOT = "/run/lab-snapshot.py"
_DIRECTORY = "/run/lab-phases"
_EVENTS = {"prepare": "prepared", "start": "bound", "stopped": "stopped"}

_PROGRAM = """\
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/usr/lib/vfio-console-hook")
from vfio_console_hook.machine.host import Host
from vfio_console_hook.commands.snapshot.writer import machine_text
sys.stdout.write(machine_text(Host()))
"""
_SCRIPT = f"""\
#!/bin/sh
# Runs the hook, then takes a snapshot of the machine.
"{{hook}}" "$@"
status=$?
case $1:$2 in
    {"|".join(f"{VM}:{event}" for event in _EVENTS)})
        /usr/bin/timeout 240 /usr/bin/python3 -I {SNAPSHOT} \
            >{_DIRECTORY}/$2 2>{_DIRECTORY}/$2.errors </dev/null ;;
esac
exit $status
"""


def now(machine: Machine) -> str:
    """A snapshot of the machine as it is, or "" when that fails."""
    machine.put(SNAPSHOT, _PROGRAM.encode())
    answer = machine.run(f"/usr/bin/python3 -I {SNAPSHOT} >{_DIRECTORY}.now", 120)
    content = machine.get(f"{_DIRECTORY}.now") if answer.ok else None
    return _without_boot(content or b"")


def begin(machine: Machine, hook: str) -> None:
    """Take a snapshot after every event of the VM from now on."""
    machine.put(SNAPSHOT, _PROGRAM.encode())
    machine.run(f"rm -rf {_DIRECTORY}; mkdir {_DIRECTORY}")
    wrapper.install(machine, hook, _SCRIPT)


def end(machine: Machine, hook: str) -> dict[str, str]:
    """Stop taking snapshots; those since begin(), by phase."""
    wrapper.remove(machine, hook)
    machine.run(f"cd {_DIRECTORY}; wc -l *; cat *.errors")
    found = {}
    for event, phase in _EVENTS.items():
        content = machine.get(f"{_DIRECTORY}/{event}")
        if content:
            found[phase] = _without_boot(content)
    return found


def _without_boot(snapshot: bytes) -> str:
    return _BOOT.sub(_A_BOOT, snapshot.decode())
