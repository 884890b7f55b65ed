"""dataclass, field and replace of the standard library, as far as they are used here.

libvirtd waits for the hook, and the standard library's own compile new methods for every
class in every process: a third of all that `prepare` computed. Here all classes share
theirs. A type checker is shown the standard library's, and nothing else of it is here: no
inheritance of fields, no ordering, no slots, no asdict().
"""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False  # as typing has it, which takes milliseconds to load
if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["dataclass", "field", "replace"]

_NONE = object()


class _Field:
    """How a field begins, if not by an argument, and whether it tells values apart."""

    def __init__(
        self,
        *,
        default: object = _NONE,
        default_factory: Callable[[], object] | None = None,
        compare: bool = True,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.compare = compare


def _dataclass(*, frozen: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class of its annotated names, in their order; frozen: they never change.

    What the class defines itself is left as it is. Annotations are not looked into.
    """
    methods: dict[str, object] = {"__init__": _init, "__eq__": _eq, "__repr__": _repr}
    if frozen:
        methods.update(__hash__=_hash, __setattr__=_refuse, __delattr__=_refuse)

    def made(cls: Any) -> Any:
        own = vars(cls)
        cls._names = tuple(_annotations(cls))
        cls._fields = {name: _field_of(own.get(name, _NONE)) for name in cls._names}
        cls._compared = tuple(name for name, one in cls._fields.items() if one.compare)
        for name, one in cls._fields.items():
            if isinstance(own.get(name), _Field):
                delattr(cls, name) if one.default is _NONE else setattr(cls, name, one.default)
        # As Python itself does for a class that defines __eq__.
        cls.__hash__ = own.get("__hash__")
        for name, method in methods.items():
            if own.get(name) is None:
                setattr(cls, name, method)
        return cls

    return made


def _annotations(cls: Any) -> dict[str, object]:
    found: dict[str, object] = getattr(cls, "__annotations__", {})
    # Up to Python 3.9 a class without any shows those of a class that it is made from.
    theirs = (getattr(base, "__annotations__", None) for base in cls.__mro__[1:])
    return {} if any(found is one for one in theirs) else found


def _field_of(default: object) -> _Field:
    return default if isinstance(default, _Field) else _Field(default=default)


def _init(self: Any, /, *args: object, **named: object) -> None:
    cls = type(self)
    content = vars(self)
    content.update(zip(cls._names, args))
    for name in cls._names[len(args) :]:
        one = cls._fields[name]
        if name in named:
            content[name] = named.pop(name)
        elif one.default_factory is not None:
            content[name] = one.default_factory()
        elif one.default is not _NONE:
            content[name] = one.default
    if named or len(args) > len(cls._names) or len(content) < len(cls._names):
        raise TypeError(f"{cls.__name__} is made of {', '.join(cls._names)}, each given once")


def _content(self: Any) -> tuple[object, ...]:
    content = vars(self)
    return tuple([content[name] for name in self._compared])


def _eq(self: Any, other: object) -> object:
    if type(other) is not type(self):
        return NotImplemented
    return _content(self) == _content(other)


def _hash(self: Any) -> int:
    return hash(_content(self))


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)
    return f"{type(self).__qualname__}({shown})"


def _refuse(self: object, name: str, *_: object) -> None:
    raise AttributeError(f"{name} of a {type(self).__name__} cannot be changed")


def _replace(value: T, /, **changes: object) -> T:
    """The same value with other content in some of its fields."""
    return type(value)(**{**vars(value), **changes})


if not TYPE_CHECKING:
    dataclass, field, replace = _dataclass, _Field, _replace
