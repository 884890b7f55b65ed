"""A service in the machine that has to stop before the VM gets the GPU."""

from __future__ import annotations

from .machine import Machine

UNIT = "lab-service"


def start(machine: Machine, stops_in_s: int) -> None:
    """Install and start the service, which takes so many seconds to stop."""
    text = f"""\
[Unit]
Description=A service that has to stop before the VM gets the GPU
[Service]
ExecStart=/usr/bin/sleep infinity
ExecStop=/usr/bin/sleep {stops_in_s}
"""
    machine.put(f"/etc/systemd/system/{UNIT}.service", text.encode())
    machine.run(f"systemctl daemon-reload; systemctl start {UNIT}")


def is_active(machine: Machine) -> bool:
    """Whether the service runs."""
    return machine.run(f"systemctl is-active {UNIT}").ok
