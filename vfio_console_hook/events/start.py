"""start and started: looks again when vfio-pci has the GPUs, and when the VM runs."""

from __future__ import annotations

from ..actions.action import Action
from ..actions.firmware import Rebind
from ..claims.claim import Claim
from ..errors import HookError, StepError
from ..log import Log
from ..machine import console, iomem, memory, pci
from ..machine.host import Host
from ..machine.worker import Supervisor, call
from . import refusals

# The kinds of actions that move consoles to a framebuffer that stays, or off all of them.
_MOVES = ("leave-framebuffers", "map-consoles")


def moved_consoles(claim: Claim) -> list[Action]:
    """What prepare did to the consoles that start has to look after."""
    found = [step.do for _, step in claim.open_steps if step.do and step.do.kind in _MOVES]
    return [one for one in found if not getattr(one, "until_release", False)]


def start(claim: Claim, log: Log, run: Supervisor = call) -> None:
    """Look again now that vfio-pci has the GPUs: every BAR must be free for QEMU.

    Raises HookError otherwise; nothing is undone here, libvirt calls release.
    """
    log = log.about("start", claim.uuid, claim.gpus)
    run(lambda: _look_again(claim, log))


def started(claim: Claim, log: Log, run: Supervisor = call) -> None:
    """Write down how a running VM and the host's console are. Changes nothing else."""
    # libvirt's daemon, started anew, asks the same of a VM that goes on running.
    log = log.about(log.phase or "started", claim.uuid, claim.gpus)

    def work() -> None:
        with claim.work():
            consoles = ""
            if pci.any_display(claim.host, claim.gpus):
                consoles = f"; the host's consoles: {console.current_display(claim.host)}"
            log.info(f"the VM runs{consoles}")

    run(work)


def _look_again(claim: Claim, log: Log) -> None:
    with claim.work():
        reserved = iomem.reserved_ranges(claim.host)
        for address in claim.gpus:
            _refuse_unready(claim.host, address, reserved)
        _warn_of_losses(claim, log)
        meanwhile = _revive_consoles(claim, log)
        log.info(f"on vfio-pci, and nothing of the host is in QEMU's way{meanwhile}")
        start_detached(claim, log)


def start_detached(claim: Claim, log: Log) -> None:
    """Start the services that need not wait for the end of the VM; what fails is logged."""
    for _, step in reversed(claim.open_steps):
        if step.undo is None or not step.undo.detached:
            continue
        try:
            step.undo.apply(claim.host)
            log.info(step.undo.past())
        except HookError as error:
            log.warning(str(error))


def _refuse_unready(
    host: Host, address: str, reserved: tuple[tuple[memory.Range, str], ...]
) -> None:
    """Raise StepError for a GPU that is not on vfio-pci, or of which not all memory is free."""
    # A Gpu has more than is asked here, and takes 2 ms to load.
    bars = memory.memory_bars(host, address)
    if not pci.is_vfio(host, address):
        driver = host.link_name(f"sys/bus/pci/devices/{address}/driver")
        what = f"bound to {driver}" if driver else "without a driver"
        raise StepError(f"{address} is {what}, not on vfio-pci, so the VM cannot have it")
    for reservation in iomem.reservations(reserved, address, bars):
        if not (reservation.vfio or reservation.around):
            raise refusals.still_reserved(address, reservation)


def _warn_of_losses(claim: Claim, log: Log) -> None:
    for _, step in claim.open_steps:
        if isinstance(step.undo, Rebind) and step.undo.gone(claim.host):
            log.warning(
                f"the kernel has removed {step.undo.device}: the firmware console will not come"
                " back before a reboot"
            )


def _revive_consoles(claim: Claim, log: Log) -> str:
    """Make sure that consoles which were moved are shown; a clause that says where."""
    # When a framebuffer goes that carried consoles, the kernel may drop all of
    # them to the dummy console although another framebuffer is alive (fbcon.c,
    # fbcon_fb_unbind). What is left now belongs to the host.
    moved = moved_consoles(claim)
    if not moved or not console.framebuffers(claim.host):
        return ""
    # Only for hosts with another framebuffer: these take 2 ms to load.
    from ..actions.console_moves import MapConsoles
    from ..actions.consoles import ShowConsoles
    target = next((one.fb for one in moved if isinstance(one, MapConsoles)), "")
    try:
        shown = ShowConsoles(0, target)
        if not shown.comes(claim.host):
            from . import placing

            placing.show(claim, shown)
    except HookError as error:
        log.warning(str(error))
        return ""
    return f"; the host's consoles: {console.current_display(claim.host)}"
