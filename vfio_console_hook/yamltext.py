"""YAML as plain values that know their lines; nothing in a text can make an object."""

from __future__ import annotations

import re
from dataclasses import dataclass

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from typing import Any

_MAX_DEPTH = 8


@dataclass(frozen=True)
class Entry:
    """One line `key: value` of a YAML mapping; key is "" when it is not a word."""

    line: int
    key: str
    value: object


class YamlError(Exception):
    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


def parse(text: str) -> object:
    """YAML as str, bool, int, float, None, list, and a tuple of Entry for a mapping.

    Nodes are read and never constructed, so no text can make an object. Raises
    YamlError.
    """
    # Takes some 15 ms to load, so only when there is something to read.
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            line = _line(event.start_mark)
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise YamlError(line, "anchors, aliases and tags are not understood here")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            # Also because deep nesting takes yaml minutes.
            if depth > _MAX_DEPTH:
                raise YamlError(line, "nested too deeply")
        node = yaml.compose(text, yaml.SafeLoader)
        return None if node is None else _plain(node)
    except yaml.MarkedYAMLError as error:
        line = _line(error.problem_mark or error.context_mark)
        raise YamlError(line, f"not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"not YAML: {error.reason}") from error


def _line(mark: Any) -> int:
    return mark.line + 1 if mark else 1


def _plain(node: Any) -> object:
    # By node.id and not by class, because yaml is not loaded up here.
    if node.id == "sequence":
        return [_plain(one) for one in node.value]
    if node.id == "mapping":
        return tuple(
            Entry(_line(key.start_mark), key.value if key.id == "scalar" else "", _plain(value))
            for key, value in node.value
        )
    return _scalar(node.tag.rpartition(":")[2], node.value)


def _scalar(kind: str, text: str) -> object:
    # Only plain decimal numbers are numbers: YAML 1.1 would read 010 as 8 and 1:30
    # as 90, and knows .inf and .nan.
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int" and re.fullmatch("0|[1-9][0-9]{0,8}", text):
        return int(text)
    if kind == "float" and re.fullmatch("[0-9]{1,9}[.][0-9]{1,9}", text):
        return float(text)
    return text
