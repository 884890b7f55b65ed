"""An unprivileged user attacks the hook, and changes nothing.

The user's own libvirt (qemu:///session) runs the same hook without any privilege. In the
meantime a VM of root starts and stops as always.
"""

from __future__ import annotations

import shlex

from .machine import Answer
from .trial import CLAIMS, CONFIG_FILE, HOOK, Trial
from .vm import UUID, domain_xml

USER, UID = "mallory", 4711
HOME = f"/srv/{USER}"
RUNTIME = f"/run/user/{UID}"
RUN = "/run/vfio-console-hook"
STATUS = f"{RUN}.status"
CONFIG = "/etc/vfio-console-hook"
PWNED = "/tmp/pwned"
SESSION_UUID = "6b1c2c0e-3f0d-4c57-9d61-3a3f6f1f0a99"
SESSION = "virsh -c qemu:///session"
OURS = f"{RUN} {STATUS} {CONFIG} {HOOK} /usr/lib/vfio-console-hook"
# Prints names, modes, owners, links and contents of all files of the hook.
LOOK_AT_OURS = (
    f"find {OURS} -printf '%p %y %m %u %n %l\\n' | sort;"
    f" find {OURS} -type f -exec cat {{}} + | sha256sum"
)

# Puts files where a program that trusts a user's environment would find them.
PLANTED = f"""
set -e
mkdir -p ~/.config/vfio-console-hook/vms ~/.config/libvirt ~/bin {RUNTIME}/vfio-console-hook
echo 'enabled: false' >~/.config/vfio-console-hook/default.yaml
echo 'enabled: false' >~/.config/vfio-console-hook/vms/gpu.yaml
for version in $(ls -d /usr/lib/python3.* | sed 's|.*/||'); do
    site=~/.local/lib/$version/site-packages
    mkdir -p $site
    echo "open('{PWNED}', 'w')" | tee $site/lxml.py $site/yaml.py $site/sitecustomize.py >/dev/null
    cp $site/lxml.py $site/usercustomize.py
done
printf '#!/bin/sh\\n: >{PWNED}\\n' | tee ~/bin/cat ~/bin/python3 ~/bin/modprobe >/dev/null
chmod +x ~/bin/*
ln -s /etc/shadow /tmp/vfio-console-hook
ln -s /etc/shadow /tmp/vfio-console-hook.status
ln -s {CONFIG} {RUNTIME}/vfio-console-hook.status
mkfifo /tmp/default.yaml {RUNTIME}/vfio-console-hook/lock
"""

# Each of these must fail.
ATTACKS = (
    f"ls {RUN}",
    f"cat {CLAIMS}/{UUID}",
    f"echo '{{}}' >>{CLAIMS}/{UUID}",
    f"rm -f {CLAIMS}/{UUID} && test ! -e {CLAIMS}/{UUID} && ls {CLAIMS}",
    f"ln {CLAIMS}/{UUID} ~/claim",
    f"mv {RUN} /tmp/moved",
    f"touch {RUN}/claims/{SESSION_UUID}",
    f"ln -s /etc/shadow {RUN}/by-name/=gpu",
    f"flock -n {RUN}/lock true",
    f"chmod 777 {RUN}",
    f"mkdir {RUN}/claims/x",
    f"touch {STATUS}/{UUID}",
    f"echo x >{STATUS}/{UUID}",
    f"rm -rf {STATUS} && test ! -e {STATUS}",
    f"ln -s /etc/shadow {STATUS}/unknown",
    f"mkfifo {STATUS}/unknown",
    "ln -s /etc /run/vfio-console-hook.new",
    f"echo 'enabled: false' >{CONFIG_FILE}",
    f"echo 'enabled: false' >{CONFIG}/default.yaml",
    f"ln -s ~/.config/vfio-console-hook/vms/gpu.yaml {CONFIG}/vms/{UUID}.yaml",
    f"echo exit >{HOOK}",
    "vfio-console-hook take 0000:01:00.0",
    "vfio-console-hook give 0000:01:00.0",
    "vfio-console-hook recover",
    "vfio-console-hook recover --force",
)
# Each of these must print what the user may read, without a traceback.
LOOKS = (
    "vfio-console-hook status",
    "vfio-console-hook status --json",
    "vfio-console-hook doctor",
    "vfio-console-hook check-config",
    f"vfio-console-hook plan --xml {HOME}/session.xml",
    f"cat {STATUS}/{UUID}",
)


class Unprivileged(Trial):
    """Attacks before, during and after the run of a VM of root."""

    def run(self) -> None:
        """Set up, make the user, start the user's VM, then root's VM beside the attacks."""
        if not self.set_up():
            return
        self.machine.note("the user")
        made = self.machine.run(
            f"useradd --home-dir {HOME} --create-home --uid {UID} {USER}"
            f" && install -d -m 700 -o {UID} -g {UID} {RUNTIME}"
        )
        if not self.demand(made.ok, f"useradd: {made.stderr}"):
            return
        xml = domain_xml(self.leaving, "session", SESSION_UUID)
        self.machine.put(f"{HOME}/session.xml", xml.encode())
        planted = self.as_user(PLANTED)
        self.demand(planted.ok, f"planting the user's files: {planted.stderr}")
        defined = self.as_user(f"{SESSION} define {HOME}/session.xml", 120)
        self.demand(defined.ok, f"virsh define in qemu:///session: {defined.stderr}")
        self.session_vm("before", warnings=1)
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)
        self.session_vm("after", warnings=3)
        pwned = self.machine.run(f"ls -l {PWNED}")
        self.demand(not pwned.ok, "another user ran a file of the user")

    def as_user(self, command: str, timeout_s: float = 60) -> Answer:
        """Run a sh command as the user; its answer."""
        place = f"HOME={HOME} XDG_RUNTIME_DIR={RUNTIME} PATH={HOME}/bin:/usr/bin:/bin:/usr/sbin"
        # The user does not run the planted programs.
        script = f"PATH=/usr/bin:/bin:/usr/sbin\n{command}"
        return self.machine.run(
            f"runuser -u {USER} -- env -C {HOME} {place} sh -c {shlex.quote(script)}", timeout_s
        )

    def meanwhile(self, name: str, number: int) -> None:
        """Run all attacks while root's VM runs; the VM and the hook's files do not change."""
        before = self.machine.run(LOOK_AT_OURS).stdout
        self.demand(UUID in before, f"{name}: there is no claim to attack")
        self.check_modes(name)
        for attack in ATTACKS:
            answer = self.as_user(attack)
            self.demand(not answer.ok, f"{name}: the user could `{attack}`")
            self.check_words(name, attack, answer)
        for look in LOOKS:
            answer = self.as_user(look, 120)
            self.demand(answer.status in (0, 1, 2), f"{name}: `{look}`: {answer.status}")
            self.check_words(name, look, answer)
        self.session_vm(name, warnings=2)
        after = self.machine.run(LOOK_AT_OURS).stdout
        self.demand(after == before, f"{name}: a file of the hook has changed")
        self.check_running(name)

    def check_words(self, name: str, command: str, answer: Answer) -> None:
        """A command of ours prints at most two lines on stderr, and no traceback."""
        if command.startswith("vfio-console-hook"):
            lines = answer.stderr.splitlines()
            fine = len(lines) <= 2 and "Traceback" not in answer.stderr
            self.demand(fine, f"{name}: `{command}` prints {answer.stderr}")

    def check_modes(self, name: str) -> None:
        """Only root has access to the claims; every user may read the status files."""
        modes = self.machine.run(
            f"find {RUN} {STATUS} ! -type l -printf '%u %y%m %h\\n' | sort | uniq"
        ).stdout.splitlines()
        allowed = [
            *(f"root {mode} /run" for mode in ("d700", "d755")),
            *(f"root {mode} {RUN}" for mode in ("d700", "f600")),
            f"root f600 {CLAIMS}",
            f"root f644 {STATUS}",
        ]
        wrong = [line for line in modes if line not in allowed]
        self.demand(not wrong, f"{name}: owners and modes in /run: {wrong}")

    def session_vm(self, name: str, warnings: int) -> None:
        """Start a VM of the user with the GPU: the hook only logs, by then so many warnings."""
        self.machine.note(f"qemu:///session {name}")
        state, ours = self.host_state(), self.machine.run(LOOK_AT_OURS).stdout
        start = self.as_user(f"{SESSION} start session", 180)
        self.as_user(f"{SESSION} destroy session", 60)
        self.demand(
            "vfio-console-hook" not in start.stderr, f"{name}: the hook refused: {start.stderr}"
        )
        log = self.machine.run(
            f"journalctl --sync; journalctl -q -o cat -t vfio-console-hook _UID={UID}"
        )
        lines = log.stdout.splitlines()
        right = len(lines) == warnings and all("qemu:///session" in line for line in lines)
        self.demand(right, f"{name}: the user's journal has, instead of {warnings} lines: {lines}")
        self.demand(self.host_state() == state, f"{name}: the host's state changed")
        same = self.machine.run(LOOK_AT_OURS).stdout == ours
        self.demand(same, f"{name}: a file of the hook has changed")
