"""Value: what frozen dataclasses that events load have in common."""

from __future__ import annotations


class Value:
    """Compares, hashes and prints a frozen dataclass by its class and fields.

    dataclass would write and compile these three anew for each class, whenever it is loaded: 0.3
    ms a class, and prepare loads 23. So those that events load are written
    `@dataclass(frozen=True, eq=False, repr=False)`; what they return is the same.
    """

    def __eq__(self, other: object) -> bool:
        return vars(other) == vars(self) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({fields})"
