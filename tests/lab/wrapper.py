"""A script of the lab between libvirt and the hook: it runs the hook and does something more."""

from __future__ import annotations

from .machine import Machine

# libvirt calls only hooks whose names it knows in this directory, and its AppArmor profile
# lets it execute what lies there.
_REAL = "/etc/libvirt/hooks/lab-real"


def install(machine: Machine, hook: str, script: str, real: str = _REAL) -> None:
    """Put a script in the place of a hook and move the hook to real, the {hook} of the script."""
    machine.put(f"{real}-new", script.format(hook=real).encode())
    machine.run(f"chmod 755 {real}-new; mv {hook} {real}; mv {real}-new {hook}")


def remove(machine: Machine, hook: str, real: str = _REAL) -> None:
    """Put the hook back."""
    machine.run(f"mv {real} {hook}")
