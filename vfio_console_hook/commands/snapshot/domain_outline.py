"""A domain XML reduced to its PCI devices, with the same line numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from ... import domain
from ...errors import DomainError

if TYPE_CHECKING:
    from lxml.etree import _Element

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_ROOT = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
_OPTIONS = "driver|host|sysfsdev|romfile"
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
    text = _ROOT
    for line, part in _parts(root, named):
        text += "\n" * max(line - 1 - text.count("\n"), 0) + part
    return f"{text}\n"


def _parts(element: _Element, named: Callable[[str], str]) -> Iterator[tuple[int, str]]:
    """(line, text) of what is kept inside of an element, and of its end."""
    for child in element:
        tag = str(child.tag)
        # Of a hostdev, no names, files and boot orders.
        if tag not in domain.READ.get(str(element.tag), ()) or (
            tag == "hostdev" and child.get("type") != "pci"
        ):
            continue
        yield domain.line_of(child), _opened(child, named)
        yield from _parts(child, named)
    yield 0, f"</{_prefixed(element)}>"


def _opened(element: _Element, named: Callable[[str], str]) -> str:
    """The start of an element, and its text if it is a name or uuid."""
    attributes = {str(key): str(value) for key, value in element.attrib.items()}
    if "value" in attributes:
        attributes["value"] = _argument(attributes["value"])
    pairs = "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
    text = (element.text or "").strip() if element.tag == "uuid" else ""
    text = named(element.text or "") if element.tag == "name" else text
    return f"<{_prefixed(element)}{pairs}>{escape(text)}"


def _prefixed(element: _Element) -> str:
    return str(element.tag).replace(_QEMU, "qemu:")


def _argument(value: str) -> str:
    """An argument of QEMU: of that of a -device with vfio-pci, its driver and its address."""
    if value in ("-device", "--device"):
        return value
    if "vfio-pci" not in value:
        return ""
    if "{" in value:
        pairs = re.findall(rf"""(["'])({_OPTIONS})\1\s*:\s*(["'])(.*?)\3""", value)
        return json.dumps({key: text for _, key, _, text in pairs})
    words = value.split(",")
    kept = [one for one in words[1:] if re.match(rf"(?:{_OPTIONS})=", one)]
    return ",".join([words[0], *kept])
