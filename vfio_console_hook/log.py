"""The log: one line for one fact, to syslog (`journalctl -t vfio-console-hook`).

On a recorded machine the lines go to a file below its root instead. A log that
cannot be written never stops anything.
"""

from __future__ import annotations

import os

from .host import Host

IDENT = "vfio-console-hook"
RECORDED_LOG = f"var/log/{IDENT}.log"
LEVELS = ("debug", "info", "warning", "error")


class Log:
    """Lines about one VM, from a level upwards."""

    def __init__(self, host: Host, vm: str, level: str = "info") -> None:
        self.host = host
        # A VM's name may hold anything: keep the log one line a fact.
        self.vm = vm.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
        self.level = LEVELS.index(level)

    def debug(self, text: str) -> None:
        self._write("debug", text)

    def info(self, text: str) -> None:
        self._write("info", text)

    def warning(self, text: str) -> None:
        self._write("warning", text)

    def error(self, text: str) -> None:
        self._write("error", text)

    def _write(self, level: str, text: str) -> None:
        if LEVELS.index(level) < self.level:
            return
        line = f"{self.vm}: {text}"
        if self.host.root == "/":
            _to_syslog(level, line)
        else:
            _to_file(self.host.path(RECORDED_LOG), level, line)


def _to_syslog(level: str, line: str) -> None:
    import syslog  # only on a running machine

    priority = {
        "debug": syslog.LOG_DEBUG,
        "info": syslog.LOG_INFO,
        "warning": syslog.LOG_WARNING,
        "error": syslog.LOG_ERR,
    }[level]
    syslog.openlog(IDENT, syslog.LOG_PID, syslog.LOG_DAEMON)
    # A NUL or a lone surrogate would make syslog() raise.
    syslog.syslog(priority, line.replace("\0", "").encode("utf-8", "replace").decode())


def _to_file(path: str, level: str, line: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{level}: {line}\n")
    except OSError:
        return  # as syslog() does without a daemon: the log is news, not a record
