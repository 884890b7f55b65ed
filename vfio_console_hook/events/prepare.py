"""prepare: frees a VM's GPUs from the host's console drivers before libvirt takes them.

Everything is looked at before anything is changed, and each step is in the claim
before it is done. What fails is undone at once, and then the VM does not start.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from ..actions.action import Action
from ..claims import history, in_use, ownership
from ..claims.claim import Claim
from ..claims.directory import Claims
from ..claims.step import Step
from ..config import load
from ..config.settings import Config
from ..errors import ClaimError, CutOffError, HookError, LostError, RefusedError, StuckError
from ..log import Log
from ..machine import console, gpu, removal
from ..machine.firmware import RESERVATION_NAMES
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.removal import Removal
from ..machine.worker import Deadline, Supervisor, call
from ..stages import order
from ..stages.handover import Handover
from . import outlook, refusals, undo
from .assignment import Assignment
from .release import release

_NOT_UNDONE = "; not all could be undone, see `vfio-console-hook status`"


def prepare(
    host: Host, assignment: Assignment, config: Config, log: Log, run: Supervisor = call
) -> None:
    """Free the GPUs of an assignment; nothing where it has none, or the VM is not enabled.

    run lets what talks to the kernel work under a deadline; the claim, and the lock
    that it takes, stay in this process. Raises HookError after everything done so far
    is undone; not so what run raises itself.
    """
    log = log.about("prepare", assignment.uuid, assignment.gpus)
    # libvirt knows nothing of an earlier run any more, so it has re-attached nothing. The
    # claim keeps that: if prepare is killed now, libvirt calls release, which goes on.
    left = ownership.acquire(host, assignment.uuid, "release", forgotten=True)
    if left is not None:
        log.warning("an earlier run was not released; giving back what it took")
        try:
            release(left, log, run)
        except LostError as error:
            log.error(str(error))  # what is left of the GPU decides whether the VM may start
    if not config.enabled or not assignment.gpus:
        return
    try:
        claim = ownership.create(host, _new_claim(host, assignment, config))
    except RefusedError:
        if not _release_rehearsed(host, assignment, log, run):
            raise
        claim = ownership.create(host, _new_claim(host, assignment, config))
    run(lambda: _free(claim, assignment, config, log))


def _release_rehearsed(host: Host, assignment: Assignment, log: Log, run: Supervisor) -> bool:
    """Give back what killed rehearsals have left of these GPUs; whether there was anything."""
    left = ownership.left_by_rehearsals(host, assignment.uuid, assignment.gpus)
    for uuid in left:
        claim = ownership.acquire(host, uuid, "release", forgotten=True)
        if claim is not None:
            log.warning(f"a rehearsal of {claim.name} was killed; giving back what it took")
            release(claim, log, run)
    return bool(left)


def prepare_within(
    deadline: Deadline, host: Host, assignment: Assignment, config: Config, log: Log
) -> None:
    """Prepare, and undo in the rest of the time what was cut off in the middle.

    Raises HookError after that, and StuckError when the kernel lets nothing be undone.
    """
    try:
        prepare(host, assignment, config, log, deadline.run_but_spare)
    except CutOffError as error:
        line = undo.last_change(host, assignment.uuid)
        cut_off = error.adding(f", at `{line}`" if line else "")
        try:
            claim = ownership.acquire(host, assignment.uuid, "release")
            if claim is not None:
                release(claim, log, deadline.run)
        except StuckError as second:
            log.error(f"what was done could not be undone: {second}")
            raise
        except HookError as second:
            log.error(f"not all could be undone: {second}")
            raise cut_off.adding(_NOT_UNDONE) from error
        raise cut_off from error


def _new_claim(host: Host, assignment: Assignment, config: Config) -> Claim:
    return Claim(
        host=host,
        name=assignment.name,
        uuid=assignment.uuid,
        boot=host.boot_id,
        # What a person has taken is theirs as a whole, sound and USB too.
        gpus=assignment.addresses if assignment.by_hand else assignment.gpus,
        since=host.now(),
        by_hand=assignment.by_hand,
        until=assignment.until,
        log_level=config.log_level,
        timeout_s=config.timeout_s,
        on_failure=config.on_failure,
        on_refusal=config.on_refusal,
        announce=config.announce,
    )


# -- looking


def look_ahead(
    host: Host, assignment: Assignment, config: Config
) -> tuple[Handover, tuple[Step, ...]]:
    """What leaves with a VM and the steps for it; nothing is changed. Raises HookError."""
    if not assignment.gpus:
        return Handover((), assignment.unmanaged, frozenset(), config, Removal(())), ()
    gpus = gpu.gpus_at(host, assignment.gpus)
    others = Claims(host).others(assignment.uuid, host.boot_id)
    ownership.refuse_taken(host, assignment.gpus, others)
    handover = Handover(
        gpus=gpus,
        unmanaged=assignment.unmanaged,
        taken=ownership.taken(host, others),
        config=config.within_timeout(),
        removal=removal.of_kernel(host),
        bind_vfio=assignment.bind_vfio,
        by_hand=assignment.by_hand,
        rehearsal=bool(assignment.until),
        siblings=assignment.siblings,
        file=load.file_for(assignment.configured_as, assignment.uuid),
        vtconsoles=console.vtconsoles(host),
        framebuffers=console.framebuffers(host),
    )
    steps = order.plan(host, handover)
    refusals.refuse_mounted(host, assignment)
    if steps or assignment.by_hand:
        # If there are no steps, nothing is lost when libvirt or QEMU refuses.
        refusals.refuse_unassignable(host, assignment)
        refusals.refuse_missing_rom(host, assignment)
        in_use.refuse_open(host, assignment.addresses)
    return handover, steps


def check_free(one: Gpu, handover: Handover) -> None:
    """Look at the GPU after the steps. Raises StepError when something is still reserved in it."""
    removed = one.firmware if handover.removal.acts_on(one) else ()
    # vfio-pci takes these along; start looks again.
    expected = {
        name for device in removed if device.owns_memory
        for name in (device.owned_as, device.reserved_as)
    }  # fmt: skip
    for reservation in one.foreign_reservations:
        if one.native and reservation.name not in RESERVATION_NAMES:
            continue  # libvirt detaches the driver next, and its reservations go with it
        if reservation.name in expected:
            continue
        raise refusals.still_reserved(one.address, reservation)


# -- doing


def _free(claim: Claim, assignment: Assignment, config: Config, log: Log) -> None:
    """Take the steps for a VM whose claim is made, and look whether its GPUs are free then."""
    host = claim.host
    with claim.work():
        try:
            Claims(host).await_consoles()
            _settle_losses(host, log)
            handover, steps = look_ahead(host, assignment, config)
            if claim.steps:
                from ..stages.firmware import sysfb  # only for what was taken over

                if not steps:  # or look_ahead() has done so
                    # The other VM may run on without its GPU, which was unplugged, but with the
                    # GPU's sound function.
                    in_use.refuse_open(host, assignment.addresses)
                steps += tuple(sysfb.missing_decode_steps(host, handover, claim.steps))
            _take_all(claim, handover, steps, log)
        except StuckError:
            raise  # nothing may be undone below a process that the kernel holds
        except Exception as error:
            host.give_up_after(None)
            try:
                lost = undo.undo(claim, log)
                for one in lost:
                    log.error(str(one))
                undone = not lost
            except StuckError:
                log.error(str(error))
                raise
            except HookError as second:
                log.error(f"not all could be undone: {second}")
                undone = False
            if not undone and isinstance(error, HookError):
                raise error.adding(_NOT_UNDONE) from error
            raise
        if assignment.by_hand and not assignment.until:
            from .start import start_detached  # no event start follows

            start_detached(claim, log)
    log.info(f"ready for the VM; on release {outlook.outlook(handover, tuple(claim.steps))}")


def _settle_losses(host: Host, log: Log) -> None:
    """Forget what was lost before and is back, because the VM is about to take it again."""
    if not host.exists(history.LOSSES):
        return
    from ..claims import losses  # takes 2 ms to load

    try:
        losses.settle(host)
    except ClaimError as error:
        log.warning(str(error))


def _take_all(claim: Claim, handover: Handover, steps: tuple[Step, ...], log: Log) -> None:
    host = claim.host
    # What was taken over may have been changed back since: QEMU switches memory
    # decoding on, for one. An action that can be undone does nothing where it is
    # so already; one that cannot, a rescan above all, is not done twice. A sound
    # function that only the other VM had stays with the host.
    mine = {*claim.gpus, *handover.siblings}
    for step in tuple(claim.steps):
        if step.do and step.undo and (step.do.concerns or step.gpu) in mine:
            with _at_its_turn(claim, step) as possible:
                _act(host, possible.do, log)
    done: list[str] = []
    try:
        for step in steps:
            done += _take(claim, step, log)
    finally:
        log.done(done)
    for one in gpu.gpus_at(host, tuple(one.address for one in handover.gpus)):
        check_free(one, handover)


def _take(claim: Claim, planned: Step, log: Log) -> list[str]:
    """Do a step; what has been done by it, in words."""
    with _at_its_turn(claim, planned) as step:
        number = claim.begin(step)
        done = _act(claim.host, step.do, log)
        for text in done:
            log.debug(f"{text}, for {step.stage}: {step.do.shell() if step.do else ''}")
        if step.do is None and step.undo is None and not step.loses:
            done = [step.why]
        claim.finish(number)
    return done


def _at_its_turn(claim: Claim, step: Step) -> AbstractContextManager[Step]:
    """What is to be done for a step now: another VM may take the GPU that the consoles go to."""
    if step.do is None or step.do.kind != "map-consoles":
        return nullcontext(step)
    from . import placing  # only for hosts with another framebuffer

    return placing.moving(claim, step)


def _act(host: Host, action: Action | None, log: Log) -> list[str]:
    """Do it; what has been done, in words."""
    if action is None:
        return []
    try:
        remark = action.apply(host)
    except LostError as error:
        if action.kind != "map-consoles":
            raise
        # The other GPU was pulled out. start looks after the consoles again.
        from ..actions.console_moves import LeaveFramebuffers

        log.warning(str(error))
        LeaveFramebuffers().apply(host)
        return []
    return [f"{action.past()}{f'; {remark}' if remark else ''}"]
