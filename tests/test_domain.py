"""Which PCI devices a domain XML assigns, in every form that libvirt and QEMU take."""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from vfio_console_hook import domain
from vfio_console_hook.domain import Domain, Hostdev
from vfio_console_hook.errors import DomainError

DOMAINS = Path(__file__).parent / "domains"
CAPTURES = sorted(DOMAINS.glob("*.xml"))
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def xml(
    devices: str = "", command_line: str = "", *, name: str = "win11", uuid: str = UUID
) -> bytes:
    return (
        f"<domain type='kvm' {QEMU}><name>{name}</name><uuid>{uuid}</uuid>\n"
        f"<devices>{devices}</devices>\n"
        f"<qemu:commandline>{command_line}</qemu:commandline></domain>\n"
    ).encode()


def hostdev(address: str, attributes: str = "mode='subsystem' type='pci' managed='yes'") -> str:
    return f"<hostdev {attributes}><source><address {address}/></source></hostdev>"


GPU = hostdev("bus='1'")
OTHER = hostdev("bus='9'")


def args(*values: str) -> str:
    return "".join(f"<qemu:arg value={quoteattr(value)}/>" for value in values)


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_the_xml_of_libvirt_has_the_vm_and_its_two_devices(capture: Path) -> None:
    content = capture.read_bytes()

    parsed = domain.parse(content)

    # The decoy 0000:09:09.1 in <metadata> is not among them.
    lines = content.splitlines()
    first, second = (n for n, line in enumerate(lines, 1) if b"    <hostdev mode='" in line)
    assert parsed == Domain(
        name="win11",
        uuid=UUID,
        hostdevs=(
            Hostdev("0000:01:00.0", True, "hostdev", first),
            Hostdev("0000:01:00.1", True, "hostdev", second),
        ),
    )


def test_there_is_a_capture_of_every_event_of_three_libvirts() -> None:
    events = ("prepare-begin", "release-end", "start-begin", "started-begin", "stopped-end")
    versions = ("11.3.0", "7.0.0", "9.0.0")

    names = [f"libvirt-{version}-{event}" for version in versions for event in events]
    assert [path.stem for path in CAPTURES] == names


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("domain='0x0000' bus='0x0a' slot='0x1f' function='0x7'", "0000:0a:1f.7"),
        ("domain='0' bus='10' slot='31' function='7'", "0000:0a:1f.7"),
        ("domain='0' bus='012' slot='037' function='07'", "0000:0a:1f.7"),
        ("domain='0X0' bus='0XFF' slot='0X1F' function='0X0'", "0000:ff:1f.0"),
        ("bus=' 1' slot='+2' function=' +0x3'", "0000:01:02.3"),
        ("bus='&#9;1' slot='&#10;2' function='&#13;3'", "0000:01:02.3"),
        ("bus='0x00000000000000000000000000000001'", "0000:01:00.0"),
        ("bus='00'", "0000:00:00.0"),
        ("slot='3'", "0000:00:03.0"),
        ("", "0000:00:00.0"),
        ("domain='0x10000' bus='0xe1'", "10000:e1:00.0"),
        ("domain='0xFFFFFFFF' bus='1'", "ffffffff:01:00.0"),
        ("domain='4294967295' bus='1'", "ffffffff:01:00.0"),
        ("domain='037777777777' bus='1'", "ffffffff:01:00.0"),
        # libvirt checks no limits when the other three are 0.
        ("function='8'", "0000:00:00.8"),
    ],
)
def test_numbers_are_read_as_libvirt_reads_them(written: str, address: str) -> None:
    assert domain.hostdev_addresses(xml(hostdev(written))) == (address,)


@pytest.mark.parametrize(
    "number",
    ["1f", "08", "-1", "0b1", "0o7", "1 ", "", " ", "+", "+ 1", "--1", "0x", "0xg", "1.0", "1_0"]
    + ["\u0661", "\u00a01", "0x100000000", "4294967296", "9" * 5000, "0x" + "f" * 5000],
)
def test_the_error_for_a_number_that_libvirt_rejects_has_its_line(number: str) -> None:
    with pytest.raises(DomainError) as caught:
        domain.hostdevs(xml("\n" + hostdev(f"bus='{number}'")))

    assert caught.value.text == (
        f"not a number that libvirt accepts: bus='{number[:50]}' in line 3 of the domain XML"
    )


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("bus='0x100'", "0000:100:00.0"),
        ("bus='1' slot='32'", "0000:01:20.0"),
        ("bus='1' function='8'", "0000:01:00.8"),
        ("domain='1' function='8'", "0001:00:00.8"),
    ],
)
def test_the_error_for_an_address_that_libvirt_rejects_has_its_line(
    written: str, address: str
) -> None:
    with pytest.raises(DomainError) as caught:
        domain.hostdevs(xml(hostdev(written)))

    assert caught.value.text == (
        f"no PCI device can have the address {address} in line 2 of the domain XML"
    )


@pytest.mark.parametrize(
    ("attributes", "managed"),
    [
        ("mode='subsystem' type='pci' managed='yes'", True),
        ("mode='subsystem' type='pci' managed='no'", False),
        ("type='pci'", False),
        ("type='pci' managed='YES'", False),
    ],
)
def test_a_device_is_managed_only_if_managed_is_yes(attributes: str, managed: bool) -> None:
    assert domain.hostdevs(xml(hostdev("bus='1'", attributes))) == (
        Hostdev("0000:01:00.0", managed, "hostdev", 2),
    )


@pytest.mark.parametrize("second", ["managed='yes'", "managed='no'"])
def test_a_device_written_twice_is_there_once_and_managed_if_any_is(second: str) -> None:
    devices = (
        hostdev("bus='1'", "type='pci' managed='no'")
        + hostdev("bus='2'")
        + hostdev("bus='0x01'", f"type='pci' {second}")
    )

    found = domain.hostdevs(xml(devices, args("-device", "vfio-pci,host=02:00.0")))

    assert found == (
        Hostdev("0000:01:00.0", second == "managed='yes'", "hostdev", 2),
        Hostdev("0000:02:00.0", True, "hostdev", 2),
    )


@pytest.mark.parametrize(
    "devices",
    [
        hostdev("bus='1'", "mode='subsystem' type='usb'"),
        hostdev("bus='1'", "mode='subsystem' type='scsi_host'"),
        hostdev("bus='1'", "mode='capabilities' type='pci'"),
        hostdev("bus='1'", "mode='subsystem'"),
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>"
        f"<address uuid='{UUID}'/></source><address type='pci' bus='1'/></hostdev>",
        "<interface type='hostdev' managed='yes'><source>"
        "<address type='pci' bus='1'/></source></interface>",
        "<disk type='nvme'><source type='pci' managed='yes'><address bus='1'/></source></disk>",
        "<controller type='pci'><address type='pci' bus='1'/></controller>",
        f"<wrapper>{GPU}</wrapper>",
        f"<!-- {GPU} -->",
        "<x:hostdev xmlns:x='urn:x' type='pci'><source><address bus='1'/></source></x:hostdev>",
    ],
    ids=lambda text: text[:40],
)
def test_elements_that_are_not_pci_hostdevs_are_left_out(devices: str) -> None:
    assert domain.hostdevs(xml(devices)) == ()


def test_the_guest_address_of_a_device_is_not_its_host_address() -> None:
    devices = (
        "<hostdev type='pci'><address type='pci' bus='6'/>"
        "<source><address bus='1'/></source></hostdev>"
    )

    assert domain.hostdev_addresses(xml(devices)) == ("0000:01:00.0",)


@pytest.mark.parametrize("inside", ["", "<source/>", "<address type='pci' bus='6'/>"])
def test_a_device_without_host_address_is_an_error(inside: str) -> None:
    with pytest.raises(DomainError) as caught:
        domain.hostdevs(xml(f"<hostdev type='pci'>{inside}</hostdev>"))

    assert caught.value.text == "no <source> address in the <hostdev> in line 2 of the domain XML"


@pytest.mark.parametrize(
    "words",
    [
        ("-device", "vfio-pci,host=0000:01:00.0"),
        ("-device", "vfio-pci,host=01:00.0"),
        ("-device", "vfio-pci,host=1:0.0"),
        ("--device", "vfio-pci,host=01:00.0"),
        ("-device=vfio-pci,host=01:00.0",),
        ("-device", "vfio-pci-nohotplug,host=01:00.0"),
        ("-device", "driver=vfio-pci,host=01:00.0"),
        ("-device", "id=gpu,x-vga=on,host=01:00.0,driver=vfio-pci"),
        ("-device", "vfio-pci,host=09:00.0,host=01:00.0"),
        ("-device", "vfio-pci,romfile=/a,,host=09:00.0,,b,host=01:00.0"),
        ("-device", "vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:01:00.0"),
        ("-device", "vfio-pci,sysfsdev=/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/"),
        ("-device", "vfio-pci,host=09:00.0,sysfsdev=/sys/bus/pci/devices/0000:01:00.0"),
        ("-device", '{"driver":"vfio-pci","host":"0000:01:00.0"}'),
        ("-device", ' {"host": "01:00.0", "x-vga": true, "driver": "vfio-pci", "bootindex": 1}'),
        ("-device", '{"driver":"vfio-pci","sysfsdev":"/sys/bus/pci/devices/0000:01:00.0"}'),
        ("-device", "{'driver':'vfio-pci','id':'a\"b\\'c','host':'0000:01:00.0'}"),
        ("-name", "x", "-device", "e1000", "-device", "vfio-pci,host=01:00.0", "-s"),
    ],
    ids=" ".join,
)
def test_a_vfio_device_on_qemus_command_line_is_found(words: tuple[str, ...]) -> None:
    found = domain.hostdevs(xml(command_line=args(*words)))

    rom = "/a,host=09:00.0,b" if "romfile" in words[-1] else ""
    assert found == (Hostdev("0000:01:00.0", False, "qemu:commandline", 3, rom),)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("0A:1F.7", "0000:0a:1f.7"),
        ("ABCD:EF:00.1", "abcd:ef:00.1"),
        ("10000:e1:00.0", "10000:e1:00.0"),
    ],
)
def test_addresses_in_qemus_format_are_converted_to_the_kernels(written: str, address: str) -> None:
    command_line = args("-device", f"vfio-pci,host={written}")

    assert domain.hostdev_addresses(xml(command_line=command_line)) == (address,)


@pytest.mark.parametrize(
    "words",
    [
        ("-device", "virtio-vga,id=vfio-pci,host=01:00.0"),
        ("-device", '{"driver":"virtio-vga","id":"vfio-pci"}'),
        ("-device", "vfio-pci"),
        ("-device", "vfio-pci,id=gpu"),
        ("-device", f"vfio-pci,sysfsdev=/sys/bus/mdev/devices/{UUID}"),
        ("-device", "vfio-pci,id=a,,host=01:00.0"),
        ("-device", '{"driver":"vfio-pci","host":5}'),
        ("-name", "vfio-pci,host=01:00.0"),
        ("vfio-pci,host=01:00.0",),
        ("-device",),
    ],
    ids=" ".join,
)
def test_qemu_arguments_that_assign_no_pci_device_are_left_out(
    words: tuple[str, ...],
) -> None:
    assert domain.hostdevs(xml(command_line=args(*words))) == ()


def test_arguments_outside_of_qemus_namespace_are_left_out() -> None:
    outside = (
        f"<domain xmlns:qemu='urn:other'><qemu:commandline>"
        f"{args('-device', 'vfio-pci,host=01:00.0')}</qemu:commandline></domain>"
    )

    assert domain.hostdevs(outside.encode()) == ()


def test_a_qemu_argument_with_a_broken_address_is_an_error() -> None:
    with pytest.raises(DomainError) as caught:
        domain.hostdevs(xml(command_line=args("-device", "vfio-pci,host=gpu")))

    assert caught.value.text == "not a PCI address: host=gpu in line 3 of the domain XML"


@pytest.mark.parametrize("text", ['{"driver":"vfio-pci"', "{'vfio-pci", '{"vfio-pci":' * 100_000])
def test_a_qemu_argument_with_broken_json_is_an_error(text: str) -> None:
    with pytest.raises(DomainError, match=r"^not JSON in the -device argument in line 3 of the"):
        domain.hostdevs(xml(command_line=args("-device", text)))


def test_devices_come_in_document_order() -> None:
    swapped = (
        f"<domain {QEMU}><qemu:commandline>{args('-device', 'vfio-pci,host=05:00.0')}"
        f"</qemu:commandline><devices>{OTHER}{GPU}</devices></domain>"
    )

    found = domain.hostdev_addresses(swapped.encode())

    assert found == ("0000:05:00.0", "0000:09:00.0", "0000:01:00.0")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("--help", "--help"),
        ("..", ".."),
        (" ", " "),
        ("a\nb\n", "a\nb\n"),
        ("a&#10;b", "a\nb"),
        ("gr\u00fcn \u7eff", "gr\u00fcn \u7eff"),
        ("&lt;b&gt; &amp; 'q'", "<b> & 'q'"),
        ("a<!-- x -->b", "ab"),
    ],
)
def test_a_name_may_hold_anything(written: str, name: str) -> None:
    assert domain.parse(xml(name=written)) == Domain(name, UUID, ())


@pytest.mark.parametrize("written", [UUID.upper(), UUID.replace("-", ""), f"\n  {UUID}\n"])
def test_a_uuid_is_converted_to_one_form(written: str) -> None:
    assert domain.parse(xml(uuid=written)).uuid == UUID


@pytest.mark.parametrize("written", ["", "../../etc/passwd", UUID[:-1], UUID + "0", "g" + UUID[1:]])
def test_text_that_is_not_a_uuid_is_an_error(written: str) -> None:
    with pytest.raises(DomainError) as caught:
        domain.parse(xml(uuid=written))

    assert caught.value.text == f"not a UUID in <uuid> of the domain XML: {written!r}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<domain><name>a</name></domain>", "the domain XML has no <uuid>"),
        (f"<domain><uuid>{UUID}</uuid></domain>".encode(), "the domain XML has no <name>"),
        (b"<domain><name/></domain>", "the domain XML has no <name>"),
        (b"<network/>", "not a domain XML: the root element is <network>"),
        (b"<d:domain xmlns:d='u'/>", "not a domain XML: the root element is <{u}domain>"),
        (b"<domstatus><domain/></domstatus>", "not a domain XML: the root element is <domstatus>"),
    ],
)
def test_xml_that_does_not_describe_a_vm_is_an_error(content: bytes, text: str) -> None:
    with pytest.raises(DomainError) as caught:
        domain.parse(content)

    assert str(caught.value) == text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"not XML",
        b"\0\0\0\0",
        b"\x7fELF",
        b"<domain>",
        b"<domain></devices>",
        b"<domain/><domain/>",
        b"<domain>\xff</domain>",
        b"<domain>&nbsp;</domain>",
        b"<domain a='1' a='2'/>",
        b"<?xml version='1.0' encoding='none-such'?><domain/>",
        b"<domain>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</domain>",
        xml()[:-20],
    ],
    ids=lambda content: repr(content[:30]),
)
def test_the_error_for_broken_xml_is_one_short_line(content: bytes) -> None:
    with pytest.raises(DomainError) as caught:
        domain.parse(content)

    assert re.fullmatch("the domain XML is not well-formed: .{5,200}", caught.value.text)


ENTITIES = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10 if n else 'ha'}'>" for n in range(12))
DOCTYPES = {
    "plain": "<!DOCTYPE domain><domain/>",
    "bomb in a text": f"<!DOCTYPE domain [{ENTITIES}]><domain>&e11;</domain>",
    "bomb in an attribute": f"<!DOCTYPE domain [{ENTITIES}]><domain a='&e11;'/>",
    "file": "<!DOCTYPE domain [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><domain>&f;</domain>",
    "file as DTD": "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>",
    "behind a comment": "\ufeff<?xml version='1.0'?>\n<!-- <a> --><?p?> <!DOCTYPE d><domain/>",
}


@pytest.mark.parametrize("content", DOCTYPES.values(), ids=DOCTYPES)
def test_a_doctype_is_refused(content: str) -> None:
    with pytest.raises(DomainError) as caught:
        domain.hostdevs(content.encode())

    assert caught.value.text == "the domain XML has a DOCTYPE, which libvirt never writes"


@pytest.mark.parametrize("name", ["bomb in a text", "bomb in an attribute", "file"])
def test_a_doctype_in_utf16_is_refused_too(name: str) -> None:
    with pytest.raises(DomainError, match=r"has a DOCTYPE|is not well-formed"):
        domain.hostdevs(DOCTYPES[name].encode("utf-16"))


def test_the_word_doctype_in_a_comment_or_in_text_does_no_harm() -> None:
    content = xml(GPU).replace(
        b"<devices>", b"<!-- <!DOCTYPE a> --><title><![CDATA[<!DOCTYPE b>]]></title><devices>"
    )

    assert domain.hostdev_addresses(content) == ("0000:01:00.0",)


def test_ten_megabytes_of_metadata_are_read() -> None:
    metadata = b"<metadata>" + b"<a b='some text'>more of it</a>\n" * 330_000 + b"</metadata>"
    content = xml(GPU).replace(b"<devices>", metadata + b"<devices>")

    assert len(content) > 10_000_000
    assert domain.hostdev_addresses(content) == ("0000:01:00.0",)


def big(devices: str = GPU, *, metadata: bytes = b"<a b='c'>d</a>\n") -> bytes:
    """A domain XML that is read in parts."""
    more = b"<metadata>" + metadata * (1_000_000 // len(metadata)) + b"</metadata><devices>"
    return xml(devices).replace(b"<devices>", more)


@pytest.mark.parametrize("devices", [GPU, GPU + OTHER, "", GPU + hostdev("bus='1'")])
def test_a_large_xml_is_read_like_a_small_one(devices: str) -> None:
    small = domain.parse(xml(devices, args("-device", "vfio-pci,host=03:00.0")))

    large = domain.parse(
        big(devices).replace(
            b"<qemu:commandline>",
            b"<qemu:commandline>" + args("-device", "vfio-pci,host=03:00.0").encode(),
        )
    )

    assert (large.name, large.uuid) == (small.name, small.uuid)
    assert [one.address for one in large.hostdevs] == [one.address for one in small.hostdevs]
    assert [one.managed for one in large.hostdevs] == [one.managed for one in small.hostdevs]


def test_decoys_in_a_large_xml_are_left_out() -> None:
    decoy = f"<devices>{OTHER}</devices><domain><devices>{OTHER}</devices></domain>".encode()

    assert domain.hostdev_addresses(big(metadata=decoy)) == ("0000:01:00.0",)


def test_the_address_of_a_device_is_found_among_other_elements() -> None:
    inside = "<a/>x" * 20_000
    devices = GPU.replace("<source>", f"{inside}<source>{inside}").replace(
        "</source>", f"{inside}</source>{inside}"
    )

    assert domain.hostdev_addresses(big(devices)) == ("0000:01:00.0",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<a>" + b"<b/>" * 100_000 + b"</a>", "not a domain XML: the root element is <a>"),
        (big()[:-20], "the domain XML is not well-formed: "),
        (b"<!DOCTYPE domain>" + big(), "the domain XML has a DOCTYPE"),
        (("<!DOCTYPE domain>" + big().decode()).encode("utf-16"), "the domain XML has a DOCTYPE"),
        (b" " * 300_000, "the domain XML is not well-formed: "),
        (
            xml().replace(
                b"<devices>",
                b"<a %s/><devices>" % b" ".join(b"xmlns:n%d='u'" % n for n in range(50_000)),
            ),
            "the domain XML has an element with a thousand attributes",
        ),
        (
            xml(hostdev("") * 21_000),
            "the domain XML has more than 20000 elements of one kind",
        ),
    ],
    ids=["root", "cut", "doctype", "utf16", "blanks", "namespaces", "devices"],
)
def test_the_error_for_a_bad_large_xml_is_one_short_line(content: bytes, text: str) -> None:
    with pytest.raises(DomainError) as caught:
        domain.parse(content)

    assert len(caught.value.text) < 300
    assert caught.value.text.startswith(text)


def test_brackets_in_a_value_do_not_count_as_attributes() -> None:
    metadata = b'<a b=\'>c="d">e="f"\'/>'

    assert domain.hostdev_addresses(big(metadata=metadata)) == ("0000:01:00.0",)


def test_unterminated_quotes_are_scanned_once() -> None:
    # One scan to the end for each quote took minutes.
    with pytest.raises(DomainError, match="not JSON in the -device argument"):
        domain.parse(xml("", args("-device", "{vfio-pci" + '"\\' * 60_000)))
