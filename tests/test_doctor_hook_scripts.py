"""doctor: what the scripts of other hooks do, and the scripts that they call."""

from __future__ import annotations

import pytest

from tests.conftest import Golden, MachineFactory
from tests.doctoring import Arrange, Case, assert_found, both, sentences, system_of
from tests.test_doctor_installation import (
    DISPATCHED,
    DROPINS,
    FOREIGN,
    calling,
    dispatcher,
    hook,
    put_file,
    with_hook,
)
from vfio_console_hook.commands.doctor import hook_scripts

# As guides have them: one GPU, consoles and driver taken away by hand, no virsh.
START = """#!/bin/bash
set -x
systemctl stop display-manager
echo 0 > /sys/class/vtconsole/vtcon0/bind
echo efi-framebuffer.0 > /sys/bus/platform/drivers/efi-framebuffer/unbind
modprobe -r nvidia_drm nvidia_modeset
echo 0000:01:00.0 > /sys/bus/pci/drivers/nvidia/unbind
"""
CALLER = "#!/bin/sh\nif [ $2/$3 = prepare/begin ]; then {call}; fi\n"


def does(line: str, value: str) -> Case:
    """A hook with this line, and what is said of it."""
    text = f"#!/bin/sh\n{line}\n"
    level = "WARN" if value else "PASS"
    check, title = hook_scripts.same_work, "same work in hooks"
    return with_hook(f"a hook with {line!r}", check, level, title, value, calling(text))


def calls(name: str, call: str, path: str, level: str = "WARN", text: str = START) -> Case:
    """A hook that calls a script, which has this text, like that."""
    check, title = hook_scripts.same_work, "same work in hooks"
    value = f"/{path} does" if level == "WARN" else ""
    arrange = both(calling(CALLER.format(call=call)), put_file(path, text))
    return with_hook(name, check, level, title, value, arrange)


VIRSH = [
    with_hook(
        "a hook that calls virsh", hook_scripts.virsh_in_hooks, "WARN", "virsh in hooks",
        "line 4 and 1 more",
        calling("#!/bin/sh\n# virsh is not called\n\nvirsh nodedev-detach pci_0\nvirsh x"),
    ),
    *(
        with_hook(
            f"a hook with {text[-20:]!r}", hook_scripts.virsh_in_hooks, level, "virsh in hooks", "",
            calling(text),
        )
        for text, level in (
            (FOREIGN, "PASS"),
            ("#!/bin/bash\nset -x\n/usr/bin/virsh list", "WARN"),
            ("#!/usr/bin/python3\nimport libvirt", "WARN"),
            ("#!/bin/sh\ntrue # virsh would hang", "PASS"),
            ("#!/bin/sh\nmy_virshing=1", "PASS"),
        )
    ),
    Case(
        "a dispatched hook that calls virsh", hook_scripts.virsh_in_hooks,
        dispatcher("#!/bin/bash\nvirsh nodedev-detach pci_0000_01_00_0\n"),
        "WARN", "virsh in hooks", f"/{DISPATCHED} line 2",
    ),
    with_hook(
        "a called script that calls virsh", hook_scripts.virsh_in_hooks, "WARN", "virsh in hooks",
        "/usr/local/bin/start-vm line 2",
        calling("#!/bin/sh\nstart-vm\n"),
        put_file("usr/local/bin/start-vm", "#!/bin/sh\nvirsh list\n"),
    ),
]  # fmt: skip
SAME_WORK = [
    Case(
        "the scripts of a guide", hook_scripts.same_work, dispatcher(START), "WARN",
        "same work in hooks",
        f"/{DISPATCHED} does the work of this hook too: line 3 stops or starts the display manager;"
        " line 4 binds or unbinds consoles; line 5 binds or unbinds the firmware's framebuffer;"
        " line 6 unloads the GPU's driver; line 7 binds or unbinds PCI devices",
    ),
    does('echo 1 > "/sys/class/vtconsole/vtcon${i}/bind"', "consoles"),
    does("rmmod amdgpu", "unloads"),
    does("modprobe --remove -q nouveau", "unloads"),
    does("modprobe -rf i915", "unloads"),
    does("/usr/bin/systemctl isolate multi-user.target", "display manager"),
    does('systemctl stop "gdm.service"', "display manager"),
    does("rc-service sddm stop", "display manager"),
    does("echo vfio-pci > /sys/bus/pci/devices/$GPU/driver_override", "PCI devices"),
    does("echo 1 > /sys/bus/pci/rescan", "PCI devices"),
    does("modprobe vfio-pci", ""),
    does("modprobe -r kvm_intel", ""),
    does("cpupower frequency-set -g performance", ""),
    does("systemctl set-property --runtime -- user.slice AllowedCPUs=0-3", ""),
    does("true # echo 0 > /sys/class/vtconsole/vtcon0/bind", ""),
    calls("a script by its path", "/bin/vfio-startup.sh", "bin/vfio-startup.sh"),
    calls("a script in /usr/local", "vfio-startup >/dev/null", "usr/local/bin/vfio-startup"),
    calls("a script beside it", '"$(dirname "$0")/lib/../start"', f"{DROPINS}/start"),
    calls("a script of a variable", "$HOOKS/start.sh 2>&1", f"{DROPINS}/start.sh"),
    calls("a program", "/opt/vm", "opt/vm", "PASS", "\x7fELF vtcon0"),
]  # fmt: skip
CASES = [*VIRSH, *SAME_WORK]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_has_its_finding(machine: MachineFactory, case: Case) -> None:
    assert_found(case, machine(case.machine))


def test_the_sentences_about_scripts(machine: MachineFactory, golden: Golden) -> None:
    golden("doctor-sentences-hook-scripts", sentences(CASES, machine))


@pytest.mark.parametrize("arrange", [hook, both(hook, calling("\x7fELF\0virsh"))])
def test_only_scripts_are_searched_for_virsh(machine: MachineFactory, arrange: Arrange) -> None:
    host = machine("efifb-6.12")
    arrange(host)

    assert list(hook_scripts.virsh_in_hooks(system_of(host))) == []



def test_scripts_that_call_each_other_are_read_once(machine: MachineFactory) -> None:
    host = machine("efifb-6.12")
    one, two = "#!/bin/sh\n/opt/two\n", "#!/bin/sh\n/opt/one\nrmmod nvidia\n"
    both(hook, calling(one), put_file("opt/one", one), put_file("opt/two", two))(host)

    found = list(hook_scripts.same_work(system_of(host)))

    assert [(one.level, one.text.split()[0]) for one in found] == [("WARN", "/opt/two")]
