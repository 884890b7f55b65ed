"""Runs inside a lab machine: waits for a point in the hook's work and kills processes there.

    watcher.py VM EVENT TEXT VICTIM SECONDS

The point is reached when the hook handles EVENT of VM and TEXT is in the claims. Prints
{"hook": [pid...], "worker": [pid...], "claim": text} as of then. VICTIM says which
processes get SIGKILL: the whole "hook", only its "supervisor" or its "worker", libvirt's
"daemon", "everything" (the daemon first, so that it does not see the hook end), or "none".
Standard library of Python 3.9 only.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import sys
import time

HOOK = "/usr/lib/vfio-console-hook/hook"


def hooks(vm: str, event: str) -> dict[int, int]:
    """The processes of the hook that handle an event: pid -> parent's pid."""
    found = {}
    for directory in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{directory}/cmdline") as file:
                words = file.read().split("\0")
            with open(f"{directory}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has just ended
        if "python" in words[0] and [HOOK, vm, event] == words[-6:-3]:
            found[int(os.path.basename(directory))] = parent
    return found


def claims() -> str:
    """The text of the claims of all VMs."""
    texts = []
    for path in glob.glob("/run/vfio-console-hook/claims/[!.]*"):
        try:
            with open(path) as file:
                texts.append(file.read())
        except OSError:
            continue  # it has just been removed
    return "".join(texts)


def victims(kind: str, supervisors: list[int], workers: list[int], daemon: int) -> list[int]:
    """The processes to kill, in this order."""
    hook = supervisors + workers
    kinds = {"hook": hook, "supervisor": supervisors, "worker": workers}
    kinds.update({"daemon": [daemon], "everything": [daemon, *hook], "none": []})
    return kinds[kind]


def libvirts_daemon() -> int:
    """The process id of the daemon; only one of the two has been started on a machine."""
    path = next(filter(os.path.exists, ("/run/virtqemud.pid", "/run/libvirtd.pid")))
    with open(path) as file:
        return int(file.read())


def main(vm: str, event: str, text: str, victim: str, seconds: str) -> int:
    """Wait for the point, kill, print the processes and claims; the exit status."""
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        found = hooks(vm, event)
        written = claims()
        if found and text in written:
            supervisors = [pid for pid, parent in found.items() if parent not in found]
            workers = [pid for pid in found if pid not in supervisors]
            for pid in victims(victim, supervisors, workers, libvirts_daemon()):
                os.kill(pid, signal.SIGKILL)
            print(json.dumps({"hook": supervisors, "worker": workers, "claim": written}))
            return 0
        time.sleep(0.005)
    print("the hook did not come to that point", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
