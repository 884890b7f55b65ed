"""What a machine is like after each event of a VM, before libvirt goes on.

predicted.py says what the phases are. The program is asked for no more than what is the
same whoever looks: `vfio-console-hook record` also asks libvirt for its VMs, which does
not answer while it waits for this hook.
"""

from __future__ import annotations

import re

from . import wrapper
from .machine import Machine
from .vm import VM

# The number of a boot says nothing; `record` writes the same for all (pseudonyms.py).
_BOOT = re.compile(r"(?<=^f proc/sys/kernel/random/boot_id = ).*$", re.MULTILINE)
_A_BOOT = "00000000-0000-4000-8000-000000000001"

RECORDER = "/run/lab-recorder.py"
_DIRECTORY = "/run/lab-phases"
_EVENTS = {"prepare": "prepared", "start": "bound", "stopped": "stopped"}

_RECORD = """\
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/usr/lib/vfio-console-hook")
from vfio_console_hook.machine.host import Host
from vfio_console_hook.commands.snapshot.writer import machine_text
sys.stdout.write(machine_text(Host()))
"""
_SCRIPT = f"""\
#!/bin/sh
# The hook, and then a recording of the machine.
"{{hook}}" "$@"
status=$?
case $1:$2 in
    {"|".join(f"{VM}:{event}" for event in _EVENTS)})
        /usr/bin/timeout 60 /usr/bin/python3 -I {RECORDER} \
            >{_DIRECTORY}/$2 2>{_DIRECTORY}/$2.errors </dev/null ;;
esac
exit $status
"""


def now(machine: Machine) -> str:
    """The machine as it is, or "" when it cannot be recorded."""
    machine.put(RECORDER, _RECORD.encode())
    answer = machine.run(f"/usr/bin/python3 -I {RECORDER} >{_DIRECTORY}.now", 120)
    content = machine.get(f"{_DIRECTORY}.now") if answer.ok else None
    return _without_boot(content or b"")


def begin(machine: Machine, hook: str) -> None:
    """From now on every event of a VM is recorded."""
    machine.put(RECORDER, _RECORD.encode())
    machine.run(f"rm -rf {_DIRECTORY}; mkdir {_DIRECTORY}")
    wrapper.install(machine, hook, _SCRIPT)


def end(machine: Machine, hook: str) -> dict[str, str]:
    """What was recorded since, by the phase, and no more of it."""
    wrapper.remove(machine, hook)
    machine.run(f"cd {_DIRECTORY}; wc -l *; cat *.errors")
    found = {}
    for event, phase in _EVENTS.items():
        content = machine.get(f"{_DIRECTORY}/{event}")
        if content:
            found[phase] = _without_boot(content)
    return found


def _without_boot(record: bytes) -> str:
    return _BOOT.sub(_A_BOOT, record.decode())
