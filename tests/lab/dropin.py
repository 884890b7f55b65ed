"""Our hook beside foreign hooks.

The main hook is a foreign one, so install.sh puts ours into qemu.d, between two
more foreign ones. Each foreign hook logs the event, a checksum of its stdin and the
number of claims, which shows whether ours has run before.
"""

from __future__ import annotations

from collections.abc import Sequence

from .trial import CLAIMS, HOOK, Trial

DROPINS = f"{HOOK}.d"
OURS = f"{DROPINS}/50-vfio-console-hook"
LOG = "/run/foreign-hooks.log"
FOREIGN = (HOOK, f"{DROPINS}/10-foreign", f"{DROPINS}/90-foreign")

_FOREIGN_HOOK = f"""#!/bin/sh
# A foreign hook.
sum=$(sha256sum)
echo "${{0##*/}} $2:$3 ${{sum%% *}} $(ls {CLAIMS} 2>/dev/null | wc -l)" >> {LOG}
""".encode()

# The number of claims when the first, the second and the third foreign hook run: ours
# runs between the last two.
_CLAIMS = {
    "prepare:begin": (0, 0, 1),
    "start:begin": (1, 1, 1),
    "started:begin": (1, 1, 1),
    "stopped:end": (1, 1, 1),
    "release:end": (1, 1, 0),
}


class DropIn(Trial):
    """Starts and destroys the VM under four hooks."""

    hook_path = OURS

    def install(self) -> bool:
        """Install the foreign hooks, then ours beside them."""
        for path in FOREIGN:
            self.machine.put(path, _FOREIGN_HOOK)
            self.machine.run(f"chmod 755 {path}")
        if not super().install():
            return False
        beside = self.machine.run(f"ls -l {HOOK} {DROPINS}; test -x {OURS}")
        untouched = self.machine.get(HOOK) == _FOREIGN_HOOK
        self.demand(untouched, "install.sh changed the foreign hook")
        return self.demand(beside.ok, "install.sh did not put our hook into qemu.d")

    def cycle(self, number: int) -> None:
        """Start and destroy the VM, then read the foreign hooks' log."""
        self.machine.run(f"rm -f {LOG}")
        super().cycle(number)
        text = self.machine.run(f"cat {LOG}").stdout
        self.demand(bool(text), f"cycle{number}: the foreign hooks were not called")
        for wrong in disorder(text.splitlines()):
            self.demand(False, f"cycle{number}: {wrong}")


def disorder(log: Sequence[str]) -> list[str]:
    """What is wrong in the foreign hooks' log of one start and destroy."""
    lines = [line.split() for line in log]
    names = [path.rpartition("/")[2] for path in FOREIGN]
    wrong = []
    for event, held in _CLAIMS.items():
        calls = [(name, digest, count) for name, where, digest, count in lines if where == event]
        if [name for name, _, _ in calls] != names:
            wrong.append(f"{event}: libvirt called {[name for name, _, _ in calls]}")
        elif len({digest for _, digest, _ in calls}) != 1:
            wrong.append(f"{event}: they did not read the same")
        elif tuple(int(count) for _, _, count in calls) != held:
            wrong.append(f"{event}: ours did not run between the last two: {calls}")
    unknown = {where for _, where, _, _ in lines} - _CLAIMS.keys()
    return wrong + [f"{event}: was not expected" for event in sorted(unknown)]
