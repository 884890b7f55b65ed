"""Steps: what is done to the machine, how it is undone, and how both are read back.

A Step is a value: a stage yields it without touching anything, `plan` prints it,
the journal writes it down, and only apply() and undo() change the machine. An
action looks again after it acted, because the kernel often accepts a write and
does nothing (Linux vt.c, store_bind) or less than was asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import console, holders, memory
from .errors import LostError, RefusedError, StepError
from .gpu import blocking_nodes, find, is_vfio
from .host import CONSOLES, Host

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from typing import Any

# Linux include/uapi/linux/pci_regs.h
PCI_COMMAND = 4
PCI_COMMAND_MEMORY = 0x2


class Action:
    """One change of the machine. apply() does nothing where it is so already."""

    kind = ""

    def apply(self, host: Host) -> None:
        """Make the change and read it back. Raises HostError, StepError or LostError."""
        raise NotImplementedError

    def shell(self) -> str:
        """The same as a line that root can type."""
        raise NotImplementedError

    def past(self) -> str:
        """What has been done, for the log."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unbind(Action):
    """Take the driver off a platform device."""

    device: str
    driver: str
    kind = "unbind"

    def apply(self, host: Host) -> None:
        if host.link_name(f"sys/bus/platform/devices/{self.device}/driver") != self.driver:
            return
        host.write(f"sys/bus/platform/drivers/{self.driver}/unbind", self.device)
        if host.link_name(f"sys/bus/platform/devices/{self.device}/driver") is not None:
            raise StepError(f"{self.device} is still bound to {self.driver} after an unbind")

    def shell(self) -> str:
        return f"echo {self.device} > /sys/bus/platform/drivers/{self.driver}/unbind"

    def past(self) -> str:
        return f"unbound {self.device} from {self.driver}"


@dataclass(frozen=True)
class Rebind(Action):
    """Give a firmware framebuffer back to its driver, where that is still right.

    first and last are where it drew, both inclusive; -1 when that was not known.
    """

    device: str
    driver: str
    gpu: str
    first: int
    last: int
    kind = "rebind"

    def apply(self, host: Host) -> None:
        link = f"sys/bus/platform/devices/{self.device}"
        if self.gone(host):
            raise LostError(
                f"{self.device} is gone until the next boot: the kernel removed it when"
                " something else took the GPU"
            )
        if host.link_name(f"{link}/driver") is not None:
            return
        self._check_gpu(host)
        host.write(f"sys/bus/platform/drivers/{self.driver}/bind", self.device)
        if host.link_name(f"{link}/driver") != self.driver:
            raise StepError(f"{self.device} is not bound to {self.driver} after a bind")

    def gone(self, host: Host) -> bool:
        """Whether the device is no longer there, so that only a reboot brings it back."""
        return host.real(f"sys/bus/platform/devices/{self.device}") is None

    def _check_gpu(self, host: Host) -> None:
        # efifb draws where it drew at boot, whatever has happened to the BAR since
        # (Linux efifb.c, efifb_probe): a wrong address is someone else's memory.
        driver = host.link_name(f"sys/bus/pci/devices/{self.gpu}/driver")
        if driver is not None:
            raise LostError(f"{self.device} stays unbound: {driver} drives {self.gpu} now")
        bars = memory.memory_bars(host, self.gpu)
        drawn = memory.Range(self.first, self.last)
        if self.first >= 0 and not any(bar.range.holds(drawn) for bar in bars):
            raise LostError(
                f"{self.device} stays unbound: the memory of {self.gpu} has moved away from {drawn}"
            )
        if not decodes_memory(host, self.gpu):
            raise StepError(f"memory decoding of {self.gpu} is off, so {self.device} cannot be bound")

    def shell(self) -> str:
        return f"echo {self.device} > /sys/bus/platform/drivers/{self.driver}/bind"

    def past(self) -> str:
        return f"bound {self.device} to {self.driver} again"


def decodes_memory(host: Host, gpu: str) -> bool:
    """Whether the device is awake and answers to its memory BARs (PCI_COMMAND_MEMORY)."""
    command = _command(host, gpu)
    # A device that is off or in D3cold reads as all ones.
    return command != 0xFFFF and bool(command & PCI_COMMAND_MEMORY)


def _command(host: Host, gpu: str) -> int:
    raw = host.peek(f"sys/bus/pci/devices/{gpu}/config", PCI_COMMAND, 2)
    return int.from_bytes(raw, "little")


@dataclass(frozen=True)
class Decode(Action):
    """Switch memory decoding of a GPU on or off.

    While it is off, the kernel does not see that a firmware framebuffer belongs
    to the GPU, so vfio-pci does not remove its platform device (Linux
    drivers/firmware/sysfb.c, sysfb_parent_dev and sysfb_disable, 6.12).
    """

    gpu: str
    on: bool
    kind = "decode"

    def apply(self, host: Host) -> None:
        if is_vfio(host, self.gpu) or decodes_memory(host, self.gpu) == self.on:
            return  # vfio-pci manages the bit while the VM has the GPU
        command = _command(host, self.gpu)
        if command == 0xFFFF:
            raise StepError(f"{self.gpu} does not answer: its config space reads as all ones")
        wanted = command | PCI_COMMAND_MEMORY if self.on else command & ~PCI_COMMAND_MEMORY
        config = f"sys/bus/pci/devices/{self.gpu}/config"
        host.poke(config, PCI_COMMAND, wanted.to_bytes(2, "little"))
        if decodes_memory(host, self.gpu) != self.on:
            state = "on" if self.on else "off"
            raise StepError(f"memory decoding of {self.gpu} cannot be switched {state}")

    def shell(self) -> str:
        return f"setpci -s {self.gpu} COMMAND={'2' if self.on else '0'}:2"

    def past(self) -> str:
        return f"switched memory decoding of {self.gpu} {'on' if self.on else 'off'}"


@dataclass(frozen=True)
class MapConsoles(Action):
    """Map consoles to framebuffers; indices[n - 1] is the framebuffer of console n.

    fb is the framebuffer to ask through; None leaves a console where it is.
    wait_s: how long the framebuffers may take to appear.
    """

    fb: str
    indices: tuple[int | None, ...]
    wait_s: float = 0
    kind = "map-consoles"

    def apply(self, host: Host) -> None:
        wanted = set(self.indices) - {None}
        host.wait(lambda: wanted <= _indices(host), self.wait_s)
        present = _indices(host)
        for number, index in zip(CONSOLES, self.indices):
            if index in present:
                host.map_console(self.fb, number, index)
        now = host.console_map(self.fb)
        if now is None:
            raise LostError(f"cannot map the consoles through /dev/{self.fb}: it is gone")
        for number, index, want in zip(CONSOLES, now, self.indices):
            if want in present and index != want:
                raise StepError(f"console {number} is not on fb{want} after mapping it")
        if not wanted <= present:
            raise LostError(f"the consoles stay on {self.fb}: the framebuffer they were on is gone")

    def shell(self) -> str:
        wanted = [index for index in self.indices if index is not None]
        if len(set(wanted)) == 1:
            return f"for n in $(seq 63); do con2fbmap $n {wanted[0]}; done"
        return "; ".join(
            f"con2fbmap {number} {index}"
            for number, index in zip(CONSOLES, self.indices)
            if index is not None
        )

    def past(self) -> str:
        return f"mapped the consoles through {self.fb}"


@dataclass(frozen=True)
class ShowConsoles(Action):
    """See to it that fbcon draws the consoles on some framebuffer again.

    wait_s: how long a framebuffer may take to appear.
    """

    wait_s: float = 5
    kind = "show-consoles"

    def apply(self, host: Host) -> None:
        if not host.wait(lambda: bool(console.framebuffers(host)), self.wait_s):
            raise LostError(
                "the host's console will not come back before a reboot: no framebuffer is left",
                hint="load the native driver of a GPU of the host",
            )
        if host.wait(lambda: _fbcon_bound(host), 1):
            return
        # Writing 1 to fbcon's `bind` only takes consoles from an (S) driver (vt_bind);
        # mapping one takes them from anyone (fbcon.c, set_con2fb_map), but
        # not where con2fb_map says already what is asked for. So try both.
        for vtconsole in console.vtconsoles(host):
            if vtconsole.driver == console.FBCON:
                host.write(vtconsole.bind_path, "1")
        fb = console.framebuffers(host)[0]
        if not _fbcon_bound(host) and host.exists(f"dev/{fb.name}"):
            host.map_console(fb.name, 1, fb.index)
        if not _fbcon_bound(host):
            raise StepError(f"the consoles do not come back to {fb.name}")

    def shell(self) -> str:
        return (
            "for v in /sys/class/vtconsole/*; do"
            " grep -q 'frame buffer' $v/name && echo 1 > $v/bind; done"
        )

    def past(self) -> str:
        return "saw to it that a framebuffer shows the consoles"


def _indices(host: Host) -> set[int]:
    return {fb.index for fb in console.framebuffers(host)}


def _fbcon_bound(host: Host) -> bool:
    return any(one.bound and one.driver == console.FBCON for one in console.vtconsoles(host))


@dataclass(frozen=True)
class QuietText(Action):
    """Stop the kernel from drawing text on the foreground terminal, and switching away from it.

    The only way to keep vgacon off a card that leaves, on kernels whose vfio-pci
    does not remove it (Linux vt_ioctl.c: KDSETMODE, VT_LOCKSWITCH).
    """

    tty: str
    quiet: bool
    kind = "quiet-text"

    def apply(self, host: Host) -> None:
        host.lock_consoles(self.quiet)
        host.set_text_mode(self.tty, not self.quiet)
        if host.text_mode(self.tty) == self.quiet:
            raise StepError(f"text on /dev/{self.tty} could not be {'stopped' if self.quiet else 'allowed'}")

    def shell(self) -> str:
        mode = "KD_GRAPHICS" if self.quiet else "KD_TEXT"
        switch = "VT_LOCKSWITCH" if self.quiet else "VT_UNLOCKSWITCH"
        return (
            "python3 -c 'import fcntl, os; t = os.open(\"/dev/"
            f"{self.tty}\", os.O_RDWR | os.O_NOCTTY); "
            f"fcntl.ioctl(t, {0x4B3A:#x}, {int(self.quiet)}); "
            f"fcntl.ioctl(t, {0x560B if self.quiet else 0x560C:#x}, 0)'  # {mode}, {switch}"
        )

    def past(self) -> str:
        return f"{'stopped' if self.quiet else 'allowed'} text on /dev/{self.tty}"


@dataclass(frozen=True)
class BindNative(Action):
    """Let the GPU's own driver take over from the firmware driver, which the kernel then drops."""

    gpu: str
    modalias: str
    kind = "bind-native"

    def apply(self, host: Host) -> None:
        host.run("/sbin/modprobe", "-b", self.modalias)
        if host.link_name(f"sys/bus/pci/devices/{self.gpu}/driver") is None:
            host.write("sys/bus/pci/drivers_probe", self.gpu)
        if host.link_name(f"sys/bus/pci/devices/{self.gpu}/driver") is None:
            raise StepError(f"no driver took {self.gpu} after modprobe {self.modalias}")

    def shell(self) -> str:
        return f"modprobe -b {self.modalias} && echo {self.gpu} > /sys/bus/pci/drivers_probe"

    def past(self) -> str:
        return f"bound {self.gpu} to its own driver"


@dataclass(frozen=True)
class Rescan(Action):
    """Remove the GPU from the PCI bus and find it again, at another address in memory."""

    gpu: str
    kind = "rescan"

    def apply(self, host: Host) -> None:
        device = f"sys/bus/pci/devices/{self.gpu}"
        if host.exists(device):
            host.write(f"{device}/remove", "1")
        host.write("sys/bus/pci/rescan", "1")
        if not host.wait(lambda: host.exists(f"{device}/resource"), 5):
            raise StepError(f"{self.gpu} did not come back on the PCI bus after a rescan")

    def shell(self) -> str:
        return f"echo 1 > /sys/bus/pci/devices/{self.gpu}/remove; echo 1 > /sys/bus/pci/rescan"

    def past(self) -> str:
        return f"removed {self.gpu} from the PCI bus and found it again"


@dataclass(frozen=True)
class AwaitClosed(Action):
    """Wait until no process has the GPU's nodes open; name those that still do.

    nodes are those of its driver, such as "dev/fb0"; none means those it has when
    the step is taken. strict: a process that may not be looked into counts too.
    """

    gpu: str
    nodes: tuple[str, ...]
    wait_s: float
    strict: bool
    kind = "await-closed"

    def apply(self, host: Host) -> None:
        def closed() -> bool:
            holding = holders.find(host, self.nodes or blocking_nodes(find(host, (self.gpu,))[0]))
            found[:] = [one for one in holding if one.pid or self.strict]
            return not found

        found: list[holders.Holder] = []
        if not host.wait(closed, self.wait_s):
            who = ", ".join(str(holder) for holder in found)
            raise RefusedError(
                f"{self.gpu} is in use by {who}",
                hint="stop what is named, or raise `holders: {wait_s: N}`",
            )

    def shell(self) -> str:
        return f"# wait up to {self.wait_s:g} s until nobody has {self._what()} open"

    def _what(self) -> str:
        return " or ".join(f"/{node}" for node in self.nodes) or "its nodes"

    def past(self) -> str:
        return f"nobody has {self._what()} open"


_ACTIONS: dict[str, type[Action]] = {
    action.kind: action
    for action in (
        Unbind, Rebind, Decode, MapConsoles, ShowConsoles, QuietText, BindNative, Rescan,
        AwaitClosed,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One thing that a stage wants done, and its way back.

    why is a clause for people. do is None where only the way back needs an
    action. undo is None where nothing is to be undone; loses then says what the
    person will not have any more, if anything.
    """

    stage: str
    gpu: str
    why: str
    do: Action | None
    undo: Action | None
    loses: str = ""

    def to_json(self) -> dict[str, Any]:
        """The step as JSON values; from_json() reads it back."""
        return {
            "stage": self.stage,
            "gpu": self.gpu,
            "why": self.why,
            "do": _pack(self.do),
            "undo": _pack(self.undo),
            "loses": self.loses,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        """The step that to_json() wrote. Raises ValueError when it is not one."""
        try:
            return cls(
                stage=str(value["stage"]),
                gpu=str(value["gpu"]),
                why=str(value["why"]),
                do=_unpack(value["do"]),
                undo=_unpack(value["undo"]),
                loses=str(value["loses"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a step: {error}") from error


def _pack(action: Action | None) -> dict[str, Any] | None:
    return None if action is None else {"kind": action.kind, **vars(action)}


def _unpack(value: dict[str, Any] | None) -> Action | None:
    if value is None:
        return None
    fields = {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}
    return _ACTIONS[str(fields.pop("kind"))](**fields)


