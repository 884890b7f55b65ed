"""Undoing what is in a claim, and where that hangs."""

from __future__ import annotations

from ..actions.action import Action
from ..actions.firmware import CONSOLES_BACK
from ..claims.claim import Claim
from ..claims.directory import Claims
from ..claims.step import Step
from ..errors import ClaimError, HookError, LostError, StepError, StuckError
from ..log import Log
from ..machine import pci
from ..machine.host import Host

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from ..claims.losses import Loss


def undo(claim: Claim, log: Log) -> tuple[Loss, ...]:
    """Undo every open step and drop the claim, in the process that works on it.

    Returns what is lost although plan did not say so; what is lost is also written down
    (losses.py). Raises StepError naming what failed; then the claim stays with that. Nothing
    more is undone after a StuckError.
    """
    work = _Undoing(claim, log)
    try:
        kept = work.take_off_vfio()
        for number, step in claim.open_steps:
            if step.undo is None or step.undo.concerns not in kept:
                work.undo_step(number, step)
    finally:
        log.done(work.undone)
    unannounced = _unannounced(claim, work.lost, log)
    if work.failed:
        failed = "; ".join([*work.failed, *(one.text for one in unannounced)])
        raise StepError(failed, hint="afterwards run `vfio-console-hook recover`")
    Claims(claim.host).drop(claim)
    return unannounced


class _Undoing:
    """What was undone, what failed and what is lost of a claim so far."""

    def __init__(self, claim: Claim, log: Log) -> None:
        self.undone: list[str] = []
        self.failed: list[str] = []
        self.lost: list[Loss] = []
        self._claim = claim
        self._log = log

    def take_off_vfio(self) -> tuple[str, ...]:
        """The GPUs that stay on vfio-pci although they were not there before; so do their steps.

        What is on vfio-pci when its steps are undone gets back neither its driver nor its firmware
        console. libvirt has re-attached a GPU before release. If it has not, another VM may be
        about to start with it, so it is left alone. If nothing will re-attach it any more
        (claim.forgotten), it is taken off here, unless a process has it open: libvirtd that is
        killed before the VM has a status file forgets the VM (qemu_process.c,
        qemuProcessReconnectAll), and platforms that bind a GPU by themselves leave it there.
        """
        host, claim = self._claim.host, self._claim
        there = [one for one in from_the_host(claim) if pci.is_vfio(host, one)]
        if not there:
            return ()
        # Only for what was left behind: these take 2 ms to load.
        from ..actions.vfio import UnbindVfio
        from ..machine import holders, vfio

        kept = []
        for address in there:
            off = UnbindVfio(address)
            held = vfio.users(host, address)
            if held:
                failure = f"{address} stays on vfio-pci: {holders.listed(held)}"
            elif not claim.forgotten:
                failure = f"{address} is still on vfio-pci (by hand: {off.shell()})"
            else:
                kept += [address] * (not self._apply(off, "release"))
                continue
            self._log.error(failure)
            # A sibling: libvirt re-attaches it after the VM that has it now.
            if not held or address in claim.gpus:
                kept.append(address)
                self.failed.append(failure)
        return tuple(kept)

    def undo_step(self, number: int, step: Step) -> None:
        """Undo one step and forget it, unless that fails."""
        error: LostError | None = None
        try:
            if step.undo is not None and not self._apply(step.undo, step.stage):
                return
        except LostError as caught:
            if self.failed:
                # It may lack what has just failed, and is tried again with that.
                self._log.warning(str(caught))
                return
            error = caught
        if error or (step.undo is None and step.loses):
            self.lost.append(_keep_loss(self._claim, step, error, self._log))
        try:
            self._claim.forget(number)
        except ClaimError as refused:
            # Undoing twice does no harm, leaving the console dark does.
            self._log.warning(str(refused))

    def _apply(self, action: Action, stage: str) -> bool:
        """Do an action that undoes a step of a stage; whether that worked.

        Raises LostError when it cannot be undone any more.
        """
        shell = action.shell()
        try:
            self._do(action)
        except (LostError, StuckError):
            raise
        except HookError as error:
            self._log.error(f"{error}; by hand: {shell}")
            self.failed.append(f"{error.text} (by hand: {shell})")
            return False
        self.undone.append(action.past())
        self._log.debug(f"{self.undone[-1]}, for {stage}: {shell}")
        return True


    def _do(self, action: Action) -> None:
        host = self._claim.host
        if action.kind != "show-consoles":
            action.apply(host)
            return
        from ..actions.consoles import ShowConsoles  # loaded, as the action is one

        if isinstance(action, ShowConsoles) and not action.comes(host):
            from . import placing  # takes 3 ms to load, and the kernel mostly shows them itself

            placing.show(self._claim, action)


def _keep_loss(claim: Claim, step: Step, error: LostError | None, log: Log) -> Loss:
    """Write a loss down before its step is forgotten."""
    from . import lost  # only where something is lost

    return lost.write_down(claim, step, error, log)


def _unannounced(claim: Claim, found: list[Loss], log: Log) -> tuple[Loss, ...]:
    if not found:
        return ()
    from . import lost  # as above

    return lost.unannounced(claim, found, log)


def from_the_host(claim: Claim) -> tuple[str, ...]:
    """The devices that had a driver or a firmware console when they left the host.

    Without those that a step of their own takes off vfio-pci (`take --vfio`).
    """
    undos = [step.undo for _, step in claim.open_steps if step.undo]
    bound_here = {one.concerns for one in undos if one.kind == "unbind-vfio"}
    found = (
        one.concerns
        for one in undos
        if one.kind == "return-native"
        or (one.kind in CONSOLES_BACK and not getattr(one, "stays_on_vfio", False))
    )
    return tuple(one for one in dict.fromkeys(found) if one not in bound_here)


def last_change(host: Host, uuid: str) -> str:
    """The shell line of the last change that a VM's hook began; "" when none is known."""
    try:
        claim = Claims(host).find(uuid)
    except HookError:
        return ""
    # start and started change nothing.
    if claim is None or claim.phase not in ("prepare", "release"):
        return ""
    for number, step in claim.open_steps:
        # A change that was begun and is not done is the one that hangs. release only undoes.
        undoing = claim.phase == "release" or number in claim.done
        action = step.undo if undoing else step.do
        if action is not None:
            return action.shell()
    return ""
