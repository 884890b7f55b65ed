"""Commands in the background of a machine, and a watcher that acts while the hook runs.

The watcher runs inside the machine and polls processes and claims there, which is faster
than asking from outside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from .images import GUEST
from .machine import Answer, Machine

WATCHER = "/root/watcher.py"


@dataclass(frozen=True)
class Moment:
    """The processes of the hook, and the text of the claims, when the watcher acted."""

    hook: tuple[int, ...]
    worker: tuple[int, ...]
    claim: str


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
    vm: str = "gpu",
    timeout_s: int = 90,
) -> Moment | None:
    """Wait until the hook handles an event and a text is in a claim; None after timeout_s.

    kill says which processes get SIGKILL at that moment: a VICTIM of guest/watcher.py.
    """
    machine.put(WATCHER, (GUEST / "watcher.py").read_bytes())
    words = " ".join((vm, event, f"'{claim}'", kill, str(timeout_s)))
    answer = machine.run(f"python3 {WATCHER} {words}", timeout_s + 60)
    if not answer.ok:
        return None
    seen = json.loads(answer.stdout)
    return Moment(tuple(seen["hook"]), tuple(seen["worker"]), seen["claim"])
