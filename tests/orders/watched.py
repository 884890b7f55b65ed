"""The program called on a machine, and what it did there looked at after each call."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tests.fakehost import FakeHost
from tests.libvirt_xml import domain_xml
from vfio_console_hook import domain, hook
from vfio_console_hook.claims.step import Step
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.config import load
from vfio_console_hook.errors import HostError
from vfio_console_hook.log import SNAPSHOT_LOG
from vfio_console_hook.machine import pci

from . import promises, watch
from .calls import Called, Kill, SeenHost, Work, command, here, in_a_child
from .promises import Violation
from .state import Life, State

# Where everything that a failure may say is in: the sentence, and what may help.
_SENTENCE = re.compile(r"vfio-console-hook: [^\n]+\n(hint: [^\n]+\n)?")


class Watched(State):
    """A machine on which the program runs; each run raises Violation if it must not be so."""

    def _call(
        self, life: Life, operation: str, sub: str, *, kill: Kill | None = None,
        steps: tuple[Step, ...] = (),
    ) -> Called:  # fmt: skip
        """One event of a VM."""
        self.tally[operation] += 1
        guest = life.guest
        devices = tuple(dict.fromkeys([*guest.devices, *sorted(life.plugged)]))
        if operation in ("stopped", "release"):
            devices = tuple(one for one in devices if one in life.plugged)
        xml = domain_xml(
            *devices, managed=guest.managed, name=guest.name, uuid=guest.uuid, event=operation
        )
        argv = [guest.name, operation, sub, "-"]
        with self._watched({*guest.devices, *life.plugged}, {guest.uuid}, steps, kill) as run:
            called = run(lambda host: hook.main(argv, xml, host))
        if called.out:
            raise Violation(f"stdout is libvirt's: {called.out!r}")
        if called.err and not _SENTENCE.fullmatch(called.err):
            raise Violation(f"not one sentence: {called.err}")
        if bool(called.err) != bool(called.status) and not (kill and kill.whole):
            raise Violation(f"status {called.status} with {called.err!r}")
        return called

    def _type(self, *argv: str) -> Called:
        """A command that a person types; what it may touch is what VMs that are off hold."""
        self.tally[argv[0]] += 1
        idle = [one for one in self.claims.values() if self._is_idle(one)]
        if argv[0] != "recover":
            idle = [one for one in idle if one.by_hand and {*one.gpus} & {*argv}]
        addresses = {gpu for one in idle for gpu in one.gpus}
        steps = [step for one in idle for step in one.steps]
        addresses |= {step.gpu for step in steps}
        addresses |= {  # a sound function of the GPU's, maybe of a VM whose steps were taken over
            action.concerns for step in steps for action in (step.do, step.undo) if action
        }  # fmt: skip
        named = {word for word in argv if watch.ADDRESS.fullmatch(word)}
        addresses |= named | {  # the card's other functions, which take takes along
            one for one in self.host.list("sys/bus/pci/devices")
            if argv[0] == "take" and pci.slot(one) in {pci.slot(word) for word in named}
        }  # fmt: skip
        addresses |= {
            sibling for one in idle for life in self.lives.values() if life.guest.uuid == one.uuid
            for sibling in life.guest.devices
        }  # fmt: skip
        uuids = {one.uuid for one in idle}
        with self._watched(addresses, uuids, (), None) as run:
            called = run(lambda host: command(host, *argv))
        for uuid, claim in called.after.items():
            if uuid not in called.before:
                self.lost |= watch.listed_losses(claim.steps)
        if bool(called.err) != bool(called.status) and argv[0] != "recover":
            raise Violation(f"{argv}: status {called.status} with {called.err!r}")
        return called

    def _is_idle(self, claim: watch.Claim) -> bool:
        if claim.by_hand or claim.boot != f"boot-{self.boots}":
            return True
        return all(one.off for one in self.lives.values() if one.guest.uuid == claim.uuid)

    @contextlib.contextmanager
    def _watched(
        self, addresses: set[str], uuids: set[str], steps: tuple[Step, ...], kill: Kill | None
    ) -> Iterator[_Runner]:
        """Lets the program run once, and looks at what it did."""
        runner = _Runner(self, kill)
        portraits = watch.portraits(self.host)
        yield runner
        called = runner.called
        assert called is not None
        if self.host.fault:
            raise Violation(f"the kernel crashed: {self.host.fault}")
        steps += tuple(
            step for seen in (called.before, called.after) for uuid, one in seen.items()
            # What another has left of these GPUs may be taken over, and undone at once.
            if uuid in uuids or uuid not in called.before or addresses & {*one.gpus}
            for step in one.steps
        )  # fmt: skip
        promises.changes(self, called, addresses, steps)
        back = {  # such as a sound function that only the other VM had
            step.undo.concerns for uuid, one in called.before.items()
            if uuid not in uuids and addresses & {*one.gpus}
            for step in one.open if step.undo
        }  # fmt: skip
        promises.portraits(self, portraits, addresses | back, steps)
        promises.claims(self)
        promises.processes(self)
        log = self.host.read(SNAPSHOT_LOG) or ""
        if "internal error" in log or "Traceback" in log:
            raise Violation(f"a bug was logged: {log}")

    def _planned(self, life: Life) -> plan.Plan | HostError:
        """What `plan` says just before a prepare; it must not touch anything.

        An error when a GPU is not on the bus: a rescan for another VM was cut off in the middle.
        """
        guest = life.guest
        host = FakeHost(str(self.root))
        xml = domain_xml(*guest.devices, managed=guest.managed, name=guest.name, uuid=guest.uuid)
        settings = load.configuration(host, guest.name, guest.uuid)
        try:
            return plan.plan_for(host, domain.parse(xml), settings)
        except HostError as error:
            return error
        finally:
            if host.changes:
                raise Violation(f"plan changed {host.changes}")


class _Runner:
    """Runs the program once, in this process or in one that is killed."""

    def __init__(self, state: State, kill: Kill | None) -> None:
        self._state = state
        self._kill = kill
        self.called: Called | None = None

    def __call__(self, work: Work) -> Called:
        state = self._state
        before = state.claims
        killed_whole = self._kill is not None and self._kill.whole
        host = SeenHost(
            str(state.root),
            crash_before=self._kill.before if self._kill and not killed_whole else 0,
        )
        host.running = _virsh(state)
        if killed_whole:
            assert self._kill is not None
            status, out, err = in_a_child(work, host, self._kill.before), "", ""
        else:
            status, out, err = here(work, host)
        if self._kill and len(host.changes) + 1 == self._kill.before and status:
            state.tally["hook killed" if killed_whole else "worker killed"] += 1
        self.called = Called(status, out, err, tuple(host.changes), before, state.claims)
        return self.called


def _virsh(state: State) -> str | None:
    """What `virsh list --uuid` says; it waits while libvirt is at work for any VM."""
    if any(life.path for life in state.lives.values()):
        return None
    return "\n".join(one.guest.uuid for one in state.lives.values() if one.runs)
