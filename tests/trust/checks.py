"""All checks, in the order of the table."""

from __future__ import annotations

from tests.trust import access, bombs, crashes, faults, fuzzing, orders, records, storm
from tests.trust.check import Check

CHECKS: tuple[Check, ...] = (
    crashes.CHECK,
    faults.CHECK,
    records.CHECK,
    orders.CHECK,
    storm.CHECK,
    bombs.CHECK,
    fuzzing.CHECK,
    access.CHECK,
)
