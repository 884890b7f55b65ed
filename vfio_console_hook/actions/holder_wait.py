"""What AwaitClosed does: waits until the nodes of GPUs are closed, and ends who may be ended."""

from __future__ import annotations

from ..errors import HostError, RefusedError
from ..machine import nodes
from ..machine.gpu import gpus_among
from ..machine.holders import Search, listed, pauses
from ..machine.host import Host

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from ..machine.holder import Holder
    from .holder_kill import Entries
    from .holders import AwaitClosed

# What is kept of an event's time for SIGKILL: only a process in state D takes longer.
_GONE_S = 0.5


def close(host: Host, wait: AwaitClosed) -> str:
    """Wait until no process that counts has the nodes open; a remark for the log, or "".

    Raises RefusedError when one still has.
    """
    search = Search(host, wait.nodes or nodes.nodes_to_close(host, gpus_among(host, wait.gpus)))
    found = _holders_left(host, wait, search)
    held = counted = _counted(wait, found)
    ended = ""
    entries = _entries(host, wait) if held else None
    if entries and entries.names:
        held, ended = _end(host, wait, search, entries)
    if entries and held:
        raise _refusal(host, wait, held, counted, entries, ended)
    unknown = [one.name for one in found if one.unknown]
    remark = f"could not inspect {listed(unknown)}" if unknown else ""
    return "; ".join(filter(None, [ended, remark]))


def refusal_for(host: Host, wait: AwaitClosed, found: list[Holder]) -> RefusedError | None:
    """The refusal if these processes never close the nodes; None if the VM starts then."""
    counted = _counted(wait, found)
    if not counted:
        return None
    entries = _entries(host, wait)
    held = [one for one in _users(counted) if not entries.may_end(one)]
    return _refusal(host, wait, held, counted, entries) if held else None


def _counted(wait: AwaitClosed, found: list[Holder]) -> list[Holder]:
    """Those of the processes that keep the VM from starting.

    A sound server closes a card that disappears (sound.py).
    """
    return [one for one in found if not one.sound_server and (wait.strict or not one.unknown)]


def _users(held: list[Holder]) -> list[Holder]:
    """Without those that keep the GPU open for a session, if a process of a session has it.

    Where systemd does not run the host, one that has a card open is of a session.
    """
    users = [one for one in held if not one.keeper]
    sessions = any(one.cgroup.startswith("/user.slice/") for one in users)
    cards = any(node.startswith("/dev/dri/card") for one in users for node in one.nodes)
    by_systemd = any(one.keeper and one.command.startswith("systemd") for one in held)
    return users if sessions or (cards and not by_systemd) else held


def _holders_left(host: Host, wait: AwaitClosed, search: Search) -> list[Holder]:
    """The processes that hold the nodes after wait_s, or as soon as none of them counts."""
    found = search.holders()
    ending_s = wait.grace_s + _GONE_S if wait.terminate or wait.desktop else 0.0
    for pause_s in pauses(host, host.time_for(wait.wait_s, ending_s)):
        held = [one.pid for one in _counted(wait, found)]
        if not held:
            break
        _wait_for_an_end(host, held, pause_s)
        # Looking at all processes takes a while: as long as one of these still holds
        # a node, it does not matter which others do.
        found = _counted(wait, search.among(held)) or search.holders()
    return found


def _end(
    host: Host, wait: AwaitClosed, search: Search, entries: Entries
) -> tuple[list[Holder], str]:
    """End the holders if all may be ended; those that are left, and which were ended."""
    found = _counted(wait, search.holders())
    held = _users(found)
    protected = [one for one in held if not entries.may_end(one)]
    if protected:
        return protected, ""
    remarks = []
    from . import holder_kill

    try:
        stopped = entries.stop_sessions(held)
    except HostError as error:
        # One that has ended meanwhile is not loaded; of the others the processes are ended below.
        remarks.append(error.text)
    else:
        remarks += [f"stopped {' and '.join(stopped)}"] if stopped else []
    ended = holder_kill.end(host, search, held, host.time_for(wait.grace_s))
    remarks += [f"ended {listed(one.name for one in ended)}"] if ended else []
    keepers = [one.pid for one in found if one.keeper]
    host.wait(lambda: not search.among(keepers), wait.grace_s)
    return _counted(wait, search.holders()), "; ".join(remarks)


def _entries(host: Host, wait: AwaitClosed) -> Entries:
    """What may be ended: the configuration's, and what is left of a desktop that was stopped."""
    from . import holder_kill  # 2 ms, which only a GPU that is held costs

    return holder_kill.Entries(
        host, (*wait.terminate, *((holder_kill.DESKTOP,) if wait.desktop else ()))
    )


def _for_none(wait: AwaitClosed, entries: Entries, held: list[Holder]) -> list[str]:
    """The entries of `holders.terminate` that are for none of these processes."""
    return [
        name for name in wait.terminate if not any(entries.matches(one, name) for one in held)
    ]


def _refusal(
    host: Host, wait: AwaitClosed, held: list[Holder], counted: list[Holder], entries: Entries,
    ended: str = "",
) -> RefusedError:  # fmt: skip
    """The refusal for the processes that are left of those that counted."""
    # Only for a VM that is refused: it loads the reader of the configuration.
    from . import holder_hint

    be = "is" if len(wait.gpus) == 1 else "are"
    if all(one.unknown for one in held):
        be = "may be"
    before = f" ({ended})" if ended else ""
    users = _users(held)
    kept = any(one.keeper for one in counted)
    hint = holder_hint.hint(host, users, wait, entries, kept=kept)
    for_none = _for_none(wait, entries, counted)
    if for_none:
        hint += f"; `holders.terminate` has {listed(for_none)}, but that is none of these"
    return RefusedError(f"{' and '.join(wait.gpus)} {be} in use by {listed(users)}{before}", hint)


def _wait_for_an_end(host: Host, pids: list[int], timeout_s: float) -> None:
    """Wait until one of the processes ends, at most timeout_s."""
    handles: list[int] = []
    try:
        for pid in pids:
            handle = host.open_process(pid)
            if handle is None:
                return  # it has ended already
            handles.append(handle)
        host.wait_for_end(handles, timeout_s)
    except HostError:
        host.wait_for_end((), timeout_s)
    finally:
        for handle in handles:
            host.close_process(handle)
