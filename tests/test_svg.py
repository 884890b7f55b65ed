"""The picture of GPUs' address ranges, parsed as XML."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from lxml import etree

from tests.building import G, K, M
from tests.conftest import Golden
from tests.drawn import BASE, MACHINES, a_gpu, gpus, reservation, sized
from vfio_console_hook.commands.plan import drawing
from vfio_console_hook.machine.gpu import Gpu
from vfio_console_hook.machine.iomem import Reservation
from vfio_console_hook.machine.memory import Bar

SVG = "{http://www.w3.org/2000/svg}"
# The least that a part may be wide, and half of what a width is rounded to.
LEAST, ROUNDED = 6, 0.051


def free(given: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The same GPUs with nothing in their BARs."""
    return tuple(replace(one, reservations=()) for one in given)


def read(picture: str) -> etree._Element:
    return etree.fromstring(picture.encode("utf-8"))


def boxes(picture: str, kind: str) -> list[tuple[float, float]]:
    """Where the boxes of a kind begin, from the left, and their widths."""
    found = read(picture).iter(f"{SVG}rect")
    return [
        (float(one.attrib["x"]), float(one.attrib["width"]))
        for one in found
        if one.get("class") == kind and one.get("height") == "22"
    ]


def texts(picture: str) -> list[str]:
    return [one.text or "" for one in read(picture).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", MACHINES)
def test_bars_of_a_gpu_are_as_wide_as_they_are_large(name: str) -> None:
    for one in gpus(name):
        picture = drawing.picture(name, (one,), (one,))

        sizes = [bar.range.last - bar.range.first + 1 for bar in one.bars]
        widths = [width for _, width in boxes(picture, "bar")]
        assert len(widths) == len(sizes)
        scale = max(widths) / max(sizes)
        for bar, size, width in zip(one.bars, sizes, widths):
            if re.search(f"[:,] BAR {bar.number}[,.]", texts(picture)[-1]):
                assert size * scale < width <= 4 * LEAST
            else:
                assert width == pytest.approx(size * scale, abs=ROUNDED)


@pytest.mark.parametrize("name", MACHINES)
def test_every_reservation_is_named_where_it_lies(name: str) -> None:
    before = gpus(name)

    words = texts(drawing.picture(name, before, free(before)))

    for reserved in (reserved for one in before for reserved in one.reservations):
        at = next(index for index, line in enumerate(words) if str(reserved.range) in line)
        # A reservation of a whole BAR is named beside the BAR.
        assert reserved.name in words[at] + words[at + 1]


@pytest.mark.parametrize("name", MACHINES)
def test_nothing_is_drawn_outside_the_sheet(name: str) -> None:
    before = gpus(name)

    sheet = read(drawing.picture(name, before, free(before)))

    for one in sheet.findall(f"{SVG}rect"):
        right = float(one.attrib["x"]) + float(one.attrib["width"])
        bottom = float(one.attrib["y"]) + float(one.attrib["height"])
        assert right < float(sheet.attrib["width"])
        assert bottom < float(sheet.attrib["height"])
    for one in sheet.findall(f"{SVG}text"):
        # No letter of a usual font is wider than two thirds of its height, on average.
        length = len(one.text or "") * float(one.attrib["font-size"]) * 0.62
        assert float(one.attrib["x"]) + length < float(sheet.attrib["width"])


@pytest.mark.parametrize("name", ["efifb-6.12", "nvidia-bootfb-bar3"])
def test_pictures_of_machines(golden: Golden, name: str) -> None:
    before = gpus(name)

    golden(f"svg-{name}.svg", drawing.picture("GPU memory of VM win11", before, free(before)))


def test_a_reservation_lies_to_scale_in_its_bar() -> None:
    before = a_gpu(reservation("efifb", 4 * M, 8 * M))

    picture = drawing.picture("win11", (before,), free((before,)))

    ((left, width), *_) = boxes(picture, "bar")
    ((claim_left, claim_width),) = boxes(picture, "console")
    assert claim_left == pytest.approx(left + width / 4, abs=ROUNDED)
    assert claim_width == pytest.approx(width / 2, abs=ROUNDED)


def test_a_part_that_is_too_small_is_enlarged_and_listed() -> None:
    bars = (Bar(0, sized(0x2800000000, 32 * G)), Bar(5, sized(BASE, 512 * K)))
    page = Reservation("simpledrm", sized(0x2C00000000, 4 * K), 0)

    picture = drawing.picture("win11", (a_gpu(page, bars=bars),), ())

    assert [width for _, width in boxes(picture, "console")] == [LEAST]
    assert boxes(picture, "bar")[1][1] == LEAST
    assert "full width is 32 GiB" in texts(picture)[-1]
    assert texts(picture)[-1].endswith(": simpledrm in BAR 0, BAR 5.")


def test_a_bar_is_drawn_twice_only_where_something_changes() -> None:
    bars = (Bar(0, sized(BASE, 16 * M)), Bar(2, sized(0xFEB00000, 4 * K)))
    before = a_gpu(reservation("efifb", 0, 4 * M), bars=bars)

    words = texts(drawing.picture("win11", (before,), free((before,))))

    assert [line for line in words if line.startswith(("before", "after"))] == [
        "before: blocked by efifb",
        "after: free",
        "before and after: free",
    ]


def test_a_bar_that_moved_is_shown_at_both_places() -> None:
    before = a_gpu(driver="bochs-drm")
    after = a_gpu(bars=(Bar(0, sized(0xD0000000, 16 * M)),), driver="vfio-pci")

    words = texts(drawing.picture("win11", (before,), (after,)))

    assert words[2:7] == [
        "GPU 0000:01:00.0 (class 0300), driver: bochs-drm, then vfio-pci",
        "BAR 0  c0000000-c0ffffff  16 MiB",
        "before: free",
        "BAR 0  d0000000-d0ffffff  16 MiB",
        "after: free",
    ]


def test_all_kinds_differ_in_colour_hatch_and_legend() -> None:
    reserved = (
        reservation("efifb", 0, M),
        reservation("strangefb", 2 * M, M),
        reservation("vfio-pci", 4 * M, M),
    )
    before = a_gpu(*reserved, driver="vfio-pci")
    other = replace(a_gpu(reservation("nvidia", 0, M), driver="nvidia"), address="0000:02:00.0")

    picture = drawing.picture("win11", (before, other), ())

    patterns = list(read(picture).iter(f"{SVG}pattern"))
    assert len({one[0].get("fill") for one in patterns}) == 5
    assert len({one[1].get("d") for one in patterns}) == 5
    assert texts(picture)[1:6] == [
        "firmware console: blocks the BAR",
        "unknown: blocks the BAR",
        "the GPU's own driver",
        "vfio, for a VM",
        "free",
    ]
    for kind in ("console", "unknown", "driver", "vfio"):
        assert len(boxes(picture, kind)) == 1


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("win11", "win11"),
        ("</title><script>alert(1)</script>", "</title><script>alert(1)</script>"),
        ("]]> & &lt; \"a\" 'b'", "]]> & &lt; \"a\" 'b'"),
        ("a\0b\x1b[31mc\x9dd\ud800e\ufffff\u202eg\nh", "ab[31mcdefgh"),
        ("仮想マシン", "仮想マシン"),
        ("x" * 200, "x" * 72 + "..."),
        ("仮" * 200, "仮" * 36 + "..."),
    ],
)
def test_the_name_of_a_vm_may_hold_anything(title: str, shown: str) -> None:
    picture = drawing.picture(title, (a_gpu(),), ())

    assert texts(picture)[0] == shown
    assert {one.tag for one in read(picture).iter()} == {
        SVG + tag for tag in ("svg", "title", "defs", "pattern", "rect", "path", "text")
    }


def test_names_in_a_snapshot_may_hold_anything() -> None:
    name = '<b>&"\033[31m\0\ud800' + "x" * 99
    before = a_gpu(*(reservation(f"{n}{name}", n * M, M // 2) for n in range(9)), driver=name)

    picture = drawing.picture("win11", (before,), ())

    assert "b" not in {etree.QName(one).localname for one in read(picture).iter()}
    assert max(map(len, texts(picture))) < 130


def test_a_thousand_reservations_stay_inside_the_bar() -> None:
    before = a_gpu(*(reservation("efifb", n * 8 * K, 4 * K) for n in range(1000)))

    picture = drawing.picture("win11", (before,), ())

    ((left, width),) = boxes(picture, "bar")
    assert left + width < float(read(picture).attrib["width"])
    assert max(x + wide for x, wide in boxes(picture, "console")) <= left + width + ROUNDED


def test_the_picture_refers_to_no_other_file() -> None:
    picture = drawing.picture("win11", gpus("two-amd"), gpus("two-amd"))

    assert not {"href", "src", "style", "onload"} & {
        etree.QName(name).localname for one in read(picture).iter() for name in one.attrib
    }
    assert picture.count("http") == 1, "only the name of the language"


def test_a_picture_without_a_gpu_or_a_bar_has_a_note() -> None:
    assert texts(drawing.picture("win11", (), ())) == ["win11", "no GPU"]
    assert texts(drawing.picture("win11", (replace(a_gpu(), bars=()),), ()))[-1] == (
        "no memory BAR has an address"
    )
