"""Commands in the background of a machine, and a watcher that acts while the hook runs.

The watcher runs inside the machine and polls processes and claims there, which is faster
than asking from outside.
"""

from __future__ import annotations

import json

from .images import GUEST
from .machine import Answer, Machine
from .vm import VM

WATCHER = "/root/watcher.py"
WATCHES_S = 90


class Background:
    """A command that runs in the background of the machine."""

    def __init__(self, machine: Machine, command: str, name: str) -> None:
        self._machine = machine
        self._base = f"/run/lab-{name}"
        machine.run(f"rm -f {self._base}.*")
        machine.put(f"{self._base}.sh", f"{command}\n".encode())
        machine.run(
            f"setsid sh -c 'sh {self._base}.sh >{self._base}.out 2>&1;"
            f" echo $? >{self._base}.new; mv {self._base}.new {self._base}.status'"
            " >/dev/null 2>&1 </dev/null &"
        )

    def wait(self, timeout_s: int) -> Answer:
        """How the command ended; status 124 if it is still running after timeout_s."""
        status = f"{self._base}.status"
        answer = self._machine.run(
            f"n=0; until [ -e {status} ]; do n=$((n + 1)); [ $n -lt {timeout_s * 4} ] || exit 124;"
            f" sleep 0.25; done; cat {self._base}.out; exit $(cat {status})",
            timeout_s * 3 + 60,
        )
        return Answer(answer.status, answer.stdout, answer.stdout)


def watch(
    machine: Machine,
    event: str,
    *,
    claim: str = "",
    kill: str = "none",
) -> int | None:
    """Wait until the hook handles an event and a text is in a claim; the hook's process id.

    None if that does not happen within WATCHES_S. kill is the VICTIM for guest/watcher.py:
    the processes that get SIGKILL at that moment.
    """
    machine.put(WATCHER, (GUEST / "watcher.py").read_bytes())
    words = " ".join((VM, event, f"'{claim}'", kill, str(WATCHES_S)))
    answer = machine.run(f"python3 {WATCHER} {words}", WATCHES_S + 60)
    return int(json.loads(answer.stdout)["hook"][0]) if answer.ok else None
