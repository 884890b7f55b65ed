"""The texts for the host's console, and how pictures of a monitor show them."""

from __future__ import annotations

from .pictures import Picture

TEXT = (
    "This is the console of the host.",
    "You read it before a VM has the GPU,",
    "and again when the VM is gone.",
    "0123456789 abcdefghijklmnopqrstuvwxyz",
    "################ HOST ###############",
)
OTHER_TEXT = (
    "Another text, so that a console that",
    "lives can be told from a picture that",
    "is only left over.",
    "================ %%%% ===============",
    "ZYXWVUTSRQPONMLKJIHGFEDCBA 9876543210",
)

# The text fits into this many pixels in every font and mode of the lab.
CORNER = (48 * 8, 8 * 16)
LIT_AT_LEAST = 0.02
LIVE_AT_LEAST = 0.02
SAME_AT_MOST = 0.005


def as_written(text: tuple[str, ...]) -> bytes:
    """The bytes that clear a console, hide its cursor and show the text."""
    return ("\033c\033[?25l\033[2J\033[H" + "\r\n".join(text)).encode()


def alive(one: Picture, other: Picture) -> bool:
    """Whether pictures with two texts differ: the console draws and is no old picture."""
    return one.difference(other) >= LIVE_AT_LEAST


def same(one: Picture, other: Picture) -> bool:
    """Whether two pictures look the same to a person."""
    return one.difference(other) <= SAME_AT_MOST
