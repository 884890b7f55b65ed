"""libvirtd confined by SELinux (virtd_t), under the policy of the SELinux project.

That policy lets libvirtd run no hook at all. Without our module doctor must say so before
the first start, and the start is refused; install.sh then loads the module, and the VM starts
and ends with SELinux enforcing, without a denial for the hook. Removing the program removes
the module.

The root has its labels from the build (images.py). What guest/init adds to it before there is
a policy, and the modules of the kernel, get theirs here, before SELinux enforces.
"""

from __future__ import annotations

import re

from . import service
from .trial import PROGRAM, Trial

MODULE = "vfio_console_hook"
DOMAIN = "virtd_t"
# Made by guest/init, or copied up by it into the overlay, and what was made in there since: on
# tmpfs a label that was set before there was a policy is not seen (inode_doinit_with_dentry).
ADDED = (
    "restorecon -F / /usr /usr/lib /usr/lib/modules; restorecon -RF /etc /root /usr/lib/vfio-lab"
)
# The squashfs of the kernel's modules has no labels, and is in use: so what the hook reads of
# it lies over it, and the module that libvirt may not load is loaded before.
MODULES = (
    "modprobe vfio-pci; mkdir /run/modules; cp /lib/modules/$(uname -r)/modules.* /run/modules;"
    " chcon -R -t modules_object_t /run/modules; chcon -t modules_dep_t /run/modules/*;"
    " mount --bind /run/modules /lib/modules/$(uname -r)"
)
# QEMU emulates its CPU here, for which the policy has a domain that may not use vfio. With the
# domain for KVM instead, these two are what each user of the policy needs for a GPU.
CONTEXTS = "/etc/selinux/default/contexts/virtual_domain_context"
QEMU = f"sed -i s/svirt_prot_exec_t/svirt_t/ {CONTEXTS}"
BOOLEANS = "setsebool virt_use_vfio=on virt_use_sysfs=on virt_use_execmem=on"
# libvirtd may not unmount what it mounts for them.
NAMESPACES = "echo 'namespaces = []' >>/etc/libvirt/qemu.conf"
# As an administrator who has logged in: programs that units start are confined.
ADMINISTRATOR = "runcon unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023"
POLICY_BUILT_IN_S = 1200
LONGER_S = 3600
# Of the hook itself, and of the daemon that is to run it.
OF_THE_HOOK = re.compile(rf'avc:  denied .*(?:{MODULE}|name="qemu")')


class SELinux(Trial):
    """Denied and named without the module; with it no denial is left."""

    watched = False  # a script in the hook's place has not the hook's label

    def run(self) -> None:
        """Enforce, see the denial without the module, load it, start and destroy the VM, remove."""
        self.machine.live_longer(LONGER_S)
        if not self.set_up():
            return
        self.denied_without_module()
        self.install_with_module()
        service.start(self.machine, 0)
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)
        self.check_denials()
        self.removed_with_the_program()

    def install(self) -> bool:
        """Enforce, then install where install.sh finds no semodule."""
        if not self.enforced():
            return False
        self.machine.run("mv /usr/sbin/semodule /usr/sbin/semodule.away")
        installed = super().install()
        self.machine.run("mv /usr/sbin/semodule.away /usr/sbin/semodule")
        return installed

    def enforced(self) -> bool:
        """Set the labels that are missing and enforce; whether libvirtd is confined then."""
        self.machine.run(f"{ADDED}; {MODULES}; {QEMU}; {NAMESPACES}; {BOOLEANS}", 120)
        self.machine.run("sysctl kernel.printk_ratelimit=0; ps axZ; ls -Z / /etc /usr/lib")
        self.machine.run("dmesg -C")
        self.machine.run("setenforce 1; sestatus", 60)
        self.machine.run_by = ADMINISTRATOR
        self.machine.run("systemctl restart libvirtd; until virsh -q list; do sleep 1; done", 180)
        label = self.machine.run("cat /proc/$(cat /run/libvirtd.pid)/attr/current").stdout
        enforcing = self.machine.run("cat /sys/fs/selinux/enforce").stdout
        self.demand(enforcing == "1", "SELinux does not enforce")
        return self.demand(f":{DOMAIN}:" in label, f"libvirtd runs as {label!r}")

    def denied_without_module(self) -> None:
        """install.sh and doctor say that the hook is denied, before a start shows it."""
        printed = self.printed_by_install
        said = "does not allow virtd_t to run /etc/libvirt/hooks/qemu"
        self.demand(said in printed, f"install.sh says nothing of SELinux: {printed}")
        doctor = self.doctor()
        self.demand(f"FAIL SELinux policy: it {said}" in doctor, f"doctor: {doctor}")
        self.demand(f"semodule -i /usr/lib/vfio-console-hook/{MODULE}.cil" in doctor, doctor)
        error = self.start()
        self.demand(error is not None, "without the module: the VM started")
        self.check_claims("without the module")
        denials = self.denials()
        executed = any("execute" in line and 'name="qemu"' in line for line in denials)
        self.demand(executed, f"without the module: the denials are {denials}")

    def install_with_module(self) -> None:
        """install.sh loads the module, and doctor has no objection any more."""
        answer = self.machine.run(f"cd {PROGRAM} && sh install.sh", POLICY_BUILT_IN_S)
        loaded = f"the SELinux module {MODULE} is loaded"
        self.demand(loaded in answer.stdout, f"install.sh: {answer.stdout} {answer.stderr}")
        self.machine.run("ls -lZ /etc/libvirt/hooks /run/vfio-console-hook; dmesg -C")
        doctor = self.doctor()
        wanted = "PASS SELinux policy: it allows virtd_t to run the hook"
        self.demand(wanted in doctor, f"doctor with the module: {doctor}")

    def meanwhile(self, name: str, number: int) -> None:
        """The hook has stopped the service by systemd, which asks SELinux."""
        self.demand(not service.is_active(self.machine), f"{name}: the service runs beside the VM")

    def check_claims(self, name: str) -> None:
        """There is no claim, and the service runs again."""
        super().check_claims(name)
        begun = name.startswith("cycle")
        self.demand(not begun or service.is_active(self.machine), f"{name}: no service")

    def check_denials(self) -> None:
        """Nothing was denied to the hook since the module is loaded."""
        denials = self.denials()
        self.demand(not denials, "denied:\n" + "\n".join(denials))

    def removed_with_the_program(self) -> None:
        """Nothing of the module is left, and no process or file has its types."""
        answer = self.machine.run(f"cd {PROGRAM} && sh install.sh --uninstall", POLICY_BUILT_IN_S)
        self.demand(answer.ok, f"--uninstall: {answer.stdout} {answer.stderr}")
        left = self.machine.run(f"semodule -l | grep {MODULE}; ls -dZ /run/vfio-console*").stdout
        self.demand(not left, f"left by --uninstall: {left}")

    def denials(self) -> list[str]:
        """What the kernel's log has of denials for the hook, without what was cleared from it."""
        self.machine.run("journalctl -b _TRANSPORT=audit -o cat --no-pager | grep -c denied")
        log = self.machine.run("dmesg | grep 'avc:  denied'").stdout
        return [line for line in log.splitlines() if OF_THE_HOOK.search(line)]

    def doctor(self) -> str:
        """What doctor prints, with one blank between words."""
        return " ".join(self.machine.run("vfio-console-hook doctor", 120).stdout.split())
