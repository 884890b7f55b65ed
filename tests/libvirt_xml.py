"""Domain XML as libvirtd 11.3 gives it to the hook on stdin."""

from __future__ import annotations

UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"

_DOMAIN = """\
<domain type='kvm'{id}>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='KiB'>8388608</memory>
  <currentMemory unit='KiB'>8388608</currentMemory>
  <vcpu placement='static'>8</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <boot dev='hd'/>
  </os>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
    <graphics type='vnc' port='-1' autoport='yes'>
      <listen type='address'/>
    </graphics>
    <video>
      <model type='none'/>
    </video>
{hostdevs}    <memballoon model='none'/>
  </devices>
</domain>
"""
_HOSTDEV = """\
    <hostdev mode='subsystem' type='pci' managed='{managed}'>
{driver}      <source>
        <address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>
      </source>
{alias}      <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x{number:x}'/>
    </hostdev>
"""

EVENTS = (
    ("prepare", "begin"),
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("release", "end"),
)
"""What libvirt calls the hook for in the life of a VM, operation and sub-operation."""


def domain_xml(
    *addresses: str,
    managed: bool = True,
    name: str = "win11",
    uuid: str = UUID,
    event: str = "prepare",
) -> bytes:
    """A VM with these PCI host devices, such as "0000:01:00.0".

    event is the hook's operation: the id is gone after the end, and aliases and
    the driver appear after prepare.
    """
    hostdevs = ""
    for number, address in enumerate(addresses):
        domain, bus, rest = address.split(":")
        slot, function = rest.split(".")
        prepared = event != "prepare"
        hostdevs += _HOSTDEV.format(
            managed="yes" if managed else "no",
            driver="      <driver name='vfio'/>\n" if prepared else "",
            alias=f"      <alias name='hostdev{number}'/>\n" if prepared else "",
            domain=domain, bus=bus, slot=slot, function=function, number=number,
        )  # fmt: skip
    number_of_run = "" if event in ("stopped", "release") else " id='1'"
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _DOMAIN.format(id=number_of_run, name=escaped, uuid=uuid, hostdevs=hostdevs).encode()
