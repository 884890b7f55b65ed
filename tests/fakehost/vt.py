"""Console drivers (Linux drivers/tty/vt/vt.c).

All 63 consoles are taken to be on one driver, the one whose `bind` reads 1: that
is so unless one boots with fbcon=vc:.
"""

from __future__ import annotations

from dataclasses import dataclass

from .tree import Tree

CLASS = "sys/class/vtconsole"
DEVICES = "sys/devices/virtual/vtconsole"
FBCON = "frame buffer device"
VGACON = "VGA+"
DUMMY = "dummy device"


@dataclass(frozen=True)
class Driver:
    """A registered console driver. static: "(S)", without CON_DRIVER_FLAG_MODULE."""

    slot: int
    name: str
    static: bool
    bound: bool


def drivers(tree: Tree) -> list[Driver]:
    found = []
    for node in tree.list(CLASS):
        kind, _, name = (tree.read(f"{CLASS}/{node}/name") or "").partition(" ")
        bound = tree.read(f"{CLASS}/{node}/bind") == "1"
        found.append(Driver(int(node[len("vtcon") :]), name, kind == "(S)", bound))
    return sorted(found, key=lambda driver: driver.slot)


def find(tree: Tree, name: str) -> Driver | None:
    return next((driver for driver in drivers(tree) if driver.name == name), None)


def is_bound(tree: Tree, name: str) -> bool:
    """con_is_bound()."""
    driver = find(tree, name)
    return driver is not None and driver.bound


def _give_consoles_to(tree: Tree, chosen: Driver) -> None:
    for driver in drivers(tree):
        tree.put(f"{DEVICES}/vtcon{driver.slot}/bind", "1" if driver.slot == chosen.slot else "0")


def take_over(tree: Tree, name: str) -> None:
    """do_take_over_console(): register the driver in the lowest free slot, give it the consoles."""
    if find(tree, name) is None:
        taken = {driver.slot for driver in drivers(tree)}
        slot = next(slot for slot in range(16) if slot not in taken)
        tree.put(f"{DEVICES}/vtcon{slot}/name", f"(M) {name}")
        tree.put(f"{DEVICES}/vtcon{slot}/bind", "0")
        tree.link(f"{CLASS}/vtcon{slot}", f"{DEVICES}/vtcon{slot}")
    driver = find(tree, name)
    assert driver is not None
    _give_consoles_to(tree, driver)


def unregister(tree: Tree, name: str) -> bool:
    """do_unregister_con_driver(): refused (-ENODEV) while the driver has consoles."""
    driver = find(tree, name)
    if driver is None or driver.bound:
        return False
    tree.remove(f"{CLASS}/vtcon{driver.slot}")
    tree.remove(f"{DEVICES}/vtcon{driver.slot}")
    return True


def unbind(tree: Tree, name: str) -> bool:
    """do_unbind_con_driver(): the consoles go to the first other driver by slot.

    False (-ENODEV) when there is no other one.
    """
    driver = find(tree, name)
    if driver is None or not driver.bound:
        return True
    backup = next((other for other in drivers(tree) if other.slot != driver.slot), None)
    if backup is None:
        return False
    _give_consoles_to(tree, backup)
    return True


def bind(tree: Tree, name: str) -> bool:
    """vt_bind(): only takes consoles that are on the (S) driver; whether it took them.

    An (S) driver itself is never bound this way.
    """
    driver = find(tree, name)
    static = next((other for other in drivers(tree) if other.static), None)
    if driver is None or driver.static or static is None or not static.bound:
        return False
    _give_consoles_to(tree, driver)
    return True
