"""A GPU whose sound function leaves with it, while a program has the sound open.

The sound driver waits for the program, uninterruptibly (Linux sound/core/init.c,
snd_card_free). libvirtd, which unbinds the driver, hangs with it, and so does every
client of libvirtd.
"""

from __future__ import annotations

import re

from .background import Background
from .trial import Trial

STILL_S = 30


class Sound(Trial):
    """With the hook the VM is refused; without it, libvirtd hangs until the program ends."""

    def run(self) -> None:
        """Run as any scenario with a holder; without the hook, wait for the hang and its end."""
        if self.scenario.hook:
            super().run()
            return
        holder = self.scenario.holder
        assert holder is not None
        if not self.set_up():
            return
        holder.begin(self.machine)
        starting = Background(self.machine, "virsh start gpu", "starting")
        hung = starting.wait(STILL_S).status == 124
        self.demand(hung, "without the hook virsh start comes back")
        stacks = "cat /proc/$(cat /run/libvirtd.pid)/task/*/stack"
        where = self.machine.run(f"{stacks} | grep -m 1 -o 'snd_[a-z_]*'").stdout.strip()
        self.result.notes.append(f"libvirtd hangs in {where}")
        self.demand(bool(where), "libvirtd does not hang in the sound driver")
        others = self.machine.run("timeout 15 virsh -q list --all")
        self.demand(others.status == 124, "virsh list answers meanwhile")
        holder.end(self.machine)
        ended = starting.wait(60)
        self.demand(ended.ok, f"the VM does not start afterwards: {ended.stdout}")
        self.machine.run("virsh destroy gpu", 180)

    def other_devices(self) -> tuple[str, ...]:
        """The address of the sound function."""
        found = self.machine.run(
            "cd /sys/bus/pci/devices && for d in *; do"
            " case $(cat $d/class) in 0x0403*) echo $d;; esac; done"
        ).stdout.split()
        self.demand(len(found) == 1, f"the machine has {len(found)} sound functions, not 1")
        return tuple(found)

    def check_console(self, name: str, number: int) -> None:
        """The console is back, and so is the sound."""
        super().check_console(name, number)
        back = "n=0; until [ -e /dev/snd/controlC0 ]; do n=$((n + 1)); [ $n -lt 40 ] || exit 1;"
        sounds = self.machine.run(f"{back} sleep 0.25; done; cat /proc/asound/cards", 60)
        self.demand(sounds.ok, f"{name}: the sound is not back")


USER, RUNTIME = "lab", "/run/user/1000"
CARD = "/dev/snd/controlC0"


class SoundServer(Sound):
    """A user's WirePlumber has the card's control node open, as on every desktop.

    In the last cycle it is stopped (SIGSTOP), so it does not see the card disappear: it is
    killed, and systemd starts it again.
    """

    def run(self) -> None:
        """Start the user's services, then start and destroy the VM."""
        if not self.set_up():
            return
        self.machine.run(f"useradd -m -u 1000 -G audio {USER}; loginctl enable-linger {USER}")
        bus = f"[ -S {RUNTIME}/bus ]"
        self.machine.run(f"n=0; until {bus} || [ $((n += 1)) -gt 60 ]; do sleep 1; done", 90)
        started = self.machine.run(
            f"runuser -u {USER} -- env XDG_RUNTIME_DIR={RUNTIME}"
            f" DBUS_SESSION_BUS_ADDRESS=unix:path={RUNTIME}/bus"
            " systemctl --user start pipewire.service wireplumber.service", 120
        )  # fmt: skip
        if not self.demand(started.ok and bool(self.server()), f"WirePlumber: {started.stderr}"):
            return
        for number in range(1, self.scenario.cycles + 1):
            self.with_server(number)

    def server(self) -> str:
        """The WirePlumber that has the card open, once one has."""
        answer = self.machine.run(
            f"n=0; until pid=$(fuser {CARD} 2>/dev/null); do"
            " [ $((n += 1)) -lt 120 ] || exit 1; sleep 0.5; done; echo $pid", 120
        )  # fmt: skip
        pid = answer.stdout.strip()
        name = self.machine.run(f"cat /proc/{pid or 1}/comm; ls -l /proc/{pid or 1}/fd").stdout
        return pid if name.startswith("wireplumber") else ""

    def with_server(self, number: int) -> None:
        """One cycle, after which the server has the card open again."""
        before = self.server()
        deaf = number == self.scenario.cycles
        if deaf:
            self.machine.run(f"kill -STOP {before}")
        self.cycle(number)
        after = self.server()
        log = self.machine.run("journalctl -b -t vfio-console-hook -o cat").stdout
        did = "killed" if deaf else "closed the sound card"
        self.demand(bool(re.search(rf"{did}.*", log)), f"cycle {number}: no /{did}/ in the log")
        self.demand(bool(after), f"cycle {number}: WirePlumber has not opened the card again")
        self.demand((before == after) != deaf, f"cycle {number}: it was {before}, is {after}")


# Its thread has its own file table, which /proc/PID/fd, that of the main thread, does not
# show.
HIDDEN = b"""#!/usr/bin/python3 -IS
import ctypes, sys, threading, time
def hold():
    ctypes.CDLL(None).unshare(0x400)  # CLONE_FILES
    file = open(sys.argv[1])
    print("holds", flush=True)
    time.sleep(100000)
threading.Thread(target=hold).start()
"""
STUCK = re.compile(
    r"the kernel is stuck \(process (\d+) in snd_card_free\) since"
    r" `echo 0000:01:00\.1 > /sys/bus/pci/devices/0000:01:00\.1/driver/unbind`"
)


class Stuck(Sound):
    """The hook's worker is stuck in the kernel: reported, not tried again, released later."""

    def run(self) -> None:
        """Let the unbind wait for a program that cannot be found, then end the program."""
        if not self.set_up():
            return
        # The worker hangs for longer than the kernel's hung task timeout.
        self.machine.run("sysctl -w kernel.hung_task_timeout_secs=0")
        self.machine.put("/root/hidden", HIDDEN)
        self.machine.run("chmod +x /root/hidden; setsid /root/hidden /dev/snd/controlC0 >/run/h &")
        holds = self.machine.run("n=0; until grep -q holds /run/h; do sleep 0.5; done", 60).ok
        self.demand(holds, "the program does not hold the sound")
        pid = self.start_in_vain("first start", STUCK)
        answers = self.machine.run("timeout 15 virsh -q list --all").ok
        self.demand(answers, "libvirtd does not answer any more")
        again = self.start_in_vain("second start", STUCK)
        self.demand(pid == again, f"process {again} is stuck, and not {pid}: it was tried again")
        recover = self.machine.run("vfio-console-hook recover", 60)
        self.demand(recover.status == 1, "recover does not fail")
        self.demand(f"process {pid} in" in recover.stdout, f"recover prints {recover.stdout}")
        Trial.check_console(self, "stuck", 0)
        self.machine.run("pkill hidden; sleep 3")
        recover = self.machine.run("vfio-console-hook recover", 60)
        self.demand(recover.ok, f"recover afterwards: {recover.stdout}")
        self.check_console("recovered", 0)
        self.check_claims("recovered")
        self.cycle(1)
