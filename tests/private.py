"""A machine with private data in each file that record reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests import installed
from tests.fakehost import FakeHost, hold
from vfio_console_hook.commands.doctor import denials
from vfio_console_hook.machine.snapshot import answer_path

GPU = "0000:01:00.0"
NAME = "Freds-Gaming-PC"
UUID = "3d2f7a11-9b6c-4e55-a1d3-1c2b3a4d5e6f"
OTHER_UUID = "aabbccddeeff40008000112233445566"
DISK = "0b5e4c1d-77aa-4c2b-9d55-aa00bb11cc22"
MAC = "3c:7c:3f:a1:b2:c3"
IPV4, IPV6 = "203.0.113.77", "fd00:5317:77::9"
# In two parts: no file here may name a home.
HOME = "/home/" + "fredsmith"
SERVER = "nas.smith.example.org"
SERIAL, SERIAL_HEX = "SN-49A81B77", "5e71a15e71a1"
SINCE = 1_700_003_000

SECRETS = {
    "name of a VM": NAME,
    "name of a file in another case": NAME.upper(),
    "uuid of a VM": UUID,
    "another uuid": OTHER_UUID,
    "a user": "fredsmith",
    "another user": "annasmith",
    "the host": "smithtower",
    "a domain": "smith.example.org",
    "a MAC address": MAC,
    "an IPv4 address": IPV4,
    "an IPv6 address": IPV6,
    "a serial number": SERIAL,
    "a serial number in config space": SERIAL_HEX,
    "a disk": "freds-disk",
    "a file system": DISK,
    "a word in a comment": "hunter2",
    "a file server": SERVER,
}
XML = f"""\
<domain type='kvm' id='3'>
  <name>{NAME}</name>
  <uuid>{UUID}</uuid>
  <title>hunter2</title>
  <metadata><x:note xmlns:x='http://x'>hunter2 fredsmith</x:note></metadata>
  <sysinfo type='smbios'><system><entry name='serial'>{SERIAL}</entry></system></sysinfo>
  <devices>
    <disk type='file'><source file='{HOME}/freds-disk.qcow2'/></disk>
    <interface type='network'><mac address='{MAC}'/></interface>
    <graphics type='vnc' listen='{IPV4}' passwd='hunter2'/>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source>
        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </source>
      <rom file='{HOME}/freds-disk.rom'/>
      <alias name='ua-hunter2'/>
    </hostdev>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/></source></hostdev>
  </devices>
  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:arg value='-smbios'/>
    <qemu:arg value='type=1,serial={SERIAL}'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='vfio-pci,host=01:00.1,romfile={HOME}/freds-disk.rom,id=hunter2'/>
  </qemu:commandline>
</domain>
"""
START = f"#!/bin/sh\n# of fredsmith\nrmmod amdgpu {NAME} {SERIAL}\n"
COMMAND_LINE = (
    f"BOOT_IMAGE=/vmlinuz root=UUID={DISK} ro quiet ip={IPV4}"
    f" netconsole=@{IPV4}/eth0,@{IPV4}/{MAC} systemd.hostname=smithtower video=efifb:off"
    " vfio-pci.ids=10de:1b80 intel_iommu=on vfio-pci,ids=10de:1b80"
)
MOUNTS = (
    f"{SERVER}:/homes/fredsmith /home/fredsmith nfs4 rw,addr={IPV4} 0 0\n"
    "/dev/mapper/freds-disk / ext4 rw 0 0"
)
MOUNTINFO = (
    f"24 1 253:0 / / rw - ext4 /dev/mapper/freds-disk rw\n"
    f"25 24 0:50 / {HOME} rw - nfs4 {SERVER}:/homes/fredsmith rw,addr={IPV4}\n"
    "26 24 8:1 / /mnt/hunter2 rw - ext4 /dev/sda1 rw\n"
)
DENIED = (
    f"type=AVC msg=audit({SINCE}.123:456): avc:  denied  {{ execute }} for  pid=4711"
    ' comm="rpc-libvirtd" name="qemu" path="/etc/libvirt/hooks/qemu" dev="freds-disk" ino=77'
    f' exe="{HOME}/bin/x" hostname=smithtower addr={IPV4}'
    " scontext=system_u:system_r:virtd_t:s0 tcontext=unconfined_u:object_r:user_home_t:s0"
    " tclass=file permissive=0\n"
    f'type=AVC msg=audit({SINCE}.124:457): avc:  denied  {{ read }} for  comm="fredsmith"'
    f" name=freds-disk addr={IPV4}\n"
    f'type=AVC msg=audit({SINCE}.125:458): avc:  denied  {{ start }} for  comm="systemctl"'
    f' path="/run/systemd" dev="freds-disk" addr={IPV4} scontext=system_u:system_r:virtd_t:s0'
    " tcontext=system_u:object_r:systemd_unit_file_t:s0 tclass=service permissive=0\n"
)
SCRIPT = f"""\
#!/bin/bash
# by fredsmith, password hunter2
ping {IPV4} -c 1 smithtower && wget --password=hunter2 https://{SERVER}
echo {SERIAL} > /sys/class/vtconsole/vtcon0/bind; systemctl stop sddm {NAME}
modprobe -r nvidia_drm {NAME} # hunter2
/usr/local/bin/start-it {NAME} {SERVER}
  virsh start {NAME} # hunter2
virsh -c qemu+ssh://fredsmith@{SERVER}/system list
"""
SETTINGS = """\
# fredsmith's, hunter2
holders:
  wait_s: 0
  terminate: [fredsmith]  # hunter2
"""
_MACHINE = "/machine.slice/machine-qemu\\x2d3\\x2d" + NAME.replace("-", "\\x2d") + ".scope"
_HOOKS, _CONFIG = "etc/libvirt/hooks", "etc/vfio-console-hook"
_RUN = "run/vfio-console-hook"


def add_data(host: FakeHost) -> FakeHost:
    """Put private data into the files of a machine."""
    installed.hook(host)
    installed.daemon(host)
    host.tree.put("recorded/now", str(SINCE + 4000))
    _kernel(host)
    _users(host)
    _libvirt(host)
    _files(host)
    _claims(host)
    return host


def _kernel(host: FakeHost) -> None:
    put, address = host.tree.put, host.real(f"sys/bus/pci/devices/{GPU}")
    put("proc/sys/kernel/hostname", "smithtower")
    put("proc/cmdline", COMMAND_LINE)
    put("proc/cpuinfo", f"processor : 0\nvendor_id\t: GenuineIntel\nSerial : {SERIAL}")
    put("sys/bus/pci/devices/0000:01:00.1/class", "0x040300")
    put(f"{address}/serial", SERIAL)
    capabilities = bytes.fromhex(SERIAL_HEX) * 32
    Path(host.path(f"{address}/config")).write_bytes(bytes(64) + capabilities)
    _security(host)


def _security(host: FakeHost) -> None:
    """Both security modules, which no host has at once."""
    put = host.tree.put
    put("sys/module/apparmor/parameters/enabled", "Y")
    put("sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\nfredsmith (enforce)")
    put("proc/700/attr/apparmor/current", "libvirtd (enforce)")
    put("proc/4712/attr/apparmor/current", "annasmith (enforce)")
    put("proc/4713/attr/apparmor/current", "unconfined")
    rules = f"# {SERVER}\n{HOME}/** rw,\n/usr/bin/* Px,\n"
    put("etc/apparmor.d/usr.sbin.libvirtd", rules)
    put("etc/selinux/config", "# hunter2\nSELINUX=enforcing")
    put("sys/fs/selinux/enforce", "1")
    put("sys/kernel/security/lsm", "selinux")
    put(f"label/{_HOOKS}/qemu", "unconfined_u:object_r:user_home_t:s0")


def _users(host: FakeHost) -> None:
    put = host.tree.put
    for name in ("root", "home", "home/fredsmith"):
        installed.folder(host, name)
    put(
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:994::/var/lib/libvirt:/bin/sh\n"
        "annasmith:x:1001:1001:A:/srv/anna:/bin/sh",
    )
    put("etc/group", "kvm:x:994:\nusers:x:100:annasmith\nvideo:x:44:annasmith,libvirt-qemu")
    installed.file(host, "home/fredsmith/freds-disk.rom", "\x55", mode=0o640)
    put("proc/mounts", MOUNTS)
    put("proc/self/mountinfo", MOUNTINFO)
    put("proc/swaps", "Filename Type Size Used Priority\n/srv/hunter2 file 1 0 -2")
    put(f"home/fredsmith/.config/libvirt/qemu/{NAME}.xml", XML)
    cgroup = "/user.slice/user-1000.slice/fredsmith.service"
    hold(host, "dev/fb0", pid=4711, command="fredsmith", cgroup=cgroup)
    put("proc/4711/cmdline", f"{HOME}/bin/x --password hunter2")
    hold(host, "dev/fb0", pid=4712, command="annasmith", cgroup=_MACHINE)


def _libvirt(host: FakeHost) -> None:
    put = host.tree.put
    parts = {"name": NAME, "uuid": UUID, "xml": XML, "live": XML, "autostart": "1"}
    for part, text in parts.items():
        put(f"libvirt/1/{part}", text)
    put(f"run/libvirt/qemu/{NAME}.pid", "4242")
    installed.process(host, 4242, "qemu-system-x86", at=installed.STARTED + 100)
    put("var/log/audit/audit.log", "")
    put(answer_path(denials.ask_log(host, "var/log/audit/audit.log")), DENIED)


def _files(host: FakeHost) -> None:
    for path, text in (
        (f"{_CONFIG}/default.yaml", SETTINGS),
        (f"{_CONFIG}/vms/{NAME}.yaml", "bootfb: native # hunter2\n"),
        (f"{_CONFIG}/vms/{NAME.upper()}.yaml", "bootfb: perhaps\n"),
        (f"{_CONFIG}/vms/{OTHER_UUID}.yaml", "{}\n"),
    ):
        installed.file(host, path, text, mode=0o644)
    installed.file(host, f"{_HOOKS}/qemu.d/10-fredsmith", SCRIPT)
    installed.file(host, "home/fredsmith/bin/hook", SCRIPT)
    installed.file(host, "usr/local/bin/start-it", START)
    host.tree.text_link(f"{_HOOKS}/qemu.d/15-other", f"../../../..{HOME}/bin/hook")
    host.tree.text_link(f"{_HOOKS}/qemu.d/20-gone", f"{HOME}/gone")


def _claims(host: FakeHost) -> None:
    boot = host.read("proc/sys/kernel/random/boot_id") or ""
    who = {"vm": NAME, "uuid": UUID}
    claim = {**who, "boot": boot, "gpus": [GPU], "since": SINCE, "by_hand": False}
    host.tree.put(f"{_RUN}/claims/{UUID}", json.dumps(claim))
    host.tree.text_link(f"{_RUN}/by-name/={NAME}", f"../claims/{UUID}")
    failure = f"fredsmith (4711) of {IPV4} {IPV6} {SERVER}, mail fredsmith@smith.example.org"
    refusal = {"time": SINCE, "event": "prepare", "text": failure, "hint": "ask smithtower"}
    event = {"time": SINCE, "took_s": 1.0, "failure": failure}
    word = {**who, "events": {"prepare": event}, "refusal": refusal}
    host.tree.put(f"{_RUN}.status/{UUID}", json.dumps(word))


def secrets_in_files(host: FakeHost) -> set[str]:
    """The names of the secrets in the names, links and contents of the machine's files."""
    everything = ""
    for folder, folders, files in os.walk(host.root):
        for name in (*folders, *files):
            full = Path(folder, name)
            everything += f"{name}\n"
            if full.is_symlink():
                everything += f"{full.readlink()}\n"
            elif full.is_file():
                everything += f"{full.read_text('latin-1')}\n{full.read_bytes().hex()}\n"
    return secrets_in(everything)


def secrets_in(text: str) -> set[str]:
    """The names of the secrets in a text, in upper or lower case."""
    return {name for name, secret in SECRETS.items() if secret.lower() in text.lower()}
