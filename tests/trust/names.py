"""Names that a VM could have, and everywhere that they could lead."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from tests.fakehost import FakeHost, FakeLibvirt, hold, snapshot
from tests.libvirt_xml import UUID, domain_xml
from tests.trust.process import in_a_process
from tests.trust.vm import GPU, NAME, event, fresh
from vfio_console_hook import cli
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME
from vfio_console_hook.claims.history import STATUS
from vfio_console_hook.config.load import DIRECTORY, VMS
from vfio_console_hook.log import SNAPSHOT_JOURNAL, SNAPSHOT_LOG

# What XML 1.0 can hold, and so what libvirt could hand over at most.
NAMES = (
    "../../etc/passwd", "../evil", "/etc/passwd", "..", ".", "a/../../b", "%s%n%d", "{0.__class__}",
    "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "', "| touch pwned",
    "a\nb", "\nVM=other\nMESSAGE=forged", "a\tb", "-rf", "--help", "=", "+unnamed", "*",
    " ", "a  b", "~", "\\", "\\n", "a" * 300, "\u20ac" * 100, "\u202egnp.exe", "\u2028x\u2029",
    "\x85x", "\x9b2J", "<b>&amp;</b>", "]]>", "\U0001f5a5", "e\u0301", "\ufeff", "#", "a,b;c",
    'x"} 1', "null", "\u0130I\u0131i", "win11.yaml", "x.lock", ".win11",
)  # fmt: skip
# Those of which all commands have to speak for every change; the others take as long.
_SHORT = ("$(touch pwned)", '"; touch pwned; "', "a\nb", "\u202egnp.exe", 'x"} 1', "-rf", "\x9b2J")
# And what no XML can: the names of processes, and the words that libvirt calls us with.
BARE = ("a\r\nb", "\x1b[2J", "\x1b]0;x\x07", "a\x08b", "\udcff\udcfe", "\x7f", "\x01")
# What is in our texts for people in `...` is there to be copied into a shell.
_COPIED = re.compile(r"`([^`]*)`")


def tried(quick: bool, directory: Path) -> Iterator[tuple[str, str]]:
    """Each name and what it was given as, with what was wrong, "" for nothing."""
    canary = directory / "around"
    canary.mkdir()
    before = os.getcwd()
    os.chdir(canary)
    usual = _life(NAME, directory)[1]
    for name in NAMES:
        host, logged, wrong = _life(name, directory)
        yield (
            f"a VM called {name!a}",
            (wrong or _logged(host, name, logged, usual) or _around(host, directory)),
        )
        if not quick or name in _SHORT:
            yield f"the output about a VM called {name!a}", _said(name, directory)
        yield f"the configuration for a VM called {name!a}", _configured(name, directory)
    for name in (*NAMES, *BARE):
        if "\0" not in name and name not in (".", ".."):
            yield f"a process called {name!a}", _held(name, directory)
    for name in BARE:
        ended = event(fresh("efifb-6.12", directory), "prepare", name, domain_xml(GPU))
        yield f"an event for {name!a}", ended.wrong(0)
    yield "somewhere else", _around(fresh("efifb-6.12", directory), directory)
    os.chdir(before)


def _life(name: str, directory: Path) -> tuple[FakeHost, int, str]:
    """A VM's whole life: the machine, how many lines were logged, and what was wrong."""
    host = fresh("efifb-6.12", directory)
    before, libvirt = snapshot(host), FakeLibvirt(host)
    wrong = event(host, "prepare", name).wrong(0)
    link = f"={name}" if "/" not in name and len(os.fsencode(name)) < 255 else "+unnamed"
    wrong = wrong or _files(host, {link}, {UUID})
    libvirt.detach(GPU)
    for operation in ("start", "started"):
        wrong = wrong or event(host, operation, name).wrong(0)
    libvirt.reattach(GPU)
    wrong = wrong or event(host, "release", name).wrong(0) or _files(host, set(), set())
    after = {path: what for path, what in snapshot(host).items() if "driver_override" not in path}
    known = {path: what for path, what in before.items() if "driver_override" not in path}
    if after != known:
        wrong = wrong or f"the machine changed: {sorted(after.items() ^ known.items())[:3]}"
    return host, (host.read(SNAPSHOT_LOG) or "").count("\n") + 1, wrong


def _files(host: FakeHost, links: set[str], claims: set[str]) -> str:
    """What is wrong with the names of all files of the hook's."""
    found = {path: set(os.listdir(host.path(path))) for path in ("run", BY_NAME, CLAIMS, STATUS)}
    wanted = {
        "run": {"vfio-console-hook", "vfio-console-hook.status"},
        BY_NAME: links, CLAIMS: claims, STATUS: {UUID},
    }  # fmt: skip
    return "" if found == wanted else f"there is {found}, not {wanted}"


def _logged(host: FakeHost, name: str, logged: int, usual: int) -> str:
    """What is wrong with the log: its lines, and the journal's entries."""
    text = Path(host.path(SNAPSHOT_LOG)).read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]
    if logged != usual or len(lines) != usual:
        return f"{len(lines)} lines were logged instead of {usual}"
    if not all(line.isprintable() for line in lines):
        return f"a line that is not printable: {lines}"
    entries = list(_entries(Path(host.path(SNAPSHOT_JOURNAL)).read_bytes()))
    if len(entries) != usual:
        return f"{len(entries)} entries in the journal instead of {usual}"
    for entry in entries:
        if entry.get("VM") != name or entry.get("UUID") != UUID or "\n" in entry["MESSAGE"]:
            return f"an entry of the journal is {entry}"
    return ""


def _entries(content: bytes) -> Iterator[dict[str, str]]:
    """Entries in the journal's export format (systemd, docs/JOURNAL_EXPORT_FORMATS.md)."""
    entry: dict[str, str] = {}
    at = 0
    while at < len(content):
        end = content.index(b"\n", at)
        line, at = content[at:end], end + 1
        if not line:
            yield entry
            entry = {}
        elif b"=" in line:
            key, _, value = line.partition(b"=")
            entry[key.decode()] = value.decode()
        else:
            size = int.from_bytes(content[at : at + 8], "little")
            entry[line.decode()] = content[at + 8 : at + 8 + size].decode()
            at += 8 + size + 1


def _said(name: str, directory: Path) -> str:
    """What is wrong with what the commands say of a VM that holds a GPU, or is refused one."""
    host = fresh("efifb-6.12", directory)
    event(host, "prepare", name)
    other = domain_xml(GPU, name="other", uuid=UUID.replace("0f", "1f", 1))
    refused = event(host, "prepare", "other", other)
    wrong = refused.wrong(1, "belongs to the VM ")
    xml, picture = directory / "vm.xml", directory / "vm.svg"
    xml.write_bytes(domain_xml(GPU, name=name))
    _known_to_libvirt(host, name)
    for words in (
        ["status"], ["plan", "--xml", str(xml)], ["doctor"], ["recover", "--wait", "0"],
        ["plan", "--xml", str(xml), "--svg", str(picture)],
        ["check-config", "--vm", name] if name[:1] != "-" else ["check-config"],
    ):  # fmt: skip
        text = _printed(host, words, directory)
        if not all(line.isprintable() for line in text.split("\n")):
            wrong = wrong or f"`{words[0]}` prints {text!a}"
        wrong = wrong or (_shell(name, text) if words == ["doctor"] else "")
    whole = json.loads(_printed(host, ["status", "--json"], directory))
    if [one["vm"] for one in whole["holds"]] != [name]:
        wrong = wrong or "status --json has another name"
    metrics = _printed(host, ["status", "--prometheus"], directory)
    wrong = wrong or _metrics(name, metrics)
    title = etree.parse(str(picture)).findtext("{http://www.w3.org/2000/svg}title") or ""
    return wrong if title.isprintable() else wrong or f"the picture's title is {title!r}"


def _known_to_libvirt(host: FakeHost, name: str) -> None:
    """Twice, starting with the host, and one of them not to be read: doctor has much to say."""
    for number, uuid in enumerate((UUID, UUID.replace("0f", "2f", 1)), start=1):
        text = domain_xml(GPU, name=name, uuid=uuid).decode()
        parts = {"name": name, "uuid": uuid, "xml": text, "live": "", "autostart": "1"}
        for part, content in parts.items():
            host.tree.put(f"libvirt/{number}/{part}", content)
    host.tree.put("libvirt/3/name", name)
    for part in ("uuid", "live", "autostart"):
        host.tree.put(f"libvirt/3/{part}", "")
    host.tree.put("libvirt/3/xml", "<domain/>")


def _printed(host: FakeHost, words: list[str], directory: Path) -> str:
    """What a command prints, on both outputs; it says nothing of Python."""
    out, err = directory / "out", directory / "err"
    ended = in_a_process(lambda: cli.main(words, FakeHost(host.root)), err, out)
    text = out.read_text(encoding="utf-8", errors="surrogateescape")
    if ended.status not in (0, 1, 2) or "Traceback" in ended.stderr:
        return f"\0{ended}"
    return text + ("" if "--json" in words or "--prometheus" in words else ended.stderr)


def _shell(name: str, text: str) -> str:
    """What is wrong with the commands that doctor proposes: the name is one word in them."""
    if not name.isprintable() or "`" in name:
        return ""  # printed in a form that cannot be copied, or not distinct from the quotes
    lines = [line for line in _COPIED.findall(text) if line.startswith("virsh dumpxml ")]
    for line in lines:
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        if words[-1:] != [name] or len(words) != 4:
            return f"doctor proposes {line!r}"
    return "" if lines else "doctor proposes nothing"


def _metrics(name: str, text: str) -> str:
    pair = r'[a-z]+="(?:[^"\\\n]|\\[\\n"])*"'
    sample = re.compile(rf"# .*|[a-z_]+(?:\{{{pair}(?:,{pair})*\}})? -?[0-9.]+")
    for line in text.split("\n")[:-1]:
        if not sample.fullmatch(line):
            return f"a metric is {line!r}"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return "" if f'vm="{escaped}"' in text else "the metrics have another name"


def _configured(name: str, directory: Path) -> str:
    """What is wrong with the file that is taken for the VM's: none but one of its very name."""
    host = fresh("efifb-6.12", directory)
    root = Path(host.root)
    for path in ("etc", DIRECTORY, VMS):
        (root / path).mkdir(exist_ok=True)
        (root / path).chmod(0o755)
    # Where a path would lead that was made of the name.
    end = Path(os.path.normpath(f"{host.root}/{VMS}/{name}.yaml"))
    if end.parent == root / VMS or root not in end.parents or len(name) > 200:
        return ""
    for one in reversed(end.parents):
        if root in one.parents and not one.exists():
            one.mkdir()
            one.chmod(0o755)
    end.write_text("enabled: false\n")
    end.chmod(0o644)
    event(host, "prepare", name)
    return "" if host.exists(f"{CLAIMS}/{UUID}") else f"/{end.relative_to(root)} was obeyed"


def _held(name: str, directory: Path) -> str:
    """What is wrong with what is said of a process that has the GPU open."""
    host = fresh("native-6.1", directory)
    hold(host, "dev/fb0", pid=77, command="x")
    comm = Path(host.path("proc/77/comm"))
    comm.write_bytes(os.fsencode(name)[:15] + b"\n")
    xml = directory / "vm.xml"
    xml.write_bytes(domain_xml(GPU))
    ended = event(host, "prepare")
    wrong = ended.wrong(1, "(77)")
    log = Path(host.path(SNAPSHOT_LOG)).read_text(encoding="utf-8")
    plan = _printed(host, ["plan", "--xml", str(xml)], directory)
    for text in (log, plan):
        if not all(line.isprintable() for line in text.split("\n")):
            wrong = wrong or f"not printable: {text!a}"
    return wrong


def _around(host: FakeHost, directory: Path) -> str:
    """What was made anywhere but where it belongs."""
    made = {path.name for path in directory.iterdir()}
    strange = made - {"around", "machine", "stderr", "vm.xml", "vm.svg", "out", "err"}
    strange |= {path.name for path in (directory / "around").iterdir()}
    return f"there is {sorted(strange)}" if strange else ""
