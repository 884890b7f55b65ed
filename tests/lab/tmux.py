"""A terminal in the machine with an interactive shell: tmux, whose screen can be read."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from .machine import Machine

COLUMNS, LINES = 80, 24
TMUX = "tmux -L lab"
CONFIG = "/run/lab-tmux.conf"
SHELL = "/run/lab-tmux.bashrc"
BEGAN, ENDED = "/run/lab-tmux.began", "/run/lab-tmux.ended"
PROMPT = "root@lab:~# "
ESCAPE = "\033"

_CONFIG = f"""\
set -g status off
set -g history-limit 20000
set -g default-terminal tmux-256color
set -g default-command "exec bash --rcfile {SHELL} -i"
"""
# The shell writes begin, end and status of each command to files, so that the screen has
# only the command's output.
_SHELL = f"""\
cd /root
[ ! -r /usr/share/bash-completion/bash_completion ] || . /usr/share/bash-completion/bash_completion
unset MANPAGER PAGER NO_COLOR
PS1='{PROMPT}'
PS0='$(printf %s "$EPOCHREALTIME" >{BEGAN})'
PROMPT_COMMAND='printf "%s %s\\n" "$?" "$EPOCHREALTIME" >{ENDED}.new; mv {ENDED}.new {ENDED}'
"""


@dataclass(frozen=True)
class Screen:
    """The screen after a command, from its prompt on, and how the command ended.

    seen has the lines of the terminal, cut where it wrapped them; whole has the lines as
    they were written; coloured is seen with escape sequences. status is 124 for a command
    that did not end in time.
    """

    command: str
    status: int
    seconds: float
    seen: str
    whole: str
    coloured: str

    @property
    def output(self) -> str:
        """The output of the command, without the typed line and the next prompt."""
        lines = self.whole.split("\n")[1:]
        return "\n".join(lines[:-1] if lines and lines[-1].startswith(PROMPT.strip()) else lines)

    def wrapped(self) -> list[str]:
        """The lines of the output that the terminal wrapped."""
        return [line for line in self.output.split("\n") if len(line) > COLUMNS]

    def write(self, directory: Path, name: str) -> None:
        """Write the screen to NAME.txt, and with colours to NAME.ansi."""
        (directory / f"{name}.txt").write_text(self.seen + "\n")
        (directory / f"{name}.ansi").write_text(self.coloured + "\n")


class Terminal:
    """A terminal of 80 columns with a shell."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        machine.put(CONFIG, _CONFIG.encode())
        machine.put(SHELL, _SHELL.encode())
        machine.run(f"rm -f {ENDED}")
        machine.run(
            f"env -u NO_COLOR {TMUX} -f {CONFIG} new-session -d -s lab -x {COLUMNS} -y {LINES}"
        )
        self._wait(60)

    def type(self, command: str, timeout_s: int = 120) -> Screen:
        """Type a command on an empty screen and wait for the next prompt; the screen."""
        self._clear()
        self._machine.run(f"rm -f {BEGAN} {ENDED}")
        self._keys(f"-l {shlex.quote(command)}")
        self._keys("Enter")
        ended = self._wait(timeout_s)
        status, seconds = self._how() if ended else (124, float(timeout_s))
        screen = Screen(command, status, seconds, *self.read())
        if not ended:
            self._keys("C-c")
            self._wait(30)
        return screen

    def complete(self, words: str) -> str:
        """Type words and press the tab key twice; the screen then. The line is discarded."""
        self._clear()
        self._keys(f"-l {shlex.quote(words)}")
        self._keys("Tab Tab")
        # Nothing signals that the shell has answered.
        self._machine.run("sleep 4")
        seen = self.read()[0]
        self._machine.run(f"rm -f {ENDED}")
        self._keys("C-c")
        self._wait(30)
        return seen

    def read(self) -> tuple[str, str, str]:
        """The screen and its history: as seen, unwrapped, with colours."""
        texts = []
        for option in ("", "-J", "-e"):
            text = self._machine.run(f"{TMUX} capture-pane -p {option} -S - -t lab").stdout
            texts.append("\n".join(line.rstrip() for line in text.rstrip().split("\n")))
        return texts[0], texts[1], texts[2]

    def _clear(self) -> None:
        self._keys("C-l")
        self._machine.run(f"sleep 0.5; {TMUX} clear-history -t lab")

    def _keys(self, keys: str) -> None:
        self._machine.run(f"{TMUX} send-keys -t lab {keys}")

    def _wait(self, timeout_s: int) -> bool:
        tries = f"n=$((n + 1)); [ $n -lt {timeout_s * 4} ] || exit 124; sleep 0.25"
        return self._machine.run(f"n=0; until [ -e {ENDED} ]; do {tries}; done", timeout_s * 3).ok

    def _how(self) -> tuple[int, float]:
        """The status of the last command, and its seconds by the machine's own clock."""
        status, ended, began = self._machine.run(f"cat {ENDED}; cat {BEGAN}").stdout.split()
        return int(status), float(ended) - float(began)


def slug(command: str) -> str:
    """The name of a file for a command."""
    return re.sub(r"[^a-z0-9]+", "-", command.lower().replace("vfio-console-hook", "")).strip("-")
