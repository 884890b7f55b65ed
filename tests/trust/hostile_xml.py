"""Hostile domain XML written by hand: what is known to harm programs that read such things.

Everything is what makes an XML, by what is wrong with that. Harmless ones have a "+" before
their name; where both are right, it is a "*".
"""

from __future__ import annotations

from collections.abc import Callable

from tests.libvirt_xml import UUID, domain_xml
from tests.trust.hostile import GPU, MB

Make = Callable[[], bytes]
_HOSTDEV = b"<hostdev mode='subsystem' type='pci'><source><address %s/></source></hostdev>"
_QEMU = b"<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>x</name><uuid>"
_QEMU += UUID.encode() + b"</uuid><q:commandline>%s</q:commandline></domain>"


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


def bombs() -> dict[str, Make]:
    """All but those that are cut off."""
    return {
        **_references(), **_masses(), **_letters(), **_values(), **_arguments(), **_documents(),
    }  # fmt: skip


def _references() -> dict[str, Make]:
    """Entities, and what leads elsewhere."""
    bomb = _domain(before=_entities(12, 10), name=b"&e11;")
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
    }  # fmt: skip


def _masses() -> dict[str, Make]:
    """Much of something."""
    return {
        "10 MB name of an element": lambda: _domain(inside=b"<" + b"a" * 10 * MB + b"/>"),
        "10 MB attribute": lambda: _domain(inside=b"<a b='" + b"a" * (10 * MB + 1) + b"'/>"),
        "+9 MB of text": lambda: _domain(inside=b"<metadata>" + b"a" * 9 * MB + b"</metadata>"),
        "10 MB of one text": lambda: (
            _domain(inside=b"<metadata>" + b"a" * 11 * MB + b"</metadata>")
        ),
        "+9 MB name": lambda: _domain(name=b"a" * 9 * MB),
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
        "a million arguments": lambda: _QEMU % (b"<q:arg/>x" * 1_000_000),
    }  # fmt: skip


def _letters() -> dict[str, Make]:
    """What is nested too deep, or has letters that XML has not."""
    return {
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
        "blanks": lambda: b" \n" * MB,
        "10 MB that is no XML": lambda: b"a" * 10 * MB,
        "10 MB of no domain": lambda: b"<a>" + b"<b/>" * 2_500_000 + b"</a>",
        "another root": lambda: b"<network><name>x</name></network>",
        "root with a name of 1 MB": lambda: b"<" + b"a" * MB + b"/>",
    }  # fmt: skip


def _values() -> dict[str, Make]:
    """Names, uuids and addresses that libvirt would not give."""
    return {
        "no name": lambda: b"<domain><uuid>" + UUID.encode() + b"</uuid></domain>",
        "no uuid": lambda: b"<domain><name>x</name></domain>",
        "uuid that is a path": lambda: _domain().replace(UUID.encode(), b"../../../../etc/passwd"),
        "uuid of 1 MB": lambda: _domain().replace(UUID.encode(), b"0" * MB),
        "uuid in other digits": lambda: _domain().replace(UUID.encode(), "٠".encode() * 32),
        "domain of a million digits": lambda: _address(b"domain='0x" + b"f" * MB + b"'"),
        "decimal domain of a million digits": lambda: _address(b"domain='" + b"9" * MB + b"'"),
        "octal bus of 100,000 digits": lambda: _address(b"bus='0" + b"7" * 100_000 + b"'"),
        "bus with a million zeros": lambda: (
            _address(b"slot='0x" + b"0" * MB + b"1' domain='0xffff'")
        ),
        "negative bus": lambda: _address(b"bus='-1'"),
        "bus that is no number": lambda: _address(b"bus='%s%n{}'"),
        "bus too large": lambda: _address(b"bus='0x100'"),
        "domain of 33 bits": lambda: _address(b"domain='0x100000000' bus='1'"),
        "address that is a path": lambda: _address(b"domain='../../..' bus='1'"),
        "other digits": lambda: _address("bus='٣'".encode()),
    }  # fmt: skip


def _arguments() -> dict[str, Make]:
    """What may stand in the command line of QEMU."""
    return {
        "host that is a path": lambda: (
            _QEMU % b"<q:arg value='-device'/><q:arg value='vfio-pci,host=../x'/>"
        ),
        "+sysfsdev that is a path": lambda: _QEMU
        % b"<q:arg value='-device'/><q:arg value='vfio-pci,sysfsdev=/../../etc'/>",
        "deep JSON": lambda: _QEMU % (
            b"<q:arg value='-device'/><q:arg value='{\"driver\":\"vfio-pci\",\"a\":"
            + b"[" * 100_000 + b"'/>"
        ),
        "huge number in JSON": lambda: _QEMU % (
            b"<q:arg value='-device'/><q:arg value='{\"driver\":\"vfio-pci\",\"a\":"
            + b"9" * 100_000 + b"}'/>"
        ),
        "quotes in JSON": lambda: _QEMU % (
            b"<q:arg value='-device'/><q:arg value='{vfio-pci" + b"&quot;\\" * 100_000 + b"'/>"
        ),
    }  # fmt: skip


def _documents() -> dict[str, Make]:
    """What is odd about a whole document."""
    whole = domain_xml(GPU)
    return {
        "another namespace": lambda: (
            domain_xml(GPU).replace(b"<domain ", b"<domain xmlns='urn:x' ")
        ),
        "device that is not there": lambda: domain_xml("0000:99:00.0"),
        "text behind the end": lambda: whole + b"<domain/>",
        "unknown entity": lambda: _domain(name=b"&nbsp;"),
    }  # fmt: skip


def truncated(step: int) -> dict[str, Make]:
    """A whole one that is cut off, at every step-th byte."""
    whole = domain_xml(GPU).rstrip()

    def cut(at: int) -> Make:
        return lambda: whole[:at]

    return {f"cut at byte {at}": cut(at) for at in range(0, len(whole), step)}
