"""A GPU whose sound function goes to the VM too, while a program has that open.

Its driver waits for the program, beyond any signal (Linux sound/core/init.c,
snd_card_free), and so does libvirtd, which takes the driver off, and with it
everybody who asks libvirtd for anything.
"""

from __future__ import annotations

from .meanwhile import Background
from .trial import Trial

STILL_S = 30


class Sound(Trial):
    """Refused by name with the hook; without it, libvirtd hangs until the program ends."""

    def run(self) -> None:
        """With the hook as any scenario with a holder; else the hang, and its end."""
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
        """The sound function."""
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
