"""200 VMs that start at once, compared to one by one; and other VMs while a worker hangs.

tests/trust (storm.py) runs them and checks their claims; this module measures it.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.compare import Row
from tests.trust import storm

_DEAREST = 1.3
_SLOWEST = 1.5


def rows(directory: Path, quick: bool) -> tuple[Row, ...]:
    """The processor time of all together, and how long others take while one hangs."""
    crowd = storm.play(storm.start_and_stop, directory, quick)
    hung = storm.play(storm.one_hangs, directory, quick)
    return (
        Row("200 VMs at once, beside one by one", "cpu", crowd.ours_s, crowd.theirs_s, _DEAREST),
        Row("other VMs while a worker hangs", "wall", hung.ours_s, hung.theirs_s, _SLOWEST),
    )
