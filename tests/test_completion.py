"""Completion in bash, zsh and fish: what each shell offers, compared with the parser."""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gate import ROOT
from tests.test_style import tool
from vfio_console_hook import cli

SHARE = ROOT / "config/share"
FILES = {
    "bash": "bash-completion/completions/vfio-console-hook",
    "zsh": "zsh/site-functions/_vfio-console-hook",
    "fish": "fish/vendor_completions.d/vfio-console-hook.fish",
}
DEVICES = "/sys/bus/pci/devices"

BASH = r"""
source "$FILE"
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:' COMP_LINE=$LINE_TYPED COMP_POINT=${#LINE_TYPED}
_vfio_console_hook
printf '%s\n' "${COMPREPLY[@]}"
"""

FISH = r"""
source "$FILE"
complete -C "$LINE_TYPED" | string split -f 1 \t
"""

# zsh completes only in a terminal. What it is about to offer goes through compadd. Nothing
# may be typed before its line editor is there: until then the terminal itself would take
# the Ctrl-U, and forget the line.
ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1= PS2=; fpath=(${FILE:h} \$fpath); autoload -Uz compinit; compinit -u -D"
zpty -w shell 'compadd() {
    if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
        local -a found; builtin compadd -A found "$@"; print -rl -- "<<"${^found}">>"
    fi
    builtin compadd "$@"
}
bindkey "^I" complete-word
zle-line-init() { print REA""DY }
zle -N zle-line-init'
zpty -r shell out '*READY*'
zpty -w -n shell "$LINE_TYPED"$'\t'
zpty -w -n shell $'\C-u'"print DO\"\"NE"$'\n'
zpty -r shell out '*DONE*'
print -r -- "$out"
"""


@dataclass(frozen=True)
class Shell:
    """A shell with our completion, on a host with two VMs, two GPUs and a sound card."""

    name: str
    top: Path

    def offers(self, line: str) -> set[str]:
        """The words that the shell offers for Tab at the end of line."""
        script, options = {
            "bash": (BASH, ("--norc", "-c")),
            "zsh": (ZSH, ("-f", "-c")),
            "fish": (FISH, ("-N", "-c")),
        }[self.name]
        done = subprocess.run(
            [tool(self.name), *options, script],
            env={
                "PATH": f"{self.top}/bin:/usr/bin:/bin",
                "HOME": str(self.top),
                "TERM": "xterm",
                "FILE": str(self.file),
                "LINE_TYPED": line,
            },
            cwd=self.top / "work",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        lines = done.stdout.replace("\r", "").splitlines()
        if self.name == "zsh":
            lines = [one.rpartition("<<")[2][:-2] for one in lines if one.endswith(">>")]
        return {one for one in lines if one}

    @property
    def file(self) -> Path:
        return self.top / Path(FILES[self.name]).name


@pytest.fixture(params=FILES)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    made = Shell(request.param, tmp_path)
    tool(made.name)
    text = (SHARE / FILES[made.name]).read_text(encoding="utf-8")
    assert (text.count(DEVICES), text.count("timeout 2 ")) == (1, 1)
    # A machine that runs many tests at once may be slow.
    text = text.replace(DEVICES, str(tmp_path / "devices")).replace("timeout 2 ", "timeout 60 ")
    made.file.write_text(text, encoding="utf-8")
    for address, kind in (("0000:01:00.0", "0x030000"), ("0000:01:00.1", "0x040300")):
        (tmp_path / "devices" / address).mkdir(parents=True)
        (tmp_path / "devices" / address / "class").write_text(f"{kind}\n")
    for address, kind in (("0000:0a:00.0", "0x038000"), ("0000:c6:00.0", "0x120000")):
        (tmp_path / "devices" / address).mkdir()
        (tmp_path / "devices" / address / "class").write_text(f"{kind}\n")
    (tmp_path / "bin").mkdir()
    virsh = tmp_path / "bin/virsh"
    virsh.write_text(
        '#!/bin/sh\n[ "$*" = "-r -c qemu:///system list --all --name" ] || exit 1\n'
        "printf '%s\\n' win11 debian ''\n"
    )
    virsh.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/win11.xml").write_text("")
    return made


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the parser has no commands")


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options that people use; the others are for processes that the program starts."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings


@pytest.mark.parametrize("shell_name", ["zsh", "fish"])
def test_each_command_is_offered_with_its_summary(shell_name: str) -> None:
    text = (SHARE / FILES[shell_name]).read_text(encoding="utf-8")

    text = text.replace("'\\''", "'").replace("\\'", "'")
    assert [one.name for one in cli.COMMANDS if f"{one.summary}'" not in text] == []


def test_all_commands_are_offered(shell: Shell) -> None:
    assert shell.offers("vfio-console-hook ") == set(commands())


def test_the_options_before_a_command_are_offered(shell: Shell) -> None:
    assert shell.offers("vfio-console-hook -") == set(options(cli.parser()))


@pytest.mark.parametrize("name", commands())
def test_the_options_of_a_command_are_offered_and_no_others(shell: Shell, name: str) -> None:
    assert shell.offers(f"vfio-console-hook {name} -") == set(options(commands()[name]))


def test_a_command_is_found_after_options(shell: Shell) -> None:
    words = "vfio-console-hook --connect qemu:///system recover --"

    assert {"--force", "--wait"} <= shell.offers(words)


@pytest.mark.parametrize("words", ["plan", "check-config --vm"])
def test_vms_are_offered_where_one_is_expected(shell: Shell, words: str) -> None:
    assert shell.offers(f"vfio-console-hook {words} ") == {"win11", "debian"}


@pytest.mark.parametrize("command", ["take", "give", "take --vfio 0000:01:00.0"])
def test_gpus_are_offered_where_an_address_is_expected(shell: Shell, command: str) -> None:
    found = shell.offers(f"vfio-console-hook {command} ")

    assert found == {"0000:01:00.0", "0000:0a:00.0", "0000:c6:00.0"}


@pytest.mark.parametrize("words", ["plan --xml", "plan --svg", "--root", "record", "check-config"])
def test_files_are_offered_where_one_is_expected(shell: Shell, words: str) -> None:
    assert "win11.xml" in shell.offers(f"vfio-console-hook {words} win11.x")


def test_without_virsh_nothing_is_offered_and_nothing_is_printed(shell: Shell) -> None:
    (shell.top / "bin/virsh").write_text("#!/bin/sh\necho error >&2\nexit 1\n")

    assert shell.offers("vfio-console-hook plan ") == set()


def test_bash_completes_an_address_though_colons_end_its_words(tmp_path: Path) -> None:
    import pty

    bash = tool("bash")
    text = (SHARE / FILES["bash"]).read_text(encoding="utf-8")
    (tmp_path / "completion").write_text(text.replace(DEVICES, str(tmp_path / "devices")))
    (tmp_path / "devices/0000:01:00.0").mkdir(parents=True)
    (tmp_path / "devices/0000:01:00.0/class").write_text("0x030000\n")

    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(bash, ["bash", "--norc", "-i"], {"TERM": "dumb"})
    typed = (
        'source ./completion; vfio-console-hook() { echo "got: $*."; }\n'
        "vfio-console-hook take 0000:01\t\n"
        "exit\n"
    )
    os.write(terminal, typed.encode())
    output = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break  # the shell has ended
        if not part:
            break
        output += part
    os.waitpid(pid, 0)

    assert "got: take 0000:01:00.0." in output.decode()


def test_every_completion_can_be_read_by_its_shell(shell: Shell) -> None:
    done = subprocess.run(
        [tool(shell.name), "-n", shell.file], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
