"""One of many processes on one fake machine."""

from __future__ import annotations

import time

from tests.fakehost import FakeHost
from vfio_console_hook import hook
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.machine.host import Host
from vfio_console_hook.machine.runfiles import RUN

HANG = "fake/hang"
"""What a write that does not come back has in its path or text. It does once this is gone."""
SLOW = "fake/slow"
"""How many seconds a look at which claims there are takes: then others have time for theirs."""
WAITS = "fake/waits"
"""How long each process waited for the lock of the claims, in seconds, one a line."""
_LOCK = f"{RUN}/lock"


class SharedHost(FakeHost):
    """A machine on which the program's own processes are those that really run."""

    patient = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._hang = self.read(HANG) or ""
        self._slow_s = float(self.read(SLOW) or 0)
        self._asked_at = 0.0

    def path(self, path: str) -> str:
        # The process that has the lock looks at the machine next.
        if path == _LOCK:
            self._asked_at = time.monotonic()
        elif getattr(self, "_asked_at", 0.0):
            waited_s, self._asked_at = time.monotonic() - self._asked_at, 0.0
            with open(self.path(WAITS), "a", encoding="ascii") as file:
                file.write(f"{waited_s:.6f}\n")
        return super().path(path)

    def read_bytes(self, path: str) -> bytes | None:
        content = super().read_bytes(path)
        if content is None and path.startswith("proc/") and path.endswith("/stat"):
            return Host("/").read_bytes(path)
        return content

    def list(self, path: str) -> tuple[str, ...]:
        names = super().list(path)
        if path == CLAIMS:
            time.sleep(self._slow_s)
        return names

    def _attribute(self, kind: str, path: str) -> str | None:
        # What the program writes was not recorded; asking costs more than the program.
        return None if path.startswith(RUN) else super()._attribute(kind, path)

    def _never_return(self, kind: str, what: str) -> None:
        while self.exists(HANG):
            time.sleep(0.02)


def main(root: str, argv: list[str]) -> int:
    """Handle an event on a machine in a directory; the exit status."""
    return hook.main(argv, host=SharedHost(root))
