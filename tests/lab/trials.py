"""The kinds of trials by the names in scenarios."""

from __future__ import annotations

from .apparmor import AppArmor
from .by_hand import ByHand
from .cell import CellTrial
from .confined import SELinux
from .desktop import Desktop
from .dropin import DropIn
from .every_call import EveryCall
from .killed import Killed
from .killed_probe import KilledProbe
from .kmscon import Kmscon
from .loss import Loss
from .newcomer import Newcomer
from .no_program import NoProgram
from .nvidia import Nvidia, NvidiaControl, NvidiaCounted, NvidiaDaemon, NvidiaTwo
from .opened import OpenedTrial
from .openrc import OpenRC
from .overlapping import Overlapping
from .packaged import Packaged
from .prompt import Prompt
from .quiet import Quiet
from .rebound import Rebound
from .rehearsal import RehearsalKilled, Rehearsed, RehearsedCell
from .reserved import Reserved
from .sound import Sound, SoundServer, Stuck
from .started import Started
from .terminated import Terminated
from .traced import Moved, Untouched
from .trial import Trial
from .two_vms import TwoVms
from .unprivileged import Unprivileged
from .virtqemud import Virtqemud
from .wayland import (
    Wayland,
    WaylandBeside,
    WaylandBoth,
    WaylandDetached,
    WaylandInside,
    WaylandOutlives,
    WaylandTerminate,
    WaylandTold,
)
from .whole_desktops import Gnome, GnomeBeside, Notified, Plasma, PlasmaBeside, PlasmaListed

KINDS: dict[str, type[Trial]] = {
    "apparmor": AppArmor,
    "by-hand": ByHand,
    "cell": CellTrial,
    "cycles": Trial,
    "desktop": Desktop,
    "dropin": DropIn,
    "every-call": EveryCall,
    "gnome": Gnome,
    "gnome-beside": GnomeBeside,
    "hangs": Trial,
    "killed": Killed,
    "killed-probe": KilledProbe,
    "kmscon": Kmscon,
    "moved": Moved,
    "loss": Loss,
    "newcomer": Newcomer,
    "notified": Notified,
    "nvidia": Nvidia,
    "nvidia-control": NvidiaControl,
    "nvidia-counted": NvidiaCounted,
    "nvidia-daemon": NvidiaDaemon,
    "nvidia-two": NvidiaTwo,
    "opened": OpenedTrial,
    "openrc": OpenRC,
    "packaged": Packaged,
    "plasma": Plasma,
    "plasma-beside": PlasmaBeside,
    "plasma-listed": PlasmaListed,
    "prompt": Prompt,
    "quiet": Quiet,
    "rebound": Rebound,
    "rehearsal-killed": RehearsalKilled,
    "rehearsed": Rehearsed,
    "rehearsed-cell": RehearsedCell,
    "reserved": Reserved,
    "selinux": SELinux,
    "sound": Sound,
    "sound-server": SoundServer,
    "started": Started,
    "stuck": Stuck,
    "terminated": Terminated,
    "no-program": NoProgram,
    "overlapping": Overlapping,
    "two-vms": TwoVms,
    "unprivileged": Unprivileged,
    "untouched": Untouched,
    "virtqemud": Virtqemud,
    "wayland": Wayland,
    "wayland-beside": WaylandBeside,
    "wayland-both": WaylandBoth,
    "wayland-detached": WaylandDetached,
    "wayland-inside": WaylandInside,
    "wayland-outlives": WaylandOutlives,
    "wayland-terminate": WaylandTerminate,
    "wayland-told": WaylandTold,
}
