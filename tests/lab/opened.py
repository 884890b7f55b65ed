"""What a rehearsal opens and maps through vfio is what QEMU then has, and no more than it gets.

First the card is bound to vfio-pci by hand while the firmware's driver still has a part of a BAR:
that BAR is not mapped, and the reservation is named as /proc/iomem has it. Then `take` frees it:
all is mapped, and reset as QEMU would. Then libvirt starts the VM, and the areas in QEMU's
/proc/PID/maps are compared. Last, a rehearsal of the VM leaves a report.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from tests import rehearsed

from . import kernel_log
from .trial import Trial

_PROGRAM_FILE = "/run/lab-opened.py"
_PROGRAM = """\
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/usr/lib/vfio-console-hook")
from vfio_console_hook.machine import worker
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.vfio_access import opened

options, addresses = sys.argv[1].split(","), sys.argv[2:]

def look():
    wanted = {name: name in options for name in ("reset", "iommufd")}
    with opened(Host(), addresses, **wanted) as found:
        return json.dumps({
            "complete": found.complete,
            "opened": found.to_json(),
            "resets": [str(one) for one in found.resets],
            "maps": open("/proc/self/maps").read(),
            "iomem": open("/proc/iomem").read(),
        })

print(worker.run(look, 100))
"""
# The area, its mode, and where it begins in the file; the name has vfio in it.
_AREA = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) .*vfio", re.MULTILINE)


def areas(maps: str) -> list[tuple[int, int, str]]:
    """(offset, size, mode) of each area of a vfio device, sorted."""
    found = _AREA.findall(maps)
    return sorted((int(at, 16), int(last, 16) - int(first, 16), mode)
                  for first, last, mode, at in found)  # fmt: skip


class OpenedTrial(Trial):
    """The functions of the card are opened by hand, by take, and by QEMU."""

    ours: list[tuple[int, int, str]]

    def other_devices(self) -> tuple[str, ...]:
        """The other functions of the card."""
        gpu = self.leaving[0].address
        found = self.machine.run(f"cd /sys/bus/pci/devices && ls -d {gpu[:-1]}*").stdout.split()
        return tuple(one for one in found if one != gpu)

    def run(self) -> None:
        """By hand once, then taken, then the VM, as often as the scenario has cycles."""
        if not self.set_up():
            return
        self.machine.put(_PROGRAM_FILE, _PROGRAM.encode())
        self.machine.note("by hand")
        self.check_reserved()
        for number in range(1, self.scenario.cycles + 1):
            self.mark(f"taken {number}")
            self.check_taken(f"taken{number}", iommufd=False)
            if number == 1 and self.machine.run("modprobe iommufd && [ -e /dev/iommu ]").ok:
                self.check_taken("iommufd", iommufd=True)
            self.cycle(number)
        self.machine.note("rehearsed")
        self.mark("rehearsed")
        self.check_report()

    @property
    def card(self) -> tuple[str, ...]:
        """The addresses of all its functions, the GPU first."""
        return (self.leaving[0].address, *self.other_devices())

    def look(self, options: str) -> dict[str, Any]:
        """What our program has got of the card."""
        answer = self.machine.run(
            f"python3 -I {_PROGRAM_FILE} {options or '-'} {' '.join(self.card)}", 120
        )
        self.demand(answer.ok, f"opened: {answer.stderr}")
        return dict(json.loads(answer.stdout)) if answer.ok else {}

    def check_reserved(self) -> None:
        """BAR 0 is not mapped while the firmware has a part of it, and that is named."""
        self.mark("by hand")
        self.machine.run("modprobe vfio-pci")
        for address in self.card:
            self.machine.run(_bind(address, "vfio-pci"))
        found = self.look("")
        if found:
            regions = found["opened"]["regions"]
            blocked = {one["bar"]: one["why"] for one in regions if one["why"]}
            mapped = [one for one in regions if one["mapped"]]
            self.result.notes.append(f"by hand: {blocked}; {len(mapped)} BARs are mapped")
            self.demand([*blocked] == [0], f"by hand: BARs that are not mapped: {blocked}")
            lines = re.findall(r"(\S+-\S+) : (\S+)", found["iomem"])
            named = [f"{name} reserves {range_}" for range_, name in lines]
            said = blocked.get(0, "nothing").split(" and ")
            self.demand({*said} <= {*named}, f"by hand: {blocked} is not in /proc/iomem")
            sizes = sum(one["range"]["last"] - one["range"]["first"] + 1 for one in mapped)
            self.demand(
                sum(size for _, size, _ in areas(found["maps"])) >= sizes,
                f"by hand: in /proc/self/maps are {areas(found['maps'])}",
            )
        log = kernel_log.since_mark(self.machine.run("dmesg").stdout)
        self.demand(kernel_log.BLOCKED_BAR in log, "by hand: the kernel reserved the BAR")
        self.demand(kernel_log.fault(log) is None, f"by hand: {kernel_log.fault(log)}")
        for address in self.card:
            self.machine.run(_bind(address, ""))

    def check_taken(self, name: str, *, iommufd: bool) -> None:
        """Taken, all is mapped and reset; given back, nothing of it is left."""
        gpu = self.leaving[0].address
        take = self.machine.run(f"vfio-console-hook take --vfio {gpu}", 120)
        self.demand(take.ok, f"{name}: take: {take.stderr}")
        found = self.look("reset,iommufd" if iommufd else "reset")
        if found:
            self.demand(found["complete"], f"{name}: {found['opened']}")
            self.ours = areas(found["maps"])
            resets = "; ".join(found["resets"])
            self.result.notes.append(f"{name}: {len(self.ours)} areas; {resets}")
            answers = [one["answers"] and bool(one["by"]) for one in found["opened"]["resets"]]
            self.demand(answers == [True] * len(self.card), f"{name}: {resets}")
        left = self.machine.run("grep vfio /proc/iomem; ls /proc/*/fd/* | grep /dev/vfio")
        self.demand(not left.stdout, f"{name}: closed, there is {left.stdout}")
        give = self.machine.run(f"vfio-console-hook give {gpu}", 120)
        self.demand(give.ok, f"{name}: give: {give.stderr}")

    def check_running(self, name: str) -> None:
        """QEMU has mapped what our program had mapped."""
        super().check_running(name)
        maps = self.machine.run("cat /proc/$(cat /run/libvirt/qemu/gpu.pid)/maps").stdout
        theirs = areas(maps)
        self.result.notes.append(f"{name}: QEMU has {theirs}")
        self.demand(bool(theirs), f"{name}: QEMU has mapped nothing")
        self.demand(theirs == self.ours, f"{name}: ours were {self.ours}, QEMU's are {theirs}")

    def check_report(self) -> None:
        """A rehearsal's report is a machine of which the fake kernel knows what will happen."""
        path = "/root/report.txt"
        done = self.machine.run(
            f"vfio-console-hook rehearse --yes --reset --seconds 5 --report {path} gpu", 300
        )
        self.demand(done.ok, f"rehearsed: {done.stdout[-600:]}{done.stderr}")
        content = self.machine.get(path)
        if not self.demand(content is not None, "rehearsed: there is no report"):
            return
        text = (content or b"").decode()
        (self.directory / "report.txt").write_text(text)
        with tempfile.TemporaryDirectory() as directory:
            wrong = rehearsed.replay(text, Path(directory) / "replayed")
        for part, difference in wrong.items():
            self.demand(False, f"rehearsed: the fake is wrong {part}:\n{difference}")
        self.check_kernel("rehearsed")


def _bind(address: str, driver: str) -> str:
    """The command that binds a device to a driver, or to the one that it had."""
    device = f"/sys/bus/pci/devices/{address}"
    return (
        f"echo {driver} > {device}/driver_override;"
        f" [ ! -e {device}/driver ] || echo {address} > {device}/driver/unbind;"
        f" echo {address} > /sys/bus/pci/drivers_probe"
    )
