"""Whole desktops as Debian installs them: GNOME by gdm, Plasma by sddm.

A terminal over the whole monitor has the colour and a clock. The user is logged in by the
display manager, at each of its starts.
"""

from __future__ import annotations

from .wayland import CLOCK, COLOUR, RUNTIME, SSE_ONLY, USER, Wayland, WaylandBoth, WaylandTold

CLOCK_ENTRY = """\
[Desktop Entry]
Type=Application
Name=Clock
Exec=/usr/local/bin/lab-clock
"""
# gdm logs in by itself only once after a boot, unless its mark is gone.
GDM_EACH_TIME = "[Service]\nExecStartPre=-/bin/rm -f /run/gdm3/ran-once /run/gdm/ran-once\n"
GDM = f"[daemon]\nAutomaticLoginEnable=true\nAutomaticLogin={USER}\n"
DCONF = """\
[org/gnome/desktop/background]
picture-options='none'
primary-color='#{:02x}{:02x}{:02x}'
[org/gnome/desktop/interface]
clock-show-seconds=true
enable-animations=false
[org/gnome/desktop/session]
idle-delay=uint32 0
""".format(*COLOUR)
SDDM = f"[Autologin]\nUser={USER}\nSession=plasma\n"
# The screen is locked after five minutes without a key, and then switched off.
PLASMA = {
    "/etc/xdg/kscreenlockerrc": "[Daemon]\nAutolock=false\nTimeout=0\n",
    "/etc/xdg/powerdevilrc": (
        "[AC][Display]\nDimDisplayWhenIdle=false\nTurnOffDisplayWhenIdle=false\n"
        "[AC][SuspendAndShutdown]\nAutoSuspendAction=0\n"
    ),
}

AS_USER = f"runuser -u {USER} -- env DBUS_SESSION_BUS_ADDRESS=unix:path={RUNTIME}/bus"
# The unit that systemd-xdg-autostart-generator(8) makes of the entry that install.sh places.
ENTRY = r"app-vfio\x2dconsole\x2dhook@autostart.service"
SHOWS = f"#!/bin/sh\nmako 2>&1 | logger -t mako &\nexec systemctl --user start '{ENTRY}'\n"


class Whole(Wayland):
    """A desktop that begins with the clock, and the three lines of the README."""

    def install_desktop(self) -> None:
        """Let every session begin with a terminal that has a clock."""
        self.machine.run(f"systemctl stop display-manager; echo {SSE_ONLY} >>/etc/environment")
        self.machine.put("/usr/local/bin/lab-clock", CLOCK.encode())
        self.machine.put("/etc/xdg/autostart/lab-clock.desktop", CLOCK_ENTRY.encode())
        self.machine.run("chmod +x /usr/local/bin/lab-clock")

    def refused(self) -> None:
        """Let the VM be refused; the reason is shown in the next session."""
        super().refused()
        self.log_in_again("notified")
        self.check_desktop("notified")
        seen = f"/home/{USER}/.local/state/vfio-console-hook/notified"
        shown = self.machine.run(
            f"n=0; until [ -s {seen} ]; do [ $((n += 1)) -lt 90 ] || exit 1; sleep 1; done;"
            " sleep 10; journalctl -b -n 20 -o cat", 240
        )  # fmt: skip
        self.picture("notified")
        self.demand(shown.ok, "no notification was shown in the next session")


class Gnome(Whole):
    """GNOME with gdm."""

    manager = "gdm.service"
    program = "gnome-shell"
    # It begins with the overview, in which the window is smaller.
    coloured = 0.25

    def install_desktop(self) -> None:
        """Let gdm log the user in."""
        super().install_desktop()
        self.machine.run("mkdir -p /etc/dconf/db/local.d /etc/dconf/profile")
        self.machine.put("/etc/dconf/profile/user", b"user-db:user\nsystem-db:local\n")
        self.machine.put("/etc/dconf/db/local.d/lab", DCONF.encode())
        self.machine.put("/etc/gdm3/daemon.conf", GDM.encode())
        self.machine.run("dconf update")
        self.override(GDM_EACH_TIME)


class Plasma(Whole):
    """Plasma with sddm."""

    manager = "sddm.service"
    program = "kwin_wayland"
    coloured = 0.25

    def install_desktop(self) -> None:
        """Let sddm log the user in."""
        super().install_desktop()
        self.machine.run("mkdir -p /etc/sddm.conf.d")
        self.machine.put("/etc/sddm.conf.d/lab.conf", SDDM.encode())
        for path, content in PLASMA.items():
            self.machine.put(path, content.encode())


class GnomeBeside(Gnome, WaylandBoth):
    """Two GPUs, and mutter has both open: refused with a rule, with which GNOME goes on."""

    def refused(self) -> None:
        """Only the error is looked at, not the next session."""
        WaylandBoth.refused(self)


class PlasmaBeside(Plasma, WaylandTold):
    """Two GPUs, and KWin has both open: without any configuration Plasma goes on."""

    def refused(self) -> None:
        """Nothing else has the card open, so nothing is refused."""


class PlasmaListed(Plasma, WaylandBoth):
    """The boot GPU leaves, which KWin could not do without: refused with a line for it."""

    def refused(self) -> None:
        """Only the error is looked at, not the next session."""
        WaylandBoth.refused(self)

    def follow(self) -> None:
        """From now on the desktop is on the other monitor."""
        super().follow()
        self.monitor = self.scenario.stays[0]


class Notified(Wayland):
    """The reason of a refusal is a notification in the next session, and only there."""

    def run(self) -> None:
        """Let the VM be refused, log in again twice."""
        if not self.set_up():
            return
        self.refused()
        self.machine.put("/usr/local/bin/lab-shows", SHOWS.encode())
        self.machine.run(
            "chmod +x /usr/local/bin/lab-shows; echo exec lab-shows >>/etc/sway/config"
        )
        for name, wanted in (("first", True), ("second", False)):
            self.machine.run("systemctl restart display-manager", 180)
            self.check_desktop(name)
            shown = self.notifications()
            self.picture(f"{name}-notified")
            has_it = "VM gpu was not started" in shown
            self.demand(has_it is wanted, f"{name}: the notifications: {shown!r}")

    def notifications(self) -> str:
        """What is shown by the time that the autostart entry has ended."""
        ended = "systemctl --user -M lab@ show -p ActiveState,Result,ExecMainStatus"
        self.machine.run(f"sleep 30; {ended} '{ENTRY}'; pgrep -a mako; journalctl -b -n 30 -o cat")
        return self.machine.run(f"{AS_USER} makoctl list").stdout
