"""What can be done on a machine, by the name that a scenario gives."""

from __future__ import annotations

from .trial import Trial

KINDS: dict[str, type[Trial]] = {
    "cycles": Trial,
}
