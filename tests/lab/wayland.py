"""A Wayland desktop: greetd logs a user into sway, with PipeWire and WirePlumber.

Its bar has a clock, so a picture that is only left over does not pass for a desktop. With
a software renderer of its own (pixman) sway leaves a second card alone; with Mesa's (gles2)
it opens every card of the seat, as on real GPUs.
"""

from __future__ import annotations

import time
from collections import Counter

from .pictures import Picture
from .sound import Sound
from .trial import CONFIG_FILE

USER, RUNTIME = "lab", "/run/user/1000"
MANAGER = "greetd.service"
PIXMAN = "WLR_RENDERER=pixman"
# The colour of the desktop, and the part of the monitor that has it.
COLOUR = (0x20, 0x40, 0x60)
COLOURED_AT_LEAST = 0.9
NEAR = 8
# Software rendering on an emulated processor.
SHOWN_WITHIN_S = 300
LONGER_S = 1500
LOG_IN_TIMES = 3

# greetd logs in by itself only once after a boot, unless its mark is gone.
GREETD = """\
[terminal]
vt = 7
[default_session]
command = "agreety --cmd /bin/sh"
user = "_greetd"
[initial_session]
command = "{command}"
user = "lab"
"""
EACH_TIME = "[Service]\nExecStartPre=-/bin/sh -c 'rm -f /run/greetd.run /run/greetd/*.run'\n"
SWAY = """\
output * bg #{:02x}{:02x}{:02x} solid_color
bar {{
    position top
    status_command while date +%T; do sleep 1; done
}}
""".format(*COLOUR)
LOOK_AT_SESSION = (
    "loginctl --no-legend list-sessions; fuser -v /dev/dri/* /dev/snd/* 2>&1;"
    f" systemctl show -p ActiveState,SubState,Result {MANAGER};"
    " ps -eo pid,ppid,stat,cgroup:70,args --sort pid | grep -E '[s]way|[g]reetd|[w]ireplumber'"
)
STUCK = "ps -eo pid,stat,wchan:30,args | awk '$2 ~ /^D/'"


class Wayland(Sound):
    """One GPU with sound: refused beside the desktop, then started in place of it."""

    renderer = PIXMAN
    monitor = 0

    def run(self) -> None:
        """Set up, let the VM be refused, then start and destroy it."""
        if not self.set_up():
            return
        self.refused()
        self.machine.put(CONFIG_FILE, self.scenario.config.encode())
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)

    def configure(self) -> None:
        """Write nothing yet: first the VM must be refused."""

    # The session

    def find_console(self) -> bool:
        """Start the desktop, and see it on its monitor."""
        self.machine.live_longer(LONGER_S)
        self.machine.run(
            f"useradd -m -u 1000 -s /bin/bash {USER}; mkdir -p /etc/greetd"
            " /etc/systemd/system/greetd.service.d"
        )
        self.machine.put("/etc/sway/config", SWAY.encode())
        self.machine.put(f"/etc/systemd/system/{MANAGER}.d/lab.conf", EACH_TIME.encode())
        self.log_in_to(self.session())
        unit = "/etc/systemd/system/display-manager.service"
        self.machine.run(
            f"ln -sf /lib/systemd/system/{MANAGER} {unit}; systemctl daemon-reload;"
            " systemctl start display-manager"
        )
        # On a busy machine KWin gives up when a service of D-Bus takes longer than 25 s.
        for _ in range(LOG_IN_TIMES - 1):
            if self.shown("before-desktop"):
                break
            self.machine.run("systemctl restart display-manager", 180)
        return self.check_desktop("before")

    def session(self) -> str:
        """The command that greetd runs for the user."""
        return f"env {self.renderer} sway"

    def log_in_to(self, command: str) -> None:
        """Let greetd start this command for the user from its next start on."""
        self.machine.put("/etc/greetd/config.toml", GREETD.format(command=command).encode())

    def compositor(self) -> str:
        """The process id of the compositor, "" when there is none."""
        return self.machine.run("pgrep -x sway").stdout.strip()

    def active(self) -> bool:
        """Whether the display manager's unit is active."""
        return self.machine.run(f"systemctl is-active {MANAGER}").stdout.strip() == "active"

    # The fake machine has no desktops: no snapshots are compared with it.

    def record(self, when: str) -> None:
        """Keep nothing."""

    def keep_phases(self) -> None:
        """Keep nothing."""

    def start_watched(self, number: int) -> str | None:
        """Start the VM."""
        return self.start()

    # The monitor

    def picture(self, name: str = "") -> Picture:
        """The whole monitor of the desktop; kept as a PNG file under a name."""
        picture = self.machine.screendump(self.monitor)
        if name:
            picture.write_png(self.directory / f"{name}.png")
        return picture

    def photograph(self, name: str, text: tuple[str, ...]) -> list[Picture]:
        """The pictures without a text: the desktop's terminal is shown."""
        return self.pictures(name)

    def shown(self, name: str, within_s: float = SHOWN_WITHIN_S) -> bool:
        """Whether the monitor shows the desktop within the time, and its clock goes."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            one = self.picture()
            time.sleep(3)
            other = self.picture(name)
            if one.rgb != other.rgb and covered(one) and covered(other):
                return True
        return False

    # The demands

    def check_desktop(self, name: str) -> bool:
        """The display manager runs, and the desktop lives."""
        began = time.monotonic()
        shown = self.shown(f"{name}-desktop")
        seconds = time.monotonic() - began
        self.machine.run(f"{LOOK_AT_SESSION}; {STUCK}")
        self.result.notes.append(f"{name}: the desktop after {seconds:.0f} s")
        return self.demand(shown and self.active(), f"{name}: the desktop is not shown, or stands")

    def check_console(self, name: str, number: int) -> None:
        """The desktop is back, with its sound, and nothing hangs."""
        self.check_desktop(name)
        self.check_sound(name)
        self.check_nothing_hangs(name)

    def check_sound(self, name: str) -> None:
        """A sound server has the card open again."""
        answer = self.machine.run(
            "n=0; until fuser /dev/snd/controlC0 2>/dev/null; do [ $((n += 1)) -lt 120 ] || exit 1;"
            " sleep 0.5; done", 120
        )  # fmt: skip
        self.demand(answer.ok, f"{name}: no sound server has opened the card again")

    def check_nothing_hangs(self, name: str) -> None:
        """No process is in state D a while later, and libvirtd answers."""
        stuck = self.machine.run(f"{STUCK} >/dev/null; sleep 2; {STUCK}").stdout.strip()
        self.demand(not stuck, f"{name}: in state D: {stuck}")
        answers = self.machine.run("timeout 20 virsh -q list --all").ok
        self.demand(answers, f"{name}: libvirtd does not answer")

    def refused(self) -> None:
        """Start the VM in vain: the error names the compositor and what to do; it goes on."""
        name = "refused"
        self.machine.note(name)
        self.mark(name)
        before = self.compositor()
        self.plan(name)
        error = self.start() or "nothing, the VM started"
        text = " ".join(error.split())
        self.result.notes.append(f"{name}: {text}")
        for wanted in (f"sway ({before})", self.hint()):
            self.demand(wanted in text, f"{name}: no {wanted!r} in the error: {text}")
        self.demand(self.compositor() == before, f"{name}: the compositor is another one now")
        self.check_desktop(name)
        self.check_nothing_hangs(name)
        self.check_kernel(name)
        self.check_claims(name)

    def hint(self) -> str:
        """What the refusal advises."""
        return "add `services: [display-manager]`"

    def plan(self, name: str) -> str:
        """The output of `plan`, which must say whether the VM starts."""
        text = super().plan(name)
        says = "the VM would be refused" if name == "refused" else "the VM would start"
        self.demand(says in text, f"{name}: plan does not say {says!r}")
        return text

    def check_running(self, name: str) -> None:
        """The VM has the GPU, and the desktop has ended."""
        super().check_running(name)
        self.machine.run(LOOK_AT_SESSION)
        self.demand(not self.active(), f"{name}: the display manager runs beside the VM")
        self.demand(not self.compositor(), f"{name}: the compositor runs beside the VM")
        gone = not covered(self.picture(f"{name}-meanwhile"))
        self.demand(gone, f"{name}: the monitor still shows the desktop")

    def meanwhile(self, name: str, number: int) -> None:
        """libvirtd answers, and nothing hangs."""
        self.check_nothing_hangs(name)


class WaylandInside(Wayland):
    """The VM is started in a terminal on the desktop that is ended for it."""

    def find_console(self) -> bool:
        """Let the user reach libvirtd, then start the desktop."""
        self.machine.run(
            "printf '%s\\n' 'unix_sock_rw_perms = \"0777\"' 'auth_unix_rw = \"none\"'"
            " >>/etc/libvirt/libvirtd.conf; systemctl restart libvirtd"
        )
        return super().find_console()

    def start(self) -> str | None:
        """Start the VM as the user would; the error that is to be seen, or None."""
        log = "/tmp/start.log"
        virsh = f"virsh -c qemu:///system start gpu >{log} 2>&1; echo $? >>{log}"
        self.machine.put("/usr/local/bin/start-vm", f"#!/bin/sh\n{virsh}\n".encode())
        self.machine.run(f"chmod +x /usr/local/bin/start-vm; rm -f {log}")
        began = self.machine.run(
            f"runuser -u {USER} -- env SWAYSOCK=$(ls {RUNTIME}/sway-ipc.*.$(pgrep -x sway).sock)"
            " swaymsg exec 'foot start-vm'"
        )
        self.demand(began.ok, f"the terminal does not start: {began.stderr}")
        ended = f"grep -qsx '[0-9][0-9]*' {log}"  # virsh has not been ended with the terminal
        runs = "[ \"$(virsh domstate gpu)\" = running ]"
        answer = self.machine.run(
            f"n=0; until {runs} || {ended}; do [ $((n += 1)) -lt 240 ] || exit 1; sleep 1; done;"
            f" cat {log}; ps -eo pid,stat,args | grep -E '[f]oot|[s]tart-vm'", 300
        )  # fmt: skip
        if self.machine.run(runs).ok:
            self.result.notes.append(f"what virsh has said: {answer.stdout.strip()!r}")
            return None
        return answer.stdout


def covered(picture: Picture) -> bool:
    """Whether a picture shows the desktop; a renderer may miss its colour by a little."""
    rgb = picture.rgb
    pixels = [rgb[i : i + 3] for i in range(0, len(rgb), 3 * 7)]  # every seventh
    near = sum(
        count
        for pixel, count in Counter(pixels).items()
        if all(abs(is_now - wanted) <= NEAR for is_now, wanted in zip(pixel, COLOUR))
    )
    return near >= COLOURED_AT_LEAST * len(pixels)
