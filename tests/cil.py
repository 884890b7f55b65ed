"""The SELinux module in config/selinux, read as the fake's rules (tests/fakehost/selinux.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Union

MODULE = Path(__file__).parents[1] / "config/selinux/vfio_console_hook.cil"
# Which types of the machines in the tests have these attributes.
ATTRIBUTES = {"domain": ("init_t", "virtqemud_t", "virtd_t"), "file_type": ("var_run_t",)}

Expression = Union[str, list["Expression"]]


def expressions(text: str) -> list[Expression]:
    """The S-expressions of a file in SELinux's Common Intermediate Language."""
    stack: list[list[Expression]] = [[]]
    for token in re.findall(r'[()]|"[^"]*"|[^\s()"]+', re.sub(r"(?m);.*$", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            inner = stack.pop()
            stack[-1].append(inner)
        else:
            stack[-1].append(token.strip('"'))
    (whole,) = stack  # or else a parenthesis is missing
    return whole


def statements() -> Iterator[list[Expression]]:
    """The statements of our module, also those in an (optional)."""
    for one in expressions(MODULE.read_text(encoding="utf-8")):
        assert isinstance(one, list)
        if one[0] == "optional":
            yield from (inner for inner in one[2:] if isinstance(inner, list))
        else:
            yield one


def rules() -> Iterator[str]:
    """What our module allows, and which types it gives, as rules of the fake."""
    for one in statements():
        if one[0] == "typetransition":
            _, source, target, kind, *name, result = map(str, one)
            yield " ".join(("type_transition", source, f"{target}:{kind}", result, *name))
        elif one[0] == "allow":
            source, target, what = str(one[1]), str(one[2]), one[3]
            assert isinstance(what, list) and isinstance(what[1], list)
            for each in ATTRIBUTES.get(target, (source if target == "self" else target,)):
                yield " ".join(("allow", source, f"{each}:{what[0]}", *map(str, what[1])))
