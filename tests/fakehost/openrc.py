"""OpenRC's rc-service: a service is a file openrc/NAME, with its state and what goes wrong.

The exit statuses are those of sh/openrc-run.sh, _status: 0 for started, 3 for stopped.
"""

from __future__ import annotations

import time

from .tree import Tree

RC_SERVICE = "/sbin/rc-service"


def put(tree: Tree, name: str, state: str, wrong: str = "") -> None:
    """Add a service, "started" or "stopped".

    wrong: "fails" when it can neither be stopped nor started, "deaf" when a stop
    says that all went well and nothing happens, "late" when it happens 0.2 s later,
    "slow" when commands do not end.
    """
    tree.put(f"openrc/{name}", f"{state} {wrong}".strip())


def state(tree: Tree, name: str) -> str:
    """ "started" or "stopped"."""
    return (tree.read(f"openrc/{name}") or "stopped").split()[0]


def rc_service(tree: Tree, words: tuple[str, ...]) -> int | None:
    """The exit status of `rc-service NAME VERB`; None when it does not end in time."""
    name, verb = words
    now, _, wrong = (tree.read(f"openrc/{name}") or "stopped").partition(" ")
    asked = float(tree.read(f"fake/openrc/{name}") or "inf")
    if wrong == "late" and verb == "stop":
        tree.put(f"fake/openrc/{name}", str(time.monotonic()))
        return 0
    if time.monotonic() >= asked + 0.2:
        put(tree, name, "stopped", wrong)
        now = "stopped"
    if verb == "status":
        return 0 if now == "started" else 3
    if wrong == "fails":
        return 1
    if wrong != "deaf":
        put(tree, name, "started" if verb == "start" else "stopped", wrong)
    return None if wrong == "slow" else 0
