"""The conclusions that tests/bench draws from given figures."""

from __future__ import annotations

import re
from math import log
from pathlib import Path

import pytest

from tests.bench import axes
from tests.bench.__main__ import Measured, line, over, steadied
from tests.bench.compare import Row
from tests.bench.growth import Growth, Point, exponent
from tests.libvirt_xml import domain_xml
from vfio_console_hook import domain

SIZES = (1, 4, 16, 64, 256, 1024)


def growing(power: float) -> Growth:
    points = tuple(Point(size, 0.05 + 1e-4 * size**power, 0.04) for size in SIZES)
    return Growth("reading", points)


@pytest.mark.parametrize("power", [0.8, 1.0, 1.5, 2.0])
def test_the_exponent_is_that_of_the_cost_of_size(power: float) -> None:
    assert growing(power).exponent == pytest.approx(power, abs=0.08)


def test_a_factor_of_the_logarithm_counts_as_linear_and_a_square_does_not() -> None:
    sorting = [0.05 + 1e-5 * size * log(size + 1) for size in (8, 1000, 2000, 4000, 8000, 16000)]

    assert exponent((8, 1000, 2000, 4000, 8000, 16000), sorting) < 1.15
    assert over(growing(2))
    assert not over(growing(1))


def test_noise_of_a_flat_cost_is_no_growth() -> None:
    assert exponent(SIZES, (0.050, 0.051, 0.049, 0.052, 0.050, 0.053)) == 0


def test_noise_of_some_percent_does_not_make_linear_cost_superlinear() -> None:
    noise = (1.0, 0.96, 1.04, 0.96, 0.96, 1.04)
    costs = [(0.05 + 1e-3 * size) * factor for size, factor in zip(SIZES, noise)]

    assert exponent(SIZES, costs) < 1.15


def test_too_few_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 sizes are too few"):
        exponent((1, 2, 3), (1, 2, 3))


def test_a_figure_over_its_bar_is_measured_again_and_the_best_counts() -> None:
    seen: list[Path] = []
    ratios = iter(((2.0, 1.2), (1.4, 1.9)))

    def measure(directory: Path) -> tuple[Measured, ...]:
        seen.append(directory)
        return tuple(Row("events", "cpu", ratio, 1.0) for ratio in next(ratios))

    assert [row.value for row in steadied(measure)] == [1.4, 1.2]
    assert len(set(seen)) == 2


def test_a_figure_that_stays_over_its_bar_is_over() -> None:
    (row,) = steadied(lambda directory: (Row("events", "cpu", 2.0, 1.0),))

    assert over(row)
    assert line(row).endswith("| 2.00 | 1.50 (over) |")


def test_a_row_of_the_table() -> None:
    assert [line(Row("events", "cpu", 0.006, 0.005)), line(growing(1))] == [
        "| events | cpu | 6.00 ms | 5.00 ms | 1.20 | 1.50 |",
        "| reading | growth | 152.40 ms | 40.00 ms | n^1.00 | n^1.15 |",
    ]


@pytest.mark.parametrize(
    "filling", [axes.DISKS, axes.USB, axes.METADATA], ids=lambda one: str(one.name)
)
@pytest.mark.parametrize("kib", [2, 64, 1024])
def test_an_xml_that_is_grown_has_the_size_and_the_devices_it_should(
    filling: axes.Filling, kib: int
) -> None:
    xml = filling.fill(domain_xml("0000:01:00.0"), kib * 1024)

    assert 0 <= kib * 1024 - len(xml) < 400
    assert domain.hostdev_addresses(xml) == ("0000:01:00.0",)
    assert len(re.findall(rb"<disk |type='usb' m|<note:line ", xml)) > kib
