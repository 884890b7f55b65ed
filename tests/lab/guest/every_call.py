"""Runs inside a lab machine: kills the hook after each call that changes anything, then recovers.

    python3 -m tests.lab.guest.every_call XML ADDRESS       what an undisturbed life leaves
    python3 -m tests.lab.guest.every_call XML ADDRESS EVENT WHOM FIRST LAST

The VM's life is that of libvirt, without QEMU: prepare, vfio-pci bound, start, the
GPU unbound and probed again, release. In EVENT the hook is killed after the FIRSTth
of those calls (tracer.py), then in another life after the next one, and so on to LAST or
until it is not killed any more. WHOM: "all" of its processes, or the "one" that made the
call. After odd ones `recover` follows, after even ones what libvirt does next. Then the
whole machine, as the program records it, must be as the undisturbed life left it.

Prints one JSON object a life: n, killed, call, changed (whether something was different
from before when it was dead), claimed, wrong (what is different after all). Standard
library of Python 3.9 only, and the program's own recorder.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import subprocess
import sys
import time

from vfio_console_hook.commands.snapshot.writer import machine_text
from vfio_console_hook.machine.host import Host

from . import tracer

HOOK = "/etc/libvirt/hooks/qemu"
COMMAND = "/usr/bin/vfio-console-hook"
CLAIMS = "/run/vfio-console-hook/claims"
NAMES = "/run/vfio-console-hook/by-name"
STATE = "/run/lab-every-call"
PCI = "/sys/bus/pci"
WORDS = {"prepare": "begin", "start": "begin", "release": "end"}
EVENTS = tuple(WORDS)
# It ends when nobody has asked it for two minutes, and an emulated machine is slow.
LIBVIRTD_STARTS_S = "90"
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class Machine:
    """This machine, and a VM's life on it."""

    def __init__(self, xml: str, address: str) -> None:
        with open(xml, "rb") as file:
            self.xml = file.read()
        self.address = address
        self.device = f"{PCI}/devices/{address}"

    def state(self) -> str:
        """All that the program can see of it."""
        return machine_text(Host())

    def argv(self, event: str) -> list[str]:
        """How libvirt calls the hook."""
        return [HOOK, "gpu", event, WORDS[event], "-"]

    def event(self, event: str) -> str:
        """The hook handles an event; what it complains about, "" if it succeeds."""
        return run(self.argv(event), self.xml)

    def killed(self, event: str, after: int, whom: str) -> tracer.Run:
        """The same, killed after so many calls."""
        return tracer.run(self.argv(event), self.xml, after=after, all_processes=whom == "all")

    def driver(self) -> str:
        """The name of the driver that the GPU is bound to, or ""."""
        with contextlib.suppress(OSError):
            return os.path.basename(os.readlink(f"{self.device}/driver"))
        return ""

    def detach(self) -> None:
        """As libvirt does it (src/util/virpci.c, virPCIDeviceBindWithDriverOverride)."""
        write(f"{self.device}/driver_override", "vfio-pci")
        self.reprobe()

    def reattach(self) -> None:
        """As libvirt does it, if vfio-pci has the GPU (virPCIDeviceUnbindFromStub)."""
        if self.driver() == "vfio-pci":
            write(f"{self.device}/driver_override", "\n")
            self.reprobe()

    def reprobe(self) -> None:
        """Take the driver off and let the kernel look for one."""
        if self.driver():
            write(f"{self.device}/driver/unbind", self.address)
        write(f"{PCI}/drivers_probe", self.address)

    def advance(self, event: str) -> list[str]:
        """Go on with a VM's life up to this event, without it; what went wrong."""
        wrong = []
        for earlier in EVENTS[: EVENTS.index(event)]:
            wrong.append(self.event(earlier))
            self.detach() if earlier == "prepare" else self.reattach()
        return [one for one in wrong if one]

    def life(self) -> list[str]:
        """A whole life; what went wrong."""
        return [one for one in (*self.advance("release"), self.event("release")) if one]


def run(argv: list[str], text: bytes = b"") -> str:
    """Run a program; what it complains about, "" if it succeeds."""
    done = subprocess.run(argv, input=text, capture_output=True, env=ENVIRONMENT, timeout=120)
    if done.returncode == 0:
        return ""
    return f"{' '.join(argv[:3])}: {done.returncode}: {(done.stderr or done.stdout).decode()}"


def write(path: str, text: str) -> None:
    """Write an attribute."""
    with open(path, "w") as file:
        file.write(text)


def claimed() -> list[str]:
    """What is held for VMs. A draft, which has a dot, is nothing yet."""
    return [one for one in names(CLAIMS) if not one.startswith(".")]


def names(directory: str) -> list[str]:
    """What is in a directory, or nothing if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(directory)
    return []


def one_life(machine: Machine, before: str, event: str, whom: str, after: int) -> dict[str, object]:
    """One life in which the hook is killed at one point; what to print of it."""
    wrong = machine.advance(event)
    run_ = machine.killed(event, after, whom)
    point: dict[str, object] = {"n": after, "killed": run_.killed, "claimed": bool(claimed())}
    point["call"] = run_.calls[after - 1] if run_.killed else f"ended after {len(run_.calls)}"
    point["changed"] = machine.state() != before
    if not run_.killed and run_.status != 0:
        wrong.append(f"{event} ended with {run_.status}: {run_.said}")
    if run_.killed:
        machine.reattach()
        wrong += go_on(machine, event, after)
    elif event != "release":
        wrong += rest_of_life(machine, event)
    return {**point, "wrong": [one for one in (*wrong, *what_is_left(machine, before)) if one]}


def go_on(machine: Machine, event: str, after: int) -> list[str]:
    """recover, or what libvirt does next: release, and when that was killed, another life."""
    if after % 2:
        return [recover()]
    return [machine.event("release")] if event != "release" else machine.life()


def recover() -> str:
    """What the command complains about, "" if it succeeds."""
    return run([COMMAND, "recover", "--wait", LIBVIRTD_STARTS_S])


def rest_of_life(machine: Machine, event: str) -> list[str]:
    """A life goes on undisturbed."""
    wrong = []
    if event == "prepare":
        machine.detach()
        wrong.append(machine.event("start"))
    machine.reattach()
    return [*wrong, machine.event("release")]


def what_is_left(machine: Machine, before: str) -> list[str]:
    """How the machine is different from before, what is held, and what recover does not sweep."""
    now = machine.state()
    lines = difflib.unified_diff(before.splitlines(), now.splitlines(), n=0, lineterm="")
    wrong = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    wrong = wrong[:12] + [f"claimed: {one}" for one in claimed()]
    # Drafts, and names without a claim, may lie about until the next claim or recover.
    if names(CLAIMS) or names(NAMES):
        wrong.append(recover())
    return wrong + [f"left: {one}" for one in (*names(CLAIMS), *names(NAMES))]


def begin(machine: Machine) -> dict[str, object]:
    """Two whole lives; the machine must be the same after the second as after the first."""
    subprocess.run(["/sbin/modprobe", "vfio-pci"], check=True, env=ENVIRONMENT)
    wrong = machine.life()
    before = machine.state()
    with open(STATE, "w") as file:
        file.write(before)
    began = time.monotonic()
    wrong += machine.life()
    took_s = time.monotonic() - began
    wrong += [one for one in what_is_left(machine, before) if one]
    return {"took_s": round(took_s, 2), "wrong": wrong}


def main(xml: str, address: str, *rest: str) -> int:
    """Do what the words say; the exit status."""
    machine = Machine(xml, address)
    if not rest:
        print(json.dumps(begin(machine)))
        return 0
    event, whom, first, last = rest
    with open(STATE) as file:
        before = file.read()
    for after in range(int(first), int(last) + 1):
        point = one_life(machine, before, event, whom, after)
        print(json.dumps(point), flush=True)
        if not point["killed"]:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
