"""What commands print about a machine and about its snapshot: the same except for times.

And except for the version of the program, which a release changes.
"""

from __future__ import annotations

import re

# These inspect the machine and change nothing.
COMMANDS = ("plan gpu", "doctor", "status")

_DURATION = r"\d+ (?:s|min|h|d)(?: \d+ (?:s|min|h))?"
_TIMES = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "YYYY-MM-DD hh:mm:ss"),
    (rf"\({_DURATION} ago\)", "(some time ago)"),
    (rf"(?<=hh:mm:ss )\({_DURATION}\)", "(some time)"),
    (r"(?<=program: version )\d+\.\d+\.\d+", "0.0.0"),
    # A snapshot has other uuids.
    (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
)


def without_times(text: str) -> str:
    """The text with placeholders for times, uuids and the version of the program."""
    for pattern, instead in _TIMES:
        text = re.sub(pattern, instead, text)
    return text
