"""The log: one line for one fact, to the journal (`journalctl -t vfio-console-hook`).

Each line has the VM, the phase and the GPUs. systemd's journal gets them as fields too
(`journalctl -t vfio-console-hook VM=win11 PHASE=release`):

    VM      the VM's name as libvirt has it
    UUID    its uuid
    PHASE   prepare, start, started, reconnect or release
    GPU     a PCI address, once for each

Without a journal, syslog gets the lines. On a snapshot they go to files below its root:
the lines to SNAPSHOT_LOG, and with their fields to SNAPSHOT_JOURNAL. A log that cannot be
written never stops an event.

logging is not used: with its handlers it takes 6 ms to load, its SysLogHandler has no fields,
and systemd's own handler is in a package that not every host has.
"""

from __future__ import annotations

import copy
import os

from .errors import cut
from .machine.host import Host

IDENT = "vfio-console-hook"
SNAPSHOT_LOG = f"var/log/{IDENT}.log"
SNAPSHOT_JOURNAL = f"var/log/{IDENT}.export"
JOURNAL = "/run/systemd/journal/socket"
LEVELS = ("debug", "info", "warning", "error")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # syslog(3)
_DAEMON = 3  # the facility, of syslog(3)

# A datagram must fit into the socket's buffer, by default 208 KiB (net.core.wmem_max).
LONGEST = 8192
_LONGEST_NAME = 1024
# libvirtd waits for us with the VM locked, so a hung journal must not hold us up.
_PATIENCE_S = 1.0


class Log:
    """Lines about one VM, from a level upwards; phase, uuid and gpus are empty if not known."""

    def __init__(
        self,
        host: Host,
        vm: str,
        level: str = "info",
        *,
        phase: str = "",
        uuid: str = "",
        gpus: tuple[str, ...] = (),
    ) -> None:
        self.host = host
        self.vm = vm
        self.level = level
        self.phase = phase
        self.uuid = uuid
        self.gpus = gpus

    def about(self, phase: str, uuid: str, gpus: tuple[str, ...]) -> Log:
        """The log of the same VM for one event."""
        one = copy.copy(self)
        one.phase, one.uuid, one.gpus = phase, uuid, gpus
        return one

    def debug(self, text: str) -> None:
        self._write("debug", text)

    def done(self, facts: list[str]) -> None:
        """Write what has been done as one line, so that one run of a VM takes at most ten."""
        if facts:
            self.info("; ".join(facts))

    def info(self, text: str) -> None:
        self._write("info", text)

    def warning(self, text: str) -> None:
        self._write("warning", text)

    def error(self, text: str) -> None:
        self._write("error", text)

    def _write(self, level: str, text: str) -> None:
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        line = self._line(text)
        fields = (
            ("MESSAGE", line),
            ("PRIORITY", str(_PRIORITIES[level])),
            ("SYSLOG_IDENTIFIER", IDENT),
            ("SYSLOG_FACILITY", str(_DAEMON)),
            ("VM", cut(self.vm, _LONGEST_NAME)),
            ("UUID", self.uuid),
            ("PHASE", self.phase),
            *(("GPU", gpu) for gpu in self.gpus),
        )
        fields = tuple((name, value) for name, value in fields if value)
        if self.host.root != "/":
            _to_files(self.host, f"{level}: {line}\n", fields)
        elif not to_journal(JOURNAL, fields):
            _to_syslog(level, line)

    def _line(self, text: str) -> str:
        where = " ".join(word for word in (self.phase, *self.gpus) if word)
        name = printable(cut(self.vm, _LONGEST_NAME))
        return f"{name}: {where + ': ' if where else ''}{printable(cut(text, LONGEST))}"


def printable(text: str) -> str:
    """The text with each character that cannot be printed escaped as in Python, such as "\\n".

    So a VM's name, which may hold anything, cannot begin a line or control a terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def to_journal(path: str, fields: tuple[tuple[str, str], ...]) -> bool:
    """Send one entry to the journal's socket at path; whether a journal is there.

    With a journal that hangs the entry is lost: syslog() would wait for the same journal.
    """
    # The module socket takes 1.3 ms more to load, and nothing that it adds is used here.
    import _socket

    try:
        sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:
            sender.settimeout(_PATIENCE_S)
            sender.sendto(datagram(fields), path)
        finally:
            sender.close()
    except (_socket.timeout, BlockingIOError):
        return True
    except OSError:
        return False
    return True


def datagram(fields: tuple[tuple[str, str], ...]) -> bytes:
    """Fields as the journal reads them (systemd, docs/JOURNAL_NATIVE_PROTOCOL.md).

    A value with a newline is sent with its length, so it cannot begin another field.
    """
    content = b""
    for name, value in fields:
        raw = value.encode("utf-8", "backslashreplace")
        if "\n" in value:
            content += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        else:
            content += name.encode() + b"=" + raw + b"\n"
    return content


def _to_syslog(level: str, line: str) -> None:
    import syslog  # only where there is no journal

    syslog.openlog(IDENT, syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(_PRIORITIES[level], line)


def _to_files(host: Host, line: str, fields: tuple[tuple[str, str], ...]) -> None:
    # Entries that end with an empty line are the journal's export format, so
    # systemd-journal-remote reads the file (systemd, docs/JOURNAL_EXPORT_FORMATS.md).
    contents = {SNAPSHOT_LOG: line.encode(), SNAPSHOT_JOURNAL: datagram(fields) + b"\n"}
    try:
        for path, content in contents.items():
            os.makedirs(os.path.dirname(host.path(path)), exist_ok=True)
            with open(host.path(path), "ab") as file:
                file.write(content)
    except OSError:
        return  # as syslog() does without a daemon
