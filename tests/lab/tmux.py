"""A terminal in the machine, with a person's shell in it: tmux, whose screen can be read."""

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
# The shell tells aside when a command began and ended, and with what status, so that
# nothing of it is on the screen.
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
    """What a command left on the screen, from its prompt on, and how it ended.

    seen has the lines as a person sees them, cut where the terminal wrapped them;
    whole has them as they were written; coloured is seen with its escape sequences.
    status is 124 for a command that did not end in time.
    """

    command: str
    status: int
    seconds: float
    seen: str
    whole: str
    coloured: str

    @property
    def output(self) -> str:
        """What the command wrote, without the line that was typed and the next prompt."""
        lines = self.whole.split("\n")[1:]
        return "\n".join(lines[:-1] if lines and lines[-1].startswith(PROMPT.strip()) else lines)

    def wrapped(self) -> list[str]:
        """The lines of the output that the terminal had to wrap."""
        return [line for line in self.output.split("\n") if len(line) > COLUMNS]

    def write(self, directory: Path, name: str) -> None:
        """Keep it as NAME.txt, and with its colours as NAME.ansi."""
        (directory / f"{name}.txt").write_text(self.seen + "\n")
        (directory / f"{name}.ansi").write_text(self.coloured + "\n")


class Terminal:
    """A terminal of 80 columns with a shell that waits for what is typed."""

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
        """Type a command on an empty screen, wait for the next prompt, read the screen."""
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
        """What stands there after words and the tabulator, twice; the line is given up then."""
        self._clear()
        self._keys(f"-l {shlex.quote(words)}")
        self._keys("Tab Tab")
        # Nothing tells when the shell has answered.
        self._machine.run("sleep 4")
        seen = self.read()[0]
        self._machine.run(f"rm -f {ENDED}")
        self._keys("C-c")
        self._wait(30)
        return seen

    def read(self) -> tuple[str, str, str]:
        """The screen with all that scrolled out of it: as seen, unwrapped, with colours."""
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
        told = self._machine.run(f"cat {ENDED}; cat {BEGAN}").stdout.split()
        status, ended, began = told
        return int(status), float(ended) - float(began)


def slug(command: str) -> str:
    """A command as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", command.lower().replace("vfio-console-hook", "")).strip("-")
