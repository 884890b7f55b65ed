#!/usr/bin/python3 -I
"""A hookscript for Proxmox VE, which calls no libvirt hook: frees the GPUs of a VM for its run.

Before the VM starts it takes them with `vfio-console-hook take`, and a start that would leave
the VM without its GPU, or the host in a bad state, is refused with the reason in the task log.
After the VM has stopped it gives them back. As root, for VM 100, with a storage for snippets:

    cd /var/lib/vz/snippets
    cp /usr/share/doc/vfio-console-hook/examples/proxmox-hookscript.py .
    chmod 755 proxmox-hookscript.py
    qm set 100 --hookscript local:snippets/proxmox-hookscript.py

It needs no settings: hostpciN of the VM says which GPUs. /etc/vfio-console-hook/vms/100.yaml is
for those of vfio-console-hook. Proxmox VE calls no phase when QEMU does not start: then
`vfio-console-hook give ADDRESS` gives the GPU back, and so does the next start of the VM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

QM = "/usr/sbin/qm"
PVESH = "/usr/bin/pvesh"
COMMAND = "/usr/bin/vfio-console-hook"
DEVICES = "/sys/bus/pci/devices"
# What was taken for each VM: after its stop the configuration may be another one already,
# because changes that waited for the stop are made before post-stop (qemu-server,
# QemuServer.pm, vm_stop_cleanup).
TAKEN = "/run/vfio-console-hook-proxmox"


def main(arguments: list[str]) -> int:
    """Handle one phase of a VM; returns the exit status, which counts in pre-start only."""
    vmid, phase = arguments
    if phase == "pre-start":
        return before_start(vmid)
    if phase == "post-stop":
        return after_stop(vmid)
    return 0


def before_start(vmid: str) -> int:
    """Take the GPUs of a VM."""
    # Those of a start that failed, which no post-stop has followed.
    status = after_stop(vmid)
    if status:
        return status
    found = list(devices(output(QM, "config", vmid, "--current", "1")))
    slots = {slot(one) for one in found if is_gpu(one)}
    # The sound of a card, and what else of it goes to the VM, leaves the host with the GPU.
    cards = [one for one in found if slot(one) in slots]
    if not cards:
        return 0
    os.makedirs(TAKEN, 0o700, exist_ok=True)
    with open(f"{TAKEN}/{vmid}", "w", encoding="ascii") as file:
        file.write(" ".join(cards))
    status = run(COMMAND, "take", "--vfio", "--for", vmid, *cards)
    if status:
        os.unlink(f"{TAKEN}/{vmid}")  # what was done has been undone
    return status


def after_stop(vmid: str) -> int:
    """Give back what was taken for a VM, if anything."""
    try:
        with open(f"{TAKEN}/{vmid}", encoding="ascii") as file:
            cards = file.read().split()
    except FileNotFoundError:
        return 0
    held = json.loads(output(COMMAND, "status", "--json"))["holds"]
    taken = [one for one in cards if any(hold["by_hand"] and one in hold["gpus"] for hold in held)]
    status = run(COMMAND, "give", *taken) if taken else 0
    if not status:
        os.unlink(f"{TAKEN}/{vmid}")
    return status


# -- which devices a VM gets


def devices(config: str) -> Iterator[str]:
    """The PCI addresses that QEMU opens for a VM, by what `qm config` prints (qm.conf(5))."""
    for line in config.splitlines():
        key, _, value = line.partition(": ")
        if not (key.startswith("hostpci") and key[7:].isdigit()):
            continue
        options = dict(one.split("=", 1) for one in value.split(",") if "=" in one)
        if "mdev" in options or options.get("driver") == "keep":
            continue  # the GPU stays on the driver that it has
        first = value.split(",", 1)[0]
        hosts = options.get("host") or ("" if "=" in first else first)
        if "mapping" in options:
            hosts = mapped(options["mapping"])
        for one in hosts.split(";"):
            yield from functions(one)


def mapped(name: str) -> str:
    """The addresses on this node for a resource mapping of the cluster."""
    text = output(PVESH, "get", f"/cluster/mapping/pci/{name}", "--output-format", "json")
    entries = [
        dict(word.split("=", 1) for word in one.split(",")) for one in json.loads(text)["map"]
    ]
    node = os.uname().nodename.split(".")[0]
    paths = [str(one["path"]) for one in entries if one["node"] == node]
    if len(paths) != 1:
        # With several Proxmox VE chooses one that is free, after pre-start.
        raise SystemExit(
            f"the mapping {name} has {len(paths)} devices on this node, so it is not known which"
            " one the VM gets: write the address of the GPU into hostpciN instead"
        )
    return paths[0]


def functions(host: str) -> list[str]:
    """The devices of "0000:01:00.0", or of "01:00", which means all functions of a card."""
    start = (host if host.count(":") == 2 else f"0000:{host}").lower()
    return sorted(one for one in os.listdir(DEVICES) if one == start or one.startswith(f"{start}."))


def slot(address: str) -> str:
    """The address without its function: that of a card."""
    return address.partition(".")[0]


def is_gpu(address: str) -> bool:
    """Whether a device can have the host's console: a virtual function has none."""
    with open(f"{DEVICES}/{address}/class", encoding="ascii") as file:
        return file.read().startswith("0x03") and not os.path.exists(f"{DEVICES}/{address}/physfn")


# -- programs


def run(*command: str) -> int:
    """The exit status of a program, which prints into the task log."""
    return subprocess.run(command).returncode  # noqa: S603


def output(*command: str) -> str:
    """What a program prints. Raises CalledProcessError when it fails."""
    return subprocess.check_output(command, encoding="utf-8")  # noqa: S603


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as failure:
        sys.exit(f"{sys.argv[0]}: {failure}")
