"""The events of a VM with one GPU, compared to a Python that imports lxml.etree and yaml.

Each goes through the real gate, which starts Python; only the machine is a snapshot
(pretending.py). yaml, because a hook whose configuration sets anything loads it.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.compare import Row
from tests.bench.machine import GPU, MACHINE, NAME, Machine
from tests.bench.measure import Run, cost, interleaved
from tests.libvirt_xml import domain_xml
from tests.trust.check import in_memory

PREPARE_BAR = 1.5
# 0.35 of the floor is Python with dataclasses and json alone, in each of the two events, with
# Python 3.11. From 3.13 on dataclasses needs inspect, which is 0.15 more (hooks/launch.py).
TOGETHER_BAR = 1.5
IMPORTS = ("/usr/bin/python3", "-I", "-c", "import lxml.etree, yaml")
PREPARE, *AFTERWARDS = (("prepare", "begin"), ("start", "begin"), ("release", "end"))


def rows(directory: Path, rounds: int) -> tuple[Row, ...]:
    """prepare, start and release of a VM with the GPU of MACHINE, in processor time."""
    with in_memory(directory) as memory:
        return _rows(memory, rounds)


def _rows(directory: Path, rounds: int) -> tuple[Row, ...]:
    xml = domain_xml(GPU, name=NAME)
    fresh, claimed = Machine(directory / "fresh"), Machine(directory / "claimed")
    for one in (fresh, claimed):
        cost(one.run(PREPARE, xml))  # leaves its claim, and the files that last for the whole boot
    fresh.drop_claims()
    runs = [fresh.run(PREPARE, xml), *(claimed.run(event, xml) for event in AFTERWARDS)]
    prepare, *afterwards, floor = interleaved([*([run] for run in runs), [Run(IMPORTS)]], rounds)
    together_s = sum(one.cpu_s for one in afterwards)
    return (
        Row(f"prepare with one GPU ({MACHINE})", "cpu", prepare.cpu_s, floor.cpu_s, PREPARE_BAR),
        Row("start and release together", "cpu", together_s, floor.cpu_s, TOGETHER_BAR),
    )
