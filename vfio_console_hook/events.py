"""What happens on each event of a VM, in the process that talks to the kernel.

hook.py runs these under a deadline. They raise HookError with the one sentence
that the person sees; what is only worth knowing goes to the log.
"""

from __future__ import annotations

from . import console, gpu, holders, kernel, stages
from .actions import LeaveFramebuffers, MapConsoles, QuietText, Rebind, ShowConsoles
from .config import Config
from .domain import Domain
from .errors import HookError, JournalError, LostError, RefusedError, StepError
from .firmware import BOOTFB
from .gpu import Gpu
from .host import Host
from .journal import Journal, Record
from .log import Log
from .memory import Claim
from .stages import Leaving
from .step import Step


def prepare(host: Host, domain: Domain, config: Config, log: Log) -> None:
    """Free the VM's GPUs from the host's console drivers.

    Raises HookError after everything done so far is undone.
    """
    journal = Journal(host)
    stale = journal.find(domain.uuid)
    if stale is not None:
        log.warning("an earlier run was not released; giving back what it took")
        give_back(host, stale, log)
    if not config.enabled:
        return
    leaving, steps = look(host, domain, config)
    if all(one.virtual for one in leaving.gpus):
        return
    record = _claim(host, journal, domain, leaving)
    try:
        # What was taken over may have been changed back since: QEMU switches memory
        # decoding on, for one. An action that can be undone does nothing where it is
        # so already; one that cannot, a rescan above all, is not done twice.
        for step in tuple(record.steps):
            if step.do is not None and step.undo is not None:
                step.do.apply(host)
        for step in steps:
            _take(host, record, step, log)
        for one in gpu.find(host, record.gpus):
            _check_free(one, leaving)
    except Exception as error:
        _undo(host, record, log, error)
        raise
    log.info(f"{', '.join(record.gpus)} ready for the VM; on release {prospect(leaving, steps)}")


def look(host: Host, domain: Domain, config: Config) -> tuple[Leaving, tuple[Step, ...]]:
    """What leaves with a VM and the steps for it; nothing is changed. Raises HookError."""
    addresses = tuple(hostdev.address for hostdev in domain.hostdevs)
    unmanaged = frozenset(one.address for one in domain.hostdevs if not one.managed)
    gpus = gpu.find(host, addresses)
    if not gpus:
        return Leaving((), unmanaged, frozenset(), config, False), ()
    others = Journal(host).others(domain.uuid, kernel.boot_id(host))
    _refuse_taken(host, gpus, others)
    leaving = stages.leaving(
        host,
        gpus,
        config,
        unmanaged=unmanaged,
        taken=frozenset(address for other in others for address in other.gpus),
    )
    return leaving, stages.plan(host, leaving)


def prospect(leaving: Leaving, steps: tuple[Step, ...]) -> str:
    """What release can give back on this kernel: a clause for people."""
    losses = [step.loses for step in steps if step.loses]
    if losses:
        return "; ".join(dict.fromkeys(losses))
    back = [step.undo.device for step in steps if isinstance(step.undo, Rebind)]
    if back:
        return f"the firmware console comes back on {' and '.join(back)}"
    shown = {step.gpu for step in steps if isinstance(step.undo, ShowConsoles)}
    native = [str(one.driver) for one in leaving.gpus if one.native and one.address in shown]
    if native:
        return f"the console comes back with {' and '.join(dict.fromkeys(native))}"
    if any(isinstance(step.do, LeaveFramebuffers) for step in steps):
        return "the consoles are where they are now, on a framebuffer that stays"
    if any(isinstance(step.undo, QuietText) for step in steps):
        return "the text console comes back"
    if shown:
        return "the host's console comes back only if a driver takes the GPU again"
    return "there is nothing to give back: no console of the host is on it"


def _refuse_taken(host: Host, gpus: tuple[Gpu, ...], others: list[Record]) -> None:
    for other in others:
        for one in gpus:
            if one.address in other.gpus and (one.vfio or other.phase == "prepare"):
                raise RefusedError(
                    f"{one.address} belongs to the VM {other.name}, which has it now",
                    hint=f"shut {other.name} down; if it does not run, `vfio-console-hook recover`",
                )


def _claim(host: Host, journal: Journal, domain: Domain, leaving: Leaving) -> Record:
    """The record for this VM, with the steps it takes over from one that is just ending."""
    mine = leaving.addresses
    with journal.lock():
        others = journal.others(domain.uuid, kernel.boot_id(host))
        _refuse_taken(host, leaving.gpus, others)
        # libvirt lets B begin between A's re-attach and A's release. What A took and
        # B would take too is given back by B's release, not below B's feet.
        moved = [(o, n, s) for o in others for n, s in o.open_steps if s.gpu in mine]
        record = journal.claim(
            domain.name,
            domain.uuid,
            tuple(one.address for one in leaving.gpus if not one.virtual),
            boot=kernel.boot_id(host),
            inherited=[step for _, _, step in reversed(moved)],
        )
        for other, number, _ in moved:
            other.forget(number)
    return record


def _take(host: Host, record: Record, step: Step, log: Log) -> None:
    number = record.begin(step)
    if step.do is not None:
        step.do.apply(host)
        log.info(f"{step.do.past()} ({step.stage})")
        log.debug(step.do.shell())
    record.finish(number)


def _check_free(one: Gpu, leaving: Leaving) -> None:
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


def _undo(host: Host, record: Record, log: Log, error: Exception) -> None:
    """Undo a prepare that failed with error, which stays the one that is told."""
    try:
        give_back(host, record, log)
    except HookError as second:
        log.error(f"not all could be undone: {second}")
        if isinstance(error, HookError):
            error.text += "; not all could be undone, see `vfio-console-hook status`"


def give_back(host: Host, record: Record, log: Log) -> None:
    """Undo every open step of a VM, newest first, and drop its claim.

    What cannot come back before a reboot is logged and done with. Raises StepError
    naming the steps that failed; then the claim stays with them.
    """
    if record.boot != kernel.boot_id(host):
        log.warning("its record is of an earlier boot, which has taken everything back")
        record.drop()
        return
    _refuse_stuck(host, record)
    failed = []
    for number, step in record.open_steps:
        if step.undo is not None:
            try:
                step.undo.apply(host)
                log.info(f"{step.undo.past()} ({step.stage})")
                log.debug(step.undo.shell())
            except LostError as error:
                log.warning(str(error))
            except HookError as error:
                log.error(f"{error}; by hand: {step.undo.shell()}")
                failed.append(f"{error.text} (by hand: {step.undo.shell()})")
                continue
        try:
            record.forget(number)
        except JournalError as error:
            # Undoing twice does no harm, leaving the console dark does.
            log.warning(str(error))
    if failed:
        raise StepError("; ".join(failed), hint="afterwards run `vfio-console-hook recover`")
    record.drop()


def _refuse_stuck(host: Host, record: Record) -> None:
    # Nothing may be undone below a worker that the kernel has not let go of yet.
    state = (host.read(f"proc/{record.worker}/stat") or "").rpartition(")")[2].split()
    if state[:1] == ["D"]:
        raise StepError(
            f"process {record.worker} is still stuck in the kernel with {', '.join(record.gpus)}",
            hint="when it is gone, run `vfio-console-hook recover`; else reboot",
        )


def start(host: Host, uuid: str, log: Log) -> None:
    """Look again now that vfio-pci has the GPUs: every BAR must be free for QEMU.

    Raises HookError otherwise; nothing is undone here, libvirt calls release.
    """
    record = Journal(host).find(uuid)
    if record is None:
        return
    record.reach("start")
    for one in gpu.find(host, record.gpus):
        if not one.vfio:
            driver = f"bound to {one.driver}" if one.driver else "without a driver"
            raise StepError(f"{one.address} is {driver}, not on vfio-pci, so the VM cannot have it")
        for claim in one.foreign_claims:
            raise _still_claimed(one, claim)
    _tell_lost(host, record, log)
    _revive_consoles(host, record, log)


def _tell_lost(host: Host, record: Record, log: Log) -> None:
    for _, step in record.open_steps:
        undo = step.undo
        if isinstance(undo, Rebind) and undo.gone(host):
            log.warning(
                f"the kernel has removed {undo.device}: the firmware console will not come back"
                " before a reboot"
            )


def _revive_consoles(host: Host, record: Record, log: Log) -> None:
    # When a framebuffer goes that carried consoles, the kernel may drop all of
    # them to the dummy console although another framebuffer is alive (fbcon.c,
    # fbcon_fb_unbind). What is left now belongs to the host.
    moved = any(
        isinstance(step.do, (LeaveFramebuffers, MapConsoles)) for _, step in record.open_steps
    )
    if moved and console.framebuffers(host):
        try:
            ShowConsoles(0).apply(host)
            log.info(f"the host's consoles meanwhile: {console.drawing(host)}")
        except HookError as error:
            log.warning(str(error))


def check(host: Host, uuid: str, log: Log) -> None:
    """Write down how a running VM and the host's console are. Changes nothing else."""
    record = Journal(host).find(uuid)
    if record is None:
        return
    record.reach("started")
    log.info(f"has {', '.join(record.gpus)}; the host's consoles: {console.drawing(host)}")


def release(host: Host, uuid: str, log: Log) -> None:
    """Give back what was taken for a VM; nothing for a VM that holds nothing. Raises HookError."""
    record = Journal(host).find(uuid)
    if record is None:
        return
    give_back(host, record, log)
    log.info(f"gave back {', '.join(record.gpus)}; the host's consoles: {console.drawing(host)}")


def in_use(host: Host, record: Record) -> str:
    """Why a claim must be left alone: a clause for people, "" when the GPUs are free.

    A GPU on vfio-pci counts as in use as long as its vfio group or device file is
    open; between prepare and QEMU nothing shows that a VM is starting but its phase.
    """
    for address in record.gpus:
        if not gpu.is_vfio(host, address):
            continue
        held = holders.find(host, _vfio_nodes(host, address))
        if held:
            return f"{address} is in use by {', '.join(str(one) for one in held)}"
    return ""


def _vfio_nodes(host: Host, address: str) -> list[str]:
    device = f"sys/bus/pci/devices/{address}"
    group = host.link_name(f"{device}/iommu_group")
    nodes = [f"dev/vfio/devices/{name}" for name in host.list(f"{device}/vfio-dev")]
    return [*nodes, f"dev/vfio/{group}"] if group else nodes
