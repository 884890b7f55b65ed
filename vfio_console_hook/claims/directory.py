"""The claims of all VMs: where they are, their names for the gate, and the lock.

/run/vfio-console-hook/             0700, gone with the boot it speaks of
    lock                            flock, held while claims are read or made
    consoles                        flock, held while the host's consoles are placed
    claims/UUID                     one VM, see claim.py
    by-name/=NAME -> ../claims/UUID a VM's, for the gate, which starts no Python to look
    by-name/+unnamed                some claim's name is too long for a link
    kernel                          answers that hold for the whole boot
/run/vfio-console-hook.status/      readable by everyone, see history.py, losses.py and notices.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ClaimError, HookError
from ..machine import runfiles
from ..machine.host import Host
from ..machine.runfiles import RUN
from .claim import CLAIMS, Claim, parse
from .step import Step

BY_NAME = f"{RUN}/by-name"
_UNNAMED = f"{BY_NAME}/+unnamed"
_CONSOLE_LOCK = "consoles"
_LOCK_S = 10.0


class Claims:
    """The claims of all VMs on a machine."""

    def __init__(self, host: Host) -> None:
        self.host = host

    # -- looking

    def find(self, uuid: str) -> Claim | None:
        """The claim of one VM, or None. Raises ClaimError when it cannot be read."""
        text = runfiles.read(self.host, f"{CLAIMS}/{uuid}")
        return None if text is None else parse(self.host, uuid, text)

    def named(self, name: str) -> Claim | None:
        """The claim of the VM of that name, or None. Raises ClaimError.

        What a person took by hand is not found: its name may be that of a VM, too.
        """
        if _linkable(name):
            uuid = runfiles.link_name(self.host, f"{BY_NAME}/={name}")
            claim = self.find(uuid) if uuid else None
        else:
            claim = next((one for one in self.readable() if one.name == name), None)
        # A crash may leave the link of a VM's former name.
        return None if claim is None or claim.by_hand or claim.name != name else claim

    def uuids(self) -> tuple[str, ...]:
        """The VMs that hold something. Raises HostError, ClaimError."""
        return runfiles.names(self.host, CLAIMS)

    def readable(self, about: tuple[str, ...] = ()) -> tuple[Claim, ...]:
        """The claims of all VMs that can be read.

        about: only those that name one of these PCI addresses, if there are any.
        """
        found = []
        wanted = tuple(address.encode() for address in about)
        # What cannot be read or understood must not keep other VMs from starting; `status`
        # names it.
        for uuid, text in runfiles.contents(self.host, CLAIMS):
            # To understand a claim takes seven times as long as to read it, and others
            # may be waiting for the lock.
            if wanted and not any(one in text for one in wanted):
                continue
            try:
                found.append(parse(self.host, uuid, text))
            except ClaimError:
                continue
        return tuple(found)

    def others(self, uuid: str, boot: str, about: tuple[str, ...] = ()) -> list[Claim]:
        """The readable claims of other VMs than uuid in this boot; about as for readable()."""
        return [one for one in self.readable(about) if one.uuid != uuid and one.boot == boot]

    # -- changing

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock. Only for reading and making claims: never around a step.

        Raises ClaimError when another process keeps it for seconds, which none of ours does.
        """
        for path in (RUN, CLAIMS, BY_NAME):
            runfiles.make_directory(self.host, path)
        with self._held("lock", "claims"):
            yield

    @contextmanager
    def console_lock(self) -> Iterator[None]:
        """Hold the lock of who places the host's consoles (events/placing.py). Raises ClaimError.

        Another process keeps it for seconds only if the kernel is stuck with the consoles.
        """
        with self._held(_CONSOLE_LOCK, "host's consoles"):
            yield

    def await_consoles(self) -> None:
        """Wait until who places the consoles now has done so. Raises ClaimError."""
        if self.host.exists(f"{RUN}/{_CONSOLE_LOCK}"):
            with self.console_lock():
                return

    @contextmanager
    def _held(self, name: str, what: str) -> Iterator[None]:
        handle = runfiles.open_file(self.host, f"{RUN}/{name}", os.O_RDWR | os.O_CREAT)
        try:
            deadline = time.monotonic() + _LOCK_S
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    raise ClaimError(
                        f"another process keeps the lock of the {what}, /{RUN}/{name}",
                        hint=f"see which one with `fuser /{RUN}/{name}`",
                    )
                time.sleep(0.005)
            yield
        finally:
            os.close(handle)

    def make(self, claim: Claim, inherited: list[Step]) -> None:
        """Make the file of a new claim, with steps it takes over from another one.

        The caller holds the lock. Raises ClaimError.
        """
        # First the name: without it the gate would never call us to give the claim back. A
        # person needs no gate, and must not take the name from a VM.
        if not claim.by_hand:
            self._link(claim.name, claim.uuid)
        try:
            claim.create(inherited)
        except ClaimError:
            self._unlink(claim.name, claim.uuid)
            raise

    def drop(self, claim: Claim) -> None:
        """Give a claim up. Raises ClaimError."""
        # Locked, or the name of a claim that is made anew for the same VM would go.
        with self.lock():
            try:
                os.unlink(self.host.path(claim.path))
            except OSError as error:
                raise runfiles.failed("remove", claim.path, error) from error
            claim.dropped = True
            # The claim had its name as long as it was there, or the gate would not see it.
            self._unlink(claim.name, claim.uuid)
            try:
                self.tidy()
            except HookError:
                return  # the claim is gone, and what an earlier crash left is in no one's way

    def take_name(self, name: str, uuid: str) -> None:
        """Let no claim of another VM go by the name of one that starts now. Raises ClaimError.

        libvirt has one VM of a name: the other one was removed, and its claim is recover's.
        """
        link = f"{BY_NAME}/={name}"
        if not _linkable(name) or self.host.readlink(link) in (None, _link_to(uuid)):
            return
        with self.lock():
            if self.host.readlink(link) != _link_to(uuid):
                runfiles.remove(self.host, link)

    def tidy(self) -> None:
        """Remove what a crash has left: drafts, and names without a claim.

        The caller holds the lock. Raises ClaimError.
        """
        links = {_link_to(uuid) for uuid in self.uuids()}
        for folder in (RUN, CLAIMS, BY_NAME):
            for name in self.host.list(folder):
                if name.startswith("."):
                    runfiles.remove(self.host, f"{folder}/{name}")
        for name in self.host.list(BY_NAME):
            link = f"{BY_NAME}/{name}"
            if name.startswith("=") and self.host.readlink(link) not in links:
                runfiles.remove(self.host, link)
        if not links:
            runfiles.remove(self.host, _UNNAMED)

    def _link(self, name: str, uuid: str) -> None:
        if not _linkable(name):
            runfiles.write(self.host, _UNNAMED, "")
            return
        draft = self.host.path(f"{BY_NAME}/.{uuid}.{os.getpid()}")
        try:
            # Of a process that was killed and had our number.
            if os.path.lexists(draft):
                os.unlink(draft)
            os.symlink(_link_to(uuid), draft)
            os.rename(draft, self.host.path(f"{BY_NAME}/={name}"))
        except OSError as error:
            raise runfiles.failed("link", f"{BY_NAME}/={name}", error) from error

    def _unlink(self, name: str, uuid: str) -> None:
        link = f"{BY_NAME}/={name}"
        # A VM made anew under the same name may have the link by now.
        if _linkable(name) and self.host.readlink(link) == _link_to(uuid):
            runfiles.remove(self.host, link)


def _locked(handle: int) -> bool:
    import fcntl  # only where a lock is taken

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _linkable(name: str) -> bool:
    return "/" not in name and len(os.fsencode(name)) < 255  # NAME_MAX, with the "="


def _link_to(uuid: str) -> str:
    return f"../claims/{uuid}"
