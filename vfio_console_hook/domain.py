"""The domain XML: name and uuid of a VM, and the PCI devices of the host that it gets.

Whether a device exists or is a GPU is not known here. The text is not trusted: no entity is
expanded, and nothing outside the given bytes is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .errors import DomainError, InstallationError
from .value import Value

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

    from lxml.etree import _Element

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# The tags inside of a tag that are read. "driver" is for snapshot/domain_outline.py.
READ: dict[str, tuple[str, ...]] = {
    "domain": ("name", "uuid", "devices", f"{_QEMU}commandline"),
    "devices": ("hostdev",),
    "hostdev": ("source", "address", "driver", "rom"),
    "source": ("address",),
    f"{_QEMU}commandline": (f"{_QEMU}arg",),
}
# A smaller text takes at most 60 MB as a tree.
_LARGE = 256 * 1024
_VFIO_DRIVERS = ("vfio-pci", "vfio-pci-nohotplug")

# What strtoul accepts with base 0, without what libvirt's virStrToLong_uip rejects: "-",
# and text after the number (libvirt src/util/virstring.c).
_UNSIGNED = re.compile(r"[ \t\n\r]*\+?(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")
# QEMU's form of a host address, in hex but for the function, domain optional
# (QEMU hw/core/qdev-properties-system.c, set_pci_host_devaddr).
_HOST = r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])"


@dataclass(frozen=True, eq=False, repr=False)
class Hostdev(Value):
    """A PCI device of the host that a VM gets.

    address is a full PCI address in lower case, such as "0000:01:00.0". managed is
    whether libvirt detaches it from its driver and gives it back. origin is the element
    that assigns it, "hostdev" or "qemu:commandline"; line is its line. rom is the file that
    QEMU loads in place of its option ROM, "" for none.
    """

    address: str
    managed: bool
    origin: str
    line: int
    rom: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Domain(Value):
    """A VM; name may hold anything, even newlines; uuid is in lower case with hyphens.

    by_hand: the command `take` takes the devices, not a VM; bind_vfio: it binds them to
    vfio-pci, as libvirt would; configured_as: whose configuration applies, if not that of name.
    until: when a rehearsal gives the devices back, in seconds since 1970, 0 if it is none; spared:
    the addresses of the VM's other devices, which stay with the host in a rehearsal.
    """

    name: str
    uuid: str
    hostdevs: tuple[Hostdev, ...]
    by_hand: bool = False
    bind_vfio: bool = False
    configured_as: str = ""
    until: float = 0.0
    spared: tuple[str, ...] = ()


def parse(xml: bytes) -> Domain:
    """The VM that a domain XML describes.

    Raises DomainError when it is not XML, not a domain, or not acceptable to libvirt.
    """
    root = tree(xml)
    name = root.findtext("name")
    if not name:
        raise DomainError("the domain XML has no <name>")
    return Domain(name, _uuid(root), _unique(_assigned(root)))


def hostdevs(xml: bytes) -> tuple[Hostdev, ...]:
    """The PCI devices of the host that a domain assigns, in document order, each once.

    Raises DomainError. Interfaces of type hostdev are left out: they are SR-IOV
    virtual functions, and those of a network card.
    """
    return _unique(_assigned(tree(xml)))


def hostdev_addresses(xml: bytes) -> tuple[str, ...]:
    """The host addresses of what hostdevs() returns, such as "0000:01:00.0"."""
    return tuple(hostdev.address for hostdev in hostdevs(xml))


def tree(xml: bytes) -> _Element:
    """The root element of a domain XML, with at least what is in READ. Raises DomainError."""
    try:
        from lxml import etree  # takes 6 ms to load, so only when there is XML to read
    except Exception as error:  # half of it may be there
        raise InstallationError.of("lxml", error) from error
    if b"<!DOCTYPE" in xml:
        _refuse_doctype(xml)
    # libxml2's limits stay on (no huge_tree): libvirt parses with the same ones.
    options: dict[str, Any] = {
        "resolve_entities": False,
        "no_network": True,
        "load_dtd": False,
        "recover": False,
        "remove_comments": True,
        "remove_pis": True,
    }
    try:
        if len(xml) > _LARGE:
            from . import largexml  # metadata of that size are rare

            return largexml.pruned_tree(xml, READ, options, _check_root)
        root = etree.fromstring(xml, etree.XMLParser(**options))
    except etree.XMLSyntaxError as error:
        reason = " ".join(str(error.msg or "empty document").split())
        raise DomainError(f"the domain XML is not well-formed: {reason[:200]}") from error
    _check_root(root)
    return root


def _check_root(root: _Element) -> None:
    if root.getroottree().docinfo.internalDTD is not None:
        raise _doctype_error()
    if root.tag != "domain":
        raise DomainError(f"not a domain XML: the root element is <{root.tag[:50]}>")


def _refuse_doctype(xml: bytes) -> None:
    # The text may also be in a comment, or in <metadata>. A DOCTYPE is before the root
    # element, and only blanks, comments and instructions are before it.
    misc = re.compile(rb"\s+|<\?.*?\?>|<!--.*?-->", re.DOTALL)
    position = len(b"\xef\xbb\xbf") if xml.startswith(b"\xef\xbb\xbf") else 0
    while found := misc.match(xml, position):
        position = found.end()
    if xml.startswith(b"<!DOCTYPE", position):
        raise _doctype_error()


def _doctype_error() -> DomainError:
    return DomainError("the domain XML has a DOCTYPE, which libvirt never writes")


def _uuid(root: _Element) -> str:
    text = root.findtext("uuid")
    if text is None:
        raise DomainError("the domain XML has no <uuid>")
    # libvirt accepts hyphens anywhere (src/util/viruuid.c, virUUIDParse). It becomes a file
    # name, so nothing else is accepted.
    digits = text.strip().replace("-", "").lower()
    if not re.fullmatch("[0-9a-f]{32}", digits):
        raise DomainError(f"not a UUID in <uuid> of the domain XML: {text[:50]!r}")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _unique(found: Iterator[Hostdev]) -> tuple[Hostdev, ...]:
    unique: dict[str, Hostdev] = {}
    for hostdev in found:
        first = unique.setdefault(hostdev.address, hostdev)
        if hostdev.managed and not first.managed:
            unique[hostdev.address] = replace(first, managed=True)
    return tuple(unique.values())


def _assigned(root: _Element) -> Iterator[Hostdev]:
    # By path, never by searching: <metadata> may hold a <hostdev> of an application.
    for child in root:
        if child.tag == "devices":
            yield from _from_devices(child)
        elif child.tag == f"{_QEMU}commandline":
            yield from _from_command_line(child)


def _from_devices(devices: _Element) -> Iterator[Hostdev]:
    for element in devices.iterfind("hostdev"):
        if element.get("type") != "pci" or element.get("mode", "subsystem") != "subsystem":
            continue
        # The <address> directly below <hostdev> is the guest's.
        address = element.find("source/address")
        if address is None:
            raise DomainError(
                f"no <source> address in the <hostdev> in line {line_of(element)} of the domain XML"
            )
        managed = element.get("managed") == "yes"
        rom = element.find("rom")
        file = "" if rom is None or rom.get("enabled") == "no" else rom.get("file", "")
        yield Hostdev(_source_address(address), managed, "hostdev", line_of(element), file)


def _source_address(address: _Element) -> str:
    domain, bus, slot, function = (
        _number(address, name) for name in ("domain", "bus", "slot", "function")
    )
    # libvirt checks no limits when the first three are 0 (src/conf/device_conf.c,
    # virPCIDeviceAddressParseXML), and none for the domain: those of VMD are large.
    if (domain or bus or slot) and (bus > 0xFF or slot > 0x1F or function > 7):
        raise DomainError(
            f"no PCI device can have the address {_address(domain, bus, slot, function)}"
            f" in line {line_of(address)} of the domain XML"
        )
    return _address(domain, bus, slot, function)


def _number(address: _Element, name: str) -> int:
    text = address.get(name)
    if text is None:
        return 0
    found = _UNSIGNED.fullmatch(text)
    if found:
        hexadecimal, octal, decimal = found.groups()
        digits = hexadecimal or octal or decimal
        base = 16 if hexadecimal else 8 if octal else 10
        # The length first: int() raises ValueError for more than 4300 decimal digits.
        if len(digits.lstrip("0")) <= 11 and (number := int(digits, base)) <= 0xFFFFFFFF:
            return number
    raise DomainError(
        f"not a number that libvirt accepts: {name}='{text[:50]}'"
        f" in line {line_of(address)} of the domain XML"
    )


def _address(domain: int, bus: int, slot: int, function: int) -> str:
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"


def line_of(element: Any) -> int:
    """The line of an element, 0 if it is not known."""
    # Any, because lxml-stubs lacks its type.
    return element.sourceline or 0


def _from_command_line(command_line: _Element) -> Iterator[Hostdev]:
    option = ""
    for element in command_line.iterfind(f"{_QEMU}arg"):
        word = element.get("value", "")
        if option:
            option, argument = "", word
        elif word in ("-device", "--device"):
            option, argument = word, ""
        else:
            argument = word.partition("=")[2] if word.startswith(("-device=", "--device=")) else ""
        if "vfio-pci" not in argument:
            continue
        line = line_of(element)
        options = _json(argument, line) if argument.lstrip().startswith("{") else _options(argument)
        address = _vfio_address(options, line)
        if address is not None:
            rom = options.get("romfile", "")
            yield Hostdev(address, False, "qemu:commandline", line, rom)


def _vfio_address(options: dict[str, str], line: int) -> str | None:
    """The host address in the options of a `-device`; None when it assigns no PCI device."""
    if options.get("driver") not in _VFIO_DRIVERS:
        return None
    # sysfsdev overrides host (QEMU hw/vfio/pci.c), and may be an mdev.
    path = options.get("sysfsdev")
    if path:
        text = path.rstrip("/").rpartition("/")[2]
        found = re.fullmatch(_HOST, text.lower())
        if found is None or found[1] is None:
            return None
    else:
        text = options.get("host", "")
        found = re.fullmatch(_HOST, text.lower())
        if found is None and text:
            raise DomainError(
                f"not a PCI address: host={text[:50]} in line {line} of the domain XML"
            )
    if found is None:
        return None
    domain, bus, slot = (int(digits or "0", 16) for digits in found.group(1, 2, 3))
    return _address(domain, bus, slot, int(found[4]))


def _options(argument: str) -> dict[str, str]:
    # A comma inside a value is doubled, and "driver=" is optional in front of the first word
    # (QEMU util/qemu-option.c). XML cannot hold a NUL.
    words = argument.replace(",,", "\0").split(",")
    if "=" not in words[0]:
        words[0] = f"driver={words[0]}"
    pairs = (word.replace("\0", ",").partition("=") for word in words)
    return {name: value for name, _, value in pairs}


def _json(argument: str, line: int) -> dict[str, str]:
    import json  # only for this form

    # QEMU accepts strings in single quotes too (QEMU qobject/json-lexer.c). One that never
    # ends is matched to the end of the text: backtracking would take minutes.
    strings = re.compile(r""""(?:\\.|[^"\\])*"?|'((?:\\.|[^'\\])*)'?""", re.DOTALL)
    text = strings.sub(_double_quoted, argument)
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DomainError(
            f"not JSON in the -device argument in line {line} of the domain XML: {error}"
        ) from error
    return {name: value for name, value in options.items() if isinstance(value, str)}


def _double_quoted(string: re.Match[str]) -> str:
    inside = string[1]
    if inside is None:
        return string[0]
    return '"' + inside.replace("\\'", "'").replace('"', '\\"') + '"'
