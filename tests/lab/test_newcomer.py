"""How the lab reads a terminal's screen and JSON, without a machine."""

from __future__ import annotations

from .newcomer import TO_COPY, steps, vms
from .tmux import COLUMNS, PROMPT, Screen, slug

LONG = "word " * 20


def screen(*output: str) -> Screen:
    whole = "\n".join((f"{PROMPT}vfio-console-hook status", *output, PROMPT.strip()))
    return Screen("vfio-console-hook status", 0, 0.1, whole, whole, whole)


def test_the_output_is_without_what_was_typed_and_the_next_prompt() -> None:
    assert screen("no VM holds a GPU", "", "last event").output == (
        "no VM holds a GPU\n\nlast event"
    )


def test_a_line_as_wide_as_the_terminal_is_not_wrapped() -> None:
    assert screen("x" * COLUMNS, "x" * (COLUMNS + 1)).wrapped() == ["x" * (COLUMNS + 1)]


def test_only_a_line_to_copy_may_be_wrapped() -> None:
    wrapped = screen(f"    echo {LONG} > /sys/x", f"because {LONG}").wrapped()

    assert [bool(TO_COPY.match(line)) for line in wrapped] == [True, False]


def test_files_are_named_after_the_command() -> None:
    assert slug("vfio-console-hook plan gpu --svg /root/gpu.svg") == "plan-gpu-svg-root-gpu-svg"


def test_steps_of_plan_and_status_are_compared_by_the_keys_of_both() -> None:
    step = {"stage": "native", "gpu": "0000:01:00.0", "why": "it is open"}
    planned = {"steps": [{**step, "do": "# wait", "undo": None}]}
    held = {"holds": [{"vm": "gpu", "steps": [{**step, "past": "closed", "undo": ""}]}]}

    (one,) = vms(held)

    assert steps(one) == steps(planned) == [("native", "0000:01:00.0", "it is open", "")]


def test_an_output_that_is_no_json_has_no_vms_and_no_steps() -> None:
    assert (vms(None), steps(None)) == ([], [])
