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
from .trial import CONFIG_FILE, Trial

USER, RUNTIME = "lab", "/run/user/1000"
MANAGER = "greetd.service"
PIXMAN = "WLR_RENDERER=pixman"
# Mesa's software renderer crashes in AVX2 gathers on an emulated processor.
SSE_ONLY = "GALLIUM_OVERRIDE_CPU_CAPS=sse4.1"
GLES2 = f"WLR_RENDERER=gles2 WLR_RENDERER_ALLOW_SOFTWARE=1 {SSE_ONLY}"
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
    " systemctl show -p ActiveState,SubState,Result display-manager;"
    " ps -eo pid,ppid,stat,cgroup:70,args --sort pid"
    " | grep -E '[s]way|[k]win|[g]nome-s|[g]reetd|[g]dm|[s]ddm|[w]ireplumber'"
)
# Where a refusal says that the rule for udev goes.
RULES = "/etc/udev/rules.d/72-vm-gpu.rules"
STUCK = "ps -eo pid,stat,wchan:30,args | awk '$2 ~ /^D/'"


class Wayland(Sound):
    """One GPU with sound: refused beside the desktop, then started in place of it."""

    renderer = PIXMAN
    monitor = 0
    manager = MANAGER
    program = "sway"
    coloured = COLOURED_AT_LEAST

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
        self.machine.run(f"useradd -m -u 1000 -s /bin/bash {USER}")
        self.install_desktop()
        unit = "/etc/systemd/system/display-manager.service"
        self.machine.run(
            f"ln -sf /lib/systemd/system/{self.manager} {unit}; systemctl daemon-reload;"
            " systemctl start display-manager"
        )
        # On a busy machine KWin gives up when a service of D-Bus takes longer than 25 s.
        for _ in range(LOG_IN_TIMES - 1):
            if self.shown("before-desktop"):
                break
            self.machine.run("systemctl restart display-manager", 180)
        return self.check_desktop("before")

    def install_desktop(self) -> None:
        """Let the display manager log the user in by itself."""
        self.machine.run("mkdir -p /etc/greetd")
        self.machine.put("/etc/sway/config", SWAY.encode())
        self.override(EACH_TIME)
        self.log_in_to(self.session())

    def override(self, content: str) -> None:
        """Change the unit of the display manager."""
        folder = f"/etc/systemd/system/{self.manager}.d"
        self.machine.run(f"mkdir -p {folder}")
        self.machine.put(f"{folder}/lab.conf", content.encode())

    def session(self) -> str:
        """The command that greetd runs for the user."""
        return f"env {self.renderer} sway"

    def log_in_to(self, command: str) -> None:
        """Let greetd start this command for the user from its next start on."""
        self.machine.put("/etc/greetd/config.toml", GREETD.format(command=command).encode())

    def compositor(self) -> str:
        """The process id of the compositor, "" when there is none."""
        return self.machine.run(f"pgrep -u {USER} -x {self.program}").stdout.strip()

    def active(self) -> bool:
        """Whether the display manager's unit is active."""
        return self.machine.run(f"systemctl is-active {self.manager}").stdout.strip() == "active"

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
            if one.rgb != other.rgb and self.covered(one) and self.covered(other):
                return True
        return False

    def covered(self, picture: Picture) -> bool:
        """Whether a picture shows the desktop; a renderer may miss its colour by a little."""
        rgb = picture.rgb
        pixels = [rgb[i : i + 3] for i in range(0, len(rgb), 3 * 7)]  # every seventh
        near = sum(
            count
            for pixel, count in Counter(pixels).items()
            if all(abs(is_now - wanted) <= NEAR for is_now, wanted in zip(pixel, COLOUR))
        )
        return near >= self.coloured * len(pixels)

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
        if not answer.ok:
            self.machine.run(
                "ls -l /dev/snd; getfacl /dev/snd/controlC0; cat /run/systemd/seats/seat0"
                " /run/systemd/users/1000; udevadm info /dev/snd/controlC0; journalctl -b -n 80"
            )
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
        for wanted in (f"{self.program} ({before})", self.hint()):
            self.demand(wanted in text, f"{name}: no {wanted!r} in the error: {text}")
        self.demand(self.compositor() == before, f"{name}: the compositor is another one now")
        self.check_desktop(name)
        self.check_nothing_hangs(name)
        self.check_kernel(name)
        self.check_claims(name)

    def log_in_again(self, name: str) -> None:
        """End the session, and all of its user's units, and let the user log in anew."""
        for _ in range(LOG_IN_TIMES):
            self.machine.run(
                "systemctl stop display-manager user@1000; systemctl start display-manager", 180
            )
            if self.shown(f"{name}-desktop"):
                break
            self.machine.run(
                f"{LOOK_AT_SESSION}; journalctl -b --no-pager -n 300"
                " | grep -E 'sddm|kwin|gdm|greetd|sway|shell|logind'"
            )

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
        gone = not self.covered(self.picture(f"{name}-meanwhile"))
        self.demand(gone, f"{name}: the monitor still shows the desktop")

    def meanwhile(self, name: str, number: int) -> None:
        """libvirtd answers, and nothing hangs."""
        self.check_nothing_hangs(name)


class WaylandBeside(Wayland):
    """Two GPUs, and sway holds only the one that stays: no configuration, the desktop goes on."""

    def run(self) -> None:
        """Start and destroy the VM beside the desktop."""
        if not self.set_up():
            return
        before = self.compositor()
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)
        self.demand(before == self.compositor(), "the compositor is another one than at first")

    def check_running(self, name: str) -> None:
        """The VM has its GPU, and the desktop goes on beside it."""
        Trial.check_running(self, name)
        self.demand(bool(self.compositor()), f"{name}: the compositor has ended")
        self.check_desktop(f"{name}-meanwhile")

    def check_other_monitor(self, name: str) -> None:
        """The desktop is there, not the console."""


class WaylandBoth(WaylandBeside):
    """Two GPUs, and sway holds both: refused with a line, with which the desktop goes on."""

    renderer = GLES2

    def run(self) -> None:
        """Let the VM be refused, do as the refusal advises, then start and destroy it."""
        if not self.set_up():
            return
        self.refused()
        self.follow()
        self.log_in_again("again")
        self.check_desktop("again")
        before = self.compositor()
        for number in range(1, self.scenario.cycles + 1):
            self.cycle(number)
        self.demand(before == self.compositor(), "the compositor is another one than at first")

    def follow(self) -> None:
        """Do as the refusal advises; what a reboot would do with it is done by hand."""
        self.machine.put(RULES, f"{self.rule()}\n".encode())
        self.machine.run(
            "udevadm control --reload; udevadm trigger -s drm; udevadm settle;"
            " for i in 0 1; do udevadm info -q property /dev/dri/card$i | grep SEAT; done"
        )

    def rule(self) -> str:
        """What keeps the compositor off the card that leaves, also when it comes back."""
        address = self.leaving[0].address
        return (
            f'SUBSYSTEM=="drm", KERNEL=="card*", KERNELS=="{address}", TAG-="master-of-seat",'
            ' ENV{ID_SEAT}="seat-vm"'
        )

    def hint(self) -> str:
        """What the refusal advises."""
        return f"put `{self.rule()}` into {RULES}, and reboot"


class WaylandDetached(WaylandBoth):
    """Two GPUs, and sway holds both: it ends, and is back on the other one beside the VM."""

    def run(self) -> None:
        """Start and destroy the VM by the configuration."""
        if not self.set_up():
            return
        self.machine.put(CONFIG_FILE, self.scenario.config.encode())
        for number in range(1, self.scenario.cycles + 1):
            self.before = self.compositor()
            self.cycle(number)

    before = ""

    def check_running(self, name: str) -> None:
        """The VM has its GPU, and a new desktop runs on the other one."""
        super().check_running(name)
        now = self.compositor()
        self.demand(now != self.before, f"{name}: the compositor is the same as before")
        cards = self.machine.run(f"ls -l /proc/{now}/fd | grep -o '/dev/dri/card.*' | sort -u")
        only = cards.stdout.split() == ["/dev/dri/card0"]
        self.demand(only, f"{name}: the new compositor has {cards.stdout.split()} open")


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


# The session as a unit of the user's own manager, as Plasma's is, and beside it a program
# that has nothing to do with the compositor.
UNIT = "lab-sway.service"
SESSION = f"""\
#!/bin/sh
rm -f {RUNTIME}/wayland-1  # one that was killed has left it
systemctl --user import-environment XDG_SESSION_ID XDG_SEAT XDG_VTNR
systemctl --user start lab-holder.service
exec systemctl --user --wait start {UNIT}
"""
UNITS = {
    UNIT: f"[Service]\nExecStart=env {PIXMAN} sway\n",
    # Not before sway: who opens a card first is its master (Linux drm_auth.c, drm_master_open).
    "lab-holder.service": f"""\
[Service]
ExecStart=sh -c 'until [ -S {RUNTIME}/wayland-1 ]; do sleep 1; done; \\
    exec sleep infinity </dev/dri/card0'
""",
}


class WaylandOutlives(Wayland):
    """What the display manager has begun outlives it, as units of the user's manager."""

    def session(self) -> str:
        """A script that starts sway as a unit; the manager stays for the user (linger)."""
        for name, content in UNITS.items():
            self.machine.put(f"/etc/systemd/user/{name}", content.encode())
        self.machine.put("/usr/local/bin/lab-session", SESSION.encode())
        self.machine.run(f"chmod +x /usr/local/bin/lab-session; loginctl enable-linger {USER}")
        return "lab-session"

    def check_running(self, name: str) -> None:
        """The user's manager was stopped with all its units, and the log says so."""
        super().check_running(name)
        log = self.machine.run("journalctl -b -t vfio-console-hook -o cat").stdout
        said = "stopped user@1000.service" in log
        self.demand(said, f"{name}: no end of the user's manager in the log")


class WaylandTerminate(WaylandOutlives):
    """A session is ended for the VM by an entry of `holders.terminate`, another one each time."""

    ENTRIES = ("session", "user@1000.service", "user-1000.slice", "lab-*")

    def run(self) -> None:
        """Start and destroy the VM once with each entry."""
        if not self.set_up():
            return
        for number, entry in enumerate(self.ENTRIES, 1):
            config = f"holders:\n  wait_s: 1\n  terminate: [{entry}]\n"
            self.machine.put(CONFIG_FILE, config.encode())
            self.result.notes.append(f"cycle {number}: {entry}")
            self.before = self.compositor()
            self.cycle(number)

    before = ""

    def check_running(self, name: str) -> None:
        """The session has ended; its display manager may begin another one, which has no GPU."""
        Trial.check_running(self, name)
        self.machine.run(LOOK_AT_SESSION)
        self.demand(
            bool(self.before) and self.before != self.compositor(),
            f"{name}: the compositor runs beside the VM",
        )

    def check_console(self, name: str, number: int) -> None:
        """The user logs in again."""
        # A session that has begun beside the VM found no GPU, and its compositor waits for one.
        self.machine.run(
            f"systemctl stop {self.manager} user@1000.service; systemctl reset-failed"
            f" {self.manager}; systemctl start {self.manager}", 180
        )  # fmt: skip
        super().check_console(name, number)


KWIN = """\
#!/bin/sh
exec kwin_wayland --drm --no-lockscreen --no-global-shortcuts /usr/local/bin/lab-clock
"""
CLOCK = """\
#!/bin/sh
exec foot --fullscreen --override=colors.background={:02x}{:02x}{:02x} \\
    sh -c 'while :; do clear; date; sleep 1; done'
""".format(*COLOUR)
KWIN_HAS = "fuser {} 2>/dev/null | grep -qw $(pgrep -x kwin_wayland)"


class WaylandTold(WaylandBeside):
    """Two GPUs, and KWin holds both: told that one is gone it closes it, and opens it again."""

    program = "kwin_wayland"

    def run(self) -> None:
        """Let the VM be refused because of another program, then start and destroy it."""
        if not self.set_up():
            return
        before = self.compositor()
        self.refused()
        for number in range(1, self.scenario.cycles + 1):
            self.check_opened(f"before cycle {number}")
            self.cycle(number)
        self.check_opened("in the end")
        self.demand(before == self.compositor(), "the compositor is another one than at first")

    def session(self) -> str:
        """A script that starts KWin, and a terminal with a clock in it."""
        for name, content in (("lab-kwin", KWIN), ("lab-clock", CLOCK)):
            self.machine.put(f"/usr/local/bin/{name}", content.encode())
            self.machine.run(f"chmod +x /usr/local/bin/{name}")
        return "lab-kwin"

    def card(self) -> str:
        """The node of the card that leaves; its number may be another one after the VM."""
        folder = f"/sys/bus/pci/devices/{self.leaving[0].address}/drm"
        return f"/dev/dri/$(cd {folder} && ls -d card*)"

    def check_opened(self, name: str) -> None:
        """KWin has the card that leaves open."""
        has = KWIN_HAS.format(self.card())
        opened = self.machine.run(
            f"n=0; until {has}; do [ $((n += 1)) -lt 60 ] || exit 1; sleep 1; done", 180
        )
        self.machine.run(f"{LOOK_AT_SESSION}; ls -l /dev/dri")
        self.demand(opened.ok, f"{name}: KWin does not have the card open")

    def refused(self) -> None:
        """Another program has the card: the VM is refused, and KWin has it again."""
        name = "refused"
        self.mark(name)
        self.check_opened("before")
        self.machine.run(f"setsid sleep 1000000 <{self.card()} >/dev/null 2>&1 &")
        error = " ".join((self.start() or "nothing, the VM started").split())
        self.result.notes.append(f"{name}: {error}")
        self.demand("in use by sleep (" in error, f"{name}: no sleep in the error: {error}")
        self.demand("kwin" not in error, f"{name}: KWin has not closed the card: {error}")
        self.machine.run("pkill -x sleep -P 1")
        self.check_opened("afterwards")
        self.check_desktop(name)
        self.check_claims(name)

    def check_running(self, name: str) -> None:
        """The desktop goes on, and the log says what KWin was told."""
        super().check_running(name)
        log = self.machine.run("journalctl -b -t vfio-console-hook -o cat").stdout
        told = "sent kwin_wayland a remove event of card" in log
        self.demand(told, f"{name}: KWin was not told")
