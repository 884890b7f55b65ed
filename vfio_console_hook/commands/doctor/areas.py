"""The areas of doctor: each heading, and its checks in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import (
    apparmor,
    beside,
    calls,
    claims,
    command_line,
    configuration,
    consoles,
    daemon,
    daemon_view,
    hook_scripts,
    installation,
    iommu,
    known_bugs,
    other_hooks,
    panels,
    refusals,
    roms,
    selinux,
    selinux_policy,
    vms,
)
from .finding import FAIL, Check, Finding
from .system import System

# What these look at only matters where libvirt calls the hook.
_OF_LIBVIRT = frozenset({
    installation.hook, installation.recover_unit, installation.libvirt_version,
    other_hooks.other_hooks, hook_scripts.virsh_in_hooks, hook_scripts.same_work,
    calls.hook_known, calls.hook_called, daemon_view.files_of_the_daemon,
    selinux.label, selinux_policy.policy, selinux.selinux_denials,
    apparmor.confined_hook, apparmor.apparmor_denials,
    vms.libvirt_answers, vms.vms_with_gpus, vms.rehearsals, vms.missing_devices,
    vms.hot_plugged_gpus, vms.shared_gpus, vms.session_vms, roms.rom_files,
    beside.devices_of_the_host,
})  # fmt: skip


@dataclass(frozen=True)
class Area:
    """Checks below one heading."""

    heading: str
    checks: tuple[Check, ...]

    def findings(self, system: System) -> tuple[Finding, ...]:
        """What the checks of this area find."""
        left_out = _OF_LIBVIRT if system.without_libvirt else frozenset()
        checks = (one for one in self.checks if one not in left_out)
        found = (one for check in checks for one in check(system))
        return tuple(replace(one, area=self.heading) for one in found)


AREAS = (
    Area("the hook", (
        installation.hook, installation.owner, installation.python, installation.program,
        installation.recover_unit, installation.libvirt_version,
        other_hooks.other_hooks, hook_scripts.virsh_in_hooks, hook_scripts.same_work,
    )),
    Area("libvirt's daemon", (
        daemon.daemon, daemon_view.files_of_the_daemon, calls.hook_known, calls.hook_called,
    )),
    Area("SELinux and AppArmor", (
        selinux.mode, selinux.label, selinux_policy.policy, selinux.selinux_denials,
        apparmor.mode, apparmor.confined_hook, apparmor.apparmor_denials,
    )),
    Area("VMs", (
        vms.libvirt_answers, vms.vms_with_gpus, vms.rehearsals, vms.missing_devices,
        vms.hot_plugged_gpus, vms.shared_gpus, vms.session_vms, roms.rom_files,
        beside.devices_of_the_host,
    )),
    Area("configuration", (
        configuration.mistakes, configuration.without_effect, configuration.files_for_no_vm,
    )),
    Area("IOMMU and vfio-pci", (iommu.iommu, iommu.iommu_groups, iommu.vfio_pci)),
    Area("the kernel and the host's console", (
        consoles.console_removal, consoles.bootfb, consoles.kernel_lockdown,
        consoles.console_drivers, panels.panels, consoles.console_after, known_bugs.known_bugs,
    )),
    Area("kernel command line", (command_line.command_line,)),
    Area("what VMs hold", (claims.claims, claims.lost, refusals.last_refusal)),
)  # fmt: skip

# What has to be in order for libvirt to run the hook, and for the hook to work.
_RUNNING = (
    installation.hook, installation.python, installation.program, installation.libvirt_version,
    daemon.daemon, calls.hook_known, selinux.label,
    daemon_view.files_of_the_daemon, selinux.selinux_denials, apparmor.confined_hook,
    apparmor.apparmor_denials,
)  # fmt: skip


def why_not_run(system: System) -> Finding | None:
    """The first finding for which libvirt may not run the hook; None if nothing is wrong."""
    checks = () if system.without_libvirt else _RUNNING
    found = (one for check in checks for one in check(system))
    return next((one for one in found if one.level == FAIL), None)
