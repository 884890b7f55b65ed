"""Config: the settings for one VM, each with its default, its good values and a line for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..machine.pci import full_address
from ..value import Value

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

    from .service import Service


def _boolean() -> tuple[str, Callable[[object], bool | None]]:
    return "true or false", lambda value: value if isinstance(value, bool) else None


def _one_of(*words: str) -> tuple[str, Callable[[object], str | None]]:
    return (
        f"one of {', '.join(words)}",
        lambda value: value if isinstance(value, str) and value in words else None,
    )


def _some_of(*words: str) -> tuple[str, Callable[[object], tuple[str, ...] | None]]:
    def read(value: object) -> tuple[str, ...] | None:
        if not isinstance(value, list) or any(word not in words for word in value):
            return None
        return tuple(value) if len(set(value)) == len(value) else None

    return f"a list of some of {', '.join(words)}, each once", read


def _whole_number(low: int, high: int) -> tuple[str, Callable[[object], int | None]]:
    # type() and not isinstance(): true and false are integers to Python.
    return (
        f"a whole number from {low} to {high}",
        lambda value: value if type(value) is int and low <= value <= high else None,
    )


def _number(low: int, high: int) -> tuple[str, Callable[[object], float | None]]:
    return (
        f"a number from {low} to {high}",
        lambda value: (
            float(value) if type(value) in (int, float) and low <= value <= high else None
        ),
    )


def _console_place() -> tuple[str, Callable[[object], str | None]]:
    def read(value: object) -> str | None:
        if not isinstance(value, str) or value in ("auto", "never"):
            return value if isinstance(value, str) else None
        return full_address(value)

    return "auto, never, or the PCI address of a GPU such as 02:00.0", read


def _command() -> tuple[str, Callable[[object], str | None]]:
    def read(value: object) -> str | None:
        if not isinstance(value, str):
            return None
        line = value.strip() == value and value.isprintable()
        return value if value == NONE or (value[:1] == "/" and line) else None

    return f"{NONE}, or a command that begins with the full path of its program", read


NONE = "none"

# A word that begins a command, and no name of a process. Patterns that few events need are
# compiled where they are used: each takes 0.2 ms.
_PROGRAM = r"/|(?:sudo|kill|killall|pkill|systemctl|loginctl)\s"


def _names() -> tuple[str, Callable[[object], tuple[str, ...] | None]]:
    def read(value: object) -> tuple[str, ...] | None:
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            return None
        return None if any(re.match(_PROGRAM, one) for one in value) else tuple(value)

    return "a list of names", read


def _services() -> tuple[str, Callable[[object], tuple[Service, ...] | None]]:
    def read(value: object) -> tuple[Service, ...] | None:
        from .service import service_of  # takes 0.7 ms to load, and few VMs have any

        found = [service_of(one) for one in value] if isinstance(value, list) else [None]
        return None if None in found else tuple(one for one in found if one)

    return ("a list of units, or of groups of name, active, stop and start", read)


CONSOLE_STAGES = ("fbcon", "drm_aperture", "fbdev", "vgacon")


def _setting(kind: tuple[str, Callable[[object], Any]], default: object, doc: str) -> Any:
    """A field of Config: the good values and their reader, the default, one line for people."""
    wanted, read = kind
    return field(default=default, metadata={"wanted": wanted, "read": read, "doc": doc})


@dataclass(frozen=True, eq=False, repr=False)
class Holders(Value):
    """The group "holders": what is done about processes that hold a GPU."""

    wait_s: float = _setting(
        _number(0, 600), 5.0, "How many seconds to wait for processes that have the GPU open."
    )
    terminate: tuple[str, ...] = _setting(
        _names(),
        (),
        "Processes, units or sessions that are ended if they have the GPU open after that.",
    )
    grace_s: float = _setting(
        _number(0, 60), 5.0, "How many seconds a process gets between SIGTERM and SIGKILL."
    )


@dataclass(frozen=True, eq=False, repr=False)
class Release(Value):
    """The group "release": what is done once the VM has ended."""

    native: str = _setting(
        _one_of("leave", "load"),
        "leave",
        "Whether to load a GPU's own driver after the VM if something keeps it off the host.",
    )
    retry: str = _setting(
        _one_of("never", "reset"),
        "never",
        "Whether to reset a GPU once and probe again if its own driver does not come back.",
    )


@dataclass(frozen=True, eq=False, repr=False)
class Config(Value):
    """The settings for one VM; Config() has the defaults."""

    enabled: bool = _setting(
        _boolean(),
        True,
        "Whether anything is done for the VM; false leaves its GPUs to libvirt alone.",
    )
    stages: tuple[str, ...] = _setting(
        _some_of(*CONSOLE_STAGES),
        CONSOLE_STAGES,
        "The console drivers that are taken off a GPU; they always run in this order.",
    )
    bootfb: str = _setting(
        _one_of("aperture", "refuse", "native", "rescan"),
        "aperture",
        "What to do when the kernel does not free the memory of simple-framebuffer.0 (BOOTFB).",
    )
    keep_console: str = _setting(
        _console_place(),
        "auto",
        "Whether the host's consoles move to the framebuffer of another GPU that stays.",
    )
    host_driver: str = _setting(
        _one_of("leave", "load"),
        "leave",
        "Whether to load the driver of a host GPU whose firmware console vfio-pci would remove.",
    )
    apu: str = _setting(
        _one_of("refuse", "allow"),
        "refuse",
        "Whether a GPU that is part of an AMD processor may be taken off its driver.",
    )
    services: tuple[Service, ...] = _setting(
        _services(),
        (),
        "What is stopped, if it runs, before the GPU is taken, and started again afterwards.",
    )
    holders: Holders = Holders()
    release: Release = Release()
    on_failure: str = _setting(
        _one_of("abort", "start"), "abort", "What happens to the VM when its GPUs cannot be freed."
    )
    on_refusal: str = _setting(
        _command(), NONE, "What is run, as root and without a shell, when a VM is refused."
    )
    announce: tuple[str, ...] = _setting(
        _some_of("login", "session"),
        ("login", "session"),
        "Where a refusal is shown to people who did not see the error of virsh.",
    )
    timeout_s: int = _setting(
        _whole_number(1, 600), 60, "How many seconds one event may take before it is given up."
    )
    log_level: str = _setting(
        _one_of("debug", "info", "warning", "error"),
        "info",
        "The least important lines that are written to the log.",
    )

    def within_timeout(self) -> Config:
        """The same, but with waits limited so that the rest of an event has time.

        Half of timeout_s is for stopping services, and a quarter for undoing everything.
        """
        share = 4 if self.services else 3
        holders = replace(
            self.holders,
            wait_s=min(self.holders.wait_s, self.timeout_s / share),
            grace_s=min(self.holders.grace_s, self.timeout_s / 10),
        )
        return replace(self, holders=holders)
