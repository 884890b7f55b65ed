"""A domain XML reduced to its PCI devices, with the same line numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from ... import domain
from ...errors import DomainError

if TYPE_CHECKING:
    from lxml.etree import _Element

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_OPTIONS = "driver|host|sysfsdev"
_KEPT = ("source", "address", "driver")
UNREADABLE = "<domain><!-- it could not be read --></domain>\n"


def outline(xml: str, named: Callable[[str], str]) -> str:
    """The name and uuid of a VM, and the PCI devices of the host that it gets.

    named returns the replacement of its name. All of them keep their lines, because
    messages quote line numbers of the XML.
    """
    try:
        root = domain.tree(xml.encode("utf-8", "surrogateescape"))
    except DomainError:
        return UNREADABLE
    text = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
    closed = ""
    for line, part, inside in _parts(root, named):
        text += f"</{closed}>" if closed not in ("", inside) else ""
        text += "\n" * max(line - 1 - text.count("\n"), 0)
        text += f"<{inside}>" if inside not in ("", closed) else ""
        closed = inside
        text += part
    return f"{text}{f'</{closed}>' if closed else ''}</domain>\n"


def _parts(root: _Element, named: Callable[[str], str]) -> Iterator[tuple[int, str, str]]:
    """(line, text, enclosing element) of what is kept, in order."""
    for child in root:
        line = _line(child)
        if child.tag == "name":
            yield line, f"<name>{escape(named(child.text or ''))}</name>", ""
        elif child.tag == "uuid":
            yield line, f"<uuid>{escape((child.text or '').strip())}</uuid>", ""
        elif child.tag == "devices":
            for one in child.iterfind("hostdev"):
                if one.get("type") == "pci":
                    yield _line(one), _hostdev(one), "devices"
        elif child.tag == f"{_QEMU}commandline":
            yield from _arguments(child)


def _hostdev(element: _Element) -> str:
    """The element with its addresses only, without names, files and boot orders."""
    line = _line(element)
    text = _opened(element)
    for child in element:
        if child.tag in _KEPT:
            text += "\n" * max(_line(child) - line - text.count("\n"), 0)
            text += _opened(child)
            for below in child.iterfind("address"):
                text += "\n" * max(_line(below) - line - text.count("\n"), 0)
                text += f"{_opened(below)}</{below.tag}>"
            text += f"</{child.tag}>"
    return f"{text}</{element.tag}>"


def _opened(element: _Element) -> str:
    pairs = ((str(key), str(value)) for key, value in element.attrib.items())
    attributes = "".join(f" {key}={quoteattr(value)}" for key, value in pairs)
    return f"<{element.tag}{attributes}>"


def _line(element: Any) -> int:
    # Any, because lxml-stubs does not know the type of it.
    return element.sourceline or 0


def _arguments(command_line: _Element) -> Iterator[tuple[int, str, str]]:
    """The arguments that assign a PCI device, with the -device before them."""
    elements = list(command_line.iterfind(f"{_QEMU}arg"))
    for number, element in enumerate(elements):
        value = element.get("value", "")
        before = elements[number - 1] if number else None
        if "vfio-pci" not in value:
            continue
        if before is not None and before.get("value") in ("-device", "--device"):
            yield _line(before), "<qemu:arg value='-device'/>", "qemu:commandline"
        line, shown = _line(element), quoteattr(_device(value))
        yield line, f"<qemu:arg value={shown}/>", "qemu:commandline"


def _device(value: str) -> str:
    """The argument of a -device, reduced to its driver and its address."""
    if "{" in value:
        pairs = re.findall(rf"""(["'])({_OPTIONS})\1\s*:\s*(["'])(.*?)\3""", value)
        return json.dumps({key: text for _, key, _, text in pairs})
    words = value.split(",")
    kept = [one for one in words[1:] if re.match(rf"(?:{_OPTIONS})=", one)]
    return ",".join([words[0], *kept])
