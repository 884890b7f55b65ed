"""What the program says of a machine, and of its recording: the same, but for the time."""

from __future__ import annotations

import re

# Each prints what it found at that moment.
COMMANDS = ("plan gpu", "doctor", "status")

_DURATION = r"\d+ (?:s|min|h|days?)(?: \d+ (?:s|min|h))?"
_TIMES = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "YYYY-MM-DD hh:mm:ss"),
    (rf"\({_DURATION} ago\)", "(some time ago)"),
    (rf"(?<=hh:mm:ss )\({_DURATION}\)", "(some time)"),
    # A recording has other uuids.
    (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
)


def timeless(text: str) -> str:
    """A text of the program without what is another at another time or in a recording."""
    for pattern, instead in _TIMES:
        text = re.sub(pattern, instead, text)
    return text
