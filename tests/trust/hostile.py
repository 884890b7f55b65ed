"""Hostile inputs written by hand: what is known to harm programs that read such things."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.libvirt_xml import UUID

MB = 1_000_000
GPU = "0000:01:00.0"


def yaml() -> dict[str, bytes]:
    """Configuration files. Harmless ones begin with "+", or with "*" where the host decides."""
    return {**_language(), **_masses(), **_settings()}


def _language() -> dict[str, bytes]:
    """What YAML can say, and no configuration needs; and what it cannot."""
    return {
        "billion laughs": b"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\n",
        "an alias of itself": b"a: &a [*a]\n",
        "merged key": b"<<: {apu: allow}\n",
        "python object": b"apu: !!python/object/apply:os.system ['touch /tmp/harm']\n",
        "binary": b"apu: !!binary aGFybQ==\n",
        "timestamp": b"apu: !!timestamp 2001-01-01\n",
        "tag handle": b"%TAG ! tag:yaml.org,2002:python/\n---\napu: !name:os.system x\n",
        "hexadecimal": b"timeout_s: 0x3c",
        "base 60": b"timeout_s: 1:00",
        "infinite": b"holders:\n  wait_s: .inf\n",
        "no number": b"holders:\n  wait_s: .nan\n",
        "too large for a float": b"holders:\n  wait_s: 1e999\n",
        "character beyond Unicode": b'apu: "\\U00110000"\n',
        "character beyond C": b'apu: "\\UFFFFFFFF"\n',
        "surrogate": b'log_level: "\\ud800"\n',
        "escape sequences": b'"\\e[2J\\n\\r": 1\n',
        "two documents": b"apu: allow\n---\napu: refuse\n",
        "a tab": b"holders:\n\twait_s: 1\n",
        "+a byte order mark": b"\xef\xbb\xbfapu: allow\n",
        "UTF-16": "apu: allow\n".encode("utf-16"),
        "invalid UTF-8": b"apu: \xff\n",
        "control characters": b"apu: \x00\x07\n",
    }


def _masses() -> dict[str, bytes]:
    """Much of something."""
    return {
        "many tag handles": b"".join(b"%%TAG !%d! tag:x\n" % n for n in range(1500)),
        "version of 30,000 digits": b"%YAML 1." + b"1" * 30_000 + b"\n---\napu: allow\n",
        "set 4,000 times": b"apu: x\n" * 4000,
        "3,000 unknown keys": b"".join(b"k%d: 1\n" % n for n in range(3000)),
        "number of 30,000 digits": b"timeout_s: " + b"9" * 30_000,
        "8,000 documents": b"---\n" * 8_000,
        "32,769 bytes": b"#" * 32_769,
        "+32,768 bytes": b"#" * 32_768,
        "10 MB": b"a: b\n" * 2_000_000,
        "30,000 brackets": b"[" * 30_000,
        "30,000 braces": b"{" * 30_000,
        "30,000 dashes": b"- " * 15_000,
        "30,000 questions": b"? " * 15_000,
        "30,000 quotes": b"'" * 30_000,
        "30,000 colons": b":" * 30_000,
        "indented ever deeper": b"".join(b" " * n + b"a:\n" for n in range(240)),
        "list as a key": b"? [a, b]\n: c\n",
        "group as a key": b"? {a: b}\n: c\n",
        "16,000 items": b"stages: [" + b"a," * 16_000 + b"]",
        "*16,000 names": b"holders:\n  terminate: [" + b"a," * 16_000 + b"]",
        "4,000 groups": b"services: [" + b"{a: b}," * 4000 + b"]",
        "key of 30,000": b"? " + b"k" * 30_000 + b"\n: 1\n",
        "value of 30,000": b"apu: " + b"k" * 30_000,
    }


def _settings() -> dict[str, bytes]:
    """What is YAML, but sets nothing that can be set."""
    return {
        "set twice": b"apu: allow\napu: refuse\n",
        "NUL in a command": b'services:\n- name: a\n  active: "/a\\0"\n  stop: /b\n  start: /c\n',
        "NUL in a name": b'holders:\n  terminate: ["a\\0"]\n',
        "no mapping": b"just a sentence\n",
        "a list": b"- apu\n- allow\n",
        "key without a value": b"apu:\n",
        "group where none is": b"apu:\n  allow: 1\n",
        "value where a group is": b"holders: 5\n",
        "command without a path": b"services:\n- name: a\n  active: sh\n  stop: sh\n  start: sh\n",
        "unit that is an option": b"services: [--help]\n",
        "unit that is a path": b"services: [../../etc/passwd]\n",
    }


_WRONG: tuple[Any, ...] = (
    None, True, -1, 1 << 70, 1.5, "", "..", "../../../../../../tmp", "a\0b", "\ud800", "x" * 5000,
    [], [None], [[]], {}, {"kind": "decode"},
)  # fmt: skip
_RAW = (b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 100_000, b"", b"}")


def claims(claim: bytes) -> Iterator[tuple[str, bytes]]:
    """A claim with each of its values replaced by each wrong one; the name says which."""
    lines = claim.splitlines()
    for number, line in enumerate(lines):
        entry = json.loads(line)
        for path in _paths(entry):
            for wrong in _WRONG:
                yield (
                    f"line {number + 1}, {'.'.join(map(str, path))} = {wrong!r:.20}",
                    _with(lines, number, json.dumps(_replaced(entry, path, wrong)).encode()),
                )
            marked = json.dumps(_replaced(entry, path, "MARK")).encode()
            for raw in _RAW:
                yield (
                    f"line {number + 1}, {'.'.join(map(str, path))} = {raw[:10]!r}",
                    _with(lines, number, marked.replace(b'"MARK"', raw)),
                )
    for raw in (b"\xff\xfe", b"\0" * 100_000, b"null", b"[]", b"5", b"{" * 100_000, b"x" * MB,
                b'{"done": 0}\n' * 50_000, b'{"step": {}}', b'{"step": null}'):  # fmt: skip
        yield f"{raw[:12]!r} alone", raw + b"\n"
        yield f"{raw[:12]!r} at the end", claim + raw + b"\n"


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inside:
        yield (key,)
        if isinstance(one, (dict, list)):
            yield from ((key, *rest) for rest in _paths(one))


def _replaced(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    copy = value.copy()
    copy[path[0]] = _replaced(copy[path[0]], path[1:], wrong) if len(path) > 1 else wrong
    return copy


def _with(lines: list[bytes], number: int, line: bytes) -> bytes:
    return b"\n".join([*lines[:number], line, *lines[number + 1 :]]) + b"\n"


CONTENTS = {
    "empty": b"",
    "a NUL": b"\0",
    "bytes": bytes(range(256)),
    "64 KB of digits": b"9" * 65_536,
    "negative": b"-1\n",
    "no newline": b"1",
    "1 MB of lines": b"0x0 0x1 0x2\n" * 90_000,
    "other digits": "٣²\n".encode(),
    "a path": b"../../../../etc/passwd\n",
    "a name of 300": b"a" * 300 + b"\n",
    "garbage": b"zz (S) - : : 1 2 3\n" * 30,
}
"""What a file of /sys or /proc may hold that no kernel writes."""

FILES = (
    "proc/iomem", "proc/kallsyms", "proc/sys/kernel/osrelease", "proc/sys/kernel/version",
    "proc/sys/kernel/random/boot_id",
    "sys/bus/pci/devices/GPU/class", "sys/bus/pci/devices/GPU/resource",
    "sys/bus/pci/devices/GPU/config", "sys/bus/pci/devices/GPU/boot_vga",
    "sys/class/vtconsole/vtcon1/name", "sys/class/vtconsole/vtcon1/bind",
    "sys/class/graphics/fb0/name", "sys/class/tty/tty0/active", "sys/kernel/security/lockdown",
    "sys/kernel/boot_params/data", "ioctl/fb0/memory", "ioctl/con2fbmap", "proc/1/stat",
    "proc/77/stat", "proc/77/comm", "proc/77/cgroup", "proc/77/maps",
)  # fmt: skip
IOMEM = {
    "overlapping": b"c0000000-cfffffff : a\nc8000000-d7ffffff : b\n00000000-ffffffff : c\n",
    "backwards": b"cfffffff-c0000000 : efifb\n",
    "of 200 bits": b"f" * 50 + b"-" + b"f" * 50 + b" : efifb\n",
    "50,000 lines": b"c0000000-c0000fff : efifb\n" * 50_000,
    "of blanks": b" " * 100_000 + b"\n",
}
LINKS = ("loop", "/", "/etc/passwd", "../" * 40 + "etc/passwd", "nowhere", "a" * 4000)

NAMES = (
    b"--help", b"..", b"a/b", b"", b"a\nb: c", b"\x1b[2J\x1b]0;x\x07", b"\xff\xfe", b"%s%n{0}",
    b"a" * 131_000, b"$(touch /tmp/harm)", b"-", b"=", "ä\u202e\u2028".encode(), b"a" * 255,
)  # fmt: skip
"""Names of VMs, which libvirt gives the hook as its first word."""

COMMANDS: tuple[tuple[bytes, ...], ...] = (
    *((b"plan", name) for name in NAMES),
    *((b"check-config", b"--vm", name) for name in NAMES),
    *((b"check-config", name) for name in NAMES),
    *((b"recover", name) for name in NAMES),
    *((name,) for name in NAMES),
    (b"--root",), (b"--root", b""), (b"--root", b"\xff"), (b"--root", b"/dev/null/x", b"status"),
    (b"plan", b"--xml", b"\xff\n"), (b"plan", b"--xml", b"/none\x1b[2J"), (b"plan", b"--xm", b"x"),
    (b"give", b"../../etc"), (b"take", b"0000:00:00.0\n"), (b"status", b"--js"), (b"plan",) * 50,
)  # fmt: skip

TREES = {
    "a link out of it": b"l proc/iomem -> /etc/passwd\nl sys -> /sys\n",
    "a link up and out": b"l sys -> ../../../../../../sys\nl proc -> ../../../../../../proc\n",
    "written through a link": b"l a -> /tmp\nf a/harm = 1\n",
    "over a link": b"l a -> /tmp/harm\nf a = 1\n",
    "dots": b"f ../harm = 1\n",
    "dots inside": b"f a/../../harm = 1\n",
    "absolute": b"f /tmp/harm = 1\n",
    "links in a circle": b"l sys -> proc\nl proc -> sys\n",
    "1,000 deep": b"d " + b"a/" * 1000 + b"a\n",
    "100,000 deep": b"d " + b"a/" * 100_000 + b"a\n",
    "a NUL": b"f a\0b = 1\n",
    "a long name": b"f " + b"a" * 300 + b" = 1\n",
    "1 MB in a line": b"f a = " + b"x" * MB + b"\n",
    "no text": bytes(range(256)) * 100,
    "no hex": b"x a = 0g\n",
    "twice": b"f a = 1\nf a = 2\n",
    "nothing": b"",
    "errno of 5,000 digits": b"f refused/proc/iomem = " + b"9" * 5000 + b"\n",
    "no errno": b"f refused/sys/bus/pci/devices/.itself = x\n",
    "time that is none": b"f recorded/now = nan\n",
    "time that never comes": b"f recorded/now = 1e300\n",
    "mode that is none": b"f etc/vfio-console-hook/default.yaml\n"
    b"f stat/etc/vfio-console-hook = 9\n",
    "map that is none": b"f ioctl/con2fbmap = 1-99999999999 0\n"
    b"f dev/fb0\nd sys/class/graphics/fb0\n",
    "VM without a number": "f libvirt/²/name = a\n".encode(),
    "VM whose XML is a bomb": b"f libvirt/1/name = a\nf libvirt/1/uuid = " + UUID.encode()
    + b"\nf libvirt/1/xml = <!DOCTYPE a [<!ENTITY b 'c'>]><domain/>\n",
    "claim that is a link": (
        b"l run/vfio-console-hook/claims/" + UUID.encode() + b" -> /etc/passwd\n"
    ),
}  # fmt: skip
"""Machines as a bug report could have them."""
