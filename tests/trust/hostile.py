"""Hostile inputs written by hand: what is known to harm programs that read such things."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.libvirt_xml import UUID, domain_xml

_HOSTDEV = (
    b"<hostdev mode='subsystem' type='pci'><source><address %s/></source></hostdev>"
)
_MB = 1_000_000
GPU = "0000:01:00.0"


def _domain(*, before: bytes = b"", name: bytes = b"x", inside: bytes = b"") -> bytes:
    uuid = UUID.encode()
    return b"%s<domain><name>%s</name><uuid>%s</uuid>%s</domain>" % (before, name, uuid, inside)


def _address(attributes: bytes) -> bytes:
    return _domain(inside=b"<devices>" + _HOSTDEV % attributes + b"</devices>")


def _entities(levels: int, width: int) -> bytes:
    lines = [b"<!ENTITY e0 'ha'>"]
    for level in range(1, levels):
        lines.append(b"<!ENTITY e%d '%s'>" % (level, b"&e%d;" % (level - 1) * width))
    return b"<!DOCTYPE domain [%s]>" % b"".join(lines)


def xml() -> dict[str, Callable[[], bytes]]:
    """What makes domain XML, by what is wrong with it.

    Harmless ones have a "+" before their name; where both are right, it is a "*".
    """
    qemu = b"<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>x</name><uuid>"
    qemu += UUID.encode() + b"</uuid><q:commandline>%s</q:commandline></domain>"
    bomb = _domain(before=_entities(12, 10), name=b"&e11;")
    whole = domain_xml(GPU)
    return {
        "billion laughs": lambda: bomb,
        "billion laughs in an attribute": lambda: _domain(
            before=_entities(12, 10), inside=b"<a b='&e11;'/>"
        ),
        "billion laughs in UTF-16": lambda: bomb.decode().encode("utf-16"),
        "billion laughs in UTF-16 without a mark": lambda: bomb.decode().encode("utf-16-le"),
        "billion laughs in UTF-7": lambda: (
            b"<?xml version='1.0' encoding='UTF-7'?>" + bomb.decode().encode("utf-7")
        ),
        "billion laughs in UTF-32": lambda: bomb.decode().encode("utf-32"),
        "quadratic entity": lambda: _domain(
            before=b"<!DOCTYPE d [<!ENTITY a '" + b"a" * 100_000 + b"'>]>", name=b"&a;" * 50_000
        ),
        "file as an entity": lambda: _domain(
            before=b"<!DOCTYPE d [<!ENTITY f SYSTEM 'file:///etc/passwd'>]>", name=b"&f;"
        ),
        "address as an entity": lambda: _domain(
            before=b"<!DOCTYPE d [<!ENTITY f SYSTEM 'http://127.0.0.1:9/'>]>", name=b"&f;"
        ),
        "parameter entity": lambda: _domain(
            before=b"<!DOCTYPE d [<!ENTITY % p SYSTEM 'file:///etc/passwd'> %p;]>"
        ),
        "DTD in a file": lambda: _domain(before=b"<!DOCTYPE d SYSTEM 'file:///dev/zero'>"),
        "DOCTYPE behind comments": lambda: _domain(before=b"<!-- a -->" * 10_000 + b"<!DOCTYPE d>"),
        "unclosed comments": lambda: _domain(before=b"<!-- " * 100_000 + b"<!DOCTYPE d>"),
        "+DOCTYPE in a comment": lambda: _domain(inside=b"<!-- <!DOCTYPE a> -->"),
        "+DOCTYPE in CDATA": lambda: _domain(inside=b"<title><![CDATA[<!DOCTYPE a>]]></title>"),
        "+XInclude": lambda: _domain(
            inside=b"<i:include xmlns:i='http://www.w3.org/2001/XInclude' href='/dev/zero'"
            b" parse='text'/>"
        ),
        "+stylesheet": lambda: _domain(before=b"<?xml-stylesheet href='file:///dev/zero'?>"),
        "10 MB name of an element": lambda: _domain(inside=b"<" + b"a" * 10 * _MB + b"/>"),
        "10 MB attribute": lambda: _domain(inside=b"<a b='" + b"a" * (10 * _MB + 1) + b"'/>"),
        "+9 MB of text": lambda: _domain(inside=b"<metadata>" + b"a" * 9 * _MB + b"</metadata>"),
        "10 MB of one text": lambda: (
            _domain(inside=b"<metadata>" + b"a" * 11 * _MB + b"</metadata>")
        ),
        "+9 MB name": lambda: _domain(name=b"a" * 9 * _MB),
        "+10 MB of elements": lambda: (
            _domain(inside=b"<metadata>" + b"<a/>" * 2_500_000 + b"</metadata>")
        ),
        "+10 MB of elements 200 deep": lambda: _domain(
            inside=b"<metadata>" + (b"<a>" * 200 + b"</a>" * 200) * 7000 + b"</metadata>"
        ),
        "+2 MB of elements in a device": lambda: _domain(
            inside=b"<devices><hostdev>" + b"<a/>x" * 400_000 + b"</hostdev></devices>"
        ),
        "a million attributes": lambda: _domain(
            inside=b"<a " + b" ".join(b"a%d=''" % n for n in range(1_000_000)) + b"/>"
        ),
        "100,000 namespaces in an element": lambda: _domain(
            inside=b"<a " + b" ".join(b"xmlns:n%d='u'" % n for n in range(100_000)) + b"/>"
        ),
        "*250,000 namespaces": lambda: _domain(
            inside=b"".join(b"<n%d:a xmlns:n%d='u'/>" % (n, n) for n in range(250_000))
        ),
        "*10 MB of names": lambda: (
            _domain(inside=b"".join(b"<n%d/>" % n for n in range(1_000_000)))
        ),
        "180,000 devices": lambda: _domain(
            inside=b"<devices>"
            + b"<hostdev type='pci'><source><address/></source></hostdev>" * 180_000
            + b"</devices>"
        ),
        "a million arguments": lambda: qemu % (b"<q:arg/>x" * 1_000_000),
        "elements 100,000 deep": lambda: _domain(inside=b"<a>" * 100_000 + b"</a>" * 100_000),
        "elements without an end": lambda: _domain(inside=b"<a>" * 1_000_000),
        "invalid UTF-8": lambda: _domain(name=b"a\xff\xfe"),
        "overlong UTF-8": lambda: _domain(name=b"\xc0\xaf"),
        "a surrogate": lambda: _domain(name=b"\xed\xa0\x80"),
        "a NUL": lambda: _domain(name=b"a\0b"),
        "NULs only": lambda: b"\0" * 100_000,
        "a NUL by number": lambda: _domain(name=b"&#0;"),
        "a surrogate by number": lambda: _domain(name=b"&#xd800;"),
        "unknown encoding": lambda: _domain(before=b"<?xml version='1.0' encoding='none-such'?>"),
        "EBCDIC": lambda: _domain().decode().encode("cp500"),
        "nothing": lambda: b"",
        "blanks": lambda: b" \n" * _MB,
        "10 MB that is no XML": lambda: b"a" * 10 * _MB,
        "10 MB of no domain": lambda: b"<a>" + b"<b/>" * 2_500_000 + b"</a>",
        "another root": lambda: b"<network><name>x</name></network>",
        "root with a name of 1 MB": lambda: b"<" + b"a" * _MB + b"/>",
        "no name": lambda: b"<domain><uuid>" + UUID.encode() + b"</uuid></domain>",
        "no uuid": lambda: b"<domain><name>x</name></domain>",
        "uuid that is a path": lambda: _domain().replace(UUID.encode(), b"../../../../etc/passwd"),
        "uuid of 1 MB": lambda: _domain().replace(UUID.encode(), b"0" * _MB),
        "uuid in other digits": lambda: _domain().replace(UUID.encode(), "٠".encode() * 32),
        "domain of a million digits": lambda: _address(b"domain='0x" + b"f" * _MB + b"'"),
        "decimal domain of a million digits": lambda: _address(b"domain='" + b"9" * _MB + b"'"),
        "octal bus of 100,000 digits": lambda: _address(b"bus='0" + b"7" * 100_000 + b"'"),
        "bus with a million zeros": lambda: (
            _address(b"slot='0x" + b"0" * _MB + b"1' domain='0xffff'")
        ),
        "negative bus": lambda: _address(b"bus='-1'"),
        "bus that is no number": lambda: _address(b"bus='%s%n{}'"),
        "bus too large": lambda: _address(b"bus='0x100'"),
        "domain of 33 bits": lambda: _address(b"domain='0x100000000' bus='1'"),
        "address that is a path": lambda: _address(b"domain='../../..' bus='1'"),
        "other digits": lambda: _address("bus='٣'".encode()),
        "host that is a path": lambda: (
            qemu % b"<q:arg value='-device'/><q:arg value='vfio-pci,host=../x'/>"
        ),
        "+sysfsdev that is a path": lambda: qemu
        % b"<q:arg value='-device'/><q:arg value='vfio-pci,sysfsdev=/../../etc'/>",
        "deep JSON": lambda: qemu % (
            b"<q:arg value='-device'/><q:arg value='{\"driver\":\"vfio-pci\",\"a\":"
            + b"[" * 100_000 + b"'/>"
        ),
        "huge number in JSON": lambda: qemu % (
            b"<q:arg value='-device'/><q:arg value='{\"driver\":\"vfio-pci\",\"a\":"
            + b"9" * 100_000 + b"}'/>"
        ),
        "quotes in JSON": lambda: qemu % (
            b"<q:arg value='-device'/><q:arg value='{vfio-pci" + b"&quot;\\" * 100_000 + b"'/>"
        ),
        "another namespace": lambda: (
            domain_xml(GPU).replace(b"<domain ", b"<domain xmlns='urn:x' ")
        ),
        "device that is not there": lambda: domain_xml("0000:99:00.0"),
        "text behind the end": lambda: whole + b"<domain/>",
        "entity that nobody knows": lambda: _domain(name=b"&nbsp;"),
    }  # fmt: skip


def truncated(step: int) -> dict[str, Callable[[], bytes]]:
    """What makes a domain XML that is cut off, at every step-th byte."""
    whole = domain_xml(GPU).rstrip()

    def cut(at: int) -> Callable[[], bytes]:
        return lambda: whole[:at]

    return {f"cut at byte {at}": cut(at) for at in range(0, len(whole), step)}


def yaml() -> dict[str, bytes]:
    """Configuration files. Harmless ones have a "+" before their name."""
    return {
        "billion laughs": b"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\n",
        "an alias of itself": b"a: &a [*a]\n",
        "merged key": b"<<: {apu: allow}\n",
        "python object": b"apu: !!python/object/apply:os.system ['touch /tmp/harm']\n",
        "binary": b"apu: !!binary aGFybQ==\n",
        "timestamp": b"apu: !!timestamp 2001-01-01\n",
        "tag handle": b"%TAG ! tag:yaml.org,2002:python/\n---\napu: !name:os.system x\n",
        "many tag handles": b"".join(b"%%TAG !%d! tag:x\n" % n for n in range(4000)),
        "version of 60,000 digits": b"%YAML 1." + b"1" * 60_000 + b"\n---\napu: allow\n",
        "set twice": b"apu: allow\napu: refuse\n",
        "set 9,000 times": b"apu: x\n" * 9000,
        "7,000 unknown keys": b"".join(b"k%d: 1\n" % n for n in range(7000)),
        "number of 60,000 digits": b"timeout_s: " + b"9" * 60_000,
        "hexadecimal": b"timeout_s: 0x3c",
        "base 60": b"timeout_s: 1:00",
        "infinite": b"holders:\n  wait_s: .inf\n",
        "no number": b"holders:\n  wait_s: .nan\n",
        "too large for a float": b"holders:\n  wait_s: 1e999\n",
        "character beyond Unicode": b'apu: "\\U00110000"\n',
        "character beyond C": b'apu: "\\UFFFFFFFF"\n',
        "surrogate": b'log_level: "\\ud800"\n',
        "NUL in a command": b'services:\n- name: a\n  active: "/a\\0"\n  stop: /b\n  start: /c\n',
        "NUL in a name": b'holders:\n  terminate: ["a\\0"]\n',
        "escape sequences": b'"\\e[2J\\n\\r": 1\n',
        "two documents": b"apu: allow\n---\napu: refuse\n",
        "16,000 documents": b"---\n" * 16_000,
        "a tab": b"holders:\n\twait_s: 1\n",
        "+a byte order mark": b"\xef\xbb\xbfapu: allow\n",
        "UTF-16": "apu: allow\n".encode("utf-16"),
        "invalid UTF-8": b"apu: \xff\n",
        "control characters": b"apu: \x00\x07\n",
        "65,537 bytes": b"#" * 65_537,
        "+65,536 bytes": b"#" * 65_536,
        "10 MB": b"a: b\n" * 2_000_000,
        "60,000 brackets": b"[" * 60_000,
        "60,000 braces": b"{" * 60_000,
        "60,000 dashes": b"- " * 30_000,
        "60,000 questions": b"? " * 30_000,
        "60,000 quotes": b"'" * 60_000,
        "60,000 colons": b":" * 60_000,
        "indented ever deeper": b"".join(b" " * n + b"a:\n" for n in range(300)),
        "list as a key": b"? [a, b]\n: c\n",
        "group as a key": b"? {a: b}\n: c\n",
        "32,000 items": b"stages: [" + b"a," * 32_000 + b"]",
        "+32,000 names": b"holders:\n  terminate: [" + b"a," * 32_000 + b"]",
        "9,000 groups": b"services: [" + b"{a: b}," * 9000 + b"]",
        "key of 60,000": b"? " + b"k" * 60_000 + b"\n: 1\n",
        "value of 60,000": b"apu: " + b"k" * 60_000,
        "no mapping": b"just a sentence\n",
        "a list": b"- apu\n- allow\n",
        "key without a value": b"apu:\n",
        "group where none is": b"apu:\n  allow: 1\n",
        "value where a group is": b"holders: 5\n",
        "command without a path": b"services:\n- name: a\n  active: sh\n  stop: sh\n  start: sh\n",
        "unit that is an option": b"services: [--help]\n",
        "unit that is a path": b"services: [../../etc/passwd]\n",
    }  # fmt: skip


_WRONG: tuple[Any, ...] = (
    None, True, -1, 1 << 70, 1.5, "", "..", "../../../../../../tmp", "a\0b", "\ud800", "x" * 5000,
    [], [None], [[]], {}, {"kind": "decode"},
)  # fmt: skip
_RAW = (b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 100_000, b"", b"}")


def records(claim: bytes) -> Iterator[tuple[str, bytes]]:
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
    for raw in (b"\xff\xfe", b"\0" * 100_000, b"null", b"[]", b"5", b"{" * 100_000, b"x" * _MB,
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
    "proc/iomem", "proc/kallsyms", "proc/sys/kernel/osrelease", "proc/sys/kernel/random/boot_id",
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
    "1 MB in a line": b"f a = " + b"x" * _MB + b"\n",
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
"""Machines that somebody sent."""
