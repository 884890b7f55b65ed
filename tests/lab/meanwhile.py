"""What is done to a machine while libvirt and the hook are at work in it.

A command goes on in the background, and a watcher inside the machine acts at a chosen
moment: it polls processes and the claim's file there, which is faster than the wire.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from .images import GUEST
from .machine import Answer, Machine

WATCHER = "/root/watcher.py"


@dataclass(frozen=True)
class Moment:
    """What the watcher saw when it acted: the processes of the hook, and the claim's text."""

    hook: tuple[int, ...]
    worker: tuple[int, ...]
    claim: str


class Background:
    """A command that goes on in the machine while other things are done there."""

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
        """How the command ended; status 124 when it has not, and goes on."""
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
    kill: str = "nobody",
    vm: str = "gpu",
    timeout_s: int = 90,
) -> Moment | None:
    """Wait until the hook runs for an event and its claim holds a text; what was there then.

    kill is who gets SIGKILL at that moment, in the words of guest/watcher.py. None when
    the moment did not come.
    """
    machine.put(WATCHER, (GUEST / "watcher.py").read_bytes())
    words = " ".join((vm, event, f"'{claim}'", kill, str(timeout_s)))
    answer = machine.run(f"python3 {WATCHER} {words}", timeout_s + 60)
    if not answer.ok:
        return None
    seen = json.loads(answer.stdout)
    return Moment(tuple(seen["hook"]), tuple(seen["worker"]), seen["claim"])
