"""What must hold after each call of the program; each raises Violation where it does not."""

from __future__ import annotations

from tests.fakehost import FakeHost
from vfio_console_hook.claims.step import Step
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.status import overview
from vfio_console_hook.errors import HostError

from . import watch
from .calls import Called
from .state import SERVICE, Life, State

_CONSOLE_STEPS = {
    "map-consoles", "return-consoles", "show-consoles", "leave-framebuffers", "quiet-text",
    "free-framebuffers",
}  # fmt: skip


class Violation(AssertionError):
    """Something that the program promises did not hold."""


def changes(state: State, called: Called, addresses: set[str], steps: tuple[Step, ...]) -> None:
    """Every change is about one of the addresses, or listed by one of the steps."""
    listed = " ".join(action.shell() for step in steps for action in (step.do, step.undo) if action)
    kinds = {action.kind for step in steps for action in (step.do, step.undo) if action}
    for kind, path, text in called.changes:
        what = f"{kind} {path} {text}"
        about = set(watch.ADDRESS.findall(what))
        about |= {state.firmware.get(one, one) for one in watch.PLATFORM.findall(what)}
        in_use = {one: state.busy[one] for one in about if one in state.busy}
        if in_use:
            raise Violation(f"touched what a VM has open: {what} ({in_use})")
        for one in about - addresses:
            if one not in listed:
                raise Violation(f"touched what is another's: {what} ({sorted(addresses)})")
        if not about and not _is_listed(kind, what, listed, kinds):
            raise Violation(f"changed what no step listed: {what}")


def _is_listed(kind: str, what: str, listed: str, kinds: set[str]) -> bool:
    """Whether a change that is about no device belongs to a step."""
    if kind == "ioctl" or "vtconsole" in what:
        return bool(kinds & _CONSOLE_STEPS)
    if "pci/rescan" in what:
        return "pci/rescan" in listed
    if kind == "signal":
        return True
    if "modprobe" in what:
        return bool(kinds & {"reserve", "bind-native", "unload-modules", "load-modules",
                             "bind-vfio", "probe-aperture", "end-probe"})  # fmt: skip
    if "rmmod" in what:
        return "unload-modules" in kinds and what.split()[-1] in listed.split()
    if "nvidia-smi" in what:  # switches persistence mode off before an unload or an unbind
        return bool(kinds & {"unload-modules", "unbind-native"})
    if "systemctl" in what:
        return SERVICE in what and SERVICE in listed
    return False


def portraits(
    state: State, before: dict[str, watch.Portrait], addresses: set[str], steps: tuple[Step, ...]
) -> None:
    """What is not at these addresses is as it was before, unless a driver was loaded for it."""
    after = watch.portraits(state.host)
    loaded = " ".join(
        step.do.shell() for step in steps if step.do and step.do.kind == "bind-native"
    )
    lost = watch.listed_losses(steps)  # by binding to vfio-pci, where a person asks for that
    for name, portrait in before.items():
        owner = state.firmware.get(name, name)
        if owner in addresses or owner in loaded or name in lost:
            continue
        if after.get(name) != portrait:
            raise Violation(f"{name} stays and was {portrait}, now {after.get(name)}")


def claims(state: State) -> None:
    """No GPU is in two open claims, and status shows each claim."""
    now = [one for one in state.claims.values() if one.boot == f"boot-{state.boots}"]
    for number, one in enumerate(now):
        for other in now[number + 1 :]:
            both = {s.gpu for s in one.open} & {s.gpu for s in other.open}
            if both:
                raise Violation(f"two VMs hold {both}")
    status = overview.current(FakeHost(str(state.root)))
    shown = {one.uuid for one in status.claims}
    if shown != set(state.claims) or status.unreadable or status.unseen:
        raise Violation(f"status shows {shown} of {set(state.claims)}, {status.unreadable}")
    for holding in status.claims:
        if holding.stale == (state.claims[holding.uuid].boot == f"boot-{state.boots}"):
            raise Violation(f"status takes {holding.vm} for one of another boot")


def processes(state: State) -> None:
    """No QEMU was ended."""
    killed = (state.host.tree.read("fake/killed") or "").split()
    for life in state.lives.values():
        alive = state.host.exists(f"proc/{life.pid}/stat")
        has = any(name == life.guest.name for name in state.owner.values())
        if str(life.pid) in killed or (life.runs and has and not alive):
            raise Violation(f"the program ended QEMU of {life.guest.name}")


def owners(state: State, life: Life, called: Called) -> None:
    """After a prepare that was done: no other VM has, through us, one of these GPUs.

    What libvirt has given to one without us, it will not give to this one.
    """
    for address in life.guest.devices:
        owner = state.lives.get(state.owner.get(address, ""), life)
        ours = owner is not life and owner.prepared and address in owner.guest.devices
        if ours and (called.changes or address in state.setting.gpus):
            raise Violation(f"{life.guest.name} was given {address} of {owner.guest.name}")
        for other in state.lives.values():
            if other is not life and other.prepared and other.path[:1] == ["detach"] and (
                address in other.guest.devices and address in state.setting.gpus
                and not state.is_virtual(address)
            ):  # fmt: skip
                raise Violation(f"{address} was promised to {other.guest.name} and this one")


def as_planned(state: State, life: Life, made: plan.Plan | HostError, called: Called) -> None:
    """prepare does what plan said."""
    if isinstance(made, HostError):
        if not called.status or called.changes or made.text not in called.err:
            raise Violation(f"plan said {made}, and prepare ended with {called}")
        return
    held = called.after.get(life.guest.uuid)
    said = f"plan said {made.verdict} ({made.reason or made.after})"
    # That libvirt would refuse, plan says too; the hook may let it where it has nothing to do.
    lets_it = "on_failure: start" in life.guest.settings or not called.changes
    if made.verdict == plan.REFUSE and not called.status and lets_it:
        return
    if (made.verdict == plan.REFUSE) != bool(called.status):
        raise Violation(f"{said}, and prepare ended with {called.status}: {called.err}")
    expected = made.verdict == plan.START and not made.reason
    if expected and (held is None or held.steps != made.steps):
        raise Violation(f"{said}, and prepare did {held and held.steps}")
    if not expected and held is not None:
        raise Violation(f"{said}, and prepare left a claim")
    # plan adds what would help, as there is still time for it.
    if called.status and made.reason.partition("; the VM starts")[0] not in called.err:
        raise Violation(f"{said}, and prepare said {called.err}")
