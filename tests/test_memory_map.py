"""The drawn map of a GPU's address ranges."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from tests.building import G, K, M
from tests.conftest import Golden
from tests.drawn import BASE, MACHINES, a_gpu, gpus, reservation, sized
from vfio_console_hook.commands.plan import memory_map
from vfio_console_hook.commands.plan.memory_map import CONSOLE, DRIVER, UNKNOWN, VFIO, Kind
from vfio_console_hook.commands.terminal import Terminal
from vfio_console_hook.machine.iomem import Reservation
from vfio_console_hook.machine.memory import Bar

TERMINAL = Terminal()


def rows(text: str) -> list[str]:
    """The drawn rows of a map."""
    return re.findall(r"^ *\|(.*)\|$", text, re.MULTILINE)


@pytest.mark.parametrize("name", MACHINES)
def test_the_parts_of_a_bar_follow_each_other_and_cover_it(name: str) -> None:
    for one in gpus(name):
        maps = memory_map.bar_maps(one)

        assert [drawn.bar for drawn in maps] == list(one.bars)
        for drawn in maps:
            firsts = [part.range.first for part in drawn.parts]
            lasts = [part.range.last for part in drawn.parts]
            assert firsts == [drawn.bar.range.first, *(last + 1 for last in lasts[:-1])]
            assert lasts[-1] == drawn.bar.range.last


@pytest.mark.parametrize("name", MACHINES)
def test_every_reservation_is_drawn_where_iomem_has_it_and_named(name: str) -> None:
    for one in gpus(name):
        text = memory_map.text(one, TERMINAL)
        parts = [part for drawn in memory_map.bar_maps(one) for part in drawn.parts]

        for reserved in one.reservations:
            inside = [part.range for part in parts if reserved in part.reservations]
            covered = sum(range_.last - range_.first + 1 for range_ in inside)
            assert (inside[0].first, inside[-1].last) == (reserved.range.first, reserved.range.last)
            assert covered == reserved.range.last - reserved.range.first + 1
            assert re.search(rf"{reserved.range} .*\b{reserved.name}\b", text)


@pytest.mark.parametrize("name", MACHINES)
def test_a_map_fits_the_terminal_and_needs_no_colour(name: str) -> None:
    for one, width in itertools.product(gpus(name), (60, 80, 110)):
        text = memory_map.text(one, Terminal(width))
        coloured = memory_map.text(one, Terminal(width, colour=True))

        assert text.isascii()
        assert max(map(len, text.splitlines())) < width
        assert {len(row) for row in rows(text)} <= {32 if width == 60 else 64}
        assert re.sub(r"\033\[\d+m", "", coloured) == text


@pytest.mark.parametrize(
    "name", ["efifb-6.12", "amd-strix-halo-0380", "nvidia-bootfb-bar3", "bmc-and-two-nvidia"]
)
def test_maps_of_machines(golden: Golden, name: str) -> None:
    text = "\n".join(memory_map.text(one, TERMINAL) for one in gpus(name))

    golden(f"map-{name}", text)


def test_a_map_of_all_that_can_be_in_a_bar(golden: Golden) -> None:
    one = a_gpu(
        reservation("vfio-pci", 0, 2 * M),
        reservation("BOOTFB", 4 * M, 4 * M),
        reservation("simpledrm", 5 * M, 1 * M),
        reservation("strangefb", 12 * M, 4 * K),
        reservation("efifb", 15 * M, 8 * M),
        driver="vfio-pci",
    )

    golden("map-all-kinds", memory_map.text(one, TERMINAL))


def test_a_picture_is_to_scale() -> None:
    text = memory_map.text(a_gpu(reservation("efifb", 4 * M, 8 * M)), TERMINAL)

    assert rows(text) == ["." * 16 + "#" * 32 + "." * 16]


def test_one_page_of_32_gib_is_visible() -> None:
    bar = Bar(0, sized(0x2800000000, 32 * G))
    page = Reservation("simpledrm", sized(0x2C00000000, 4 * K), 0)

    text = memory_map.text(a_gpu(page, bars=(bar,)), TERMINAL)

    (row,) = rows(text)
    assert re.fullmatch(r"\.{31,32}#\.{31,32}", row)
    assert "a character is 512 MiB" in text


def test_a_driver_inside_its_firmware_device_is_one_part_with_it() -> None:
    outer, inner = reservation("BOOTFB", 0, 4 * M), reservation("simpledrm", 0, 4 * M)

    (drawn,) = memory_map.bar_maps(a_gpu(outer, inner))

    assert [(part.range, part.name) for part in drawn.parts] == [
        (outer.range, "BOOTFB, simpledrm"),
        (sized(BASE + 4 * M, 12 * M), ""),
    ]


def test_neighbours_with_the_same_name_stay_two() -> None:
    first, second = reservation("efifb", 0, 8 * M), reservation("efifb", 8 * M, 8 * M)

    (drawn,) = memory_map.bar_maps(a_gpu(first, second))

    assert [part.reservations for part in drawn.parts] == [(first,), (second,)]


def test_a_reservation_beyond_a_bar_is_cut_and_shown_in_a_note() -> None:
    one = a_gpu(reservation("strangefb", -4 * M, 8 * M))

    (drawn,) = memory_map.bar_maps(one)

    assert [(part.range, part.name) for part in drawn.parts] == [
        (sized(BASE, 4 * M), "strangefb"),
        (sized(BASE + 4 * M, 12 * M), ""),
    ]
    assert "bfc00000-c03fffff\n" in memory_map.text(one, TERMINAL)


@pytest.mark.parametrize(
    ("name", "driver", "kind", "verdict"),
    [
        ("efifb", None, CONSOLE, "blocked by efifb"),
        ("BOOTFB", "vfio-pci", CONSOLE, "blocked by BOOTFB"),
        ("BOOTFB", "nvidia", CONSOLE, "blocked by BOOTFB"),
        ("strangefb", None, UNKNOWN, "blocked by strangefb"),
        ("strangefb", "vfio-pci", UNKNOWN, "blocked by strangefb"),
        ("nvidia", "nvidia", DRIVER, "held by nvidia, the GPU's own driver"),
        ("mgadrmfb_vram", "mgag200", DRIVER, "held by mgadrmfb_vram, the GPU's own driver"),
        ("vfio-pci", "vfio-pci", VFIO, "held by vfio-pci, for a VM"),
        ("vfio", "vfio-pci", VFIO, "held by vfio, for a VM"),
    ],
)
def test_the_verdict_names_what_reserves_a_bar_and_whether_that_blocks_it(
    name: str, driver: str | None, kind: Kind, verdict: str
) -> None:
    (drawn,) = memory_map.bar_maps(a_gpu(reservation(name, 0, 16 * M), driver=driver))

    assert (drawn.kind, drawn.verdict) == (kind, verdict)


def test_all_reservations_that_block_a_bar_are_named_and_no_others() -> None:
    reservations = (
        reservation("efifb", 0, M),
        reservation("vfio-pci", 4 * M, M),
        reservation("strangefb", 8 * M, M),
    )

    (drawn,) = memory_map.bar_maps(a_gpu(*reservations, driver="vfio-pci"))

    assert drawn.verdict == "blocked by efifb, strangefb"


def test_a_gpu_whose_driver_reserves_nothing_is_not_called_idle() -> None:
    text = memory_map.text(a_gpu(driver="amdgpu"), TERMINAL)

    assert text == "  BAR 0  c0000000-c0ffffff  16 MiB  free: amdgpu reserves nothing here\n"


def test_a_gpu_without_memory_bars() -> None:
    text = memory_map.text(replace(a_gpu(), bars=()), TERMINAL)

    assert text.startswith("  no memory BAR has an address")


def test_names_in_a_snapshot_cannot_control_the_terminal() -> None:
    one = a_gpu(reservation("\033[2J\u202eevil" + "x" * 99, 0, M), driver="\033]0;title\a")

    text = memory_map.text(one, TERMINAL) + memory_map.text(replace(one, reservations=()), TERMINAL)

    assert text.isascii()
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count("x") < 99, "the name is cut, both times"
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (512, "512 B"),
        (4 * K, "4 KiB"),
        (4096000, "3.9 MiB"),
        (16 * M - 4096000, "12.1 MiB"),
        (1023 * M, "1023 MiB"),
        (32 * G, "32 GiB"),
        (32 * G - 32 * M, "31.97 GiB"),
    ],
)
def test_sizes_for_people(size_bytes: int, words: str) -> None:
    assert memory_map.in_units(size_bytes) == words


@pytest.mark.parametrize(
    ("sizes", "whole", "least", "expected"),
    [
        ((4, 12), 64, 1, (16, 48)),
        ((1, 1, 1), 64, 1, (21, 22, 21)),
        ((1, 10**9), 64, 1, (1, 63)),
        ((10**9, 1, 1, 10**9), 64, 3, (29, 3, 3, 29)),
        ((1, 1, 1, 1), 2, 1, None),
    ],
)
def test_small_sizes_get_their_share_from_the_largest(
    sizes: tuple[int, ...], whole: int, least: int, expected: tuple[int, ...] | None
) -> None:
    found = memory_map.shares(sizes, whole, least)

    assert sum(found) == whole
    assert expected is None or found == expected
