"""Something of the lab's between libvirt and the hook: a script that runs the hook, and more."""

from __future__ import annotations

from .machine import Machine

# libvirt calls only the hooks that it knows by their names in this directory, and what
# its AppArmor profile lets it execute lies there.
_REAL = "/etc/libvirt/hooks/lab-real"


def put(machine: Machine, hook: str, script: str) -> None:
    """Put a script in the place of a hook; {hook} in it is where the hook is now."""
    machine.put(f"{_REAL}-new", script.format(hook=_REAL).encode())
    machine.run(f"chmod 755 {_REAL}-new; mv {hook} {_REAL}; mv {_REAL}-new {hook}")


def take_off(machine: Machine, hook: str) -> None:
    """Put the hook back."""
    machine.run(f"mv {_REAL} {hook}")
