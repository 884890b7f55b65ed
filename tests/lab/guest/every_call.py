"""Runs inside a lab machine: kills the hook after each call that changes anything, then recovers.

    python3 -m tests.lab.guest.every_call XML ADDRESS       two undisturbed lives
    python3 -m tests.lab.guest.every_call XML ADDRESS EVENT VICTIMS FIRST LAST

The VM's life is as under libvirt, without QEMU: prepare, vfio-pci bound, start, the
GPU unbound and probed again, release. In EVENT the hook is killed after the FIRSTth
of those calls (tracer.py), then in another life after the next one, and so on to LAST or
until the hook ends by itself. VICTIMS: "all" of its processes, or the "one" that made the
call. After odd calls `recover` follows, after even ones the next event of libvirt. Then the
snapshot of the whole machine must be the one that the undisturbed life left.

Prints one JSON object a life: n, killed, call, changed (whether the machine was different
right after the kill), claimed, wrong (what is different in the end). Standard library of
Python 3.9 only, and the program's own snapshots.
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
# libvirtd ends after two minutes without a client, and an emulated machine is slow.
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
        """The snapshot of the machine."""
        return machine_text(Host())

    def argv(self, event: str) -> list[str]:
        """How libvirt calls the hook."""
        return [HOOK, "gpu", event, WORDS[event], "-"]

    def event(self, event: str) -> str:
        """Call the hook for an event; its error, "" if it succeeds."""
        return run(self.argv(event), self.xml)

    def killed(self, event: str, after: int, victims: str) -> tracer.Run:
        """Call the hook for an event and kill it after so many calls."""
        return tracer.run(self.argv(event), self.xml, after=after, all_processes=victims == "all")

    def driver(self) -> str:
        """The name of the driver that the GPU is bound to, or ""."""
        with contextlib.suppress(OSError):
            return os.path.basename(os.readlink(f"{self.device}/driver"))
        return ""

    def detach(self) -> None:
        """Bind vfio-pci as libvirt does (src/util/virpci.c, virPCIDeviceBindWithDriverOverride)."""
        write(f"{self.device}/driver_override", "vfio-pci")
        self.reprobe()

    def reattach(self) -> None:
        """Unbind vfio-pci, if it has the GPU, as libvirt does (virPCIDeviceUnbindFromStub)."""
        if self.driver() == "vfio-pci":
            write(f"{self.device}/driver_override", "\n")
            self.reprobe()

    def reprobe(self) -> None:
        """Unbind the driver and let the kernel probe for one."""
        if self.driver():
            write(f"{self.device}/driver/unbind", self.address)
        write(f"{PCI}/drivers_probe", self.address)

    def advance(self, event: str) -> list[str]:
        """Run a VM's life up to the moment before this event; what went wrong."""
        wrong = []
        for earlier in EVENTS[: EVENTS.index(event)]:
            wrong.append(self.event(earlier))
            self.detach() if earlier == "prepare" else self.reattach()
        return [one for one in wrong if one]

    def life(self) -> list[str]:
        """Run a whole life; what went wrong."""
        return [one for one in (*self.advance("release"), self.event("release")) if one]


def run(argv: list[str], text: bytes = b"") -> str:
    """Run a program; its error, "" if it succeeds."""
    done = subprocess.run(argv, input=text, capture_output=True, env=ENVIRONMENT, timeout=120)
    if done.returncode == 0:
        return ""
    return f"{' '.join(argv[:3])}: {done.returncode}: {(done.stderr or done.stdout).decode()}"


def write(path: str, text: str) -> None:
    """Write an attribute."""
    with open(path, "w") as file:
        file.write(text)


def claimed() -> list[str]:
    """The claims of VMs, without drafts, whose names begin with a dot."""
    return [one for one in names(CLAIMS) if not one.startswith(".")]


def names(directory: str) -> list[str]:
    """The names in a directory; none if it does not exist."""
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(directory)
    return []


def one_life(
    machine: Machine, before: str, event: str, victims: str, after: int
) -> dict[str, object]:
    """Run a life in which the hook is killed at one point; the object to print."""
    wrong = machine.advance(event)
    run_ = machine.killed(event, after, victims)
    point: dict[str, object] = {"n": after, "killed": run_.killed, "claimed": bool(claimed())}
    point["call"] = run_.calls[after - 1] if run_.killed else f"ended after {len(run_.calls)}"
    point["changed"] = machine.state() != before
    if not run_.killed and run_.status != 0:
        wrong.append(f"{event} ended with {run_.status}: {run_.stderr}")
    if run_.killed:
        machine.reattach()
        wrong += go_on(machine, event, after)
    elif event != "release":
        wrong += rest_of_life(machine, event)
    return {**point, "wrong": [one for one in (*wrong, *what_is_left(machine, before)) if one]}


def go_on(machine: Machine, event: str, after: int) -> list[str]:
    """Run recover, or what follows under libvirt: release, or after that another life."""
    if after % 2:
        return [recover()]
    return [machine.event("release")] if event != "release" else machine.life()


def recover() -> str:
    """Run `recover`; its error, "" if it succeeds."""
    return run([COMMAND, "recover", "--wait", LIBVIRTD_STARTS_S])


def rest_of_life(machine: Machine, event: str) -> list[str]:
    """Run the rest of a life after an event; what went wrong."""
    wrong = []
    if event == "prepare":
        machine.detach()
        wrong.append(machine.event("start"))
    machine.reattach()
    return [*wrong, machine.event("release")]


def what_is_left(machine: Machine, before: str) -> list[str]:
    """The differences to before, the claims, and the files that recover does not remove."""
    now = machine.state()
    lines = difflib.unified_diff(before.splitlines(), now.splitlines(), n=0, lineterm="")
    wrong = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    wrong = wrong[:12] + [f"claimed: {one}" for one in claimed()]
    # Drafts, and names without a claim, may stay until the next claim or recover.
    if names(CLAIMS) or names(NAMES):
        wrong.append(recover())
    return wrong + [f"left: {one}" for one in (*names(CLAIMS), *names(NAMES))]


def begin(machine: Machine) -> dict[str, object]:
    """Run two whole lives; the second must leave the same machine as the first."""
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
    """Run the lives that the arguments ask for; the exit status."""
    machine = Machine(xml, address)
    if not rest:
        print(json.dumps(begin(machine)))
        return 0
    event, victims, first, last = rest
    with open(STATE) as file:
        before = file.read()
    for after in range(int(first), int(last) + 1):
        point = one_life(machine, before, event, victims, after)
        print(json.dumps(point), flush=True)
        if not point["killed"]:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
