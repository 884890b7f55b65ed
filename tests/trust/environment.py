"""Environment variables, each set to something hostile, for the real gate and launcher.

Not tried is what no program can be defended from, because it takes effect before the first
line is read: the loader's LD_*, and bash's SHELLOPTS. libvirt hands a hook nothing but
LC_ALL=C and, of its own, LD_PRELOAD, LD_LIBRARY_PATH, PATH, HOME, USER, LOGNAME and TMPDIR
(src/util/vircommand.c, virCommandAddEnvPassCommon), all of which root has set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fakehost import FakeHost, snapshot
from tests.gate import ENVIRONMENT, ROOT, write_gate
from tests.libvirt_xml import domain_xml
from tests.trust.vm import GPU, fresh
from vfio_console_hook.log import SNAPSHOT_LOG

# No single encoding but UTF-8 can write it.
NAME = "Büro 绿"
SHELLS = (("dash",), ("bash",), ("busybox", "sh"))
_LAUNCH = "status = main(sys.argv[1:])"
_TIMES = re.compile(r'"(since|time|took_s)": [0-9.e-]+|"(hook|worker)": \[\d+, \d+\]|in \d+ ms')


def variables(evil: Path) -> dict[str, dict[str, str]]:
    """What is set, by a name for people; evil is a directory full of traps."""
    bin_, site, script = str(evil / "bin"), str(evil / "site"), str(evil / "script")
    one_each = {
        "PATH": bin_, "ENV": script, "BASH_ENV": script, "PYTHONSTARTUP": script,
        "PYTHONPATH": site, "PYTHONHOME": "/nowhere", "PYTHONUSERBASE": site,
        "PYTHONINSPECT": "1", "PYTHONVERBOSE": "1", "PYTHONDEBUG": "1", "PYTHONDEVMODE": "1",
        "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "latin-1",
        "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "1", "PYTHONMALLOC": "x",
        "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(evil / "made"),
        "PYTHONPLATLIBDIR": "x", "PYTHONEXECUTABLE": script, "PYTHONTRACEMALLOC": "9",
        "PYTHONBREAKPOINT": "os.abort", "PYTHONCASEOK": "1", "PYTHONSAFEPATH": "",
        "IFS": "/", "CDPATH": "/", "PS4": "$(touch made)", "POSIXLY_CORRECT": "1",
        "PWD": "/nowhere",
        "HOME": str(evil), "TMPDIR": str(evil / "made"), "USER": "mallory", "LOGNAME": "mallory",
        "TERM": "\x1b[2J", "COLUMNS": "1", "LINES": "1", "NO_COLOR": "1", "FORCE_COLOR": "1",
        "PAGER": script, "EDITOR": script, "SHELL": script, "TZ": ":/nowhere", "LANGUAGE": "tr",
        "LIBVIRT_DEFAULT_URI": "test:///default", "VIRSH_DEFAULT_CONNECT_URI": "test:///default",
        "XDG_CONFIG_HOME": str(evil), "XDG_RUNTIME_DIR": str(evil), "XDG_CACHE_HOME": str(evil),
        "DESTDIR": str(evil), "MODPROBE_OPTIONS": "-n", "SYSTEMD_LOG_LEVEL": "debug",
        "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere", "NOTIFY_SOCKET": str(evil / "made"),
        "MAWKBINMODE": "7", "WHINY_USERS": "1", "MAWK_LONG_OPTIONS": "error",
        "AWKPATH": str(evil), "AWKLIBPATH": str(evil), "AWKBUFSIZE": "1", "awk": script,
        "PYTHON": script, "PROGRAM": script, "RUN_DIR": str(evil), "xml": "<hostdev", "read": "no",
        "BASH_FUNC_cat%%": "() { touch made; }", "BASH_FUNC_printf%%": "() { touch made; }",
        "BASH_FUNC_awk%%": "() { touch made; }", "BASH_FUNC_sh%%": "() { touch made; }",
        "BASH_FUNC_[%%": "() { touch made; }", "BASH_FUNC_command%%": "() { touch made; }",
        "BASH_FUNC_claimed%%": "() { return 1; }", "BASH_FUNC_refuse%%": "() { touch made; }",
        "BASH_FUNC_unset%%": "() { touch made; }", "BASH_FUNC_exit%%": "() { touch made; }",
    }  # fmt: skip
    found = {name: {name: value} for name, value in one_each.items()}
    found["nothing at all"] = dict.fromkeys(ENVIRONMENT, "")
    locales = evil / "locales"
    if _made_locale(locales):
        for name in ("LC_ALL", "LC_CTYPE", "LANG"):
            place = {"LOCPATH": str(locales), name: "tr_TR"}
            # LC_ALL goes before the others, if it is there.
            found[f"{name}=tr_TR.ISO-8859-9"] = {"LC_ALL": "", **place}
    return found


def _made_locale(locales: Path) -> bool:
    """Make one in which neither all names can be written, nor I is the great i."""
    locales.mkdir()
    if shutil.which("localedef") is None:
        return False
    words = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", str(locales / "tr_TR")]
    subprocess.run(words, capture_output=True)
    return (locales / "tr_TR/LC_CTYPE").exists()


def tried(quick: bool, directory: Path) -> Iterator[tuple[str, str]]:
    """Each variable and shell, with what was wrong, "" for nothing."""
    evil = _traps(directory / "evil")
    found = variables(evil)
    shells = [shell for shell in SHELLS if shutil.which(shell[0])]
    for shell in shells:
        usual = _effects(shell, ENVIRONMENT, directory)
        if "claims" not in usual or "released;" not in usual:
            yield f"{shell[0]}: nothing set", f"the hook did nothing: {usual[-300:]}"
        for name, changed in found.items():
            # What begins with BASH_ is for bash alone, and the others are for all.
            if quick and (name.startswith("BASH_")) != (shell[0] == "bash"):
                continue
            environment = {**ENVIRONMENT, **changed}
            if not environment["LC_ALL"]:
                del environment["LC_ALL"]
            effects = _effects(shell, environment, directory)
            wrong = "" if effects == usual else _difference(usual, effects)
            yield f"{shell[0]}: {name}", wrong or _sprung(evil, directory)


def _traps(evil: Path) -> Path:
    """Programs and modules that leave a file when they are run."""
    sprung = evil / "sprung"
    for folder in ("bin", "site", "made"):
        (evil / folder).mkdir(parents=True)
    script = f"#!/bin/sh\n: >'{sprung}'\n"
    programs = [f"bin/{name}" for name in ("cat", "awk", "mawk", "timeout", "python3", "sh")]
    for name in ("script", *programs):
        (evil / name).write_text(script)
        (evil / name).chmod(0o755)
    module = f"open({str(sprung)!r}, 'w').close()\n"
    for name in ("lxml", "yaml", "json", "sitecustomize", "usercustomize", "fcntl", "stat"):
        (evil / f"site/{name}.py").write_text(module)
    return evil


def _sprung(evil: Path, directory: Path) -> str:
    made = [*evil.glob("sprung"), *(evil / "made").iterdir(), *directory.glob("made")]
    for one in made:
        shutil.rmtree(one) if one.is_dir() else one.unlink()
    return f"it made {[path.name for path in made]}" if made else ""


def _effects(shell: tuple[str, ...], environment: dict[str, str], directory: Path) -> str:
    """All that a prepare, the start of another VM and a release did, as one text."""
    host = fresh("efifb-6.12", directory)
    gate = _gate(host, directory)
    effects = ""
    for operation, name in (("prepare", NAME), ("start", "other"), ("release", NAME)):
        sub = "end" if operation == "release" else "begin"
        words = [*shell, str(gate), name, operation, sub, "-"]
        words[0] = str(shutil.which(words[0]))
        done = subprocess.run(
            words if shell[0] != "bash" else ["sh", *words[1:]],
            executable=words[0],
            input=domain_xml(GPU, name=name, event=operation), capture_output=True,
            env={os.fsencode(key): os.fsencode(value) for key, value in environment.items()},
            cwd=directory, timeout=60,
        )  # fmt: skip
        effects += f"{operation}: {done.returncode} {done.stdout!r} {done.stderr!r}\n"
        effects += _all_of(host)
    return effects


def _gate(host: FakeHost, directory: Path) -> Path:
    """The real gate and launcher, on this machine."""
    text = (ROOT / "hooks/launch.py").read_text(encoding="utf-8")
    fake = (
        # The launcher has taken its own directory off the path.
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "    from tests.fakehost import FakeHost\n"
        f"    status = main(sys.argv[1:], None, FakeHost({host.root!r}))"
    )
    if text.count(_LAUNCH) != 1:
        raise ValueError(f"hooks/launch.py has no single {_LAUNCH}")
    here = '__file__.rpartition("/")[0] or "."'
    text = text.replace(_LAUNCH, fake).replace(here, repr(str(ROOT)))
    program = directory / "launch"
    program.write_text(text, encoding="utf-8")
    run = host.path("run/vfio-console-hook")
    return write_gate(directory / "qemu", python=sys.executable, program=str(program), run_dir=run)


def _all_of(host: FakeHost) -> str:
    """The machine, what the hook keeps, and what it logged, without times and numbers."""
    text = json.dumps(snapshot(host), sort_keys=True)
    for folder, _, files in sorted(os.walk(os.fsencode(host.path("run")))):
        text += f"{os.path.relpath(folder, os.fsencode(host.root))!r} {os.stat(folder).st_mode:o}\n"
        for name in sorted(files):
            full = os.path.join(folder, name)
            status = os.lstat(full)
            link = os.path.islink(full)
            content = os.readlink(full) if link else Path(os.fsdecode(full)).read_bytes()
            text += f"{name!r} {status.st_mode:o} {content!r}\n"
    return _TIMES.sub("", text) + (host.read(SNAPSHOT_LOG) or "")


def _difference(usual: str, effects: str) -> str:
    for one, other in zip(usual.splitlines(), effects.splitlines()):
        if one != other:
            return f"{other[:200]} instead of {one[:200]}"
    return "more or less was done"
