"""Our dataclasses do what the standard library's do, as far as the program goes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.gate import ROOT
from vfio_console_hook import values

BOTH = pytest.mark.parametrize("made_by", [dataclasses, values], ids=["library", "ours"])


def point(made_by: ModuleType) -> Any:
    """A frozen class with a default, and something that is no field."""

    @made_by.dataclass(frozen=True)
    class Point:
        x: int
        y: int = 2
        note: str = made_by.field(default="", compare=False)
        kind = "point"

        @property
        def total(self) -> int:
            return self.x + self.y

    return Point


def heap(made_by: ModuleType) -> Any:
    """A class that may change."""

    @made_by.dataclass()
    class Heap:
        name: str
        things: list[str] = made_by.field(default_factory=list)

    return Heap


@BOTH
def test_arguments_go_to_fields_in_order_or_by_name(made_by: ModuleType) -> None:
    made = point(made_by)

    found = [vars(made(1)), vars(made(1, 3)), vars(made(y=4, x=1, note="a"))]

    assert [list(one.items()) for one in found] == [
        [("x", 1), ("y", 2), ("note", "")],
        [("x", 1), ("y", 3), ("note", "")],
        [("x", 1), ("y", 4), ("note", "a")],
    ]
    assert (made.kind, made(1).total) == ("point", 3)


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [
        lambda made: made(),
        lambda made: made(1, 2, "", 4),
        lambda made: made(1, x=1),
        lambda made: made(1, z=1),
        lambda made: made(y=1),
    ],
    ids=["none", "too many", "twice", "unknown", "one lacks"],
)
def test_arguments_that_do_not_fit_are_refused(
    made_by: ModuleType, wrong: Callable[[Any], object]
) -> None:
    with pytest.raises(TypeError):
        wrong(point(made_by))


@BOTH
def test_values_are_told_apart_by_what_is_in_them(made_by: ModuleType) -> None:
    made, other = point(made_by), point(made_by)

    assert made(1) == made(1, 2, "another note")
    assert made(1) != made(2)
    assert made(1) != other(1)
    assert made(1) != (1, 2, "")
    assert {made(1): "found"}[made(1, note="another note")] == "found"


@BOTH
def test_a_frozen_value_does_not_change(made_by: ModuleType) -> None:
    one = point(made_by)(1)

    with pytest.raises(AttributeError):
        one.x = 2
    with pytest.raises(AttributeError):
        del one.x

    assert one.x == 1


@BOTH
def test_another_value_differs_in_some_fields(made_by: ModuleType) -> None:
    one = point(made_by)(1, note="a")

    assert vars(made_by.replace(one, y=5)) == {"x": 1, "y": 5, "note": "a"}
    with pytest.raises(TypeError):
        made_by.replace(one, z=5)


@BOTH
def test_each_object_begins_with_a_list_of_its_own(made_by: ModuleType) -> None:
    made = heap(made_by)
    one, two = made("one"), made("two")

    one.things.append("a")
    one.name = "first"

    assert (one.name, one.things, two.things) == ("first", ["a"], [])
    with pytest.raises(TypeError):
        hash(one)


@BOTH
def test_a_value_shows_what_is_in_it(made_by: ModuleType) -> None:
    assert repr(point(made_by)(1, note="a")).endswith("Point(x=1, y=2, note='a')")


def test_no_part_of_an_event_loads_the_library_s_own() -> None:
    program = (
        "import sys\n"
        "from vfio_console_hook import hook, events, history, log\n"
        "from vfio_console_hook.stages import detach, drm_aperture, fbcon, fbdev, handover, native,"
        " others, services, sound, vgacon\n"
        "from vfio_console_hook.actions import native, services, modules, vfio\n"
        "print('dataclasses' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    assert done.stdout == "False\n"
