"""A machine from a snapshot that can be made larger, with the gate on it."""

from __future__ import annotations

import compileall
import json
from collections.abc import Iterator
from pathlib import Path

from tests import snapshots
from tests.bench.measure import Run
from tests.gate import ROOT, write_gate, write_program
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME
from vfio_console_hook.machine.runfiles import RUN
from vfio_console_hook.machine.snapshot import entries

MACHINE = "lab-efifb-6.12"
RUNNING = "recorded-efifb-6.12-running"
GPU = "0000:01:00.0"
NAME = "win11"


class Machine:
    """MACHINE in a new directory. Its events go to a function of pretending.py."""

    def __init__(self, directory: Path, handler: str = "main") -> None:
        for folder in ("vfio_console_hook", "tests/bench"):
            compileall.compile_dir(ROOT / folder, quiet=1)
        self.root = directory / "machine"
        snapshots.unpack_into(MACHINE, self.root)
        program = write_program(
            directory / "hook", f"tests.bench.pretending.{handler}", str(self.root)
        )
        self._gate = write_gate(
            directory / "gate", program=str(program), run_dir=str(self.root / RUN)
        )

    def run(self, event: tuple[str, str], xml: bytes) -> Run:
        """An event as libvirt starts it: through the gate."""
        return Run((str(self._gate), NAME, *event, "-"), xml)

    def drop_claims(self) -> None:
        """Remove all claims and their names."""
        for folder in (CLAIMS, BY_NAME):
            for file in (self.root / folder).iterdir():
                file.unlink()

    def add_devices(self, count: int) -> list[str]:
        """Add that many virtual functions of an NVMe, each in its IOMMU group; their addresses."""
        addresses = [f"0000:{0x20 + n // 8:02x}:00.{n % 8}" for n in range(count)]
        for number, address in enumerate(addresses):
            group = f"kernel/iommu_groups/{1000 + number}"
            (self.root / f"sys/{group}/devices/{address}").mkdir(parents=True)
            folder = self.root / "sys/bus/pci/devices" / address
            folder.mkdir()
            (folder / "iommu_group").symlink_to(f"../../../../{group}")
            (folder / "class").write_text("0x010802\n", encoding="utf-8")
            lines = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 13
            (folder / "resource").write_text(lines, encoding="utf-8")
        return addresses

    def grow_iomem(self, count: int) -> Path:
        """Give /proc/iomem that many lines, the new ones above all others; its path."""
        path = self.root / "proc/iomem"
        lines = path.read_text(encoding="utf-8").splitlines()
        if count < len(lines):
            raise ValueError(f"{MACHINE} has {len(lines)} lines already")
        lines += [
            f"    {first:x}-{first + 0xFFF:x} : 0000:{number % 256:02x}:00.0"
            for number, first in enumerate(range(1 << 40, (1 << 40) + (count << 13), 1 << 13))
        ]
        path.write_text("".join(f"{line}\n" for line in lines[:count]), encoding="utf-8")
        return path

    def add_claims(self, count: int) -> Path:
        """Make the claims of that many running VMs with a GPU each; their directory."""
        boot = (self.root / "proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        for folder in (RUN, CLAIMS, BY_NAME):
            (self.root / folder).mkdir(mode=0o700)
        for number, (uuid, text) in enumerate(_claims(boot, count)):
            file = self.root / CLAIMS / uuid
            file.write_text(text, encoding="utf-8")
            file.chmod(0o600)
            (self.root / f"{BY_NAME}/=vm{number}").symlink_to(f"../claims/{uuid}")
        return self.root / CLAIMS


def _claims(boot: str, count: int) -> Iterator[tuple[str, str]]:
    """(uuid, text) of each VM's claim: a real claim with another name, uuid and GPU."""
    running = entries(snapshots.text(RUNNING))
    (real,) = (one for one in running if one.path.startswith(f"{CLAIMS}/"))
    head, _, rest = real.content.decode().partition("\n")
    for number in range(count):
        uuid = f"00000000-0000-4000-8000-{number:012x}"
        gpu = f"{1 + number // 256:04x}:{number % 256:02x}:00.0"
        own = {**json.loads(head), "vm": f"vm{number}", "uuid": uuid, "boot": boot, "gpus": [gpu]}
        yield uuid, f"{json.dumps(own)}\n{rest.replace(GPU, gpu)}"
