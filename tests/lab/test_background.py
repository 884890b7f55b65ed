"""The victims of the watcher, and what else of the machine and VM needs no machine to test."""

from __future__ import annotations

import pytest

from .guest import watcher
from .machine import Gpu, Hardware, kernel_line
from .vm import GuestGpu, domain_xml


def test_two_vms_differ_only_in_name_and_uuid() -> None:
    gpus = (GuestGpu("0000:01:00.0", 0, 1),)

    one, other = domain_xml(gpus), domain_xml(gpus, "other", "0" * 36)

    differing = [(a, b) for a, b in zip(one.splitlines(), other.splitlines()) if a != b]
    assert [b for _, b in differing] == ["<name>other</name>", f"<uuid>{'0' * 36}</uuid>"]


def test_apparmor_is_off_unless_a_scenario_asks_for_it() -> None:
    # The last one counts: parse_args goes from left to right (Linux init/main.c).
    asking = Hardware((Gpu(),), None, kernel_line="apparmor=1")

    words = [word for word in kernel_line(asking).split() if word.startswith("apparmor=")]

    assert words == ["apparmor=0", "apparmor=1"]


@pytest.mark.parametrize(
    ("kind", "killed"),
    [("hook", [7, 8]), ("supervisor", [7]), ("worker", [8]), ("none", [])],
)
def test_the_watcher_kills_the_processes_of_a_victim(kind: str, killed: list[int]) -> None:
    assert watcher.victims(kind, [7], [8], daemon=5) == killed


def test_libvirtd_is_killed_before_the_hook_so_that_it_does_not_see_the_hook_end() -> None:
    assert watcher.victims("everything", [7], [8], daemon=5) == [5, 7, 8]
