"""What happens on each event of a VM.

The record is claimed or taken up in the process that calls these, the hook's own;
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
from ..claims.claim import Journal, Record
from ..claims.step import Step
from ..config.settings import Config
from ..domain import Domain
from ..errors import HookError, LostError, StepError, StuckError
from ..log import Log
from ..machine import console, gpu, kernel, worker
from ..machine.firmware import BOOTFB
from ..machine.gpu import Gpu
from ..machine.host import Host
from ..machine.memory import Claim
from ..stages import handover, order
from ..stages.handover import Leaving
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
    journal = Journal(host)
    addresses = _assigned(host, domain)
    log = log.about("prepare", domain.uuid, addresses)
    if journal.find(domain.uuid) is not None:
        log.warning("an earlier run was not released; giving back what it took")
        release(host, domain.uuid, log, run, forgotten=True)
    if not config.enabled or not addresses:
        return
    record = _claim(journal, domain, addresses)
    run(lambda: _free(host, record, domain, config, log))


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


def _free(host: Host, record: Record, domain: Domain, config: Config, log: Log) -> None:
    """Take the steps for a VM whose claim is made, and look whether its GPUs are free then."""
    with record.work():
        try:
            leaving, steps = look(host, domain, config)
            if record.steps:
                from ..stages.firmware import sysfb  # only for what was taken over

                if not steps:  # or look() has done so
                    # The other VM may run on without its GPU, which was unplugged, but with the
                    # GPU's sound function.
                    ownership.refuse_open(host, tuple(one.address for one in domain.hostdevs))
                steps += tuple(sysfb.taken_over(host, leaving, record.steps))
            _apply(host, record, leaving, steps, log)
        except StuckError:
            raise  # nothing may be undone below a process that the kernel holds
        except Exception as error:
            _abort(host, record, log, error)
            raise
    log.info(f"ready for the VM; on release {way_back.prospect(leaving, tuple(record.steps))}")


def _apply(host: Host, record: Record, leaving: Leaving, steps: tuple[Step, ...], log: Log) -> None:
    # What was taken over may have been changed back since: QEMU switches memory
    # decoding on, for one. An action that can be undone does nothing where it is
    # so already; one that cannot, a rescan above all, is not done twice. A sound
    # function that only the other VM had stays with the host.
    mine = {*record.gpus, *leaving.others}
    for step in tuple(record.steps):
        if step.do and step.undo and (step.do.concerns or step.gpu) in mine:
            _act(host, step.do, log)
    taken: list[str] = []
    try:
        for step in steps:
            taken += _take(host, record, step, log)
    finally:
        log.done(taken)
    for one in gpu.find(host, record.gpus):
        check_free(one, leaving)


def look(host: Host, domain: Domain, config: Config) -> tuple[Leaving, tuple[Step, ...]]:
    """What leaves with a VM and the steps for it; nothing is changed. Raises HookError."""
    addresses = tuple(hostdev.address for hostdev in domain.hostdevs)
    unmanaged = frozenset(one.address for one in domain.hostdevs if not one.managed)
    gpus = gpu.find(host, addresses)
    if not gpus:
        return Leaving((), unmanaged, frozenset(), config, False), ()
    others = Journal(host).others(domain.uuid, kernel.boot_id(host))
    ownership.refuse_taken(host, [one.address for one in gpus], others)
    leaving = handover.leaving(
        host,
        gpus,
        config.within_timeout(),
        unmanaged=unmanaged,
        taken=frozenset(
            address
            for other in others
            for address in other.gpus
            if ownership.holds(host, other, address)
        ),
        bind_vfio=domain.bind_vfio,
        others=tuple(address for address in addresses if address not in {g.address for g in gpus}),
    )
    steps = order.plan(host, leaving)
    if steps:
        from . import assignable  # where nothing is changed, libvirt may say it

        assignable.check(host, domain, gpus)
        ownership.refuse_open(host, addresses)
    return leaving, steps


def _claim(journal: Journal, domain: Domain, addresses: tuple[str, ...]) -> Record:
    """The record for this VM, with the steps it takes over from one that is just ending."""
    host = journal.host
    boot = kernel.boot_id(host)
    record = Record(host, domain.name, domain.uuid, boot, addresses, host.now(), domain.by_hand)
    for address in addresses:
        ownership.await_others(host, address, domain.uuid)
    with journal.lock():
        others = journal.others(domain.uuid, boot, addresses)
        ownership.refuse_taken(host, addresses, others)
        # libvirt lets B begin between A's re-attach and A's release. What A took and
        # B would take too is given back by B's release, not below B's feet.
        moved = [(o, n, s) for o in others for n, s in o.open_steps if s.gpu in addresses]
        for other, _, _ in moved:
            ownership.refuse_busy(host, other)
        journal.claim(record, [step for _, _, step in reversed(moved)])
        for other, number, _ in moved:
            other.forget(number)
    return record


def _take(host: Host, record: Record, step: Step, log: Log) -> list[str]:
    """Do a step; what has been done by it, in words."""
    number = record.begin(step)
    told = []
    if step.do is not None:
        told = _act(host, step.do, log)
        for text in told:
            log.debug(f"{text}, for {step.stage}: {step.do.shell()}")
    elif step.undo is None and not step.loses:
        told = [step.why]
    record.finish(number)
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


def check_free(one: Gpu, leaving: Leaving) -> None:
    """Look at the GPU after the steps. Raises StepError when something still claims it."""
    if one.native:
        return  # libvirt detaches the driver next, and its claims go with it
    expected = one.firmware and leaving.kernel_removes_from(one)
    for claim in one.foreign_claims:
        simple = any(device.owns_memory for device in one.firmware)
        if expected and simple and (claim.name == BOOTFB or claim.name.startswith("simple")):
            continue  # vfio-pci takes it along; start looks again
        raise _still_claimed(one, claim)


def _still_claimed(one: Gpu, claim: Claim) -> StepError:
    return StepError(
        f"{claim.name} still claims {claim.range} in BAR {claim.bar} of {one.address}, so QEMU"
        " could not map it",
        hint=f"look for what uses {claim.name}, with `vfio-console-hook plan`",
    )


def _abort(host: Host, record: Record, log: Log, error: Exception) -> None:
    """Undo a prepare that failed with error, which stays the one that is told."""
    try:
        way_back.undo(host, record, log)
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
    record = ownership.take_up(host, uuid, "start")
    if record is not None:
        told = log.about("start", uuid, record.gpus)
        run(lambda: _look_again(host, record, told))


def _look_again(host: Host, record: Record, log: Log) -> None:
    with record.work():
        for one in gpu.find(host, record.gpus):
            if not one.vfio:
                driver = f"bound to {one.driver}" if one.driver else "without a driver"
                raise StepError(
                    f"{one.address} is {driver}, not on vfio-pci, so the VM cannot have it"
                )
            for claim in one.foreign_claims:
                raise _still_claimed(one, claim)
        _tell_lost(host, record, log)
        meanwhile = _revive_consoles(host, record, log)
        log.info(f"on vfio-pci, and nothing of the host is in QEMU's way{meanwhile}")


def _tell_lost(host: Host, record: Record, log: Log) -> None:
    for _, step in record.open_steps:
        undo = step.undo
        if isinstance(undo, Rebind) and undo.gone(host):
            log.warning(
                f"the kernel has removed {undo.device}: the firmware console will not come back"
                " before a reboot"
            )


def _revive_consoles(host: Host, record: Record, log: Log) -> str:
    """See to it that consoles which were moved are shown; a clause that says where."""
    # When a framebuffer goes that carried consoles, the kernel may drop all of
    # them to the dummy console although another framebuffer is alive (fbcon.c,
    # fbcon_fb_unbind). What is left now belongs to the host.
    moved = [
        step.do
        for _, step in record.open_steps
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
    return f"; the host's consoles: {console.drawing(host)}"


def check(host: Host, uuid: str, log: Log, run: Supervisor = call) -> None:
    """Write down how a running VM and the host's console are. Changes nothing else."""
    record = ownership.take_up(host, uuid, "started")
    if record is None:
        return
    # libvirt's daemon, started anew, asks the same of a VM that goes on running.
    log = log.about(log.phase or "started", uuid, record.gpus)

    def work() -> None:
        with record.work():
            log.info(f"the VM runs; the host's consoles: {console.drawing(host)}")

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
    record = ownership.take_up(host, uuid, "release", forgotten=forgotten)
    if record is None:
        return
    log = log.about("release", uuid, record.gpus)
    if record.boot != kernel.boot_id(host):
        log.warning("its record is of an earlier boot, which has taken everything back")
        record.drop()
        return

    def work() -> None:
        with record.work():
            way_back.undo(host, record, log)
        log.info(f"gave it back; the host's consoles: {console.drawing(host)}")

    run(work)
