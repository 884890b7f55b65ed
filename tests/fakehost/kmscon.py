"""kmscon: a process in its unit's cgroup that has every card open.

It opens the cards that are there when it starts, keeps them open in the background, and opens
those that appear later (kmscon src/kmscon_main.c, app_seat_add_video; src/uterm_drm_shared.c,
uterm_drm_video_init). It ends with SIGTERM.
"""

from __future__ import annotations

from . import processes, systemd
from .tree import Tree

SLICE = "system-kmsconvt.slice"


def install(tree: Tree, *ttys: str, cards: tuple[str, ...] = ()) -> None:
    """Let kmscon draw the consoles of these terminals, on all cards or on some."""
    if not tree.exists("run/systemd/system"):
        systemd.install(tree)
    for card in cards:
        tree.put(f"fake/kmscon/{card}", "")
    for tty in ttys:
        name = f"kmsconvt@{tty}.service"
        systemd.put(tree, name, systemd.Unit(active="active"))
        begin(tree, name)


def begin(tree: Tree, unit: str) -> None:
    """systemd has started a unit of kmscon."""
    pid = 7000 + int("".join(filter(str.isdigit, unit)) or 0)
    cgroup = f"system.slice/{SLICE}/{unit}" if "@" in unit else f"system.slice/{unit}"
    processes.make(tree, pid, "kmscon", f"0::/{cgroup}")
    # systemd makes the cgroup, and the kernel removes it with its last process (cgroup(7)).
    tree.put(f"sys/fs/cgroup/{cgroup}/cgroup.procs", f"{pid}\n")
    chosen = tree.list("fake/kmscon")
    for card in tree.list("dev/dri"):
        if card.startswith("card") and (not chosen or card in chosen):
            processes.open_file(tree, pid, f"dev/dri/{card}", f"/dev/dri/{card}")
