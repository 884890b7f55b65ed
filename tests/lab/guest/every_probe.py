"""Runs inside a lab machine: kills prepare after each call until a probe has removed BOOTFB.

    python3 -m tests.lab.guest.every_probe XML ADDRESS FIRST LAST

Each time all processes of the hook are killed after one call more that changes anything
(tracer.py), and `recover` follows. As long as BOOTFB is there, the machine must then be as
before. The call after which it is gone is the last one that can be tried before a reboot;
then no driver may be bound, driver_override must be as before, and vmwgfx not loaded.

Prints one JSON object a kill: n, call, bootfb, loaded and overridden (as right after the kill),
wrong. Standard library of Python 3.9 only, and the program's own snapshots.
"""

from __future__ import annotations

import json
import subprocess
import sys

from .every_call import ENVIRONMENT, Machine, claimed, names, recover, what_is_left

MODULE = "vmwgfx"


class Probed(Machine):
    """The machine, and what a probe of vmwgfx changes on it."""

    def bootfb(self) -> bool:
        """Whether BOOTFB is in the memory map."""
        with open("/proc/iomem") as file:
            return " : BOOTFB" in file.read()

    def override(self) -> str:
        """The GPU's driver_override."""
        with open(f"{self.device}/driver_override") as file:
            return file.read().strip()

    def needed(self) -> set[str]:
        """The modules that the module needs, without itself."""
        command = ["/sbin/modprobe", "--show-depends", MODULE]
        lines = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT).stdout
        files = (line.split()[1].rpartition("/")[2] for line in lines.splitlines())
        return {file.partition(".ko")[0].replace("-", "_") for file in files} - {MODULE}

    def loaded(self) -> bool:
        """Whether the module is loaded."""
        return MODULE in names("/sys/module")


def one_kill(machine: Probed, before: str, after: int) -> dict[str, object]:
    """Kill prepare after so many calls, then recover; the object to print."""
    modules = set(names("/sys/module"))
    run = machine.killed("prepare", after, "all")
    point: dict[str, object] = {
        "n": after,
        "call": run.calls[-1] if run.calls else "",
        "killed": run.killed,
        "bootfb": machine.bootfb(),
        "loaded": machine.loaded(),
        "overridden": machine.override() == MODULE,
    }
    wrong = [recover()]
    if machine.bootfb():
        wrong += what_is_left(machine, before)
    wrong += [f"claimed: {one}" for one in claimed()]
    # A modprobe that is killed leaves what it has loaded for vmwgfx so far, such as ttm: in use
    # by nothing, and unloaded together with vmwgfx the next time.
    new = set(names("/sys/module")) - modules - machine.needed()
    wrong += [f"loaded: {one}" for one in sorted(new)]
    left = machine.driver(), machine.override()
    wrong += [] if left == ("", "(null)") else [f"driver and driver_override are {left}"]
    return {**point, "wrong": [one for one in wrong if one]}


def main(xml: str, address: str, first: str, last: str) -> int:
    """Kill after the calls that the arguments name; the exit status."""
    subprocess.run(["/sbin/modprobe", "vfio-pci"], check=True, env=ENVIRONMENT)
    machine = Probed(xml, address)
    before = machine.state()
    for after in range(int(first), int(last) + 1):
        point = one_kill(machine, before, after)
        print(json.dumps(point), flush=True)
        if not point["killed"] or not point["bootfb"]:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
