"""Whether a PCI device is awake and answers, and what the kernel can do if it does not.

A GPU that a guest has left in a bad state may not wake up again. The kernel then shows D3cold
(Linux drivers/pci/pci.c, pci_power_up: "Unable to change power state ..., device
inaccessible"), and each read of its config space gives ones. One that merely sleeps is woken by
such a read (drivers/pci/access.c, pci_config_pm_runtime_get).
"""

from __future__ import annotations

from .host import Host

_IDLE_D3 = "sys/module/vfio_pci/parameters/disable_idle_d3"


def is_silent(host: Host, address: str) -> bool:
    """Whether a device on the bus does not answer: its vendor reads as ones. Raises HostError."""
    config = f"sys/bus/pci/devices/{address}/config"
    # Some snapshots lack the file.
    return host.exists(config) and host.peek(config, 0, 2) == b"\xff\xff"


def state(host: Host, address: str) -> str:
    """Its power state, such as "D0" or "D3cold"; "" when the kernel does not show it.

    Source: drivers/pci/pci.h, pci_power_name; shown from Linux 5.11 on.
    """
    return host.read(f"sys/bus/pci/devices/{address}/power_state") or ""


def condition(host: Host, address: str) -> str:
    """What keeps a driver from a device, as a clause after its name; "" for nothing that shows."""
    shown = state(host, address)
    if is_silent(host, address):
        return f", which does not answer{f' (power state {shown})' if shown else ''}"
    return f", which is in power state {shown}" if shown.startswith("D3") else ""


def advice(host: Host, address: str) -> str:
    """What to do about a device whose driver did not come back.

    Sources: vfio-pci's parameter disable_idle_d3 (drivers/vfio/pci/vfio_pci.c); sysfs
    d3cold_allowed, reset and reset_method (Documentation/ABI/testing/sysfs-bus-pci), of which the
    last two are only there for a device that the kernel can reset.
    """
    device = f"sys/bus/pci/devices/{address}"
    asleep = is_silent(host, address) or state(host, address).startswith("D3")
    awake = _keeps_awake(host, address) if asleep else ""
    probe = f"echo {address} > /sys/bus/pci/drivers_probe"
    if host.exists(f"{device}/reset"):
        text = f"try `echo 1 > /{device}/reset; {probe}`{_methods(host, device)}"
    elif host.complete:
        text = f"try `{probe}`; the kernel cannot reset it, so it may need a reboot"
    else:
        text = f"try `{probe}`"
    return f"{text}; {awake}" if awake else f"{text}, and see `journalctl -k`"


def _methods(host: Host, device: str) -> str:
    """The kernel's ways to reset a device, if it has more than the first one to choose from."""
    words = (host.read(f"{device}/reset_method") or "").split()
    if len(words) < 2:
        return ""
    others = " or ".join(words[1:])
    return f" (by {words[0]}; {others} can be written to its reset_method)"


def _keeps_awake(host: Host, address: str) -> str:
    """The settings that keep a device from sleeping the next time, where they are not set."""
    ways = []
    if host.read(_IDLE_D3) != "Y":
        ways.append("`options vfio-pci disable_idle_d3=1` in /etc/modprobe.d")
    if host.read(f"sys/bus/pci/devices/{address}/d3cold_allowed") == "1":
        ways.append(f"`echo 0 > /sys/bus/pci/devices/{address}/d3cold_allowed` at each boot")
    return f"to keep it awake the next time, {' and '.join(ways)}" if ways else ""
