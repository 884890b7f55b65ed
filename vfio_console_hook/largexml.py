"""XML of megabytes, parsed in parts: elements that are not needed are dropped on the way.

Applications may store anything in a VM's <metadata>, and libvirt passes all of it on. As a
tree it would take thirty times its size, and some texts take libxml2 minutes.

lxml.etree.iterparse() returns only at the events that were asked for: between two of them
neither could elements be dropped nor the time be checked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from .errors import DomainError

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

    from lxml.etree import _Element

Kept = Mapping[str, Collection[str]]

_PART = 16 * 1024
# Of processor time; ten megabytes of metadata take a third of that.
_PATIENCE_S = 1.0
# More than the functions of any machine, and the words of any command line of QEMU.
_MOST = 20_000
# libxml2 compares each attribute with each other one of its element, and libvirt's own
# elements have less than twenty.
_MANY_ATTRIBUTES = re.compile(rb"""<[^<>!?"'][^<>"']*(?:(?:"[^"<]*"|'[^'<]*')[^<>"']*){1000}""")


def pruned_tree(
    xml: bytes, kept: Kept, options: dict[str, Any], check: Callable[[_Element], None]
) -> _Element:
    """The root element, with those below it that are kept: the tags inside of a tag.

    options are those of lxml's parser. check is called with the root before the rest is
    parsed. Raises lxml's XMLSyntaxError, DomainError, and what check raises.
    """
    from lxml import etree

    if _MANY_ATTRIBUTES.search(xml):
        raise DomainError("the domain XML has an element with a thousand attributes")
    began = time.process_time()
    parser = etree.XMLPullParser(events=("start",), tag=_root_tag(xml, options), **options)
    root: Any = None
    checked: dict[_Element, int] = {}
    for part in _parts(xml):
        parser.feed(part)
        for _, element in parser.read_events():
            if root is None:
                root = element
                check(root)
        if root is not None:
            _drop(root, kept, checked)
        if time.process_time() - began > _PATIENCE_S:
            raise DomainError("the domain XML takes too long to read")
    parser.close()
    found: _Element = root  # close() had raised if there were none
    return found


def _parts(xml: bytes) -> Iterator[bytes]:
    return (xml[start : start + _PART] for start in range(0, len(xml), _PART))


def _root_tag(xml: bytes, options: dict[str, Any]) -> str:
    """The tag of the root element: an event for every element would take too long."""
    from lxml import etree

    parser = etree.XMLPullParser(events=("start",), **options)
    for part in _parts(xml):
        parser.feed(part)
        for event in parser.read_events():
            first: Any = event[1]
            return str(first.tag)
    parser.close()
    raise DomainError("the domain XML has no element")


def _drop(element: Any, kept: Kept, checked: dict[_Element, int]) -> None:
    """Drop what is not kept below an element of which neither end nor last child is complete.

    checked has the number of children that have been checked, for each such element.
    """
    while len(element):
        tags = kept.get(element.tag, ())
        if not tags:
            del element[:-1]
        else:
            first = checked.get(element, 0)
            for child in element[first:-1]:
                _drop_inside(child, tags, kept)
            checked[element] = len(element) - 1
            if len(element) > _MOST:
                raise DomainError(f"the domain XML has more than {_MOST} elements of one kind")
        if element[-1].tag not in tags:
            kept = {}
        element = element[-1]


def _drop_inside(element: Any, tags: Collection[str], kept: Kept) -> None:
    """Drop an element that has ended, or what is not kept in it."""
    if element.tag not in tags:
        parent = element.getparent()
        if parent is not None:
            parent.remove(element)
        return
    inside = kept.get(element.tag, ())
    for child in element[:]:
        _drop_inside(child, inside, kept)
