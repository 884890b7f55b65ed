"""What is fuzzed: for each kind of input, how the program is given it, and what to begin with."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import events, snapshots
from tests.fakehost import FakeHost
from tests.gate import ROOT
from tests.libvirt_xml import UUID, domain_xml
from vfio_console_hook import cli, domain, hook
from vfio_console_hook.claims.claim import CLAIMS
from vfio_console_hook.claims.directory import BY_NAME
from vfio_console_hook.commands.plan import plan
from vfio_console_hook.commands.plan import text as plan_text
from vfio_console_hook.commands.status import command
from vfio_console_hook.commands.status import overview as held
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.config import load
from vfio_console_hook.config.settings import Config
from vfio_console_hook.errors import HookError
from vfio_console_hook.events import undo
from vfio_console_hook.log import Log
from vfio_console_hook.machine import pci
from vfio_console_hook.machine.snapshot import unpack

from . import tokens
from .enclosure import Enclosed, EnclosedSent, Outside, kept_inside

CORPUS = ROOT / "tests/trust/corpus"
Work = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """make, given an empty directory, returns what takes one input. tokens are for the fuzzer."""

    name: str
    make: Callable[[Path], Work]
    seeds: Callable[[], Iterable[bytes]]
    tokens: tuple[str, ...]
    longest: int = 4096


def _machine(directory: Path, name: str) -> Enclosed:
    root = directory / name
    snapshots.unpack_into(name, root)
    return Enclosed(str(root))


def _plan(host: Enclosed, vm: domain.Domain) -> None:
    terminal = Terminal()
    plan_text.text(plan.plan_for(host, vm, Config()), terminal)
    command.status_text(held.current(host), terminal)


# -- the XML


def _xml(directory: Path) -> Work:
    host = _machine(directory, "two-gpus-6.12")

    def work(data: bytes) -> None:
        vm = domain.parse(data)
        for one in vm.hostdevs:
            if not _is_address(one.address):
                raise Outside(f"no address: {one.address!r}")
        if len(vm.hostdevs) < 4:
            _plan(host, vm)

    return work


def _is_address(text: str) -> bool:
    """Whether it is what sysfs calls a PCI device; anything else could be a path."""
    rest = text.replace(":", "").replace(".", "")
    return len(text) < 20 and rest.isalnum() and rest.isascii()


def _xml_seeds() -> Iterator[bytes]:
    for path in sorted((ROOT / "tests/domains").glob("*.xml")):
        yield path.read_bytes()
    yield domain_xml("0000:01:00.0", "0000:02:00.0")
    yield (
        b"<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>"
        b"<uuid>" + UUID.encode() + b"</uuid><qemu:commandline><qemu:arg value='-device'/>"
        b'<qemu:arg value=\'{"driver":"vfio-pci","host":"0000:01:00.0"}\'/>'
        b"<qemu:arg value='-device'/><qemu:arg value='vfio-pci,host=01:00.0,,x'/>"
        b"</qemu:commandline></domain>"
    )


# -- the configuration


def _yaml(directory: Path) -> Work:
    def work(data: bytes) -> None:
        mistakes = load.mistakes_in("file", data)
        for one in mistakes:
            if len(str(one)) > 1024:
                raise Outside(f"a mistake of {len(str(one))} characters")
            str(one).encode()

    return work


def _yaml_seeds() -> Iterator[bytes]:
    for path in sorted((ROOT / "config").glob("*.yaml")):
        yield b"".join(
            line[1:].lstrip(b" ") if line.startswith(b"#") and b":" in line else line
            for line in path.read_bytes().splitlines(keepends=True)
        )
        yield path.read_bytes()
    yield b"holders:\n  wait_s: 1\n  terminate: [a, 'b', \"c\\x41\"]\nservices: [gdm.service]\n"
    yield b"services:\n- name: x\n  active: /bin/a\n  stop: /bin/b c\n  start: /bin/d\n"


# -- the claim


def _claim(directory: Path) -> Work:
    host = _machine(directory, "two-gpus-6.12")
    claims = directory / "two-gpus-6.12" / CLAIMS
    claims.mkdir(parents=True)
    (directory / "two-gpus-6.12" / BY_NAME).mkdir()
    boot = (host.read("proc/sys/kernel/random/boot_id") or "").encode()
    log = Log(host, "win11", "error")

    def work(data: bytes) -> None:
        (claims / UUID).write_bytes(data.replace(b"BOOT", boot))
        try:
            with kept_inside(str(directory)):
                found = held.current(host)
                command.status_text(found, Terminal())
                held.to_json(found)
                undo.last_change(host, UUID)
                events.release(host, UUID, log)
        finally:
            for path in claims.iterdir():
                path.unlink()

    return work


def _claim_seeds() -> Iterator[bytes]:
    """What prepare leaves behind on machines that take different steps."""
    for name in ("lab-efifb-6.12", "two-gpus-6.12", "vgacon-5.10", "nvidia-single-desktop",
                 "nvidia-bootfb-bar3"):  # fmt: skip
        with tempfile.TemporaryDirectory() as directory:
            snapshots.unpack_into(name, Path(directory))
            host = FakeHost(directory)
            vm = domain.parse(domain_xml(pci.displays(host)[-1]))
            with contextlib.suppress(HookError):
                events.prepare(host, vm, Config(), Log(host, "win11", "error"))
            claim = host.read_bytes(f"{CLAIMS}/{UUID}")
            boot = host.read("proc/sys/kernel/random/boot_id") or ""
            if claim is not None:
                yield claim.replace(boot.encode(), b"BOOT")
    yield _CLAIM


_STEP = (
    '{"step": {"stage": "x", "gpu": "0000:01:00.0", "why": "y", "do": %s, "undo": %s, "loses": ""}}'
)
_CLAIM = "\n".join(
    [
        '{"vm": "win11", "uuid": "u", "boot": "BOOT", "gpus": ["0000:01:00.0"], "since": 1.5,'
        ' "by_hand": false}',
        '{"phase": "start", "hook": [1, 2]}',
        '{"worker": [0, 0]}',
        *(
            _STEP % ("null", action)
            for action in (
                '{"kind": "show-consoles", "wait_s": 5, "fb": "fb0"}',
                '{"kind": "map-consoles", "fb": "fb0", "indices": [0, null, 1], "wait_s": 0}',
                '{"kind": "return-consoles", "home": "0000:01:00.0", "to": "", "consoles": [1],'
                ' "wait_s": 0}',
                '{"kind": "quiet-text", "tty": "tty1", "quiet": false}',
                '{"kind": "decode", "gpu": "0000:01:00.0", "on": true}',
                '{"kind": "return-native", "gpu": "0000:01:00.0", "driver": "amdgpu", "card": true,'
                ' "framebuffer": false, "reserved": true, "wait_s": 1}',
                '{"kind": "start-units", "units": ["gdm.service"]}',
                '{"kind": "load-modules", "gpus": [], "reserved": [], "modules": ["nvidia"]}',
                '{"kind": "start-by-command", "name": "dm", "active": ["/bin/a"], "start": []}',
                '{"kind": "unbind-vfio", "gpu": "0000:01:00.0"}',
            )
        ),
        '{"done": 0}\n{"undone": 1}\n',
    ]
).encode()


# -- what the kernel shows


def _sysfs(directory: Path) -> Work:
    host = _machine(directory, "lab-efifb-6.12")
    root = directory / "lab-efifb-6.12"
    vm = domain.parse(domain_xml(*pci.displays(host)))
    _plan(host, vm)
    files = sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if (path.is_file() or path.is_symlink()) and "kallsyms" not in path.name
    )

    def work(data: bytes) -> None:
        if len(data) < 3:
            return
        path = root / files[(data[0] << 8 | data[1]) % len(files)]
        aside = directory / "aside"
        os.rename(path, aside)
        try:
            if data[2] & 1:
                with contextlib.suppress(ValueError, OSError):
                    os.symlink(data[3:], os.fsencode(path))
            else:
                path.write_bytes(data[3:])
            _plan(host, vm)
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            os.rename(aside, path)

    return work


def _sysfs_seeds() -> Iterator[bytes]:
    contents = (
        b"", b"\n", b"\xff\xfe\0", b"-1\n", b"9" * 5000, b"0x", b"(null)\n", b"fb99999999\n",
        b"0x00000000c0000000 0x00000000cfffffff 0x000000000014220c\n" * 7,
        b"00000000-ffffffff : PCI Bus\nc0000000-c0000fff : efifb\nffff-0 : x\n",
        b"0 EFI VGA\n1 simple\n", b"1 (S) x (R) 1 1 a b c\n", b"../../../..", b"/", b".", b"self",
    )  # fmt: skip
    for number in range(0, 400, 3):
        kind = bytes([number >> 8, number & 255, 0])
        yield kind + contents[number // 3 % len(contents)]


# -- the command line


def _argv(directory: Path) -> Work:
    host = _machine(directory, "efifb-6.12")
    work_in = directory / "here"
    work_in.mkdir()
    xml = domain_xml("0000:99:00.0")

    def work(data: bytes) -> None:
        # A slash would let it name files of this machine, which some commands write.
        words = [os.fsdecode(word) for word in data.replace(b"/", b"").split(b"\0")]
        hook.main(words, xml=xml, host=host) if len(words) > 2 else None
        os.chdir(work_in)
        out, err = io.BytesIO(), io.BytesIO()
        with _standard(out, err), kept_inside(str(directory)):
            try:
                cli.main(words, host=host)
            except SystemExit as end:
                if end.code not in (0, 2):
                    raise Outside(f"exit status {end.code}") from end
        _readable(err.getvalue())
        shutil.rmtree(work_in)
        work_in.mkdir()

    return work


@contextlib.contextmanager
def _standard(out: io.BytesIO, err: io.BytesIO) -> Iterator[None]:
    """The standard streams as Python opens them for a pipe in a locale of UTF-8."""
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"hostile"))
    sys.stdout = io.TextIOWrapper(out, "utf-8", "strict")
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.detach()  # or it would close what is read afterwards
        sys.stdin, sys.stdout, sys.stderr = before


def _readable(printed: bytes) -> None:
    """Raises Outside unless it is a few lines for people."""
    text = printed.decode()
    if "Traceback" in text or "internal error" in text or "this is a bug" in text:
        raise Outside(f"printed: {text[-1500:]}")
    lines = text.split("\n")
    if len(lines) > 12 or not all(line.isprintable() for line in lines):
        raise Outside(f"printed {len(lines)} lines: {text[:300]!r}")


def _argv_seeds() -> Iterator[bytes]:
    yield b"win11\0prepare\0begin\0-"
    for line in (
        "plan win11", "plan --xml -", "check-config", "check-config a.yaml", "status --json",
        "check-config --vm win11 --json", "doctor", "recover", "recover win11 --force", "usage",
        "take 0000:01:00.0", "give 0000:01:00.0", "record -", "status --prometheus", "--help",
        "plan --help", "--version", "plan --json --svg - win11", "take --vfio 0000:01:00.0",
        "--root . plan x", "record machine.tree", "who", "--connect qemu: plan x",
    ):  # fmt: skip
        yield line.replace(" ", "\0").encode()


# -- a machine from a bug report


def _tree(directory: Path) -> Work:
    canary = directory / "outside"
    canary.mkdir()
    (canary / "secret").write_text("canary")
    root = directory / "root"
    vm = domain.parse(domain_xml("0000:01:00.0"))

    def work(data: bytes) -> None:
        text = data.decode(errors="replace").replace("CANARY", str(canary))
        root.mkdir()
        try:
            with kept_inside(str(root)):
                unpack(text, str(root))
                _plan(EnclosedSent(str(root)), vm)
        finally:
            shutil.rmtree(root)
        if os.listdir(canary) != ["secret"] or (canary / "secret").read_text() != "canary":
            raise Outside("something was written beside the machine")

    return work


def _tree_seeds() -> Iterator[bytes]:
    yield (CORPUS / "small.tree").read_bytes()
    yield (
        b"l proc/iomem -> CANARY/secret\nl sys -> ../outside\n"
        b"f sys/bus/pci/devices/0000:01:00.0/class = 0x030000\nf ../a = 1\nd /etc\n"
    )


TARGETS: dict[str, Target] = {
    one.name: one
    for one in (
        Target("xml", _xml, _xml_seeds, tokens.XML),
        Target("yaml", _yaml, _yaml_seeds, tokens.YAML),
        Target("claim", _claim, _claim_seeds, tokens.CLAIM),
        Target("sysfs", _sysfs, _sysfs_seeds, tokens.SYSFS),
        Target("argv", _argv, _argv_seeds, tokens.ARGV, 512),
        Target("tree", _tree, _tree_seeds, tokens.TREE),
    )
}
