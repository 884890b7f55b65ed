"""What happens on each event of a VM.

The claim is claimed or taken up in the process that calls these, the hook's own;
what talks to the kernel is handed to a Supervisor, which lets it work in another
process under a deadline. They raise HookError with the one sentence that the person
sees; what is only worth knowing goes to the log.
"""

from __future__ import annotations

from collections.abc import Callable

from ..actions.action import Action
from ..actions.consoles import LeaveFramebuffers, MapConsoles, ShowConsoles
from ..actions.firmware import Rebind
from ..claims import ownership
from ..claims.claim import Claim, Claims
from ..claims.step import Step
from ..config.settings import Config
from ..domain import Domain
from ..errors import HookError, LostError, StepError, StuckError
from ..log import Log
from ..machine import console, gpu, kernel, worker
from ..machine.firmware import BOOTFB
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.memory import Reservation
from ..stages import order
from ..stages.handover import Handover
from . import undo as way_back

Supervisor = Callable[[Callable[[], None]], None]
"""Lets work be done, in its own way: worker.run with a deadline, or just by calling it."""


def call(work: Callable[[], None]) -> None:
    """The Supervisor that watches over nothing."""
    work()


def prepare(
    host: Host,
    domain: Domain,
    config: Config,
    log: Log,
    run: Supervisor = call,
) -> None:
    """Free the VM's GPUs from the host's console drivers.

    run lets what talks to the kernel work under a deadline; the claim, and the
    lock that it takes, stay in this process. Raises HookError after everything done
    so far is undone; not so what run raises itself.
    """
    claims = Claims(host)
    addresses = _assigned(host, domain)
    log = log.about("prepare", domain.uuid, addresses)
    if claims.find(domain.uuid) is not None:
        log.warning("an earlier run was not released; giving back what it took")
        release(host, domain.uuid, log, run, forgotten=True)
    if not config.enabled or not addresses:
        return
    claim = _claim(claims, domain, addresses)
    run(lambda: _free(host, claim, domain, config, log))


def prepare_within(
    deadline: worker.Deadline, host: Host, domain: Domain, config: Config, log: Log
) -> None:
    """Prepare, and undo in the rest of the time what was cut off in the middle.

    Raises HookError after that, and StuckError when the kernel lets nothing be undone.
    """
    try:
        prepare(host, domain, config, log, deadline.run_but_spare)
    except worker.CutOffError as error:
        line = way_back.asked_for(host, domain.uuid)
        error.text += f", at `{line}`" if line else ""
        try:
            release(host, domain.uuid, log, deadline.run)
        except StuckError as second:
            log.error(f"what was done could not be undone: {second}")
            raise
        except HookError as second:
            _tell_left(error, second, log)
        raise


def _assigned(host: Host, domain: Domain) -> tuple[str, ...]:
    """The GPUs of the VM that can own a console: a virtual function has none."""
    addresses = (hostdev.address for hostdev in domain.hostdevs)
    return tuple(
        address
        for address in addresses
        if gpu.display_class(host, address) is not None and not gpu.is_virtual(host, address)
    )


def _free(host: Host, claim: Claim, domain: Domain, config: Config, log: Log) -> None:
    """Take the steps for a VM whose claim is made, and look whether its GPUs are free then."""
    with claim.work():
        try:
            handover, steps = look(host, domain, config)
            if claim.steps:
                from ..stages.firmware import sysfb  # only for what was taken over

                if not steps:  # or look() has done so
                    # The other VM may run on without its GPU, which was unplugged, but with the
                    # GPU's sound function.
                    ownership.refuse_open(host, tuple(one.address for one in domain.hostdevs))
                steps += tuple(sysfb.taken_over(host, handover, claim.steps))
            _apply(host, claim, handover, steps, log)
        except StuckError:
            raise  # nothing may be undone below a process that the kernel holds
        except Exception as error:
            _abort(host, claim, log, error)
            raise
    log.info(f"ready for the VM; on release {way_back.prospect(handover, tuple(claim.steps))}")


def _apply(host: Host, claim: Claim, handover: Handover, steps: tuple[Step, ...], log: Log) -> None:
    # What was taken over may have been changed back since: QEMU switches memory
    # decoding on, for one. An action that can be undone does nothing where it is
    # so already; one that cannot, a rescan above all, is not done twice. A sound
    # function that only the other VM had stays with the host.
    mine = {*claim.gpus, *handover.siblings}
    for step in tuple(claim.steps):
        if step.do and step.undo and (step.do.concerns or step.gpu) in mine:
            _act(host, step.do, log)
    taken: list[str] = []
    try:
        for step in steps:
            taken += _take(host, claim, step, log)
    finally:
        log.done(taken)
    for one in gpu.gpus_among(host, claim.gpus):
        check_free(one, handover)


def look(host: Host, domain: Domain, config: Config) -> tuple[Handover, tuple[Step, ...]]:
    """What leaves with a VM and the steps for it; nothing is changed. Raises HookError."""
    addresses = tuple(hostdev.address for hostdev in domain.hostdevs)
    unmanaged = frozenset(one.address for one in domain.hostdevs if not one.managed)
    gpus = gpu.gpus_among(host, addresses)
    if not gpus:
        return Handover((), unmanaged, frozenset(), config, False), ()
    others = Claims(host).others(domain.uuid, kernel.boot_id(host))
    ownership.refuse_taken(host, [one.address for one in gpus], others)
    handover = Handover(
        gpus,
        unmanaged,
        frozenset(
            address
            for other in others
            for address in other.gpus
            if ownership.holds(host, other, address)
        ),
        config.within_timeout(),
        kernel.removes_consoles(host),
        domain.bind_vfio,
        tuple(address for address in addresses if address not in {g.address for g in gpus}),
    )
    steps = order.plan(host, handover)
    if steps:
        from . import assignable  # where nothing is changed, libvirt may say it

        assignable.check(host, domain, gpus)
        ownership.refuse_open(host, addresses)
    return handover, steps


def _claim(claims: Claims, domain: Domain, addresses: tuple[str, ...]) -> Claim:
    """The claim for this VM, with the steps it takes over from one that is just ending."""
    host = claims.host
    boot = kernel.boot_id(host)
    claim = Claim(host, domain.name, domain.uuid, boot, addresses, host.now(), domain.by_hand)
    for address in addresses:
        ownership.await_others(host, address, domain.uuid)
    with claims.lock():
        others = claims.others(domain.uuid, boot, addresses)
        ownership.refuse_taken(host, addresses, others)
        # libvirt lets B begin between A's re-attach and A's release. What A took and
        # B would take too is given back by B's release, not below B's feet.
        moved = [(o, n, s) for o in others for n, s in o.open_steps if s.gpu in addresses]
        for other, _, _ in moved:
            ownership.refuse_busy(host, other)
        claims.make(claim, [step for _, _, step in reversed(moved)])
        for other, number, _ in moved:
            other.forget(number)
    return claim


def _take(host: Host, claim: Claim, step: Step, log: Log) -> list[str]:
    """Do a step; what has been done by it, in words."""
    number = claim.begin(step)
    told = []
    if step.do is not None:
        told = _act(host, step.do, log)
        for text in told:
            log.debug(f"{text}, for {step.stage}: {step.do.shell()}")
    elif step.undo is None and not step.loses:
        told = [step.why]
    claim.finish(number)
    return told


def _act(host: Host, action: Action, log: Log) -> list[str]:
    """Do it; what has been done, in words."""
    try:
        remark = action.apply(host)
    except LostError as error:
        # Another VM takes the GPU that the consoles should go to. start looks after them again.
        if not isinstance(action, MapConsoles):
            raise
        log.warning(str(error))
        return []
    return [f"{action.past()}{f'; {remark}' if remark else ''}"]


def check_free(one: Gpu, handover: Handover) -> None:
    """Look at the GPU after the steps. Raises StepError when something is still reserved in it."""
    if one.native:
        return  # libvirt detaches the driver next, and its reservations go with it
    expected = one.firmware and handover.kernel_removes_from(one)
    for reservation in one.foreign_reservations:
        simple = any(device.owns_memory for device in one.firmware)
        if (
            expected
            and simple
            and (reservation.name == BOOTFB or reservation.name.startswith("simple"))
        ):
            continue  # vfio-pci takes it along; start looks again
        raise _still_reserved(one, reservation)


def _still_reserved(one: Gpu, reservation: Reservation) -> StepError:
    return StepError(
        f"{reservation.name} still reserves {reservation.range} in BAR {reservation.bar} of"
        f" {one.address}, so QEMU could not map it",
        hint=f"look for what uses {reservation.name}, with `vfio-console-hook plan`",
    )


def _abort(host: Host, claim: Claim, log: Log, error: Exception) -> None:
    """Undo a prepare that failed with error, which stays the one that is told."""
    try:
        way_back.undo(host, claim, log)
    except HookError as second:
        _tell_left(error, second, log)


def _tell_left(error: Exception, second: HookError, log: Log) -> None:
    """Say that not all could be undone after error, which stays the one that is told."""
    log.error(f"not all could be undone: {second}")
    if isinstance(error, HookError):
        error.text += "; not all could be undone, see `vfio-console-hook status`"


def start(host: Host, uuid: str, log: Log, run: Supervisor = call) -> None:
    """Look again now that vfio-pci has the GPUs: every BAR must be free for QEMU.

    Raises HookError otherwise; nothing is undone here, libvirt calls release.
    """
    claim = ownership.take_up(host, uuid, "start")
    if claim is not None:
        told = log.about("start", uuid, claim.gpus)
        run(lambda: _look_again(host, claim, told))


def _look_again(host: Host, claim: Claim, log: Log) -> None:
    with claim.work():
        for one in gpu.gpus_among(host, claim.gpus):
            if not one.vfio:
                driver = f"bound to {one.driver}" if one.driver else "without a driver"
                raise StepError(
                    f"{one.address} is {driver}, not on vfio-pci, so the VM cannot have it"
                )
            for reservation in one.foreign_reservations:
                raise _still_reserved(one, reservation)
        _tell_lost(host, claim, log)
        meanwhile = _revive_consoles(host, claim, log)
        log.info(f"on vfio-pci, and nothing of the host is in QEMU's way{meanwhile}")


def _tell_lost(host: Host, claim: Claim, log: Log) -> None:
    for _, step in claim.open_steps:
        undo = step.undo
        if isinstance(undo, Rebind) and undo.gone(host):
            log.warning(
                f"the kernel has removed {undo.device}: the firmware console will not come back"
                " before a reboot"
            )


def _revive_consoles(host: Host, claim: Claim, log: Log) -> str:
    """See to it that consoles which were moved are shown; a clause that says where."""
    # When a framebuffer goes that carried consoles, the kernel may drop all of
    # them to the dummy console although another framebuffer is alive (fbcon.c,
    # fbcon_fb_unbind). What is left now belongs to the host.
    moved = [
        step.do
        for _, step in claim.open_steps
        if isinstance(step.do, (LeaveFramebuffers, MapConsoles))
    ]
    if not moved or not console.framebuffers(host):
        return ""
    target = next((one.fb for one in moved if isinstance(one, MapConsoles)), "")
    try:
        ShowConsoles(0, target).apply(host)
    except HookError as error:
        log.warning(str(error))
        return ""
    return f"; the host's consoles: {console.current_display(host)}"


def check(host: Host, uuid: str, log: Log, run: Supervisor = call) -> None:
    """Write down how a running VM and the host's console are. Changes nothing else."""
    claim = ownership.take_up(host, uuid, "started")
    if claim is None:
        return
    # libvirt's daemon, started anew, asks the same of a VM that goes on running.
    log = log.about(log.phase or "started", uuid, claim.gpus)

    def work() -> None:
        with claim.work():
            log.info(f"the VM runs; the host's consoles: {console.current_display(host)}")

    run(work)


def release(
    host: Host, uuid: str, log: Log, run: Supervisor = call, *, forgotten: bool = False
) -> None:
    """Give back what was taken for a VM, newest first; nothing for one that holds nothing.

    forgotten: libvirt knows nothing of that run any more, so it has re-attached nothing.
    So it stays for who goes on with it: where prepare was killed while it gave back an
    earlier run, libvirt calls release. What cannot come back before a reboot is logged and
    done with. Raises StepError naming the steps that failed; then the claim stays with them.
    """
    claim = ownership.take_up(host, uuid, "release", forgotten=forgotten)
    if claim is None:
        return
    log = log.about("release", uuid, claim.gpus)
    if claim.boot != kernel.boot_id(host):
        log.warning("its claim is of an earlier boot, which has taken everything back")
        claim.drop()
        return

    def work() -> None:
        with claim.work():
            way_back.undo(host, claim, log)
        log.info(f"gave it back; the host's consoles: {console.current_display(host)}")

    run(work)
