"""A target at work: what it finds is written down, each cause once."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .oracle import judge
from .targets import Target

_MOST_FOUND = 50


class Run:
    """Tries inputs on one target; findings get a file each in a directory, and a line."""

    def __init__(self, target: Target, directory: Path, findings: Path) -> None:
        self.target = target
        work = directory / "work"
        work.mkdir()
        self.work = target.make(work)
        self.findings = findings
        self.seen: set[str] = set()
        self.tried = 0

    def one(self, data: bytes) -> None:
        """Try one input."""
        self.tried += 1
        found = judge(self.work, data)
        if found is None or found.where in self.seen or len(self.seen) >= _MOST_FOUND:
            return
        self.seen.add(found.where)
        word = re.sub(r"[^A-Za-z0-9]+", "-", found.where).strip("-")[:60]
        name = f"{word}-{hashlib.sha256(data).hexdigest()[:8]}"
        (self.findings / name).write_bytes(data)
        text = " ".join(found.text.split())[-300:]
        print(f"finding: {found.where}: {text}", flush=True)
