"""YAML as plain values with their lines and columns.

yaml.safe_load() has no lines, lets a key be set twice, follows aliases, and reads 010 as 8
and 1:30 as 90. So the events of its parser are read here, and no object is constructed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InstallationError

TYPE_CHECKING = False  # as in typing, which would cost each event 1.6 ms
if TYPE_CHECKING:
    from typing import Any

_MAX_DEPTH = 8
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")

Place = tuple[int, int]
"""A line and a column, both counted from 1; the column in characters."""


@dataclass(frozen=True)
class Entry:
    """One `key: value` of a YAML mapping; key is "" when it is not a scalar.

    line and column are those of the key. value_at is the place of the value, and items_at
    has those of the items of a list.
    """

    line: int
    column: int
    key: str
    value: object
    value_at: Place
    items_at: tuple[Place, ...] = ()


class YamlError(Exception):
    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(problem)
        self.line, self.column = place
        self.problem = problem


def library() -> Any:
    """PyYAML, which takes 7 ms to load, so only when it is needed. Raises InstallationError."""
    try:
        import yaml
    except Exception as error:  # half of it may be there
        raise InstallationError.of("PyYAML", error) from error
    return yaml


def parse(text: str) -> object:
    """YAML as str, bool, int, float, None, list, and a tuple of Entry for a mapping.

    Raises YamlError.
    """
    yaml = library()
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        loader.get_event()  # the stream's beginning
        if loader.check_event(yaml.StreamEndEvent):
            return None
        loader.get_event()  # the document's
        value, _, _ = _node(loader, loader.get_event(), 0)
        loader.get_event()  # the document's end
        if not loader.check_event(yaml.StreamEndEvent):
            place = _place(loader.get_event().start_mark)
            raise YamlError(place, "--- begins a second document, only one is read")
    except yaml.MarkedYAMLError as error:
        raise _plain(error, text) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - (before.rfind("\n") + 1) + 1
        problem = f"not YAML: {error.reason}"
        raise YamlError((before.count("\n") + 1, column), problem) from error
    except (ValueError, OverflowError) as error:
        # As in "\U00110000", which yaml gives to chr(), and "%YAML 1.999...", to int().
        place = _place(loader.get_mark() if loader else None)
        raise YamlError(place, "not YAML: this number is too large") from error
    return value


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _node(loader: Any, event: Any, depth: int) -> tuple[object, Place, tuple[Place, ...]]:
    """The value that begins with an event, its place, and the places of a list's items."""
    import yaml

    place = _place(event.start_mark)
    if getattr(event, "anchor", None) or getattr(event, "tag", None):
        raise YamlError(place, "anchors, aliases and tags are not supported")
    if isinstance(event, yaml.ScalarEvent):
        _refuse_swallowed_item(event)
        tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        return _scalar(tag.rpartition(":")[2], _text(event.value, place)), place, ()
    # Also because deep nesting takes yaml minutes.
    if depth == _MAX_DEPTH:
        raise YamlError(place, "nested too deeply")
    if isinstance(event, yaml.MappingStartEvent):
        entries = []
        while not isinstance(event := loader.get_event(), yaml.MappingEndEvent):
            _, key_at, _ = _node(loader, event, depth + 1)
            key = event.value if isinstance(event, yaml.ScalarEvent) else ""
            value, value_at, items_at = _node(loader, loader.get_event(), depth + 1)
            entries.append(Entry(*key_at, key, value, value_at, items_at))
        return tuple(entries), place, ()
    items = []
    while not isinstance(event := loader.get_event(), yaml.SequenceEndEvent):
        items.append(_node(loader, event, depth + 1))
    return [item for item, _, _ in items], place, tuple(at for _, at, _ in items)


def _refuse_swallowed_item(event: Any) -> None:
    """Raise YamlError for a list item that is indented too far, and so part of the one before.

    To YAML it is the second line of that text: "- a" and below it "  - b" are "a - b".
    """
    start, end = event.start_mark, event.end_mark
    if event.style is not None or start.line == end.line:
        return
    lines = start.buffer[start.pointer : end.pointer].splitlines()
    for number, line in enumerate(lines[1:], start.line + 2):
        text = line.lstrip()
        if text.startswith("- "):
            problem = (
                "this item is indented further than the one before, and so a part of it: begin it"
                " in the same column"
            )
            raise YamlError((number, len(line) - len(text) + 1), problem)


def _text(value: str, place: Place) -> str:
    # YAML can write "\0" and "\ud800", but they fit into no file name and no argument.
    if _NOT_TEXT.search(value):
        raise YamlError(place, "a character that no text may hold")
    return value


def _scalar(kind: str, text: str) -> object:
    # Only plain decimal numbers are numbers: YAML 1.1 reads 010 as 8 and 1:30 as 90, and
    # has .inf and .nan.
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int" and re.fullmatch("0|[1-9][0-9]{0,8}", text):
        return int(text)
    if kind == "float" and re.fullmatch("[0-9]{1,9}[.][0-9]{1,9}", text):
        return float(text)
    return text


# -- mistakes, without YAML's own terms

_NO_COLON = "a key without `: ` behind it, a colon and a space"

# The beginning of yaml's message; whether the mistake is at its context mark, where the
# construct began; and a sentence that helps.
_SENTENCES = (
    ("found character '\\t'", False, "a tab, where only spaces may indent"),
    ("found character '%'", False, "a value cannot begin with %, put it in quotes"),
    ("found character '@'", False, "a value cannot begin with @, put it in quotes"),
    ("found character '`'", False, "a value cannot begin with `, put it in quotes"),
    ("could not find expected ':'", True, _NO_COLON),
    ("found unexpected end of stream", True, "this quote is never closed"),
    ("expected ',' or ']', but got", True, "this [ is never closed"),
    ("expected ',' or '}', but got", True, "this { is never closed"),
    (
        "expected <block end>, but found '<scalar>'",
        False,
        "text after the closing quote; inside of '...' write '' for one '",
    ),
    (
        "expected <block end>, but found",
        False,
        "this line is not indented like the others of its group",
    ),
)


def _plain(error: Any, text: str) -> YamlError:
    """A mistake that yaml has found, in plain words."""
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context
    if problem == "mapping values are not allowed here":
        return _misplaced(text.splitlines(), *_place(mark))
    for beginning, at_context, sentence in _SENTENCES:
        if problem.startswith(beginning):
            return YamlError(_place(error.context_mark if at_context else mark), sentence)
    return YamlError(_place(mark), f"not YAML: {problem}")


def _misplaced(lines: list[str], line: int, column: int) -> YamlError:
    """The mistake when the colon at a place cannot end a key."""
    if re.search(r":\s", lines[line - 1][: column - 1]):
        problem = "a second `: ` in one line; put the value in quotes if it belongs to it"
        return YamlError((line, column), problem)
    before = [n for n in range(line - 1) if lines[n].strip() and lines[n].strip()[0] != "#"]
    if before and not re.search(r":(\s|$)", lines[before[-1]]):
        text = lines[before[-1]]
        comment = text.lstrip().startswith(("//", ";"))
        place = before[-1] + 1, len(text) - len(text.lstrip()) + 1
        return YamlError(place, "a comment begins with #" if comment else _NO_COLON)
    problem = "this line is indented further than the one before, which is not a group of keys"
    return YamlError((line, len(lines[line - 1]) - len(lines[line - 1].lstrip()) + 1), problem)
