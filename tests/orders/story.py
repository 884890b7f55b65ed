"""Stories of VMs on a machine, made by Hypothesis: each step is one that could come next."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from . import machines
from .calls import Kill
from .machines import Setting
from .state import Guest
from .world import World

NAMES = ("a", "b", "c")
_HOOKED = ("prepare", "start", "release")
_PLAIN = ("",) * 8
_SETTINGS = (
    "bootfb: native",
    "bootfb: rescan",
    "keep_console: never",
    "host_driver: load",
    "services: [sddm.service]",
    "holders: {wait_s: 0, terminate: [Xorg], grace_s: 0}",
    "apu: allow",
    "on_failure: start",
    "enabled: false",
)


@st.composite
def guests(draw: st.DrawFn, setting: Setting) -> tuple[Guest, ...]:
    """Up to three VMs; the first has a GPU, and the others often have the same."""
    found: list[Guest] = []
    for number, name in enumerate(NAMES[: draw(st.integers(1, 3))]):
        wanted = st.lists(
            st.sampled_from(setting.gpus), min_size=not number, max_size=2, unique=True
        )
        same = number and draw(st.booleans())
        gpus = [*found[0].gpus(setting)] if same else draw(wanted)
        if draw(st.booleans()):
            gpus += [one for one in setting.others if one[:-1] in {gpu[:-1] for gpu in gpus}]
        settings = draw(st.sampled_from((*_PLAIN, *_SETTINGS)))
        managed = draw(st.sampled_from((True,) * 5 + (False,)))
        uuid = f"{number}f0e0d0c-0b0a-4908-8706-050403020100"
        found.append(Guest(name, uuid, tuple(gpus), managed, settings))
    return tuple(found)


_kills = st.builds(Kill, before=st.integers(1, 6), whole=st.booleans())


class Story(RuleBasedStateMachine):
    """One machine from power-on to the end of all VMs, which settle() brings about."""

    tally: ClassVar[Counter[str]] = Counter()
    folder: ClassVar[Path] = Path(tempfile.gettempdir())
    seen: ClassVar[set[Setting]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.root = Path(tempfile.mkdtemp(dir=self.folder))

    @initialize(data=st.data(), setting=machines.settings)
    def power_on(self, data: st.DataObject, setting: Setting) -> None:
        defined = data.draw(guests(setting), label="VMs")
        self.tally["stories"] += 1
        self.seen.add(setting)
        self.world = World(self.root, setting, defined, self.tally)

    @property
    def there(self) -> World:
        assert self.world is not None
        return self.world

    def some(self, what: str) -> list[str]:
        """The names of the VMs that are "off", "running" or "going".

        "hooked" are those of the last whose next step the program is asked for.
        """
        if self.world is None:
            return []
        lives = self.world.lives.items()
        if what == "off":
            return [name for name, one in lives if one.off]
        if what == "running":
            return [name for name, one in lives if one.runs and not one.path]
        if what == "hooked":
            return [name for name, one in lives if one.path and one.path[0] in _HOOKED]
        return [name for name, one in lives if one.path]

    # -- libvirt

    @precondition(lambda self: self.some("off"))
    @rule(
        data=st.data(),
        before=st.sampled_from(("", "", "", "restore", "migrate")),
        steps=st.sampled_from((5, 5, 3, 1, 0)),
    )
    def start(self, data: st.DataObject, before: str, steps: int) -> None:
        name = data.draw(st.sampled_from(self.some("off")))
        self.there.begin(name, before)
        self._advance(name, steps)

    @precondition(lambda self: self.some("going"))
    @rule(data=st.data(), steps=st.integers(1, 5))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        self._advance(data.draw(st.sampled_from(self.some("going"))), steps)

    def _advance(self, name: str, steps: int) -> None:
        for _ in range(steps):
            if self.there.lives[name].path:
                self.there.advance(name)

    @precondition(lambda self: self.some("running"))
    @rule(
        data=st.data(),
        how=st.sampled_from(("shutdown", "destroyed", "crashed", "saved", "migrated")),
        steps=st.sampled_from((4, 3, 3, 0)),
    )
    def end(self, data: st.DataObject, how: str, steps: int) -> None:
        name = data.draw(st.sampled_from(self.some("running")))
        self.there.end(name, how)
        self._advance(name, steps)

    @precondition(lambda self: self.some("hooked") or self.some("off"))
    @rule(data=st.data(), kill=_kills)
    def hook_dies(self, data: st.DataObject, kill: Kill) -> None:
        name = data.draw(st.sampled_from(self.some("hooked") or self.some("off")))
        if self.there.lives[name].off:
            self.there.begin(name)
        self.there.advance(name, kill)

    @precondition(lambda self: self._overtaking())
    @rule(data=st.data(), steps=st.sampled_from((5, 3, 1)))
    def overtake(self, data: st.DataObject, steps: int) -> None:
        """A VM starts on a GPU that libvirt has back from another, before that one's release."""
        name, other = data.draw(st.sampled_from(self._overtaking()))
        if other in self.some("running"):
            self.there.end(other, "shutdown")
            self._advance(other, 3)
        self.there.begin(name)
        self._advance(name, steps)

    def _overtaking(self) -> list[tuple[str, str]]:
        """Each VM that is off, with one that has a device of its own and ends or may end."""
        if self.world is None:
            return []
        lives = self.world.lives
        ending = [name for name, life in lives.items() if life.path == ["release"]]
        return [
            (name, other) for name in self.some("off") for other in ending + self.some("running")
            if {*lives[name].guest.devices} & {*lives[other].guest.devices}
        ]  # fmt: skip

    @precondition(lambda self: self.some("going") or self.some("running"))
    @rule(data=st.data(), recover=st.booleans(), anew=st.booleans())
    def libvirt_dies(self, data: st.DataObject, recover: bool, anew: bool) -> None:
        running = self.some("running")
        ended = data.draw(st.sets(st.sampled_from(running)) if running else st.just(set()))
        self.there.restart_libvirt(frozenset(ended), recover=recover)
        if anew and self._leaving():
            self._define_anew(data)

    # -- people

    @precondition(lambda self: self._possible())
    @rule(data=st.data())
    def meanwhile(self, data: st.DataObject) -> None:
        """One of the things that are rarer, so that they share a rule."""
        what = data.draw(st.sampled_from(self._possible()))
        getattr(self, f"_{what.replace(' ', '_')}")(data)

    def _possible(self) -> list[str]:
        if self.world is None:
            return []
        there = self.world
        possible = {
            "recover": bool(there.claims),
            "take": not there.by_hand,
            "hold": bool(there.nodes()) and not there.holders,
            "reboot": bool(there.claims),
            "recover by force": bool(there.claims) and len(self.some("off")) == len(there.lives),
            "give": bool(there.by_hand),
            "let go": bool(there.holders),
            "plug": bool(self.some("running")) and bool(there.free()),
            "define anew": bool(self._leaving()),
            "unplug": any(there.owned(name) for name in self.some("running")),
        }
        return [name for name, can in possible.items() if can]

    def _leaving(self) -> list[str]:
        """The VMs that are off and have left a claim."""
        return [name for name in self.some("off") if self.there.left(name)]

    def _define_anew(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._leaving()))
        self.there.define_anew(name, devices=data.draw(st.booleans()))

    def _recover(self, data: st.DataObject) -> None:
        self.there.recover(force=False)

    def _recover_by_force(self, data: st.DataObject) -> None:
        self.there.recover(force=True)

    def _take(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(self.there.setting.gpus))
        self.there.take(address, vfio=data.draw(st.booleans()))

    def _give(self, data: st.DataObject) -> None:
        self.there.give(data.draw(st.sampled_from(sorted(self.there.by_hand))))

    def _hold(self, data: st.DataObject) -> None:
        self.tally["node held"] += 1
        command = data.draw(st.sampled_from(("Xorg", "plymouthd")))
        self.there.hold(data.draw(st.sampled_from(self.there.nodes())), command)

    def _let_go(self, data: st.DataObject) -> None:
        self.there.let_go()

    def _reboot(self, data: st.DataObject) -> None:
        keep_run = data.draw(st.booleans())
        self.tally["host rebooted"] += 1
        self.tally["host rebooted over claims"] += bool(self.there.claims) and keep_run
        self.there.boot(keep_run=keep_run)

    def _plug(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.some("running")))
        self.there.plug(name, data.draw(st.sampled_from(self.there.free())))

    def _unplug(self, data: st.DataObject) -> None:
        having = [name for name in self.some("running") if self.there.owned(name)]
        name = data.draw(st.sampled_from(having))
        self.there.unplug(name, data.draw(st.sampled_from(self.there.owned(name))))

    def teardown(self) -> None:
        try:
            if self.world is not None and sys.exc_info()[0] is None:
                self.world.settle()
        finally:
            shutil.rmtree(self.root, ignore_errors=True)
