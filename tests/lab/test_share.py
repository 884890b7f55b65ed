"""How the share of the hook is read from the log of its wrapper."""

from __future__ import annotations

from .share import Share, read

# As dash writes it: the shell's own times, then those of its children.
LOG = """\
prepare 100.50 101.20
0m0.000000s 0m0.010000s
0m0.300000s 0m0.120000s
start 103.00 103.25
0m0.000000s 0m0.000000s
0m0.100000s 1m0.050000s
started 104.00 104.05
0m0.010000s 0m0.000000s
0m0.020000s 0m0.010000s
stopped 110.00 119.00
0m0.000000s 0m0.000000s
9m0.000000s 0m0.000000s
"""


def test_the_events_of_a_start_count_and_not_those_of_its_end() -> None:
    seen = {event: (round(took, 2), round(busy, 2)) for event, (took, busy) in read(LOG).items()}

    assert seen == {"prepare": (0.7, 0.42), "start": (0.25, 60.15), "started": (0.05, 0.03)}


def test_the_share_is_printed_in_seconds_and_percent() -> None:
    assert str(Share(0.42, 9.84)) == "0.42 s of 9.8 s, 4 %"
