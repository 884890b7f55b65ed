"""OpenRC: a service is an init script, and a file openrc/NAME with its state and what is wrong.

`rc-service NAME VERB` executes the script with VERB (src/rc-service/rc-service.c, main). The
exit statuses are those of sh/openrc-run.sh, _status: 0 for started, 3 for stopped. They are the
same by LSB ("Init Script Actions"), so that the scripts of sysvinit answer like these.
"""

from __future__ import annotations

import time

from .tree import Tree

RC_SERVICE = "/sbin/rc-service"
SCRIPTS = "/etc/init.d/"


def put(tree: Tree, name: str, state: str, wrong: str = "") -> None:
    """Add a service, "started" or "stopped".

    wrong: "fails" when it can neither be stopped nor started, "deaf" when a stop
    says that all went well and nothing happens, "late" when it happens 0.2 s later,
    "slow" when commands do not end.
    """
    tree.put(f"openrc/{name}", f"{state} {wrong}".strip())
    tree.put(f"{SCRIPTS[1:]}{name}", "#!/sbin/openrc-run")


def state(tree: Tree, name: str) -> str:
    """ "started" or "stopped"."""
    return (tree.read(f"openrc/{name}") or "stopped").split()[0]


def is_command(tree: Tree, program: str) -> bool:
    """Whether a program is rc-service or an init script that is there."""
    is_script = program.startswith(SCRIPTS) and tree.read(program[1:]) is not None
    return program == RC_SERVICE or is_script


def exit_status(tree: Tree, command: tuple[str, ...]) -> int | None:
    """That of `rc-service NAME VERB` or `/etc/init.d/NAME VERB`; None when it does not end."""
    *_, name, verb = command
    name = name.removeprefix(SCRIPTS)
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
